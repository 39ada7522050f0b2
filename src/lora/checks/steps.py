"""Checks by computing: gradients, accumulation, and whether the largest things fit. Nothing is changed by them."""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora.checks.finding import Finding
from lora.errors import TrainingError, is_out_of_memory
from lora.plural import number_of
from lora.tasks import Encoded
from lora.tasks.inference import evaluating, infer
from lora.training.memory import largest_batch, plan, recomputing, tokens_of, training_mode
from lora.training.passes import Passes, Share
from lora.training.processes import Processes
from lora.training.trainee import Trainee

if TYPE_CHECKING:
    from lora.config import TrainingConfig
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared

# How far two orders of the same additions may lie apart, of the largest gradient.
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-6}
ROUGH = 5e-2  # in half precision
FEW = 64  # tokens of an example that is tried, where there are such
ROWS = 4  # that are tried at once, where they are no more than the largest batch
# Of the tokens of the largest batch, where the run recomputes layers and a check does not. Of a 135M Llama of 30 layers
# a recomputed pass took an eighth of a whole one beside the weights; deeper models save more.
RECOMPUTED = 1 / 16


class Trial:
    """An adapter ready for steps that count for nothing."""

    def __init__(self, model: LoRA, name: str, prepared: Prepared, settings: TrainingConfig) -> None:
        self.model, self.name, self.prepared = model, name, prepared
        self.trainee = Trainee(model, name, prepared.task, prepared.train, settings)
        self.passes = Passes(model)
        self.packed = self.passes.why_padded(self.trainee, prepared) is None
        self.settings = settings

    @property
    def participant(self) -> Any:
        """What `lora.training.memory` needs to know of it."""
        held = self.prepared.held
        return SimpleNamespace(
            trainee=self.trainee, prepared=self.prepared, packed=self.packed, settings=self.settings, done=False,
            evaluate=held,
        )  # fmt: skip

    def recomputes(self, memory_gib: float | None) -> bool:
        """Whether `fit` will recompute layers: without that, a check could take memory that the run never needs."""
        with training_mode(self.model):
            return plan(self.passes, [self.participant], Processes(), memory_gib, 1).recompute

    @contextmanager
    def nothing_counts(self) -> Iterator[None]:
        """For the block: gradients are thrown away, and random streams are put back."""
        devices = [next(self.model.parameters()).device] if torch.cuda.is_available() else []
        with torch.random.fork_rng([device for device in devices if device.type == "cuda"]):
            try:
                yield
            finally:
                self.trainee.begin_step()

    def gradients(self, batches: Sequence[Sequence[int]]) -> dict[str, Tensor | None]:
        """The gradient of the mean over ``batches`` of rows, computed one batch after another."""
        self.trainee.begin_step()
        count = sum(self.trainee.data.supervised[i] for rows in batches for i in rows)
        for rows in batches:
            self.passes.run([self.share(rows)])
        scale = self.trainee.supervised(self.trainee.batches(self.trainee.step)) / count
        # Themselves and no copies: the parameters let go of them.
        found = {key: None if p.grad is None else p.grad.mul_(scale) for key, p in self.trainee.parameters.items()}
        self.trainee.begin_step()
        return found

    def share(self, rows: Sequence[int]) -> Share:
        made = self.passes.next_share(self.trainee, self.prepared, self.packed)
        assert made is not None, "nobody has begun"
        # The number seeds what is dropped: alike for all, so that only the order of additions differs.
        return Share(self.trainee, 0, list(rows), self.packed, made.collate)

    def short_rows(self, count: int) -> list[int]:
        """Rows to try things on: short ones, but no shorter than need be."""
        lengths = self.trainee.data.lengths
        return heapq.nsmallest(count, range(len(lengths)), key=lambda i: (abs(lengths[i] - FEW), i))

    def few_rows(self, share: float = 1) -> list[int]:
        """Up to `ROWS` short rows, fewer where they would be more than that share of the tokens of the largest batch: a
        check is not to need memory that the run does not. At least one."""
        rows, most = self.short_rows(ROWS), share * largest_batch(self.participant)[0]
        while len(rows) > 1 and tokens_of(self.participant, rows) > most:
            rows.pop()
        return rows


def gradients(trial: Trial, recompute: bool) -> Finding:
    """Whether every adapted module receives a finite gradient, as in training: layers recomputed if they will be."""
    try:
        with training_mode(trial.model), recomputing(trial.model, recompute):
            found = trial.gradients([trial.few_rows()])
    except TrainingError:  # nothing of the adapter takes part
        found = dict.fromkeys(trial.trainee.parameters)
    modules: dict[str, list[Tensor | None]] = {}
    for key, gradient in found.items():
        modules.setdefault(key.rpartition(".")[0], []).append(gradient)
    name = "every module receives a gradient"
    wild = [path for path, its in modules.items() if any(g is not None and _wild(g) for g in its)]
    idle = [path for path, its in modules.items() if not any(g is not None and bool(g.any()) for g in its)]
    why = "What receives no gradient stays as it began: the adapter would be without effect there."
    broken = [key for key, p in trial.model.base.named_parameters() if not torch.isfinite(p).all()] if wild else []
    if broken:
        return Finding(
            name, "failed", f"the base itself holds NaN or infinity ({_some(broken)})", "Training would end in NaN.",
            "Download or convert the base again; no setting mends its weights.",
        )  # fmt: skip
    if wild:
        return Finding(
            name, "failed", f"that of {_some(wild)} is not finite", "Training would end in NaN.",
            "Use bfloat16 or float32 for the base, and look at the data (`lora data show`).",
        )  # fmt: skip
    if len(idle) == len(modules):
        return Finding(name, "failed", f"none of {len(modules)} does", why, "Choose other targets.")
    if idle:
        said = f"{len(idle)} of {len(modules)} do not: {_some(idle)}"
        return Finding(
            name, "note", said, why, "Experts that these rows did not need are no fault; else choose other targets."
        )
    return Finding(name, "passed", f"{len(modules)} modules, all finite")


def _wild(tensor: Tensor) -> bool:
    """Whether something in it is not finite; so asked, tensors without contents answer that nothing is wrong."""
    return bool((~torch.isfinite(tensor)).any())


def accumulation(trial: Trial, recompute: bool) -> Finding:
    """Whether two half batches one after another give the gradient of the whole.

    ``recompute``: whether the run recomputes layers. Here, where nothing may be dropped, they are not.
    """
    name = "accumulation equals a large batch"
    rows = trial.few_rows(RECOMPUTED if recompute else 1)
    if len(trial.trainee.data) < 2:
        return Finding(name, "skipped", "there is a single example")
    if len(rows) < 2:
        return Finding(name, "skipped", "two rows at once would take more memory than the run")
    with evaluating(trial.model):  # nothing is dropped
        whole = trial.gradients([rows])
        halves = trial.gradients([rows[: len(rows) // 2], rows[len(rows) // 2 :]])
    largest = max(float(g.abs().max()) for g in whole.values() if g is not None)
    apart = max(
        float((g - other).abs().max())
        for g, other in ((g, halves[key]) for key, g in whole.items())
        if g is not None and other is not None
    )
    relative = apart / max(largest, 1e-30)
    said = f"gradients differ by {relative:.0e} of the largest"
    if relative <= AGREEMENT.get(next(trial.model.base.parameters()).dtype, ROUGH):
        return Finding(name, "passed", said)
    return Finding(
        name, "failed", said, "Rows of unlike length would weigh otherwise than in one batch.",
        "Some layer of this model mixes rows; train it with accumulation 1.",
    )  # fmt: skip


def longest(trial: Trial, recompute: bool) -> Finding:
    """Whether forward and backward of the largest batch fit in memory."""
    name = "the largest batch fits"
    tokens, rows = largest_batch(trial.participant)
    begun = time.perf_counter()
    try:
        with training_mode(trial.model), recomputing(trial.model, recompute):
            trial.passes.run([trial.share(rows)])
    except (MemoryError, RuntimeError) as error:
        return too_large(name, f"{len(rows)} rows with {tokens:,} tokens do not", error)
    said = f"{number_of(len(rows), 'row')} with {number_of(tokens, 'token')}"
    return Finding(name, "passed", f"{said} in {time.perf_counter() - begun:.1f} s")


def evaluation(trial: Trial) -> Finding:
    """Whether an evaluation of the longest held-out rows fits in memory."""
    name, held = "an evaluation fits", trial.prepared.held
    if held is None:
        return Finding(name, "skipped", "no rows are held out")
    count = trial.settings.evaluation_rows
    order = sorted(range(len(held)), key=lambda i: -held.lengths[i])[:count]
    part = Encoded(
        [held.examples[i] for i in order], [held.lengths[i] for i in order], [held.supervised[i] for i in order]
    )
    begun = time.perf_counter()
    try:
        infer(
            trial.model, trial.prepared.task, part, [trial.name], pad_token_id=trial.prepared.pad_token_id,
            batch_size=count, padding_side=trial.prepared.padding_side,
        )  # fmt: skip
    except (MemoryError, RuntimeError) as error:
        return too_large(name, f"its {len(order)} longest rows do not", error)
    return Finding(name, "passed", f"its {len(order)} longest rows in {time.perf_counter() - begun:.1f} s")


def too_large(name: str, said: str, error: MemoryError | RuntimeError) -> Finding:
    """What is found where memory ran out; any other ``error`` is raised again."""
    if not is_out_of_memory(error):
        raise error
    error.__traceback__ = None  # its frames hold on to what was computed so far
    return Finding(
        name, "failed", f"{said} ({(str(error).splitlines() or ['out of memory'])[0][:100]})",
        "The run would end when it comes to them.",
        "Lower batch_size and raise accumulation, shorten max_length, or set gradient_checkpointing; `lora plan` tells "
        "what each takes.",
    )  # fmt: skip


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

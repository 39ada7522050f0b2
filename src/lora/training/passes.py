"""One pass: the batches of several adapters through the base together, a loss for each, one backward."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora.core.attention import per_document
from lora.core.randomness import seeded_dropout
from lora.core.routing import BASE
from lora.errors import ConfigError, RoutingError, TrainingError, is_out_of_memory
from lora.model.base import short
from lora.model.fused import Fused
from lora.model.kernels import Kernels
from lora.model.noise import EmbeddingNoise, Noise
from lora.model.rows import routing_of
from lora.tasks.inference import collated, to_device, without_cache
from lora.training.blocks import Blocks, find_blocks, same
from lora.training.packable import find_packing
from lora.training.packing import Packing

if TYPE_CHECKING:
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared
    from lora.training.trainee import Trainee


@dataclass
class Share:
    """One adapter's next batch, ready to be computed.

    Attributes:
        trainee: whose batch it is.
        number: of the batch in the trainee's step.
        indices: its rows, by number among the trainee's data.
        packed: whether they go into one row.
        collate: makes padded tensors of rows.
        divergence: () KL(base ‖ adapter) of what is held to the base, summed; known once its loss is.
    """

    trainee: Trainee
    number: int
    indices: list[int]
    packed: bool
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]]
    divergence: float | Tensor = 0.0

    @functools.cached_property
    def examples(self) -> list[dict[str, Any]]:
        """Its rows as token ids; with ``training.r_drop`` all of them once more behind the last."""
        return [self.trainee.data.examples[i] for i in self.indices] * self.trainee.times

    @functools.cached_property
    def held(self) -> list[int]:
        """Which of the examples are held to the base (``training.kl``)."""
        return [place for place, i in enumerate(self.indices) if self.trainee.holds(i)]

    @property
    def base_rows(self) -> list[int]:
        """Rows of the padded tensors that the base computes too."""
        return list(range(self.rows)) if self.trainee.task.reference else self.held

    @functools.cached_property
    def batch(self) -> dict[str, Tensor]:
        """Padded tensors, ``labels`` included, on the model's device."""
        return self.collate(self.examples)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the base model takes; labels stay with the task, which computes the loss itself."""
        return {key: value for key, value in self.batch.items() if key != "labels"}

    @property
    def rows(self) -> int:
        """Rows of the padded tensors."""
        return len(self.examples) * self.trainee.task.rows

    @property
    def tokens(self) -> int:
        """Places that the share takes in a pass, padding and the base's part included."""
        if self.packed:
            lengths = [len(example["input_ids"]) for example in self.examples]
            held = range(len(lengths)) if self.trainee.task.reference else self.held
            return sum(lengths) + sum(lengths[place] for place in held)
        # Of an encoder-decoder those of its decoder too.
        ids = [value for key, value in self.batch.items() if key.endswith("input_ids")] or [*self.batch.values()][:1]
        rows = self.rows + len(self.base_rows)
        return rows * sum(value.shape[1] if value.dim() > 1 else 1 for value in ids)

    @property
    def layout(self) -> Any:
        """Shares of one layout can become one batch without any of them being padded further.

        A longer row would change the order of additions inside the attention, and so the last bits of a result.
        """
        if self.packed:
            return "packed"
        return tuple((key, *value.shape[1:]) for key, value in self.inputs.items())


class Passes:
    """Runs passes on one model by ``kernels`` (None: torch's operators); what it can do is worked out once."""

    def __init__(self, model: LoRA, kernels: Kernels | None = None) -> None:
        self.model = model
        self._drops: AbstractContextManager[Any] = seeded_dropout(model.base, model.router)
        self._noise = EmbeddingNoise(model.base, model.router)
        self._fused = Fused(model.base, kernels)
        self._packing: Packing | None = None
        self._blocks: Blocks | None = find_blocks(model)

    def kind(self, share: Share) -> Any:
        """Shares of one kind can go through the base together."""
        if share.packed or self._blocks is None or share.base_rows:
            return share.layout
        return "padded"

    def keep_apart(self) -> None:
        """From now on only shares of one layout are of one kind."""
        self._blocks = None

    def why_padded(self, trainee: Trainee, prepared: Prepared) -> str | None:
        """Why the trainee's batches cannot go into one row; None: they do, where its settings and the model allow it.

        Raises:
            ConfigError: it was asked for and cannot be.
        """
        if trainee.settings.packing is False:
            return "training.packing is off"
        # Asked for each adapter anew: its layers and its longest documents may be others.
        found = find_packing(self.model, trainee, prepared)
        if isinstance(found, str):
            if trainee.settings.packing:
                raise ConfigError(f"training.packing: {found}; leave the setting out to train with padded rows")
            return found
        self._packing = found
        return None

    def next_share(self, trainee: Trainee, prepared: Prepared, packed: bool) -> Share | None:
        """The trainee's next batch; None where the step has no more for this process."""
        found = trainee.share()
        if found is None:
            return None
        number, rows = found

        def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
            batch = collated(self.model, trainee.task, examples, prepared.pad_token_id, prepared.padding_side)
            return to_device(batch, self.model)

        return Share(trainee, number, list(rows), packed, collate)

    def run(self, shares: Sequence[Share]) -> None:
        """Forward and backward of ``shares``, all of one kind; each trainee's gradient and loss grow by its own.

        A trainee's loss is its sum over the supervised positions of its *whole* step, so that accumulation and several
        processes give the gradient of one large batch, whatever the lengths. The losses of all are added for one
        backward: an adapter's gradient comes from its own summand alone, even where another's is NaN.
        """
        if len({share.layout for share in shares}) > 1:
            assert self._blocks is not None, "else they are of different kinds"
            self._prove(self._blocks, shares)
            compute, attending = self._in_blocks, self._blocks.attending()
        elif shares[0].packed:
            compute, attending = self._packed, nullcontext()
        else:
            compute, attending = self._padded, nullcontext()
        begun = time.perf_counter()
        with per_document(self.model.base) if shares[0].packed else nullcontext(), self._fused.in_force():
            counts = [s.trainee.supervised(s.trainee.batches(s.trainee.step)) for s in shares]
            losses = [loss / count for loss, count in zip(compute(shares), counts, strict=True)]
            total = _added(losses)
            if not total.requires_grad:
                names = ", ".join(share.trainee.name for share in shares)
                raise TrainingError(
                    f"no gradient reaches {names}: none of its modules took part in the forward pass; choose other "
                    "targets"
                )
            with attending:
                total.backward()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # else this would be the time that it takes to ask for the work
        seconds, tokens = time.perf_counter() - begun, sum(share.tokens for share in shares)
        for share, loss, count in zip(shares, losses, counts, strict=True):
            share.trainee.loss = share.trainee.loss + loss.detach()
            share.trainee.divergence = share.trainee.divergence + share.divergence / count
            share.trainee.seconds += seconds * share.tokens / tokens

    def forward(self, shares: Sequence[Share]) -> list[Tensor]:
        """The loss sums of `run` alone, for a look at what a backward would need."""
        packed = shares[0].packed
        with per_document(self.model.base) if packed else nullcontext(), self._fused.in_force():
            return self._packed(shares) if packed else self._padded(shares)

    def _packed(self, shares: Sequence[Share]) -> list[Tensor]:
        packing = self._packing
        assert packing is not None, "why_padded was asked"
        reference = [share.trainee.task.reference for share in shares]
        totals = [torch.zeros((), device=next(self.model.parameters()).device) for _ in shares]
        with self._drops, self._noise.adding(_noises(shares)):
            losses = packing.losses(
                [share.examples for share in shares],
                [share.trainee.name for share in shares],
                _seeds(shares),
                [s.trainee.settings.label_smoothing if s.trainee.task.smooths_tokens else 0.0 for s in shares],
                reference,
                [(s.trainee.settings.kl, s.held, total) for s, total in zip(shares, totals, strict=True)],
                [s.trainee.settings.r_drop for s in shares],
            )
        for share, total in zip(shares, totals, strict=True):
            share.divergence = total
        of_base = iter(losses[len(shares) :])
        return [
            share.trainee.task.packed_loss(
                own, share.examples, next(of_base) if wanted else None, share.trainee.settings.label_smoothing
            )
            for share, own, wanted in zip(shares, losses, reference, strict=False)
        ]

    def _padded(self, shares: Sequence[Share]) -> list[Tensor]:
        # The base's rows, of adapters whose loss compares with it, come last.
        compared = [share for share in shares if share.base_rows]
        inputs = {
            key: torch.cat([*(s.inputs[key] for s in shares), *(s.inputs[key][s.base_rows] for s in compared)])
            for key in shares[0].inputs
        }
        names = [share.trainee.name for share in shares for _ in range(share.rows)]
        names += [BASE for share in compared for _ in share.base_rows]
        routing = routing_of(self.model.base, self.model.router, names, (), inputs)
        routing.seeds = _seeds(shares)
        noise = self._noise.adding(_noises(shares))
        with self.model.router.activate(routing), self._drops, noise, without_cache(self.model):
            outputs = self.model.base(**inputs)
        sizes = [*(share.rows for share in shares), *(len(share.base_rows) for share in compared)]
        rows = [SimpleNamespace(logits=part) for part in outputs.logits.split(sizes)]
        of_base = iter(rows[len(shares) :])
        return [
            _loss(share, own, next(of_base) if share in compared else None)
            for share, own in zip(shares, rows, strict=False)
        ]

    def _in_blocks(self, shares: Sequence[Share]) -> list[Tensor]:
        assert self._blocks is not None, "else they are of different kinds"
        names = [share.trainee.name for share in shares]
        noise = self._noise.adding(_noises(shares))
        with self._objections(), self._drops, noise, without_cache(self.model):
            outputs = self._blocks.outputs([share.inputs for share in shares], names, _seeds(shares))
        return [_loss(share, its_own) for share, its_own in zip(shares, outputs, strict=True)]

    @contextmanager
    def _objections(self) -> Iterator[None]:
        """Whatever a model of unknown make objects to inside, as RoutingError; what is out of memory stays so."""
        try:
            yield
        except RoutingError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            kind = type(self.model.base).__name__
            raise RoutingError(f"{kind} does not run on batches of unlike width ({short(error)})") from error

    def _prove(self, blocks: Blocks, shares: Sequence[Share]) -> None:
        """Once for each kind of adapter: hold losses and gradients of two of ``shares``, of which one has such an
        adapter, together against those of each by itself.

        Raises:
            RoutingError: they differ, or the model objects.
        """
        for share in shares:
            other = next(other for other in shares if other.layout != share.layout)
            # By what an adapter has where: its targets, its variant, modules of its own.
            kinds = {frozenset(one.trainee.parameters) for one in (share, other)}
            if frozenset(share.trainee.parameters) not in blocks.proved:
                self._hold_together(blocks, [share, other])
                blocks.proved |= kinds

    def _hold_together(self, blocks: Blocks, shares: Sequence[Share]) -> None:
        every = [share.trainee.parameters.values() for share in shares]
        with self._fused.in_force():
            together = self._in_blocks(shares)
            with self._objections(), blocks.attending():
                found = torch.autograd.grad(_added(together), [p for own in every for p in own], allow_unused=True)
            apart = [self._padded([share])[0] for share in shares]
            expected = [
                gradient
                for loss, own in zip(apart, every, strict=True)
                for gradient in torch.autograd.grad(loss, list(own), allow_unused=True)
            ]
        if not same([*together, *found], [*apart, *expected], next(self.model.base.parameters()).dtype):
            kind = type(self.model.base).__name__
            raise RoutingError(f"{kind} computes something else where batches of unlike width share its layers")


def _loss(share: Share, outputs: Any, of_base: Any = None) -> Tensor:
    """The share's loss, summed over its examples."""
    task, settings = share.trainee.task, share.trainee.settings
    compared = {"reference": of_base} if task.reference else {}
    loss = task.row_losses(outputs, share.batch, settings.label_smoothing, **compared)[0].sum()
    if settings.r_drop:
        half = share.rows // 2
        one, other = (SimpleNamespace(logits=part) for part in outputs.logits.split(half))
        batch = {key: value[:half] for key, value in share.batch.items()}
        # The mean of both losses, so that what there is beside them weighs as much as in one pass.
        return loss / 2 + settings.r_drop / 2 * task.row_disagreements(one, other, batch).sum()
    if of_base is None or task.reference:
        return loss
    held = SimpleNamespace(logits=outputs.logits[share.held])
    batch = {key: value[share.held] for key, value in share.batch.items()}
    apart = task.row_divergences(held, batch, of_base).sum()
    share.divergence = apart.detach()
    return loss + settings.kl * apart


def _added(losses: Sequence[Tensor]) -> Tensor:
    total = losses[0]
    for loss in losses[1:]:
        total = total + loss
    return total


def _noises(shares: Sequence[Share]) -> dict[str, Noise]:
    """What the embeddings of each share's rows get, of those whose adapter asks for it."""
    out = {}
    for share in shares:
        alpha, seed = share.trainee.settings.neftune_alpha, share.trainee.seed(share.number)
        if alpha and share.packed:
            out[share.trainee.name] = Noise(alpha, seed, lengths=[len(one["input_ids"]) for one in share.examples])
        elif alpha:
            mask = share.inputs.get("attention_mask", torch.ones_like(share.inputs["input_ids"]))
            out[share.trainee.name] = Noise(alpha, seed, mask.bool())
    return out


def _seeds(shares: Sequence[Share]) -> dict[str, int]:
    return {share.trainee.name: share.trainee.seed(share.number) for share in shares}

"""A run of `fit` rehearsed on tensors without contents: what it keeps, what comes and goes, and how much it computes.

It is the code of training itself that runs (`Passes`, `Mixer`, `Trainee`, `memory.plan`): what changes there changes
here. Two steps are taken, both on the largest batch: from the second on there are moments beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora.checks.heap import is_glibc, resident
from lora.checks.shells import Ledger, Shells
from lora.config import AdapterConfig, TrainingConfig
from lora.model.kernels import choose
from lora.model.lora import LoRA
from lora.model.targets import block_part
from lora.model.tree import unwrapped_modules
from lora.tasks import Encoded
from lora.tasks.inference import infer
from lora.training.checks import untouched_modules
from lora.training.memory import Memory, head_bytes, plan, recomputing, training_mode
from lora.training.mixer import Mixer
from lora.training.participant import Participant
from lora.training.passes import Passes, Share
from lora.training.prepare import Prepared
from lora.training.processes import Processes

STEPS = 2


@dataclass(frozen=True)
class Role:
    """One adapter of the run."""

    prepared: Prepared
    adapter: AdapterConfig
    training: TrainingConfig


@dataclass(frozen=True)
class Rehearsed:
    """What a run came to; bytes, unless said otherwise.

    Attributes:
        ledger: all that tensors took, and the phases: ``probe``, ``forward``, ``pass``, ``update``, ``evaluation``.
        peak: the most that the process holds for tensors: on a CPU with glibc more than the tensors themselves.
        weights: of the base, by type.
        parameters: of the base, a tied tensor counted once.
        trainable: of all adapters, by kind of module.
        adapters: parameters of those in training at once and of those that wait.
        gradients, moments, best: beside the parameters of those in training at once.
        kept: what a pass keeps for its backward.
        head: of the logits of a packed pass that are held at a time.
        tokens: of the largest pass, padding included; ``places`` adapters have a batch in it.
        supervised: of these tokens, those with a label.
        operations: of a pass, forward and backward.
        packed: whether rows go without padding; else ``why``.
        recompute: whether layers are recomputed in the backward.
        budget: of `fit`, beside the weights; None: it measures nothing, since everything was said.
        note: what `fit` says of the memory.
    """

    ledger: Ledger
    peak: int
    weights: dict[str, int]
    parameters: int
    trainable: dict[str, int]
    adapters: int
    gradients: int
    moments: int
    best: int
    kept: int
    head: int
    tokens: int
    places: int
    supervised: int
    operations: int
    packed: bool
    why: str | None
    recompute: bool
    budget: float | None
    note: str | None


def rehearse(
    shape: Callable[[], nn.Module], roles: Mapping[str, Role], *, budget: Callable[[float], float],
    at_once: int | None = None, compile: bool = False, liger: bool = False,
) -> Rehearsed:  # fmt: skip
    """Run a run on shells.

    Args:
        shape: makes the base on the meta device.
        budget: what `fit` may use beside the weights, in bytes, of the bytes that weights and adapters take.
        at_once: how many adapters train at the same time; None: all.

    Raises:
        ConfigError, TargetError, ModelError: as training would.
    """
    shells, processes = Shells(), Processes()
    base = shape()
    shells.hollow(base, processes.device)
    with shells.making():
        model = LoRA(base, name=None)
        for name, role in roles.items():
            model.add_adapter(name, role.adapter.model_copy(deep=True), seed=role.training.seed)
    loaded = shells.ledger.alive
    # On the CPU kernels are chosen for it; those that would have to be compiled keep the same tensors.
    passes = _Watched(model, choose(processes.device, False, liger) if processes.device.type == "cuda" else None)
    passes.ledger = shells.ledger
    with shells:
        participants, why = _participants(model, passes, roles, processes, shells.ledger)
        allowed = budget(loaded)
        with training_mode(model), shells.ledger.phase("measurement"):
            planned = plan(passes, participants, processes, allowed / 2**30, at_once)
        places = participants[: at_once or len(participants)]
        with training_mode(model), recomputing(model, planned.recompute):
            tokens, supervised, operations, together = _steps(passes, places, shells.ledger, planned.memory)
        for participant in places:
            _evaluation(model, participant, shells.ledger)
    return Rehearsed(
        ledger=shells.ledger, peak=_held(shells.ledger, processes.device), weights=_by_type(base, model),
        parameters=model.base_parameter_count(), trainable=_by_kind(model),
        **_beside(model, participants, places), kept=_kept(shells.ledger),
        head=head_bytes(model) if participants[0].packed else 0, tokens=tokens, places=together, supervised=supervised,
        operations=operations, packed=all(p.packed for p in participants), why=why, recompute=planned.recompute,
        budget=None if planned.memory is None else planned.memory.budget, note=planned.note,
    )  # fmt: skip


class _Watched(Passes):
    """Passes that say when their forward is over: what is there then is kept for the backward."""

    ledger: Ledger

    def _packed(self, shares: Sequence[Share]) -> list[Tensor]:
        with self.ledger.phase("forward"):
            return super()._packed(shares)

    def _padded(self, shares: Sequence[Share]) -> list[Tensor]:
        with self.ledger.phase("forward"):
            return super()._padded(shares)

    def _in_blocks(self, shares: Sequence[Share]) -> list[Tensor]:
        with self.ledger.phase("forward"):
            return super()._in_blocks(shares)


def _participants(
    model: LoRA, passes: Passes, roles: Mapping[str, Role], processes: Processes, ledger: Ledger
) -> tuple[list[Participant], str | None]:
    """Everybody, ready to begin as after `training.begin.enter`; and why rows are padded, if they are."""
    out, why = [], None
    for name, role in roles.items():
        settings = role.training.model_copy()
        settings.learning_rate = settings.learning_rate or 1e-3
        participant = Participant(model, name, role.prepared, settings, processes)
        participant.ready()
        with ledger.phase("probe"):
            padded = passes.why_padded(participant.trainee, participant.prepared)
        participant.packed = padded is None
        why = why or padded
        out.append(participant)
    return out, why


def _steps(
    passes: Passes, participants: Sequence[Participant], ledger: Ledger, memory: Memory | None
) -> tuple[int, int, int, int]:
    """Take steps; returns tokens and supervised ones of the largest pass, its operations, and the batches in it."""
    mixer = Mixer(passes)
    if len(participants) > 1:
        assert memory is not None, "measured for several"
        mixer.most_tokens = memory.most_tokens(len(participants))
    shares = [_next(passes, participant) for participant in participants]
    found = (0, 0, 0, 0)
    for _ in range(STEPS):
        # With accumulation gradients are there while the next batch runs.
        for _ in range(min(2, max(len(p.trainee.batches(0)) for p in participants))):
            before = ledger.operations
            with ledger.phase("pass"):
                for done in mixer.run(shares):
                    tokens = sum(share.tokens for share in done)
                    labels = sum(p.trainee.supervised(p.trainee.batches(0)[:1]) for p in participants
                                 if any(share.trainee is p.trainee for share in done))  # fmt: skip
                    found = max(found, (tokens, labels, ledger.operations - before, len(done)))
                    before = ledger.operations
        for participant in participants:
            untouched_modules(participant.trainee)  # complains where no gradient comes
            with ledger.phase("update"):
                participant.trainee.update()
            participant.trainee.step = 0  # the first batch of the data again, which is the largest
    return found


def _next(passes: Passes, participant: Participant) -> Share:
    share = passes.next_share(participant.trainee, participant.prepared, participant.packed)
    assert share is not None, "nobody has begun"
    return share


def _evaluation(model: LoRA, participant: Participant, ledger: Ledger) -> None:
    """Its largest batch, as `fit` would run it after an epoch; and a copy of the best parameters."""
    held = participant.prepared.held
    if held is None or participant.evaluate is None:
        return
    trainee = participant.trainee
    trainee.best_tensors = {key: tensor.detach().clone() for key, tensor in trainee.parameters.items()}
    rows = sorted(range(len(held)), key=lambda i: -held.lengths[i])[: participant.settings.evaluation_rows]
    largest = Encoded(*([values[i] for i in rows] for values in (held.examples, held.lengths, held.supervised)))
    with ledger.phase("evaluation"):
        infer(
            model, participant.prepared.task, largest, [participant.name],
            pad_token_id=participant.prepared.pad_token_id, batch_size=len(rows),
            padding_side=participant.prepared.padding_side,
        )  # fmt: skip


# -- what came of it ---------------------------------------------------------------------------------------------------


def _held(ledger: Ledger, device: torch.device) -> int:
    return resident(ledger.events) if device.type == "cpu" and is_glibc() else ledger.peak


def _kept(ledger: Ledger) -> int:
    forward = ledger.phases["forward"]
    return forward.after - forward.before


def _by_type(base: nn.Module, model: LoRA) -> dict[str, int]:
    own = {id(p) for name in model.adapters for p in model.adapter_parameters(name).values()}
    tensors = {id(t): t for t in (*base.parameters(), *base.buffers()) if id(t) not in own}
    out: Counter[str] = Counter()
    for tensor in tensors.values():
        out[str(tensor.dtype).removeprefix("torch.")] += tensor.numel() * tensor.element_size()
    return dict(out)


def _by_kind(model: LoRA) -> dict[str, int]:
    """Parameters in training of all adapters by where they are: attention, mlp, other layers, trained in full."""
    modules, out = unwrapped_modules(model.base), Counter[str]()
    for name in model.adapters:
        for path, slot in model.slots(name).items():
            out[block_part(path, modules) or "outside of layers"] += sum(p.numel() for p in slot.parameters())
        for module in model.owned(name).values():
            out["trained in full"] += sum(p.numel() for p in module.parameters())
    return dict(out)


def _beside(model: LoRA, everyone: Sequence[Participant], places: Sequence[Participant]) -> dict[str, Any]:
    def parameters(participants: Sequence[Participant]) -> int:
        return sum(t.numel() * t.element_size() for p in participants for t in p.trainee.parameters.values())

    active = parameters(places)
    best = parameters([p for p in places if p.evaluate is not None and p.prepared.held is not None])
    return {"adapters": parameters(everyone), "gradients": active, "moments": 2 * active, "best": best}

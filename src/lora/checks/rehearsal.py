"""A run of `fit` rehearsed on tensors without contents: what it keeps, what comes and goes, and how much it computes.

It is the code of training itself that runs (`Passes`, `Mixer`, `Trainee`, `memory.needs`): what changes there changes
here. Two steps are taken, both on the largest batch: from the second on there are moments beside it.

Of a deep model two shallow ones are rehearsed, with its own widths; what they differ by, the layers in between take,
and so does every further layer. Where layers are not alike, all of them run.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora.checks.depth import cut, extended, layers_of, period_of
from lora.checks.heap import is_glibc
from lora.checks.ledger import Ledger
from lora.checks.rehearsed_checks import CHECKS, rehearse_checks, with_checks
from lora.checks.shells import Shells
from lora.checks.tally import Rehearsed, adapter_bytes, highest_phases, trainable_by_kind, weights_by_type
from lora.config import AdapterConfig, TrainingConfig
from lora.core.divergence import fewer_blocks
from lora.core.routing import BASE
from lora.io.peft import adapter_tensors
from lora.model.lora import LoRA
from lora.tasks import Encoded
from lora.tasks.inference import infer
from lora.training.checks import untouched_modules
from lora.training.memory import can_recompute, needs, recomputed_layers, recomputing, training_mode
from lora.training.mixer import Mixer
from lora.training.packing import Packing
from lora.training.participant import Participant
from lora.training.passes import Passes, Share
from lora.training.prepare import Prepared
from lora.training.processes import Processes
from lora.training.trainee import Trainee

STEPS = 2
SHALLOW = 12  # layers; with so many or fewer all of them are rehearsed
STATE = 5056  # bytes of the state of torch's generator on the CPU


@dataclass(frozen=True)
class Role:
    """One adapter of the run."""

    prepared: Prepared
    adapter: AdapterConfig
    training: TrainingConfig


def rehearse(
    base: nn.Module, roles: Mapping[str, Role], recompute: bool, at_once: int | None = None, brief: bool = False,
    proved: bool = False, checks: bool = False,
) -> Rehearsed:  # fmt: skip
    """Run a run on shells.

    Args:
        base: on the meta device; it stays as it is.
        recompute: whether layers are recomputed in the backward.
        at_once: how many adapters train at the same time, with a batch of each in one pass; None: all.
        brief: of a deep model still fewer layers, which says less of what the C library holds.
        proved: all rows go without padding, so that nothing is tried for that.
        checks: the checks before training are part of it.

    Raises:
        ConfigError, TargetError, ModelError: as training would.
    """
    layers = layers_of(base)
    period = period_of(layers)
    alike = not any(_tells_layers_apart(role.adapter) for role in roles.values())
    found: Rehearsed
    few = max(4 if brief else SHALLOW, 3 * (period or 0))
    if len(layers) <= few or period is None or not alike:
        found = _rehearse(copy.deepcopy(base), roles, recompute, at_once, proved, checks)
        found.phases = with_checks(found.phases)
        return found
    depth, more = (period, 2 * period) if period > 1 else (1, 3) if brief else (2, 6)
    shallow, deeper = (
        _rehearse(cut(base, count), roles, recompute, at_once, proved, checks) for count in (depth, more)
    )
    found = extended(shallow, deeper, (len(layers) - depth) / (more - depth))
    # What the C library holds beside tensors is no line in the layers: in proportion to a pass, as with the deeper one.
    sample, loaded = deeper.phases["pass"], deeper.phases["loading"].after
    share = (sample.held - sample.peak) / max(1, sample.peak - loaded)
    for name, phase in found.phases.items():
        computes = name in ("pass", "forward") or name.startswith(CHECKS)
        beside = share * max(0, phase.peak - found.phases["loading"].after) if computes else 0
        phase.held = int(phase.peak + beside)
    if (evaluation := found.phases.get("evaluation")) is not None:
        # What it held for passes it still holds while an evaluation takes large pieces, which are mapped by themselves.
        evaluation.held += max(0, found.phases["pass"].held - evaluation.before)
    found.phases = with_checks(found.phases)
    return found


def _tells_layers_apart(adapter: AdapterConfig) -> bool:
    """Whether an adapter may sit otherwise on one layer than on another: by number, as far as can be seen."""
    named = (adapter.targets, adapter.exclude, adapter.modules_to_save, adapter.rank_pattern, adapter.alpha_pattern)
    return adapter.layers is not None or any(re.search(r"\d", str([*value] if isinstance(value, dict) else value))
                                             for value in named)  # fmt: skip


# -- the run -----------------------------------------------------------------------------------------------------------


class _Watched(Passes):
    """Passes that say when their forward is over: what is there then is kept for the backward.

    ``proved``: it is known already that rows go without padding.
    """

    ledger: Ledger
    proved: bool

    def why_padded(self, trainee: Trainee, prepared: Prepared) -> str | None:
        if not self.proved:
            return super().why_padded(trainee, prepared)
        self._packing = Packing(self.model)
        return None

    def _packed(self, shares: Sequence[Share]) -> list[Tensor]:
        with self.ledger.phase("forward"):
            return super()._packed(shares)

    def _padded(self, shares: Sequence[Share]) -> list[Tensor]:
        with self.ledger.phase("forward"):
            return super()._padded(shares)

    def _in_blocks(self, shares: Sequence[Share]) -> list[Tensor]:
        with self.ledger.phase("forward"):
            return super()._in_blocks(shares)


def _rehearse(
    base: nn.Module, roles: Mapping[str, Role], recompute: bool, at_once: int | None, proved: bool, checks: bool
) -> Rehearsed:
    shells, processes = Shells(), Processes()
    ledger = shells.ledger
    with ledger.phase("loading"):
        shells.hollow(base, processes.device)
        with shells.making():
            model = LoRA(base, name=None)
            for name, role in roles.items():
                model.add_adapter(name, role.adapter.model_copy(deep=True), seed=role.training.seed)
    passes = _Watched(model)
    passes.ledger, passes.proved = ledger, proved
    with shells, fewer_blocks():
        participants, why = _participants(model, passes, roles, processes)
        for participant in participants if checks else []:
            rehearse_checks(participant, shells, recompute and can_recompute(model))
        places = participants[: at_once or len(participants)]
        with training_mode(model):
            with ledger.phase("measurement"):
                measured = needs(passes, participants)
            again = recompute and can_recompute(model)
            with recomputing(model, again), _generator_states(model, again) as states:
                tokens, supervised, operations = _steps(passes, places, states)
        files = max(_end(model, participant, ledger) for participant in participants)
    on_cpu = processes.device.type == "cpu"
    phases = highest_phases(ledger, on_cpu and is_glibc())
    active = adapter_bytes(places)
    return Rehearsed(
        phases=phases, weights=weights_by_type(base, model), parameters=model.base_parameter_count(),
        trainable=trainable_by_kind(model), adapters=adapter_bytes(participants), state=3 * active,
        averages=adapter_bytes([p for p in places if p.trainee.average.asked]),
        best=adapter_bytes([p for p in places if p.evaluate is not None]),
        kept=phases["forward"].after - phases["forward"].before, files=files, tokens=tokens, supervised=supervised,
        operations=operations, needs=measured, packed=all(p.packed for p in participants),
        why=why, recomputes=can_recompute(model),
    )  # fmt: skip


def _participants(
    model: LoRA, passes: _Watched, roles: Mapping[str, Role], processes: Processes
) -> tuple[list[Participant], str | None]:
    """Everybody, ready to begin as after `training.begin.enter`; and why rows are padded, if they are."""
    out, why = [], None
    for name, role in roles.items():
        settings = role.training.model_copy()
        settings.learning_rate = settings.learning_rate or 1e-3  # whatever it is, it takes no memory
        participant = Participant(model, name, role.prepared, settings, processes)
        with passes.ledger.phase("probe"):
            participant.ready()
            padded = passes.why_padded(participant.trainee, participant.prepared)
        participant.packed, why = padded is None, why or padded
        out.append(participant)
    return out, why


@contextmanager
def _generator_states(model: LoRA, recompute: bool) -> Iterator[list[Tensor]]:
    """What torch's checkpointing keeps for each layer without an operator that could be seen; to be emptied after a
    backward."""
    states: list[Tensor] = []

    def keep(*_: Any) -> None:
        states.append(torch.empty(STATE, dtype=torch.uint8))

    with ExitStack() as hooks:
        for module in recomputed_layers(model) if recompute else []:
            hooks.callback(module.register_forward_pre_hook(keep).remove)
        yield states


def _steps(passes: _Watched, participants: Sequence[Participant], states: list[Tensor]) -> tuple[int, int, int]:
    """Take steps; returns tokens and supervised positions of the largest pass, and its operations."""
    mixer, ledger, found = Mixer(passes), passes.ledger, (0, 0, 0)
    shares = [passes.next_share(p.trainee, p.prepared, p.packed) for p in participants]
    batches = [share for share in shares if share is not None]
    for _ in range(STEPS):
        # With accumulation gradients are there while the next batch runs.
        for _ in range(min(2, max(len(p.trainee.batches(0)) for p in participants))):
            before = ledger.operations
            with ledger.phase("pass"):
                for done in mixer.run(batches):
                    labels = sum(s.trainee.supervised(s.trainee.batches(0)[:1]) for s in done)
                    found = max(found, (sum(s.tokens for s in done), labels, ledger.operations - before))
                    before = ledger.operations
                    states.clear()
        for participant in participants:
            untouched_modules(participant.trainee)  # complains where no gradient comes
            with ledger.phase("update"):
                participant.trainee.update()
                participant.trainee.average.take(participant.trainee.total_steps)  # as towards the end
            participant.trainee.step = 0  # the first batch of the data again, which is the largest
    return found


def _end(model: LoRA, participant: Participant, ledger: Ledger) -> tuple[int, int]:
    """Its largest evaluation, a copy of the best parameters, a checkpoint; returns bytes of its two folders."""
    trainee, prepared, held = participant.trainee, participant.prepared, participant.prepared.held
    if held is not None and participant.evaluate is not None:
        trainee.best_tensors = {key: tensor.detach().clone() for key, tensor in trainee.parameters.items()}
        rows = sorted(range(len(held)), key=lambda i: -held.lengths[i])[: participant.settings.evaluation_rows]
        largest = Encoded(
            [held.examples[i] for i in rows], [held.lengths[i] for i in rows], [held.supervised[i] for i in rows]
        )
        with ledger.phase("evaluation"):
            # With the base, as the measurement after training: both share a pass where their rows are few.
            infer(
                model, prepared.task, largest, [participant.name, BASE], pad_token_id=prepared.pad_token_id,
                batch_size=len(rows), padding_side=prepared.padding_side,
            )  # fmt: skip
    with ledger.phase("saving"):
        adapter = sum(t.numel() * t.element_size() for t in adapter_tensors(model, participant.name).values())
    return adapter, adapter + sum(t.numel() * t.element_size() for t in trainee.tensors().values())

"""A run of `fit` rehearsed on tensors without contents: what it keeps, what comes and goes, and how much it computes.

It is the code of training itself that runs (`Passes`, `Mixer`, `Trainee`, `memory.needs`): what changes there changes
here. Two steps are taken, both on the largest batch: from the second on there are moments beside it.

Of a deep model two shallow ones are rehearsed, with its own widths; what they differ by, the layers in between take,
and so does every further layer. Where layers are not alike, all of them run.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lora.checks.heap import is_glibc, resident
from lora.checks.shells import Ledger, Phase, Shells
from lora.config import AdapterConfig, TrainingConfig
from lora.core.configs import text_config
from lora.core.loss import fewer_blocks
from lora.io.peft import adapter_tensors
from lora.model.lora import LoRA
from lora.model.targets import block_part
from lora.model.tree import unwrapped_modules
from lora.tasks import Encoded
from lora.tasks.inference import infer
from lora.training.checks import untouched_modules
from lora.training.memory import Needs, can_recompute, layers_of, needs, recomputing, training_mode
from lora.training.mixer import Mixer
from lora.training.participant import Participant
from lora.training.passes import Passes, Share
from lora.training.prepare import Prepared
from lora.training.processes import Processes

STEPS = 2
SHALLOW = 12  # layers; with so many or fewer all of them are rehearsed
STATE = 5056  # bytes of the state of torch's generator on the CPU
LONGEST_PERIOD = 8  # of kinds of layers that take turns


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
        phases: ``loading``, ``probe``, ``measurement``, ``forward``, ``pass``, ``update``, ``evaluation`` and
            ``saving``; of each the one that took most.
        weights: of the base, by type.
        parameters: of the base, a tied tensor counted once.
        trainable: parameters of all adapters, by kind of module.
        adapters: of all; ``state``: gradients and moments of those in training at once, ``best``: their copies.
        kept: what a pass keeps for its backward.
        files: of an adapter's folder and of a checkpoint, the largest of all.
        tokens: of the largest pass, padding included; ``supervised``: those of them with a label.
        operations: of that pass, forward and backward.
        needs: what `fit` itself would measure.
        packed: whether rows go without padding; else ``why`` says why not.
    """

    phases: dict[str, Phase]
    weights: dict[str, int]
    parameters: float
    trainable: dict[str, int]
    adapters: float
    state: float
    best: float
    kept: float
    files: tuple[float, float]
    tokens: int
    supervised: int
    operations: float
    needs: Needs
    packed: bool
    why: str | None
    recomputes: bool

    @property
    def tensors(self) -> float:
        """The most that tensors took."""
        return max(phase.peak for phase in self.phases.values())

    @property
    def held(self) -> float:
        """The most that the process holds for them: on a CPU with glibc more than they take."""
        return max(phase.held for phase in self.phases.values())


def rehearse(
    shape: Callable[[], nn.Module], roles: Mapping[str, Role], recompute: bool, at_once: int | None = None
) -> Rehearsed:
    """Run a run on shells.

    Args:
        shape: makes the base on the meta device.
        recompute: whether layers are recomputed in the backward.
        at_once: how many adapters train at the same time, with a batch of each in one pass; None: all.

    Raises:
        ConfigError, TargetError, ModelError: as training would.
    """
    layers = _layers(shape())
    period = _period(layers)
    alike = all(role.adapter.layers is None and not role.adapter.rank_pattern for role in roles.values())
    if len(layers) <= max(SHALLOW, 3 * (period or 0)) or period is None or not alike:
        return _rehearse(shape(), roles, recompute, at_once)
    depth, more = (2, 6) if period == 1 else (period, 2 * period)
    shallow, deeper = (_rehearse(_cut(shape(), count), roles, recompute, at_once) for count in (depth, more))
    found: Rehearsed = _along(shallow, deeper, (len(layers) - depth) / (more - depth))
    # What the C library holds beside tensors is no line in the layers: in proportion to a pass, as with the deeper one.
    sample, loaded = deeper.phases["pass"], deeper.phases["loading"].after
    share = (sample.held - sample.peak) / max(1, sample.peak - loaded)
    for name, phase in found.phases.items():
        beside = share * max(0, phase.peak - found.phases["loading"].after) if name in ("pass", "forward") else 0
        phase.held = int(phase.peak + beside)
    return found


# -- depth -------------------------------------------------------------------------------------------------------------


def _lists(base: nn.Module) -> list[nn.ModuleList]:
    """The lists of repeated layers: the longest, and those as long as it (an encoder's and a decoder's)."""
    lists = [module for module in base.modules() if isinstance(module, nn.ModuleList)]
    most = max((len(module) for module in lists), default=0)
    return [module for module in lists if len(module) == most]


def _layers(base: nn.Module) -> list[Any]:
    """What each layer is: shapes of its parameters, and of what kind the configuration says it is."""
    kinds = getattr(text_config(getattr(base, "config", None)), "layer_types", None) or []
    out = []
    for number, group in enumerate(zip(*_lists(base), strict=True)):
        shapes = [(name, tuple(p.shape)) for layer in group for name, p in layer.named_parameters()]
        out.append((kinds[number] if number < len(kinds) else None, shapes))
    return out


def _period(layers: Sequence[Any]) -> int | None:
    """After how many layers their kinds repeat; None: they do not."""
    for period in range(1, LONGEST_PERIOD + 1):
        if all(one == other for one, other in zip(layers, layers[period:], strict=False)):
            return period
    return None


def _cut(base: nn.Module, depth: int) -> nn.Module:
    """A copy of ``base``, its configuration included, with the first layers alone."""
    base = copy.deepcopy(base)
    text = text_config(getattr(base, "config", None))
    for layers in _lists(base):
        for key in ("num_hidden_layers", "num_layers", "num_decoder_layers"):
            if getattr(text, key, None) == len(layers):
                setattr(text, key, depth)
        del layers[depth:]
    return base


def _along(low: Any, high: Any, times: float) -> Any:
    """``low`` and ``times`` the difference to ``high``, in all numbers."""
    if isinstance(low, dict):
        return {key: _along(low[key], high[key], times) for key in low}
    if isinstance(low, tuple):
        return tuple(_along(one, other, times) for one, other in zip(low, high, strict=True))
    if is_dataclass(low) and not isinstance(low, type):
        return type(low)(**{f.name: _along(getattr(low, f.name), getattr(high, f.name), times) for f in fields(low)})
    if isinstance(low, (int, float)) and not isinstance(low, bool):
        return type(low)(low + times * (high - low))
    return low


# -- the run -----------------------------------------------------------------------------------------------------------


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


def _rehearse(base: nn.Module, roles: Mapping[str, Role], recompute: bool, at_once: int | None) -> Rehearsed:
    shells, processes = Shells(), Processes()
    ledger = shells.ledger
    with ledger.phase("loading"):
        shells.hollow(base, processes.device)
        with shells.making():
            model = LoRA(base, name=None)
            for name, role in roles.items():
                model.add_adapter(name, role.adapter.model_copy(deep=True), seed=role.training.seed)
    passes = _Watched(model)
    passes.ledger = ledger
    with shells, fewer_blocks():
        participants, why = _participants(model, passes, roles, processes)
        places = participants[: at_once or len(participants)]
        with training_mode(model):
            with ledger.phase("measurement"):
                measured = needs(passes, participants)
            again = recompute and can_recompute(model)
            with recomputing(model, again), _generator_states(model, again) as states:
                tokens, supervised, operations = _steps(passes, places, states)
        files = max(_end(model, participant, ledger) for participant in participants)
    on_cpu = processes.device.type == "cpu"
    phases = _phases(ledger, on_cpu and is_glibc())
    active = _bytes(places)
    return Rehearsed(
        phases=phases, weights=_by_type(base, model), parameters=model.base_parameter_count(),
        trainable=_by_kind(model), adapters=_bytes(participants), state=3 * active,
        best=_bytes([p for p in places if p.evaluate is not None]),
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
        for module in layers_of(model) if recompute else []:
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
            infer(
                model, prepared.task, largest, [participant.name], pad_token_id=prepared.pad_token_id,
                batch_size=len(rows), padding_side=prepared.padding_side,
            )  # fmt: skip
    with ledger.phase("saving"):
        adapter = sum(t.numel() * t.element_size() for t in adapter_tensors(model, participant.name).values())
    return adapter, adapter + sum(t.numel() * t.element_size() for t in trainee.tensors().values())


# -- what came of it ---------------------------------------------------------------------------------------------------


def _phases(ledger: Ledger, glibc: bool) -> dict[str, Phase]:
    """Of each name the most."""
    out: dict[str, Phase] = {}
    spans = [(phase.start, phase.stop) for _, phase in ledger.phases]
    held = resident(ledger.events, spans) if glibc else [phase.peak for _, phase in ledger.phases]
    for (name, phase), most in zip(ledger.phases, held, strict=True):
        phase.held = max(most, phase.peak)
        before = out.get(name)
        if before is not None:
            phase.held = max(phase.held, before.held)
        out[name] = phase if before is None or phase.peak >= before.peak else replace(before, held=phase.held)
    return out


def _bytes(participants: Sequence[Participant]) -> int:
    return sum(t.numel() * t.element_size() for p in participants for t in p.trainee.parameters.values())


def _by_type(base: nn.Module, model: LoRA) -> dict[str, int]:
    own = {id(p) for name in model.adapters for p in model.adapter_parameters(name).values()}
    tensors = {id(t): t for t in (*base.parameters(), *base.buffers()) if id(t) not in own}
    out: Counter[str] = Counter()
    for tensor in tensors.values():
        out[re.sub(r"^torch\.", "", str(tensor.dtype))] += tensor.numel() * tensor.element_size()
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

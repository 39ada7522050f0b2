"""What a rehearsed run came to: memory by phase and by type, parameters by where they are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from lora.checks.heap import resident
from lora.checks.ledger import Ledger, Phase
from lora.model.lora import LoRA
from lora.model.targets import block_part
from lora.model.tree import unwrapped_modules
from lora.training.memory import Needs
from lora.training.participant import Participant


@dataclass
class Rehearsed:
    """What a run came to; bytes, unless said otherwise.

    Attributes:
        phases: ``loading``, ``probe``, ``checks`` where they were asked for, ``measurement``, ``forward``, ``pass``,
            ``update``, ``evaluation`` and ``saving``; of each the one that took most.
        weights: of the base, by type.
        parameters: of the base, a tied tensor counted once.
        trainable: parameters of all adapters, by kind of module.
        adapters: of all; ``state``: gradients and moments of those in training at once, ``averages``: their means
            over steps, ``best``: their copies.
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
    averages: float
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
    def highest(self) -> str:
        """The phase in which the process holds most."""
        return max(self.phases, key=lambda name: self.phases[name].held)

    @property
    def held(self) -> float:
        """The most that the process holds for tensors: on a CPU with glibc more than they take."""
        return self.phases[self.highest].held


def highest_phases(ledger: Ledger, glibc: bool) -> dict[str, Phase]:
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


def adapter_bytes(participants: Sequence[Participant]) -> int:
    return sum(t.numel() * t.element_size() for p in participants for t in p.trainee.parameters.values())


def weights_by_type(base: nn.Module, model: LoRA) -> dict[str, int]:
    own = {id(p) for name in model.adapters for p in model.adapter_parameters(name).values()}
    tensors = {id(t): t for t in (*base.parameters(), *base.buffers()) if id(t) not in own}
    out: Counter[str] = Counter()
    for tensor in tensors.values():
        out[re.sub(r"^torch\.", "", str(tensor.dtype))] += tensor.numel() * tensor.element_size()
    return dict(out)


def trainable_by_kind(model: LoRA) -> dict[str, int]:
    """Parameters in training of all adapters by where they are: attention, mlp, other layers, trained in full."""
    modules, out = unwrapped_modules(model.base), Counter[str]()
    for name in model.adapters:
        for path, slot in model.slots(name).items():
            out[block_part(path, modules) or "outside of layers"] += sum(p.numel() for p in slot.parameters())
        out["single rows"] += sum(its.rows.numel() for its in model.token_rows(name).values())
        for module in model.owned(name).values():
            out["trained in full"] += sum(p.numel() for p in module.parameters())
    return {kind: count for kind, count in out.items() if count}

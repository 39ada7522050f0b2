"""Who is compared: the base with its head, LoRA of several ranks and targets, full fine-tuning; and their rates."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora.config import RANKS, AdapterConfig, ComparisonConfig, RunConfig
from lora.errors import ConfigError
from lora.evaluation.evaluate import has_untrained_head
from lora.model.heads import task_heads
from lora.model.lora import LoRA
from lora.model.targets import find_targets
from lora.training.schedule import default_learning_rate

BASE, PROBE, LOW_RANK, FULL = "base", "probe", "lora", "full"
# A head alone is a convex problem with few parameters, and stands rates that would ruin what lies below it.
PROBE_FACTOR = 10


@dataclass(frozen=True, eq=False)
class Candidate:
    """One of those compared.

    Attributes:
        name: in tables and folders.
        kind: ``base`` (nothing trained), ``probe`` (the task head alone), ``lora`` or ``full``.
        adapter: what is trained; None: nothing.
        rates: learning rates tried first.
    """

    name: str
    kind: str
    adapter: AdapterConfig | None = None
    rates: tuple[float, ...] = ()

    @property
    def rank(self) -> int | None:
        return self.adapter.rank if self.kind == LOW_RANK and self.adapter else None


def candidates(model: LoRA, config: RunConfig, asked: ComparisonConfig) -> tuple[list[Candidate], list[str]]:
    """All that are compared on ``model``, cheapest kinds first, and sentences about those left out.

    Raises:
        ConfigError, TargetError: settings of an adapter that do not fit the model; nothing is left to compare.
    """
    centre = config.training.learning_rate or default_learning_rate(model.base.config)
    out, notes = list[Candidate](), list[str]()

    def rates(of_kind: float) -> tuple[float, ...]:
        return tuple(float(f"{of_kind * factor:.3g}") for factor in asked.rate_factors)

    heads = task_heads(model.base)
    if not has_untrained_head(model):
        out.append(Candidate(BASE, BASE))
    if heads and asked.linear_probe:
        own = AdapterConfig(targets="none")
        out.append(Candidate(PROBE, PROBE, own, rates(PROBE_FACTOR * centre)))
    for targets in asked.target_sets:
        most = largest_rank(model, config, targets)
        for rank in RANKS if asked.ranks is None else asked.ranks:
            name = f"r{rank}-{_word(targets)}"
            if rank > most and asked.ranks is None:
                notes.append(f"{name} is left out: the smallest of its layers has rank {most}.")
                continue
            values = config.adapter.model_dump(exclude_unset=True)
            adapter = AdapterConfig.make({**values, "rank": rank, "targets": targets}, "adapter")
            find_targets(model.base, adapter.model_copy(deep=True), heads)  # complains now
            out.append(Candidate(name, LOW_RANK, adapter, rates(centre)))
    if asked.full:
        every = AdapterConfig(targets="none", modules_to_save=["all"])
        usual = default_learning_rate(model.base.config) / default_learning_rate(model.base.config, full=True)
        out.append(Candidate(FULL, FULL, every, rates(centre / usual)))
    names = [its.name for its in out]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"target_sets: two of them come to the same name, {twice}; name one of them alone")
    if len(out) < 2:
        raise ConfigError(f"there is nothing to compare: {', '.join(names) or 'no candidate'} alone is left")
    return out, notes


def largest_rank(model: LoRA, config: RunConfig, targets: str | list[str]) -> int:
    """The smallest side of the layers that ``targets`` name: beyond it a rank adds nothing."""
    values = config.adapter.model_dump(exclude_unset=True)
    probe = AdapterConfig.make({**values, "rank": 1, "targets": targets}, "adapter")
    report = find_targets(model.base, probe, task_heads(model.base))
    return min(min(target.geometry.size()) for target in report.adapted)


def _word(targets: str | list[str]) -> str:
    """``targets`` as a part of a folder's name."""
    said = targets if isinstance(targets, str) else "+".join(targets)
    return re.sub(r"[^\w.+-]+", "_", said)[:40].strip("_.") or "targets"


@dataclass(frozen=True)
class Trial:
    """One training run: a candidate, its rate, its seed."""

    candidate: Candidate
    rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.candidate.name}-lr{self.rate:.3g}-seed{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What a trial came to.

    Attributes:
        value: of the metric on the validation rows, at the step that was best; None: it was stopped.
        loss: on them, at that step.
        tokens: trained on.
        error: why it was stopped.
    """

    value: float | None
    loss: float | None
    best_step: int | None
    steps: int
    epochs: float
    tokens: int
    error: str | None = None


def best_rate(found: Mapping[float, Outcome], greater: bool) -> float | None:
    """The rate with the best value on the validation rows, of equal ones with the lowest loss; None: all failed."""
    alive = {rate: its for rate, its in found.items() if its.value is not None and its.value == its.value}
    if not alive:
        return None

    def key(rate: float) -> tuple[Any, ...]:
        value, loss = alive[rate].value, alive[rate].loss
        assert value is not None, "alive"
        return (value if greater else -value, -(loss if loss is not None and loss == loss else float("inf")), -rate)

    return max(alive, key=key)


def beyond(tried: Sequence[float], best: float) -> float | None:
    """The rate to try next where ``best`` is the lowest or highest of those tried; None: it lies among them.

    As far off as its neighbour on the other side. With a single rate there is no grid to extend.
    """
    ordered = sorted(tried)
    if len(ordered) < 2 or best not in (ordered[0], ordered[-1]):
        return None
    neighbour = ordered[1] if best == ordered[0] else ordered[-2]
    return float(f"{best * best / neighbour:.3g}")

"""What a plan says."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from lora.checks.pace import Pace
from lora.checks.tally import Rehearsed

# What a phase other than a pass is to a reader.
PEAKS = {
    "loading": "making the adapters", "probe": "trying the longest rows in several ways before training",
    "checks": "a check before training",
    "measurement": "measuring before training", "evaluation": "an evaluation", "saving": "saving",
    "merging": "a merged copy, which is held against the adapter after training",
}  # fmt: skip

# What beside training itself is part of the command's peak, where it is part of the run.
COUNTED = {
    "checks": "the checks before it", "evaluation": "its evaluations", "saving": "saving",
    "merging": "the merged copy after it",
}  # fmt: skip


@dataclass
class RunPlan:
    """What a run needs; sizes in bytes, times in seconds.

    Attributes:
        fits: whether ``peak`` is within ``available``.
        memory: part -> bytes; they add up to ``peak``.
        peak: above what the process has before the base is loaded.
        process: what that is.
        available: memory there is for ``peak``.
        phases: the most that tensors take in each; ``checks``, those before training, and ``merging``, the copy that is
            compared after it, only where the run has them.
        parameters, trainable: numbers; ``trainable`` by kind of module.
        recompute: whether layers are recomputed in the backward, as settings or `fit` itself will have it.
        says: what `fit` will say of the memory.
        batch, length: of the largest batch: rows, tokens of the longest.
        operations: of a token, forward and backward.
        pace: what was measured of that here; None: the device is not here.
        step_seconds, run_seconds: least and most that a step of the largest adapter and the run's steps may take.
        disk: adapter, checkpoint, and the whole run with the checkpoints that it keeps.
        largest_batch, largest_length: at this length and at this batch; 0: none fits.
        remedies: (what to change beside those before, peak that results), until it fits; none where nothing is left
            beside the process.
        notes: where the figures come from.
        warnings: why the figures may be far off, and what to do about it.
    """

    model: str
    fits: bool
    peak: float
    process: float
    available: float
    memory: dict[str, float]
    phases: dict[str, float]
    parameters: int
    trainable: dict[str, int]
    packed: bool
    recompute: bool
    says: str | None
    adapters: int
    at_once: int
    batch: int
    length: int
    tokens: int
    operations: float
    pace: Pace | None
    step_seconds: tuple[float, float] | None
    run_seconds: tuple[float, float] | None
    steps: int | None
    disk: dict[str, float]
    largest_batch: int | None = None
    largest_length: int | None = None
    remedies: list[tuple[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def parts_of(found: Rehearsed) -> dict[str, float]:
    """What the peak is made of, by when it comes."""
    name, phase = found.highest, found.phases[found.highest]
    parts: dict[str, float] = {f"base weights, {kind}": size for kind, size in found.weights.items()}
    parts["adapters, float32"] = found.adapters
    rest = phase.peak - sum(parts.values())
    if name in ("pass", "forward", "update"):
        parts |= {"gradients": found.state / 3, "optimiser state": found.state * 2 / 3}
        parts["mean of the parameters over steps"] = found.averages
        parts["activations kept for the backward"] = found.kept
        if found.packed:
            # Of few supervised positions there is less than a whole chunk.
            parts["chunk of the head's logits"] = min(found.needs.head, max(0, phase.peak - sum(parts.values())))
        # Not all of them are there when the peak comes: gradients are still to be made, or the chunk is gone.
        parts["what comes and goes, less what is not there at the peak"] = phase.peak - sum(parts.values())
    else:
        parts[f"{PEAKS[name]}, where the peak is"] = rest
    parts["held on to by the C library"] = phase.held - phase.peak
    return {part: size for part, size in parts.items() if size}

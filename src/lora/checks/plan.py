"""``lora plan``: what a training run will need, before anything is loaded."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from lora.checks.rehearsal import Rehearsed, Role, rehearse
from lora.checks.stand_in import longer, rows_for
from lora.config import RunConfig
from lora.core.configs import text_config
from lora.errors import ConfigError
from lora.model.base import load_base_config, shape_of_base
from lora.overrides import each_adapter, load_config
from lora.tasks import Task
from lora.training.device import choose_dtype
from lora.training.memory import MEMORY_SHARE, decide, free_bytes

SLOWER = 2.5  # times the products alone: what a step takes at the most, as seen in benchmarks/README.md
MOST_ROWS, LONGEST = 1024, 1 << 17  # rows of a batch and tokens of a row that are looked for

# What a phase other than a pass is to a reader.
PEAKS = {
    "loading": "making the adapters", "probe": "trying the longest rows in several ways before training",
    "measurement": "measuring before training", "evaluation": "an evaluation", "saving": "saving",
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
        phases: the most that tensors take in each.
        parameters, trainable: numbers; ``trainable`` by kind of module.
        recompute: whether layers are recomputed in the backward, as settings or `fit` itself will have it.
        says: what `fit` will say of the memory.
        batch, length: of the largest batch: rows, tokens of the longest.
        operations: of a token, forward and backward.
        speed: operations a second of a matrix product of the model's own shape, measured here; None: not for here.
        step_seconds: least and most that a step may take.
        disk: adapter, checkpoint, and the whole run with the checkpoints that it keeps.
        largest_batch, largest_length: at this length and at this batch; 0: none fits.
        remedies: (what to change beside those before, peak that results), until it fits.
        notes: where the figures come from.
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
    speed: float | None
    step_seconds: tuple[float, float] | None
    steps: int | None
    disk: dict[str, float]
    largest_batch: int | None = None
    largest_length: int | None = None
    remedies: list[tuple[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def plan(
    config: RunConfig | str | Path, *, length: int | None = None, device_gib: float | None = None, search: bool = True
) -> RunPlan:
    """What the run of ``config`` will need. Nothing is loaded: of the base its configuration is read.

    >>> lora.plan("run.yaml").peak
    >>> lora.plan(RunConfig(model="BASE"), length=1024, device_gib=24).largest_batch

    Args:
        config: as for ``lora train``, or its YAML file; data may be left out.
        length: tokens of a row, in place of those of the data.
        device_gib: memory of a device that one does not have here; None: what is free here.
        search: look for the largest batch and length, and for what makes it fit.

    Raises:
        ConfigError, DataError, ModelError: as training would.
    """
    config = load_config(config) if isinstance(config, (str, Path)) else config.model_copy(deep=True)
    return _Planner(config, length, device_gib).plan(search)


class _Planner:
    """The runs that are rehearsed for one plan."""

    def __init__(self, config: RunConfig, length: int | None, device_gib: float | None) -> None:
        if config.start:
            raise ConfigError(
                "start: a plan is of a fresh adapter; leave it out, and give the model and its adapter's rank"
            )
        if not config.model:
            raise ConfigError("model: is needed")
        self.config, self.device_gib = config, device_gib
        self._peaks: dict[Any, float] = {}
        self.configs = each_adapter(config) if config.adapters else {"default": config}
        self.rows = {name: rows_for(each, length) for name, each in self.configs.items()}
        self.at_once = min(config.at_once or len(self.configs), len(self.configs))
        self.process = _resident()
        first = next(iter(self.rows.values()))
        self.task: Task = first.prepared.task
        self.base = load_base_config(config.model, config.trust_remote_code)
        for key, value in self.task.model_options().items():
            setattr(self.base, key, value)
        self.dtype = choose_dtype(config.training.dtype)
        self.available = (2**30 * device_gib - self.process) if device_gib else free_bytes(_device())

    def _roles(self, change: Mapping[str, Any]) -> dict[str, Role]:
        """The adapters with ``change``: batch, length, rank, targets."""
        out = {}
        for name, each in self.configs.items():
            training, adapter, rows = each.training.model_copy(), each.adapter.model_copy(deep=True), self.rows[name]
            prepared = rows.prepared
            training.batch_size = change.get("batch", training.batch_size)
            training.eval_batch_size = change.get("evaluation", training.eval_batch_size)
            if "batch" in change or "length" in change:
                prepared = longer(prepared, change.get("length", max(prepared.train.lengths)), training)
            if "rank" in change:
                adapter.rank = min(adapter.rank, change["rank"])
            if "targets" in change:
                adapter.targets = change["targets"]
            out[name] = Role(prepared, adapter, training)
        return out

    def run(self, recompute: bool, change: Mapping[str, Any] | None = None, brief: bool = False) -> Rehearsed:
        """Rehearse with ``change``."""
        change = change or {}
        dtype = change.get("dtype", self.dtype)

        def shape() -> Any:
            name, remote = self.config.model or "", self.config.trust_remote_code
            return shape_of_base(name, self.base, self.task.auto_class, dtype, remote)

        return rehearse(shape, self._roles(change), recompute, self.at_once, brief)

    def _chosen(self) -> bool | None:
        """What the settings say of recomputing layers; see `lora.training.memory.plan`."""
        asked = [each.training.gradient_checkpointing for each in self.configs.values()]
        return True if True in asked else False if False in asked else None

    def plan(self, search: bool) -> RunPlan:
        chosen = self._chosen()
        found = self.run(bool(chosen))
        loaded = sum(found.weights.values()) + found.adapters
        budget = MEMORY_SHARE * max(0.0, self.available - loaded)
        if self.config.memory_gib is not None:
            budget = self.config.memory_gib * 2**30
        several = len(self.configs) > 1
        decided = decide(found.needs, budget, self.at_once, chosen, "the base", found.recomputes, several)
        if decided.recompute and not chosen:
            found = self.run(True)
        out = self._told(found, decided.recompute, decided.note)
        if search:
            again = decided.recompute or (chosen is None and found.recomputes)
            rows, length = (self._largest(key, again, out, {}) for key in ("batch", "length"))
            # Found by shallower runs: they do not contradict the run itself.
            if again == out.recompute:
                rows, length = (
                    max(found, own) if out.fits else min(found, own - 1)
                    for found, own in ((rows, out.batch), (length, out.length))
                )
            out.largest_batch, out.largest_length = rows, length
            if not out.fits:
                out.remedies = self._remedies(out, found)
        return out

    def _largest(self, key: str, recompute: bool, plan: RunPlan, change: Mapping[str, Any]) -> int:
        """The largest batch at the length of ``plan``, or the largest length at its batch, that fits; 0: none.

        What a run takes is a line in its rows and a parabola in their length: they are drawn through small runs.
        """
        fixed = {"batch": plan.batch, "length": plan.length, **change}
        start = fixed[key]
        if key == "batch":
            most, tried = MOST_ROWS, [start // 2, start] if start > 1 else [1, 2]
        else:
            most = getattr(text_config(self.base), "max_position_embeddings", None) or LONGEST
            tried = [start // 4, start // 2, start] if start >= 256 else [start, 2 * start, 4 * start]
        found = [(n, self._peak(recompute, {**fixed, key: n})) for n in sorted({min(n, most) for n in tried})]
        return _root(found, self.available, most)

    def _peak(self, recompute: bool, change: Mapping[str, Any]) -> float:
        """Of a run with ``change``, by few layers."""
        key = (recompute, *sorted((name, str(value)) for name, value in change.items()))
        if key not in self._peaks:
            self._peaks[key] = self.run(recompute, change, brief=True).held
        return self._peaks[key]

    def _told(self, found: Rehearsed, recompute: bool, note: str | None) -> RunPlan:
        name, rows = max(self.rows.items(), key=lambda item: max(item[1].prepared.train.lengths))
        settings = self.configs[name].training
        files, checkpoints = found.files, settings.keep_checkpoints
        # While a checkpoint is written the one that it takes the place of is still there.
        run = files[0] * 2 + files[1] * (checkpoints + 1)
        speed = None if self.device_gib else _speed(self.base, self.dtype, found.tokens)
        per_token = found.operations / max(1, found.tokens)
        seconds = None
        if speed is not None:
            least = (
                per_token * sum(r.tokens for r in self.rows.values()) / len(self.rows) * settings.accumulation / speed
            )
            seconds = (least, SLOWER * least)
        return RunPlan(
            model=self.config.model or "", fits=found.held <= self.available, peak=found.held, process=self.process,
            available=self.available, memory=_parts(found), parameters=int(found.parameters),
            phases={phase: value.peak for phase, value in found.phases.items()},
            trainable={kind: int(count) for kind, count in found.trainable.items()}, packed=found.packed,
            recompute=recompute, says=note, adapters=len(self.configs), at_once=self.at_once,
            batch=settings.batch_size, length=max(rows.prepared.train.lengths), tokens=found.tokens,
            operations=per_token, speed=speed, step_seconds=seconds,
            steps=max((r.steps for r in self.rows.values() if r.steps), default=None),
            disk={"adapter": files[0], "checkpoint": files[1], "run": run * len(self.configs)},
            notes=self._notes(found),
        )  # fmt: skip

    def _notes(self, found: Rehearsed) -> list[str]:
        notes = [f"{name}: {rows.note}." if len(self.rows) > 1 else f"Rows: {rows.note}."
                 for name, rows in self.rows.items()]  # fmt: skip
        if found.why and self.task.next_token:
            notes.append(f"Rows are padded: {found.why}.")
        if len(self.configs) > self.at_once or (len(self.configs) > 1 and self.config.at_once is None):
            notes.append(
                f"{self.at_once} adapters are taken to train at once, a batch of each in one pass; at_once limits it."
            )
        if self.device_gib:
            notes.append("Reckoned as on this machine's device: another may keep other tensors for its attention.")
        return notes

    def _remedies(self, plan: RunPlan, found: Rehearsed) -> list[tuple[str, float]]:
        """Changes one on top of the other, until it fits."""
        out: list[tuple[str, float]] = []
        recompute, change = plan.recompute, dict[str, Any]()

        def enough(words: str) -> bool:
            out.append((words, self._peak(recompute, change)))
            return out[-1][1] <= self.available

        if found.highest == "evaluation":
            change["evaluation"] = 1
            if enough("eval_batch_size: 1"):
                return out
        if not recompute and found.recomputes:
            recompute = True
            if enough("gradient_checkpointing: true"):
                return out
        for key, least in (("batch", 1), ("length", 64)):
            start = getattr(plan, key)
            if start <= least:
                continue
            value = change[key] = min(start, max(least, self._largest(key, recompute, plan, change)))
            words = f"batch_size: {value}, accumulation: {math.ceil(start / value)} times as much"
            if enough(words if key == "batch" else f"max_length: {value}"):
                return out
        rank = max(each.adapter.rank for each in self.configs.values())
        for key, new, words, of_use in (
            ("dtype", torch.bfloat16, "dtype: bfloat16", self.dtype == torch.float32),
            ("rank", 8, "rank: 8", rank > 8),
            ("targets", "attention", "targets: attention", True),
        ):
            if of_use:
                change[key] = new
                if enough(words):
                    return out
        return out


def _parts(found: Rehearsed) -> dict[str, float]:
    """What the peak is made of, by when it comes."""
    name, phase = found.highest, found.phases[found.highest]
    parts: dict[str, float] = {f"base weights, {kind}": size for kind, size in found.weights.items()}
    parts["adapters, float32"] = found.adapters
    rest = phase.peak - sum(parts.values())
    if name in ("pass", "forward", "update"):
        parts |= {"gradients": found.state / 3, "optimiser state": found.state * 2 / 3}
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


def _root(points: list[tuple[int, float]], available: float, most: int) -> int:
    """The largest whole number up to ``most`` at which the line or parabola through ``points`` is within
    what is available.

    0: not even 1 is.
    """

    (start, low), (stop, high) = points[0], points[-1]
    slope, bend = (high - low) / max(1, stop - start), 0.0
    if len(points) == 3:
        middle, between = points[1]
        bend = (slope - (between - low) / (middle - start)) / (stop - middle)
        bend = max(0.0, bend)  # bent the other way it would be chance: it would turn down again

    def value(x: float) -> float:
        return low + slope * (x - start) + bend * (x - start) * (x - stop)

    below, above = 0, most + 1
    while above - below > 1:
        half = (below + above) // 2
        below, above = (half, above) if value(half) <= available else (below, half)
    return below


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _resident() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss)


def _speed(config: Any, dtype: torch.dtype, tokens: int) -> float:
    """Operations a second of a product as a layer of the base computes it, within a second."""
    text = text_config(config)
    width = min(4096, getattr(text, "hidden_size", None) or 512)
    inner = min(4096, getattr(text, "intermediate_size", None) or 4 * width)
    rows = max(16, min(tokens, 1024))
    x, weight = (torch.ones(shape, dtype=dtype, device=_device()) for shape in ((rows, width), (inner, width)))
    best, end = math.inf, time.perf_counter() + 1
    torch.nn.functional.linear(x, weight)
    while time.perf_counter() < end:
        begun = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()
        best = min(best, time.perf_counter() - begun)
    return 2 * rows * width * inner / best

"""What a training run will need, before anything is loaded: runs rehearsed until all is known."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from lora.checks.heap import gives_back, is_glibc
from lora.checks.ledger import Phase
from lora.checks.pace import device, measure
from lora.checks.planned_base import PlannedBase
from lora.checks.rehearsal import Role, rehearse
from lora.checks.run_plan import COUNTED, RunPlan, parts_of
from lora.checks.stand_in import longer, rows_for
from lora.checks.tally import Rehearsed
from lora.config import RunConfig
from lora.errors import ConfigError
from lora.model.base import positions_of
from lora.model.vocabulary import train_rows
from lora.overrides import each_adapter
from lora.tasks import Task
from lora.training.device import choose_dtype
from lora.training.memory import MEMORY_SHARE, decide, free_bytes

MOST_ROWS, LONGEST = 1024, 1 << 17  # rows of a batch and tokens of a row that are looked for


class Planner:
    """The runs that are rehearsed for one plan.

    Args:
        config: ``model`` is set.
        length, device_gib: see `lora.plan`.
        start: the folder of an adapter that training goes on from.
        task: which that was trained for.
        vocabulary: tokens that it needs.

    Raises:
        ConfigError, DataError, ModelError: as training would.
    """

    def __init__(
        self, config: RunConfig, length: int | None, device_gib: float | None, start: Path | None = None,
        task: Task | None = None, vocabulary: int = 0,
    ) -> None:  # fmt: skip
        self.config, self.device_gib = config, device_gib
        self._peaks: dict[Any, float] = {}
        self._checks = config.check  # whether the checks before training are rehearsed too
        self.configs = each_adapter(config) if config.adapters else {"default": config}
        self.rows = {name: rows_for(each, length, task, start) for name, each in self.configs.items()}
        self.at_once = min(config.at_once or len(self.configs), len(self.configs))
        self.process = _resident()
        self.task = _common_task({name: rows.prepared.task for name, rows in self.rows.items()})
        self.dtype = choose_dtype(config.training.dtype)
        self.base = PlannedBase(config, self.task)
        tokenizer = next(iter(self.rows.values())).prepared.tokenizer
        new = self.base.add_tokens(config.new_tokens, tokenizer, vocabulary)
        for each in self.configs.values():
            train_rows(each.adapter, new)
        self.base.refuse_misfit(next(iter(self.configs)), self.dtype)
        self.goes_on = start is not None
        if start is not None:
            config.adapter = self.base.adapter_in(start, self.dtype)
        self.available = max(0.0, 2**30 * device_gib - self.process) if device_gib else free_bytes(device())

    def _roles(self, change: Mapping[str, Any]) -> dict[str, Role]:
        """The adapters with ``change``: batch, length, rank, targets."""
        out = {}
        for name, each in self.configs.items():
            training, adapter, rows = each.training.model_copy(), each.adapter.model_copy(deep=True), self.rows[name]
            prepared = rows.prepared
            training.batch_size = change.get("batch", training.batch_size)
            training.eval_batch_size = change.get("evaluation", training.eval_batch_size)
            if "batch" in change or "length" in change:
                prepared = longer(prepared, change.get("length", rows.length), training)
            if "rank" in change:
                adapter.rank = min(adapter.rank, change["rank"])
            if "targets" in change:
                adapter.targets = change["targets"]
            out[name] = Role(prepared, adapter, training)
        return out

    def run(
        self, recompute: bool, change: Mapping[str, Any] | None = None, brief: bool = False, proved: bool = False
    ) -> Rehearsed:
        """Rehearse with ``change``."""
        change = change or {}
        shape = self.base.shape(change.get("dtype", self.dtype))
        checks = self._checks and change.get("checks", True)
        return rehearse(shape, self._roles(change), recompute, self.at_once, brief, proved, checks)

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
        # What was tried for packed rows once need not be tried again, unless that is what takes most.
        self._proved = found.packed and found.highest != "probe"
        self._checks &= found.highest == "checks"
        self._with_merged_copy(found)
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
            if not out.fits and self.available > 0:
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
            most = positions_of(SimpleNamespace(config=self.base.config)) or LONGEST  # type: ignore[arg-type]
            tried = [start // 4, start // 2, start] if start >= 256 else [start, 2 * start, 4 * start]
        found = [(n, self._peak(recompute, {**fixed, key: n})) for n in sorted({min(n, most) for n in tried})]
        return _root(found, self.available, most)

    def _peak(self, recompute: bool, change: Mapping[str, Any]) -> float:
        """Of a run with ``change``, by few layers."""
        key = (recompute, *sorted((name, str(value)) for name, value in change.items()))
        if key not in self._peaks:
            self._peaks[key] = self.run(recompute, change, brief=True, proved=self._proved).held
        return self._peaks[key]

    def _told(self, found: Rehearsed, recompute: bool, note: str | None) -> RunPlan:
        name, rows = max(self.rows.items(), key=lambda item: item[1].length)
        settings = self.configs[name].training
        files, checkpoints = found.files, settings.keep_checkpoints
        # While a checkpoint is written the one that it takes the place of is still there.
        run = files[0] * 2 + files[1] * (checkpoints + 1)
        per_token = found.operations / max(1, found.tokens)
        pace = None
        if not self.device_gib:
            row = rows.tokens / settings.batch_size
            pace = measure(self.base.shape(self.dtype), self._roles({})[name], recompute, row, per_token)
        step = run_time = None
        if pace is not None:
            every = [(r.tokens * self.configs[key].training.accumulation, r.steps) for key, r in self.rows.items()]
            step = pace.of(rows.tokens * settings.accumulation)
            if all(steps for _, steps in every):
                run_time = pace.of(sum(tokens * (steps or 0) for tokens, steps in every))
        return RunPlan(
            model=self.config.model or "", fits=found.held <= self.available, peak=found.held, process=self.process,
            available=self.available, memory=parts_of(found), parameters=int(found.parameters),
            phases={phase: value.peak for phase, value in found.phases.items()},
            trainable={kind: int(count) for kind, count in found.trainable.items()}, packed=found.packed,
            recompute=recompute, says=note, adapters=len(self.configs), at_once=self.at_once,
            batch=settings.batch_size, length=rows.length, tokens=found.tokens,
            operations=per_token, pace=pace, step_seconds=step, run_seconds=run_time,
            steps=max((r.steps for r in self.rows.values() if r.steps), default=None),
            disk={"adapter": files[0], "checkpoint": files[1], "run": run * len(self.configs)},
            notes=self._notes(found), warnings=self._warnings(recompute),
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
        counted = ["training", *(words for phase, words in COUNTED.items() if phase in found.phases)]
        said = f"{', '.join(counted[:-1])} and {counted[-1]}"
        notes.append(f"The peak is the highest of {said}; not counted is the report at the end.")
        if self.device_gib:
            notes.append("Reckoned as on this machine's device: another may keep other tensors for its attention.")
        return notes

    def _with_merged_copy(self, found: Rehearsed) -> None:
        """Count the copy of the base that is compared after training; it is left out where half of what is free then
        would not hold it."""
        loaded, copy_ = found.phases["loading"].after, sum(found.weights.values())
        if self.config.check and copy_ <= (self.available - loaded) / 2:
            peak = int(loaded + copy_)
            found.phases["merging"] = Phase(loaded, peak, held=peak)

    def _warnings(self, recompute: bool) -> list[str]:
        if not recompute or device().type != "cpu" or self.device_gib or not is_glibc() or gives_back():
            return []
        return [
            "Layers are recomputed, and there this system's C library (glibc) holds on to freed memory: the run may "
            "take up to 2.6 times the peak that is told here. With MALLOC_MMAP_THRESHOLD_=65536 in the environment of "
            "plan and training it takes what is told."
        ]

    def _remedies(self, plan: RunPlan, found: Rehearsed) -> list[tuple[str, float]]:
        """Changes one on top of the other, until it fits."""
        out: list[tuple[str, float]] = []
        recompute, change = plan.recompute, dict[str, Any]()

        def enough(words: str) -> bool:
            out.append((words, self._peak(recompute, change)))
            return out[-1][1] <= self.available

        # The checks hold evaluations too.
        if found.highest == "evaluation" or (found.highest == "checks" and "evaluation" in found.phases):
            change["evaluation"] = 1
            if enough("eval_batch_size: 1"):
                return out
        if found.highest == "checks":
            change["checks"] = False
            if enough("check: false"):
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
            ("rank", 8, "rank: 8", rank > 8 and not self.goes_on),
            ("targets", "attention", "targets: attention", not self.goes_on),
        ):
            if of_use:
                change[key] = new
                if enough(words):
                    return out
        return out


def _common_task(tasks: dict[str, Task]) -> Task:
    """The first of ``tasks``. Raises ConfigError where others need another model."""
    first, *others = tasks
    for name in others:
        if tasks[name].auto_class != tasks[first].auto_class:
            raise ConfigError(
                f"adapters {first!r} and {name!r} need different models of the same base ({tasks[first].auto_class} "
                f"and {tasks[name].auto_class}); plan and train them as two runs"
            )
    return tasks[first]


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


def _resident() -> float:
    import psutil

    return float(psutil.Process().memory_info().rss)

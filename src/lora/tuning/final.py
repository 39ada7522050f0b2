"""What the winner is worth: fresh runs of it beside the default's, on rows that the search has never seen."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora.comparison.figures import estimated, measured
from lora.config import AdapterConfig, RunConfig, TrainingConfig
from lora.errors import DataError, TrainingError
from lora.io.atomic import write_text
from lora.model.lora import LoRA
from lora.overrides import save_config
from lora.statistics import Comparison, Estimate, compare
from lora.statistics.compare import ALIKE, BETTER, UNKNOWN, WORSE
from lora.training.job import Job
from lora.training.loop import fit
from lora.training.participant import FitResult
from lora.training.prepare import Prepared

FINAL = "final"
BEST, DEFAULT = "best", "default"
SAME = "the default itself"


@dataclass
class Side:
    """Fresh runs of one configuration.

    Attributes:
        runs: results by seed, of those that came to their end.
        by_seed: the metric on the test rows.
        estimates: every metric of all runs together.
    """

    adapter: AdapterConfig
    training: TrainingConfig
    runs: dict[int, FitResult] = field(default_factory=dict)
    by_seed: dict[int, float] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    error: str | None = None

    def best_run(self, greater: bool) -> FitResult | None:
        """The one that was best on the validation rows."""
        alive = [its for its in self.runs.values() if its.best_value is not None]
        return (max if greater else min)(alive, key=lambda its: its.best_value or 0.0) if alive else None


@dataclass
class Judged:
    """The verdict.

    Attributes:
        word: ``better``, ``worse``, ``no difference seen``, ``not known``, or that the winner is the default itself.
        sentence: the same for a person to read.
        comparison: the paired test of the winner against the default; None: there is only one of them, or no test.
    """

    word: str
    sentence: str
    sides: dict[str, Side]
    comparison: Comparison | None = None
    folders: dict[str, dict[int, Path]] = field(default_factory=dict)


def judge(
    model: LoRA, prepared: Prepared, config: RunConfig, folder: Path,
    chosen: Mapping[str, tuple[AdapterConfig, TrainingConfig]], seeds: int, metric: str, progress: bool | None,
) -> Judged:  # fmt: skip
    """Train each of ``chosen`` (``best``, and ``default`` where that is another) with ``seeds`` fresh seeds, and test.

    Args:
        metric: that is compared.

    Raises:
        Interrupted: Ctrl-C or SIGTERM. Called again, runs that are done are not trained again.
        TrainingError: no run came to its end.
    """
    sides = {name: Side(*its) for name, its in chosen.items()}
    jobs, owner = dict[str, Job](), dict[str, tuple[str, int]]()
    for name, side in sides.items():
        for seed in range(config.training.seed + 1, config.training.seed + 1 + seeds):
            run = f"{name}-seed{seed}"
            training = side.training.model_copy(update={"seed": seed})
            jobs[run], owner[run] = Job(prepared=prepared, adapter=side.adapter, training=training), (name, seed)
            own = config.model_copy(update={
                "adapter": side.adapter, "training": training, "output": str(folder / FINAL / run), "tune": None,
            })  # fmt: skip
            write_text(folder / FINAL / run / "config.yaml", save_config(own))
    results = fit(
        model, jobs, output_dir=folder / FINAL, resume=True, at_once=config.at_once, memory_gib=config.memory_gib,
        compile=config.compile, liger=config.liger, progress=progress,
    )  # fmt: skip
    for run, result in results.items():
        name, seed = owner[run]
        if result.error is None:
            sides[name].runs[seed] = result
        else:
            sides[name].error = result.error.partition(" Checkpoints up to here")[0]
    if not sides[BEST].runs:
        raise TrainingError(f"none of the winner's fresh runs came to its end: {sides[BEST].error}")
    judged = _tested(model, prepared, config, sides, metric)
    judged.folders = {
        name: {seed: folder / FINAL / f"{name}-seed{seed}" for seed in side.runs} for name, side in sides.items()
    }
    for run in jobs:
        model.remove_adapter(run)
    return judged


def forget_checkpoints(folder: Path) -> None:
    """Moments and older parameters of runs that are done and measured."""
    for checkpoints in (folder / FINAL).glob("*/checkpoints"):
        shutil.rmtree(checkpoints, ignore_errors=True)


def _tested(model: LoRA, prepared: Prepared, config: RunConfig, sides: dict[str, Side], metric: str) -> Judged:
    pools: dict[str, Any] = {}
    first: Any = None
    try:
        for name, side in sides.items():
            if not side.runs:
                continue
            found = measured(model, prepared, config, [its.adapter for its in side.runs.values()])
            figures = [found[its.adapter] for its in side.runs.values()]
            if metric not in figures[0]:
                raise DataError(f"{metric} is no figure of single test rows; known: {', '.join(figures[0])}")
            first = figures[0][metric][0]
            side.by_seed = {seed: first.value(found[its.adapter][metric][1]) for seed, its in side.runs.items()}
            side.estimates, pools[name] = estimated(figures, metric, config.training.seed)
    except DataError as error:
        return Judged(UNKNOWN, f"Nothing is known of test rows: {error}.", sides)
    comparison = None
    if DEFAULT in pools and len(sides[BEST].runs) == len(sides[DEFAULT].runs):
        comparison = compare(first, pools[BEST], pools[DEFAULT], seed=config.training.seed)
    return Judged(*_said(sides, comparison, metric), sides, comparison)


def _said(sides: dict[str, Side], comparison: Comparison | None, metric: str) -> tuple[str, str]:
    """The verdict as a word and as a sentence."""
    best = sides[BEST].estimates[metric]
    worth = (
        f"{metric} {best.value:.4g} ({best.level:.0%} {best.low:.4g} to {best.high:.4g}) on {best.units:,} test rows"
    )
    runs = f"{len(sides[BEST].runs)} fresh runs" if len(sides[BEST].runs) > 1 else "a fresh run"
    if DEFAULT not in sides:
        return SAME, (
            f"No better than the default: of all trials the default itself was best on the validation rows; {runs} of "
            f"it have {worth}."
        )
    if comparison is None:
        why = sides[DEFAULT].error or sides[BEST].error or "there is no test"
        return UNKNOWN, f"The winner has {worth}; how the default compares is not known: {why}."
    against = (
        f"{worth}, in {runs}; the default {comparison.b:.4g}, a difference of {comparison.difference:+.4g} "
        f"({comparison.level:.0%} {comparison.low:+.4g} to {comparison.high:+.4g}, p={comparison.p_value:.2g})"
    )
    if comparison.verdict == BETTER:
        return BETTER, f"Better than the default: {against}."
    if comparison.verdict == WORSE:
        return WORSE, f"Worse than the default, which is kept: {against}. The search has fitted the validation rows."
    if comparison.verdict == ALIKE:
        least = comparison.detectable
        shown = f" Such rows would show a difference of {least:.2g} or more in 80 % of cases." if least == least else ""
        return ALIKE, f"No better than the default, as far as these rows can tell: {against}.{shown}"
    return UNKNOWN, f"Whether it is better than the default is not known: {against}. {comparison.note}".strip()

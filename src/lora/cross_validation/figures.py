"""From answers to held-out rows to figures: pooled over folds, as a mean of folds, and beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lora.comparison.compare import estimated
from lora.cross_validation.material import Material
from lora.cross_validation.runs import Run, Setup
from lora.cross_validation.training import Answered
from lora.data.folds import Fold, Places
from lora.errors import DataError
from lora.statistics.compare import Comparison, compare_all
from lora.statistics.estimate import Estimate
from lora.statistics.folds import FoldMean, mean_of_folds
from lora.statistics.means import LOSS, token_rows
from lora.statistics.metric import Metric
from lora.statistics.multiple import corrected
from lora.statistics.rows import Rows, group_numbers
from lora.tasks.figures import Figures, groups_of


@dataclass
class Validated:
    """A setup with all that its runs came to.

    Attributes:
        pooled: by metric, of the held-out rows of all folds together, all repeats and seeds; an interval over rows.
        means: by metric, of the folds, each the mean of its seeds; an interval over folds.
        by_fold: by fold (see `Fold.name`) the mean of its seeds, by metric.
        by_seed: by seed the pooled value of the metric that is compared.
        rows: of that metric, what tests are made of.
        train, held: rows of each fold.
        against, against_folds: it against the configuration as it stands, on the same rows and over the same folds,
            p-values corrected for the number of ablations; None: it is no ablation.
        error: why there are no figures.
    """

    setup: Setup
    pooled: dict[str, Estimate] = field(default_factory=dict)
    means: dict[str, FoldMean] = field(default_factory=dict)
    by_fold: dict[str, dict[str, float]] = field(default_factory=dict)
    by_seed: dict[int, float] = field(default_factory=dict)
    rows: Rows | None = None
    train: dict[str, int] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    against: Comparison | None = None
    against_folds: FoldMean | None = None
    error: str | None = None

    @property
    def ratio(self) -> float:
        """Held-out rows over training rows, as a mean over folds."""
        return float(np.mean([self.held[name] / self.train[name] for name in self.train]))


def figures_of(
    material: Material, places: Places, answers: Sequence[tuple[Any, float, int]], pooled: bool = True
) -> Figures:
    """Metrics of the answers to the examples at ``places``, with their rows.

    Args:
        answers: prediction, loss sum and supervised positions of each.
        pooled: rows that belong together (one group, equal inputs) are drawn together.
    """
    task = material.task
    examples = [material.prepared.train.examples[place] for place in places]
    rows = material.example_rows[places]
    tied = pooled and material.tied
    groups: Any = material.units[rows].tolist() if tied else groups_of(examples)
    out: Figures = {}
    if task.learns != "number":  # whose loss is in the unit of each fold's own spread
        losses = token_rows([loss for _, loss, _ in answers], [count for *_, count in answers], groups=groups)
        out["loss"] = (LOSS, losses)
    out |= task.figures([said for said, *_ in answers], task.targets(examples), groups)
    if not tied:
        return out
    # A task that puts the parts of a row together by itself has rows, which belong together as the units say.
    different = rows[np.sort(np.unique(rows, return_index=True)[1])]
    changed: dict[int, Rows] = {}
    for name, (metric, own) in out.items():
        if own.groups is None and len(own) == len(different):
            again = changed.setdefault(
                id(own), replace(own, groups=group_numbers(material.units[different].tolist(), len(own)))
            )
            out[name] = (metric, again)
    return out


def validated(
    material: Material, setup: Setup, answers: Mapping[Run, Answered], key: str
) -> tuple[Validated, Metric | None]:
    """The figures of ``setup``, and the metric ``key``. Where a run was stopped there are none, and it is said why."""
    out = Validated(setup)
    its = {run: found for run, found in answers.items() if run.setup is setup}
    stopped = {run: found.outcome.error for run, found in its.items() if found.outcome.error}
    if stopped:
        run, why = next(iter(stopped.items()))
        out.error = f"{run.name} was stopped in training: {why}"
        return out, None
    for run, found in its.items():
        out.train[run.fold.name], out.held[run.fold.name] = found.train, found.held
    try:
        figures, metric = _pooled(material, its, out, key), None
        if key in figures[0]:
            metric = figures[0][key][0]
        out.pooled, out.rows = estimated(figures, key, material.seed)
        _by_fold(material, its, out, {name: metric for name, (metric, _) in figures[0].items()})
    except DataError as error:
        out.error = f"no figures: {error}"
        return out, None
    return out, metric


def _pooled(material: Material, its: Mapping[Run, Answered], out: Validated, key: str) -> list[Figures]:
    """Figures of all held-out rows, one for each repeat and seed; rows in the same order in each."""
    figures, values = list[Figures](), dict[int, list[float]]()
    for repeat in sorted({run.fold.repeat for run in its}):
        for seed in sorted({run.seed for run in its}):
            runs = {run: found for run, found in its.items() if (run.fold.repeat, run.seed) == (repeat, seed)}
            places = np.concatenate([material.examples(run.fold.held) for run in runs])
            together = [one for found in runs.values() for one in _each(found)]
            order = np.argsort(places)
            figures.append(figures_of(material, places[order], [together[place] for place in order]))
            if key in figures[-1]:
                metric, rows = figures[-1][key]
                values.setdefault(seed, []).append(metric.value(rows))
    out.by_seed = {seed: float(np.mean(own)) for seed, own in values.items()}
    return figures


def _by_fold(material: Material, its: Mapping[Run, Answered], out: Validated, metrics: Mapping[str, Metric]) -> None:
    folds: dict[str, Fold] = {run.fold.name: run.fold for run in its}
    for name, fold in folds.items():
        places = material.examples(fold.held)
        seeds = [
            figures_of(material, places, _each(found), pooled=False)
            for run, found in its.items()
            if run.fold.name == name
        ]
        out.by_fold[name] = {
            key: float(np.mean([own[key][0].value(own[key][1]) if key in own else math.nan for own in seeds]))
            for key in metrics
        }
    for key, metric in metrics.items():
        out.means[key] = mean_of_folds([own[key] for own in out.by_fold.values()], out.ratio, metric=metric)


def _each(found: Answered) -> list[tuple[Any, float, int]]:
    return list(zip(found.predictions, found.losses, found.counts, strict=True))


def put_to_test(everyone: Sequence[Validated], metric: Metric, key: str, seed: int) -> None:
    """Write each ablation's tests against the configuration as it stands; both families are Holm corrected.

    On the same rows: would these models differ on other rows? Over folds (the corrected resampled t test of Nadeau and
    Bengio, 2003): would the settings differ with other training rows?
    """
    base = everyone[0]
    its = [one for one in everyone if one.setup.kind == "ablation" and not one.error]
    if not its or base.error or base.rows is None:
        return
    systems = {one.setup.name: one.rows for one in [base, *its] if one.rows is not None}
    found = compare_all(metric, systems, against=base.setup.name, seed=seed)
    means = [
        mean_of_folds([own[key] - base.by_fold[name][key] for name, own in one.by_fold.items()], base.ratio)
        for one in its
    ]
    p_values = corrected([mean.p_value for mean in means])
    for one, mean, p in zip(its, means, p_values, strict=True):
        one.against, one.against_folds = found[one.setup.name], replace(mean, p_value=float(p))

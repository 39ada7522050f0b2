"""How sure the numbers of an evaluation are: intervals, each adapter against the base, adapters against one another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

from lora.core.routing import BASE
from lora.errors import DataError
from lora.statistics.classes import COUNTED, by_class
from lora.statistics.compare import Comparison, compare_each, correct
from lora.statistics.estimate import LEVEL, Estimate, estimates
from lora.statistics.metric import Metric, OrderMetric
from lora.statistics.ranking import SCORES
from lora.statistics.rows import Rows
from lora.tasks import Encoded, Task
from lora.tasks.figures import Figures, figures
from lora.tasks.inference import Outcome

MOST_PAIRS = 45  # of adapters (those of ten): of more, the correction for their number leaves little to be found
FEWEST = 200  # resamples, where each sorts many rows by many classes
_WORK = 5_000_000  # rows times classes times resamples of such a metric: about 0.2 s of one core
_MOST = 20_000_000  # the same, beyond which there is none
TOO_LARGE = "Its rows would be sorted by too many classes, too many times, for an interval or a test."
UNTRAINED = "The base's head is untrained, so to be better than it shows nothing."


def figures_of(task: Task, outcomes: Mapping[str, Outcome], encoded: Encoded) -> tuple[dict[str, Figures], list[str]]:
    """Figures of each adapter, and a sentence about each that has none, as its predictions are no numbers."""
    out, notes = dict[str, Figures](), list[str]()
    for name, outcome in outcomes.items():
        try:
            out[name] = figures(task, outcome, encoded.examples)
        except DataError as error:
            notes.append(f"{name}: there are no intervals and tests, since {error}.")
    return out, notes


def intervals(found: Mapping[str, Figures], resamples: int, seed: int = 0) -> dict[str, dict[str, dict[str, Any]]]:
    """By name and key `Estimate` as a dict. Metrics of the same rows are read off the same resamples."""
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for name, own in found.items():
        each = dict[str, Estimate]()
        for keys, metrics, rows in _by_rows(own):
            each |= dict(zip(keys, estimates_of(metrics, rows, resamples, seed), strict=True))
        out[name] = {key: each[key].to_dict() for key in own}
    return out


def estimates_of(metrics: Sequence[Metric], rows: Rows, resamples: int, seed: int = 0) -> list[Estimate]:
    """`estimates` of ``metrics`` by ``resamples``; of those that sort many rows by many classes by fewer, or none."""
    many = _fewer(metrics, rows, resamples)
    if not many:
        return [_alone(metric, rows) for metric in metrics]
    # BCa leaves out each row in turn, which costs as much as a thousand resamples.
    method = "auto" if many == resamples else "percentile"
    return estimates(metrics, rows, seed=seed, resamples=many, method=method)


def class_intervals(found: Mapping[str, Figures], resamples: int, seed: int = 0) -> dict[str, dict[str, Any]]:
    """By name and class the `Estimate` of its F1 as a dict; no entry for who has no counts by class.

    All classes are read off the same resamples of all rows, so that how often a class occurs varies with them.
    """
    out: dict[str, dict[str, Any]] = {}
    for name, own in found.items():
        rows = own["f1_macro"][1] if "f1_macro" in own else None
        if rows is not None and rows.kind in COUNTED:
            each = estimates(by_class("F1", rows), rows, seed=seed, resamples=resamples)
            out[name] = {str(label): its.to_dict() for label, its in zip(rows.labels, each, strict=True)}
    return out


def against_base(
    found: Mapping[str, Figures], resamples: int, seed: int = 0, untrained: bool = False
) -> dict[str, dict[str, dict[str, Any]]]:
    """By adapter and key what it and the base differ by on the same rows; p-values corrected (Holm) for the number of
    adapters. Empty where the base was not measured."""
    if BASE not in found:
        return {}
    each = {
        name: compared(own, found[BASE], resamples=resamples, seed=seed) for name, own in found.items() if name != BASE
    }
    for key in found[BASE]:
        corrected = correct({name: own[key] for name, own in each.items() if key in own})
        for name, its in corrected.items():
            note = " ".join(filter(None, (its.note, UNTRAINED if untrained else "")))
            each[name][key] = replace(its, note=note)
    return {name: {key: its.to_dict() for key, its in own.items()} for name, own in each.items()}


def between(
    found: Mapping[str, Figures], keys: Sequence[str], resamples: int, seed: int = 0
) -> tuple[list[dict[str, Any]], list[str]]:
    """Every two adapters by each of ``keys``, p-values corrected (Holm) for the number of pairs, and notes."""
    names = [name for name in found if name != BASE]
    every = list(combinations(names, 2))
    if len(every) > MOST_PAIRS:
        what = f"{len(names)} adapters make {len(every)} pairs, which are too many to be told apart"
        return [], [f"Adapters were not compared with one another: {what}; name up to ten of them."]
    each = {pair: compared(found[pair[0]], found[pair[1]], keys=keys, resamples=resamples, seed=seed) for pair in every}
    out = []
    for key in dict.fromkeys(keys):
        corrected = correct({str(place): its[key] for place, its in enumerate(each.values()) if key in its})
        out += [
            {**its.to_dict(), "metric": key, "a": every[int(place)][0], "b": every[int(place)][1]}
            for place, its in corrected.items()
        ]
    return out, []


def compared(
    a: Figures, b: Figures, *, resamples: int, seed: int = 0, keys: Sequence[str] | None = None
) -> dict[str, Comparison]:
    """``a`` against ``b`` by the keys that both have, on the same rows in the same order."""
    shared = {key: its for key, its in a.items() if key in b and (keys is None or key in keys)}
    each = dict[str, Comparison]()
    for own, metrics, rows in _by_rows(shared):
        # What shares its rows on one side does so on the other: both are of one task.
        if many := _fewer(metrics, rows, resamples):
            each |= dict(zip(own, compare_each(metrics, rows, b[own[0]][1], seed=seed, resamples=many), strict=True))
    return {key: each[key] for key in shared if key in each}


def _alone(metric: Metric, rows: Rows) -> Estimate:
    """The value, without an interval."""
    value, nan = metric.value(rows), math.nan
    units = rows.units.drawn
    return Estimate(
        metric.name, value, nan, nan, LEVEL, len(rows), units, "none", TOO_LARGE, metric.higher_is_better
    )  # fmt: skip


def _by_rows(found: Figures) -> list[tuple[list[str], list[Metric], Rows]]:
    """Keys and metrics that are figures of the same rows, together."""
    groups: dict[int, tuple[list[str], list[Metric], Rows]] = {}
    for key, (metric, rows) in found.items():
        keys, metrics, _ = groups.setdefault(id(rows), ([], [], rows))
        keys.append(key)
        metrics.append(metric)
    return list(groups.values())


def _fewer(metrics: Sequence[Metric], rows: Rows, resamples: int) -> int:
    """``resamples``, or as many as are affordable where each sorts every row for every class; 0: none are."""
    if not len(rows) or not any(isinstance(metric, OrderMetric) for metric in metrics):
        return resamples
    work = len(rows.cells) * (rows.cells.shape[1] // 2 if rows.kind == SCORES else 1)
    return min(resamples, max(FEWEST, _WORK // work)) if work * FEWEST <= _MOST else 0

"""What lm-eval measured: the base beside its adapters, with intervals, as data and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np

from lora.core.routing import BASE
from lora.evaluation.grid import Cell, Grid
from lora.evaluation.result import plain
from lora.evaluation.shown import Metric, difference, shown

Z = 1.959964  # standard errors on either side of a 95 % interval


@dataclass
class Benchmarks:
    """What lm-eval measured.

    Attributes:
        results: task (or group of tasks) -> metric -> adapter -> ``value``, ``stderr``, ``low`` and ``high`` (the ends
            of a 95 % interval; None where there is no standard error) and, beside the base, ``to_base``: the difference
            with the same; its interval is of the differences document by document.
        higher_is_better: task -> metric -> whether; None where the task does not say.
        documents, fewshot, versions: by task.
        harness: lm-eval's version.
        seconds: wall-clock time of everything.
    """

    results: dict[str, dict[str, dict[str, dict[str, Any]]]]
    higher_is_better: dict[str, dict[str, bool | None]]
    documents: dict[str, int]
    fewshot: dict[str, int]
    versions: dict[str, Any]
    chat_template: bool = False
    harness: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __getitem__(self, task: str) -> dict[str, dict[str, dict[str, Any]]]:
        return self.results[task]

    def to_dict(self) -> dict[str, Any]:
        """Everything as values that strict JSON can hold."""
        out: dict[str, Any] = plain(self)
        return out

    def grid(self) -> Grid:
        """The base's column first. With one adapter the difference has a column, with several it stands in brackets."""
        names = list(dict.fromkeys(name for its in self.results.values() for each in its.values() for name in each))
        single = len(names) == 2 and names[0] == BASE
        grid = Grid("Benchmarks", ["", *names, *(["difference"] if single else [])], [], list(self.notes))
        for task, metrics in self.results.items():
            shots = f", {self.fewshot[task]} examples" if self.fewshot.get(task) else ""
            for metric, its in metrics.items():
                better = self.higher_is_better.get(task, {}).get(metric)
                form = Metric(metric, ".3f", 0 if better is None else 1 if better else -1)
                label = f"{task}{shots}: {metric}"
                grid.rows.append([label, *_cells(its, names, form, single)])
        grid.below.append(
            f"By lm-eval {self.harness}. In brackets: 95 % intervals, of values from lm-eval's standard errors, of "
            "differences from those document by document; one of these that holds 0 shows no difference."
        )
        return grid


def _cells(its: dict[str, dict[str, Any]], names: list[str], metric: Metric, single: bool) -> list[Cell]:
    cells: list[Cell] = []
    for name in names:
        value = its.get(name, {"value": None, "low": None, "high": None})
        written, style, delta = _between(shown(value["value"], metric), value, metric.form), "", ""
        if against := value.get("to_base"):
            delta, style = difference(against["value"], 0.0, metric)
            delta = _between(delta, against, "+" + metric.form)
            if against["low"] is None or against["low"] <= 0 <= against["high"]:
                style = ""
        if single:
            cells += [written, *([(delta, style)] if name != BASE else [])]
        else:
            cells.append((f"{written}, {delta}" if delta else written, style))
    return cells


def _between(written: str, value: dict[str, Any], form: str) -> str:
    return written if value["low"] is None else f"{written} ({value['low']:{form}} to {value['high']:{form}})"


def collected(found: dict[str, dict[str, Any]], notes: list[str], chat: bool, seconds: float) -> Benchmarks:
    """lm-eval's results of each adapter, put together."""
    first = next(iter(found.values()))
    out = Benchmarks(
        results={}, higher_is_better={}, documents={}, fewshot={}, versions=dict(first["versions"]), chat_template=chat,
        harness=version("lm_eval"), notes=notes, seconds=seconds,
    )  # fmt: skip
    for task, numbers in first["results"].items():
        metrics = [key for key in numbers if "," in key and "_stderr," not in key]
        out.results[task] = {_title(key): {} for key in metrics}
        better = first["higher_is_better"].get(task) or {}
        out.higher_is_better[task] = {_title(key): better.get(key.partition(",")[0]) for key in metrics}
        out.documents[task] = int(numbers.get("sample_len") or 0)
        out.fewshot[task] = int(first["n-shot"].get(task) or 0)
        for key in metrics:
            for name, its in found.items():
                result = _value(its["results"][task], key)
                if name != BASE and BASE in found:
                    result["to_base"] = _difference(found[BASE], its, task, key)
                out.results[task][_title(key)][name] = result
    return out


def _title(key: str) -> str:
    metric, _, filtered = key.partition(",")
    return metric if filtered == "none" else f"{metric} ({filtered})"


def _value(numbers: Mapping[str, Any], key: str) -> dict[str, Any]:
    metric, _, filtered = key.partition(",")
    error = numbers.get(f"{metric}_stderr,{filtered}")
    return _interval(numbers[key], error if isinstance(error, (int, float)) else None)


def _interval(value: Any, error: float | None) -> dict[str, Any]:
    """An error of 0 says that all documents came out alike, which says nothing of others: no interval."""
    if not isinstance(value, (int, float)) or not error or not math.isfinite(error):
        return {"value": value if isinstance(value, (int, float)) else None, "stderr": error, "low": None, "high": None}
    return {"value": float(value), "stderr": float(error), "low": value - Z * error, "high": value + Z * error}


def _difference(base: dict[str, Any], its: dict[str, Any], task: str, key: str) -> dict[str, Any]:
    """Adapter less base. Of a metric that is a mean over documents the error is that of the differences one by one."""
    values = [found["results"][task][key] for found in (base, its)]
    if not all(isinstance(value, (int, float)) for value in values):
        return {"value": None, "stderr": None, "low": None, "high": None}
    metric, _, filtered = key.partition(",")
    each = [
        [sample.get(metric) for sample in found.get("samples", {}).get(task, []) if sample["filter"] == filtered]
        for found in (base, its)
    ]
    error = None
    if len(each[0]) > 1 and all(isinstance(value, (int, float, np.number)) for side in each for value in side):
        pairs = np.asarray(each, dtype=np.float64)  # (2, documents)
        if np.allclose(pairs.mean(axis=1), values):
            error = float((pairs[1] - pairs[0]).std(ddof=1) / math.sqrt(pairs.shape[1]))
    return _interval(values[1] - values[0], error)

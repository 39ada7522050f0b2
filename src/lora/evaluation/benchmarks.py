"""What lm-eval measured: the base beside its adapters, with intervals, as data and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.core.routing import BASE
from lora.evaluation.certainty import HEADERS, VERDICTS, compared
from lora.evaluation.grid import Cell, Grid, pointer
from lora.evaluation.result import plain
from lora.evaluation.shown import Metric, difference, shown
from lora.statistics.compare import Comparison, compare, correct
from lora.statistics.means import EXACT_MATCH, MEAN, right_rows, value_rows

UNTESTED: dict[str, Any] = {  # a difference without a test
    "p_value": None, "p_corrected": None, "verdict": "not known", "test": "none", "detectable": None, "n": None,
    "comparisons": 0, "note": "",
}  # fmt: skip
FEW_DOCUMENTS = 50
TESTED = (
    "p: two-sided, that there is no difference, from both answers to each document (McNemar where they are right or "
    "wrong, else the bootstrap); corrected (Holm) for all lines of this table that have one. 'No difference seen' does "
    "not say that there is none: the last column is the smallest difference that these documents show in 80 % of cases."
)
UNKNOWN = "Not known: the metric is no mean over documents (a perplexity, BLEU, a group of tasks), so none is tested."
Z = 1.959964  # standard errors on either side of a 95 % interval


@dataclass
class Benchmarks:
    """What lm-eval measured.

    Attributes:
        results: task (or group of tasks) -> metric -> adapter -> ``value``, ``stderr``, ``low`` and ``high`` (the ends
            of a 95 % interval; None where there is no standard error) and, beside the base, ``to_base``: the difference
            with the same, and the paired test of it on the same documents: ``p_value``, ``p_corrected`` (Holm, for all
            adapters, metrics and tasks), ``verdict``, ``test``, ``detectable``, ``n``, ``comparisons``, ``note``.
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
            "differences from the two answers to each document. What the tests say of differences stands below."
        )
        return grid

    def tests(self) -> Grid | None:
        """Each adapter against the base, a line per task and metric; None where the base was not measured."""
        rows: list[list[Cell]] = []
        for task, metrics in self.results.items():
            for metric, its in metrics.items():
                form = Metric(f"{task}: {metric}", ".3f")
                for name, value in its.items():
                    if own := value.get("to_base"):
                        path = pointer("results", task, metric, name, "to_base")
                        rows.append([name, *compared(form, own, path, "value")])
        if not rows:
            return None
        said = [own["note"] for each in self.results.values() for its in each.values()
                for value in its.values() if (own := value.get("to_base")) and own["note"]]  # fmt: skip
        notes = [TESTED, *dict.fromkeys(said), *([UNKNOWN] if any(row[4] == ("not known", "") for row in rows) else [])]
        return Grid(f"Against {BASE}", ["adapter", *HEADERS], rows, list(notes), left=2)


def _cells(its: dict[str, dict[str, Any]], names: list[str], metric: Metric, single: bool) -> list[Cell]:
    cells: list[Cell] = []
    for name in names:
        value = its.get(name, {"value": None, "low": None, "high": None})
        written, style, delta = _between(shown(value["value"], metric), value, metric.form), "", ""
        if against := value.get("to_base"):
            delta, _ = difference(against["value"], 0.0, metric)
            delta = _between(delta, against, "+" + metric.form)
            style = VERDICTS.get(str(against.get("verdict")), "")
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
    tests = dict[str, tuple[dict[str, Any], Comparison]]()
    for task, numbers in first["results"].items():
        metrics = [key for key in numbers if "," in key and "_stderr," not in key]
        out.results[task] = {_title(key): {} for key in metrics}
        better = first["higher_is_better"].get(task) or {}
        out.higher_is_better[task] = {_title(key): better.get(key.partition(",")[0]) for key in metrics}
        out.documents[task] = int(numbers.get("sample_len") or 0)
        out.fewshot[task] = int(first["n-shot"].get(task) or 0)
        for key in metrics:
            title = _title(key)
            for name, its in found.items():
                result = _value(its["results"][task], key)
                if name != BASE and BASE in found:
                    higher = out.higher_is_better[task][title]
                    result["to_base"], test = _difference(found[BASE], its, task, key, higher)
                    if test is not None:
                        tests[pointer(task, title, name)] = (result["to_base"], test)
                out.results[task][title][name] = result
    _put_to_test(out, tests)
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


def _difference(
    base: dict[str, Any], its: dict[str, Any], task: str, key: str, higher_is_better: bool | None = True
) -> tuple[dict[str, Any], Comparison | None]:  # fmt: skip
    """Adapter less base, and the paired test of it: None where the metric is no mean over documents, of which each has
    its own value. Interval and p-value are then those of the test."""
    values = [found["results"][task][key] for found in (base, its)]
    if not all(isinstance(value, (int, float)) for value in values):
        return {"value": None, "stderr": None, "low": None, "high": None, **UNTESTED}, None
    of_base, own = (_documents(found, task, key) for found in (base, its))
    out = {"value": values[1] - values[0], "stderr": None, "low": None, "high": None, **UNTESTED}
    if of_base is None or own is None or len(of_base) != len(own) or len(own) < 2:
        return out, None
    means = of_base.mean(), own.mean()
    if not np.allclose(means, values):
        return out, None
    out["stderr"] = float((own - of_base).std(ddof=1) / math.sqrt(len(own)))
    right = bool(np.isin(own, (0, 1)).all() and np.isin(of_base, (0, 1)).all())
    metric = replace(EXACT_MATCH if right else MEAN, name=_title(key), higher_is_better=higher_is_better)
    rows = right_rows if right else value_rows
    return out, compare(metric, rows(own), rows(of_base))


def _documents(found: dict[str, Any], task: str, key: str) -> NDArray[np.float64] | None:
    """(n,) the metric of each document; None where it has no numbers one by one."""
    metric, _, filtered = key.partition(",")
    each = [sample.get(metric) for sample in found.get("samples", {}).get(task, []) if sample["filter"] == filtered]
    if not all(isinstance(value, (bool, int, float, np.number, np.bool_)) for value in each):
        return None
    return np.asarray(each, dtype=np.float64)


def _put_to_test(out: Benchmarks, tests: Mapping[str, tuple[dict[str, Any], Comparison]]) -> None:
    """Write what the tests say into the differences; p-values corrected (Holm) for all adapters, metrics and tasks."""
    own = correct({key: test for key, (_, test) in tests.items()})
    for key, (entry, _) in tests.items():
        told = own[key].to_dict()
        entry.update({name: told[name] for name in ("low", "high", *UNTESTED)})
    few = [f"{task} ({count})" for task, count in out.documents.items() if count and count < FEW_DOCUMENTS]
    if few:
        out.notes.append(
            f"Few documents: {', '.join(few)}. Of fewer than {FEW_DOCUMENTS} intervals are rough, and only large "
            "differences can be seen; the last column of the tests says how large."
        )

"""Tables beyond the comparison: calibration, parts of the rows, noise, worst errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora.evaluation.certainty import HEADERS, VERDICTS, compared
from lora.evaluation.grid import Cell, Grid, Number, pointer
from lora.evaluation.lenient import dicts, entries, is_number, mapping
from lora.evaluation.shown import COUNT, METRICS, Metric, ends, metric_of, number, short, shown, systems, with_ends

if TYPE_CHECKING:
    from lora.evaluation.result import Evaluation

ERRORS = 20  # worst errors in a table
MEASURES = {
    "ece": Metric("ECE", better=-1),
    "ece_equal_mass": Metric("ECE, equal mass", better=-1),
    "debiased_error": Metric("debiased error", better=-1),
    "brier": Metric("Brier score", better=-1),
    "nll": Metric("negative log-likelihood", better=-1),
    "aurc": Metric("area under the risk-coverage curve", better=-1),
}
PLAIN, SHARE, TEMPERATURE = Metric("", ".4g", 0), Metric("", ".3f", 0), Metric("", ".3f", 0)


def grids(evaluation: Evaluation) -> list[Grid]:
    """All tables of this file that there is something for."""
    out = calibration(evaluation)
    for name in evaluation.tuned:
        out += [bins(evaluation, name), selective(evaluation, name), slices(evaluation, name)]
    out += [robustness(evaluation)]
    out += [errors(evaluation, name) for name in evaluation.tuned]
    return [grid for grid in out if grid]


def calibration(evaluation: Evaluation) -> list[Grid | None]:
    """Measures of calibration by system, and what a temperature would make of them."""
    found = dicts(evaluation.calibration)
    names = [name for name in systems(evaluation) if name in found]
    rows: list[list[Cell]] = []
    for key, metric in MEASURES.items():
        if any(isinstance(found[name].get(key), (int, float)) for name in names):
            rows.append([metric.title, *(_measured(found[name], name, key, metric) for name in names)])
    out: list[Grid | None] = []
    if rows:
        below: list[Cell] = [
            "ECE: the expected calibration error. Of the rows that are said to be right with 80 %, are 80 % right? "
            "0 is perfect; with few rows even a perfectly calibrated model has one above 0."
        ]
        out.append(Grid("Calibration", ["", *map(evaluation.label, names)], rows, below))
    return [*out, temperature(evaluation)]


def _measured(found: Mapping[str, Any], name: str, key: str, metric: Metric) -> Cell:
    """A measure of calibration, with its interval where it has one."""
    at = ("evaluation", "calibration", name)
    value = number(found.get(key), metric, pointer(*at, key))
    both = ends(dicts(found.get("intervals")).get(key, {}), metric, pointer(*at, "intervals", key))
    return [value, " (", both[0], "–", both[1], ")"] if both else value


def temperature(evaluation: Evaluation) -> Grid | None:
    """Calibration before and after the logits are divided by a temperature, a line per system."""
    found = {name: mapping(own.get("temperature")) for name, own in dicts(evaluation.calibration).items()}
    names = [name for name in systems(evaluation) if mapping(found.get(name, {}).get("before"))]
    keys = [key for key in MEASURES if any(mapping(found[name]["before"]).get(key) is not None for name in names)]
    rows: list[list[Cell]] = []
    for name in names:
        path = ("evaluation", "calibration", name, "temperature")
        which = "temperature" if "temperature" in found[name] else "value"
        row: list[Cell] = [evaluation.label(name), number(found[name].get(which), TEMPERATURE, pointer(*path, which))]
        for key in keys:
            before, after = (mapping(found[name].get(side)).get(key) for side in ("before", "after"))
            row.append([number(before, MEASURES[key], pointer(*path, "before", key)), " → ",
                        number(after, MEASURES[key], pointer(*path, "after", key))])  # fmt: skip
        rows.append(row)
    below: list[Cell] = [
        "What logits are divided by so that probabilities become honest; above 1 the model was too sure. No answer "
        "changes. Each row is judged at a temperature that was fitted without it.",
        *(f"{name}: {found[name]['note']}" for name in names if found[name].get("note")),
    ]
    headers = ["", "temperature", *(MEASURES[key].title for key in keys)]
    return Grid("Temperature scaling", headers, rows, below) if rows else None


def bins(evaluation: Evaluation, name: str) -> Grid | None:
    """The reliability table; empty bins are left out."""
    rows: list[list[Cell]] = []
    for place, its in enumerate(entries(dicts(evaluation.calibration).get(name, {}).get("bins"))):
        if its.get("n"):
            path = pointer("evaluation", "calibration", name, "bins", place)
            start, end = (number(its.get(key), SHARE, f"{path}/{key}") for key in ("start", "end"))
            rows.append([[start, "–", end], number(its["n"], COUNT, f"{path}/n"),
                         number(its.get("confidence"), SHARE, f"{path}/confidence"),
                         with_ends(its, "right", SHARE, path)])  # fmt: skip
    headers = ["confidence", "rows", "mean confidence", "share right"]
    return Grid(f"Reliability: {name}", headers, rows) if rows else None


@dataclass(frozen=True)
class Covered:
    """A point of the risk-coverage curve: the surest share ``coverage`` of the rows, and what is wrong among them."""

    coverage: Number
    risk: Number
    right: bool  # the file holds the accuracy, not the risk


def covered(evaluation: Evaluation, name: str) -> list[Covered]:
    """The risk-coverage curve: of lists ``coverage`` and ``risk`` (or ``accuracy``), or of points that hold these."""
    found = dicts(evaluation.calibration).get(name, {}).get("selective")
    base: tuple[str, ...] = ("evaluation", "calibration", name, "selective")
    if isinstance(found, Mapping):
        points = next((found[key] for key in ("curve", "points") if isinstance(found.get(key), (list, Mapping))), None)
        if points is not None:
            base = (*base, "curve" if points is found.get("curve") else "points")
            found = points
    out: list[tuple[Any, ...]] = []
    if isinstance(found, Mapping):
        key = next((key for key in ("risk", "accuracy") if isinstance(found.get(key), list)), None)
        shares = found.get("coverage")
        if key and isinstance(shares, list):
            out = [(c, found[key][i], pointer(*base, "coverage", i), pointer(*base, key, i), key) for i, c in
                   enumerate(shares) if i < len(found[key])]  # fmt: skip
    elif isinstance(found, list):
        for i, its in enumerate(found):
            key = next((key for key in ("risk", "accuracy") if isinstance(its, Mapping) and key in its), None)
            if key:
                out.append((its.get("coverage"), its[key], pointer(*base, i, "coverage"), pointer(*base, i, key), key))
    return [
        Covered(number(c, SHARE, at_c), number(r, SHARE, at_r), key == "accuracy")
        for c, r, at_c, at_r, key in out
        if is_number(c) and is_number(r)
    ]


def selective(evaluation: Evaluation, name: str, most: int = 11) -> Grid | None:
    """The risk-coverage curve at ``most`` places."""
    points = covered(evaluation, name)
    if not points:
        return None
    places = sorted({round(i * (len(points) - 1) / (most - 1)) for i in range(most)})
    what = "share right" if points[0].right else "share wrong"
    rows: list[list[Cell]] = [[points[place].coverage, points[place].risk] for place in places]
    below: list[Cell] = [
        "Answering only where the model is surest: the share of rows answered, and what comes of them."
    ]
    return Grid(f"Answering where sure: {name}", ["answered", what], rows, below)


def slices(evaluation: Evaluation, name: str) -> Grid | None:
    """Parts of the rows, the weakest first, each against all others."""
    found = dicts(evaluation.slices).get(name, {})
    rows: list[list[Cell]] = []
    parts = entries(found.get("slices"))
    for place, part in enumerate(parts):
        own = mapping(part.get("estimate"))
        if not own:
            continue
        path, metric = pointer("evaluation", "slices", name, "slices", place), sliced(evaluation, own)
        said, p = str(part.get("verdict") or ""), "p_corrected" if part.get("p_corrected") is not None else "p_value"
        rows.append([
            f"{part.get('column')}: {part.get('name')}", number(part.get("n", own.get("n")), COUNT, f"{path}/n"),
            with_ends(own, "value", metric, f"{path}/estimate"), number(part.get("rest"), metric, f"{path}/rest"),
            number(part.get(p), Metric("p", ".2g", 0), f"{path}/{p}"), (said, VERDICTS.get(said, "")),
        ])  # fmt: skip
    notes = found.get("notes")
    below: list[Cell] = [str(note) for note in notes] if isinstance(notes, list) else []
    if not rows and not below:
        return None
    first = next((mapping(part.get("estimate")).get("metric") for part in parts if part.get("estimate")), None)
    headers = ["rows where", "rows", str(first or "value"), "all others", "p", "than the others"]
    label = any(part.get("column") == "label" for part in parts)
    if label and str(first) == METRICS["accuracy"].title:
        below.insert(0, "Of the rows of one label the accuracy is that label's recall; that of all others is theirs.")
    below.insert(0, "p: that a part and all other rows do not differ, corrected for the number of parts.")
    return Grid(f"Parts of the rows: {name}", headers, rows, below)


def sliced(evaluation: Evaluation, own: Mapping[str, Any]) -> Metric:
    """The metric of an estimate, which names it by its title or its key."""
    said = own.get("metric")
    return next((metric for metric in METRICS.values() if metric.title == said), metric_of(evaluation, str(said)))


def robustness(evaluation: Evaluation) -> Grid | None:
    """What noise in the texts costs."""
    rows: list[list[Cell]] = []
    notes: list[Cell] = []
    for name, noises in dicts(evaluation.robustness).items():
        for noise, its in dicts(noises).items():
            key = str(its.get("metric") or evaluation.best_metric)
            key = next((known for known, metric in METRICS.items() if metric.title == key), key)
            cells = compared(metric_of(evaluation, key), its, pointer("evaluation", "robustness", name, noise))
            rows.append([name, noise.replace("_", " "), *cells])
            notes += [str(its["note"])] if its.get("note") else []
    headers = ["adapter", "noise", *HEADERS]
    below: list[Cell] = ["The same rows with the noise and without it: the difference is what the noise costs.", *notes]
    return Grid("Noise in the texts", headers, rows, below, left=3) if rows else None


def errors(evaluation: Evaluation, name: str) -> Grid | None:
    """The worst rows with their texts."""
    found = worst(evaluation, name)
    if not found:
        return None
    path = ("evaluation", "errors", name)
    rows: list[list[Cell]] = [
        [number(its.get("row"), Metric("", ".0f"), pointer(*path, place, "row")), short(said(its.get("text"))),
         short(said(its.get("expected"))), short(said(its.get("answer"))),
         number(its.get("score"), PLAIN, pointer(*path, place, "score"))]
        for place, its in enumerate(found[:ERRORS])
    ]  # fmt: skip
    below: list[Cell] = [f"{len(rows)} of {len(found)}; all are in report.json."] if len(found) > len(rows) else []
    return Grid(f"Worst errors: {name}", ["row", "text", "expected", "answer", "score"], rows, below, texts=True)


def worst(evaluation: Evaluation, name: str) -> list[dict[str, Any]]:
    """The worst rows of ``name``, those that are what `errors` of an evaluation says."""
    return entries(mapping(evaluation.errors).get(name))


def said(value: Any) -> str:
    """An answer or a text in one string."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {said(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(said, value))
    return shown(value, PLAIN) if isinstance(value, float) else str(value)

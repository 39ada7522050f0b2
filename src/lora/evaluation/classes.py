"""Tables of classes: precision, recall and F1 of each, and what is confused with what."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora.core.routing import BASE
from lora.evaluation.grid import Cell, Grid, pointer
from lora.evaluation.lenient import dicts
from lora.evaluation.shown import COUNT, SHARE, Metric, change, ends, number, shown
from lora.plural import number_of

if TYPE_CHECKING:
    from lora.evaluation.result import Evaluation

MATRIX = 15  # classes; a larger matrix is wider than a page and mostly zeros
PAIRS = 15  # most confused pairs shown instead


def grids(evaluation: Evaluation, name: str) -> list[Grid]:
    """All tables of this file that there is something for."""
    return [grid for grid in (per_class(evaluation, name), confusion(evaluation, name)) if grid]


def per_class(evaluation: Evaluation, name: str) -> Grid | None:
    """Precision, recall and F1 of every class, this with its interval, and the base's F1 beside; worst first where
    there are many. The difference has no colour, as no test stands behind it."""
    classes: dict[str, dict[str, Any]] | None = evaluation[name].get("per_class")
    if not classes:
        return None
    base = evaluation[evaluation.base].get("per_class") if evaluation.base else None
    headers = ["class", "support", "precision", "recall", "F1"] + (
        [f"F1 {evaluation.label(BASE)}", "difference"] if base else []
    )
    grid = Grid(f"Per class: {name}", headers, [])
    order = list(classes)
    if len(order) > MATRIX:
        order.sort(key=lambda each: (not classes[each]["support"], classes[each]["f1"]))
        grid.below.append("Sorted by F1, the worst first; classes without support last.")
    form, path, intervals = Metric("", better=0), ("evaluation", "metrics"), dicts(evaluation.class_intervals).get(name)
    if intervals:
        grid.below.append(
            "In brackets 95 % intervals: over other rows drawn like these. Of 20 classes one lies outside its own."
        )
    for each in order:
        row, own = classes[each], (*path, name, "per_class", each)
        cells: list[Cell] = [each, number(row["support"], COUNT, pointer(*own, "support"))]
        cells += [number(row[key], form, pointer(*own, key)) for key in ("precision", "recall")]
        f1 = number(row["f1"], form, pointer(*own, "f1"))
        both = ends(dicts(intervals).get(each, {}), form, pointer("evaluation", "class_intervals", name, each))
        cells.append([f1, " (", both[0], "–", both[1], ")"] if both else f1)
        if base:
            at, before = pointer(*path, BASE, "per_class", each, "f1"), base.get(each, {}).get("f1")
            cells += [number(before, form, at), change(row["f1"], before, form, pointer(*own, "f1"), at)]
        grid.rows.append(cells)
    return grid


def confusion(evaluation: Evaluation, name: str) -> Grid | None:
    """The confusion matrix (a line per true class); the most confused pairs where it would be too large."""
    found = evaluation[name].get("confusion")
    if not found:
        return None
    labels, matrix = found["labels"], found["matrix"]
    if len(labels) > MATRIX:
        return confused_pairs(labels, matrix, name)
    rows: list[list[Cell]] = [
        [labels[i], *(number(count, COUNT, cell_path(name, i, j)) for j, count in enumerate(counts))]
        for i, counts in enumerate(matrix)
    ]
    return Grid(f"Confusions: {name}", ["true ↓ predicted →", *labels], rows)


def cell_path(name: str, true: int, predicted: int) -> str:
    """Where a cell of the confusion matrix of ``name`` stands."""
    return pointer("evaluation", "metrics", name, "confusion", "matrix", true, predicted)


def confused_pairs(labels: list[str], matrix: list[list[int]], name: str, most: int = PAIRS) -> Grid:
    """The ``most`` confused pairs of classes."""
    size = range(len(labels))
    pairs = sorted(
        ((matrix[i][j], i, j) for i in size for j in size if i != j and matrix[i][j]),
        key=lambda pair: (-pair[0], *pair[1:]),
    )
    rows: list[list[Cell]] = [
        [labels[i], labels[j], number(count, COUNT, cell_path(name, i, j)), shown(count / sum(matrix[i]), SHARE)]
        for count, i, j in pairs[:most]
    ]
    hidden = len(pairs) - len(rows)
    below: list[Cell] = []
    if hidden:
        below = [f"{number_of(hidden, 'more pair')}, each with {number_of(pairs[len(rows)][0], 'row')} or fewer."]
    if not pairs:
        below = ["No row was taken for another class."]
    return Grid(f"Most confused: {name}", ["true", "predicted", "rows", "of the true class"], rows, below)

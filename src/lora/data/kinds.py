"""The kind of task that a column of labels asks for, by its values."""

from __future__ import annotations

import math
from typing import Any

from lora.data.problems import is_missing

NUMBERS_AS_CLASSES = 50  # whole numbers of more distinct values than this (and than a tenth of the rows) are a quantity


def task_of_labels(values: list[Any]) -> tuple[str | None, str]:
    """The task that a column of labels asks for, and why.

    Lists: multi-label. Numbers with a fraction: regression. Whole numbers: regression if there are more than 50
    distinct ones and more than a tenth of the rows, unless they are 0…n-1 or 1…n with two rows each on average
    (numbered classes); else classification, like anything else. Strings that are all numbers (CSV) count as numbers.
    None where the labels are strings that hardly ever repeat: answers, more likely than classes.
    """
    values = [value for value in values if not is_missing(value) and value != ""]
    if any(isinstance(value, (list, tuple, set)) for value in values):
        return "multi-label", "the labels are lists"
    numbers = [_number(value) for value in values]
    if not values or any(number is None for number in numbers) or all(isinstance(value, bool) for value in values):
        different = len({str(value) for value in values})
        if different > max(NUMBERS_AS_CLASSES, len(values) / 2):
            return None, "a different text in most rows"
        return "classification", f"{different} different labels"
    distinct = {number for number in numbers if number is not None and math.isfinite(number)}
    if any(not number.is_integer() for number in distinct):
        return "regression", "the labels are numbers with fractions; data.task classification takes them as names"
    numbered = bool(distinct) and min(distinct) in (0, 1) and max(distinct) - min(distinct) + 1 == len(distinct)
    classes = numbered and len(values) >= 2 * len(distinct)
    how_many = f"{len(distinct)} different whole numbers"
    if len(distinct) > max(NUMBERS_AS_CLASSES, len(values) / 10) and not classes:
        return "regression", f"the labels are {how_many}; data.task classification takes them as names"
    return "classification", f"{how_many}; data.task regression predicts a quantity"


def _number(value: Any) -> float | None:
    if not isinstance(value, (str, int, float)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None

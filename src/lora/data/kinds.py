"""What a column of labels holds, by its values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from enum import Enum
from typing import Any

from lora.data.problems import is_missing, written_list

NUMBERS_AS_CLASSES = 50  # whole numbers of more distinct values than this (and than a tenth of the rows) are a quantity


class Kind(Enum):
    """What labels are."""

    CLASSES = "one name or class number each"
    LISTS = "a list of names each"
    QUANTITY = "a number that measures something"
    TEXTS = "a different text in most rows"


def kind_of_labels(column: Iterable[Any]) -> tuple[Kind, str]:
    """What the labels of a column are, and how that is seen.

    Numbers with a fraction are a quantity. Whole numbers are one if there are more than 50 distinct ones and more than
    a tenth of the rows, unless they are 0…n-1 or 1…n with two rows each on average (numbered classes). Strings that are
    all numbers (CSV) count as numbers. Strings that hardly ever repeat are answers, more likely than classes.
    """
    total, distinct_values = 0, dict[Any, Any]()
    for value in column:
        if isinstance(value, (list, tuple, set)):
            return Kind.LISTS, "the labels are lists"
        if not is_missing(value) and value != "":
            total += 1
            distinct_values.setdefault((type(value), str(value)), value)
    values = list(distinct_values.values())
    if values and all(isinstance(value, str) and written_list(value) is not None for value in values):
        return Kind.LISTS, "the labels are lists, written as text"
    numbers = [_number(value) for value in values]
    if not values or any(number is None for number in numbers) or all(isinstance(value, bool) for value in values):
        different = len({str(value) for value in values})
        if different > max(NUMBERS_AS_CLASSES, total / 2):
            return Kind.TEXTS, Kind.TEXTS.value
        return Kind.CLASSES, f"{different} different labels"
    distinct = {number for number in numbers if number is not None and math.isfinite(number)}
    if any(not number.is_integer() for number in distinct):
        return Kind.QUANTITY, "the labels are numbers with fractions; data.task classification takes them as names"
    numbered = bool(distinct) and min(distinct) in (0, 1) and max(distinct) - min(distinct) + 1 == len(distinct)
    classes = numbered and total >= 2 * len(distinct)
    how_many = f"{len(distinct)} different whole numbers"
    if len(distinct) > max(NUMBERS_AS_CLASSES, total / 10) and not classes:
        return Kind.QUANTITY, f"the labels are {how_many}; data.task classification takes them as names"
    return Kind.CLASSES, f"{how_many}; data.task regression predicts a quantity"


def _number(value: Any) -> float | None:
    if not isinstance(value, (str, int, float)):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None

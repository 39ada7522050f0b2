"""What tasks have in common whose answers are labels: one of several, or any number of them."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, ClassVar

from lora.data.rows import named, origins, places
from lora.errors import DataError
from lora.tasks.base import Row, Task
from lora.tasks.sequence import SequenceTask, label_problem

KINDS = {"bool": bool, "int": int, "float": float, "str": str}


class LabelsTask(SequenceTask):
    """A text (or two) and labels out of those seen in training.

    Arguments:
        labels: their names, in the order of the model's outputs.
        label_kind: what labels were in the training data (str, int, float, bool); predictions are given back as that.
        text, text_pair, label: names of the columns.
    """

    problem_type: ClassVar[str]  # of the model's configuration

    def __init__(
        self,
        labels: list[str],
        label_kind: str = "str",
        text: str = "text",
        text_pair: str | None = None,
        label: str = "label",
    ) -> None:
        super().__init__(text, text_pair, label)
        self.labels: list[str] = list(labels)
        self.label_kind = label_kind
        self._index = {name: place for place, name in enumerate(self.labels)}
        self._mixed: list[str] = []

    @classmethod
    def from_chunks(cls, chunks: Iterable[list[Row]], columns: Mapping[str, str]) -> Task:
        """Every row is looked at; one of each label teaches as much as all of them."""
        task, kept = cls([], **columns), dict[str, Row]()
        for chunk in chunks:
            task.read(chunk)
            for row in chunk:
                label = row.get(columns["label"])
                kept.setdefault(f"{type(label).__name__} {label!r}", row)
        return cls.from_rows(list(kept.values()), columns)

    @classmethod
    def made_up_labels(cls, count: int) -> list[Any]:
        return [f"{number}" for number in range(count)]

    def remarks(self) -> list[str]:
        return [*self._mixed, *look_alikes(self.labels)]

    def state(self) -> dict[str, Any]:
        return {**super().state(), "labels": self.labels, "label_kind": self.label_kind}

    def model_options(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": dict(self._index),
            "problem_type": self.problem_type,
        }

    def restore(self, name: str) -> Any:
        """The label called ``name`` as it was in the training data."""
        return typed(name, self.label_kind)


def kind_of(values: list[Any]) -> str:
    """The type that labels share (bool, int, float, str); a mixture is taken as strings, of int and float as float."""
    kinds = {type(value) for value in values if label_problem(value) is None}
    for name, allowed in (("bool", {bool}), ("int", {int}), ("float", {int, float})):
        if kinds and kinds <= allowed:
            return name
    return "str"


def mixed_types(values: Iterable[Any], kind: str) -> list[str]:
    """A sentence about labels of several types, which are taken as they are written; none where types agree.

    ``kind``: what `kind_of` makes of them.
    """
    if kind != "str":
        return []
    types: dict[str, dict[str, Any]] = {}
    for value in values:
        if label_problem(value) is None:
            types.setdefault(name_of(value, kind), {}).setdefault(type(value).__name__, value)
    every = list(dict.fromkeys(name for of_one in types.values() for name in of_one))
    if len(every) < 2:
        return []
    same = [" and ".join(map(repr, of_one.values())) for of_one in types.values() if len(of_one) > 1]
    told = f"; one label each are {', '.join(same[:5])}" if same else ""
    return [f"Labels are of several types ({', '.join(sorted(every))}) and taken as they are written{told}."]


def name_of(value: Any, kind: str) -> str:
    """The name of the class ``value``: the same for 1, 1.0 and "1" where training labels were whole numbers."""
    text = str(value).strip()
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.capitalize()
    if kind in ("int", "float") and not isinstance(value, bool):
        try:
            number = float(text)
        except ValueError:
            return text
        if kind == "float":
            return str(number)
        # int(text) first: beyond 2**53 the way over a float changes the number
        return str(int(text)) if text.lstrip("+-").isdigit() else (str(int(number)) if number.is_integer() else text)
    return text


def typed(name: str, kind: str) -> Any:
    """The label called ``name`` as it was in the training data."""
    return name == "True" if kind == "bool" else KINDS[kind](name)


def sort_names(names: set[str]) -> list[str]:
    """Sorted: as numbers where all are numbers (10 after 9; CSV gives them as strings), else by code point."""
    try:
        numbers = {name: float(name) for name in names}
    except ValueError:
        return sorted(names)
    # A class may be called "nan" or "inf"; NaN would make the order depend on where it started.
    return (
        sorted(names, key=lambda name: (numbers[name], name))
        if all(map(math.isfinite, numbers.values()))
        else sorted(names)
    )


def look_alikes(names: list[str]) -> list[str]:
    """A sentence about labels that differ in case, inner spaces, the spelling of a number or truth value, or in what no
    reader sees (é as one character or two) alone: slips, more likely than not."""
    alike: dict[str, list[str]] = {}
    for name in names:
        key = " ".join(unicodedata.normalize("NFC", name).casefold().split())
        if re.fullmatch(r"[+-]?\d+(\.\d*)?(e[+-]?\d{1,3})?", key):
            key = f"{Decimal(key).normalize():f}"
        alike.setdefault({"true": "1", "false": "0"}.get(key, key), []).append(name)
    groups = [" and ".join(map(_shown(group), group)) for group in alike.values() if len(group) > 1]
    if not groups:
        return []
    more = f" and {len(groups) - 5} more" if len(groups) > 5 else ""
    return [f"Labels that look alike are taken as different ones: {', '.join(groups[:5])}{more}."]


def _shown(names: list[str]) -> Callable[[str], str]:
    """How ``names`` are told apart by a reader: with escapes where they would look the same."""
    return ascii if len({unicodedata.normalize("NFC", name) for name in names}) < len(names) else repr


def refuse_unseen(labels: list[list[str]], rows: list[Row], known: list[str]) -> None:
    """Raise DataError where ``rows``, whose ``labels`` these are, have some that training has not seen."""
    seen, unseen = set(known), dict[str, list[int]]()
    for index, names in enumerate(labels):
        for name in names:
            if name not in seen:
                unseen.setdefault(name, []).append(index)
    if not unseen:
        return
    lines = [f"{named(rows)}not in the training data, but here as labels ({len(unseen)}):"]
    for name, indices in sorted(unseen.items(), key=lambda item: -len(item[1]))[:8]:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
        count = f"{len(indices)} row{'s' if len(indices) > 1 else ''}"
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        lines.append(f"  {name!r}: {count}{hint}: {places(rows, indices, with_names=len(origins(rows)) > 1)}")
    if len(unseen) > 8:
        lines.append(f"  … and {len(unseen) - 8} more labels")
    listed = ", ".join(known[:12]) + (" …" if len(known) > 12 else "")
    lines.append(f"known: {listed}; correct the labels, remove these rows, or add rows of these classes to training")
    raise DataError("\n".join(lines))

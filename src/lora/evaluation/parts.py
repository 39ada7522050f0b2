"""Parts of the rows, by label, length and whatever columns are asked for; and the rows with the largest loss."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from lora.data.streams import ListOrStream
from lora.errors import ConfigError, DataError
from lora.statistics.slices import SMALLEST, Slices, by_slice
from lora.tasks import Encoded, Row, Task
from lora.tasks.figures import Figures
from lora.tasks.inference import Outcome
from lora.tasks.tokens import IGNORED

ERRORS = 20
Columns = dict[str, list[Any]]


def columns_of(task: Task, encoded: Encoded, rows: Sequence[Row] | None, names: Sequence[str]) -> Columns:
    """Of each example the values by which rows are parted: length in tokens, labels, and the columns ``names``.

    Raises ConfigError where a column is not there.
    """
    examples = encoded.examples
    out: Columns = {"length": list(encoded.lengths), **_labels(task, examples)}
    if names and rows is None:
        raise ConfigError("slices: columns can be named where data are rows, not where they are tokenised already")
    for name in names:
        assert rows is not None
        if not any(name in row for row in rows):
            there = ", ".join(dict.fromkeys(str(key) for row in rows for key in row))
            raise ConfigError(f"slices: no row has the column {name!r}; columns there are: {there}")
        out[name] = [rows[example.get("row", place)].get(name) for place, example in enumerate(examples)]
    return out


def _labels(task: Task, examples: Sequence[dict[str, Any]]) -> Columns:
    if task.learns not in ("label", "labels", "number"):
        return {}
    each = [task.labels_in(target) for target in task.targets(examples)]
    if task.learns != "labels":
        return {"label": [own[0] for own in each]}
    counts = Counter(label for own in each for label in set(own))
    kept = [label for label, count in counts.items() if SMALLEST <= count <= len(each) - SMALLEST]
    return {f"with label {label}": ["yes" if label in own else None for own in each] for label in sorted(kept, key=str)}


def slices_of(
    task: Task, found: Figures, examples: Sequence[dict[str, Any]], columns: Columns, resamples: int, seed: int = 0
) -> Slices:
    """The metric of `sliced_by` in each part, the weakest first."""
    metric, rows = found[sliced_by(task, found)]
    if len(rows) == len(examples):
        own = dict(columns)
    else:  # sentences in several windows are a row each
        firsts: dict[Any, int] = {}
        for place, example in enumerate(examples):
            firsts.setdefault(example.get("row", place), place)
        own = {name: [values[place] for place in firsts.values()] for name, values in columns.items()}
        own["length"] = list(_summed([example.get("row") for example in examples], columns["length"]).values())
    own["length"] = _quarters(own["length"])
    return by_slice(metric, rows, own, seed=seed, resamples=resamples)


def _quarters(lengths: Sequence[int]) -> list[str]:
    """For each length the quarter of all that it is in, by its ends; those of one length stay together."""
    own = np.asarray(lengths)
    place = np.searchsorted(np.quantile(own, (0.25, 0.5, 0.75)), own, side="left")
    names = {int(part): f"{own[place == part].min()} to {own[place == part].max()} tokens" for part in np.unique(place)}
    return [names[int(part)] for part in place]


def sliced_by(task: Task, found: Figures) -> str:
    """The share of rows that are right, where rows are right or not: macro averages inside one class mean little. Else
    what the task is judged by."""
    proportion = "accuracy" in found and found["accuracy"][0].proportion
    return "accuracy" if proportion else task.best_metric


def _summed(keys: Sequence[Any], values: Sequence[float]) -> dict[Any, float]:
    out: dict[Any, float] = {}
    for key, value in zip(keys, values, strict=True):
        out[key] = out.get(key, 0) + value
    return out


def worst_of(
    task: Task, outcome: Outcome, encoded: Encoded, rows: ListOrStream | None, tokenizer: Any, most: int = ERRORS
) -> list[dict[str, Any]]:
    """The rows that are wrong with the largest loss (of a word or token the mean), those of most first.

    A stream of ``rows`` is read once more, up to the last of them. Without rows the text is what the tokens say.
    ``row`` counts from 1, as in the file; ``expected`` and ``answer`` are None where no answer is written.
    """
    examples = encoded.examples
    ids = [example.get("row", place) for place, example in enumerate(examples)]
    losses, counts = _summed(ids, outcome.losses), _summed(ids, outcome.counts)
    scores = {key: losses[key] / counts[key] for key in losses if counts[key]}
    places: dict[Any, list[int]] = {}
    for place, key in enumerate(ids):
        places.setdefault(key, []).append(place)
    wrong: list[tuple[Any, Any, Any]] = []
    for key in sorted(scores, key=lambda key: -scores[key]):
        if len(wrong) == most:
            break
        told = [task.told(outcome.predictions[place], task.targets([examples[place]])[0]) for place in places[key]]
        expected, answer = told[0] if len(told) == 1 else map(_joined, zip(*told, strict=True))
        if expected is not None and expected == answer:
            continue
        if expected is None:
            expected = _written(encoded, places[key], tokenizer)
        wrong.append((key, expected, answer))
    found = _rows_at(rows, {key for key, *_ in wrong})
    return [
        {
            "row": getattr(found.get(key), "number", key + 1),
            "text": _text(task, found.get(key), [examples[place] for place in places[key]], tokenizer),
            "expected": expected,
            "answer": answer,
            "score": scores[key],
        }
        for key, expected, answer in wrong
    ]


def _rows_at(rows: ListOrStream | None, places: set[int]) -> dict[int, Row]:
    if rows is None or not places:
        return {}
    if isinstance(rows, list):
        return {place: rows[place] for place in places}
    try:
        return {place: row for place, row in enumerate(islice(rows, max(places) + 1)) if place in places}
    except (DataError, OSError):  # gone or changed since: what was trained is not lost to it, and tokens have the text
        return {}


def _joined(parts: Sequence[Any]) -> Any:
    return [item for part in parts for item in part] if isinstance(parts[0], list) else parts[0]


def _written(encoded: Encoded, places: Sequence[int], tokenizer: Any) -> str | None:
    """The answer that the data have, of a task that writes one."""
    if encoded.answers:
        return "".join(encoded.answers[place] for place in places)
    labels = [encoded.examples[place].get("labels") for place in places]
    if tokenizer is None or not all(isinstance(own, list) for own in labels):
        return None
    ids = [label for own in labels for label in own or () if label != IGNORED]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def _text(task: Task, row: Row | None, examples: Sequence[dict[str, Any]], tokenizer: Any) -> str | None:
    """What the model was asked with, from the row where that is there, else from its tokens."""
    if row is not None:
        cells = [row.get(given.column) for given in task.inputs()]
        return "\n".join(_read(cell) for cell in cells if cell is not None)
    ids = [token for one in examples for token in one.get("input_ids") or one.get("chosen") or ()]
    return str(tokenizer.decode(ids, skip_special_tokens=True)) if tokenizer is not None and ids else None


def _read(cell: Any) -> str:
    if isinstance(cell, (list, tuple)):
        if all(isinstance(one, dict) for one in cell):
            return "\n".join(f"{one.get('role', '')}: {one.get('content', '')}" for one in cell)
        return " ".join(map(str, cell))
    return str(cell)

"""Labels that are probably wrong, among the rows of a task with labels: confident disagreement of held-out answers.

See `lora.statistics.label_errors`. Several repeats and seeds speak with their mean probability.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lora.cross_validation.material import Material
from lora.cross_validation.runs import Run, Setup
from lora.cross_validation.training import Answered
from lora.data.rows import places
from lora.statistics.label_errors import confident_disagreement
from lora.statistics.rows import Array
from lora.tasks.words import words_of

Line = dict[str, Any]


def label_errors(material: Material, setup: Setup, answers: Mapping[Run, Answered]) -> list[Line] | None:
    """Labels in doubt, the largest margin first; None: of this task none can be told.

    Each has ``row`` (from 1), ``place`` (file and line), ``text``, ``label``, ``suggested``, their probabilities
    ``p_label`` and ``p_suggested``, and ``margin``. Of several labels ``label`` is one of them, and ``given`` whether
    the row has it; of words ``word`` is the one and ``at`` its place (from 0).
    """
    task = material.task
    if task.learns not in ("label", "labels"):
        return None
    its = [(run, found) for run, found in answers.items() if run.setup is setup and not found.outcome.error]
    if task.per_token:
        return _of_words(material, its)
    # Of each example the mean over repeats and seeds of what it was answered while it was held out.
    sums: dict[int, Array] = {}
    times: dict[int, int] = {}
    targets = task.targets(material.prepared.train.examples)
    true: dict[int, Any] = {}
    for run, found in its:
        at = material.examples(run.fold.held)
        stated = task.stated(found.predictions, [targets[place] for place in at])
        if stated is None:
            return None
        for place, row, label in zip(at.tolist(), *stated, strict=True):
            sums[place] = sums.get(place, np.zeros_like(row)) + row
            times[place] = times.get(place, 0) + 1
            true[place] = label
    at_all = sorted(sums)
    p = np.stack([sums[place] / times[place] for place in at_all])
    given = np.stack([true[place] for place in at_all])
    row_of = [int(material.example_rows[place]) for place in at_all]
    if given.ndim == 1:
        lines = [
            _line(material, row_of[its.row], task.labels[its.given], task.labels[its.suggested], its)
            for its in confident_disagreement(p, given.astype(int))
        ]
        return lines
    lines = []
    for column, name in enumerate(task.labels):
        both = np.column_stack([1 - p[:, column], p[:, column]])
        lines += [
            {**_line(material, row_of[its.row], name, name if its.suggested else None, its), "given": bool(its.given)}
            for its in confident_disagreement(both, given[:, column].astype(int))
        ]
    return sorted(lines, key=lambda line: -line["margin"])


def _of_words(material: Material, its: Sequence[tuple[Run, Answered]]) -> list[Line]:
    """As `label_errors`, of each word by itself."""
    task: Any = material.task
    targets = task.targets(material.prepared.train.examples)
    words = [len(task.labels_in(target)) for target in targets]
    starts = np.cumsum([0, *words])  # of each example the place of its first word among all
    sums, times = np.zeros((int(starts[-1]), len(task.labels))), np.zeros(int(starts[-1]))
    for run, found in its:
        assert found.probabilities is not None, "kept where labels are of words"
        at = np.concatenate([np.arange(starts[e], starts[e + 1]) for e in material.examples(run.fold.held)])
        sums[at] += found.probabilities
        times[at] += 1
    index = {tag: place for place, tag in enumerate(task.labels)}
    given = np.asarray([index[tag] for target in targets for tag in task.labels_in(target)])
    answered = np.flatnonzero(times)
    p = sums[answered] / times[answered, None]
    example = np.searchsorted(starts, answered, side="right") - 1
    # A row's windows follow one another, and each of its words is answered for once.
    first: dict[int, int] = {}
    for number, row in enumerate(material.example_rows.tolist()):
        first.setdefault(row, int(starts[number]))
    out = []
    for doubt in confident_disagreement(p, given[answered]):
        row = int(material.example_rows[example[doubt.row]])
        word = int(answered[doubt.row]) - first[row]
        line = _line(material, row, task.labels[doubt.given], task.labels[doubt.suggested], doubt)
        said = words_of(material.rows[int(material.numbers[row])][task.tokens])
        out.append({**line, "text": " ".join(said), "word": said[word], "at": word})
    return out


def _line(material: Material, row: int, label: Any, suggested: Any, doubt: Any) -> Line:
    number = int(material.numbers[row])
    own = material.rows[number]
    text = " | ".join(str(own[its.column]) for its in material.task.inputs() if own.get(its.column) is not None)
    return {
        "row": number + 1, "place": places([own], [0]), "text": text, "label": label, "suggested": suggested,
        "p_label": doubt.p_given, "p_suggested": doubt.p_suggested, "margin": doubt.margin,
    }  # fmt: skip

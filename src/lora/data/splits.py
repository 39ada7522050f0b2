"""Held-out rows where the user gave none: stratified, repeatable, and no input on both sides."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from lora.data.rows import Row, named
from lora.errors import DataError

SHARE = 0.1
FEWEST, MOST = 20, 2000  # fewer rows tell little; more cost time at every evaluation and tell hardly more
LINE = 200  # characters: a line that ends so close to the cut is kept whole
REMEDY = "give more rows, name held-out data as data.validation, or train on all rows with data.held_out 0"


def hold_out(
    rows: list[Row], inputs: Sequence[str], share: float | None, seed: int, classes: str | None = None
) -> tuple[list[int], list[int], str]:
    """Split ``rows`` in training and held-out ones: (training indices, held-out indices, a sentence about it).

    Rows of the same input (the cells of the columns ``inputs``; case and white space aside) stay together: an answer
    seen in training is no test. With a column of ``classes`` the split is stratified by its values, and each class of a
    single input goes to training; else it is at random. ``share`` None: a tenth, at least about 20 rows (but no more
    than a third) and at most about 2000. The same rows and ``seed`` give the same split.

    Raises DataError where fewer than two different inputs are left to split, or too few rows would be left to train on:
    one at least, and one of each class.
    """
    members: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(_input(row, inputs), []).append(index)
    groups = list(members.values())
    if len(groups) < 2:
        raise DataError(
            f"{named(rows)}{len(rows)} rows with {len(groups)} different inputs: nothing can be held out for "
            f"evaluation; {REMEDY}"
        )
    if share is None:
        wanted = min(max(round(SHARE * len(rows)), min(FEWEST, len(rows) // 3)), MOST)
    else:
        wanted = round(share * len(rows))
        _refuse_too_large(rows, share, wanted, classes)
    # An input that fills more than the wanted share by itself (an empty prompt, say) is training data.
    small = [group for group in groups if len(group) <= max(wanted, 1)] or groups
    # Groups are drawn, not rows: a share of the groups is on average that share of their rows.
    number = round(wanted * len(small) / sum(map(len, small)))
    number = min(max(number, 1), len(small) if len(small) < len(groups) else len(groups) - 1)
    if classes is None:
        held_groups, how = _at_random(len(small), number, seed), "at random"
    else:
        labels = [_label(row, classes) for row in rows]
        drawn, number, how = _stratified([labels[group[0]] for group in small], number, seed)
        held_groups = _keeping_classes(drawn, number, [[labels[i] for i in group] for group in small], labels)
        if not held_groups:
            raise DataError(
                f"{named(rows)}every class has a single input: held out, it could not be trained on; {REMEDY}"
            )
    held = sorted(index for place in held_groups for index in small[place])
    kept = set(held)
    train = [index for index in range(len(rows)) if index not in kept]
    together = len(rows) - len(groups)
    same = f"; rows of the same input stay together ({together} repeated)" if together else ""
    return train, held, f"Held out {len(held)} of {len(rows)} rows for evaluation, {how}{same}."


def hold_out_text(rows: list[Row], column: str, share: float | None, seed: int) -> tuple[list[Row], list[Row], str]:
    """Split plain text in training and held-out rows: (training rows, held-out rows, a sentence about it).

    Whole documents are held out as in `hold_out`, out of those small enough for several to fit the held-out part. Where
    these are too few, as in a book, or a file beside which the others are small, the end of every document is held out:
    after a word, and after a line where one ends close by.

    Raises DataError where not a single document has words to cut between, or for what `hold_out` refuses.
    """
    part = SHARE if share is None else share
    sizes = [len(str(row.get(column, ""))) for row in rows]
    wanted = part * sum(sizes)
    small = [index for index, size in enumerate(sizes) if size <= wanted / 2]
    # Drawn among these, which are half of the text at least: so much of the share asked for.
    if sum(sizes[index] for index in small) >= sum(sizes) / 2:
        _, drawn, note = hold_out([rows[index] for index in small], [column], share, seed)
        held = {small[place] for place in drawn}
        train = [row for index, row in enumerate(rows) if index not in held]
        return (
            train,
            [rows[index] for index in sorted(held)],
            note.replace(f"of {len(small)} rows", f"of {len(rows)} rows"),
        )
    train, ends = list[Row](), list[Row]()
    for row in rows:
        place = _end_of_word(str(row.get(column, "")), part)
        train.append(_with(row, column, str(row[column])[:place]) if place else row)
        ends += [_with(row, column, str(row[column])[place:])] if place else []
    if not ends:
        raise DataError(f"{named(rows)}{len(rows)} texts too short to hold out the end of one; {REMEDY}")
    which = (
        "the document" if len(rows) == 1 else f"each of the {len(ends)} documents, which are few or unlike in length"
    )
    return train, ends, f"Held out the last {part:.0%} of {which}, for evaluation."


def _end_of_word(text: str, part: float) -> int:
    """Where the last ``part`` of ``text`` begins; 0: it cannot be cut there."""
    start = len(text.rstrip()) - max(round(part * len(text)), 1)
    line = text.rfind("\n", max(start - LINE, 0), start + 1)
    place = line if line > 0 else max(text.rfind(" ", 0, start + 1), text.rfind("\n", 0, start + 1))
    return place + 1 if place > 0 and text[:place].strip() and text[place:].strip() else 0


def _with(row: Row, column: str, text: str) -> Row:
    """``row`` with another text, still knowing its place."""
    changed = copy.copy(row)
    changed[column] = text
    return changed


def _refuse_too_large(rows: list[Row], share: float, wanted: int, classes: str | None) -> None:
    """Raise DataError where ``wanted`` held-out rows would leave too few to train on."""
    left = len(rows) - wanted
    needed = len({_label(row, classes) for row in rows}) if classes else 1
    if left < needed:
        why = f"there are {needed} classes and each needs a row" if classes else "at least one is needed"
        raise DataError(
            f"{named(rows)}data.held_out {share:g} of {len(rows)} rows would leave {left} to train on, and {why}; "
            "hold out less, or give more rows"
        )


def _stratified(labels: list[str], number: int, seed: int) -> tuple[list[int], int, str]:
    """Groups in the order in which to hold them out, how many of them (one of each class at least), and how."""
    from sklearn.model_selection import train_test_split

    counts = Counter(labels)
    usable = [place for place, label in enumerate(labels) if counts[label] > 1]
    single = sum(1 for count in counts.values() if count == 1)
    classes = len(counts) - single
    if classes == 0:
        return _at_random(len(labels), len(labels), seed), number, "at random: no class has two inputs to split"
    alone = f"; {single} {'class' if single == 1 else 'classes'} of a single row went to training" if single else ""
    # sklearn needs a place for each class on both sides.
    size = min(max(number, classes), len(usable) - classes)
    raised = f", one of each class at least (asked: {number})" if size > number else ""
    _, held = train_test_split(
        usable, test_size=size, random_state=seed, shuffle=True, stratify=[labels[place] for place in usable]
    )
    return sorted(held), size, f"stratified by label{raised}{alone}"


def _keeping_classes(drawn: list[int], number: int, groups: list[list[str]], labels: list[str]) -> list[int]:
    """Of ``drawn``, the first ``number`` that leave a row of every class to training.

    ``groups``: the labels of each group's rows, which may differ. ``labels``: of all rows.
    """
    left, held = Counter(labels), list[int]()
    for place in drawn:
        own = Counter(groups[place])
        if len(held) < number and all(left[label] > count for label, count in own.items()):
            left -= own
            held.append(place)
    return held


def _at_random(size: int, number: int, seed: int) -> list[int]:
    return [int(place) for place in np.random.default_rng(seed).permutation(size)[:number]]


def _input(row: Row, columns: Sequence[str]) -> tuple[str, ...]:
    """What the model sees of a row, as a key."""
    return tuple(" ".join(str(row.get(name, "")).casefold().split()) for name in columns)


def _label(row: Row, column: str) -> str:
    return str(row.get(column)).strip()

"""Held-out rows where the user gave none: stratified, repeatable, and no input on both sides."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from lora.data.columns import Columns
from lora.errors import DataError

Row = dict[str, Any]
SHARE = 0.1
FEWEST, MOST = 20, 2000  # fewer rows tell little; more cost time at every evaluation and tell hardly more


def hold_out(rows: list[Row], columns: Columns, share: float | None, seed: int) -> tuple[list[int], list[int], str]:
    """Split ``rows`` in training and held-out ones: (training indices, held-out indices, a sentence about it).

    Rows of the same input (text, text pair or prompt; case and white space aside) stay together: an answer seen in
    training is no test. Classification is stratified by label, each class of a single input goes to training; other
    tasks are split at random. ``share`` None: a tenth, at least about 20 rows (but no more than a third) and at most
    about 2000. The same rows and ``seed`` give the same split. Raises DataError where fewer than two different inputs
    are left to split.
    """
    members: dict[Any, list[int]] = {}
    for index, row in enumerate(rows):
        members.setdefault(_input(row, columns), []).append(index)
    groups = list(members.values())
    if len(groups) < 2:
        raise DataError(
            f"{len(rows)} rows with {len(groups)} different inputs: nothing can be held out for evaluation; give "
            "more rows or name held-out data as data.validation"
        )
    if share is None:
        wanted = min(max(round(SHARE * len(rows)), min(FEWEST, len(rows) // 3)), MOST)
    else:
        wanted = round(share * len(rows))
    # An input that fills more than the wanted share by itself (an empty prompt, say) is training data.
    small = [group for group in groups if len(group) <= max(wanted, 1)] or groups
    # Groups are drawn, not rows: a share of the groups is on average that share of their rows.
    number = round(wanted * len(small) / sum(map(len, small)))
    number = min(max(number, 1), len(small) if len(small) < len(groups) else len(groups) - 1)
    if columns.task == "classification":
        held_groups, how = _stratified([_label(rows[group[0]], columns) for group in small], number, seed)
    else:
        held_groups, how = _at_random(len(small), number, seed), "at random"
    held = sorted(index for place in held_groups for index in small[place])
    kept = set(held)
    train = [index for index in range(len(rows)) if index not in kept]
    together = len(rows) - len(groups)
    same = f"; rows of the same input stay together ({together} repeated)" if together else ""
    return train, held, f"Held out {len(held)} of {len(rows)} rows for evaluation, {how}{same}."


def _stratified(labels: list[str], number: int, seed: int) -> tuple[list[int], str]:
    """Places of held-out groups, ``number`` of them or one of each class, and how it was done."""
    from sklearn.model_selection import train_test_split

    counts = Counter(labels)
    usable = [place for place, label in enumerate(labels) if counts[label] > 1]
    single = sum(1 for count in counts.values() if count == 1)
    classes = len(counts) - single
    alone = f"; {single} {'class' if single == 1 else 'classes'} of a single row went to training" if single else ""
    if classes == 0 or 2 * classes > len(usable):
        held = _at_random(len(usable), min(number, max(len(usable) - 1, 0)), seed)
        if not held:
            return _at_random(len(labels), number, seed), "at random: no class has two rows"
        return [usable[place] for place in held], f"at random: too few rows for one of each class{alone}"
    # sklearn needs a place for each class on both sides.
    size = min(max(number, classes), len(usable) - classes)
    raised = f", one of each class at least (asked: {number})" if size > number else ""
    _, held = train_test_split(
        usable, test_size=size, random_state=seed, shuffle=True, stratify=[labels[place] for place in usable]
    )
    return sorted(held), f"stratified by label{raised}{alone}"


def _at_random(size: int, number: int, seed: int) -> list[int]:
    return sorted(int(place) for place in np.random.default_rng(seed).permutation(size)[:number])


def _input(row: Row, columns: Columns) -> tuple[str, ...]:
    """What the model sees of a row, as a key."""
    names = (columns.prompt, columns.context) if columns.prompt else (columns.text, columns.text_pair)
    return tuple(" ".join(str(row.get(name, "")).casefold().split()) for name in names if name)


def _label(row: Row, columns: Columns) -> str:
    return str(row.get(columns.label)).strip() if columns.label else ""

"""Held-out rows where the user gave none: stratified, repeatable, and no input on both sides."""

from __future__ import annotations

import copy
import hashlib
import itertools
import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from lora.data.rows import Row, named
from lora.data.streams import ListOrStream, through
from lora.errors import DataError
from lora.plural import number_of

SHARE = 0.1
FEWEST, MOST = 20, 2000  # fewer rows tell little; more cost time at every evaluation and tell hardly more
LINE = 200  # characters: a line that ends so close to the cut is kept whole
Key = Callable[[Row], int]  # of what the model is asked with: the same for rows that must stay on one side
Draw = tuple[np.ndarray, int]  # groups in the order in which to hold them out, and how many of them
REMEDY = "give more rows, name held-out data as data.validation, or train on all rows with data.held_out 0"


def hold_out(
    rows: ListOrStream, key: Key, share: float | None, seed: int, classes: str | None = None,
    sizes: Sequence[int] = (),
) -> tuple[Selection, str]:  # fmt: skip
    """Which of ``rows`` are held out, and a sentence about it.

    Rows of the same input (by ``key``) stay together: an answer seen in training is no test. With a column of
    ``classes`` the split is stratified by its values, and each class of a single input goes to training; else it is at
    random. ``share`` None: a tenth, at least about 20 rows (but no more than a third) and at most about 2000.
    ``sizes``: rows of each source, one after another; each gives in proportion. The same rows and ``seed`` give the
    same split.

    Raises DataError where fewer than two different inputs are left to split, or too few rows would be left to train on:
    one at least, and one of each class.
    """
    keys, labels = array("Q"), list[str]()
    for row in rows:
        keys.append(key(row))
        if classes is not None:
            labels.append(sys.intern(_label(row, classes)))
    group, first = _groups(keys)
    members = np.bincount(group)  # rows of each group
    if len(members) < 2:
        there = f"{number_of(len(keys), 'row')} with {number_of(len(members), 'different input')}"
        raise DataError(f"{named(rows)}{there}: nothing can be held out for evaluation; {REMEDY}")
    if share is None:
        wanted = min(max(round(SHARE * len(keys)), min(FEWEST, len(keys) // 3)), MOST)
    else:
        wanted = round(share * len(keys))
        _refuse_too_large(rows, share, wanted, len(keys), len(set(labels)))
    # An input that fills more than the wanted share by itself (an empty prompt, say) is training data.
    small = np.flatnonzero(members <= max(wanted, 1))
    small = small if len(small) else np.arange(len(members))
    # Groups are drawn, not rows: a share of the groups is on average that share of their rows.
    number = round(wanted * len(small) / int(members[small].sum()))
    number = min(max(number, 1), len(small) if len(small) < len(members) else len(members) - 1)
    draws, how = _drawn(small, first, number, seed, labels, sizes)
    held_groups = [place for drawn, its_number in draws for place in drawn[:its_number]]
    if classes is not None:
        held_groups = _keeping_classes(draws, group, labels)
        if not held_groups:
            raise DataError(
                f"{named(rows)}every class has a single input: held out, it could not be trained on; {REMEDY}"
            )
    held = np.flatnonzero(np.isin(group, held_groups)).tolist()
    together = len(keys) - len(members)
    same = f"; rows of the same input stay together ({together} repeated)" if together else ""
    return Selection(held), f"Held out {len(held):,} of {len(keys):,} rows for evaluation, {how}{same}."


def _groups(keys: array[int]) -> tuple[np.ndarray, np.ndarray]:
    """The group of each row and the first row of each group, numbered in the order in which they appear."""
    _, first, inverse = np.unique(np.frombuffer(keys, dtype=np.uint64), return_index=True, return_inverse=True)
    appearance = np.empty(len(first), dtype=np.int64)
    appearance[np.argsort(first)] = np.arange(len(first))
    return appearance[inverse], np.sort(first)


def _drawn(
    groups: np.ndarray, first: np.ndarray, number: int, seed: int, labels: list[str], sizes: Sequence[int]
) -> tuple[list[Draw], str]:
    """``number`` of ``groups`` (more, where each class is to have one), in proportion from each source; and how.

    ``first``: the first row of each group. ``labels``: of all rows; none: at random.
    """
    source = np.searchsorted(np.cumsum(sizes), first[groups], side="right")
    lots = [groups[source == place] for place in range(max(len(sizes), 1))]
    numbers = _in_proportion([len(lot) for lot in lots], number)
    draws, said = list[Draw](), list[str]()
    for lot, its_number in zip(lots, numbers, strict=True):
        if not its_number:
            continue
        if labels:
            places, its_number, how = _stratified([labels[row] for row in first[lot]], its_number, seed)
        else:
            places, how = _at_random(len(lot), its_number, seed), "at random"
        draws.append((lot[places], its_number))
        said.append(how)
    spread = ", in proportion from each source" if len(sizes) > 1 else ""
    return draws, "; ".join(dict.fromkeys(said)) + spread


def _in_proportion(sizes: list[int], number: int) -> list[int]:
    """``number`` shared out over lots of ``sizes``, by largest remainders."""
    exact = [number * size / sum(sizes) for size in sizes]
    out = [int(part) for part in exact]
    nearest = sorted(range(len(sizes)), key=lambda place: out[place] - exact[place])
    for place in nearest[: number - sum(out)]:
        out[place] += 1
    return out


def hold_out_text(rows: ListOrStream, column: str, share: float | None, seed: int) -> tuple[Selection, str]:
    """Which of the plain texts in ``column`` are held out, or what part of each, and a sentence about it.

    Whole documents are held out as in `hold_out`, out of those small enough for several to fit the held-out part. Where
    these are too few, as in a book, or a file beside which the others are small, the end of every document is held out:
    after a word, and after a line where one ends close by.

    Raises DataError where not a single document has words to cut between, or for what `hold_out` refuses.
    """
    part = SHARE if share is None else share
    sizes = np.fromiter((len(str(row.get(column, ""))) for row in rows), dtype=np.int64)
    small = sizes <= part * int(sizes.sum()) / 2
    # Drawn among these, which are half of the text at least: so much of the share asked for.
    if sizes[small].sum() >= sizes.sum() / 2:
        some = through(rows, lambda it: itertools.compress(it, small))
        selection, note = hold_out(some, partial(row_key, columns=[column]), share, seed)
        places = np.flatnonzero(small)[selection.held].tolist()
        return Selection(places), note.replace(f"of {small.sum():,} rows", f"of {len(rows):,} rows")
    ends = sum(1 for row in rows if _end_of_word(str(row.get(column, "")), part))
    if not ends:
        raise DataError(f"{named(rows)}{number_of(len(rows), 'text')} too short to hold out the end of one; {REMEDY}")
    which = "the document" if len(rows) == 1 else f"{number_of(ends, 'document')}, which are few or unlike in length"
    return Selection([], column, part), f"Held out the last {part:.0%} of {which}, for evaluation."


@dataclass(frozen=True)
class Selection:
    """What of some rows is held out.

    Attributes:
        held: indices of whole rows, ascending.
        column, part: of the text in ``column`` of every row its last ``part``; in place of whole rows.
    """

    held: list[int]
    column: str | None = None
    part: float = 0.0

    def of(self, start: int, stop: int) -> Selection:
        """The same of rows ``start`` to ``stop``, as rows by themselves."""
        return replace(self, held=[index - start for index in self.held if start <= index < stop])

    def train(self, rows: Iterable[Row]) -> Iterator[Row]:
        """What of ``rows`` is left to train on."""
        if self.column is not None:
            for row in rows:
                place = _end_of_word(text := str(row.get(self.column, "")), self.part)
                yield _with(row, self.column, text[:place]) if place else row
        else:
            held = set(self.held)
            yield from (row for index, row in enumerate(rows) if index not in held)

    def out(self, rows: Iterable[Row]) -> Iterator[Row]:
        """What of ``rows`` is held out."""
        if self.column is not None:
            for row in rows:
                if place := _end_of_word(text := str(row.get(self.column, "")), self.part):
                    yield _with(row, self.column, text[place:])
        else:
            held = set(self.held)
            yield from (row for index, row in enumerate(rows) if index in held)


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


def _refuse_too_large(rows: Iterable[Row], share: float, wanted: int, total: int, classes: int) -> None:
    """Raise DataError where ``wanted`` held-out rows of ``total`` would leave too few to train on."""
    left = total - wanted
    if left < max(classes, 1):
        why = f"there are {classes} classes and each needs a row" if classes else "at least one is needed"
        raise DataError(
            f"{named(rows)}data.held_out {share:g} of {number_of(total, 'row')} would leave {left} to train on, and "
            f"{why}; hold out less, or give more rows"
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


def _keeping_classes(draws: list[Draw], group: np.ndarray, labels: list[str]) -> list[int]:
    """Of each draw the first groups, as many as it says, that leave a row of every class to training.

    ``group``: of each row. ``labels``: of each row; those of a group may differ.
    """
    own: dict[int, Counter[str]] = {int(place): Counter() for drawn, _ in draws for place in drawn}
    for row in np.flatnonzero(np.isin(group, list(own))):
        own[int(group[row])][labels[row]] += 1
    left, held = Counter(labels), list[int]()
    for drawn, number in draws:
        before = len(held)
        for place in map(int, drawn):
            if len(held) - before < number and all(left[label] > count for label, count in own[place].items()):
                left -= own[place]
                held.append(place)
    return held


def _at_random(size: int, number: int, seed: int) -> list[int]:
    return [int(place) for place in np.random.default_rng(seed).permutation(size)[:number]]


def row_key(row: Row, columns: Sequence[str]) -> int:
    """`text_key` of what stands in ``columns``."""
    return text_key([str(row.get(name, "")) for name in columns])


def text_key(texts: Iterable[str]) -> int:
    """64 bits of ``texts``, case and white space aside: those alike have the same."""
    cells = [" ".join(text.casefold().split()) for text in texts]
    digest = hashlib.blake2b("\0".join(cells).encode("utf-8", "surrogatepass"), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _label(row: Row, column: str) -> str:
    return str(row.get(column)).strip()

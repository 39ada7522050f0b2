"""Spans of words as tags mark them: the schemes, and how well spans are found.

Spans are those of seqeval (github.com/chakki-works/seqeval), which most published figures are made with: in its default
mode, that of CoNLL's script conlleval, any change of type and any tag that follows none of its kind begins a span; in
its strict mode only what the scheme allows is one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lora.statistics.classes import span_rows
from lora.statistics.rows import Rows

OUTSIDE = "O"
# Letters that stand before a type, beside O. BILOU's L and U are the E and S of BIOES.
SCHEMES = {"IOB1": "BI", "IOB2": "BI", "BIOES": "BIES", "BILOU": "BILU"}
_LETTERS = {"L": "E", "U": "S"}
_MARKED = re.compile(r"[BIESLU](-.+)?", re.DOTALL)
_NONE = (OUTSIDE, "")

Tag = tuple[str, str]  # the letter (O, B, I, E or S) and the type


class Span(NamedTuple):
    """Words ``start`` to ``end``, the last one not included."""

    type: str
    start: int
    end: int


def find_scheme(sentences: Iterable[Sequence[str]]) -> str | None:
    """The scheme of the tags (a name of `SCHEMES`); None: they are plain, each for itself.

    IOB1 begins a span with B where one of its type ends right before, IOB2 always. Data may break both, so the one they
    break less often is taken.
    """
    return scheme_of(pairs(sentences))


def pairs(sentences: Iterable[Sequence[Any]], outside: Any = OUTSIDE) -> Counter[tuple[Any, Any]]:
    """How often each tag follows which; the first of a sentence follows ``outside``."""
    return Counter(pair for tags in sentences for pair in zip([outside, *tags], tags, strict=False))


def scheme_of(found: Mapping[tuple[str, str], int]) -> str | None:
    """As `find_scheme`, of the `pairs` of sentences."""
    tags = {tag for _, tag in found}
    marked = tags - {OUTSIDE}
    if not marked or not all(_MARKED.fullmatch(tag) for tag in marked):
        return None
    # Letters alone, without a type, could be names of classes as well.
    if any(len(tag) == 1 for tag in marked) and not (OUTSIDE in tags and all(len(tag) == 1 for tag in marked)):
        return None
    letters = {tag[0] for tag in marked}
    if not letters <= set("BI"):
        return next((name for name in ("BIOES", "BILOU") if letters <= set(SCHEMES[name])), None)
    late = early = 0  # I that begins a span; B that does so without need
    for both, count in found.items():
        before, tag = map(read, both)
        goes_on = before[0] != OUTSIDE and before[1] == tag[1]
        late += count * (tag[0] == "I" and not goes_on)
        early += count * (tag[0] == "B" and not goes_on)
    return "IOB1" if late > early else "IOB2"


def complete(tags: Iterable[str], scheme: str) -> set[str]:
    """``tags`` and all that the scheme has for their types: a type met in single words alone may have others later."""
    endings = {tag[1:] for tag in tags if tag != OUTSIDE}
    return {OUTSIDE} | {letter + ending for letter in SCHEMES[scheme] for ending in endings}


def type_of(tag: str, scheme: str | None) -> str | None:
    """What a tag says beside the scheme's letter; None: that the word is outside. A plain tag is its own type."""
    if tag == OUTSIDE:
        return None
    return tag if scheme is None else read(tag)[1]


def read(tag: str) -> Tag:
    """Letter and type of a tag of a scheme. Without a type it is ``_``, as in seqeval."""
    return _LETTERS.get(tag[0], tag[0]), tag[2:] or "_"


def spans(tags: Sequence[str], scheme: str | None) -> list[Span]:
    """The spans of a sentence, as seqeval's default mode sees them; of plain tags every word that is not outside."""
    if scheme is None:
        return [Span(tag, place, place + 1) for place, tag in enumerate(tags) if tag != OUTSIDE]
    found: list[Span] = []
    open_ = False  # whether the last span found goes on with the next word
    for place, (letter, type_) in enumerate(map(read, tags)):
        if letter == OUTSIDE:
            open_ = False
            continue
        if open_ and letter in "IE" and type_ == found[-1].type:
            found[-1] = found[-1]._replace(end=place + 1)
        else:
            found.append(Span(type_, place, place + 1))
        open_ = letter in "BI"
    return found


def strict_spans(tags: Sequence[str], scheme: str | None) -> list[Span]:
    """The spans of a sentence that the scheme allows, as seqeval's strict mode sees them."""
    if scheme is None:
        return spans(tags, None)
    parts = [_NONE, *map(read, tags), _NONE]
    found, place = list[Span](), 1
    while place < len(parts) - 1:
        end = place + 1
        if _begins(scheme, parts[place - 1], parts[place]):
            while parts[end][0] in "IE" and parts[end - 1][0] in "BI" and parts[end][1] == parts[end - 1][1]:
                end += 1
            if _ends(scheme, parts[end - 1], parts[end]):
                found.append(Span(parts[place][1], place - 1, end - 1))
        place = end
    return found


def _begins(scheme: str, before: Tag, tag: Tag) -> bool:
    if scheme != "IOB1":
        return tag[0] in "BS"
    if tag[0] == "B":  # only to part it from one of its type
        return before[0] in "BI" and before[1] == tag[1]
    return tag[0] == "I" and (before[0] != "I" or before[1] != tag[1])


def _ends(scheme: str, last: Tag, after: Tag) -> bool:
    if scheme == "IOB1":
        return not (last[0] == after[0] == "B" and last[1] != after[1])  # the one after it has no reason to be a B
    return scheme == "IOB2" or last[0] in "ES"


def broken(tags: Sequence[str], scheme: str | None) -> int:
    """How many words have a tag that belongs to no span the scheme allows."""
    inside = sum(span.end - span.start for span in strict_spans(tags, scheme))
    return sum(tag != OUTSIDE for tag in tags) - inside


def span_counts(true: Sequence[Sequence[Span]], said: Sequence[Sequence[Span]], types: Sequence[str]) -> Rows:
    """How many spans of each of ``types`` are right (as a whole), said and true, sentence by sentence."""
    place = {type_: number for number, type_ in enumerate(types)}
    table = np.zeros((3, len(true), len(place)))
    for number, (of_true, of_said) in enumerate(zip(true, said, strict=True)):
        for part, group in enumerate((set(of_true) & set(of_said), of_said, of_true)):
            for span in group:
                table[part, number, place[span.type]] += 1
    return span_rows(*table, labels=types)

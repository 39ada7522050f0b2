"""Spans by their tags, held against a slow reading of seqeval's own definitions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from lora.statistics.classes import averaged
from lora.statistics.rows import Rows
from lora.tasks.figures import by_label
from lora.tasks.spans import SCHEMES, Span, broken, complete, find_scheme, span_counts, spans, strict_spans

QUICK = settings(max_examples=300, deadline=None)
IOB = ["O", "B-x", "I-x", "B-y", "I-y"]
IOBES = [*IOB, "E-x", "S-x", "E-y", "S-y"]
BILOU = [{"E": "L", "S": "U"}.get(tag[0], tag[0]) + tag[1:] for tag in IOBES]


def cut(tag: str) -> tuple[str, str]:
    return tag[0], tag[2:]


def default_by_boundaries(tags: list[str]) -> set[Span]:
    """seqeval's default mode: between every two words it is asked whether one ends and whether one begins."""
    outside = ("O", "")
    parts = [outside, *map(cut, tags), outside]

    def ends(place: int) -> bool:
        (before, its), (after, other) = parts[place], parts[place + 1]
        return before != "O" and (before in "ES" or after in "BSO" or its != other)

    def begins(place: int) -> bool:
        (before, its), (here, other) = parts[place - 1], parts[place]
        return here != "O" and (here in "BS" or before in "OES" or its != other)

    words = range(1, len(tags) + 1)
    return {
        Span(parts[start][1], start - 1, end)
        for start in words
        for end in words
        if start <= end and begins(start) and ends(end)
        and not any(begins(place) for place in range(start + 1, end + 1))
    }  # fmt: skip


def strict_by_shape(tags: list[str], scheme: str) -> set[Span]:
    """seqeval's strict mode: every stretch of words is looked at, whether it has the shape of a span."""

    def opens(place: int) -> bool:  # of IOB1, whose B parts neighbours of one type and means nothing elsewhere
        (letter, type_), before = cut(tags[place]), tags[place - 1] if place else "O"
        if letter == "B":
            return before in (f"I-{type_}", f"B-{type_}")
        return letter == "I" and before != f"I-{type_}" and not (before == f"B-{type_}" and opens(place - 1))

    def fits(start: int, end: int) -> bool:
        (_, type_), part, after = cut(tags[start]), tags[start:end], [*tags, "O"][end]
        inside = [f"I-{type_}"] * (end - start)
        if scheme in ("BIOES", "BILOU"):
            last, single = "LU" if scheme == "BILOU" else "ES"
            return part in ([f"{single}-{type_}"], [f"B-{type_}", *inside[2:], f"{last}-{type_}"])
        whole = part[1:] == inside[1:] and after != f"I-{type_}"
        if scheme == "IOB2":
            return whole and part[0] == f"B-{type_}"
        parted = part[-1][0] == after[0] == "B" and after[2:] != type_
        return whole and opens(start) and not parted

    places = range(len(tags) + 1)
    return {
        Span(cut(tags[start])[1], start, end) for start in places for end in places if start < end and fits(start, end)
    }


@pytest.mark.parametrize("scheme", SCHEMES)
def test_spans_are_those_of_the_definitions(scheme: str) -> None:
    names = {"BIOES": IOBES, "BILOU": BILOU}.get(scheme, IOB)

    @QUICK
    @given(st.lists(st.sampled_from(names), max_size=8))
    def check(tags: list[str]) -> None:
        plain = [tag.replace("L-", "E-").replace("U-", "S-") for tag in tags]
        found = spans(tags, scheme)
        assert set(found) == default_by_boundaries(plain) and found == sorted(found, key=lambda span: span.start)
        strict = strict_spans(tags, scheme)
        assert set(strict) == strict_by_shape(tags, scheme)
        assert broken(tags, scheme) == sum(tag != "O" for tag in tags) - sum(s.end - s.start for s in strict)

    check()


@pytest.mark.parametrize(
    ("tags", "scheme", "loose", "strict"),
    [
        ("O B-x I-x O", "IOB2", [("x", 1, 3)], [("x", 1, 3)]),
        ("O I-x I-x B-x", "IOB2", [("x", 1, 3), ("x", 3, 4)], [("x", 3, 4)]),
        ("B-x I-y", "IOB2", [("x", 0, 1), ("y", 1, 2)], [("x", 0, 1)]),
        ("I-x I-x B-x O I-y", "IOB1", [("x", 0, 2), ("x", 2, 3), ("y", 4, 5)], [("x", 0, 2), ("x", 2, 3), ("y", 4, 5)]),
        ("O B-x O", "IOB1", [("x", 1, 2)], []),
        ("B-x I-x E-x S-y", "BIOES", [("x", 0, 3), ("y", 3, 4)], [("x", 0, 3), ("y", 3, 4)]),
        ("B-x I-x O E-x", "BIOES", [("x", 0, 2), ("x", 3, 4)], []),
        ("B-x L-x U-y L-y", "BILOU", [("x", 0, 2), ("y", 2, 3), ("y", 3, 4)], [("x", 0, 2), ("y", 2, 3)]),
        ("B I O I", "IOB2", [("_", 0, 2), ("_", 3, 4)], [("_", 0, 2)]),
        ("NN O NN", None, [("NN", 0, 1), ("NN", 2, 3)], [("NN", 0, 1), ("NN", 2, 3)]),
    ],
)
def test_spans_by_hand(tags: str, scheme: str | None, loose: list[Any], strict: list[Any]) -> None:
    assert spans(tags.split(), scheme) == loose and strict_spans(tags.split(), scheme) == strict


@pytest.mark.parametrize(
    ("sentences", "scheme"),
    [
        (["O B-x I-x", "B-y"], "IOB2"),
        (["B-x", "B-y O"], "IOB2"),
        (["I-x I-x O", "I-y B-y I-y"], "IOB1"),
        (["I-x O", "I-y"], "IOB1"),
        (["B-x I-x O I-x", "B-x O B-y"], "IOB2"),  # one of them broken
        (["O B-x I-x E-x", "S-y"], "BIOES"),
        (["O B-x L-x", "U-y"], "BILOU"),
        (["B I O"], "IOB2"),
        (["B I"], None),  # without O they might be names
        (["B I O B-x"], None),
        (["S-x U-x"], None),
        (["NN VB O"], None),
        (["0 1 2"], None),
        (["B_x I_x O"], None),
        (["O O"], None),
        (["B-of-x I-of-x O"], "IOB2"),
    ],
)
def test_the_scheme_is_recognised(sentences: list[str], scheme: str | None) -> None:
    assert find_scheme([tags.split() for tags in sentences]) == scheme


def test_whole_schemes() -> None:
    assert complete(["B-x"], "IOB2") == {"O", "B-x", "I-x"}
    assert complete(["B", "O"], "IOB1") == {"O", "B", "I"}
    assert complete(["U-a-b"], "BILOU") == {"O", "B-a-b", "I-a-b", "L-a-b", "U-a-b"}


def rates(rows: Rows, average: str) -> list[float]:
    return [averaged(rate, average).value(rows) for rate in ("precision", "recall", "F1")]


def test_scores_by_hand() -> None:
    true = [[Span("x", 0, 2), Span("y", 3, 4)], [Span("x", 0, 1)], []]
    said = [[Span("x", 0, 2), Span("x", 3, 4)], [], [Span("z", 0, 1)]]
    found = span_counts(true, said, ["x", "y", "z", "never"])
    assert by_label(found)["x"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}
    assert by_label(found)["never"] == {"precision": 0, "recall": 0, "f1": 0, "support": 0}
    assert rates(found, "micro") == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert rates(found, "macro")[2] == pytest.approx(0.5 / 3), "a type in the answers alone counts, one in neither not"


def scikit(average: str) -> Callable[..., Any]:
    from sklearn.metrics import precision_recall_fscore_support

    return lambda true, said, labels: precision_recall_fscore_support(
        true, said, labels=labels, average=average, zero_division=0
    )[:3]


@QUICK
@given(st.lists(st.tuples(st.sampled_from("abcO"), st.sampled_from("abcO")), min_size=1, max_size=12))
def test_plain_tags_are_scored_as_by_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    true, said = ([pair[side] for pair in pairs] for side in (0, 1))
    found = span_counts([spans(true, None)], [spans(said, None)], "abc")
    occurring = sorted({*true, *said} - {"O"})
    if not occurring:
        return
    for kind in ("micro", "macro"):
        assert rates(found, kind) == pytest.approx(scikit(kind)(true, said, occurring))

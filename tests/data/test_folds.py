"""Folds: each row held out once, nothing that belongs together divided, strata even, time in order."""

from __future__ import annotations

import datetime
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora.data.folds import bins, k_folds, latest, read_column, read_times, spread, time_folds, together
from lora.data.rows import located
from lora.errors import DataError

ROWS = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(0, 60), st.lists(st.sampled_from("abcd"), max_size=3), st.integers(0, 40)
    ),
    min_size=3, max_size=80,
)  # fmt: skip


def test_together_by_chains() -> None:
    assert together(["a", "b", "a", "c"], [1, 2, 3, 2]).tolist() == [0, 1, 0, 1]
    assert together([1, 2, 3], ["x", "y", "x"]).tolist() == [0, 1, 0]
    assert together(["a", 1, "1"]).tolist() == [0, 1, 2], "what is unlike stays apart, a number and its text too"


@given(ROWS, st.integers(2, 4), st.integers(1, 3), st.integers(0, 5))
def test_each_row_is_held_out_once_in_each_repeat_and_units_stay_whole(
    rows: list[Any], folds: int, repeats: int, seed: int
) -> None:
    units = together([row[0] for row in rows], [row[1] for row in rows])
    strata = [row[2] for row in rows]
    if units.max() + 1 < folds:
        with pytest.raises(DataError, match="each fold holds out one at least"):
            k_folds(units, strata, folds, repeats, seed)
        return
    found = k_folds(units, strata, folds, repeats, seed)
    assert [(its.repeat, its.number) for its in found] == [(r + 1, f + 1) for r in range(repeats) for f in range(folds)]
    for repeat in range(1, repeats + 1):
        held = [its.held for its in found if its.repeat == repeat]
        assert sorted(np.concatenate(held).tolist()) == list(range(len(rows)))
    for its in found:
        assert sorted([*its.train, *its.held]) == list(range(len(rows)))
        for column in (0, 1):
            sides = [{rows[place][column] for place in side} for side in (its.train, its.held)]
            assert sides[0].isdisjoint(sides[1])
    again = k_folds(units, strata, folds, repeats, seed)
    assert all(np.array_equal(a.held, b.held) for a, b in zip(found, again, strict=True))


@given(st.lists(st.sampled_from("aaaabbc"), min_size=12, max_size=90), st.integers(2, 5), st.integers(0, 3))
def test_classes_are_even_to_one_row(labels: list[str], folds: int, seed: int) -> None:
    found = k_folds(np.arange(len(labels)), [[name] for name in labels], folds, 1, seed)
    for name in set(labels):
        counts = [sum(labels[place] == name for place in its.held) for its in found]
        assert max(counts) - min(counts) <= 1
    sizes = [len(its.held) for its in found]
    assert max(sizes) - min(sizes) <= len(set(labels)), "of several classes the odd rows go to different folds"


def test_repeats_are_drawn_anew_and_labels_of_rare_sorts_are_spread() -> None:
    rng = np.random.default_rng(0)
    strata = [
        [name for name, often in (("a", 0.5), ("b", 0.2), ("c", 0.05)) if rng.random() < often] for _ in range(400)
    ]
    found = k_folds(np.arange(400), strata, 5, 2, 0)
    assert not np.array_equal(found[0].held, found[5].held)
    for name in "abc":
        counts = [sum(name in strata[place] for place in its.held) for its in found]
        assert max(counts) - min(counts) <= 2, name


def test_unequal_parts_and_groups_of_unlike_size() -> None:
    labels = ["a"] * 80 + ["b"] * 20
    part = spread(np.arange(100), [[name] for name in labels], [0.1, 0.9], 0)
    assert Counter(name for name, its in zip(labels, part, strict=True) if its == 0) == {"a": 8, "b": 2}
    units = np.repeat(np.arange(12), [40, 20, 20, 10, 10, 5, 5, 5, 5, 2, 2, 1])
    sizes = np.bincount(spread(units, None, [1 / 3] * 3, 0))
    assert sizes.max() - sizes.min() <= 4


def test_bins_of_numbers() -> None:
    found = [its[0] for its in bins(list(range(100)), 5)]
    assert set(Counter(found).values()) == {10}
    assert {its[0] for its in bins([1.0] * 20, 5)} <= {0, 1} and len({its[0] for its in bins([1.0] * 20, 5)}) == 1
    assert max(its[0] for its in bins(list(range(12)), 5)) == 1, "no more bins than reach every fold"


@given(ROWS, st.integers(1, 5))
def test_training_rows_are_earlier_than_held_out_ones(rows: list[Any], folds: int) -> None:
    times, units = [row[3] for row in rows], together([row[0] for row in rows])
    try:
        found = time_folds(times, units, folds)
    except DataError as error:
        assert "different times" in str(error) or "nothing is left to train on" in str(error)
        return
    assert len(found) == folds
    held = np.concatenate([its.held for its in found])
    assert len(set(held.tolist())) == len(held), "at most once"
    first = min(times[place] for place in held)
    assert {place for place, time in enumerate(times) if time >= first} == set(held.tolist())
    for its in found:
        start = min(times[place] for place in its.held)
        assert max(times[place] for place in its.train) < start
        assert {rows[place][0] for place in its.train}.isdisjoint({rows[place][0] for place in its.held})
        left_out = {place for place, time in enumerate(times) if time < start} - set(its.train.tolist())
        assert all(units[place] in set(units[its.held].tolist()) for place in left_out), "no row is left out needlessly"


def test_parts_by_time_are_of_about_equal_size() -> None:
    found = time_folds(np.random.default_rng(0).permutation(120).tolist(), np.arange(120), 5)
    assert [len(its.held) for its in found] == [20] * 5 and [len(its.train) for its in found] == [20, 40, 60, 80, 100]
    train, held = latest([3, 1, 2, 0, 4], np.arange(5), 0.4)
    assert train.tolist() == [1, 2, 3] and held.tolist() == [0, 4]
    with pytest.raises(DataError, match="3 folds by time need 4 different times, and there are 3"):
        time_folds([1, 2, 3, 3], np.arange(4), 3)


def test_times_are_read() -> None:
    rows = located([{"t": "2024-05-31"}, {"t": "2024-05-31T12:00:00"}, {"t": "2024-05-31T12:00:00+01:00"}], "a.jsonl")
    first, noon, elsewhere = read_times(rows, "t", "time_column")
    assert noon - first == 12 * 3600 * 10**6 and noon - elsewhere == 3600 * 10**6
    assert read_times([{"t": "3"}, {"t": 2.5}], "t", "time_column") == [3.0, 2.5]
    assert read_times([{"t": datetime.date(1970, 1, 2)}], "t", "time_column") == [86400 * 10**6]
    for cells, said in (
        (["2024-05-31", "soon"], "no date such as 2024-05-31 or .* in a.jsonl row 2 .*'soon'"),
        (["2024-05-31", 7], "holds dates in a.jsonl row 1 and numbers elsewhere"),
        (["2024-05-31", None], "column 't' is empty in a.jsonl row 2"),
        (["2024-05-31", True], "a.jsonl row 2"),
    ):
        with pytest.raises(DataError, match=said):
            read_times(located([{"t": cell} for cell in cells], "a.jsonl"), "t", "time_column")
    with pytest.raises(DataError, match=r"a.jsonl: group_column: there is no column 'who'; there are t, u"):
        read_column(located([{"t": 1, "u": 2}], "a.jsonl"), "who", "group_column")

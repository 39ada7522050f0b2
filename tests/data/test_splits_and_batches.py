"""Held-out rows and the order of batches."""

from __future__ import annotations

from functools import partial

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from lora.data.batches import BatchPlan, in_order
from lora.data.rows import located, places
from lora.data.splits import hold_out, hold_out_text, row_key
from lora.errors import DataError

QUICK = settings(max_examples=60, deadline=None)
BY_TEXT = partial(row_key, columns=["text"])


def split(rows: list[dict], *arguments) -> tuple[list[int], list[int], str]:
    """Indices of training rows and of held-out ones, and the note of `hold_out`."""
    selection, note = hold_out(rows, *arguments)
    return [i for i in range(len(rows)) if i not in selection.held], selection.held, note


def split_text(rows: list[dict], *arguments) -> tuple[list[dict], list[dict], str]:
    selection, note = hold_out_text(rows, *arguments)
    return list(selection.train(rows)), list(selection.out(rows)), note


def labelled(labels: list[str]) -> list[dict]:
    return [{"text": f"text {number}", "label": label} for number, label in enumerate(labels)]


@QUICK
@given(
    texts=st.lists(st.integers(0, 30), min_size=2, max_size=120),
    labels=st.integers(1, 6),
    stratified=st.booleans(),
    share=st.one_of(st.none(), st.floats(0.01, 0.9)),
    seed=st.integers(0, 5),
)
def test_every_row_once_and_no_input_on_both_sides(
    texts: list[int], labels: int, stratified: bool, share: float | None, seed: int
) -> None:
    rows = [
        {"text": f"Text  {text}" if n % 2 else f"text {text}", "label": str(n % labels)} for n, text in enumerate(texts)
    ]
    classes = "label" if stratified else None

    def drawn() -> tuple[list[int], list[int], str]:
        return split(rows, BY_TEXT, share, seed, classes)

    every = {row["label"] for row in rows}
    try:
        train, held, note = drawn()
    except DataError as error:
        reasons = {
            "nothing can be held out": len(set(texts)) < 2,
            "every class has a single input": stratified,
            "to train on": share is not None and len(rows) - round(share * len(rows)) < (len(every) if classes else 1),
        }
        assert [words for words, holds in reasons.items() if holds and words in str(error)], error
        return
    assert sorted(train + held) == list(range(len(rows))) and train and held
    assert not {texts[i] for i in train} & {texts[i] for i in held}
    assert f"Held out {len(held)} of {len(rows)}" in note
    assert drawn() == (train, held, note)
    if stratified:
        assert {rows[i]["label"] for i in train} == every, "a class that is not trained on cannot be learned"


@pytest.mark.parametrize(
    ("labels", "classes", "share", "words"),
    [
        (["a", "b"] * 10, "label", 0.9, ""),
        (["a", "b", "c"] * 5, "label", 0.9, "data.held_out 0.9 of 15 rows would leave 1 to train on, and there are 3"),
        (["a"] * 4, None, 0.9, "data.held_out 0.9 of 4 rows would leave 0 to train on, and at least one is needed"),
        ([str(n) for n in range(10)], "label", None, "every class has a single input"),
        ([str(n) for n in range(10)], None, None, ""),
    ],
)
def test_enough_is_left_to_train_on(labels: list[str], classes: str | None, share: float | None, words: str) -> None:
    rows = located(labelled(labels), "a.csv")
    if not words:
        assert split(rows, BY_TEXT, share, 0, classes)[0]
        return
    with pytest.raises(DataError) as caught:
        hold_out(rows, BY_TEXT, share, 0, classes)
    assert str(caught.value).startswith("a.csv: ") and words in str(caught.value)


@QUICK
@given(sizes=st.lists(st.integers(2, 40), min_size=2, max_size=8), seed=st.integers(0, 5))
def test_stratified(sizes: list[int], seed: int) -> None:
    rows = labelled([str(label) for label, size in enumerate(sizes) for _ in range(size)])
    train, held, note = split(rows, BY_TEXT, 0.25, seed, "label")
    for label, size in enumerate(sizes):
        inside = sum(rows[index]["label"] == str(label) for index in held)
        assert abs(inside - size * len(held) / len(rows)) <= 1.5
        assert any(rows[index]["label"] == str(label) for index in train)
    assert "stratified by label" in note


@pytest.mark.parametrize(
    ("count", "expected"), [(2, 1), (9, 3), (30, 10), (60, 20), (150, 20), (1000, 100), (50_000, 2000)]
)
def test_default_size(count: int, expected: int) -> None:
    rows = [{"text": str(number)} for number in range(count)]
    assert len(split(rows, BY_TEXT, None, 0)[1]) == expected


def test_classes_of_a_single_row_are_trained_on() -> None:
    rows = labelled(["a"] * 20 + ["b"] * 20 + ["lonely", "alone"])
    train, _, note = split(rows, BY_TEXT, 0.2, 0, "label")
    assert {40, 41} <= set(train) and "2 classes of a single row went to training" in note


def test_too_few_rows_for_every_class_is_said() -> None:
    note = split(labelled([str(n // 2) for n in range(40)]), BY_TEXT, 0.1, 0, "label")[2]
    assert "one of each class at least (asked: 4)" in note
    repeated = [{"text": "same", "label": "ab"[n % 2]} for n in range(30)] + labelled(["a", "b"])
    train, held, note = split(repeated, BY_TEXT, 0.1, 0, "label")
    assert set(held) <= {30, 31} and set(range(30)) <= set(train) and "no class has two inputs" in note


def test_an_input_that_fills_the_data_is_training_data() -> None:
    rows = [{"prompt": "", "completion": str(n)} for n in range(90)] + [
        {"prompt": str(n), "completion": ""} for n in range(10)
    ]
    train, held, _ = split(rows, partial(row_key, columns=["prompt"]), 0.1, 0)
    assert set(range(90)) <= set(train) and 1 <= len(held) <= 10


def test_references_of_one_prompt_stay_together() -> None:
    rows = [{"prompt": str(n // 4), "context": "", "completion": str(n)} for n in range(100)]
    train, held, note = split(rows, partial(row_key, columns=["prompt", "context"]), 0.2, 1)
    assert not {n // 4 for n in train} & {n // 4 for n in held} and len(held) == 20 and "(75 repeated)" in note


LENGTHS = st.lists(st.integers(1, 100), max_size=300)


@QUICK
@given(lengths=LENGTHS, size=st.integers(1, 9), seed=st.integers(0, 3), k=st.integers(0, 4), grouped=st.booleans())
def test_batches_are_a_permutation_and_stateless(
    lengths: list[int], size: int, seed: int, k: int, grouped: bool
) -> None:
    plan = BatchPlan(lengths, size, seed, grouped)
    plan.epoch(k + 1)
    batches = plan.epoch(k)
    assert batches == BatchPlan(lengths, size, seed, grouped).epoch(k), "what was asked before has no effect"
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert len(batches) == len(plan) and sum(len(batch) < size for batch in batches) <= 1
    if k == 0 and batches:
        volume = [len(batch) * max(lengths[index] for index in batch) for batch in batches]
        assert volume[0] == max(volume)


@QUICK
@given(lengths=LENGTHS, size=st.integers(1, 9))
def test_in_order_is_longest_first(lengths: list[int], size: int) -> None:
    order = [index for batch in in_order(lengths, size) for index in batch]
    assert sorted(order) == list(range(len(lengths)))
    assert [lengths[index] for index in order] == sorted(lengths, reverse=True)


def test_grouping_saves_padding_and_epochs_differ() -> None:
    lengths = np.random.default_rng(0).integers(1, 200, 2000).tolist()

    def padded(grouped: bool) -> int:
        plan = BatchPlan(lengths, 8, 0, grouped)
        return sum(len(batch) * max(lengths[index] for index in batch) for batch in plan.epoch(1))

    assert padded(True) < 1.1 * sum(lengths) < padded(False)
    plan = BatchPlan(lengths, 8, 0)
    assert plan.epoch(0) != plan.epoch(1) != BatchPlan(lengths, 8, 1).epoch(1)


def test_batch_size_is_checked() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        BatchPlan([1], 0, 0)
    with pytest.raises(ValueError, match="at least 1"):
        in_order([1], 0)


WORDS = "the cat sat on the mat and looked at the dog. "


@pytest.mark.parametrize("sizes", [[400], [40, 41, 42], [4000, *range(1, 30)], [1000, 1, 1, 1]])
@pytest.mark.parametrize("share", [None, 0.25])
def test_the_end_of_each_text_where_whole_ones_do_not_fit(sizes: list[int], share: float | None) -> None:
    rows = located([{"text": f"{n}\n" + (WORDS * size)} for n, size in enumerate(sizes)], "a.txt", "document")
    train, held, note = split_text(rows, "text", share, 0)
    assert [t["text"] + h["text"] for t, h in zip(train, held, strict=True)] == [row["text"] for row in rows]
    assert all(t["text"][-1].isspace() for t in train) and all(places([*held], [0]) == "a.txt document 1" for _ in held)
    part = sum(len(row["text"]) for row in held) / sum(len(row["text"]) for row in rows)
    assert part == pytest.approx(share or 0.1, abs=0.05) and f"the last {share or 0.1:.0%}" in note


def test_whole_texts_where_they_are_many() -> None:
    sizes = [1, 2, 3, 4, 5] * 20
    rows = located([{"text": f"{n} " + WORDS * size} for n, size in enumerate(sizes)], "a.txt", "document")
    train, held, note = split_text([*rows, {"text": WORDS * 100}], "text", None, 0)
    assert len(train) + len(held) == 101 and all(row in rows for row in held)
    assert "Held out 20 of 101 rows for evaluation, at random" in note
    assert split_text([*rows, {"text": WORDS * 100}], "text", None, 0)[1] == held


def test_texts_that_cannot_be_cut() -> None:
    with pytest.raises(DataError, match="1 text too short to hold out the end of one"):
        hold_out_text([{"text": "Donaudampfschifffahrt"}], "text", None, 0)
    train, held, _ = split_text([{"text": "word"}, {"text": "two words"}], "text", None, 0)
    assert [row["text"] for row in train] == ["word", "two "] and [row["text"] for row in held] == ["words"]
    # A line that ends shortly before the cut is kept whole.
    lines = "".join(f"line {n:04d}\n" for n in range(500))
    train, held, _ = split_text([{"text": lines}], "text", 0.2, 0)
    assert held[0]["text"].startswith("line 0") and train[0]["text"].endswith("\n")

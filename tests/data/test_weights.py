"""Several sources: how they are named, and how many rows of each an epoch takes."""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from lora.config import DataConfig, Source
from lora.data.batches import BatchPlan, rows_taken
from lora.data.naming import named_sources
from lora.data.sources import load_splits
from lora.data.splits import hold_out, row_key
from lora.errors import ConfigError, DataError

QUICK = settings(max_examples=60, deadline=None)
SHARES = st.lists(
    st.tuples(st.integers(0, 40), st.one_of(st.sampled_from([1.0, 2.0, 0.5]), st.floats(0.01, 4.0))), max_size=4
)


@QUICK
@given(shares=SHARES, size=st.integers(1, 9), seed=st.integers(0, 3), k=st.integers(0, 6), grouped=st.booleans())
def test_an_epoch_takes_what_the_weights_say(
    shares: list[tuple[int, float]], size: int, seed: int, k: int, grouped: bool
) -> None:
    total = sum(rows for rows, _ in shares)
    lengths = [1 + i % 7 for i in range(total)]
    plan = BatchPlan(lengths, size, seed, grouped, shares)
    plan.epoch(k + 1)
    batches = plan.epoch(k)
    assert batches == BatchPlan(lengths, size, seed, grouped, shares).epoch(k), "what was asked before has no effect"
    assert len(batches) == len(plan)
    taken, start = Counter(index for batch in batches for index in batch), 0
    for rows, weight in shares:
        its = [taken[i] for i in range(start, start + rows)]
        assert sum(its) == rows_taken(rows, weight)
        assert max(its, default=0) - min(its, default=0) <= 1, "no row is favoured"
        start += rows
    assert sum(taken.values()) == sum(rows_taken(rows, weight) for rows, weight in shares)


@QUICK
@given(rows=st.integers(1, 30), weight=st.floats(0.02, 3.0), epochs=st.integers(1, 60), seed=st.integers(0, 3))
def test_over_the_epochs_every_row_comes_equally_often(rows: int, weight: float, epochs: int, seed: int) -> None:
    plan = BatchPlan([1] * rows, 4, seed, shares=[(rows, weight)])
    counts = Counter(index for k in range(epochs) for batch in plan.epoch(k) for index in batch)
    assert max(counts.values()) - min(counts[i] for i in range(rows)) <= 1


def test_halves_differ_and_a_weight_of_one_changes_nothing() -> None:
    half = BatchPlan([1] * 40, 4, 0, shares=[(40, 0.5)])
    first, second = ({i for batch in half.epoch(k) for i in batch} for k in (0, 1))
    assert first | second == set(range(40)) and not first & second
    lengths = [1 + i % 5 for i in range(40)]
    assert BatchPlan(lengths, 4, 0, shares=[(30, 1.0), (10, 1.0)]).epoch(2) == BatchPlan(lengths, 4, 0).epoch(2)
    with pytest.raises(ValueError, match="shares of 3 rows, and there are 40"):
        BatchPlan(lengths, 4, 0, shares=[(3, 1.0)])


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("a.jsonl", [("a.jsonl", 1.0)]),
        ("a.jsonl#x2", [("a.jsonl", 2.0)]),
        ("a.jsonl#500x.5", [("a.jsonl#500", 0.5)]),
        ("a.jsonl#500", [("a.jsonl#500", 1.0)]),
        ("a.jsonl, owner/name:part#x0.25", [("a.jsonl", 1.0), ("owner/name:part", 0.25)]),
        (["a.jsonl", {"path": "b.jsonl#9", "weight": 3}], [("a.jsonl", 1.0), ("b.jsonl#9", 3.0)]),
        ({"path": "a.jsonl", "weight": 2}, [("a.jsonl", 2.0)]),
        ([Source(path="a,b.jsonl#x2", weight=2)], [("a,b.jsonl", 2.0)]),
        ("C#x", [("C#x", 1.0)]),
    ],
)
def test_spellings(train: object, expected: list[tuple[str, float]]) -> None:
    config = DataConfig.make({"train": train})
    assert [(source.path, source.weight) for source in named_sources(config.train)] == expected


def test_what_is_there_is_no_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a#x2", "b, c.jsonl", "d.jsonl"):
        Path(name).write_text('{"text": "x"}\n')
    assert [(s.path, s.weight) for s in named_sources("a#x2")] == [("a#x2", 1.0)]
    assert [s.path for s in named_sources("b, c.jsonl")] == ["b, c.jsonl"]
    assert [(s.path, s.weight) for s in named_sources("b, c.jsonl#1x3")] == [("b, c.jsonl#1", 3.0)]
    assert [s.path for s in named_sources("d.jsonl,e.jsonl")] == ["d.jsonl", "e.jsonl"]


@pytest.mark.parametrize(
    ("train", "words"),
    [
        (["a.jsonl", "a.jsonl#5"], "a.jsonl: is named twice as training data; give it a weight instead"),
        ([{"path": "a.jsonl#x2", "weight": 3}], "has the weight 3 too; keep one of the two"),
        ("a.jsonl#x0", "the weight must be above 0"),
        ("a.jsonl#x500", "the weight must be above 0 and at most 100"),
    ],
)
def test_marks_that_say_nothing(train: object, words: str) -> None:
    with pytest.raises(DataError, match=words):
        named_sources(DataConfig.make({"train": train}).train)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ([], "data.train: names no source"),
        ([{"path": "a", "wieght": 2}], "source 1.wieght: unknown setting; did you mean 'weight'"),
        (["a", {"path": "b", "weight": -1}], "source 2.weight: must be greater than 0"),
        (["a", 3], "data.train"),
    ],
)
def test_entries_that_are_none(train: object, words: str) -> None:
    from lora.config import RunConfig

    with pytest.raises(ConfigError, match="(?s)" + words):
        RunConfig.make({"data": {"train": train}})


def test_parts_keep_their_splits_and_hashes(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name, count in (("one/train.jsonl", 3), ("one/dev.jsonl", 2), ("two.jsonl", 4)):
        (tmp_path / name).write_text("".join(json.dumps({"text": f"{name} {n}"}) + "\n" for n in range(count)))
    splits = load_splits(DataConfig(train=[str(tmp_path / "one"), f"{tmp_path / 'two.jsonl'}#x0.5"]))
    assert [(len(part.train), part.validation and len(part.validation)) for part in splits.parts] == [(3, 2), (4, None)]
    assert len(splits.train) == 7 and len(splits.validation or []) == 2
    assert [(Path(s.name).name, s.split, s.weight) for s in splits.sources] == [
        ("train.jsonl", "train", 1.0), ("dev.jsonl", "validation", None), ("two.jsonl", "train", 0.5),
    ]  # fmt: skip
    with pytest.raises(DataError, match="a weight .#x0.5. is for training data"):
        load_splits(DataConfig(train=str(tmp_path / "one"), validation=f"{tmp_path / 'two.jsonl'}#x0.5"))


@QUICK
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=4),
    inputs=st.integers(20, 200),
    share=st.floats(0.1, 0.5),
    seed=st.integers(0, 5),
    stratified=st.booleans(),
)
def test_held_out_in_proportion_and_no_input_on_both_sides(
    sizes: list[int], inputs: int, share: float, seed: int, stratified: bool
) -> None:
    rows = [{"text": str(n * 7 % inputs), "label": "ab"[n % 2]} for n in range(sum(sizes))]
    try:
        selection, note = hold_out(
            rows, partial(row_key, columns=["text"]), share, seed, "label" if stratified else None, sizes
        )
    except DataError:
        return
    held = set(selection.held)
    assert not {rows[i]["text"] for i in held} & {row["text"] for i, row in enumerate(rows) if i not in held}
    assert "in proportion from each source" in note
    if len({row["text"] for row in rows}) == len(rows) and not stratified:
        start = 0
        for size in sizes:
            its = sum(start <= index < start + size for index in held)
            assert abs(its - size * len(held) / len(rows)) <= 1
            start += size

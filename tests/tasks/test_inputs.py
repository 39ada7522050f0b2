"""What training and evaluation share: rows from what callers call data, columns named anew, and their notes."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lora.config import DataConfig
from lora.data.rows import Origin, SourceRow
from lora.errors import ConfigError, DataError
from lora.tasks import from_state
from lora.tasks.inputs import as_rows, length_for, task_for, tokenizer_of, with_columns
from small_base import labelled, write_jsonl

ROW = {"text": "a", "label": "b"}


@pytest.mark.parametrize(
    "data",
    [
        [ROW, ROW],
        (ROW for _ in range(2)),
        [UserDict(ROW), ROW],
        __import__("datasets").Dataset.from_list([ROW, ROW]),
    ],
    ids=["list", "generator", "mappings", "datasets"],
)
def test_rows_from_what_callers_call_data(data: Any) -> None:
    rows = as_rows(data, "training data")
    assert rows == [ROW, ROW]
    assert [(row.origin, row.number) for row in rows if isinstance(row, SourceRow)] == [
        (Origin("training data", "row"), 1),
        (Origin("training data", "row"), 2),
    ]


def test_rows_that_know_their_file_keep_it() -> None:
    row = SourceRow(ROW, Origin("a.csv", "line"), 7)
    (found,) = as_rows([row], "training data")
    assert found is row


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "held-out data: there are no rows"),
        ([ROW, "text"], "held-out data: row 2 is a str"),
        ({"a": [ROW], "b": [ROW]}, "this is a dict of several (a, b); pass one of them"),
        (7, "must be a path, rows as dicts or a datasets.Dataset, not int"),
    ],
)
def test_what_is_no_rows(data: Any, words: str) -> None:
    with pytest.raises(DataError) as caught:
        as_rows(data, "held-out data")
    assert words in str(caught.value)


def test_columns_named_anew() -> None:
    task, how = task_for([{"text": "x", "label": "01"}, {"text": "y", "label": "1"}] * 2, DataConfig())
    assert how.startswith("Task classification") and how.endswith("taken as different ones: '01' and '1'.")
    changed = with_columns(task, DataConfig(text_column="body", columns={"label": "kind"}, prompt_column="no matter"))
    assert changed.state() == {**task.state(), "text": "body", "label": "kind"}
    assert with_columns(task, DataConfig()) is task
    with pytest.raises(DataError, match="'lable' is unknown; did you mean 'label'"):
        with_columns(task, DataConfig(columns={"lable": "kind"}))
    context = from_state({"task": "causal", "prompt": "p", "completion": "c"})
    assert with_columns(context, DataConfig(columns={"context": "notes"})).inputs()[1].column == "notes"


def test_tokenizer_and_length(bert: Path) -> None:
    config = SimpleNamespace(_name_or_path=str(bert), max_position_embeddings=64)
    base = SimpleNamespace(config=config)
    model: Any = SimpleNamespace(config=config, base=base, notes={"a": {"max_length": 9}}, tokenizers={})
    tokenizer = tokenizer_of(model)
    assert length_for(model, [], tokenizer, None) == 64 and length_for(model, ["a", "b"], tokenizer, None) == 9
    assert length_for(model, ["a"], tokenizer, 20) == 20
    config._name_or_path = ""
    with pytest.raises(ConfigError, match="pass tokenizer="):
        tokenizer_of(model)


def test_notes_say_which_part_of_the_data_they_are_about(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from lora.training.prepare import prepare, read_rows

    for name in ("train", "validation", "test"):
        write_jsonl(tmp_path / f"{name}.jsonl", labelled(24))
    model: Any = SimpleNamespace(base=SimpleNamespace(config=None), notes={})
    rows = read_rows(str(tmp_path), None, DataConfig(), 0)
    notes = prepare(model, rows, AutoTokenizer.from_pretrained(bert), 6).notes
    assert [note.partition(":")[0] for note in notes if "tokens" in note][1:] == ["held-out data", "test data"]


def test_a_given_task_reads_its_own_columns() -> None:
    from lora.training.prepare import read_rows

    task = from_state({"task": "classification", "labels": ["x", "y"], "text": "odd", "label": "names"})
    rows = [{"odd": f"t {n}", "names": "xy"[n % 2], "text": f"{n}", "label": None} for n in range(40)]
    read = read_rows(rows, None, DataConfig(), 0, task)
    assert read.task is task and len(read.train) + len(read.held or []) == 40
    assert {row["names"] for row in read.train} == {"x", "y"}
    assert read_rows(rows, None, DataConfig(text_column="text"), 0, task).task.state()["text"] == "text"
    with pytest.raises(DataError, match="training data: no row has the column 'body'; columns there are: odd, names"):
        read_rows(rows, None, DataConfig(), 0, from_state({**task.state(), "text": "body"}))

"""Rows that cannot be used, from the command line: one message with the file and the row's place in it, exit code 2."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from command import lora
from lora.cli import main
from lora.data.rows import SourceRow
from small_base import labelled, write_jsonl


@pytest.fixture
def refused(bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``refused(data, *options)``: the message of `lora train`, in this process (as a process: the last test)."""

    def train(data: Any, *options: Any) -> str:
        output = tmp_path / "run"
        code = main(
            ["train", "-m", str(bert), "-d", str(data), "-o", str(output), "--max-steps", "1", *map(str, options)]
        )
        said = capfd.readouterr().err
        assert code == 2 and said.count("error:") == 1 and "Traceback" not in said, said
        assert not (output / "adapter").exists()
        return said[said.index("error:") :]

    return train


def put(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    return write_jsonl(path, rows)


def broken(place: int, **cells: Any) -> list[dict[str, Any]]:
    """60 rows, of which the one at 1-based ``place`` has other cells."""
    rows = labelled(60, longest=4)
    rows[place - 1] = {**rows[place - 1], **cells}
    return rows


def csv(rows: list[dict[str, Any]]) -> str:
    return "text,label\n" + "".join(f'"{row["text"]}",{row["label"]}\n' for row in rows)


@pytest.mark.parametrize(
    ("cells", "what"),
    [
        ({"label": None}, "the label is missing"),
        ({"label": float("nan")}, "the label is missing"),
        ({"label": " "}, "the label is empty"),
        ({"label": ["a"]}, "the label ['a'] is not a single value"),
        ({"text": None}, "text is missing"),
        ({"text": 5}, "text is of the type int, not text"),
        ({"text": "cat \ud800 sun"}, "text holds half a character"),
    ],
)
def test_the_line_is_that_of_the_file(refused: Callable[..., str], tmp_path: Path, cells: dict, what: str) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", broken(37, **cells))
    data.write_text("\n\n" + data.read_text().replace("\n", "\r\n"))  # blank lines are skipped, not left uncounted
    options = ["--task", "classification"]
    said = refused(data, *options)
    assert f"{data}: 1 of 60 rows cannot be used:" in said and what in said and "line 39\n" in said
    assert "line 39\n" in refused(f"{data}#500", *options)


def test_every_kind_of_file_says_it_in_its_own_way(refused: Callable[..., str], tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = broken(20, text=" ")
    (tmp_path / "rows.csv").write_text("\ufeff" + csv([{**rows[0], "text": "cat\n\nsun"}, *rows[1:]]))
    (tmp_path / "rows.json").write_text(json.dumps({"train": rows, "test": rows[:3]}))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert f"{tmp_path}/rows.csv: 1 of 60 rows cannot be used:\n  text is empty: line 23\n" in refused(
        tmp_path / "rows.csv"
    )
    assert f"{tmp_path}/rows.json (train): 1 of 60" in refused(tmp_path / "rows.json")
    assert "text is empty: row 20\n" in refused(tmp_path / "rows.parquet")


def test_shards_are_told_apart(refused: Callable[..., str], tmp_path: Path) -> None:
    for part in "12":
        put(tmp_path / "data" / f"train-{part}.jsonl", broken(5 * int(part), label=None))
    said = refused(tmp_path / "data")
    folder = tmp_path / "data"
    assert "error: 2 of 120 rows cannot be used:" in said
    assert f"the label is missing: {folder}/train-1.jsonl line 5; {folder}/train-2.jsonl line 10\n" in said


def test_held_out_rows_keep_their_line(bert: Path, tmp_path: Path) -> None:
    """Some problems show only when the rows are split and tokenised."""
    from transformers import AutoTokenizer

    from lora.config import DataConfig
    from lora.errors import DataError
    from lora.training.prepare import read_rows

    data = write_jsonl(tmp_path / "rows.jsonl", labelled(60, longest=4))
    read = read_rows(f"{data}#50", None, DataConfig(held_out=0.5), 0)
    lines = data.read_text().splitlines()
    assert read.held is not None and len(read.held) > 20
    for row in (*read.train, *read.held):
        assert isinstance(row, SourceRow) and json.loads(lines[row.number - 1]) == row
    last = read.held[-1]
    assert isinstance(last, SourceRow) and last.number > len(read.held)
    last["label"] = "zebra"
    with pytest.raises(
        DataError, match=rf"^{data}: not in the training data(.|\n)*'zebra': 1 row: line {last.number}\n"
    ):
        read.task.encode(read.held, AutoTokenizer.from_pretrained(bert), 32)


def test_other_files_are_named(refused: Callable[..., str], tmp_path: Path) -> None:
    good = write_jsonl(tmp_path / "train.jsonl", labelled(60, longest=4))
    held = write_jsonl(tmp_path / "held.jsonl", broken(7, label="zebra"))
    said = refused(good, "--validation", held)
    assert f"{held}: not in the training data, but here as labels (1):\n  'zebra': 1 row: line 7\n" in said
    put(tmp_path / "both" / "train.jsonl", labelled(60, longest=4))
    test = put(tmp_path / "both" / "test.jsonl", broken(9, text=""))
    assert f"{test}: 1 of 60 rows cannot be used:\n  text is empty: line 9\n" in refused(tmp_path / "both")


def different(count: int, word: str) -> list[dict[str, Any]]:
    return [{"text": f"cat {number}", "label": f"{word}{number}"} for number in range(count)]


ROWS = labelled(60, longest=4)
WHOLE = {
    "empty.jsonl": (b"", "is empty"),
    "header.csv": (b"text,label\n", "holds nothing but a header"),
    "one-class.csv": (csv([{**row, "label": "x"} for row in ROWS]).encode(), "every row has the label 'x'"),
    "latin.csv": ("text,label\ncaf\xe9,x\n".encode("latin-1"), "is not UTF-8: byte 0xe9 at offset 14, line 2"),
    "utf16.csv": (csv(ROWS).encode("utf-16"), "is UTF-16, not UTF-8"),
    "packed.jsonl.gz": (gzip.compress(b'{"text": \n'), "packed with gzip"),
    "twice.csv": (b"text,text,label\na,b,c\n", "column name given twice: text"),
    "twice.jsonl": (b'{"text": "a", "text": "b", "label": "c"}\n', "line 1: the key 'text' stands twice"),
    "crlf.jsonl": (b'{"text": "a", "label": "x"}\r\n{"text": "b"\r\n', "line 2: not valid JSON"),
    "never-ends.csv": (csv(ROWS).encode() + b'"cat,bird\n', "the row that begins on line 62"),
    "names.csv": (b"alpha,beta\na,b\n", "columns there are: alpha, beta"),
    "single.csv": (csv(different(9, "")).encode(), "every class has a single input"),
    "answers.csv": (csv(different(90, "so ")).encode(), "data.task classification"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_wrong_with_a_whole_file(refused: Callable[..., str], tmp_path: Path, name: str) -> None:
    content, words = WHOLE[name]
    (tmp_path / name).write_bytes(content)
    said = refused(tmp_path / name)
    assert said.startswith(f"error: {tmp_path / name}: ") and words in said


def test_splits_that_leave_too_little(refused: Callable[..., str], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(60, longest=4))
    assert "data.held_out: must be less than or equal to 0.9" in refused(data, "--held-out", "0.9999")
    said = refused(f"{data}#10", "--held-out", "0.8")
    assert "would leave 2 to train on, and there are 3 classes and each needs a row" in said


def test_folders_and_hub_ids(refused: Callable[..., str], tmp_path: Path) -> None:
    put(tmp_path / "exam" / "test.jsonl", labelled(9))
    assert "has no train split (it has: test)" in refused(tmp_path / "exam")
    (tmp_path / "bare").mkdir()
    assert "no readable file in this folder" in refused(tmp_path / "bare")
    assert "someone/nothing: no such file or folder here, and the hub cannot be reached; " in refused("someone/nothing")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--task", "clasification"], "data.task: unknown; did you mean 'classification'?"),
        (["--columns", "{lable: label}"], "data.columns: 'lable' is unknown; did you mean 'label'?"),
        (["--columns", "{label: lable}"], "data.columns.label: there is no column 'lable'; did you mean 'label'?"),
        (["--variant", "dorra"], "adapter.variant: unknown; did you mean 'dora'?"),
    ],
)
def test_names_in_settings(refused: Callable[..., str], tmp_path: Path, options: list[str], words: str) -> None:
    assert words in refused(write_jsonl(tmp_path / "rows.jsonl", labelled(30)), *options)


def test_as_a_process(bert: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", broken(37, label=None))
    done = lora("train", "-m", bert, "-d", data, "-o", tmp_path / "run")
    place = "the label is missing: line 37"
    said = f"error: {data}: 1 of 60 rows cannot be used:\n  {place}\ncorrect or remove these rows\n"
    assert (done.returncode, done.stderr) == (2, said)
    good = write_jsonl(tmp_path / "good.jsonl", labelled(60, longest=4))
    done = lora("train", "-m", bert, "-d", good, "-o", tmp_path / "run", "--rank", "2", "--max-steps", "1")
    assert done.returncode == 0, done.stderr
    for command in ("eval", "predict"):
        rows = write_jsonl(tmp_path / "new.jsonl", broken(8, text=None))
        done = lora(command, tmp_path / "run", "--data", rows)
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert f"error: {rows}: 1 of 60 rows cannot be used:\n  text is missing: line 8\n" in done.stderr

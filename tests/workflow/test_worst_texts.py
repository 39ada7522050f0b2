"""The worst errors of a run's report have the texts of the data, not what tokens say, however the rows are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lora.config import RunConfig
from lora.data.rows import located
from lora.data.streams import RowStream
from lora.errors import DataError
from lora.evaluation import parts
from lora.workflow import train
from small_base import labelled, write_jsonl


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_are_those_of_the_file(bert: Path, tmp_path: Path, streaming: bool) -> None:
    """Their case, spaces and signs are nothing that a lower-casing tokenizer keeps."""
    rows = [{**row, "text": f"  The  {row['text'].upper()} \N{SLIGHTLY SMILING FACE}"} for row in labelled(80)]
    config = RunConfig.make({
        "model": str(bert), "output": str(tmp_path / "run"), "check": False,
        "data": {"train": str(write_jsonl(tmp_path / "rows.jsonl", rows)), "streaming": streaming},
        "training": {"max_steps": 1, "learning_rate": 1e-5},
    })  # fmt: skip
    train(config, progress=False, latency=False)
    errors = json.loads((tmp_path / "run" / "report.json").read_text())["evaluation"]["errors"]["default"]
    assert len(errors) > 1 and len({its["row"] for its in errors}) == len(errors)
    for its in errors:
        of_file = rows[its["row"] - 1]
        assert (its["text"], its["expected"]) == (of_file["text"], of_file["label"])
    assert errors[0]["text"] in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


def test_only_the_rows_that_are_needed_are_read() -> None:
    read = list[int]()

    def rows() -> Any:
        for row in located([{"text": str(place)} for place in range(100)], "some.jsonl"):
            read.append(row.number)
            yield row

    assert parts._rows_at(RowStream(rows), {2, 5}) == {2: {"text": "2"}, 5: {"text": "5"}} and read[-1] == 6
    assert parts._rows_at([{"text": "a"}, {"text": "b"}], {1}) == {1: {"text": "b"}}
    assert parts._rows_at(RowStream(rows), set()) == {} == parts._rows_at(None, {1})


def test_rows_that_have_gone_cost_no_report() -> None:
    def gone() -> Any:
        raise DataError("rows.jsonl: is not there")
        yield

    assert parts._rows_at(RowStream(gone), {0}) == {}

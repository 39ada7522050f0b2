"""Rows kept for evaluation that are trained on too are said, by what is asked and not by what is answered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lora import DataConfig
from lora.tasks.chat import ChatTask
from lora.training.overlap import trained_too
from lora.training.prepare import read_rows
from small_base import labelled, write_jsonl


@pytest.mark.parametrize("streaming", [False, True])
def test_validation_rows_that_are_trained_on(tmp_path: Path, streaming: bool) -> None:
    rows = labelled(12)
    train = str(write_jsonl(tmp_path / "train.jsonl", rows))
    new = {**rows[0], "text": "nothing of the kind"}
    held = str(write_jsonl(tmp_path / "held.jsonl", [new, {**rows[3], "text": rows[3]["text"].upper()}, new]))
    notes = read_rows(train, held, DataConfig(streaming=streaming), 0).notes
    (note,) = [note for note in notes if "trained on too" in note]
    assert note.startswith("1 of 3 validation rows has an input that is trained on too (") and "2)" in note
    assert not [note for note in read_rows(train, None, DataConfig(), 0).notes if "trained on too" in note]


def test_of_a_conversation_what_is_asked_counts() -> None:
    def row(said: str, answer: str) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]}

    task = ChatTask(messages="messages")
    assert trained_too(task, [row("Hi", "one"), row("Why", "x")], [row("So", "one"), row("hi ", "two")]) == [1]

"""What is said while training where output is no terminal."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from lora import Job, LoRA, fit
from lora.training import progress
from small_base import labelled


@pytest.fixture
def model(bert: Any) -> LoRA:
    return LoRA(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), name=None)


def jobs(**training: Any) -> dict[str, Job]:
    return {
        name: Job(labelled(24, 0), labelled(8, 1), {"rank": 2}, {"batch_size": 8, "max_steps": 3, **own})
        for name, own in (("steady", {}), ("wild", training))
    }


def test_lines_tell_of_steps_evaluations_and_notes(model: LoRA, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(progress.Lines, "PERIOD", 0.0)
    fit(model, jobs(learning_rate=1e30), memory_gib=1e-6)
    said = capsys.readouterr().err
    assert "steady: step 2 of 3: loss " in said and "steady: step 3: " in said
    assert "wild: stopped: step " in said and "layers are recomputed in the backward" in said


def test_once_in_a_while(model: LoRA, capsys: Any) -> None:
    fit(model, jobs(), memory_gib=1000)
    assert " of 3: loss" not in capsys.readouterr().err


def test_silence_where_it_is_asked_for(model: LoRA, capsys: Any) -> None:
    fit(model, jobs(learning_rate=1e30), memory_gib=1e-6, progress=False)
    assert "step" not in capsys.readouterr().err

"""Numbers that hold where the caller says nothing have one home, and the documentation says the same."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from lora import evaluate, predict
from lora.cli.eval import command as eval_command
from lora.cli.predict import command as predict_command
from lora.config import EVAL_BATCH_SIZE, LATENCY_ROWS, MAX_NEW_TOKENS, TrainingConfig
from lora.evaluation.generation import complete
from lora.evaluation.predict import predict_iter
from lora.tasks.inference import infer

DOCUMENT = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.mark.parametrize("function", [evaluate, predict, predict_iter, complete, infer])
def test_python_takes_them_from_the_configuration(function) -> None:
    defaults = {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
    assert defaults["batch_size"] == EVAL_BATCH_SIZE
    assert defaults.get("latency_rows", LATENCY_ROWS) == LATENCY_ROWS
    assert defaults.get("max_new_tokens") in (None, MAX_NEW_TOKENS)


def test_so_do_the_commands() -> None:
    for command in (eval_command, predict_command):
        defaults = {option.name: option.default for option in command.params}
        assert defaults["batch_size"] == EVAL_BATCH_SIZE
        assert defaults.get("max_new_tokens", MAX_NEW_TOKENS) == MAX_NEW_TOKENS


def test_the_document_names_them() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    for words in (
        f"`batch_size` ({EVAL_BATCH_SIZE})",
        f"up to {MAX_NEW_TOKENS} new tokens",
        f"Up to {LATENCY_ROWS} rows",
    ):
        assert words in text


def test_evaluation_in_training_takes_twice_the_batch_unless_told() -> None:
    assert TrainingConfig(batch_size=5).evaluation_rows == 10
    assert TrainingConfig(batch_size=5, eval_batch_size=7).evaluation_rows == 7

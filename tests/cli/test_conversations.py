"""Conversations, preferences and rewards by the real command: train, evaluate and predict in processes of their own."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

import command
from chat_base import save_chat_base, sentences
from small_base import write_jsonl


def lora(*arguments: Any, folder: Path) -> subprocess.CompletedProcess[str]:
    done = command.lora(*arguments, cwd=folder)
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversations")
    save_chat_base(folder / "base")
    asked, said = sentences(40, 1), sentences(40, 2)
    turns = [
        [{"from": "human", "value": asked[i]}, {"from": "gpt", "value": f"{said[i]} now"},
         {"from": "human", "value": "red"}, {"from": "gpt", "value": "blue"}]
        for i in range(40)
    ]  # fmt: skip
    write_jsonl(folder / "talk.jsonl", [{"conversations": its} for its in turns])
    pairs = [{"prompt": asked[i], "chosen": f"cat {said[i]}", "rejected": f"dog {said[i]}"} for i in range(40)]
    write_jsonl(folder / "pairs.jsonl", pairs)
    return folder


COMMON = ["--model", "base", "--dtype", "float32", "--max-steps", 6, "--learning-rate", "2e-2", "--rank", 4]


def test_a_chat_adapter_and_its_format(place: Path) -> None:
    options = ["--options", "learn: last, system_prompt: be small"]
    done = lora("train", *COMMON, "--data", "talk.jsonl", "--output", "chat", *options, folder=place)
    assert done.returncode == 0, done.stderr
    assert "Task chat: messages from column 'conversations'" in done.stderr
    assert done.stderr.count("Chat template: the tokenizer's own.") == 1
    kept = json.loads((place / "chat/adapter/lora.json").read_text())["task"]
    assert kept["learn"] == "last" and "<|im_start|>" in kept["format"]["template"] and kept["format"]["golden"]
    # The base's template changes afterwards: the adapter is still asked in its own.
    file = place / "base/chat_template.jinja"
    before = file.read_text()
    asked = [{"conversations": [{"from": "human", "value": "red sun"}]}]
    write_jsonl(place / "asked.jsonl", asked)
    first = lora("predict", "chat", "--data", "asked.jsonl", "--max-new-tokens", 6, folder=place)
    file.write_text("{{ 'something else' }}")
    try:
        second = lora("predict", "chat", "--data", "asked.jsonl", "--max-new-tokens", 6, folder=place)
    finally:
        file.write_text(before)
    assert first.returncode == 0 and first.stdout == second.stdout, second.stderr
    (row,) = [json.loads(line) for line in first.stdout.splitlines()]
    assert row["completion"] and "<|im_" not in row["completion"]
    measured = lora("eval", "chat", "--data", "talk.jsonl", "--generate", 4, "--max-new-tokens", 6, folder=place)
    assert measured.returncode == 0 and "ROUGE-L" in measured.stdout, measured.stderr


def test_preferences_with_the_base_as_reference(place: Path) -> None:
    done = lora(
        "train", *COMMON, "--data", "pairs.jsonl", "--output", "preferred", "--options", "beta: 0.5", folder=place
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((place / "preferred/report.json").read_text())["evaluation"]["metrics"]
    assert report["default"]["margin"] > 0 == report["base"]["margin"] and report["base"]["accuracy"] == 0.5
    assert json.loads((place / "preferred/adapter/lora.json").read_text())["task"]["beta"] == 0.5
    refused = lora("train", *COMMON, "--data", "pairs.jsonl", "--output", "x", "--options", "betta: 1", folder=place)
    assert refused.returncode == 2 and "data.options.betta: unknown setting; did you mean 'beta'?" in refused.stderr


def test_rewards(place: Path) -> None:
    task = ["--task", "reward", "--output", "reward"]
    done = lora("train", *COMMON, "--data", "pairs.jsonl", *task, folder=place)
    assert done.returncode == 0, done.stderr
    pairs = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    answers = [{"prompt": row["prompt"], "completion": row[key]} for row in pairs for key in ("chosen", "rejected")]
    scored = lora("predict", "reward", "--data", write_jsonl(place / "answers.jsonl", answers), folder=place)
    rewards = [json.loads(line)["reward"] for line in scored.stdout.splitlines()]
    right = sum(good > bad for good, bad in zip(rewards[::2], rewards[1::2], strict=True))
    assert right > 30, "of 40"


def test_from_answers_to_preferences(place: Path) -> None:
    """An adapter that has learned answers learns from pairs, where the task is named; else its own stays."""
    rows = [{"prompt": text, "completion": "cat now"} for text in sentences(24, 9)]
    write_jsonl(place / "shown.jsonl", rows)
    first = lora("train", *COMMON, "--data", "shown.jsonl", "--output", "first", folder=place)
    assert first.returncode == 0, first.stderr
    further = ["--start", "first", "--max-steps", 2, "--data", "pairs.jsonl", "--output", "second"]
    assert "no row has the column 'completion'" in lora("train", *further, folder=place).stderr
    done = lora("train", *further, "--task", "preference", folder=place)
    assert done.returncode == 0 and "Task preference" in done.stderr, done.stderr
    refused = lora("train", *further, "--task", "reward", "--overwrite", folder=place)
    assert refused.returncode == 2 and "'reward' needs another model than the task causal" in refused.stderr

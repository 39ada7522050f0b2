"""Every task makes up rows for a plan, lengthens its own, and both train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import lora
from lora import RunConfig
from lora.checks.stand_in import longer, made_up
from lora.config import DataConfig, TrainingConfig
from lora.registry import TASKS as NAMES
from lora.tasks import TASKS, Task
from lora.tasks.inputs import task_for
from small_base import labelled, stories, tagged, tokenizer, write_jsonl

PAIRS = [{**row, "chosen": f"{row['completion']} cat", "rejected": "dog"} for row in stories(12)]
TALK = [
    {"messages": [{"role": "user", "content": r["prompt"]}, {"role": "assistant", "content": r["completion"]}]}
    for r in stories(12)
]
NUMBERS = [{**row, "label": len(row["text"]) / 7} for row in labelled(12)]
LISTS = [{**row, "label": [row["label"], *(["long"] if len(row["text"]) > 30 else [])]} for row in labelled(12)]
ROWS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "classification": (labelled(12), "bert"), "token-classification": (tagged(12), "bert"),
    "multi-label": (LISTS, "bert"), "regression": (NUMBERS, "bert"), "causal": (stories(12), "llama"),
    "chat": (TALK, "llama"), "preference": (PAIRS, "llama"), "reward": (PAIRS, "llama"), "seq2seq": (stories(12), "t5"),
}  # fmt: skip
OPTIONS = {"chat": {"template": "plain"}}


def test_all_tasks_are_here() -> None:
    assert set(ROWS) == set(NAMES) == set(TASKS)


def encoded(name: str) -> tuple[Task, Any]:
    rows, kind = ROWS[name]
    tokens: Any = tokenizer(kind)
    roles = {"reward": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}.get(name)
    task, _ = task_for(rows, DataConfig.make({"task": name, "options": OPTIONS.get(name, {}), "columns": roles or {}}))
    task = task.with_tokenizer(tokens)
    return task, task.encode(rows, tokens, 64)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_size_is_what_encoding_counts(name: str) -> None:
    task, found = encoded(name)
    for example, tokens, supervised in zip(found.examples, found.lengths, found.supervised, strict=True):
        assert task.size(example)[:2] == (tokens, supervised)
    longest = max(task.size(example)[2] for example in found.examples)
    rows, kind = ROWS[name]
    kept = task.encode(rows, tokenizer(kind), longest)
    assert kept.truncated == 0, "max_length limits what is counted, and no less"
    cut = task.encode(rows, tokenizer(kind), longest - 1)
    assert cut.truncated > 0, "and no more"


@pytest.mark.parametrize("length", [3, 7, 40])
@pytest.mark.parametrize("name", sorted(NAMES))
def test_rows_of_a_length_are_like_their_own_and_made_up(name: str, length: int) -> None:
    task, found = encoded(name)
    example = max(found.examples, key=lambda example: task.size(example)[2])
    for its, row in ((task, example), type(task).made_up(5)):
        made = its.of_length(row, length)
        assert set(made) == set(row) and its.size(made)[2] == length and its.size(made)[1] >= 1
        batch = its.collate([made, made], 0)
        assert all(value.shape[0] in (2, 4) for value in batch.values())
    if name == "preference":
        prompt, chosen, rejected = task.of_length(example, length)["branches"]
        ids = task.of_length(example, length)["input_ids"]
        assert min(prompt, chosen, rejected) >= 1 and prompt + chosen + rejected == len(ids)
        assert chosen >= rejected, "the chosen answer is the longer one of these rows"


@pytest.mark.parametrize("name", sorted(NAMES))
def test_a_plan_of_every_task_without_data_with_data_and_of_another_length(
    name: str, tmp_path: Path, bert: Path, llama: Path, t5: Path
) -> None:
    rows, kind = ROWS[name]
    base = {"bert": bert, "llama": llama, "t5": t5}[kind]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings: dict[str, Any] = {"training": {"batch_size": 2, "dtype": "float32"}, "adapter": {"rank": 2}}
    common = {"task": name, "options": OPTIONS.get(name, {})}
    own = lora.plan(RunConfig(model=str(base), data={**common, "train": str(data)}, **settings), search=False)
    other = lora.plan(
        RunConfig(model=str(base), data={**common, "train": str(data)}, **settings), length=60, search=False
    )
    bare = lora.plan(RunConfig(model=str(base), data=common, **settings), length=60, search=False)
    assert own.length < 60 == other.length == bare.length
    assert other.peak > own.peak and other.steps == own.steps and bare.steps is None
    assert name in bare.notes[0] and name in other.notes[0] and "as if each had 60" in other.notes[0]
    assert bare.tokens >= 2 * 60


@pytest.mark.parametrize("name", sorted(NAMES))
def test_longer_rows_hold_batches_of_training_and_evaluation(name: str) -> None:
    prepared = made_up(name, 9, 4, held=2, labels=3)
    made = longer(prepared, 21, TrainingConfig(batch_size=3, eval_batch_size=5))
    assert len(made.train) == 3 and made.held is not None and len(made.held) == 5
    assert made.task.size(made.train.examples[0])[2] == 21
    assert torch.is_tensor(made.task.collate(list(made.train.examples), 0)["input_ids"])

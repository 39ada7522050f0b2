"""Tags for words from Python: fit, evaluate, predict, and a model of another kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lora import LoRA, evaluate, fit, predict
from lora.data.batches import BatchPlan
from lora.errors import ConfigError, DataError, ModelError
from lora.tasks.token_classification import TokenClassificationTask
from small_base import tagged, tokenizer
from tiny_models import randomise, tiny

TAGS = ["B-animal", "B-sky", "I-animal", "I-sky", "O"]


def model(**settings: Any) -> LoRA:
    return LoRA(tiny("bert-tokens", num_labels=5, **settings), rank=2)


def test_fit_evaluate_and_predict() -> None:
    tuned, words = model(), tokenizer("bert")
    result = fit(tuned, tagged(40), tokenizer=words, max_steps=3, learning_rate=1e-2, progress=False)
    assert result.best_metric == "f1" and result.data.task.labels == TAGS
    assert tuned.base.config.id2label == dict(enumerate(TAGS))
    rows = tagged(20, seed=7)
    found = evaluate(tuned, rows, tokenizer=words, latency=False)
    said = predict(tuned, [" ".join(row["tokens"]) for row in rows], tokenizer=words)
    assert [answer["words"] for answer in said] == [row["tokens"] for row in rows] and found.rows == 20
    right = [a == b for answer, row in zip(said, rows) for a, b in zip(answer["tags"], row["tags"], strict=True)]
    assert found["default"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert found.reference is not None and "the most frequent tag" in found.reference["name"]
    assert "per_class" in found["base"] and "| sky |" in found.to_markdown()
    with pytest.raises(ConfigError, match="f1_makro"):
        fit(model(), tagged(40), tokenizer=words, max_steps=1, best_metric="f1_makro", progress=False)


def test_without_a_stored_task_labels_are_in_the_models_order() -> None:
    """An adapter of PEFT's: the rows say which tags there are, the model's config which output is which."""
    order = ["O", "B-sky", "I-sky", "B-animal", "I-animal"]
    tuned = model(id2label=dict(enumerate(order)), label2id={tag: n for n, tag in enumerate(order)})
    randomise(tuned.adapter_parameters("default").values())
    words, rows = tokenizer("bert"), tagged(20)
    found = evaluate(tuned, rows, tokenizer=words, latency=False)
    task = TokenClassificationTask(order, scheme="IOB2")
    assert found["default"] == evaluate(tuned, rows, tokenizer=words, task=task, latency=False)["default"]
    batch = task.collate(task.encode(rows, words, 40).examples, 0)
    with torch.no_grad():
        logits = tuned(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    right = (logits.argmax(-1) == batch["labels"]).sum() / (batch["labels"] >= 0).sum()
    assert found["default"]["accuracy"] == pytest.approx(float(right))


def test_a_text_alone_is_like_a_string(tmp_path: Path) -> None:
    tuned, words = model(), tokenizer("bert")
    task = TokenClassificationTask(TAGS, scheme="IOB2")
    file = tmp_path / "new.txt"
    file.write_text("big cat here\n\nmoon\n")
    wanted = predict(tuned, ["big cat here", "moon"], tokenizer=words, task=task)
    assert [answer["words"] for answer in wanted] == [["big", "cat", "here"], ["moon"]]
    assert predict(tuned, file, tokenizer=words, task=task) == wanted
    listed = predict(tuned, [{"tokens": ["big", "cat", "here"]}, {"tokens": "moon"}], tokenizer=words, task=task)
    assert [answer["tags"] for answer in listed] == [answer["tags"] for answer in wanted]
    with pytest.raises(DataError, match="tokens is empty: row 2"):
        predict(tuned, [{"tokens": ["big"]}, {"tokens": []}], tokenizer=words, task=task)


def test_training_takes_the_steps_of_peft_in_a_plain_loop(tmp_path: Path) -> None:
    import peft

    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    ours = model(**quiet)
    ours.save_adapter("default", tmp_path)
    options = {"learning_rate": 1e-2, "batch_size": 8, "schedule": "constant", "warmup_ratio": 0.0, "clip": None}
    result = fit(ours, tagged(40), False, tokenizer=tokenizer("bert"), max_steps=5, progress=False, **options)
    theirs = peft.PeftModel.from_pretrained(tiny("bert-tokens", num_labels=5, **quiet), tmp_path, is_trainable=True)
    assert theirs.peft_config["default"].task_type == "TOKEN_CLS"
    parameters = [parameter for parameter in theirs.parameters() if parameter.requires_grad]
    assert sum(p.numel() for p in parameters) == sum(p.numel() for p in ours.adapter_parameters("default").values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.0)
    losses, data = [], result.data
    for rows in BatchPlan(data.train.lengths, 8, 0).epoch(0):
        loss = theirs.train()(**data.task.collate([data.train.examples[row] for row in rows], 0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    found = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0]
    assert found == pytest.approx(losses, rel=1e-3)


@pytest.mark.parametrize(("arch", "labels"), [("bert", 5), ("bert-tokens", 3), ("llama", 5)])
def test_a_model_that_does_not_fit_is_refused(arch: str, labels: int) -> None:
    wrong = LoRA(tiny(arch, num_labels=labels), rank=2)
    with pytest.raises((ModelError, ConfigError)) as caught:
        fit(wrong, tagged(40), tokenizer=tokenizer("bert"), max_steps=1, progress=False)
    assert ("num_labels=5" if arch == "bert-tokens" else "AutoModelForTokenClassification") in str(caught.value)

"""Tags for words from Python: fit, evaluate, predict, and a model of another kind."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lora import LoRA, evaluate, fit, predict
from lora.errors import ConfigError, ModelError
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


@pytest.mark.parametrize(("arch", "labels"), [("bert", 5), ("bert-tokens", 3), ("llama", 5)])
def test_a_model_that_does_not_fit_is_refused(arch: str, labels: int) -> None:
    wrong = LoRA(tiny(arch, num_labels=labels), rank=2)
    with pytest.raises((ModelError, ConfigError)) as caught:
        fit(wrong, tagged(40), tokenizer=tokenizer("bert"), max_steps=1, progress=False)
    assert ("num_labels=5" if arch == "bert-tokens" else "AutoModelForTokenClassification") in str(caught.value)

"""Classification, multi-label and regression: labels, tokens, losses, predictions, metrics."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from sklearn.metrics import f1_score

from lora.errors import DataError
from lora.tasks import TASKS, Task, from_state
from lora.tasks.classification import ClassificationTask
from lora.tasks.multilabel import MultiLabelTask
from lora.tasks.recognise import recognise

SHARED = Path(__file__).parents[2].parent / "shared"
QUICK = settings(max_examples=40, deadline=None)


def rows(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text number {number}", "label": label} for number, label in enumerate(labels)]


def learn(name: str, labels: list[Any]) -> Task:
    return TASKS[name].from_rows(rows(labels), {"text": "text", "label": "label"})


def outputs(logits: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(logits=logits)


def refusal(call: Any, *args: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*args)
    return str(caught.value)


@pytest.mark.parametrize(
    ("values", "names", "restored"),
    [
        (["spam", "ham", " spam "], ["ham", "spam"], "ham"),
        ([10, 9, 2], ["2", "9", "10"], 2),
        (["10", "9", "2"], ["2", "9", "10"], "2"),
        ([True, False], ["False", "True"], False),
        ([1.0, 3, 2.0], ["1.0", "2.0", "3.0"], 1.0),
        ([1, "b"], ["1", "b"], "1"),
        ([2**60 + 1, 2**60], [str(2**60), str(2**60 + 1)], 2**60),
        (["nan", "1", "inf"], ["1", "inf", "nan"], "1"),
    ],
)
def test_classes_are_sorted_and_come_back_in_their_own_type(
    values: list[Any], names: list[str], restored: Any, tokenizer: Any
) -> None:
    task = learn("classification", values)
    assert task.model_options()["id2label"] == dict(enumerate(names))
    assert task.model_options()["label2id"] == {name: place for place, name in enumerate(names)}
    logits = torch.full((1, len(names)), -5.0)
    logits[0, 0] = 5.0
    said = task.predictions(outputs(logits), {})[0]
    assert said["label"] == restored and type(said["label"]) is type(restored)
    assert said["score"] == said["probabilities"][0] and math.isclose(sum(said["probabilities"]), 1, rel_tol=1e-5)
    encoded = task.encode(rows(values), tokenizer, 64)
    assert [str(value).strip() for value in task.targets(encoded.examples)] == [
        names[place] for place in task.collate(encoded.examples, 0)["labels"].tolist()
    ]


@pytest.mark.parametrize(
    ("labels", "alike"),
    [
        (["true", "TRUE", "False", "false"], "'False' and 'false', 'TRUE' and 'true'"),
        (["01", "1", "2", "20", "020"], "'01' and '1', '020' and '20'"),
        (["a  b", "a b", "ab", "¹", "1"], "'a  b' and 'a b'."),
        ([1, 2, 1.0], ""),
        ([1, "1.0", True, 2], "'1' and '1.0' and 'True'"),
        (["caf\u00e9", "cafe\u0301", "cafe"], r"'cafe\u0301' and 'caf\xe9'."),
        ([True, False], ""),
    ],
)
def test_labels_that_look_alike_are_told(labels: list[Any], alike: str) -> None:
    for task in (learn("classification", labels), learn("multi-label", [[label] for label in labels])):
        said = " ".join(task.remarks())
        assert alike in said and bool(said) == bool(alike)


def test_validation_labels_of_another_spelling_of_the_same_value(tokenizer: Any) -> None:
    task = learn("classification", [1, 2, 3])
    assert task.targets(task.encode(rows(["1", 2.0, 3]), tokenizer, 64).examples) == [1, 2, 3]
    task = learn("classification", [True, False])
    assert task.targets(task.encode(rows(["true", "FALSE", True]), tokenizer, 64).examples) == [True, False, True]


@pytest.mark.parametrize("name", ["classification", "multi-label", "regression"])
def test_state_is_json_and_its_keys_are_the_constructors(name: str, tokenizer: Any) -> None:
    labels = {"classification": ["a", "b"], "multi-label": [["a"], ["b", "c"]], "regression": [1.5, 2.5]}[name]
    task = learn(name, labels)
    again = from_state(json.loads(json.dumps(task.state())))
    assert type(again) is type(task) and again.state() == task.state()
    assert again.model_options() == task.model_options()
    assert again.encode(rows(labels), tokenizer, 64).examples == task.encode(rows(labels), tokenizer, 64).examples


@pytest.mark.parametrize(
    ("name", "labels", "parts"),
    [
        (
            "classification",
            ["a", None, float("nan"), " ", "b"],
            ["3 of 5 rows", "the label is missing: rows 2, 3", "is empty: row 4"],
        ),
        ("classification", ["a", ["b"], {}], ["['b'] is not a single value", "set data.task multi-label"]),
        ("classification", ["a", "a "], ["every row has the label 'a'", "two classes"]),
        ("classification", [None] * 9, ["rows 1, 2, 3, 4, 5 and 4 more"]),
        (
            "multi-label",
            [["a"], None, 3, ["b", None], [["c"]]],
            ["missing: row 2", "3 is not a list", "in the list: the label is missing: row 4", "row 5"],
        ),
        ("multi-label", [[], []], ["no row has a label"]),
        ("multi-label", [["a"], ["a"]], ["every row has the same labels (a)"]),
        (
            "regression",
            [1, "x", "nan", math.inf, None, True, ""],
            [
                "6 of 7 rows",
                "'x' is not a number: row 2",
                "nan is not finite: row 3",
                "inf is not finite: row 4",
                "True is not a number",
                "is empty: row 7",
            ],
        ),
        ("regression", [2, 2.0], ["every row has the label 2"]),
    ],
)
def test_bad_labels_are_refused_together(name: str, labels: list[Any], parts: list[str]) -> None:
    message = refusal(learn, name, labels)
    for part in parts:
        assert part in message


def test_many_kinds_of_problem_are_counted() -> None:
    message = refusal(learn, "regression", [f"word {number}" for number in range(100)])
    assert "100 of 100 rows" in message and "'word 7' is not a number: row 8" in message
    assert "… and 92 more of the kind" in message and len(message.splitlines()) == 11


def test_half_a_character_is_no_text(tokenizer: Any) -> None:
    data = [{"text": "a\ud800b", "label": "x"}, {"text": "fine \U0001f600", "label": "y\udfff"}]
    message = refusal(TASKS["classification"].from_rows, data, {"text": "text", "label": "label"})
    assert "text holds half a character ('\\ud800' at 2): row 1" in message
    assert "the label holds half a character ('\\udfff' at 2): row 2" in message


@pytest.mark.parametrize("name", ["classification", "multi-label", "regression"])
def test_bad_texts_are_refused_together(name: str, tokenizer: Any) -> None:
    data = [{"text": text, "label": "1"} for text in (None, "  ", 5, "fine", float("nan"))]
    message = refusal(TASKS[name].from_rows, data, {"text": "text", "label": "label"})
    for part in (
        "4 of 5 rows",
        "text is missing: rows 1, 5",
        "text is empty: row 2",
        "of the type int, not text: row 3",
    ):
        assert part in message
    task = learn(name, {"classification": ["1", "2"], "multi-label": [["1"], ["2"]], "regression": [1, 2]}[name])
    assert "text is empty: row 2" in refusal(task.encode, data, tokenizer, 64, False)
    other = [{"body": "x", "label": "1"}]
    assert "no row has the column 'text'; columns there are: body, label" in refusal(task.encode, other, tokenizer, 64)
    assert "no row has the column 'label'" in refusal(task.encode, [{"text": "x"}], tokenizer, 64)
    assert "there are no rows" in refusal(task.encode, [], tokenizer, 64)
    assert task.encode([{"text": "x"}], tokenizer, 64, supervised=False).supervised == [0]


@pytest.mark.parametrize("name", ["classification", "multi-label"])
def test_labels_that_training_has_not_seen(name: str, tokenizer: Any) -> None:
    wrap = (lambda label: [label]) if name == "multi-label" else (lambda label: label)
    task = learn(name, [wrap("card"), wrap("order")])
    message = refusal(task.encode, rows([wrap("cards"), wrap("zebra"), wrap("zebra"), wrap("card")]), tokenizer, 64)
    for part in (
        "not in the training data, but here as labels (2)",
        "'zebra': 2 rows",
        "'cards': 1 row (did you mean 'card'?)",
        "known: card, order",
    ):
        assert part in message


def test_tokens_are_cut_on_the_right_and_counted(tokenizer: Any) -> None:
    task = learn("classification", ["a", "b"])
    data = [{"text": "card " * 40, "label": "a"}, {"text": "card", "label": "b"}]
    tokenizer.truncation_side = "left"
    try:
        encoded = task.encode(data, tokenizer, 10)
        assert tokenizer.truncation_side == "left"
    finally:
        tokenizer.truncation_side = "right"
    full = tokenizer(data[0]["text"])["input_ids"]
    assert encoded.examples[0]["input_ids"] == [*full[:9], tokenizer.eos_token_id]
    assert encoded.examples[1]["input_ids"] == tokenizer("card")["input_ids"]
    assert encoded.lengths == [10, len(tokenizer("card")["input_ids"])] and encoded.supervised == [1, 1]
    assert encoded.truncated == 1 and encoded.notes == ["1 of 2 rows was longer than 10 tokens and was cut."]


def test_of_a_pair_the_longer_text_is_cut(tokenizer: Any) -> None:
    data = [{"text": "card " * 40, "other": "the order", "label": "a"}, {"text": "x", "other": "y", "label": "b"}]
    task = TASKS["classification"].from_rows(data, {"text": "text", "text_pair": "other", "label": "label"})
    ids = task.encode(data, tokenizer, 16).examples[0]["input_ids"]
    assert len(ids) == 16 and tokenizer.decode(ids).replace("</s>", "").rstrip().endswith("the order")
    assert "other is missing: row 1" in refusal(
        task.encode, [{"text": "x", "other": None, "label": "a"}], tokenizer, 16
    )


@pytest.mark.parametrize("side", ["right", "left"])
def test_collate_masks_by_length(side: str, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer(begin=True, end=True, pad_is_eos=True)
    task = learn("classification", ["a", "b"])
    encoded = task.encode(
        [{"text": "card", "label": "a"}, {"text": "the order has not arrived", "label": "b"}], tokenizer, 64
    )
    batch = task.collate(encoded.examples, tokenizer.pad_token_id, side)
    assert batch["attention_mask"].sum(1).tolist() == encoded.lengths
    for row, mask, example in zip(batch["input_ids"], batch["attention_mask"], encoded.examples):
        assert row[mask.bool()].tolist() == example["input_ids"]
    assert batch["attention_mask"][0, 0 if side == "right" else -1] == 1
    assert batch["labels"].tolist() == [0, 1]
    assert "labels" not in task.collate(task.encode([{"text": "x"}], tokenizer, 64, supervised=False).examples, 0)


@QUICK
@given(
    b=st.integers(1, 6),
    c=st.integers(2, 9),
    extra=st.integers(0, 3),
    smoothing=st.sampled_from([0.0, 0.1, 0.5]),
    seed=st.integers(0, 99),
)
def test_losses_are_torchs_and_ignore_padded_columns(b: int, c: int, extra: int, smoothing: float, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(b, c, generator=random) * 5
    padded = torch.cat([logits, torch.full((b, extra), -math.inf)], dim=1).to(torch.bfloat16).requires_grad_()
    logits = logits.to(torch.bfloat16).float()
    task = from_state({"task": "classification", "labels": [str(n) for n in range(c)]})
    labels = torch.randint(c, (b,), generator=random)
    losses, counts = task.row_losses(outputs(padded), {"labels": labels}, smoothing)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
    torch.testing.assert_close(losses, expected)
    assert losses.dtype == torch.float32 and counts.tolist() == [1] * b
    losses.sum().backward()
    assert padded.grad is not None and padded.grad.isfinite().all()
    assert all(0 <= index < c for index in (int(row["label"]) for row in task.predictions(outputs(padded), {})))

    task = from_state({"task": "multi-label", "labels": [str(n) for n in range(c)]})
    hot = torch.randint(2, (b, c), generator=random).float()
    losses, counts = task.row_losses(outputs(padded), {"labels": hot}, smoothing)
    smooth = hot * (1 - smoothing) + smoothing / 2
    torch.testing.assert_close(
        losses, torch.nn.functional.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)
    )
    assert counts.tolist() == [1] * b and all(
        len(row["probabilities"]) == c for row in task.predictions(outputs(padded), {})
    )

    task = from_state({"task": "regression", "mean": 3.0, "std": 2.0})
    target = torch.randn(b, generator=random)
    losses, _ = task.row_losses(outputs(padded), {"labels": target}, smoothing)
    torch.testing.assert_close(losses, torch.nn.functional.mse_loss(logits[:, 0], target, reduction="none"))
    np.testing.assert_allclose(task.predictions(outputs(padded), {}), logits[:, 0].numpy() * 2 + 3, rtol=1e-5)


def test_losses_agree_with_the_models_own(tokenizer: Any) -> None:
    from transformers import BertConfig, BertForSequenceClassification

    for name, labels in (
        ("classification", ["a", "b", "c"]),
        ("multi-label", [["a"], [], ["b", "a"]]),
        ("regression", [1.0, 5.0, 2.5]),
    ):
        task = learn(name, labels)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
            max_position_embeddings=64, **task.model_options(),
        )  # fmt: skip
        model = BertForSequenceClassification(config).eval()
        batch = task.collate(task.encode(rows(labels), tokenizer, 64).examples, tokenizer.pad_token_id)
        out = model(**batch)
        sums, counts = task.row_losses(out, batch)
        torch.testing.assert_close(sums.sum() / counts.sum(), out.loss)


def test_regression_learns_a_scaled_number(tokenizer: Any) -> None:
    task = learn("regression", ["1000", 3000, 2000.0])
    batch = task.collate(task.encode(rows(["1000", 3000, 2000.0]), tokenizer, 64).examples, 0)
    assert math.isclose(float(batch["labels"].mean()), 0, abs_tol=1e-6)
    assert math.isclose(float(batch["labels"].std(correction=0)), 1, rel_tol=1e-6)
    np.testing.assert_allclose(
        task.predictions(outputs(batch["labels"].unsqueeze(1)), {}), [1000, 3000, 2000], rtol=1e-6
    )
    tiny = learn("regression", [1e-200, 3e-200])
    assert tiny.state()["std"] > 0 and learn("regression", [-1e200, 1e200]).state()["std"] < math.inf


def test_labels_in_a_string_are_split(tokenizer: Any) -> None:
    task = learn("multi-label", ["a;b", "b | c", "", '["d"]'])
    assert task.model_options()["num_labels"] == 4
    assert task.targets(task.encode(rows(["c;a;c", ""]), tokenizer, 64).examples) == [["c", "a"], []]
    task = learn("multi-label", [[3, 10], [10]])
    assert task.predictions(outputs(torch.tensor([[-1.0, 1.0]])), {})[0]["labels"] == [10]


def said(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"label": label} for label in labels]


def test_classification_metrics() -> None:
    task = from_state({"task": "classification", "labels": ["a", "b", "c", "never"]})
    true, guess = ["a", "a", "b", "c"], ["a", "b", "b", "b"]
    metrics = task.metrics(said(guess), true, loss_sum=6.0, count=4)
    assert metrics["loss"] == 1.5 and metrics["accuracy"] == 0.5
    for kind in ("macro", "micro", "weighted"):
        assert metrics[f"f1_{kind}"] == pytest.approx(f1_score(true, guess, average=kind, zero_division=0))
    assert metrics["per_class"]["never"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert metrics["per_class"]["a"] == {"precision": 1.0, "recall": 0.5, "f1": pytest.approx(2 / 3), "support": 2}
    assert metrics["confusion"]["matrix"][0] == [1, 1, 0, 0] and metrics["confusion"]["labels"][2] == "c"
    assert task.best_metric in metrics and json.dumps(metrics)


def test_multilabel_metrics() -> None:
    task = from_state({"task": "multi-label", "labels": ["a", "b", "never"]})
    metrics = task.metrics([{"labels": ["a"]}, {"labels": ["a", "b"]}], [["a"], ["b"]], 1.0, 2)
    assert metrics["accuracy"] == 0.5 and metrics["hamming"] == pytest.approx(1 / 6)
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 1) / 2), "a label that occurs nowhere does not count"
    assert metrics["f1_micro"] == pytest.approx(0.8) and metrics["per_class"]["b"]["f1"] == 1.0
    assert task.metrics([{"labels": []}], [[]], 1.0, 1)["f1_macro"] == 0.0
    assert task.best_metric in metrics and json.dumps(metrics)


def test_regression_metrics() -> None:
    task = from_state({"task": "regression", "mean": 0.0, "std": 1.0})
    metrics = task.metrics([1.0, 2.0, 4.0], [1.0, 2.0, 3.0], 1.0, 3)
    assert metrics["mse"] == pytest.approx(1 / 3) and metrics["rmse"] == pytest.approx(3**-0.5)
    assert metrics["mae"] == pytest.approx(1 / 3) and metrics["r2"] == pytest.approx(0.5)
    assert metrics["pearson"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 2, 3])[0, 1])
    assert task.metrics([1.0, 1.0], [1.0, 2.0], 1.0, 2)["pearson"] is None
    flat = task.metrics([1.0], [2.0], 1.0, 1)
    assert flat["r2"] is None and flat["pearson"] is None and flat["rmse"] == 1.0
    assert task.metrics([math.nan], [2.0], 1.0, 1)["rmse"] == math.inf
    huge = task.metrics([1e308, 0.0], [-1e308, 1.0], 1.0, 2)  # finite, but for their squares
    assert huge["rmse"] == math.inf and huge["r2"] is None and huge["pearson"] is None


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the shared data sets are not on this machine")
@pytest.mark.parametrize(
    ("folder", "name", "classes"), [("snips", "classification", 7), ("goemotions", "multi-label", 28)]
)
def test_real_data(folder: str, name: str, classes: int, tokenizer: Any) -> None:
    from lora.config import DataConfig
    from lora.data.sources import load_rows

    train, test = load_rows(str(SHARED / "data" / folder)), load_rows(f"{SHARED / 'data' / folder}#200", "test")
    columns = recognise(train, DataConfig())
    assert columns.task == name
    task = TASKS[name].from_rows(train, columns.roles)
    encoded = task.encode(test, tokenizer, 32)
    assert task.model_options()["num_labels"] == classes and len(encoded) == 200 and max(encoded.lengths) <= 32
    batch = task.collate(encoded.examples, 0)
    logits = torch.zeros(200, classes)
    predictions = task.predictions(outputs(logits), batch)
    sums, counts = task.row_losses(outputs(logits), batch)
    metrics = task.metrics(predictions, task.targets(encoded.examples), float(sums.sum()), int(counts.sum()))
    assert metrics["loss"] == pytest.approx(math.log(classes) if name == "classification" else math.log(2), rel=1e-5)


@pytest.mark.parametrize(
    ("labels", "classes", "words"),
    [
        ([1, "1", 2], ["1", "2"], "types (int, str) and taken as they are written; one label each are 1 and '1'."),
        ([1.0, "1", 2.0], ["1", "1.0", "2.0"], "alike are taken as different ones: '1' and '1.0'."),
        (
            [True, "true", "no"],
            ["True", "no", "true"],
            "(bool, str) and taken as they are written. Labels",
        ),
        ([True, "True", "no"], ["True", "no"], "one label each are True and 'True'."),
        ([1, 1.0, 2], ["1.0", "2.0"], ""),
        (["1", "2"], ["1", "2"], ""),
        (["1.0", "1", "01", "1e0"], ["01", "1", "1.0", "1e0"], "different ones: '01' and '1' and '1.0' and '1e0'."),
    ],
)
def test_labels_of_several_types_are_told(labels: list[Any], classes: list[str], words: str) -> None:
    """From several files, say: one CSV and one JSON."""
    rows = [{"text": "a", "label": label} for label in labels]
    for lists in (False, True):
        given = [{"text": "a", "labels": [row["label"]]} for row in rows] if lists else rows
        column = "labels" if lists else "label"
        kind = MultiLabelTask if lists else ClassificationTask
        for task in (kind.from_rows(given, {"text": "text", "label": column}),
                     kind.from_chunks([given[:1], given[1:]], {"text": "text", "label": column})):  # fmt: skip
            assert task.labels == classes
            told = " ".join(task.remarks())
            assert words in told and bool(told) == bool(words)

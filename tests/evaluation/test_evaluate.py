"""Metrics against scikit-learn on logits computed by hand; what is refused, what is said."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from sklearn import metrics as sk
from tiny_rows import LABELS, by_hand, labelled, texts, with_adapters, word_tokenizer
from torch.nn import functional
from transformers import AutoModelForSequenceClassification

from lora.config import DataConfig
from lora.errors import ConfigError, DataError, ModelError, RoutingError
from lora.evaluation.evaluate import evaluate
from lora.evaluation.tables import comparison
from lora.model.lora import LoRA
from lora.tasks.causal import CausalTask
from lora.tasks.classification import ClassificationTask
from lora.tasks.multilabel import MultiLabelTask
from lora.tasks.regression import RegressionTask
from tiny_models import tiny


def test_classification_agrees_with_scikit_learn(classifier: LoRA, tokenizer: Any) -> None:
    rows = labelled(30)
    evaluation = evaluate(classifier, rows, tokenizer=tokenizer, latency=False, batch_size=8)
    assert list(evaluation.metrics) == ["base", "tuned"]
    true = [row["label"] for row in rows]
    for name in ("base", "tuned"):
        logits = by_hand(classifier, name, rows)
        said = [LABELS[place] for place in logits.argmax(dim=1).tolist()]
        got = evaluation[name]
        assert got["accuracy"] == sk.accuracy_score(true, said)
        for average in ("macro", "micro", "weighted"):
            assert got[f"f1_{average}"] == pytest.approx(sk.f1_score(true, said, average=average, zero_division=0))
        expected = functional.cross_entropy(logits, torch.tensor([LABELS.index(label) for label in true]))
        assert got["loss"] == pytest.approx(float(expected), rel=1e-5)
        assert got["confusion"]["matrix"] == sk.confusion_matrix(true, said, labels=LABELS).tolist()
        each = sk.f1_score(true, said, labels=LABELS, average=None, zero_division=0)
        assert [got["per_class"][label]["f1"] for label in LABELS] == pytest.approx(each.tolist())
    assert evaluation["base"] != evaluation["tuned"]


def test_multi_label_agrees_with_scikit_learn(tokenizer: Any) -> None:
    model = with_adapters(tiny("bert"), "tuned")
    rows = [{"text": text, "label": LABELS[: place % 3]} for place, text in enumerate(texts(20))]
    evaluation = evaluate(model, rows, tokenizer=tokenizer, task=MultiLabelTask(LABELS), latency=False)
    logits = by_hand(model, "tuned", rows)
    true = torch.tensor([[float(label in row["label"]) for label in LABELS] for row in rows])
    said = (logits.sigmoid() >= 0.5).int().numpy()
    got = evaluation["tuned"]
    assert got["f1_micro"] == pytest.approx(sk.f1_score(true.int().numpy(), said, average="micro", zero_division=0))
    assert got["hamming"] == pytest.approx(sk.hamming_loss(true.int().numpy(), said))
    assert got["loss"] == pytest.approx(float(functional.binary_cross_entropy_with_logits(logits, true)), rel=1e-5)
    assert evaluation.reference is not None and "no label" in evaluation.reference["name"]
    assert evaluation.reference["metrics"]["accuracy"] == 7 / 20
    assert "| all labels right |" in evaluation.to_markdown()


def test_regression_agrees_with_scikit_learn(tokenizer: Any) -> None:
    model = with_adapters(tiny("bert", num_labels=1), "tuned")
    rows = [{"text": text, "label": 10.0 + place % 5} for place, text in enumerate(texts(20))]
    evaluation = evaluate(model, rows, tokenizer=tokenizer, task=RegressionTask(mean=12.0, std=2.0), latency=False)
    true = [row["label"] for row in rows]
    for name in ("base", "tuned"):
        said = (by_hand(model, name, rows)[:, 0] * 2 + 12).tolist()
        assert evaluation[name]["mae"] == pytest.approx(sk.mean_absolute_error(true, said), rel=1e-5)
        assert evaluation[name]["r2"] == pytest.approx(sk.r2_score(true, said), rel=1e-4)
    assert evaluation.reference is not None
    assert evaluation.reference["metrics"]["rmse"] == pytest.approx(2**0.5)  # the spread of 10, 11, …, 14


def test_causal_loss_and_accuracy_by_hand(writer: LoRA) -> None:
    tokenizer = word_tokenizer("$A")
    rows = [{"prompt": prompt, "completion": f"w{place} w3"} for place, prompt in enumerate(texts(9))]
    evaluation = evaluate(writer, rows, tokenizer=tokenizer, latency=False, batch_size=4)
    for name in ("base", "tuned"):
        loss, correct, count = 0.0, 0, 0
        for row in rows:
            prompt = tokenizer(row["prompt"])["input_ids"]
            answer = [*tokenizer(row["completion"], add_special_tokens=False)["input_ids"], 2]
            with torch.no_grad(), writer.using(name):
                logits = writer(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            loss += float(functional.cross_entropy(logits, torch.tensor(answer), reduction="sum"))
            correct += int((logits.argmax(dim=1) == torch.tensor(answer)).sum())
            count += len(answer)
        got = evaluation[name]
        assert got["loss"] == pytest.approx(loss / count, rel=1e-5)
        assert got["perplexity"] == pytest.approx(torch.tensor(loss / count).exp().item(), rel=1e-4)
        assert got["token_accuracy"] == correct / count
        assert got["tokens"] == 27
    assert evaluation.reference is None and not evaluation.untrained_head


def test_one_pass_equals_separate_passes(tokenizer: Any) -> None:
    model = with_adapters(tiny("bert"), "a", "b")
    task, rows = ClassificationTask(LABELS), labelled(24)
    options: dict[str, Any] = {"tokenizer": tokenizer, "task": task, "latency": False}
    together = evaluate(model, rows, **options)
    assert list(together.metrics) == ["base", "a", "b"]
    for name in together.metrics:
        alone = evaluate(model, rows, adapters=name, baseline=False, **options)
        assert list(alone.metrics) == [name]
        assert alone[name]["confusion"] == together[name]["confusion"]
        assert alone[name]["loss"] == pytest.approx(together[name]["loss"], rel=1e-5)


def test_the_base_is_not_run_unless_wanted(classifier: LoRA, tokenizer: Any) -> None:
    evaluation = evaluate(classifier, labelled(6), tokenizer=tokenizer, baseline=False, latency=False)
    assert list(evaluation.metrics) == ["tuned"] and evaluation.base is None
    assert comparison(evaluation).headers == ["", "tuned"] and not evaluation.comparisons


def test_truncation_is_counted_and_done(classifier: LoRA, tokenizer: Any) -> None:
    rows = labelled(30)
    over = sum(len(tokenizer(row["text"])["input_ids"]) > 6 for row in rows)
    evaluation = evaluate(classifier, rows, tokenizer=tokenizer, max_length=6, latency=False)
    assert 0 < over == evaluation.truncated < 30
    assert any(f"{over} of 30 rows were longer than 6 tokens" in note for note in evaluation.notes)
    logits = by_hand(classifier, "tuned", rows, length=6)
    expected = functional.cross_entropy(logits, torch.tensor([LABELS.index(row["label"]) for row in rows]))
    assert evaluation["tuned"]["loss"] == pytest.approx(float(expected), rel=1e-5)
    classifier.notes["tuned"]["max_length"] = 6  # as training stores it
    assert evaluate(classifier, rows, tokenizer=tokenizer, latency=False).truncated == over
    assert evaluate(classifier, rows, tokenizer=tokenizer, max_length=40, latency=False).truncated == 0


def test_speed_and_memory(classifier: LoRA, tokenizer: Any) -> None:
    evaluation = evaluate(classifier, labelled(10), tokenizer=tokenizer, latency_rows=4, batch_size=4)
    assert set(evaluation.speed) == {"base", "tuned"}
    mean = sum(len(tokenizer(row["text"])["input_ids"]) for row in labelled(10)) / 10
    for speed in evaluation.speed.values():
        assert speed["latency_rows"] == 4
        assert 0 < speed["latency_p50_ms"] <= speed["latency_p95_ms"]
        # 3 batches cover all rows, so tokens per row is the data's own mean: no padding is counted
        assert speed["tokens_per_second"] / speed["rows_per_second"] == pytest.approx(mean)
    assert evaluation.peak_memory_bytes is not None and evaluation.peak_memory_bytes > 10**7
    assert "RSS" in (evaluation.peak_memory_kind or "") or torch.cuda.is_available()
    without = evaluate(classifier, labelled(10), tokenizer=tokenizer, latency=False)
    assert without.speed == {} and without.peak_memory_bytes is None


def test_the_mode_is_left_as_it_was(classifier: LoRA, tokenizer: Any) -> None:
    classifier.train()
    evaluate(classifier, labelled(6), tokenizer=tokenizer, latency_rows=2)
    assert classifier.training


def test_untrained_head_and_default_tokenizer(body_folder: Any) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(body_folder, num_labels=3)
    model = with_adapters(base, "tuned")
    rows = labelled(30)
    evaluation = evaluate(model, rows, task=ClassificationTask(LABELS), latency=False)
    assert evaluation.untrained_head
    assert "base (untrained head)" in evaluation.to_markdown()
    counts = sorted((sum(row["label"] == label for row in rows), label) for label in LABELS)
    assert evaluation.reference is not None
    assert evaluation.reference["metrics"]["accuracy"] == counts[-1][0] / 30
    assert repr(counts[-1][1]) in evaluation.reference["name"]
    assert f"accuracy {counts[-1][0] / 30:.4f}" in evaluation.to_markdown()


def test_a_pretrained_head_is_not_called_untrained(tmp_path: Any, tokenizer: Any) -> None:
    tiny("bert").save_pretrained(tmp_path)
    model = with_adapters(AutoModelForSequenceClassification.from_pretrained(tmp_path), "tuned")
    evaluation = evaluate(model, labelled(9), tokenizer=tokenizer, task=ClassificationTask(LABELS), latency=False)
    assert not evaluation.untrained_head and "untrained" not in evaluation.to_markdown()


def test_sources_give_the_same(classifier: LoRA, tokenizer: Any, tmp_path: Any) -> None:
    from datasets import Dataset, DatasetDict

    rows = labelled(12)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "rows.jsonl").write_text(lines)
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "train.jsonl").write_text(json.dumps({"text": "w1", "label": "bill"}) + "\n")
    (tmp_path / "split" / "test.jsonl").write_text(lines)
    encoded = ClassificationTask(LABELS).encode(rows, tokenizer, 40)
    options: dict[str, Any] = {"tokenizer": tokenizer, "latency": False}
    wanted = evaluate(classifier, rows, **options).metrics
    file, folder = tmp_path / "rows.jsonl", tmp_path / "split"
    for source in (file, str(file), folder, Dataset.from_list(rows), encoded):
        assert evaluate(classifier, source, **options).metrics == wanted
    with pytest.raises(DataError, match="several"):
        evaluate(classifier, DatasetDict(test=Dataset.from_list(rows)), **options)


def test_a_folder_gives_its_validation_rows_where_it_has_no_test(
    classifier: LoRA, tokenizer: Any, tmp_path: Any
) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps({"text": "w1", "label": "bill"}) + "\n")
    with pytest.raises(DataError, match="it has: train"):  # never silently the training rows
        evaluate(classifier, tmp_path, tokenizer=tokenizer, latency=False)
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled(5)))
    evaluation = evaluate(classifier, tmp_path, tokenizer=tokenizer, latency=False)
    assert evaluation.rows == 5 and any("validation split was used" in note for note in evaluation.notes)


def test_encoded_rows_need_no_tokenizer_but_a_task(classifier: LoRA, tokenizer: Any) -> None:
    task = ClassificationTask(LABELS)
    encoded = task.encode(labelled(5), tokenizer, 40)
    assert evaluate(classifier, encoded, latency=False).rows == 5
    classifier.notes.clear()
    with pytest.raises(ConfigError, match="task="):
        evaluate(classifier, encoded, latency=False)
    with pytest.raises(DataError, match="no labels"):
        evaluate(classifier, task.encode(labelled(5), tokenizer, 40, supervised=False), task=task, latency=False)


def test_without_a_stored_task_labels_keep_the_models_order(tokenizer: Any) -> None:
    rows = labelled(20)
    names = dict(enumerate(["other", "bill", "delivery"]))
    model = with_adapters(
        tiny("bert", id2label=names, label2id={name: place for place, name in names.items()}), "tuned"
    )
    evaluation = evaluate(model, rows, tokenizer=tokenizer, latency=False)
    assert evaluation["tuned"]["confusion"]["labels"] == ["other", "bill", "delivery"]
    assert any("read from these rows" in note for note in evaluation.notes)
    said = [names[place] for place in by_hand(model, "tuned", rows).argmax(dim=1).tolist()]
    assert evaluation["tuned"]["accuracy"] == sk.accuracy_score([row["label"] for row in rows], said)


def test_without_a_stored_task_class_numbers_are_not_shifted(tokenizer: Any) -> None:
    model = with_adapters(tiny("bert"), "tuned")
    rows = labelled(20, labels=[0, 2])
    evaluation = evaluate(model, rows, tokenizer=tokenizer, latency=False)
    said = by_hand(model, "tuned", rows).argmax(dim=1).tolist()
    assert evaluation["tuned"]["accuracy"] == sk.accuracy_score([row["label"] for row in rows], said)


def test_other_column_names(classifier: LoRA, tokenizer: Any) -> None:
    rows = labelled(12)
    renamed = [{"message": row["text"], "intent": row["label"]} for row in rows]
    options: dict[str, Any] = {"tokenizer": tokenizer, "latency": False}
    with pytest.raises(DataError, match="'text'"):
        evaluate(classifier, renamed, **options)
    config = DataConfig(text_column="message", label_column="intent")
    got = evaluate(classifier, renamed, data_config=config, **options)
    assert got.metrics == evaluate(classifier, rows, **options).metrics


def test_an_unseen_label_is_named(classifier: LoRA, tokenizer: Any) -> None:
    rows = [*labelled(4), {"text": "w1", "label": "bil"}]
    with pytest.raises(DataError, match=r"'bil'.*did you mean 'bill'"):
        evaluate(classifier, rows, tokenizer=tokenizer, latency=False)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        ([], "no rows"),
        (["w1 w2"], "row 1 is a str"),
        (7, "not int"),
        ([{"text": None, "label": "bill"}], "text is missing"),
    ],
)
def test_bad_data(classifier: LoRA, tokenizer: Any, data: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        evaluate(classifier, data, tokenizer=tokenizer, latency=False)


def test_bad_settings(classifier: LoRA, tokenizer: Any) -> None:
    with pytest.raises(RoutingError, match="'tunde'"):
        evaluate(classifier, labelled(4), tokenizer=tokenizer, adapters="tunde")
    with pytest.raises(ConfigError, match="batch_size is 0"):
        evaluate(classifier, labelled(4), tokenizer=tokenizer, batch_size=0)
    with pytest.raises(ConfigError, match="a LoRA is needed"):
        evaluate(tiny("bert"), labelled(4), tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="tokenizer="):
        evaluate(classifier, labelled(4))


def test_adapters_of_different_tasks_are_not_mixed(tokenizer: Any) -> None:
    model = with_adapters(tiny("bert"), "a", "b")
    model.notes = {
        "a": {"task": ClassificationTask(LABELS).state()},
        "b": {"task": ClassificationTask(LABELS[:2]).state()},
    }
    with pytest.raises(ConfigError, match="'a' and 'b'"):
        evaluate(model, labelled(6), tokenizer=tokenizer, latency=False)
    assert evaluate(model, labelled(6), tokenizer=tokenizer, adapters="a", latency=False).tuned == ["a"]


def test_a_model_that_does_not_fit_the_task(classifier: LoRA, tokenizer: Any) -> None:
    many = ClassificationTask([*LABELS, "x", "y"])
    with pytest.raises(ModelError, match=r"3 outputs and the task classification needs 5"):
        evaluate(classifier, labelled(6), tokenizer=tokenizer, task=many, latency=False)
    with pytest.raises(ModelError, match="AutoModelForCausalLM"):
        evaluate(classifier, [{"text": "w1 w2"}], tokenizer=tokenizer, task=CausalTask(text="text"), latency=False)
    with pytest.raises(ModelError, match="AutoModelForSequenceClassification"):
        llama = with_adapters(tiny("llama"), "tuned")
        evaluate(llama, labelled(6), tokenizer=tokenizer, task=ClassificationTask(LABELS), latency=False)


def test_a_base_with_too_narrow_a_head_is_left_out(classifier: LoRA, tokenizer: Any, tmp_path: Any) -> None:
    classifier.save_adapter("tuned", tmp_path / "tuned")
    base = tiny("bert", num_labels=2)
    base.bert.load_state_dict(tiny("bert").bert.state_dict())
    narrow = LoRA(base, name=None)
    narrow.load_adapter(tmp_path / "tuned")
    evaluation = evaluate(narrow, labelled(12), tokenizer=tokenizer, latency=False)
    assert list(evaluation.metrics) == ["tuned"]
    assert any("base was left out" in note and "2 outputs" in note for note in evaluation.notes)
    wanted = evaluate(classifier, labelled(12), tokenizer=tokenizer, latency=False)
    assert evaluation["tuned"]["loss"] == pytest.approx(wanted["tuned"]["loss"], rel=1e-5)

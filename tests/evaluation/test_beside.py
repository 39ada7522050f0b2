"""What an evaluation says beside its metrics: intervals, tests, calibration, slices, noise, the worst rows."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.special import softmax
from tiny_rows import LABELS, by_hand, labelled, texts, with_adapters, word_tokenizer

from lora.errors import ConfigError
from lora.evaluation import details
from lora.evaluation.calibrating import at_temperature, calibration, temperature_of
from lora.evaluation.evaluate import evaluate
from lora.evaluation.grid import text
from lora.evaluation.predict import predict
from lora.evaluation.tables import headline
from lora.evaluation.text_bytes import byte_sizes
from lora.evaluation.uncertainty import MOST_PAIRS, against_base, between
from lora.model.lora import LoRA
from lora.statistics.compare import compare
from lora.statistics.estimate import estimate
from lora.tasks import Encoded
from lora.tasks.causal import CausalTask
from lora.tasks.classification import ClassificationTask
from lora.tasks.figures import figures
from lora.tasks.inference import Outcome
from lora.tasks.multilabel import MultiLabelTask
from lora.tasks.token_classification import TokenClassificationTask
from tiny_models import tiny

TASK = ClassificationTask(LABELS)


def outcome(strength: float, seed: int = 0, rows: int = 120) -> tuple[list[dict[str, Any]], Outcome]:
    """Examples, always the same, and answers to them, the better the larger ``strength``."""
    truth = np.random.default_rng(99).integers(0, 3, rows)
    z = np.random.default_rng(seed).normal(size=(rows, 3)) + strength * np.eye(3)[truth]
    p = softmax(z, axis=1)
    losses = (-np.log(p[np.arange(rows), truth])).tolist()
    said = [{"label": LABELS[k], "score": row[k], "probabilities": row} for k, row in zip(p.argmax(1), p.tolist())]
    return [{"label": LABELS[k]} for k in truth], Outcome(said, sum(losses), rows, losses, [1] * rows)


def found(**strengths: float) -> dict[str, Any]:
    out = {}
    for seed, (name, strength) in enumerate(strengths.items()):
        examples, own = outcome(strength, seed)
        out[name] = figures(TASK, own, examples)
    return out


def test_better_worse_and_no_difference() -> None:
    said = against_base(found(base=1.0, up=4.0, same=1.0, down=0.0), 500)
    verdicts = {name: {key: its["verdict"] for key, its in own.items()} for name, own in said.items()}
    for key in ("accuracy", "f1_macro", "loss", "mcc", "auroc"):
        assert verdicts["up"][key] == "better" and verdicts["down"][key] == "worse", key
    assert set(verdicts["same"].values()) == {"no difference seen"}
    its = said["up"]["accuracy"]
    assert its["comparisons"] == 3 and its["p_corrected"] >= its["p_value"] and its["difference"] > 0
    assert "untrained" not in its["note"]
    assert "untrained" in against_base(found(base=1.0, up=4.0), 200, untrained=True)["up"]["loss"]["note"]


def test_values_are_those_of_statistics() -> None:
    both = found(base=1.0, up=2.0)
    its = against_base(both, 500, seed=3)["up"]
    for key in ("accuracy", "f1_macro", "loss"):
        (metric, a), (_, b) = both["up"][key], both["base"][key]
        alone = compare(metric, a, b, seed=3, resamples=500)
        assert its[key] == pytest.approx(alone.to_dict(), nan_ok=True), key


def test_pairs_are_corrected_together() -> None:
    made = found(base=1.0, a=1.0, b=4.0, c=4.1)
    pairs, notes = between(made, ("f1_macro", "loss"), 300)
    assert [(its["a"], its["b"], its["metric"]) for its in pairs] == [
        (a, b, key) for key in ("f1_macro", "loss") for a, b in (("a", "b"), ("a", "c"), ("b", "c"))
    ]
    assert {its["comparisons"] for its in pairs} == {3} and not notes
    assert [its["verdict"] for its in pairs[:3]] == ["worse", "worse", "no difference seen"]
    many = {f"n{place}": made["a"] for place in range(11)}
    none, notes = between(many, ("loss",), 300)
    assert none == [] and "11 adapters make 55 pairs" in notes[0] and MOST_PAIRS == 45


def test_evaluate_fills_everything(classifier: LoRA, tokenizer: Any) -> None:
    rows: list[dict[str, Any]] = [
        {**row, "source": "mail" if place % 2 else "chat"} for place, row in enumerate(labelled(90))
    ]
    options: dict[str, Any] = {"tokenizer": tokenizer, "latency": False, "slices": ["source"], "resamples": 200}
    evaluation = evaluate(classifier, rows, robustness=["typos", "upper", "whitespace"], **options)
    numbers = {key for key, value in evaluation["tuned"].items() if not isinstance(value, dict)}
    for name in ("base", "tuned"):
        assert set(evaluation.intervals[name]) == numbers
        for key in numbers:
            its = evaluation.intervals[name][key]
            assert its["value"] == pytest.approx(evaluation[name][key], rel=1e-5) and its["low"] <= its["value"]
        classes = evaluation.class_intervals[name]
        assert {label: its["value"] for label, its in classes.items()} == pytest.approx(
            {label: its["f1"] for label, its in evaluation[name]["per_class"].items()}
        )
        assert all(its["low"] < its["value"] < its["high"] for its in classes.values() if its["value"])
        assert all(its["note"] for its in classes.values() if its["low"] is None)
        assert {"bins", "ece", "brier", "temperature", "selective", "aurc"} <= set(evaluation.calibration[name])
        assert sum(its["n"] for its in evaluation.calibration[name]["bins"]) == 90
        sure = evaluation.calibration[name]["intervals"]
        assert set(sure) == {"brier", "nll", "aurc"}
        for key, its in sure.items():
            assert its["value"] == pytest.approx(evaluation.calibration[name][key])
            assert its["low"] < its["value"] < its["high"]
            assert f"{its['value']:.4f} ({its['low']:.4f}–{its['high']:.4f})" in evaluation.to_markdown()
    assert set(evaluation.comparisons) == {"tuned"} and set(evaluation.comparisons["tuned"]) == numbers
    columns = {part["column"] for part in evaluation.slices["tuned"]["slices"]}
    assert columns == {"source", "label", "length"}
    grid = details.slices(evaluation, "tuned")
    assert grid is not None and "Of the rows of one label the accuracy is that label's recall" in str(grid.below)
    by_label = [part for part in evaluation.slices["tuned"]["slices"] if part["column"] == "label"]
    for part in by_label:
        recall = evaluation["tuned"]["per_class"][part["name"]]["recall"]
        assert part["estimate"]["value"] == pytest.approx(recall), "as the sentence says"
    others = [part for part in evaluation.slices["tuned"]["slices"] if part not in by_label]
    grid = details.slices(replace(evaluation, slices={"tuned": {"slices": others}}), "tuned")
    assert grid is not None and "recall" not in str(grid.below), "nothing is by label"
    assert all(part["estimate"]["metric"] == "accuracy" for part in evaluation.slices["tuned"]["slices"])
    assert set(evaluation.robustness["tuned"]) == {"upper", "whitespace"}
    assert any("'typos' changes none" in note for note in evaluation.notes), "words with a digit stay"
    assert evaluation.robustness["tuned"]["upper"]["metric"] == "f1_macro"
    assert evaluation.comparisons["tuned"]["f1_macro"]["verdict"] in text(headline(evaluation))
    bill, own = evaluation.class_intervals["tuned"]["bill"], evaluation["tuned"]["per_class"]["bill"]
    written = f"{own['recall']:.4f} | {own['f1']:.4f} ({bill['low']:.4f}–{bill['high']:.4f}) |"
    assert written in evaluation.to_markdown()
    json.dumps(evaluation.to_dict(), allow_nan=False)
    again = evaluate(classifier, rows, robustness=["typos", "upper", "whitespace"], **options)
    assert {**again.to_dict(), "seconds": 0} == {**evaluation.to_dict(), "seconds": 0}, "one seed, one result"
    without = evaluate(classifier, rows, tokenizer=tokenizer, latency=False, resamples=0)
    assert (
        without.intervals == without.class_intervals == without.comparisons == without.slices == {}
        and without.pairs == []
    )
    assert without.metrics == evaluation.metrics


def test_the_worst_rows_are_wrong_and_in_order(classifier: LoRA, tokenizer: Any) -> None:
    rows = labelled(60)
    evaluation = evaluate(classifier, rows, tokenizer=tokenizer, latency=False, resamples=0)
    logits = by_hand(classifier, "tuned", rows).double().log_softmax(dim=1)
    losses = [-float(own[LABELS.index(row["label"])]) for own, row in zip(logits, rows, strict=True)]
    said = [LABELS[int(own.argmax())] for own in logits]
    wrong = sorted((place for place in range(60) if said[place] != rows[place]["label"]), key=lambda i: -losses[i])
    errors = evaluation.errors["tuned"]
    assert [its["row"] for its in errors] == [place + 1 for place in wrong[:20]]
    for its in errors:
        place = its["row"] - 1
        assert (its["text"], its["expected"], its["answer"]) == (rows[place]["text"], rows[place]["label"], said[place])
        assert its["score"] == pytest.approx(losses[place], rel=1e-4)
    assert "base" not in evaluation.errors


def test_rows_of_one_conversation_are_drawn_together(tokenizer: Any) -> None:
    examples, own = outcome(1.0)
    for place, example in enumerate(examples):
        example["row"] = place // 10
    metric, rows = figures(TASK, own, examples)["loss"]
    its = estimate(metric, rows, resamples=200)
    assert its.units == 12 and its.n == 120


def test_one_row_says_that_it_is_too_few(classifier: LoRA, tokenizer: Any) -> None:
    evaluation = evaluate(classifier, labelled(1), tokenizer=tokenizer, latency=False, robustness=True)
    its = evaluation.intervals["tuned"]
    assert its["auroc"]["value"] is None and its["auroc"]["note"] and evaluation["tuned"]["auroc"] is None
    assert its["loss"]["low"] is None
    assert evaluation.comparisons["tuned"]["loss"]["verdict"] == "not known"


def test_label_sets(tokenizer: Any) -> None:
    model = with_adapters(tiny("bert"), "tuned")
    rows: list[dict[str, Any]] = [{"text": text, "label": LABELS[: place % 3]} for place, text in enumerate(texts(90))]
    evaluation = evaluate(
        model, rows, tokenizer=tokenizer, task=MultiLabelTask(LABELS), latency=False, resamples=200, robustness=True
    )
    calibrated = evaluation.calibration["tuned"]
    assert sum(its["n"] for its in calibrated["bins"]) == 270, "every label of every row"
    assert {"with label bill", "with label delivery"} & {p["column"] for p in evaluation.slices["tuned"]["slices"]}
    assert evaluation.robustness["tuned"]["whitespace"]["metric"] == "f1_micro"
    assert all(its["expected"] != its["answer"] for its in evaluation.errors["tuned"])


def test_sentences_in_windows_are_one_row_of_slices() -> None:
    from lora.evaluation.parts import columns_of, slices_of, worst_of

    task, draw = TokenClassificationTask(["B-x", "I-x", "O"], scheme="IOB2"), random.Random(0)
    examples = [{"input_ids": [5] * 4, "labels": [-100, draw.randrange(3), 2, 2], "row": n // 2} for n in range(120)]
    said = [{"tags": [draw.choice(task.labels), "O", "O"], "scores": [0.5] * 3} for _ in examples]
    encoded = Encoded(examples, [4] * 120, [3] * 120)
    own = Outcome(said, 120.0, 360, [draw.uniform(0, 9) for _ in examples], [3] * 120)
    its = figures(task, own, examples)
    parts = slices_of(task, its, examples, columns_of(task, encoded, None, []), 200)
    assert parts.to_dict() is not None
    errors = worst_of(task, own, encoded, None, None)
    assert len(errors[0]["expected"]) == len(errors[0]["answer"]) == 6, "both windows"
    first = errors[0]["row"] - 1
    assert errors[0]["score"] == pytest.approx(sum(own.losses[2 * first : 2 * first + 2]) / 6)


def test_a_temperature_is_found_and_kept() -> None:
    examples, own = outcome(1.5)
    sharp = [np.log(row["probabilities"]) * 4 for row in own.predictions]
    own.predictions = [{"label": LABELS[int(z.argmax())], "probabilities": softmax(z).tolist()} for z in sharp]
    fitted = temperature_of(TASK, own, examples)
    assert fitted is not None and 2.5 < fitted.value < 6
    its = calibration(TASK, own, examples, fitted.value)
    crossed = calibration(TASK, own, examples)
    assert its is not None and crossed is not None
    assert its["temperature"]["after"]["nll"] < its["temperature"]["before"]["nll"] == pytest.approx(its["nll"])
    assert (
        "held out of training" in its["temperature"]["note"]
        and "No rows were held out" in crossed["temperature"]["note"]
    )
    cooled = at_temperature(TASK, own.predictions, fitted.value)
    assert [row["label"] for row in cooled] == [row["label"] for row in own.predictions]
    expected = softmax(np.asarray(sharp) / fitted.value, axis=1)
    assert np.asarray([row["probabilities"] for row in cooled]) == pytest.approx(expected, abs=1e-9)


def test_predictions_at_the_stored_temperature(classifier: LoRA, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="no temperature is stored with the adapter 'tuned'"):
        predict(classifier, ["w1"], tokenizer=tokenizer, calibrated=True)
    classifier.notes["tuned"]["temperature"] = 2.0
    plain = predict(classifier, ["w1 w2", "w3"], tokenizer=tokenizer)
    soft = predict(classifier, ["w1 w2", "w3"], tokenizer=tokenizer, calibrated=True)
    for one, other in zip(plain, soft, strict=True):
        assert one["label"] == other["label"] and 1 / 3 < other["score"] < one["score"]
        z = np.log([one["probabilities"][label] for label in LABELS]) / 2
        assert [other["probabilities"][label] for label in LABELS] == pytest.approx(softmax(z).tolist(), rel=1e-4)
        assert other["score"] == max(other["probabilities"].values())


def test_written_answers_have_intervals_too(writer: LoRA) -> None:
    rows = [{"prompt": prompt, "completion": f"w{place} w3"} for place, prompt in enumerate(texts(12))]
    evaluation = evaluate(
        writer, rows, tokenizer=word_tokenizer("$A"), latency=False, generate=True, max_new_tokens=6, resamples=200
    )
    for key in ("bleu", "chrf", "rouge_l", "exact_match", "stop_rate", "answer_length"):
        assert evaluation.intervals["tuned"][key]["value"] == pytest.approx(evaluation["tuned"][key]), key
        assert key in evaluation.comparisons["tuned"]
    assert evaluation.errors["tuned"][0]["expected"] and evaluation.errors["tuned"][0]["answer"] is None
    assert not evaluation.calibration and "bits_per_byte" not in evaluation["tuned"]


def byte_tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE({char: place for place, char in enumerate(alphabet)}, []))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>")


def test_bytes_are_counted_where_tokens_are_bytes() -> None:
    tokenizer, text = byte_tokenizer(), "Grüße, 世界 \U0001f642"
    ids = tokenizer(text)["input_ids"]
    whole = {"input_ids": ids, "labels": [-100, *ids[1:], tokenizer.eos_token_id]}
    torn = {"input_ids": ids, "labels": [-100] * 5 + ids[5:]}
    assert byte_sizes(Encoded([whole, torn], [9, 9], [9, 9]), tokenizer) == [len(text.encode()) - 1, len(ids) - 5]
    assert byte_sizes(Encoded([whole], [9], [9]), word_tokenizer()) is None


def test_bits_per_byte_are_measured() -> None:
    tokenizer = byte_tokenizer()
    rows = [{"text": text} for text in ("abc", "de", "xyz xy")]
    model = with_adapters(tiny("llama", vocab_size=300), "tuned")
    evaluation = evaluate(model, rows, tokenizer=tokenizer, task=CausalTask(text="text"), latency=False, resamples=200)
    for name in ("base", "tuned"):
        its, count = evaluation[name], sum(len(row["text"]) - 1 for row in rows)  # of the first nothing is predicted
        nats = its["loss"] * its["tokens"]
        assert its["bits_per_byte"] == pytest.approx(nats / math.log(2) / count)
        assert evaluation.intervals[name]["bits_per_byte"]["value"] == pytest.approx(its["bits_per_byte"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slices": ["nowhere"]}, "no row has the column 'nowhere'"),
        ({"slices": "label"}, "a list of names"),
        ({"robustness": ["typoes"]}, "'typoes' is none of the noises"),
        ({"robustness": True, "resamples": 0}, "there are none"),
        ({"resamples": 7}, "at least 100"),
    ],
)
def test_what_cannot_be_is_refused(classifier: LoRA, tokenizer: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(classifier, labelled(6), tokenizer=tokenizer, latency=False, **options)


def test_noise_is_refused_where_the_text_is_what_is_learned(writer: LoRA) -> None:
    rows = [{"text": text} for text in texts(6)]
    with pytest.raises(ConfigError, match="what is to be predicted"):
        evaluate(
            writer, rows, tokenizer=word_tokenizer("$A"), task=CausalTask(text="text"), latency=False, robustness=True
        )

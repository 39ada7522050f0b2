"""A look at data: what is found of duplicates, lengths, labels, pairs and conversations, on small bases."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import lora
from chat_tokenizer import byte_tokenizer
from lora.checks.data import DataReport
from lora.checks.lengths import spread
from lora.config import DataConfig, TrainingConfig
from lora.errors import ConfigError, DataError
from small_base import labelled, save_base, stories, tagged, write_jsonl

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def chat_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = save_base(tmp_path_factory.mktemp("chat"), "llama")
    byte_tokenizer(chat_template=CHATML).save_pretrained(folder)
    return folder


def kinds(report: DataReport) -> dict[str, tuple[str, int]]:
    return {found.kind: (found.level, found.rows) for found in report.findings}


def finding(report: DataReport, kind: str) -> Any:
    (found,) = [found for found in report.findings if found.kind == kind]
    return found


def talk(*contents: str, first: str = "user") -> dict[str, Any]:
    roles = ["user", "assistant"] if first == "user" else ["system", "user", "assistant"]
    names = roles if len(contents) <= len(roles) else [*roles, *["user", "assistant"] * len(contents)]
    return {"messages": [{"role": r, "content": c} for r, c in zip(names, contents, strict=False)]}


def test_good_data_have_nothing_to_mend_or_to_look_at(bert: Path) -> None:
    report = lora.describe_data(labelled(90), str(bert))
    assert not report.at("mend") and not report.at("look"), report.findings
    assert report.verdict == "Nothing must be mended."
    assert report.task == "classification" and report.columns == {"text": "text", "label": "label"}
    assert sum(report.rows.values()) == 90 and set(report.rows) == {"training", "held-out"}
    assert report.answers.classes["cat"]["training"] + report.answers.classes["cat"]["held-out"] == 30
    assert report.unknown == 0.0 and set(report.scripts) == {"Latin"}


def test_rows_are_split_and_encoded_as_training_does(bert: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    data = write_jsonl(tmp_path / "rows.jsonl", labelled(60))
    settings = TrainingConfig(batch_size=8, epochs=2, seed=3, tensorboard=False)
    report = lora.describe_data(data, str(bert), training=settings)
    model = lora.LoRA(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), rank=2)
    result = lora.fit(model, str(data), config=settings, progress=False)
    assert report.lengths.total_steps == result.steps
    assert report.lengths.examples == len(result.data.train)
    assert report.lengths.tokens.total == sum(result.data.train.lengths) == result.tokens / 2
    assert report.notes == result.data.notes
    assert report.rows["held-out"] == len(result.data.held or [])


def test_contradictions_leaks_and_repetitions(bert: Path) -> None:
    rows = labelled(90, longest=14)
    rows += [{"text": "red sun cat", "label": "cat"}, {"text": " Red  SUN cat", "label": "dog"}, rows[5]]
    held = [{"text": rows[0]["text"].upper(), "label": rows[0]["label"]}, {"text": "old moon dog here", "label": "dog"}]
    report = lora.describe_data(rows, str(bert), validation=held)
    found = kinds(report)
    assert found["contradiction"] == ("mend", 2) and found["leak"] == ("mend", 1) and found["repeated"] == ("note", 2)
    assert finding(report, "contradiction").places == "training data rows 91, 92"
    assert "cat" in finding(report, "contradiction").quotes[0] and "dog" in finding(report, "contradiction").quotes[0]
    assert finding(report, "leak").at == [{"source": "validation data", "number": 1}]
    assert report.duplicates.leaked == {"held-out": 1} and report.duplicates.repeated["training"] == 2
    assert report.verdict.startswith("2 things must be mended")


def test_inputs_that_are_nearly_in_training(llama: Path) -> None:
    rows = [{"prompt": f"red green blue sun moon star cat dog bird {n}", "completion": "now"} for n in range(3)]
    near = {"prompt": "Red, green, blue: sun moon star cat dog bird 7", "completion": "now"}
    other = {"prompt": "now then big small old new runs sleeps", "completion": "here"}
    report = lora.describe_data(rows, str(llama), validation=[near, other], near=0.7)
    (pair,) = report.duplicates.pairs
    assert pair["row"] == {"source": "validation data", "number": 1} and pair["jaccard"] == round(7 / 9, 3)
    assert report.duplicates.near == {"held-out": 1} and kinds(report)["near"] == ("look", 1)
    assert lora.describe_data(rows, str(llama), validation=[near, other]).duplicates.near == {"held-out": 0}
    with pytest.raises(ConfigError, match="near: must be above 0"):
        lora.describe_data(rows, str(llama), near=0)


def test_several_answers_are_no_mistake_where_they_are_written(llama: Path) -> None:
    rows = [*stories(), {"prompt": "red sun", "completion": "now"}, {"prompt": "Red sun", "completion": "then"}]
    assert kinds(lora.describe_data(rows, str(llama)))["several"] == ("note", 2)


def test_blank_prompts_are_no_input_that_repeats(llama: Path) -> None:
    rows = [*stories(), *({"prompt": " ", "completion": f"red {word}"} for word in ("sun", "moon", "star"))]
    report = lora.describe_data(rows, str(llama), validation=[{"prompt": "", "completion": "cat"}])
    assert not {"repeated", "several", "leak", "near"} & set(kinds(report))


def test_labels_that_are_few_missing_or_nearly_all(bert: Path) -> None:
    rows = [{"text": f"red sun {n}", "label": "cat"} for n in range(95)]
    rows += [{"text": f"blue moon {n}", "label": "dog"} for n in range(5)]
    report = lora.describe_data(rows, str(bert), validation=rows[:3])
    found = kinds(report)
    assert found["few"][0] == found["missing"][0] == found["one_sided"][0] == "look"
    assert "dog (5)" in finding(report, "few").what and "'cat'" in finding(report, "one_sided").what
    assert report.answers.classes == {"cat": {"training": 95, "held-out": 3}, "dog": {"training": 5, "held-out": 0}}


def test_several_labels_and_numbers(bert: Path) -> None:
    rows = [
        {"text": f"{row['text']} red {n}", "labels": [row["label"]] * (n % 4 > 0)} for n, row in enumerate(labelled(80))
    ]
    answers = lora.describe_data(rows, str(bert), validation=False).answers
    assert answers.kind == "labels" and answers.unlabelled == 20 and len(answers.classes) == 3
    rows = [{"text": row["text"], "label": n / 10 + 0.05} for n, row in enumerate(labelled(80))]
    report = lora.describe_data(rows, str(bert), validation=False)
    assert report.answers.kind == "number" and report.answers.values is not None
    assert report.answers.values.quantiles[100] == pytest.approx(7.95)
    assert sum(count for *_, count in report.answers.values.histogram) == 80
    assert "value" in report.to_text()


def test_tags_are_counted_by_word(bert: Path) -> None:
    rows = [*tagged(80), {"tokens": ["there"], "tags": ["O"]}]
    report = lora.describe_data(rows, str(bert), validation=False, config=DataConfig(max_length=8))
    counts = Counter(tag for row in rows for tag in row["tags"])
    classes = {name: count["training"] for name, count in report.answers.classes.items()}
    assert classes == {**counts, "I-sky": 0} and "hardly" not in kinds(report)
    assert "few" not in kinds(report), "I-sky is the scheme's, which the notes say, and no fault of the data"
    assert any("the scheme allows: I-sky" in note for note in report.notes)
    assert report.lengths.examples > 81 and "overlapping windows" in report.to_text()


def test_a_tag_of_the_scheme_is_missed_where_some_part_has_it(bert: Path) -> None:
    held = tagged(20, seed=1)
    report = lora.describe_data(tagged(80), str(bert), validation=held)
    assert not {"few", "missing"} & set(kinds(report))
    report = lora.describe_data(
        [*tagged(80), {"tokens": ["sun", "moon"], "tags": ["B-sky", "I-sky"]}], str(bert), validation=held
    )
    assert finding(report, "few").what == "1 label with fewer than 10 training words: I-sky (1)"
    assert finding(report, "missing").what == "1 label without a word in held-out: I-sky (1)"


def test_what_max_length_does_is_counted_and_named(llama: Path) -> None:
    rows = [{"prompt": "red " * 4, "completion": "sun"} for _ in range(6)]
    rows += [{"prompt": "red " * 30, "completion": "sun now"}, {"prompt": "red", "completion": "sun " * 40}]
    report = lora.describe_data(rows, str(llama), validation=False, config=DataConfig(max_length=20))
    lengths = report.lengths
    assert lengths.cut == {"left out": 1, "shortened": 1} and lengths.cut_places == {"shortened": "row 7"}
    assert lengths.longest == 42 and lengths.lost == 42 + (33 - 20) and lengths.max_length == 20
    assert kinds(report)["left_out"] == ("mend", 1) and finding(report, "left_out").places == "row 8"
    texts = lora.describe_data(
        [{"text": "red sun now then " * 20}, {"text": "big small"}], str(llama), validation=False
    )
    assert texts.lengths.cut == {"split": 1}


def test_a_prompt_that_is_cut_between_messages_is_noticed(chat_base: Path) -> None:
    """It does not fill its length, by which others are found."""
    prompt = [*talk("long " * 30, "fine")["messages"], {"role": "user", "content": "ok?"}]
    rows = [{"prompt": prompt, "chosen": "yes", "rejected": "no"}, {"prompt": "a", "chosen": "b", "rejected": "c"}]
    report = lora.describe_data(rows, str(chat_base), validation=False, config=DataConfig(max_length=60))
    assert report.lengths.cut == {"shortened": 1} and report.lengths.cut_places == {"shortened": "row 1"}


def test_padding_is_that_of_the_batches(bert: Path) -> None:
    rows = labelled(40)
    report = lora.describe_data(rows, str(bert), validation=False, training=TrainingConfig(batch_size=len(rows)))
    lengths = report.lengths
    assert lengths.batches == 1 and lengths.padded is True
    assert lengths.padding == pytest.approx(1 - lengths.tokens.total / (len(rows) * lengths.tokens.quantiles[100]))
    alone = lora.describe_data(rows, str(bert), validation=False, training=TrainingConfig(batch_size=1)).lengths
    assert alone.padding == pytest.approx(0.0) and alone.steps == 40


def test_learned_tokens_of_answers(llama: Path) -> None:
    rows = [{"prompt": "red sun", "completion": "now then"} for _ in range(4)] + [
        {"prompt": "red", "completion": "[EOS]"}
    ]
    lengths = lora.describe_data(rows, str(llama), validation=False)
    assert lengths.lengths.learned is not None
    assert lengths.lengths.learned.quantiles[50] == 3 and lengths.lengths.padded is None
    assert kinds(lengths)["hardly"] == ("look", 1) and kinds(lengths)["special"] == ("look", 1)


def test_unknown_tokens(bert: Path) -> None:
    rows = [*labelled(60), {"text": "cat неизвестное слово", "label": "cat"}]
    report = lora.describe_data(rows, str(bert), validation=False)
    assert kinds(report)["unknown"][1] == 1 and report.unknown == pytest.approx(2 / report.lengths.tokens.total)


def test_conversations(chat_base: Path) -> None:
    rows = [talk(f"hello {n}", f"hi {n}") for n in range(20)]
    rows += [talk("be kind", "hello", "hi", first="system"), talk("one", "two", "three")]
    rows += [{"messages": [*talk("a", "b")["messages"], {"role": "assistant", "content": "c"}]}]
    report = lora.describe_data(rows, str(chat_base), validation=False)
    found = kinds(report)
    assert found["open_end"] == ("look", 1) and found["no_system"] == ("look", 22) and found["same_role"] == ("look", 1)
    assert finding(report, "open_end").places == "row 22"
    assert report.answers.roles == {"assistant": 24, "user": 24, "system": 1} and report.answers.systems == 1
    assert report.answers.turns is not None and report.answers.turns.quantiles[100] == 3


def test_a_question_in_both_splits_leaks_whatever_the_answer(chat_base: Path) -> None:
    rows = [talk(f"hello {n}", f"hi {n}") for n in range(5)]
    report = lora.describe_data(rows, str(chat_base), validation=[talk("Hello 3", "something else")])
    assert report.duplicates.leaked == {"held-out": 1}


def test_preferences(chat_base: Path) -> None:
    rows = [{"prompt": f"ask {n}", "chosen": f"a long answer {n}", "rejected": "no"} for n in range(120)]
    rows += [{"prompt": "ask 5", "chosen": "no", "rejected": "a long answer 5"}]
    rows += [{"prompt": "ask x", "chosen": "Fine", "rejected": "fine "}]
    report = lora.describe_data(rows, str(chat_base), validation=False)
    found = kinds(report)
    assert found["turned"] == ("mend", 2) and found["length_bias"][0] == "look" and found["same"] == ("look", 1)
    assert report.answers.longer == pytest.approx(120 / 122)
    assert "several" not in found and "contradiction" not in found


def test_data_that_cannot_be_used_are_refused_as_in_training(bert: Path, llama: Path) -> None:
    with pytest.raises(DataError, match="2 of 60 rows cannot be used"):
        lora.describe_data([*labelled(58), {"text": "", "label": "cat"}, {"text": "red", "label": None}], str(bert),
                           config=DataConfig(task="classification"))  # fmt: skip
    with pytest.raises(ConfigError, match="model: is needed"):
        lora.describe_data(labelled(30))


def test_no_weights_are_needed(bert: Path, tmp_path: Path) -> None:
    for file in bert.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert lora.describe_data(labelled(60), str(tmp_path)).lengths.examples


def test_everything_goes_into_json(chat_base: Path, bert: Path) -> None:
    for rows, base in (([talk("a", "b"), talk("c", "d")], chat_base), (labelled(60), bert)):
        report = lora.describe_data(rows, str(base), validation=False)
        again = json.loads(json.dumps(report.to_dict(), allow_nan=False))
        assert again["verdict"] == report.verdict and again["lengths"]["max_length"] == report.lengths.max_length
        assert len(again["examples"]) == len(report.examples) > 0


@pytest.mark.parametrize("values", [[1], [3, 3, 3], [0, 1], [1, 2, 3, 1000], list(range(2000)), [5] * 99 + [6]])
def test_a_histogram_counts_every_value_once(values: list[int]) -> None:
    got = spread(values)
    assert sum(count for *_, count in got.histogram) == len(values)
    for low, high, count in got.histogram[:-1]:
        assert count == sum(low <= value < high for value in values)
    assert len(got.histogram) <= 13 and got.quantiles[0] == min(values) and got.quantiles[100] == max(values)

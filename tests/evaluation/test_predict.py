"""Predictions: their order, what rows are taken, and generation against transformers' own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny_rows import LABELS, by_hand, labelled, texts, with_adapters, word_tokenizer

from lora.errors import ConfigError, DataError, RoutingError
from lora.evaluation import predict as module
from lora.evaluation.generation import asked_with
from lora.evaluation.predict import predict, predict_iter
from lora.model.lora import LoRA
from lora.tasks.causal import CausalTask
from lora.tasks.chat import ChatTask
from lora.tasks.multilabel import MultiLabelTask
from lora.tasks.regression import RegressionTask
from tiny_models import tiny


def test_answers_in_the_order_of_the_rows(classifier: LoRA, tokenizer: Any) -> None:
    rows = labelled(25)
    for name in ("tuned", "base"):
        found = predict(classifier, rows, adapter=name, tokenizer=tokenizer, batch_size=4)
        wanted = by_hand(classifier, name, rows).softmax(dim=1)
        assert [answer["label"] for answer in found] == [LABELS[place] for place in wanted.argmax(dim=1).tolist()]
        assert [answer["score"] for answer in found] == pytest.approx(wanted.max(dim=1).values.tolist(), rel=1e-5)
        assert list(found[0]["probabilities"]) == LABELS
        assert found[3]["probabilities"]["bill"] == pytest.approx(wanted[3, 0].item(), rel=1e-4)


def test_strings_unlabelled_rows_and_files(classifier: LoRA, tokenizer: Any, tmp_path: Any) -> None:
    given = texts(10)
    wanted = predict(classifier, [{"text": text, "label": "bill"} for text in given], tokenizer=tokenizer)
    assert predict(classifier, given, tokenizer=tokenizer) == wanted
    assert predict(classifier, [{"text": text, "other": 1} for text in given], tokenizer=tokenizer) == wanted
    assert predict(classifier, (text for text in given), tokenizer=tokenizer) == wanted
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in given))
    assert predict(classifier, file, tokenizer=tokenizer) == wanted


def test_multi_label_and_regression(tokenizer: Any) -> None:
    rows = labelled(8)
    model = with_adapters(tiny("bert"), "tuned")
    found = predict(model, rows, tokenizer=tokenizer, task=MultiLabelTask(LABELS))
    wanted = by_hand(model, "tuned", rows).sigmoid()
    assert [answer["labels"] for answer in found] == [
        [label for label, value in zip(LABELS, row, strict=True) if value >= 0.5] for row in wanted.tolist()
    ]
    model = with_adapters(tiny("bert", num_labels=1), "tuned")
    found = predict(model, rows, tokenizer=tokenizer, task=RegressionTask(mean=5.0, std=3.0))
    wanted = by_hand(model, "tuned", rows)[:, 0] * 3 + 5
    assert [answer["value"] for answer in found] == pytest.approx(wanted.tolist(), rel=1e-4)


def test_chunks_give_the_same_and_are_read_as_needed(
    classifier: LoRA, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = labelled(11)
    whole = predict(classifier, rows, tokenizer=tokenizer)
    monkeypatch.setattr(module, "AT_ONCE", 4)
    taken = []

    def source() -> Iterator[dict[str, Any]]:
        for place, row in enumerate(rows):
            taken.append(place)
            yield row

    answers = predict_iter(classifier, source(), tokenizer=tokenizer)
    first = next(answers)
    assert taken == [0, 1, 2, 3]
    found = [first, *answers]
    assert [answer["label"] for answer in found] == [answer["label"] for answer in whole]
    assert [answer["score"] for answer in found] == pytest.approx([answer["score"] for answer in whole], rel=1e-5)


def test_row_numbers_count_over_all_chunks(classifier: LoRA, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 4)
    rows = [*texts(9), {"text": 5}, "w1"]
    answers = predict_iter(classifier, rows, tokenizer=tokenizer)
    for _ in range(8):
        next(answers)
    with pytest.raises(DataError, match=r"text is of the type int, not text: row 10"):
        next(answers)
    told: list[str] = []
    predict(classifier, texts(9), tokenizer=tokenizer, max_length=3, on_note=told.append)
    assert [note.partition(":")[0] for note in told] == ["Rows 1 to 4", "Rows 5 to 8", "Rows 9 to 9"]


def test_row_numbers_go_on_where_one_goes_on(classifier: LoRA, tokenizer: Any) -> None:
    told: list[str] = []
    rows: list[Any] = ["w1 w2 w3 w4", "w1", {"text": None}]
    answers = predict_iter(
        classifier, rows, first=10, tokenizer=tokenizer, at_once=2, max_length=4, on_note=told.append
    )
    assert len([next(answers), next(answers)]) == 2 and told[0].startswith("Rows 11 to 12: 1 of 2 rows")
    with pytest.raises(DataError, match="text is missing: row 13"):
        next(answers)


@pytest.mark.parametrize("role", ["assistant", "gpt", "bot", "model", "chatgpt", "Assistant"])
@pytest.mark.parametrize("spelled", [False, True])
def test_the_datas_own_answer_is_not_what_was_asked(role: str, spelled: bool) -> None:
    asked = [{"from": "human", "value": "Hi"}, {"from": role, "value": "Yes?"}, {"from": "human", "value": "So?"}]
    cell: Any = [*asked, {"from": role, "value": "Bye"}]
    row, chat = {"messages": json.dumps(cell) if spelled else cell}, ChatTask(messages="messages")
    assert asked_with(chat, row) == {"messages": asked}
    assert asked_with(chat, {"messages": "[1] Hi"}) == {"prompt": "[1] Hi"}
    text = json.dumps(cell)  # is a text to one who reads texts
    assert asked_with(CausalTask(prompt="messages", completion="c"), {"messages": text}) == {"prompt": text}


def test_a_list_is_checked_before_anything_is_answered(
    classifier: LoRA, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answered(*_: Any, **__: Any) -> None:
        raise AssertionError("the model ran before the last row was looked at")

    monkeypatch.setattr(module, "AT_ONCE", 4)
    monkeypatch.setattr(module, "infer", answered)
    with pytest.raises(DataError, match="row 6"):
        predict(classifier, [*texts(5), ""], tokenizer=tokenizer)


@pytest.mark.parametrize(
    ("rows", "match"),
    [
        ([], "no rows"),
        ("w1 w2", "single string"),
        ({"text": "w1"}, "must be a list"),
        ([{"body": "w1"}], r"no column 'text' \(there are: body\): row 1"),
        (["w1", ""], "text is empty: row 2"),
        (["w1", {"text": None}], "text is missing: row 2"),
        ([{"text": ["w1"]}], "of the type list"),
        (["w1", 3], r"neither a dict nor a string \(int\): row 2"),
    ],
)
def test_bad_rows(classifier: LoRA, tokenizer: Any, rows: Any, match: str) -> None:
    with pytest.raises(DataError, match=match):
        predict(classifier, rows, tokenizer=tokenizer)
    with pytest.raises(DataError, match=match):
        list(predict_iter(classifier, rows, tokenizer=tokenizer))


def test_a_string_will_not_do_for_two_texts(classifier: LoRA, tokenizer: Any) -> None:
    classifier.notes["tuned"]["task"]["text_pair"] = "second"
    with pytest.raises(DataError, match=r"reads 2 texts \(text, second\)"):
        predict(classifier, ["w1"], tokenizer=tokenizer)


def test_which_adapter_and_which_task(tokenizer: Any) -> None:
    model = with_adapters(tiny("bert"), "a", "b")
    with pytest.raises(RoutingError, match="a, b"):
        predict(model, ["w1"], tokenizer=tokenizer)
    with pytest.raises(ConfigError, match="task="):
        predict(model, ["w1"], adapter="a", tokenizer=tokenizer)


def test_cut_rows_are_told(classifier: LoRA, tokenizer: Any) -> None:
    told: list[str] = []
    predict(classifier, ["w1 w2 w3 w4", "w1"], tokenizer=tokenizer, max_length=4, on_note=told.append)
    assert len(told) == 1 and "1 of 2 rows was longer than 4 tokens" in told[0]


def test_generation_options_are_for_generating(classifier: LoRA, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="max_new_tokens: the task classification"):
        predict(classifier, ["w1"], tokenizer=tokenizer, max_new_tokens=4)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("name", ["tuned", "base"])
def test_completions_equal_greedy_generation_one_by_one(writer: LoRA, name: str, arch: str) -> None:
    tokenizer = word_tokenizer("$A")
    if arch != "llama":
        notes = writer.notes
        writer = with_adapters(tiny(arch), "tuned")
        writer.notes = notes
    prompts = texts(9)
    found = predict(writer, prompts, adapter=name, tokenizer=tokenizer, batch_size=4, max_new_tokens=8)
    assert [answer["prompt"] for answer in found] == prompts
    for prompt, answer in zip(prompts, found, strict=True):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad(), writer.using(name):
            out = writer.generate(input_ids=ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
        assert answer["completion"] == tokenizer.decode(out, skip_special_tokens=True)
    assert len({answer["completion"] for answer in found}) > 1


def test_a_completion_ends_at_the_end_token(writer: LoRA) -> None:
    tokenizer = word_tokenizer("$A")
    first = predict(writer, ["w1 w2"], tokenizer=tokenizer, max_new_tokens=6)[0]["completion"].split()
    assert len(first) >= 3
    # The tokenizer's end is what training puts behind an answer; here it is the third word that comes anyway.
    tokenizer.eos_token = first[2]
    place = first.index(first[2])
    cut = predict(writer, ["w1 w2", *texts(3)], tokenizer=tokenizer, max_new_tokens=6)[0]["completion"]
    assert cut.split() == first[:place]


def test_prompts_leave_room_for_the_completion(writer: LoRA) -> None:
    tokenizer = word_tokenizer("$A")
    told: list[str] = []
    long = " ".join(["w1"] * 45)
    found = predict(writer, [long], tokenizer=tokenizer, max_new_tokens=8, on_note=told.append)
    assert found[0]["prompt"] == long and "longer than 32 tokens" in told[0]  # 40 positions - 8
    wanted = predict(writer, [" ".join(["w1"] * 31)], tokenizer=tokenizer, max_new_tokens=8)  # and the beginning token
    assert found[0]["completion"] == wanted[0]["completion"]
    for options in ({"max_new_tokens": 39}, {"max_new_tokens": 8, "max_length": 33}, {"max_new_tokens": 0}):
        with pytest.raises(ConfigError, match="max_new_tokens"):
            predict(writer, ["w1"], tokenizer=tokenizer, **options)


def test_sampling_options_reach_generate(writer: LoRA) -> None:
    tokenizer = word_tokenizer("$A")
    options: dict[str, Any] = {"max_new_tokens": 6, "do_sample": True, "temperature": 5.0}
    draws = set()
    for seed in range(4):
        torch.manual_seed(seed)
        draws.add(predict(writer, ["w1"], tokenizer=tokenizer, **options)[0]["completion"])
    assert len(draws) > 1

"""Answers that are glued to their prompts are told, wherever data are looked at; and nothing is that only looks so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from chat_tokenizer import byte_tokenizer
from lora import DataConfig
from lora.tasks.cache_key import key_of
from lora.tasks.inputs import task_for
from lora.training.prepare import prepare, read_rows
from small_base import tokenizer as word_tokenizer

ASKED = ["What is x?", "Why so late", "Who came.", "And then?"]


def rows(*ends: tuple[str, str], count: int = 4) -> list[dict[str, Any]]:
    """Prompts and completions, at whose seam in turn ``ends`` are put."""
    ends = ends or (("", ""),)
    made = [(ASKED[place % len(ASKED)] + str(place // 4 or ""), ends[place % len(ends)]) for place in range(count)]
    return [
        {"prompt": prompt + last, "completion": f"{first}Answer {place}"} for place, (prompt, (last, first)) in
        enumerate(made)
    ]  # fmt: skip


def told(data: list[dict[str, Any]], tokenizer: Any = None, **columns: Any) -> list[str]:
    tokenizer = tokenizer or byte_tokenizer()
    task, _ = task_for(data, DataConfig.make({"task": "causal", **columns}))
    return task.with_tokenizer(tokenizer).remarks()


def test_answers_glued_to_their_prompts_are_told_once() -> None:
    tokenizer = byte_tokenizer()
    read = read_rows(rows(), rows(), DataConfig(), 0)
    base: Any = SimpleNamespace(base=SimpleNamespace(config=SimpleNamespace(max_position_embeddings=64)), notes={})
    notes = [note for note in prepare(base, read, tokenizer, 64).notes if "glued" in note]
    assert notes == [
        "In 4 of 4 rows the prompt does not end and the completion does not begin with white space, so the answer is "
        "glued to the prompt ('x?Answer'). End each prompt with a line break or begin each completion with a space, "
        "and ask the model in the same form."
    ]
    tokenizer.chat_template = "{{ messages[0].content }}"
    assert "--task chat (data.task: chat)" in told(rows(), tokenizer)[0]


def test_a_few_rows_with_white_space_do_not_hide_the_others() -> None:
    most = [("", "")] * 19 + [("\n", "")]
    assert "In 19 of 20 rows the prompt" in told(rows(*most, count=20))[0]
    assert not told(rows(("", ""), ("\n", ""), count=20)), "half of them: it is not the habit of these data"


@pytest.mark.parametrize(
    "ends",
    [(" ", ""), ("\n", ""), ("", " "), ("", "\n"), ("\nAnswer:", ""), (" ->", ""), (" [/INST]", ""), ("", "### ")],
)
def test_what_parts_them_is_not_told(ends: tuple[str, str]) -> None:
    assert not told(rows(ends))


def test_a_special_token_parts_them() -> None:
    data = [{**row, "prompt": row["prompt"] + f"{place}<|im_end|>"} for place, row in enumerate(rows())]
    assert not told(data)
    assert told(data, byte_tokenizer(extra=[])), "no token of this tokenizer's: a word as any other"


def test_scripts_without_spaces_are_left_alone() -> None:
    for prompt, answer in (
        ("这是什么", "一只猫"),
        ("猫は何ですか？", "動物です"),
        ("นี่คืออะไร", "แมว"),
        ("几只?", "两只"),
    ):
        data = [{"prompt": prompt + prompt * place, "completion": answer} for place in range(3)]
        assert not told(data), prompt
    korean = [{"prompt": "이것은 무엇입니까" + "까" * place, "completion": "고양이"} for place in range(3)]
    assert told(korean), "Korean has spaces"


def test_a_tokenizer_that_parts_words_anyway() -> None:
    assert told(rows()) and not told(rows(), word_tokenizer("llama"))


def test_blank_prompts_and_plain_texts_have_no_seam() -> None:
    assert not told([{"prompt": "", "completion": "Answer"}, {"prompt": " ", "completion": "More"}])
    assert not told([{"text": "One"}, {"text": "Two"}])


def test_kept_token_ids_do_not_depend_on_what_was_seen() -> None:
    tokenizer = byte_tokenizer()
    task, _ = task_for(rows(), DataConfig(task="causal"))
    again = type(task)(prompt="prompt", completion="completion")
    assert key_of(task, "same", tokenizer, 64) == key_of(again, "same", tokenizer, 64)

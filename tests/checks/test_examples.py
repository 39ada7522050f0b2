"""Examples token by token: nothing is lost between ids and text, and what is learned is what has a label."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from chat_tokenizer import byte_tokenizer
from lora.checks.drawing_examples import Way, draw_examples
from lora.checks.examples import Choice, Example, Viewer, choose, ids_of
from lora.checks.remarks import Part
from lora.checks.stretches import Piece, Stretch, by_learning
from lora.data.rendering import IGNORED
from lora.data.rows import located
from lora.errors import ConfigError
from lora.tasks import TASKS, Encoded
from lora.tasks.base import ExamplePart
from lora.tasks.causal import CausalTask
from lora.tasks.chat import ChatTask
from lora.tasks.classification import ClassificationTask
from lora.tasks.preference import PreferenceTask
from lora.tasks.reward import RewardTask
from lora.tasks.seq2seq import Seq2SeqTask
from small_base import tokenizer as small_tokenizer

CAUSAL = CausalTask(prompt="prompt", completion="completion")
TALK = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hé, 你好 😀?"},
    {"role": "assistant", "content": "Fine.\nAnd you?"},
    {"role": "user", "content": "Fine."},
    {"role": "assistant", "content": "Good."},
]


def part(task: Any, rows: list[dict[str, Any]], tokenizer: Any, length: int = 1000) -> Part:
    rows = located(rows, "rows.jsonl", "line")
    return Part("training", rows, task.encode(rows, tokenizer, length))


def views(task: Any, given: list[dict[str, Any]], tokenizer: Any, length: int = 1000, **choice: Any) -> list[Example]:
    made = part(task, given, tokenizer, length)
    viewer = Viewer(task, tokenizer)
    return [viewer.view(*one) for one in choose(Choice(**choice), [made])]


def pieces(example: Example) -> list[Piece]:
    return [piece for stretch in example.stretches for piece in stretch.pieces]


def text(stretch: Stretch) -> str:
    return "".join(piece.text for piece in stretch.pieces)


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd<["), min_size=1, max_size=30))
def test_tokens_of_single_bytes_show_whole_characters(given: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(given, add_special_tokens=False)["input_ids"]
    made = Viewer(CAUSAL, tokenizer).pieces(ids, None)
    assert "".join(piece.text for piece in made) == given
    assert [number for piece in made for number in piece.ids] == ids
    assert [piece.text for piece in made] == list(given)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_tokens_of_words_keep_their_spaces(kind: str) -> None:
    tokenizer = small_tokenizer(kind)
    task = ClassificationTask(["a", "b"])
    (example,) = views(task, [{"text": "red green blue", "label": "a"}], tokenizer)
    assert example.label == "a" and example.learned is None
    shown = [piece.text for piece in pieces(example) if not piece.special]
    assert "".join(shown) == "red green blue" and len(shown) == 3
    assert [piece.text for piece in pieces(example) if piece.special] == (["[CLS]", "[SEP]"] if kind == "bert" else [])


def test_prompt_and_answer() -> None:
    (example,) = views(CAUSAL, [{"prompt": "ab\n", "completion": "cd"}], byte_tokenizer())
    assert [(one.name, text(one)) for one in example.stretches] == [("prompt", "ab\n"), ("answer", "cd</s>")]
    assert example.tokens == 6 and example.learned == 3
    assert [piece.learned for piece in pieces(example)] == [False] * 3 + [True] * 3
    assert pieces(example)[-1].special


def test_plain_text_is_one_text() -> None:
    (example,) = views(CausalTask(text="text"), [{"text": "abcd"}], byte_tokenizer())
    assert [(one.name, text(one)) for one in example.stretches] == [("text", "abcd</s>")]


@pytest.mark.parametrize("template", ["chatml", "llama3", "gemma", "mistral", "zephyr", "plain"])
def test_messages_by_their_roles_in_every_template(template: str) -> None:
    tokenizer = byte_tokenizer()
    task = ChatTask("messages", template=template).with_tokenizer(tokenizer)
    (example,) = views(task, [{"messages": TALK}], tokenizer)
    roles = [one.name for one in example.stretches]
    wanted = [message["role"] for message in TALK]
    assert roles == wanted
    for stretch, message in zip(example.stretches, TALK, strict=True):
        assert message["content"] in text(stretch)
        learned = "".join(piece.text for piece in stretch.pieces if piece.learned and not piece.special)
        assert learned.strip() == (message["content"] if message["role"] == "assistant" else "")
    (made,) = task.encode([{"messages": TALK}], tokenizer, 1000).examples
    assert [number for piece in pieces(example) for number in piece.ids] == made["input_ids"]
    labels = [label for label in made["labels"] if label != IGNORED]
    assert [number for piece in pieces(example) if piece.learned for number in piece.ids] == labels


def test_windows_of_a_long_conversation_say_which_they_are() -> None:
    tokenizer = byte_tokenizer()
    task = ChatTask("messages", template="chatml").with_tokenizer(tokenizer)
    talk = [{"role": role, "content": f"{role} number {n} " * 3} for n in range(4) for role in ("user", "assistant")]
    found = views(task, [{"messages": talk}], tokenizer, 160, rows=[1])
    assert len(found) == 4 and [(one.part, one.parts) for one in found] == [(n, 4) for n in range(1, 5)]
    assert all([one.name for one in example.stretches][-2:] == ["user", "assistant"] for example in found)


@pytest.mark.parametrize("task", [PreferenceTask, RewardTask])
def test_pairs_have_the_prompt_once(task: Any) -> None:
    (example,) = views(
        task("prompt"), [{"prompt": "ask:", "chosen": "yes", "rejected": "no"}], byte_tokenizer()
    )  # fmt: skip
    assert [(one.name, text(one)) for one in example.stretches] == [
        ("prompt", "ask:"), ("chosen", "yes</s>"), ("rejected", "no</s>"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", TASKS)
def test_parts_hold_all_that_training_counts(kind: str) -> None:
    task, example = TASKS[kind].made_up()
    example = task.of_length(example, 12)
    parts, (tokens, _, _) = task.parts(example), task.size(example)
    assert sum(len(ids) for _, ids, _ in parts) >= tokens
    assert all(labels is None or len(labels) == len(ids) for _, ids, labels in parts)
    learned = sum(label != IGNORED for _, _, labels in parts for label in labels or ())
    assert learned == sum(label != IGNORED for label in example.get("labels", ()))


def test_a_target_beside_its_source() -> None:
    task = Seq2SeqTask("prompt", "completion")
    (example,) = views(task, [{"prompt": "abc", "completion": "d"}], byte_tokenizer())
    assert [(one.name, text(one)) for one in example.stretches] == [("source", "abc"), ("target", "d</s>")]
    assert example.tokens == 5 and example.learned == 2, "both are the example's tokens"


class Named(RewardTask):
    """A task of one's own: what its examples look like, it alone knows."""

    def encode(self, *args: Any, **kwargs: Any) -> Encoded:
        found = super().encode(*args, **kwargs)
        examples = [{"row": one["row"], "better": one["chosen"], "worse": one["rejected"]} for one in found.examples]
        return replace(found, examples=examples)

    def parts(self, example: dict[str, Any]) -> list[ExamplePart]:
        return [("better", example["better"], None), ("worse", example["worse"], None)]


def test_an_example_of_a_task_of_ones_own() -> None:
    (example,) = views(Named("prompt"), [{"prompt": "a", "chosen": "b", "rejected": "c"}], byte_tokenizer())
    assert [(one.name, text(one)) for one in example.stretches] == [("better", "ab</s>"), ("worse", "ac</s>")]
    assert ids_of(Named("prompt"), {"better": [1, 2], "worse": [1, 3]}) == [1, 2, 1, 3]


def test_what_is_cut_is_said_where_it_was() -> None:
    rows = [{"prompt": "0123456789", "completion": "ab"}, {"prompt": "x", "completion": "a" * 20}]
    cut, left_out = views(CAUSAL, rows, byte_tokenizer(), 8, rows=[1, 2])
    assert cut.cut == (5, 0) and text(cut.stretches[0]) == "56789" and not cut.left_out
    assert left_out.left_out and left_out.tokens == 22
    task = ClassificationTask(["a", "b"])
    (right,) = views(task, [{"text": "red " * 9, "label": "a"}], small_tokenizer("bert"), 6)
    assert right.cut == (5, 6) or right.cut == (5, 5)


def test_which_examples_are_shown() -> None:
    rows = [{"prompt": "p" * n, "completion": "c"} for n in range(1, 11)]
    made = [part(CAUSAL, rows, byte_tokenizer())]

    def chosen(**choice: Any) -> list[int]:
        return [row + 1 for _, _, row, _ in choose(Choice(**choice), made)]

    assert chosen(shortest=True, count=2) == [1, 2] and chosen(longest=True, count=2) == [10, 9]
    assert chosen(rows=[7, 3]) == [7, 3] and chosen(count=0) == [] and chosen(count=1) == [5]
    assert len(chosen()) == 3 and chosen() == sorted(chosen())
    assert chosen(random=True, seed=1) == chosen(random=True, seed=1) != chosen(random=True, seed=2)
    with pytest.raises(ConfigError, match="no row 11"):
        chosen(rows=[11])


def test_learning_cuts_a_text() -> None:
    made = [Piece(char, [0], char.isupper(), False) for char in "abCDe"]
    assert [(one.name, text(one)) for one in by_learning(made)] == [("prompt", "ab"), ("answer", "CD"), ("prompt", "e")]
    made[-1] = Piece("\n", [0], False, False)  # behind the last answer, as templates write it
    assert [(one.name, text(one)) for one in by_learning(made)] == [("prompt", "ab"), ("answer", "CD\n")]


def drawn(example: Example, colour: bool, full: bool = False, width: int = 60) -> str:
    console = Console(
        width=width, force_terminal=colour, color_system="standard" if colour else None, highlight=False,
        no_color=not colour, file=io.StringIO(), record=True,
    )  # fmt: skip
    draw_examples([example], console, full)
    return "\n".join(line.rstrip() for line in console.export_text(styles=colour).split("\n"))


def test_marks_say_what_colours_say() -> None:
    row = {"prompt": "a b\n", "completion": "c\td\u200b"}
    (example,) = views(CAUSAL, [row], byte_tokenizer())
    plain = drawn(example, colour=False)
    assert "a|·|b|⏎\n" in plain and "⟦c|→|d|<U+200B>|«</s>»⟧" in plain
    coloured = drawn(example, colour=True)
    assert "⟦" not in coloured and "«" not in coloured and "|" not in coloured
    assert "\x1b[1;32mc\x1b[0m" in coloured and "\x1b[2ma\x1b[0m" in coloured and "\x1b[2;4m·\x1b[0m" in coloured


def test_long_runs_are_shortened_and_lines_end_between_tokens() -> None:
    (example,) = views(CAUSAL, [{"prompt": "p" * 300, "completion": "c" * 200}], byte_tokenizer())
    short, full = drawn(example, colour=False), drawn(example, colour=False, full=True)
    assert "… 240 more …" in short and "more …" not in full
    assert full.count("p|") + full.count("p\n") + full.count("p⟦") >= 300 and full.count("c") >= 200
    assert all(len(line) <= 60 for line in full.splitlines())


def test_line_breaks_never_part_a_marked_token() -> None:
    made = [Piece("token", [0], True, False)] * 30
    lines = Way(False).text(made, 20).plain.splitlines()
    assert all(len(line) <= 21 and set(line.strip("⟦⟧").split("|")) == {"token"} for line in lines)


def test_a_call_of_a_tool_is_the_assistants() -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "add", "arguments": {"a": 1}}}]}
    turns = [{"role": "user", "content": "1 + 1?"}, call, {"role": "tool", "content": "2"},
             {"role": "assistant", "content": "It is 2."}]  # fmt: skip
    task = ChatTask(messages="messages", template="chatml").with_tokenizer(byte_tokenizer())
    (example,) = views(task, [{"messages": turns}], byte_tokenizer())
    assert [one.name for one in example.stretches] == ["user", "assistant", "tool", "assistant"]
    assert '"name": "add"' in text(example.stretches[1]) and any(piece.learned for piece in example.stretches[1].pieces)

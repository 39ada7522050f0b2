"""The chat task: which messages are learned, long conversations, what is kept with the adapter."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_tokenizer import byte_tokenizer
from lora.config import DataConfig
from lora.errors import ConfigError, DataError
from lora.tasks import from_state
from lora.tasks.chat import ChatTask
from lora.tasks.encoding import joined_notes
from lora.tasks.inputs import task_for, with_columns
from lora.training.prepare import read_rows

TOKENIZER = byte_tokenizer()


def talk(*contents: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def learned(task: ChatTask, row: dict[str, Any], length: int = 10_000) -> list[str]:
    """What is learned of a row, in the order of its examples; separate stretches by |."""
    out = []
    for example in task.encode([row], TOKENIZER, length).examples:
        assert len(example["input_ids"]) == len(example["labels"]) <= length
        runs, before = list[list[int]](), -100
        for label in example["labels"]:
            if label != -100:
                (runs.append([label]) if before == -100 else runs[-1].append(label))
            before = label
        out += [TOKENIZER.decode(run).removesuffix("<|im_end|>").strip() for run in runs]
        assert all(TOKENIZER.decode(run).endswith("<|im_end|>") for run in runs)
    return out


def chat(**settings: Any) -> ChatTask:
    return ChatTask(messages="messages", template="chatml", **settings)


ROW = {"messages": talk("Hi", "one", "And?", "two", "So?", "three")}


@pytest.mark.parametrize(
    "learn, expected",
    [("all", ["one", "two", "three"]), ("last", ["three"]), ([0, -1], ["one", "three"]), ([1, 9], ["two"])],
)
def test_which_answers_are_learned(learn: Any, expected: list[str]) -> None:
    assert learned(chat(learn=learn), ROW) == expected


def test_messages_say_themselves_whether_they_are_learned() -> None:
    row = json.loads(json.dumps(ROW))
    row["messages"][3]["weight"] = 0
    assert learned(chat(learn="last"), row) == ["one", "three"]
    row["messages"][1]["train"] = row["messages"][5]["train"] = False
    with pytest.raises(DataError, match="no answer that is to be learned: row 1"):
        chat().encode([row], TOKENIZER, 1000)


def test_alpaca_and_messages_as_prompt() -> None:
    task = ChatTask(prompt="instruction", context="input", completion="output", template="chatml")
    row = {"instruction": "Say", "input": "it", "output": "done"}
    assert learned(task, row) == ["done"]
    text = TOKENIZER.decode(task.encode([row], TOKENIZER, 1000).examples[0]["input_ids"])
    assert "<|im_start|>user\nSay\n\nit<|im_end|>" in text
    turns = {"instruction": talk("Hi", "not learned", "And?"), "output": talk("x", "learned")[1:]}
    assert learned(task, turns) == ["learned"]


def test_system_messages() -> None:
    task = ChatTask(messages="messages", system="system", template="chatml", system_prompt="Default.")

    def first(row: dict[str, Any]) -> str:
        return TOKENIZER.decode(task.encode([{**ROW, **row}], TOKENIZER, 1000).examples[0]["input_ids"][:30])

    assert "system\nOwn.<" in first({"system": "Own."}) and "system\nDefault.<" in first({"system": None})
    kept = {"messages": [{"role": "system", "content": "There."}, *ROW["messages"]]}
    assert "system\nThere.<" in first(kept)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"messages": talk("Hi")}, "hold no answer of the assistant's to learn: row 1"),
        ({"messages": None}, "messages is missing"),
        ({"messages": [{"role": "x", "content": "y"}]}, "messages: message 1 has the unknown role 'x'"),
        ({"messages": talk("Hi", "")}, r"messages: message 2 \(assistant\) is empty"),
    ],
)
def test_rows_at_fault(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        ChatTask.from_rows([row], {"messages": "messages"})


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    system=st.booleans(),
    length=st.integers(40, 200),
)
@settings(max_examples=60, deadline=None)
def test_long_conversations_lose_no_answer_that_fits(sizes: list[int], system: bool, length: int) -> None:
    """Each answer is learned once, whole; or it is counted as one that does not fit even with its question alone."""
    contents = [text for i, size in enumerate(sizes) for text in (f"q{i}", f"a{i}" + "x" * size)]
    messages = [{"role": "system", "content": "s"}] * system + talk(*contents)
    answers = [f"a{i}" + "x" * size for i, size in enumerate(sizes)]

    def needed(place: int) -> int:
        alone = {"messages": [*messages[:system], *talk(f"q{place}", answers[place])]}
        return chat().encode([alone], TOKENIZER, 10_000).lengths[0]

    # ChatML's line break after the end of the last answer is not learned but takes a place.
    fitting = [answer for place, answer in enumerate(answers) if needed(place) <= length]
    if not fitting:
        with pytest.raises(DataError, match="None is left; raise data.max_length"):
            chat().encode([{"messages": messages}], TOKENIZER, length)
        return
    assert learned(chat(), {"messages": messages}, length) == fitting
    notes = " ".join(chat().encode([{"messages": messages}], TOKENIZER, length).notes)
    lost = len(sizes) - len(fitting)
    assert ("1 answer does not fit" if lost == 1 else f"{lost} answers do not fit") in notes or not lost
    assert "not fit" not in notes or lost


def test_only_what_was_cut_is_said_to_be() -> None:
    """A template that leaves out earlier reasoning makes several examples of a short conversation too."""
    forgetful = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{% if loop.last %}<think>{% endif %}{{ m.content }}"
        "<|im_end|>{% else %}U:{{ m.content }}|{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    task = ChatTask(messages="messages", template=forgetful).with_tokenizer(TOKENIZER)
    short = task.encode([{"messages": talk("a", "b", "c", "d")}], TOKENIZER, 100)
    assert len(short) == 2 and short.truncated == 0 and not short.notes
    long = {"messages": talk("a", "b" * 50, "c", "d" * 50)}
    alone = {"messages": talk("a", "b" * 140)}
    made = chat().encode([{"messages": talk("a", "b")}, long, alone], TOKENIZER, 120)
    assert made.truncated == 2 and made.notes[:2] == [
        "2 of 3 conversations have more than 120 tokens: 1 became several (2 examples), 1 was left out whole.",
        "1 answer does not fit in 120 tokens with the message before it and was left out: an answer is never cut.",
    ]


def test_what_became_of_the_long_ones_adds_up() -> None:
    """Of conversations that are cut each is told as one kind or another, also where rows are encoded in parts."""
    kinds = {
        "short": talk("a", "b"), "several": talk("a", "b" * 50, "c", "d" * 50), "part": talk("a", "b", "c", "d" * 140),
        "none": talk("a", "b" * 140),
    }  # fmt: skip
    rows = [{"messages": kinds[kind]} for kind in ("several", "part", "none", "short", "part", "none", "part")]
    said = [
        "6 of 7 conversations have more than 120 tokens: 1 became several (2 examples), 3 became one example, of a "
        "part, 2 were left out whole.",
        "5 answers do not fit in 120 tokens with the message before them and were left out: an answer is never cut.",
    ]
    assert chat().encode(rows, TOKENIZER, 120).notes[:2] == said
    parts = [chat().encode(rows[:3], TOKENIZER, 120).notes, chat().encode(rows[3:], TOKENIZER, 120).notes]
    assert joined_notes(parts, len(rows))[:2] == said
    (alone,) = [note for note in chat().encode(rows[1:2], TOKENIZER, 120).notes if "conversation" in note]
    assert alone == "1 of 1 conversation has more than 120 tokens: 1 became one example, of a part."


def test_prompts_for_generation() -> None:
    task = chat()
    asked = task.encode([ROW, {"messages": talk("Hi")}, {"messages": "Hi"}], TOKENIZER, 1000, supervised=False)
    texts = [TOKENIZER.decode(example["input_ids"]) for example in asked.examples]
    assert texts[1] == texts[2] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert texts[0].endswith("So?<|im_end|>\n<|im_start|>assistant\n") and "three" not in texts[0]
    short = task.encode([ROW], TOKENIZER, 40, supervised=False)
    assert (
        TOKENIZER.decode(short.examples[0]["input_ids"]) == "<|im_start|>user\nSo?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "1 of 1 conversation has more than 40 tokens and lost its beginning" in short.notes[-1]


def test_the_format_is_kept_and_held_to() -> None:
    rows = [ROW]
    task = ChatTask.from_rows(rows, {"messages": "messages"})
    fitted = from_state({**task.state(), "template": "chatml"}).with_tokenizer(TOKENIZER)
    again = from_state(json.loads(json.dumps(fitted.state())))
    assert again.state() == fitted.state() and again.ends() == [TOKENIZER.convert_tokens_to_ids("<|im_end|>")]
    # Whatever template the tokenizer has by now: the adapter is asked in the one that it was trained with.
    other = byte_tokenizer()
    other.chat_template = "{{ 'something else' }}"
    asked = again.with_tokenizer(other).encode(rows, other, 1000, supervised=False).examples
    assert asked == fitted.encode(rows, TOKENIZER, 1000, supervised=False).examples
    with pytest.raises(DataError, match="other token ids of a conversation than the one that the adapter was trained"):
        again.with_tokenizer(byte_tokenizer(extra=["<|im_end|>", "<|im_start|>"]))


def test_options_by_their_names() -> None:
    rows = [ROW, ROW]
    config = DataConfig.make({"options": {"learn": "last", "template": "chatml"}})
    task, how = task_for(rows, config)
    assert (
        isinstance(task, ChatTask)
        and (task.settings.learn, task.settings.template) == ("last", "chatml")
        and "Task chat" in how
    )
    again = with_columns(task, DataConfig.make({"options": {"learn": "all"}}))
    assert (again.settings.learn, again.settings.template) == ("all", "chatml")
    with pytest.raises(ConfigError, match="data.options.lern: unknown setting; did you mean 'learn'"):
        task_for(rows, DataConfig.make({"options": {"lern": "last"}}))
    with pytest.raises(ConfigError, match="data.options: the task classification has none"):
        task_for([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], config)


def test_a_tokenizer_without_end_is_told() -> None:
    silent = byte_tokenizer(extra=[], eos_token=None)
    encoded = ChatTask(messages="messages").with_tokenizer(silent).encode([ROW], silent, 1000)
    assert any("has an end token" in note for note in encoded.notes)


ASKED = [f"Question {number // 4}" for number in range(80)]
CONVERSATIONS = [talk("Hi", "Hello", asked, f"answer {number}") for number, asked in enumerate(ASKED)]


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": its} for its in CONVERSATIONS],
        [{"messages": json.dumps([{"from": one["role"], "value": one["content"]} for one in its])}
         for its in CONVERSATIONS],
        [{"chosen": its, "rejected": [*its[:-1], {**its[-1], "content": "no"}]} for its in CONVERSATIONS],
        [{"prompt": its[:-1], "completion": its[-1]["content"]} for its in CONVERSATIONS],
        [{"prompt": its[:-1], "chosen": its[-1]["content"], "rejected": "no"} for its in CONVERSATIONS],
    ],
    ids=["messages", "json", "chosen", "prompt", "pairs"],
)  # fmt: skip
def test_another_answer_to_a_held_out_question_is_not_trained_on(rows: list[dict[str, Any]]) -> None:
    found = read_rows(rows, None, DataConfig(held_out=0.2), 0)
    sides = [{ASKED[place] for place, row in enumerate(rows) if row in side} for side in (found.train, found.held)]
    assert not sides[0] & sides[1] and len(found.held) == 16
    assert any("rows of the same input stay together (60 repeated)" in note for note in found.notes)


def test_a_conversation_that_begins_with_the_assistant() -> None:
    """Its greeting is learned behind the prompt for an answer; without such a prompt it is not, and that is said."""
    row = {"messages": [{"role": "assistant", "content": "Welcome!"}, *talk("x", "two")]}
    assert learned(chat(), row) == ["Welcome!", "two"] and learned(chat(learn="last"), row) == ["two"]
    start = "<|im_start|>assistant\n"
    assert TOKENIZER.decode(chat().asked(chat().encode([row], TOKENIZER, 100).examples[0])[0][0]["input_ids"]) == start
    bare = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}"
    task = ChatTask(messages="messages", template=bare + "{% if add_generation_prompt %}[bot]{% endif %}")
    with pytest.raises(DataError, match="does not begin as the template prompts"):
        task.encode([row], TOKENIZER, 100)
    task = ChatTask(messages="messages", template=bare.replace("[{{ m.role }}]", ""))
    made = task.encode([row, {"messages": row["messages"][:1]}], TOKENIZER, 100)
    assert [
        TOKENIZER.decode(ids) for (ids,) in [[[n for n in one["labels"] if n != -100]] for one in made.examples]
    ] == ["two<|im_end|>"]
    assert made.notes[0] == (
        "2 of 2 conversations begin with the assistant, for which the chat template has no prompt: their first answers "
        "are not learned. So 1 of them is left out whole."
    )
    with pytest.raises(DataError, match="no prompt: its first answer is not learned"):
        task.encode([{"messages": row["messages"][:1]}], TOKENIZER, 100)

"""Columns and task by name and value."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lora import registry
from lora.config import DataConfig
from lora.data.columns import Claim, Columns, Sign, Table
from lora.errors import ConfigError, DataError
from lora.tasks import TASKS, Task
from lora.tasks.causal import CausalTask
from lora.tasks.recognise import recognise
from lora.training.prepare import read_rows


def rows(*names: str, label: Any = None, count: int = 60) -> list[dict[str, Any]]:
    made = [{name: f"{name} {number}" for name in names} for number in range(count)]
    if label is not None:
        key, values = label
        for number, row in enumerate(made):
            row[key] = values[number % len(values)]
    return made


def roles(columns: Columns) -> dict[str, str]:
    return {"task": columns.task, **columns.roles}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (rows("text", label=("label", ["a", "b"])), {"task": "classification", "text": "text", "label": "label"}),
        (
            rows("Sentence", label=("Intent", ["a", "b"])),
            {"task": "classification", "text": "Sentence", "label": "Intent"},
        ),
        (
            rows("review", label=("sentiment", [True, False])),
            {"task": "classification", "text": "review", "label": "sentiment"},
        ),
        (
            rows("premise", "hypothesis", label=("label", [0, 1, 2])),
            {"task": "classification", "text": "premise", "text_pair": "hypothesis", "label": "label"},
        ),
        (
            rows("sentence1", "sentence2", label=("score", [0.5, 4.2])),
            {"task": "regression", "text": "sentence1", "text_pair": "sentence2", "label": "score"},
        ),
        (
            rows("text", label=("labels", [["a"], [], ["a", "b"]])),
            {"task": "multi-label", "text": "text", "label": "labels"},
        ),
        (rows("text", label=("target", ["1", "2.5"])), {"task": "regression", "text": "text", "label": "target"}),
        (rows("prompt", "completion"), {"task": "causal", "prompt": "prompt", "completion": "completion"}),
        (rows("prompt", "response"), {"task": "causal", "prompt": "prompt", "completion": "response"}),
        (
            rows("instruction", "input", "output"),
            {"task": "causal", "prompt": "instruction", "context": "input", "completion": "output"},
        ),
        (
            rows("instruction", "context", "response", label=("category", ["x", "y"])),
            {"task": "causal", "prompt": "instruction", "context": "context", "completion": "response"},
        ),
        (rows("question", "answer"), {"task": "causal", "prompt": "question", "completion": "answer"}),
        (rows("source", "target"), {"task": "causal", "prompt": "source", "completion": "target"}),
        (rows("input", "output"), {"task": "causal", "prompt": "input", "completion": "output"}),
        (
            rows("question", "answer", label=("label", [0, 1])),
            {"task": "classification", "text": "question", "label": "label"},
        ),
        (rows("text"), {"task": "causal", "text": "text"}),
        (rows("text", "url"), {"task": "causal", "text": "text"}),
        (rows("review"), {"task": "causal", "text": "review"}),
    ],
)
def test_usual_names(data: list[dict], expected: dict[str, str]) -> None:
    assert roles(recognise(data, DataConfig())) == expected


@pytest.mark.parametrize(
    ("values", "task"),
    [
        (["x", "y", "z"], "classification"),
        ([1, 2, 3, 4, 5], "classification"),
        (["1", "0"], "classification"),
        ([1.0, 2.0, None], "classification"),
        ([1.0, 2.5], "regression"),
        (["1.5", "", "2"], "regression"),
        ([float("nan"), "a", "b"], "classification"),
        (list(range(100)), "classification"),  # 0…99, two rows each: numbered classes
        ([n * 7 for n in range(100)], "regression"),
        (list(range(200)), "regression"),  # each number once: a quantity
        ([f"class {n}" for n in range(60)], "classification"),
    ],
)
def test_the_labels_values_decide_the_task(values: list[Any], task: str) -> None:
    assert recognise(rows("text", label=("label", values), count=200), DataConfig()).task == task


def test_labels_that_never_repeat_are_answers() -> None:
    data = rows("text", "target", count=200)
    with pytest.raises(DataError, match="is it an answer to be written"):
        recognise(data, DataConfig())
    assert recognise(data, DataConfig(task="classification")).task == "classification"
    named = recognise(data, DataConfig(prompt_column="text"))
    assert named.roles == {"prompt": "text", "completion": "target"}


def test_the_log_says_what_was_preferred_and_what_is_unused() -> None:
    data = [row | {"category": "x", "date": 1} for row in rows("text", label=("label", ["a", "b"]))]
    how = recognise(data, DataConfig()).how
    assert "Preferred over 'category'" in how and "Not used: category, date" in how and "2 different labels" in how


def test_named_columns_win() -> None:
    data = [
        row | {"category": ["x", "y"][n % 2], "mr": "m", "ref": "r"}
        for n, row in enumerate(rows("text", label=("label", ["a"])))
    ]
    assert recognise(data, DataConfig(label_column="category")).roles["label"] == "category"
    assert roles(recognise(data, DataConfig(prompt_column="mr", completion_column="ref"))) == {
        "task": "causal",
        "prompt": "mr",
        "completion": "ref",
    }
    assert roles(recognise(data, DataConfig(text_column="REF", text_pair_column="mr"))) == {
        "task": "classification",
        "text": "ref",
        "text_pair": "mr",
        "label": "label",
    }
    assert roles(recognise(data, DataConfig(task="causal", text_column="mr"))) == {"task": "causal", "text": "mr"}
    assert recognise(data, DataConfig(task="multi-label")).task == "multi-label"


def test_any_role_may_be_named() -> None:
    data = rows("question", "background", "answer")
    assert recognise(data, DataConfig()).roles == {"prompt": "question", "completion": "answer"}
    found = recognise(data, DataConfig(columns={"context": "Background"}))
    assert found.roles == {"prompt": "question", "context": "background", "completion": "answer"}
    assert recognise(data, DataConfig(columns={"text": "answer"}, task="causal")).roles == {"text": "answer"}
    assert recognise(data, DataConfig(columns={"text": "answer"}, text_column="answer")).roles == {"text": "answer"}


class Tagging(CausalTask):
    """As it would stand in a file of its own: a word and a tag each."""

    name = "tagging"
    roles = ("words", "marks")
    to_name = "data.columns {words: …, marks: …} to tag words"

    @classmethod
    def recognise(cls, table: Table, asked: bool) -> Claim | None:
        words = table.named.get("words") or table.get("tokens")
        marks = table.named.get("marks") or table.get("tags", "ner_tags")
        if words and marks and table.holds_lists(words):
            return Claim(Sign.NAMED if table.named or asked else Sign.CLEAR, {"words": words, "marks": marks}, "lists")
        return None


@pytest.fixture
def tagging(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line in the registry (read twice here, since `lora.tasks` is imported already)."""
    monkeypatch.setitem(registry.TASKS, "tagging", f"{__name__}:Tagging")
    monkeypatch.setitem(TASKS, "tagging", Tagging)


@pytest.mark.usefixtures("tagging")
def test_a_new_task_is_one_file_and_one_line() -> None:
    data = [{"id": "1", "text": "a b", "label": "x", "tokens": ["a", "b"], "ner_tags": [0, 1]}] * 3
    found = recognise(data, DataConfig())
    assert (found.task, found.roles) == ("classification", {"text": "text", "label": "label"}), "first of equals"
    assert (
        recognise([{**row, "label": None, "text": "x"} for row in data], DataConfig(task="tagging")).task == "tagging"
    )
    data = [{key: row[key] for key in ("id", "text", "tokens", "ner_tags")} for row in data]
    assert recognise(data, DataConfig()).how == (
        "Task tagging: words from column 'tokens', marks from column 'ner_tags' (lists). Not used: id, text."
    )
    named = DataConfig(columns={"marks": "id"})
    assert recognise(data, named).roles == {"words": "tokens", "marks": "id"}
    with pytest.raises(DataError, match=r"to classify, .*data.columns \{words: …, marks: …\} to tag words"):
        recognise(rows("alpha", "beta"), DataConfig())
    with pytest.raises(DataError, match=r"a prompt column \(causal, chat, .*\), a marks column \(tagging\); remove"):
        recognise(rows("a", "b"), DataConfig(columns={"marks": "a"}, prompt_column="b"))
    with pytest.raises(ConfigError, match="did you mean 'tagging'"):
        DataConfig.make({"task": "taging"})


def test_a_text_named_alone_finds_its_label_or_is_plain_text() -> None:
    data = rows("body", "note", label=("label", ["a", "b"]))
    assert roles(recognise(data, DataConfig(text_column="note"))) == {
        "task": "classification",
        "text": "note",
        "label": "label",
    }
    assert roles(recognise(rows("a", "b"), DataConfig(text_column="b"))) == {"task": "causal", "text": "b"}


@pytest.mark.parametrize(
    ("row", "config", "expected"),
    [
        ({"messages": [{"role": "user", "content": "a"}], "id": 1}, {}, {"task": "chat", "messages": "messages"}),
        ({"conversations": '[{"from": "human", "value": "a"}]', "system": "s"}, {},
         {"task": "chat", "messages": "conversations", "system": "system"}),
        ({"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}, {},
         {"task": "chat", "prompt": "prompt", "completion": "completion"}),
        ({"instruction": "a", "input": "", "output": "b"}, {"task": "chat"},
         {"task": "chat", "prompt": "instruction", "context": "input", "completion": "output"}),
        ({"messages": "just a text", "label": "x", "text": "b"}, {}, {"task": "classification", "text": "text",
                                                                       "label": "label"}),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {},
         {"task": "preference", "prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
        ({"messages": [{"role": "user", "content": "a"}], "chosen": "b", "rejected": "c"}, {},
         {"task": "preference", "prompt": "messages", "chosen": "chosen", "rejected": "rejected"}),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, {"task": "reward"},
         {"task": "reward", "prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}),
    ],
)  # fmt: skip
def test_conversations_and_preferences(row: dict, config: dict[str, Any], expected: dict[str, str]) -> None:
    assert roles(recognise([row] * 3, DataConfig(**config))) == expected


def test_a_column_only_some_rows_have_is_seen() -> None:
    assert recognise([{"text": "x"}, {"text": "y", "label": "a"}], DataConfig()).roles["label"] == "label"


@pytest.mark.parametrize(
    ("data", "config", "parts"),
    [
        ([], {}, ["there are no rows"]),
        (
            rows("alpha", "beta"),
            {},
            ["no column is recognised", "columns there are: alpha, beta", "--data.text-column"],
        ),
        (rows("review", "grade"), {}, ["none of the others is recognised as its label", "--data.label-column"]),
        (rows("text"), {"task": "classification"}, ["no label column is recognised", "columns there are: text"]),
        (rows("a", label=("label", ["x"])), {}, ["no column is recognised"]),
        (rows("a"), {"task": "regression"}, ["no text and no label column"]),
        (
            rows("alpha", "beta"),
            {"prompt_column": "alpha"},
            ["no completion column is recognised", "--data.completion-column"],
        ),
        (
            rows("alpha", "text"),
            {"text_column": "alhpa", "label_column": "zzz"},
            [
                "there is no column 'alhpa'; did you mean 'alpha'?",
                "data.label_column: there is no column 'zzz'",
                "columns there are",
            ],
        ),
        (rows("a", "b"), {"label_column": "a", "prompt_column": "b"}, ["remove one kind or set data.task"]),
        (
            rows("a", "b"),
            {"columns": {"lable": "a", "zzz": "b"}},
            ["data.columns: 'lable' is unknown; did you mean 'label'?", "'zzz' is unknown; known: text, text_pair, "],
        ),
        (rows("a", "b"), {"columns": {"prompt": "aa"}}, ["data.columns.prompt: there is no column 'aa'"]),
        ([{"tokens": ["a"]}], {"task": "token-classification"}, ["no tags column", "data.columns.tags"]),
        ([{"tokens": ["a"], "other": ["O"]}], {}, ["no column is recognised", "{tokens: …, tags: …} to tag words"]),
    ],
)
def test_refusals(data: list[dict], config: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        recognise(data, DataConfig(**config))
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["json", "python"])
def test_lists_that_a_csv_file_holds_as_text(write: Any, tmp_path: Path) -> None:
    """As datasets and pandas write them. Else a list of labels is one class, and white space parts a list of tags."""

    def task_of(*rows: dict[str, Any]) -> Task:
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            for row in rows:
                table.writerow({key: cell if isinstance(cell, str) else write(cell) for key, cell in row.items()})
        return read_rows(str(tmp_path / "rows.csv"), False, DataConfig(), 0).task

    labels = task_of({"text": "a", "labels": ["x"]}, {"text": "b", "labels": ["x", "it's y"]})
    assert labels.name == "multi-label" and labels.state()["labels"] == ["it's y", "x"]
    tags = task_of({"tokens": ["New York", "sun"], "tags": ["B-P", "O"]}, {"tokens": ["a"], "tags": ["O"]})
    assert tags.name == "token-classification" and tags.state()["labels"] == ["B-P", "I-P", "O"]
    numbers = task_of({"tokens": ["New York", "sun"], "tags": [1, 0]}, {"tokens": ["a"], "tags": [0]})
    assert numbers.name == "token-classification" and numbers.state()["labels"] == ["0", "1"]
    turns = [{"role": "user", "content": "it's"}, {"role": "assistant", "content": "so"}]
    assert task_of({"messages": turns}).name == "chat"
    assert task_of({"text": "a", "label": "[x]"}, {"text": "b", "label": "[y]"}).name == "classification"


@pytest.mark.parametrize(
    ("names", "config", "words"),
    [
        (
            ("text", "label"), {"task": "classification", "text_column": "text", "label_column": "text"},
            "'text' would be read as text and as label",
        ),
        (
            ("prompt", "completion"), {"prompt_column": "prompt", "completion_column": "prompt"},
            "would be read as prompt and as completion",
        ),
        (("a", "b"), {"columns": {"chosen": "a", "rejected": "a", "prompt": "b"}}, "read as chosen and as rejected"),
        (
            ("text", "label", "other"), {"task": "classification", "prompt_column": "other"},
            r"the task classification does not read data.prompt_column \('other'\); it reads: text, text_pair, label",
        ),
    ],
)  # fmt: skip
def test_columns_named_twice_or_for_another_task_are_refused(
    names: tuple[str, ...], config: dict[str, Any], words: str
) -> None:
    with pytest.raises(DataError, match=words):
        recognise(rows(*names), DataConfig.make(config))


def test_a_task_that_reads_all_that_is_named_is_meant() -> None:
    """Prompts are read by several tasks, and another has a completion."""
    named = {"prompt": "prompt", "chosen": "good", "rejected": "bad"}
    found = recognise(rows("prompt", "completion", "good", "bad"), DataConfig(columns=named))
    assert roles(found) == {"task": "preference", **named}

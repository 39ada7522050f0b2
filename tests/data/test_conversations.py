"""Conversations as data sets write them, brought to one form."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lora.data.conversations import holds_messages, is_learned, read_messages, read_tools

PLAIN = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]


@pytest.mark.parametrize(
    "cell",
    [
        PLAIN,
        json.dumps(PLAIN),
        [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        [{"role": "User", "content": "Hi", "name": None}, {"role": "model", "content": [{"text": "Hel"}, "lo"]}],
    ],
)  # fmt: skip
def test_one_form(cell: Any) -> None:
    assert read_messages(cell) == PLAIN and holds_messages(cell)


def test_calls_of_tools() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    openai = [
        {"role": "assistant", "tool_calls": [{"id": "7", "function": {"name": "add", "arguments": '{"a": 1}'}}]},
        {"role": "tool", "content": "", "tool_call_id": "7"},
    ]  # fmt: skip
    first, second = read_messages(openai)
    assert first == {"role": "assistant", "content": "", "tool_calls": [{"id": "7", **call}]}
    assert second == {"role": "tool", "content": "", "tool_call_id": "7"}
    sharegpt = [
        {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
        {"from": "observation", "value": "2"},
    ]
    assert [m.get("tool_calls") for m in read_messages(sharegpt)] == [[call], None]
    assert [m["role"] for m in read_messages(sharegpt)] == ["assistant", "tool"]


@pytest.mark.parametrize(
    "cell, message",
    [
        (None, "is missing"),
        ([], "has no message"),
        ("Hello", "is text and no list of messages"),
        (7, "of the type int"),
        (["Hello"], "message 1 is a str"),
        ([{"content": "x"}], "message 1 says no role"),
        ([PLAIN[0], {"role": "wizard", "content": "x"}], "message 2 has the unknown role 'wizard'"),
        ([{"role": "user"}], r"message 1 \(user\) is missing"),
        ([{"role": "user", "content": 5}], r"message 1 \(user\) is of the type int"),
        ([{"role": "assistant", "content": "  "}], r"message 1 \(assistant\) is empty"),
        ([{"role": "user", "content": "\ud800"}], "half a character"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}], "no text .*image_url"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "needs a function's name"),
        ([{"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{a"}]}], "arguments of f are no JSON"),
        ([{"from": "function_call", "value": "add(1)"}], "should hold a call as JSON"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(cell: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_messages(cell)


def test_marks_of_what_is_learned() -> None:
    marks = [{"weight": 0}, {"weight": 1}, {"train": False}, {"training": True}, {}]
    assert [is_learned({**PLAIN[1], **mark}) for mark in marks] == [False, True, False, True, None]


def test_tools() -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    assert read_tools(json.dumps([tool])) == read_tools([tool]) == [tool]
    assert read_tools(None) is read_tools("") is read_tools("[]") is None
    for cell in ("{", [1], "7"):
        with pytest.raises(ValueError):
            read_tools(cell)


@pytest.mark.parametrize("cell", ["Hello", "[not json", "[]", [], None, ["a"], {"role": "user"}])
def test_what_holds_no_messages(cell: Any) -> None:
    assert not holds_messages(cell)

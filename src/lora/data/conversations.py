"""Conversations as rows hold them (OpenAI's messages, ShareGPT's turns) brought to one form, which templates take.

A message is ``{"role", "content"}`` with role system, user, assistant or tool; an assistant's may have ``tool_calls``.
Keys of a template's own (``name``, ``reasoning_content``) stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lora.data.problems import excerpt, is_missing, text_problem, written_list

Message = dict[str, Any]

# How data sets call the four roles.
ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant", "model": "assistant",
    "function_call": "assistant", "tool_call": "assistant", "tool": "tool", "function": "tool", "observation": "tool",
    "function_response": "tool", "tool_response": "tool",
}  # fmt: skip
CALLS = ("function_call", "tool_call")  # roles whose content is the call itself, as JSON
# Marks on a message that say whether it is learned: OpenAI's weight, Axolotl's train.
MARKS = ("weight", "train", "training")


def read_messages(value: Any) -> list[Message]:
    """The messages in a cell: a list of turns, also as text. Raises ValueError saying what is wrong with it."""
    if is_missing(value):
        raise ValueError("is missing")
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"is of the type {type(value).__name__}, not a list of messages")
    if not value:
        raise ValueError("has no message")
    return [_message(turn, number) for number, turn in enumerate(value, start=1)]


def to_answer(turns: Sequence[Message]) -> list[Message]:
    """``turns``, as data have them or read, without those of the assistant's at their end: what is to be answered."""
    end = len(turns)
    while end and _role(turns[end - 1]) == "assistant":
        end -= 1
    return list(turns[:end])


def _role(turn: Message) -> str | None:
    given = turn.get("role") or turn.get("from")
    return ROLES.get(given.strip().lower()) if isinstance(given, str) else None


def is_learned(message: Message) -> bool | None:
    """Whether the data say that a message is to be learned; None: they say nothing."""
    marks = [message[key] for key in MARKS if message.get(key) is not None]
    return bool(marks[0]) if marks else None


def without_marks(message: Message) -> Message:
    """What a template is given."""
    return {key: value for key, value in message.items() if key not in MARKS}


def holds_messages(value: Any) -> bool:
    """Whether a cell is a list of turns, or one that is written as text."""
    if isinstance(value, str):
        value = written_list(value)
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(turn, dict) for turn in value)


def _parsed(text: str) -> Any:
    found = written_list(text)
    if found is None:
        raise ValueError(f"is text and no list of messages: {excerpt(text)}")
    return found


def _message(turn: Any, number: int) -> Message:
    where = f"message {number}"
    if not isinstance(turn, dict):
        raise ValueError(f"{where} is a {type(turn).__name__}, not a role and a content")
    # Tables of columns (parquet, datasets) fill in None for keys that other messages have.
    turn = {key: value for key, value in turn.items() if value is not None}
    given = turn.pop("role", None) or turn.pop("from", None)
    if not isinstance(given, str):
        raise ValueError(f"{where} says no role")
    role = ROLES.get(given.strip().lower())
    if role is None:
        raise ValueError(f"{where} has the unknown role {given!r} (known: system, user, assistant, tool)")
    content = turn.pop("content", turn.pop("value", None))
    if given.strip().lower() in CALLS and "tool_calls" not in turn:
        turn["tool_calls"], content = [_parsed_call(content, where)], None
    if "tool_calls" in turn:
        turn["tool_calls"] = [_call(call, where) for call in _calls(turn["tool_calls"], where)]
        if not turn["tool_calls"]:
            del turn["tool_calls"]
    return {"role": role, "content": _content(content, where, role, "tool_calls" in turn), **turn}


def _content(content: Any, where: str, role: str, calls: bool) -> str:
    if isinstance(content, (list, tuple)):
        content = _joined(content, where)
    if content is None and calls:
        return ""
    # A blank wish is one too, and a tool may find nothing; a blank answer was not filled in.
    problem = text_problem(content, blank=role != "assistant" or calls)
    if problem:
        raise ValueError(f"{where} ({role}) {problem}")
    assert isinstance(content, str)
    return content


def _joined(parts: Any, where: str) -> str:
    """OpenAI's content in parts, of which only text is read."""
    texts = []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if isinstance(part, str):
            texts.append(part)
        elif kind == "text" and isinstance(part, dict) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise ValueError(f"{where} holds a part that is no text ({excerpt(kind or part)}); only text is learned")
    return "".join(texts)


def _calls(value: Any, where: str) -> list[Any]:
    if isinstance(value, str):
        value = _parsed(value)
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where}: tool_calls is a {type(value).__name__}, not a list")
    return list(value)


def _parsed_call(content: Any, where: str) -> Any:
    try:
        return json.loads(content) if isinstance(content, str) else content
    except ValueError:
        raise ValueError(f"{where} should hold a call as JSON and is {excerpt(content)}") from None


def _call(call: Any, where: str) -> dict[str, Any]:
    """A call as templates take it: ``{"type": "function", "function": {"name", "arguments": a dict}}``."""
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"{where}: a tool call needs a function's name and arguments")
    arguments = function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        # OpenAI writes them as JSON in a string; templates write them as JSON themselves.
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            raise ValueError(
                f"{where}: the arguments of {function['name']} are no JSON: {excerpt(arguments)}"
            ) from None
    made = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {"id": call["id"], **made} if call.get("id") else made


def read_tools(value: Any) -> list[Any] | None:
    """The tools in a cell, as a list of JSON schemas, or its JSON; None: there are none. Raises ValueError."""
    if is_missing(value) or value == "":
        return None
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"is no JSON: {excerpt(value)}") from None
    if not isinstance(value, (list, tuple)) or not all(isinstance(tool, dict) for tool in value):
        raise ValueError("is not a list of tools (JSON schemas)")
    return list(value) or None

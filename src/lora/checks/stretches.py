"""Parts of an example: its messages by their roles, its prompt and its answers, as stretches of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lora.checks.texts import columns_of, messages_in
from lora.tasks import Task


@dataclass(frozen=True)
class Piece:
    """A token and its text; several tokens, where a character is spread over them."""

    text: str
    ids: list[int]
    learned: bool
    special: bool


@dataclass(frozen=True)
class Stretch:
    """A part of an example: a message by its role, a prompt, an answer."""

    name: str
    pieces: list[Piece]


def row_messages(task: Task, row: Any) -> list[tuple[str, str]]:
    """(role, content) of a row's messages, with texts beside them under their column's role; empty: no messages."""
    out, talk = list[tuple[str, str]](), False
    for role, column in columns_of(task).items():
        messages = messages_in(row.get(column))
        talk = talk or bool(messages)
        out += [(message["role"], message["content"] or _called(message)) for message in messages]
        if not messages and isinstance(row.get(column), str):
            out.append((role, row[column]))
    return out if talk else []


def _called(message: dict[str, Any]) -> str:
    """What a message without words is found by: the function that it calls."""
    return str(message["tool_calls"][0]["function"]["name"]) if message.get("tool_calls") else ""


def by_role(pieces: list[Piece], messages: list[tuple[str, str]], name: str) -> list[Stretch]:
    """``pieces`` cut where another message begins; those whose texts are not found go with the one before them.

    What stands between two texts is cut behind the first special token (the end of a message, as a rule) and the white
    space that follows it, or at its first line break.
    """
    ends, total = list[int](), 0
    for piece in pieces:
        total += len(piece.text)
        ends.append(total)
    text = "".join(piece.text for piece in pieces)
    out, cursor, last, role = list[Stretch](), 0, 0, name
    for its, content in messages:
        content = content.strip()
        at = text.find(content, cursor) if content else -1
        if at < 0:
            continue
        if cursor:
            cut = _between(pieces, ends, cursor, at)
            out.append(Stretch(role, pieces[last:cut]))
            last = cut
        role, cursor = its, at + len(content)
    out.append(Stretch(role if cursor else name or "text", pieces[last:]))
    return [stretch for stretch in out if stretch.pieces] or [Stretch(name or "text", pieces)]


def _between(pieces: list[Piece], ends: list[int], start: int, stop: int) -> int:
    """Which piece of those between the characters ``start`` and ``stop`` begins the next message."""
    first = next(place for place, end in enumerate(ends) if end > start or end == ends[-1])
    last = next(place for place, end in enumerate(ends) if end > stop)
    special = next((place for place in range(first, last) if pieces[place].special), None)
    if special is not None:
        cut = special + 1
        while cut < last and not pieces[cut].text.strip() and not pieces[cut].special:
            cut += 1
        return cut
    line = next((place for place in range(first, last) if "\n" in pieces[place].text), None)
    return last if line is None else line + 1


def by_learning(pieces: list[Piece]) -> list[Stretch]:
    """``pieces`` cut where learning begins and ends; what a template puts behind the last answer goes with it."""
    out = list[Stretch]()
    for piece in pieces:
        name = "answer" if piece.learned else "prompt"
        if not out or out[-1].name != name:
            out.append(Stretch(name, []))
        out[-1].pieces.append(piece)
    if len(out) > 1 and out[-1].name == "prompt" and not "".join(piece.text for piece in out[-1].pieces).strip():
        last = out.pop()
        out[-1].pieces.extend(last.pieces)
    return out

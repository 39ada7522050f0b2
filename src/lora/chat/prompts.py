"""The token ids that an answer follows: of a conversation, or of as much of it as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lora.data.conversations import Message
from lora.errors import DataError
from lora.evaluation.voices import Voice

WHOLE = 1 << 30  # tokens: nothing is cut


def fitted(
    ids_from: Callable[[int], list[int]], messages: Sequence[Message], start: int, room: int
) -> tuple[list[int], int]:
    """The prompt's token ids, and the first of ``messages`` that it holds: a user's, where any had to go.

    A conversation that is too long loses its oldest exchanges, down to three quarters of the room: if it lost one a
    turn, no turn would find the beginning of its prompt among the keys and values that are kept. Where the last
    exchange alone is longer, its ids are given all the same.

    Args:
        ids_from: the ids of the messages from a place on.
        start: the message to begin with, where there is room for all from there on.
        room: tokens.
    """
    least = room
    while len(ids := ids_from(start)) > least:
        least = room * 3 // 4
        later = next((i for i in range(start + 1, len(messages)) if messages[i]["role"] == "user"), None)
        if later is None:
            break
        start = later
    return ids, start


def prompt_ids(voice: Voice, tokenizer: Any, asked: Any, tools: list[Any] | None) -> list[int]:
    """Token ids of ``asked`` (messages, or a text) as ``voice`` is asked, with ``tools`` where it knows of such.

    Raises DataError saying what is wrong with the messages.
    """
    cells = {voice.column: asked}
    if tools and voice.tools:
        cells[voice.tools] = tools
    try:
        (ids,), _ = voice.prompts([cells], tokenizer, WHOLE)
    except DataError as error:
        # Of the one row the reason alone: a conversation has no file and no lines.
        lines = [line.strip() for line in str(error).splitlines() if line.startswith("  ")]
        raise DataError("; ".join(line.removesuffix(": row 1") for line in lines) or str(error)) from None
    return ids

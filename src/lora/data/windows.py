"""A conversation that is too long, as several examples: no answer is cut, and each is learned once.

Its system message stands before each. The first holds as many exchanges (a user's message and all up to the next) as
fit; each further one begins with as many of those before as fill half the length, for context.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from lora.data.conversations import Message
from lora.data.rendering import Learned, Renderer


class Fitted(NamedTuple):
    """What became of a conversation.

    Attributes:
        lost: answers that fit in no example.
        cut: whether it was too long to be learned as it is. One that is not may be several examples too.
        unasked: whether its first message is an answer that the template has no prompt for, and so is not learned.
    """

    examples: list[Learned]
    lost: int
    cut: bool
    unasked: bool = False


def fitting(
    renderer: Renderer, messages: Sequence[Message], answers: Sequence[int], tools: list[Any] | None, length: int
) -> Fitted:
    """Examples of at most ``length`` tokens that learn the messages at ``answers``.

    Raises ValueError as `Renderer.learned`.
    """
    if answers and answers[0] == 0 and not renderer.opens(messages, tools):
        return fitting(renderer, messages, answers[1:], tools, length)._replace(unasked=True)
    if not answers:
        return Fitted([], 0, False)
    messages = messages[: answers[-1] + 1]  # what follows the last answer teaches nothing
    whole = renderer.learned(messages, answers, tools)
    if all(len(example.ids) <= length for example in whole):
        return Fitted(whole, 0, False)
    head = 1 if messages[0]["role"] == "system" else 0
    starts = [i for i in range(head, len(messages)) if messages[i]["role"] == "user" or i == head]
    stops = [*starts[1:], len(messages)]

    def tried(first: int, new: int, last: int) -> list[Learned] | None:
        """The exchanges ``first`` to ``last``, of which those from ``new`` on are learned; None: they do not fit."""
        shift = starts[first] - head
        part = [*messages[:head], *messages[starts[first] : stops[last]]]
        wanted = [place - shift for place in answers if starts[new] <= place < stops[last]]
        if not wanted:
            return []
        made = renderer.learned(part[: wanted[-1] + 1], wanted, tools)
        return made if all(len(example.ids) <= length for example in made) else None

    out, lost, new = list[Learned](), 0, 0
    while new < len(starts):
        first = _context(renderer, messages, head, starts, new, tools, length // 2)
        made, last = tried(first, new, new), new
        if made is None and first < new:
            first, made = new, tried(new, new, new)
        if made is None:
            lost += sum(starts[new] <= place < stops[new] for place in answers)
            new += 1
            continue
        while last + 1 < len(starts) and (more := tried(first, new, last + 1)) is not None:
            made, last = more, last + 1
        out, new = out + made, last + 1
    return Fitted(out, lost, True)


def _context(
    renderer: Renderer, messages: Sequence[Message], head: int, starts: list[int], new: int,
    tools: list[Any] | None, length: int,
) -> int:  # fmt: skip
    """The first exchange of those before ``new`` that fit in ``length`` tokens."""
    first = new
    while first > 0:
        part = [*messages[:head], *messages[starts[first - 1] : starts[new]]]
        if len(renderer.prompt(part, tools)) > length:
            break
        first -= 1
    return first


class Asked(NamedTuple):
    """What the next answer follows, of a conversation that may have been too long.

    Attributes:
        ids: token ids.
        shortened: something was left out.
        torn: of a single exchange the beginning too, in the midst of the template.
    """

    ids: list[int]
    shortened: bool = False
    torn: bool = False


def last_exchanges(renderer: Renderer, messages: Sequence[Message], tools: list[Any] | None, length: int) -> Asked:
    """What the next answer follows, in ``length`` tokens at most: without the oldest exchanges where it would be more,
    and of a single one without its beginning. Raises ValueError as `Renderer.prompt`."""
    ids = renderer.prompt(messages, tools)
    if len(ids) <= length:
        return Asked(ids)
    head = 1 if messages[0]["role"] == "system" else 0
    starts = [i for i in range(head, len(messages)) if messages[i]["role"] == "user"]
    for start in starts[1:]:
        ids = renderer.prompt([*messages[:head], *messages[start:]], tools)
        if len(ids) <= length:
            return Asked(ids, shortened=True)
    return Asked(ids[-length:], shortened=True, torn=True)

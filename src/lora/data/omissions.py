"""What a chat template leaves out of a conversation without a word, found by rendering it with and without.

Templates that know no tools render a call of one as an empty answer, which would teach the model to end its turn and
nothing else; others have no place for a system message, or cut thoughts off answers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lora.data.conversations import Message

Render = Callable[[Sequence[Message], list[Any] | None], str]
# Keys under which data sets keep what a model thought before it answered.
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
REMEDY = "take a template that does (data.options.template), or leave"
TOOLS = "take a template that does (data.options.template; of the named ones chatml), or leave these rows out"


def refuse_omissions(render: Render, messages: Sequence[Message], tools: list[Any] | None, text: str) -> None:
    """Raise ValueError where ``text``, which ``render`` made, lacks tools, a call of one, or what a message says.

    What an assistant's message says is left to `refuse_cut_answer`: earlier thoughts may well be left out.
    """
    if tools and _or_none(render, messages, None) == text:
        raise ValueError(f"have tools, which the chat template does not write; {TOOLS}, or their tools")
    calls = [place for place, message in enumerate(messages) if message.get("tool_calls")]
    squeezed = _squeezed(text)
    unseen = [
        place for place, message in enumerate(messages)
        if message["role"] != "assistant" and _squeezed(message["content"]) not in squeezed
    ]  # fmt: skip
    if not calls and not unseen:
        return
    # The name of a function stands among the tools too, and a text may be changed rather than left out: with words
    # that stand nowhere else in their places, it is seen.
    marked = [*messages]
    for place in calls:
        marked[place] = {**marked[place], "tool_calls": _marked(marked[place]["tool_calls"], place)}
    for place in unseen:
        marked[place] = {**marked[place], "content": _mark("text", place)}
    made = _or_none(render, marked, tools)
    if made is None:  # a template that looks at names or texts has a place for them
        return
    rendered = made.casefold()
    for place in calls:
        for number in range(len(messages[place]["tool_calls"])):
            if _mark("call", place, number) not in rendered:
                raise ValueError(
                    f"call tools, which the chat template does not write: the end of such a turn would be all that is "
                    f"learned of it; {TOOLS}"
                )
            if _mark("argument", place, number) not in rendered and _has_arguments(messages[place], number):
                raise ValueError(f"call tools with arguments, which the chat template does not write; {TOOLS}")
    for place in unseen:
        if _mark("text", place) not in rendered:
            role = messages[place]["role"]
            raise ValueError(f"have a {role} message where the chat template does not write it; {REMEDY} it out")


def refuse_cut_answer(message: Message, rendered: str) -> None:
    """Raise ValueError where ``rendered``, the part of a text that ``message`` became, lacks some of what it says.

    White space may differ: templates trim, and set thoughts apart by lines.
    """
    squeezed = _squeezed(rendered)
    if _squeezed(message["content"]) not in squeezed:
        raise ValueError(
            f"have an answer of which the chat template leaves something out (thoughts, say); {REMEDY} that out"
        )
    for key in THOUGHTS:
        if isinstance(thought := message.get(key), str) and _squeezed(thought) not in squeezed:
            raise ValueError(f"have answers with {key}, which the chat template does not write; {REMEDY} it out")


def _or_none(render: Render, messages: Sequence[Message], tools: list[Any] | None) -> str | None:
    try:
        return render(messages, tools)
    except ValueError:
        return None


def _squeezed(text: str) -> str:
    """``text`` without what a template may well change."""
    return "".join(text.split()).casefold()


def _mark(what: str, place: int, number: int = 0) -> str:
    return f"lora{what}{place}x{number}x"


def _marked(calls: list[Any], place: int) -> list[Any]:
    out = []
    for number, call in enumerate(calls):
        argument = _mark("argument", place, number)
        function = {"name": _mark("call", place, number), "arguments": {argument: argument}}
        out.append({**call, "function": function})
    return out


def _has_arguments(message: Message, number: int) -> bool:
    return bool(message["tool_calls"][number]["function"]["arguments"])

"""From messages to token ids, and which of them are learned, by rendering a chat template.

Where an answer begins and ends is found by rendering what comes before it, and what comes before it and itself: never
by looking for words in the text. So it is right for every template, and what is learned begins where a server's prompt
ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from lora.data.conversations import Message, without_marks
from lora.data.omissions import refuse_cut_answer, refuse_omissions
from lora.data.templates import dated

IGNORED = -100  # what transformers and torch take for "no label here"

# Rendered once, so that a tokenizer or a template that is not the one trained with is noticed.
GOLDEN: list[Message] = [
    {"role": "user", "content": "Hello! What is 2 + 2?"},
    {"role": "assistant", "content": "It is 4."},
    {"role": "user", "content": "Naïve – thanks…\nAnd 3?"},
    {"role": "assistant", "content": "Also fine."},
]


@dataclass(frozen=True)
class Learned:
    """Token ids of one example, and labels of the same length, -100 where nothing is learned."""

    ids: list[int]
    labels: list[int]
    answers: int  # learned in it


class Renderer:
    """One tokenizer with one template.

    Arguments:
        tokenizer: of transformers.
        template: Jinja text; where it writes today's date, that of `dated`.
        options: further variables of the template, such as ``{"enable_thinking": False}``.

    Attributes:
        template: as it is rendered, and to be kept.
        end: the token that the template puts behind an answer; None: it puts none there.
    """

    def __init__(self, tokenizer: Any, template: str, options: dict[str, Any] | None = None) -> None:
        self.tokenizer, self.template, self.options = tokenizer, dated(template), dict(options or {})
        self.specials = set(tokenizer.all_special_ids) | {
            number for number, token in getattr(tokenizer, "added_tokens_decoder", {}).items() if token.special
        }
        self.ends: set[int] = set()
        self.end = self._end()

    def golden(self) -> list[int]:
        """Token ids of a conversation that never changes."""
        return self._ids(self.render(GOLDEN))

    def render(self, messages: Sequence[Message], tools: list[Any] | None = None, prompt: bool = False) -> str:
        """``messages`` as text; with ``prompt``, up to where the next answer begins.

        Raises ValueError: the template refuses them, with its reason.
        """
        import jinja2

        try:
            text = self.tokenizer.apply_chat_template(
                [without_marks(message) for message in messages], tools=tools, chat_template=self.template,
                add_generation_prompt=prompt, tokenize=False, **self.options,
            )  # fmt: skip
        except jinja2.TemplateError as error:
            raise ValueError(f"are refused by the chat template: {error.message or error}") from None
        except (TypeError, KeyError, IndexError, AttributeError, ValueError) as error:
            raise ValueError(f"do not go through the chat template ({type(error).__name__}: {error})") from None
        assert isinstance(text, str)
        return text

    def prompt(self, messages: Sequence[Message], tools: list[Any] | None = None) -> list[int]:
        """Token ids that an answer to ``messages`` follows. Raises ValueError: the template refuses them, or leaves
        something out."""
        text = self.render(messages, tools, prompt=True)
        refuse_omissions(partial(self.render, prompt=True), messages, tools, text)
        return self._ids(text)

    def learned(self, messages: Sequence[Message], answers: Iterable[int], tools: list[Any] | None) -> list[Learned]:
        """Examples in which the assistant's messages at ``answers`` are learned, each once.

        One example, where the template renders an answer in the middle as it does at the end; for each answer where it
        does not (such as those that leave out earlier reasoning) one of its own.

        Raises ValueError: the template refuses the messages, leaves something of them out, or does not begin an answer
        as it prompts for one (of a first message `opens` tells that beforehand).
        """
        full = self.render(messages, tools)
        refuse_omissions(self.render, messages, tools, full)
        together, out = [], []
        for place in answers:
            upto = full if place == len(messages) - 1 else self.render(messages[: place + 1], tools)
            before = self.render(messages[:place], tools, prompt=True) if place else self._before_first(upto)
            if not before or not upto.startswith(before):
                raise ValueError(
                    f"cannot be learned with this chat template: message {place + 1} does not begin as the template "
                    f"prompts for an answer ({_where_they_part(before or '', upto)})"
                )
            refuse_cut_answer(messages[place], upto[len(before) :])
            span = (len(before), len(upto))
            if full.startswith(upto):
                together.append(span)
            else:
                out.append(self._example(upto, [span]))
        return ([self._example(full, together)] if together else []) + out

    def opens(self, messages: Sequence[Message], tools: list[Any] | None) -> bool:
        """Whether the first of ``messages``, the assistant's, can be learned: it stands behind what the template
        prompts for an answer with. Raises as `render`."""
        return bool(self._before_first(self.render(messages[:1], tools)))

    def _before_first(self, upto: str) -> str | None:
        """What stands before a first message of the assistant's, rendered as ``upto``; None: no prompt for it.

        No template can be asked for it, since transformers render no empty conversation: the prompt for an answer is
        what a user's message has behind it with a prompt, and not without.
        """
        asked, bare = self.render(GOLDEN[:1], prompt=True), self.render(GOLDEN[:1])
        prompt = asked[len(bare) :] if asked.startswith(bare) else ""
        place = upto.find(prompt)
        return upto[: place + len(prompt)] if prompt and place >= 0 else None

    def answer(self, messages: Sequence[Message], answer: Message, tools: list[Any] | None) -> list[int]:
        """Token ids of ``answer`` behind `prompt` of ``messages``, its end token included. Raises as `learned`."""
        (example,) = self.learned([*messages, answer], [len(messages)], tools)
        return [label for label in example.labels if label != IGNORED]

    def _example(self, text: str, spans: list[tuple[int, int]]) -> Learned:
        """``spans``: of characters, of answers with all that the template puts behind them."""
        ids, places = self._tokens(text, spans)
        labels = [IGNORED] * len(ids)
        for (start, stop), (_, text_stop) in zip(places, spans, strict=True):
            last = self._last_learned(ids, start, stop)
            if last is None and text_stop == len(text) and self.tokenizer.eos_token_id is not None:
                # A template that ends answers with nothing: without an end the model would not learn to stop.
                ids, labels = [*ids[:stop], self.tokenizer.eos_token_id], [*labels[:stop], IGNORED]
                last = stop
                self.ends.add(ids[last])
            upto = stop if last is None else last + 1
            labels[start:upto] = ids[start:upto]
        return Learned(ids, labels, len(spans))

    def _last_learned(self, ids: list[int], start: int, stop: int) -> int | None:
        """Where the token lies that ends the answer ``start:stop``: behind it stands what comes between messages."""
        if self.end is not None and self.end in ids[start:stop]:
            return max(i for i in range(start, stop) if ids[i] == self.end)
        # Some templates end a call of a tool with another token.
        last = next((i for i in reversed(range(start, stop)) if ids[i] in self.specials), None)
        if last is None or self.tokenizer.decode(ids[last + 1 : stop]).strip():
            return None
        self.ends.add(ids[last])
        return last

    def _end(self) -> int | None:
        """The first special token behind an answer."""
        try:
            before = self.render(GOLDEN[:1], prompt=True)
            upto = self.render(GOLDEN[:2])
        except ValueError:
            return None  # said when the first row is rendered
        said = GOLDEN[1]["content"]
        if not upto.startswith(before) or said not in upto:
            return None
        ids = self._ids(upto[upto.rindex(said) + len(said) :])
        end = next((number for number in ids if number in self.specials), None)
        if end is not None:
            self.ends.add(end)
        return end

    def _tokens(self, text: str, spans: list[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of ``text``, and between which of them each of ``spans`` lies."""
        if getattr(self.tokenizer, "is_fast", False):
            found = self.tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False, verbose=False
            )
            ids, offsets = list(found["input_ids"]), found["offset_mapping"]
            if not any(first < start < last for first, last in offsets for start, _ in spans):
                return ids, [_between(offsets, span) for span in spans]
        # No offsets, or a token that reaches over the beginning of an answer, where a server's prompt would end
        # before it: what stands before and after is tokenised each for itself.
        ids, places, done = [], [], 0
        for start, stop in spans:
            ids += self._ids(text[done:start])
            first = len(ids)
            ids += self._ids(text[start:stop])
            places.append((first, len(ids)))
            done = stop
        return ids + self._ids(text[done:]), places

    def _ids(self, text: str) -> list[int]:
        # The template writes the beginning token where there is one: the tokenizer must not add another.
        found = self.tokenizer(text, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(found["input_ids"])


def _between(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> tuple[int, int]:
    start, stop = span
    inside = [i for i, (first, last) in enumerate(offsets) if first >= start and last <= stop and last > first]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _where_they_part(before: str, upto: str) -> str:
    place = next((i for i, (a, b) in enumerate(zip(before, upto, strict=False)) if a != b), min(len(before), len(upto)))
    return f"{before[place : place + 30]!r} in the prompt, {upto[place : place + 30]!r} in the answer"

"""Conversations: the assistant's messages are learned, in the format of a chat template.

How messages become token ids, and which of these are learned, stands in `lora.data.rendering`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from lora.data.columns import MESSAGES, Claim, Sign, Table
from lora.data.conversations import Message, holds_messages, is_learned, read_tools, to_answer
from lora.data.formats import Format
from lora.data.problems import Problems, is_missing, text_problem
from lora.data.rendering import IGNORED
from lora.data.rows import named
from lora.data.windows import fitting, last_exchanges
from lora.plural import noun, number_of
from lora.tasks.base import Encoded, Input, NoneLeft, Row, Task
from lora.tasks.causal import CONTEXT, JOIN, WITH_CONTEXT, prompt_and_completion
from lora.tasks.next_token import NextTokenTask
from lora.tasks.sequence import REMEDY, counted, require_columns
from lora.tasks.templated import MessagesInput, Templated, TemplateOptions, named_error, problem_of, to_messages


class ChatOptions(TemplateOptions):
    """Settings of the task chat."""

    learn: Literal["all", "last"] | list[int] = Field(
        default="all",
        description="which of the assistant's messages: all, the last, or by number from 0 (-1: the last); where "
        "messages say so themselves (weight: 0 or 1, train: false or true), those that do are learned or not",
    )


class ToolsInput(Input):
    """A column of the functions that the assistant may call."""

    def problem(self, value: Any) -> str | None:
        return problem_of(read_tools, value)


class ChatTask(Templated, NextTokenTask):
    """Chat tuning.

    Arguments:
        messages: column of the conversation; or None with
        prompt, completion: columns of a text, or of messages, and of the answer, which alone is learned; and
        context: column that goes below the prompt, as in `CausalTask`.
        tools: column of the functions that the assistant may call, as JSON schemas.
        system: column of a system message.
        format: what `with_tokenizer` found: the template's text, ``golden`` token ids, and ``ends`` that stop an
            answer.
        options: see `ChatOptions`.
    """

    name = "chat"
    roles = ("messages", "prompt", "context", "completion", "system", "tools")
    optional = ("context", "system", "tools")
    to_name = "data.columns {messages: NAME} to learn conversations"
    options = ChatOptions
    settings: ChatOptions

    def __init__(
        self, messages: str | None = None, prompt: str | None = None, context: str | None = None,
        completion: str | None = None, system: str | None = None, tools: str | None = None,
        format: Format | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(format, options)
        if (messages is None) == (prompt is None or completion is None):
            raise ValueError("a chat task reads either a messages column or a prompt and a completion column")
        self.messages, self.prompt, self.context, self.completion = messages, prompt, context, completion
        self.system, self.tools = system, tools

    @classmethod
    def for_texts(cls, base: Any, messages: bool) -> Task | None:
        # Rows that bring a system message or tools are asked with them.
        return cls(messages="messages", system="system", tools="tools") if cls.suits(base) and messages else None

    @classmethod
    def recognise(cls, table: Table, asked: bool) -> Claim | None:
        named = table.named
        beside = {role: name for role in ("system", "tools") if (name := named.get(role) or table.get(role))}
        if "messages" in named:
            return Claim(Sign.NAMED, {"messages": named["messages"], **beside}, "as the settings say")
        found = next((name for name in table.every(MESSAGES) if _holds(table, name)), None)
        if found and "prompt" not in named and not table.pair((("chosen", "rejected"),)):
            return Claim(Sign.NAMED if asked else Sign.CLEAR, {"messages": found, **beside}, "lists of messages")
        prompt, completion = prompt_and_completion(table)
        if prompt and completion and (asked or _holds(table, prompt)):
            context = named.get("context")
            if context is None and prompt.lower() in WITH_CONTEXT and "prompt" not in named:
                context = table.get(*[name for name in CONTEXT if name not in (prompt.lower(), completion.lower())])
            roles = {"prompt": prompt, **({"context": context} if context else {}), "completion": completion, **beside}
            return Claim(Sign.NAMED if asked else Sign.CLEAR, roles, "the completion is learned as an answer")
        if asked:
            what = "no column of messages, and no prompt with a completion, is recognised; name it with "
            return Claim(Sign.NAMED, problem=table.error(what + "data.columns {messages: NAME}"))
        return None

    @classmethod
    def from_rows(cls, rows: list[Row], columns: Mapping[str, str]) -> ChatTask:
        """Nothing is learned from the rows; they are checked. Raises DataError naming the rows at fault."""
        return cls.from_chunks([rows], columns)

    @classmethod
    def from_chunks(cls, chunks: Iterable[list[Row]], columns: Mapping[str, str]) -> ChatTask:
        task = cls(**dict[str, Any](columns))
        for chunk in chunks:
            task._conversations(chunk, supervised=True)
        return task

    @classmethod
    def made_up(cls, labels: int = 2, token: int = 1) -> tuple[Task, dict[str, Any]]:
        return cls(messages="messages"), {"input_ids": [token, token], "labels": [token, token], "row": 0}

    def inputs(self) -> list[Input]:
        beside = [Input(name, blank=True, optional=True) for name in (self.system, self.context) if name]
        tools = [ToolsInput(self.tools, blank=True, optional=True)] if self.tools else []
        first = self.messages or self.prompt
        assert first is not None
        return [MessagesInput(first), *beside, *tools]

    def state(self) -> dict[str, Any]:
        return {
            "task": self.name, "messages": self.messages, "prompt": self.prompt, "context": self.context,
            "completion": self.completion, "system": self.system, "tools": self.tools, "format": self.format,
            **self.settings.model_dump(mode="json"),
        }  # fmt: skip

    def met(self, ends: Sequence[int]) -> None:
        if self.format is not None:
            self.format["ends"] = sorted({*self.format["ends"], *ends})

    def encode(self, rows: list[Row], tokenizer: Any, max_length: int, supervised: bool = True) -> Encoded:
        """Token ids and labels of the same length, -100 where nothing is learned: all but the assistant's messages,
        each with the end token behind it.

        A conversation of more than ``max_length`` tokens becomes several examples (see `lora.data.windows`); an
        exchange that is too long by itself is left out and counted: an answer is never cut. Without ``supervised``:
        what the next answer follows; of one that is too long the oldest exchanges are left out.

        Examples hold ``input_ids``, ``row`` (index in ``rows``) and, with ``supervised``, ``labels``. Raises
        DataError: rows at fault, a row with nothing to learn, or no row left.
        """
        task, renderer = self._rendering(tokenizer)
        conversations = self._conversations(rows, supervised)
        problems, examples = Problems(rows), list[dict[str, Any]]()
        long = split = parts = whole = lost = left_out = unasked = silent = 0
        for row, (messages, tools, first) in enumerate(conversations):
            try:
                if not supervised:
                    asked = last_exchanges(renderer, messages, tools, max_length)
                    long += asked.shortened
                    examples.append({"input_ids": asked.ids, "row": row})
                    continue
                found = fitting(renderer, messages, self._answers(messages, first), tools, max_length)
            except ValueError as error:
                problems.add(f"its messages {error}", row)
                continue
            made = found.examples
            long += found.cut
            if found.cut and len(made) > 1:
                split, parts = split + 1, parts + len(made)
            whole += found.cut and len(made) == 1
            lost, left_out = lost + found.lost, left_out + (found.cut and not made)
            unasked, silent = unasked + found.unasked, silent + (not found.cut and not made)
            examples += [{"input_ids": one.ids, "labels": one.labels, "row": row} for one in made]
        problems.raise_if_any(REMEDY)
        task.met(sorted(renderer.ends))
        notes = list[str]()
        if long and supervised:
            of_these = {"split": split, "parts": parts, "one": whole, "left_out": left_out}
            notes.append(counted(_long_ones, max_length, long=long, total=len(rows), **of_these))
        elif long:
            notes.append(counted(_shortened, max_length, long=long, total=len(rows)))
        if lost:
            notes.append(counted(_lost, max_length, lost=lost))
        if unasked:
            notes.append(counted(_unasked, unasked=unasked, silent=silent, total=len(rows)))
        if not examples:
            remedy = "take another template (data.options.template)" if unasked else "raise data.max_length"
            raise NoneLeft(f"{named(rows)}{notes[-1]} None is left; {remedy}", notes, long)
        # Of the template alone, not of these rows: parts of the data say the same.
        if supervised and renderer.end is None and tokenizer.eos_token_id is None:
            notes.append("Neither template nor tokenizer has an end token: it will not be learned where answers end.")
        counts = [sum(label != IGNORED for label in example.get("labels", ())) for example in examples]
        lengths = [len(example["input_ids"]) for example in examples]
        return Encoded(examples, lengths, counts, long, notes, ends=sorted(renderer.ends))

    def _answers(self, messages: list[Message], first: int) -> list[int]:
        """Places of the messages to learn, of those from ``first`` on. Raises ValueError: there is none."""
        learn, said = self.settings.learn, [is_learned(message) for message in messages]
        own = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first]
        if not own:
            raise ValueError("hold no answer of the assistant's to learn")
        if any(mark is not None for mark in said):
            # Of messages that say nothing beside those that do: as OpenAI has it, a weight of 1.
            chosen = [i for i in own if said[i] is not False]
        elif learn == "all":
            chosen = own
        else:
            numbers = [-1] if learn == "last" else [int(number) for number in learn]
            chosen = sorted({own[number] for number in numbers if -len(own) <= number < len(own)})
        if not chosen:
            raise ValueError("hold no answer that is to be learned")
        return chosen

    def _conversations(self, rows: list[Row], supervised: bool) -> list[tuple[list[Message], list[Any] | None, int]]:
        """Of each row its messages, its tools, and the place from which on messages may be learned."""
        wanted = [self.messages] if self.messages else [self.prompt, *([self.completion] if supervised else [])]
        require_columns(rows, [name for name in wanted if name])
        problems, out = Problems(rows), []
        for index, row in enumerate(rows):
            try:
                messages, first = self._of_row(row, supervised)
                tools = named_error(self.tools, lambda value: read_tools(value), row) if self.tools else None
                if supervised:
                    self._answers(messages, first)
                out.append((messages, tools, first))
            except ValueError as error:
                problems.add(str(error), index)
        problems.raise_if_any(REMEDY)
        return out

    def _of_row(self, row: Row, supervised: bool) -> tuple[list[Message], int]:
        first = 0
        if self.messages:
            messages = named_error(self.messages, to_messages, row)
            if not supervised:
                messages = to_answer(messages)
                if not messages:
                    raise ValueError(f"{self.messages} holds nothing to answer")
        else:
            assert self.prompt and self.completion
            messages = named_error(self.prompt, to_messages, row)
            more: Any = row.get(self.context) if self.context else None
            if not is_missing(more):
                if problem := text_problem(more, blank=True):
                    raise ValueError(f"{self.context} {problem}")
                if more.strip():
                    messages[-1] = {**messages[-1], "content": messages[-1]["content"] + JOIN + more}
            first = len(messages)
            if supervised:
                messages += named_error(self.completion, lambda value: to_messages(value, "assistant"), row)
        system: Any = row.get(self.system) if self.system else None
        if is_missing(system) or system == "":
            system = self.settings.system_prompt
        elif problem := text_problem(system, blank=True):
            raise ValueError(f"{self.system} {problem}")
        if system and messages[0]["role"] != "system":
            messages, first = [{"role": "system", "content": system}, *messages], first + bool(first)
        return messages, first


def _long_ones(length: int, long: int, total: int, split: int, parts: int, one: int, left_out: int) -> str:
    """What became of all ``long`` ones, so that the numbers add up."""
    became = [
        f"{split:,} became several ({number_of(parts, 'example')})" if split else "",
        f"{one:,} became one example, of a part" if one else "",
        f"{left_out:,} {noun(left_out, 'was', 'were')} left out whole" if left_out else "",
    ]
    return f"{_long(length, long, total)}: {', '.join(part for part in became if part)}."


def _shortened(length: int, long: int, total: int) -> str:
    return f"{_long(length, long, total)} and lost {'its' if long == 1 else 'their'} beginning."


def _long(length: int, long: int, total: int) -> str:
    have = f"{long:,} of {number_of(total, 'conversation')} {noun(long, 'has', 'have')}"
    return f"{have} more than {number_of(length, 'token')}"


def _lost(length: int, lost: int) -> str:
    does, it, was = ("does", "it", "was") if lost == 1 else ("do", "them", "were")
    return (
        f"{number_of(lost, 'answer')} {does} not fit in {number_of(length, 'token')} with the message before {it} and "
        f"{was} left out: an answer is never cut."
    )


def _unasked(unasked: int, silent: int, total: int) -> str:
    begin, answer = ("begins", "its first answer is") if unasked == 1 else ("begin", "their first answers are")
    whole = f" So {silent:,} of them {noun(silent, 'is', 'are')} left out whole." if silent else ""
    return (
        f"{unasked:,} of {number_of(total, 'conversation')} {begin} with the assistant, for which the chat template "
        f"has no prompt: {answer} not learned.{whole}"
    )


def _holds(table: Table, name: str) -> bool:
    return any(holds_messages(row.get(name)) for row in table.rows[:100])

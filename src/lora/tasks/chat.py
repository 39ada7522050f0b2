"""Conversations: the assistant's messages are learned, in the format of a chat template.

How messages become token ids, and which of these are learned, stands in `lora.data.rendering`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, Self

from pydantic import Field

from lora.data.columns import Claim, Sign, Table
from lora.data.conversations import Message, holds_messages, is_learned, read_messages, read_tools
from lora.data.formats import Format, settle
from lora.data.problems import Problems, is_missing, text_problem
from lora.data.rendering import IGNORED, Renderer
from lora.data.rows import named
from lora.data.windows import fitting, last_exchanges
from lora.plural import noun, number_of
from lora.tasks.base import Encoded, Input, NoneLeft, Options, Row, Task
from lora.tasks.causal import CONTEXT, JOIN, WITH_CONTEXT, prompt_and_completion
from lora.tasks.next_token import NextTokenTask
from lora.tasks.sequence import REMEDY, counted, require_columns

MESSAGES = ("messages", "conversations", "conversation", "dialog", "dialogue", "chat")


class ChatOptions(Options):
    """Settings of the task chat."""

    learn: Literal["all", "last"] | list[int] = Field(
        default="all",
        description="which of the assistant's messages: all, the last, or by number from 0 (-1: the last); where "
        "messages say so themselves (weight: 0 or 1, train: false or true), those that do are learned or not",
    )
    template: str | None = Field(
        default=None, description="a named chat template, a .jinja file or its text; default: the tokenizer's own"
    )
    template_options: dict[str, Any] = Field(
        default_factory=dict, description="further variables of the template, as in {enable_thinking: false}"
    )
    system_prompt: str | None = Field(default=None, description="system message of rows that have none")


class MessagesInput(Input):
    """A column of messages; a string is one message of the user's."""

    def problem(self, value: Any) -> str | None:
        try:
            to_messages(value)
        except ValueError as error:
            return str(error)
        return None

    def asked(self, value: Any) -> str:
        """All before the last answer; of a cell that holds no answer, all."""
        try:
            messages = before_answer(to_messages(value))
        except ValueError:
            return super().asked(value)
        return "\n".join(f"{one['role']}: {one['content']} {one.get('tool_calls', '')}" for one in messages)


class ToolsInput(Input):
    """A column of tools."""

    def problem(self, value: Any) -> str | None:
        try:
            read_tools(value)
        except ValueError as error:
            return str(error)
        return None


class Templated(Task):
    """A task whose rows go through a chat template. ``format`` is what `with_tokenizer` found, kept in ``state``."""

    format: Format | None
    template: str | None
    template_options: dict[str, Any]
    chat = True  # whether a template is put around its rows
    _remarks: list[str]

    def with_tokenizer(self, tokenizer: Any) -> Self:
        """With the template in force, and what it makes of a fixed conversation.

        Raises:
            ConfigError: there is no such template, or the tokenizer lacks its tokens.
            DataError: the adapter was trained with a tokenizer that makes other tokens of that conversation.
        """
        if not self.chat:
            return self
        state = {key: value for key, value in self.state().items() if key != "task"}
        made, _, notes = settle(self.format, self.template, self.template_options, tokenizer)
        task = type(self)(**{**state, "format": made})
        task._remarks = notes
        return task

    def remarks(self) -> list[str]:
        return self._remarks

    def ends(self) -> list[int]:
        return list((self.format or {}).get("ends", ()))


class ChatTask(Templated, NextTokenTask):
    """Chat tuning.

    Arguments:
        messages: column of the conversation; or None with
        prompt, completion: columns of a text, or of messages, and of the answer, which alone is learned; and
        context: column that goes below the prompt, as in `CausalTask`.
        tools: column of the functions that the assistant may call, as JSON schemas.
        system: column of a system message.
        learn, template, template_options, system_prompt: see `ChatOptions`.
        format: what `with_tokenizer` found: the template's text, ``golden`` token ids, and ``ends`` that stop an
            answer.
    """

    name = "chat"
    roles = ("messages", "prompt", "context", "completion", "system", "tools")
    optional = ("context", "system", "tools")
    to_name = "data.columns {messages: NAME} to learn conversations"
    options = ChatOptions

    def __init__(
        self, messages: str | None = None, prompt: str | None = None, context: str | None = None,
        completion: str | None = None, system: str | None = None, tools: str | None = None,
        learn: str | list[int] = "all", template: str | None = None, template_options: dict[str, Any] | None = None,
        system_prompt: str | None = None, format: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        if (messages is None) == (prompt is None or completion is None):
            raise ValueError("a chat task reads either a messages column or a prompt and a completion column")
        self.messages, self.prompt, self.context, self.completion = messages, prompt, context, completion
        self.system, self.tools = system, tools
        self.learn, self.template, self.template_options = learn, template, dict(template_options or {})
        self.system_prompt, self.format = system_prompt, format
        self._remarks: list[str] = []

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

    def inputs(self) -> list[Input]:
        beside = [Input(name, blank=True, optional=True) for name in (self.system, self.context) if name]
        tools = [ToolsInput(self.tools, blank=True, optional=True)] if self.tools else []
        first = self.messages or self.prompt
        assert first is not None
        return [MessagesInput(first), *beside, *tools]

    def state(self) -> dict[str, Any]:
        return {
            "task": self.name, "messages": self.messages, "prompt": self.prompt, "context": self.context,
            "completion": self.completion, "system": self.system, "tools": self.tools, "learn": self.learn,
            "template": self.template, "template_options": self.template_options, "system_prompt": self.system_prompt,
            "format": self.format,
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
        task = self if self.format is not None else self.with_tokenizer(tokenizer)
        assert task.format is not None
        renderer = Renderer(tokenizer, task.format["template"], self.template_options)
        conversations = self._conversations(rows, supervised)
        problems, examples = Problems(rows), list[dict[str, Any]]()
        long = parts = lost = left_out = 0
        for row, (messages, tools, first) in enumerate(conversations):
            try:
                if not supervised:
                    asked = last_exchanges(renderer, messages, tools, max_length)
                    long += asked.shortened
                    examples.append({"input_ids": asked.ids, "row": row})
                    continue
                made, missed = fitting(renderer, messages, self._answers(messages, first), tools, max_length)
            except ValueError as error:
                problems.add(f"its messages {error}", row)
                continue
            long += len(made) > 1 or missed > 0
            parts += len(made) if len(made) > 1 else 0
            lost, left_out = lost + missed, left_out + (not made)
            examples += [{"input_ids": one.ids, "labels": one.labels, "row": row} for one in made]
        problems.raise_if_any(REMEDY)
        task.met(sorted(renderer.ends))
        notes = list[str]()
        if long and supervised:
            notes.append(counted(_split, max_length, long=long, total=len(rows), parts=parts))
        elif long:
            notes.append(counted(_shortened, max_length, long=long, total=len(rows)))
        if lost:
            notes.append(counted(_lost, max_length, lost=lost, left_out=left_out, total=len(rows)))
        if not examples:
            raise NoneLeft(f"{named(rows)}{notes[-1]} None is left; raise data.max_length", notes, long)
        # Of the template alone, not of these rows: parts of the data say the same.
        if supervised and renderer.end is None and tokenizer.eos_token_id is None:
            notes.append("Neither template nor tokenizer has an end token: it will not be learned where answers end.")
        counts = [sum(label != IGNORED for label in example.get("labels", ())) for example in examples]
        lengths = [len(example["input_ids"]) for example in examples]
        return Encoded(examples, lengths, counts, long, notes, ends=sorted(renderer.ends))

    def _answers(self, messages: list[Message], first: int) -> list[int]:
        """Places of the messages to learn, of those from ``first`` on. Raises ValueError: there is none."""
        said = [is_learned(message) for message in messages]
        own = [i for i, message in enumerate(messages) if message["role"] == "assistant" and i >= first]
        if not own:
            raise ValueError("hold no answer of the assistant's to learn")
        if any(mark is not None for mark in said):
            # Of messages that say nothing beside those that do: as OpenAI has it, a weight of 1.
            chosen = [i for i in own if said[i] is not False]
        elif self.learn == "all":
            chosen = own
        else:
            numbers = [-1] if self.learn == "last" else [int(number) for number in self.learn]
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
                messages = before_answer(messages)
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
            system = self.system_prompt
        elif problem := text_problem(system, blank=True):
            raise ValueError(f"{self.system} {problem}")
        if system and messages[0]["role"] != "system":
            messages, first = [{"role": "system", "content": system}, *messages], first + bool(first)
        return messages, first


def _split(length: int, long: int, total: int, parts: int) -> str:
    became = f" ({number_of(parts, 'example')})" if parts else ""
    return f"{_long(length, long, total)} and became several{became}."


def _shortened(length: int, long: int, total: int) -> str:
    return f"{_long(length, long, total)} and lost {'its' if long == 1 else 'their'} beginning."


def _long(length: int, long: int, total: int) -> str:
    have = f"{long:,} of {number_of(total, 'conversation')} {noun(long, 'has', 'have')}"
    return f"{have} more than {number_of(length, 'token')}"


def _lost(length: int, lost: int, left_out: int, total: int) -> str:
    does, it, was = ("does", "it", "was") if lost == 1 else ("do", "them", "were")
    whole = "is" if left_out == 1 else "are"
    return (
        f"{number_of(lost, 'answer')} {does} not fit in {number_of(length, 'token')} with the message before {it} and "
        f"{was} left out: an answer is never cut. So {left_out:,} of {number_of(total, 'conversation')} {whole} left "
        "out whole."
    )


def to_messages(value: Any, role: str = "user") -> list[Message]:
    """Messages of a cell; a text that is no list of them is one message of ``role``. Raises ValueError."""
    if isinstance(value, str) and not holds_messages(value):
        if problem := text_problem(value, blank=role == "user"):
            raise ValueError(problem)
        return [{"role": role, "content": value}]
    return read_messages(value)


def before_answer(messages: list[Message]) -> list[Message]:
    """What the last answer of ``messages`` answers: all before it, where they end with one."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]


def named_error(column: str, read: Any, row: Row) -> Any:
    try:
        return read(row.get(column))
    except ValueError as error:
        mark = ":" if str(error).startswith("message ") else ""
        raise ValueError(f"{column}{mark} {error}") from None


def _holds(table: Table, name: str) -> bool:
    return any(holds_messages(row.get(name)) for row in table.rows[:100])

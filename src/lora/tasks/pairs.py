"""What the tasks share that learn from a better and a worse answer to one prompt: columns, messages, token ids.

Prompt and answers are texts or messages. Where messages are among them, or a template is named, the chat template is
put around them; else prompt and answer are tokenised as in `lora.tasks.tokens`, with the tokenizer's end behind each.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

from lora.data.columns import MESSAGES, Claim, Sign, Table
from lora.data.conversations import Message, holds_messages, to_answer
from lora.data.formats import Format
from lora.data.problems import Problems
from lora.data.rendering import Renderer
from lora.data.rows import named
from lora.data.windows import last_exchanges
from lora.errors import DataError
from lora.plural import number_of
from lora.statistics.means import MARGIN, PREFERENCE_ACCURACY, preference_rows, value_rows
from lora.tasks.base import Encoded, Input, NoneLeft, Row
from lora.tasks.figures import Figures, Groups, averages, values
from lora.tasks.sequence import REMEDY, cut_note, require_columns
from lora.tasks.templated import MessagesInput, Templated, named_error, to_messages
from lora.tasks.tokens import Frame, bare_ids

PROMPTS = ("prompt", "question", "instruction", "input", "query", *MESSAGES)


class PairTask(Templated):
    """A prompt, the answer that was chosen, and the one that was rejected.

    Arguments:
        prompt: column of the prompt, a text or messages; None: chosen and rejected are whole conversations, which begin
            alike.
        chosen, rejected: columns of the answers: texts or messages.
        chat: whether a chat template is put around them.
        format: as of `ChatTask`.
        options: see `TemplateOptions`, and those of the task itself.
    """

    roles: ClassVar[tuple[str, ...]] = ("prompt", "chosen", "rejected")
    to_name = "data.columns {prompt: NAME, chosen: NAME, rejected: NAME} to learn preferences"
    learns = "pairs"
    sign: ClassVar[Sign | None] = Sign.CLEAR  # of columns of that name; None: only where the task is named too

    def __init__(
        self, prompt: str | None = None, chosen: str = "chosen", rejected: str = "rejected", chat: bool = False,
        format: Format | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(format, options)
        self.prompt, self.chosen, self.rejected = prompt, chosen, rejected
        self.chat = chat or self.settings.template is not None or self.settings.system_prompt is not None

    @classmethod
    def recognise(cls, table: Table, asked: bool) -> Claim | None:
        named_ = table.named
        chosen, rejected = (named_.get(role) or table.get(role) for role in ("chosen", "rejected"))
        sign = Sign.NAMED if asked or {"chosen", "rejected"} & set(named_) else cls.sign
        if not chosen or not rejected:
            missing = " and ".join(role for role, name in (("chosen", chosen), ("rejected", rejected)) if not name)
            what = f"no {missing} column is recognised; name it with data.columns {{chosen: NAME, rejected: NAME}}"
            return Claim(sign, problem=table.error(what)) if sign is Sign.NAMED and sign else None
        prompt = named_.get("prompt") or table.get(*PROMPTS)
        more = {role: named_[role] for role in cls.optional if role in named_}
        roles = {**({"prompt": prompt} if prompt else {}), "chosen": chosen, "rejected": rejected, **more}
        return Claim(sign, roles, "the chosen answer is preferred to the rejected one") if sign else None

    @classmethod
    def from_rows(cls, rows: list[Row], columns: Mapping[str, str]) -> PairTask:
        """Whether rows hold messages; all are checked. Raises DataError naming the rows at fault."""
        return cls.from_chunks([rows], columns)

    @classmethod
    def from_chunks(cls, chunks: Iterable[list[Row]], columns: Mapping[str, str]) -> PairTask:
        named_, chat = dict[str, Any](columns), False
        for chunk in chunks:
            chat = chat or any(holds_messages(row.get(name)) for row in chunk for name in columns.values())
            if "prompt" not in columns and not chat:
                raise DataError(
                    f"{named(chunk)}no prompt column is recognised, and the answers are no conversations that hold it; "
                    "name it with data.prompt_column (--data.prompt-column)"
                )
            cls(**named_)._pairs(chunk)
        return cls(**named_, chat=chat)

    @abstractmethod
    def answer_lengths(self, example: dict[str, Any]) -> tuple[int, int]:
        """Tokens of the chosen and of the rejected answer, with the prompt where that is no part by itself."""

    def told(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        return self.chosen, self.chosen if prediction["margin"] > 0 else self.rejected

    def inputs(self) -> list[Input]:
        return [MessagesInput(self.prompt or self.chosen, blank=True)]

    def state(self) -> dict[str, Any]:
        return {
            "task": self.name, "prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected,
            "chat": self.chat, "format": self.format, **self.settings.model_dump(mode="json"),
        }  # fmt: skip

    def _pairs(self, rows: list[Row]) -> list[tuple[list[Message], list[Message]]]:
        """Of each row what is answered, and both answers. Raises DataError."""
        require_columns(rows, [name for name in (self.prompt, self.chosen, self.rejected) if name])
        problems, out = Problems(rows), []
        for index, row in enumerate(rows):
            try:
                out.append(self._pair(row))
            except ValueError as error:
                problems.add(str(error), index)
        problems.raise_if_any(REMEDY)
        return out

    def _pair(self, row: Row) -> tuple[list[Message], list[Message]]:
        answers = [
            named_error(name, lambda value: to_messages(value, "assistant"), row)
            for name in (self.chosen, self.rejected)
        ]
        prompt = self._prompt(row)
        if prompt is None or all(len(answer) > 1 for answer in answers):
            # Whole conversations: what they share is the prompt.
            first, second = answers
            alike = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
            if alike is None or alike != len(first) - 1 or alike != len(second) - 1 or not alike:
                raise ValueError(
                    f"{self.chosen} and {self.rejected} must be conversations that differ in their last message alone"
                )
            prompt, answers = self._with_system(first[:alike]), [first[alike:], second[alike:]]
        for name, answer in zip((self.chosen, self.rejected), answers, strict=True):
            if len(answer) != 1 or answer[0]["role"] != "assistant":
                raise ValueError(f"{name} holds {number_of(len(answer), 'message')} where one answer is needed")
        if answers[0] == answers[1]:
            raise ValueError(f"{self.chosen} and {self.rejected} are the same: nothing is preferred")
        return prompt, [answer[0] for answer in answers]

    def _question(self, row: Row) -> list[Message]:
        """What is answered; of a whole conversation without a rejected answer, all up to its last answer."""
        if self.prompt is not None or self.rejected in row:
            return self._prompt(row) or self._pair(row)[0]
        messages = to_answer(named_error(self.chosen, to_messages, row))
        if not messages:
            raise ValueError(f"{self.chosen} holds nothing to answer")
        return self._with_system(messages)

    def _prompt(self, row: Row) -> list[Message] | None:
        if self.prompt is None:
            return None
        return self._with_system(named_error(self.prompt, to_messages, row))

    def _with_system(self, messages: list[Message]) -> list[Message]:
        system = self.settings.system_prompt
        if system and messages[0]["role"] != "system":
            return [{"role": "system", "content": system}, *messages]
        return messages

    def _tokens(
        self, rows: list[Row], asked: list[tuple[list[Message], list[Message]]], tokenizer: Any, max_length: int
    ) -> tuple[list[tuple[int, list[int], list[list[int]]]], int, list[str]]:
        """(row, prompt, answers) as token ids, how many rows were too long, and notes. Raises DataError.

        ``asked``: of each row the messages, and answers to them.
        """
        problems, out = Problems(rows), []
        cut = dropped = 0
        renderer, frame = self._renderer(tokenizer), Frame.of(tokenizer)
        for index, (messages, answers) in enumerate(asked):
            try:
                if renderer is not None:
                    ids = [renderer.answer(messages, answer, None) for answer in answers]
                    room = max_length - max(map(len, ids))
                    prompt, shortened, torn = last_exchanges(renderer, messages, None, max(room, 1))
                    fits = room > 0 and not torn  # a template cut in two is none
                else:
                    bare, *ids = (
                        frame.strip(of_one)
                        for of_one in bare_ids(tokenizer, [one["content"] for one in (messages[0], *answers)])
                    )
                    ids = [answer + frame.end for answer in ids]
                    room = max_length - len(frame.prefix) - max(map(len, ids))
                    fits, shortened = room >= min(len(bare), 1), len(bare) > room
                    prompt = frame.prefix + bare[max(len(bare) - room, 0) :]
            except ValueError as error:
                problems.add(f"its messages {error}", index)
                continue
            if not fits:
                dropped += 1
            elif not prompt:
                problems.add("nothing stands before the answers (a blank prompt, and no beginning token)", index)
            else:
                cut += shortened
                out.append((index, prompt, ids))
        problems.raise_if_any(REMEDY)
        notes = []
        if dropped:
            what = "with an answer alone and {was} left out: none is ever cut"
            notes.append(cut_note(dropped, len(rows), max_length, what))
        if not out:
            raise NoneLeft(f"{named(rows)}{notes[-1]} None is left; raise data.max_length", notes, cut + dropped)
        if cut:
            notes.append(cut_note(cut, len(rows), max_length, "and lost the beginning of their prompts"))
        return out, cut + dropped, notes

    def _renderer(self, tokenizer: Any) -> Renderer | None:
        return self._rendering(tokenizer)[1] if self.chat else None

    def _asked(self, rows: list[Row], tokenizer: Any, max_length: int) -> Encoded:
        """Prompts alone, for generation."""
        renderer, frame = self._renderer(tokenizer), Frame.of(tokenizer)
        problems, examples, cut = Problems(rows), list[dict[str, Any]](), 0
        for index, row in enumerate(rows):
            try:
                messages = self._question(row)
                if renderer is not None:
                    ids, shortened = _prompt_of(renderer, messages, max_length)
                else:
                    body = frame.strip(bare_ids(tokenizer, [messages[0]["content"]])[0])
                    room = max(max_length - len(frame.prefix), 1)
                    ids, shortened = frame.prefix + body[-room:], len(body) > room
                cut += shortened
                examples.append({"input_ids": ids, "row": index})
            except ValueError as error:
                problems.add(str(error), index)
        problems.raise_if_any(REMEDY)
        notes = [cut_note(cut, len(rows), max_length, "and lost the beginning of their prompts")] if cut else []
        return Encoded(examples, [len(one["input_ids"]) for one in examples], [0] * len(examples), cut, notes)


def _prompt_of(renderer: Renderer, messages: list[Message], length: int) -> tuple[list[int], bool]:
    """`last_exchanges`, with errors that say what is at fault."""
    try:
        return last_exchanges(renderer, messages, None, length)[:2]
    except ValueError as error:
        raise ValueError(f"its messages {error}") from None


def pair_figures(predictions: Sequence[Any], names: Mapping[str, str], groups: Groups = None) -> Figures:
    """Whose chosen answer has the higher reward (a tie counts half), the margin, and means of the keys of ``names``."""
    margins = [row["margin"] for row in predictions]
    return {
        "accuracy": (PREFERENCE_ACCURACY, preference_rows(margins, groups=groups)),
        "margin": (MARGIN, value_rows(margins, groups=groups)),
        **averages(predictions, names, groups),
    }


def pair_values(found: Callable[[], Figures], keys: Sequence[str]) -> dict[str, float | None]:
    """The values of figures; of rewards that are no numbers NaN each, so that what diverged is never the best."""
    try:
        return values(found())
    except DataError:
        return dict.fromkeys(keys, math.nan)

"""Next tokens: of plain text, or of a completion after its prompt. How they become token ids stands in `tokens`."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from lora.data.columns import TEXT, Claim, Sign, Table
from lora.data.problems import Problems, is_missing, text_problem
from lora.tasks.base import Encoded, Input, Row, Task
from lora.tasks.next_token import NextTokenTask
from lora.tasks.seams import Seams
from lora.tasks.sequence import REMEDY, check_texts
from lora.tasks.tokens import Frame, Made, bare_ids, blocks, completions

PLAIN_TEXT = ("text", "content", "document")  # a lone column of this name is text to model, whatever stands beside it
PROMPTS = (
    ("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"),
    ("question", "answer"), ("source", "target"), ("input", "output"), ("input", "target"), ("document", "summary"),
    ("article", "highlights"), ("text", "summary"),
)  # fmt: skip
WITH_CONTEXT = ("instruction", "prompt", "question")  # prompts that a context column may belong to
CONTEXT = ("input", "context")  # joined below the prompt where the prompt is an instruction
JOIN = "\n\n"  # between an instruction and its input (alpaca), simple enough to write by hand when serving


class CausalTask(NextTokenTask):
    """Next-token prediction.

    Arguments:
        text: column of plain text, all of it learned; or None with
        prompt, completion: columns of a prompt and of the answer to it, which alone is learned; and
        context: column that goes below the prompt, after an empty line, where it is not blank (alpaca's ``input``).
    """

    name = "causal"
    roles: ClassVar[tuple[str, ...]] = ("text", "prompt", "context", "completion")
    optional = ("context",)
    to_name = "data.prompt_column and data.completion_column to learn answers, or data.task causal for plain text"

    def __init__(
        self,
        text: str | None = None,
        prompt: str | None = None,
        completion: str | None = None,
        context: str | None = None,
    ) -> None:
        if (text is None) == (prompt is None or completion is None):
            raise ValueError("a causal task reads either a text column or a prompt and a completion column")
        self.text = text
        self.prompt = prompt
        self.completion = completion
        self.context = context
        self._seams = Seams()

    @classmethod
    def for_texts(cls, base: Any, messages: bool) -> Task | None:
        return cls(prompt="prompt", completion="completion") if cls.suits(base) and not messages else None

    @classmethod
    def for_running_text(cls, base: Any, column: str = "text") -> Task | None:
        return cls(text=column) if cls.suits(base) else None

    @classmethod
    def recognise(cls, table: Table, asked: bool) -> Claim | None:
        given = table.named
        answers = "prompt" in given or "completion" in given
        why = "plain text, every token learned"
        if "text" in given and not answers:
            return Claim(Sign.NAMED if asked else Sign.USUAL, {"text": given["text"]}, why)
        sign = Sign.NAMED if asked or answers else Sign.USUAL
        prompt, completion = prompt_and_completion(table)
        if prompt and completion:
            return _answering(table, sign, prompt, completion)
        if prompt or completion:
            missing, role = ("completion", "prompt") if prompt else ("prompt", "completion")
            what = f"{role} is column {prompt or completion!r}, but no {missing} column is recognised; "
            return Claim(
                sign, problem=table.error(f"{what}name it with data.{missing}_column (--data.{missing}-column)")
            )
        text = table.get(*TEXT)
        if text and (asked or text.lower() in PLAIN_TEXT or len(table.all) == 1):
            return Claim(Sign.LEFT, {"text": text}, why)
        return None

    @classmethod
    def from_rows(cls, rows: list[Row], columns: Mapping[str, str]) -> CausalTask:
        """Nothing is learned from the rows; they are checked. Raises DataError naming the rows at fault."""
        return cls.from_chunks([rows], columns)

    @classmethod
    def from_chunks(cls, chunks: Iterable[list[Row]], columns: Mapping[str, str]) -> CausalTask:
        task = cls(**columns)
        for chunk in chunks:
            prompts, answers = task._texts(chunk, supervised=True)
            if answers:
                task._seams.add(prompts, answers)
        return task

    @classmethod
    def made_up(cls, labels: int = 2, token: int = 1) -> tuple[Task, dict[str, Any]]:
        return cls(text="text"), {"input_ids": [token, token], "labels": [token, token], "row": 0}

    def inputs(self) -> list[Input]:
        if self.text is not None:
            return [Input(self.text, divisible=True)]
        assert self.prompt is not None
        context = [Input(self.context, blank=True, optional=True)] if self.context else []
        return [Input(self.prompt, blank=True), *context]

    def with_tokenizer(self, tokenizer: Any) -> Self:
        """With a remark where prompts and completions of the rows that it was made from are glued together."""
        task = copy.copy(self)
        task._seams = self._seams.with_tokenizer(tokenizer)
        return task

    def remarks(self) -> list[str]:
        return [self._seams.remark] if self._seams.remark else []

    def state(self) -> dict[str, Any]:
        return {
            "task": self.name, "text": self.text, "prompt": self.prompt, "completion": self.completion,
            "context": self.context,
        }  # fmt: skip

    def _texts(self, rows: list[Row], supervised: bool) -> tuple[list[str], list[str]]:
        """Texts or prompts of the rows, and completions (empty for plain text and for prediction). Raises DataError."""
        problems = Problems(rows)
        if self.text is not None:
            texts = [cells[0] for cells in check_texts(rows, [self.text], problems)]
            problems.raise_if_any(REMEDY)
            return texts, []
        assert self.prompt is not None and self.completion is not None
        # A blank prompt is a wish ("write something"); a blank completion is a row that was not filled in.
        prompts = [cells[0] for cells in check_texts(rows, [self.prompt], problems, blank=True)]
        answers = [cells[0] for cells in check_texts(rows, [self.completion], problems)] if supervised else []
        for index, row in enumerate(rows):
            more: Any = row.get(self.context) if self.context else None
            if is_missing(more):
                continue
            problem = text_problem(more, blank=True)
            if problem:
                problems.add(f"{self.context} {problem}", index)
            elif more.strip() and isinstance(prompts[index], str):
                prompts[index] += JOIN + more
        problems.raise_if_any(REMEDY)
        return prompts, answers

    def encode(self, rows: list[Row], tokenizer: Any, max_length: int, supervised: bool = True) -> Encoded:
        """Tokens and, with ``supervised``, labels of the same length, -100 where nothing is learned.

        Plain text: the tokenizer's own beginning, the text, its end token. A text of more than ``max_length`` tokens
        becomes several examples; each begins with the last token of the one before, so that every token but the first
        is learned exactly once. Prompt and completion: beginning, prompt, completion, end token. A prompt that is too
        long loses its beginning; a row whose completion does not fit behind one token of prompt is left out and
        counted: an answer is never cut. Without ``supervised``: what generation continues, without end token, its
        last ``max_length`` tokens.

        Examples hold ``input_ids``, ``row`` (index in ``rows``) and, with ``supervised``, ``labels``. Raises
        DataError: rows at fault, a row with nothing to learn, or no row left.
        """
        if max_length < 2:
            raise ValueError(f"max_length is {max_length}; predicting a token takes at least 2")
        texts, answers = self._texts(rows, supervised)
        frame = Frame.of(tokenizer)
        bodies = [frame.strip(ids) for ids in bare_ids(tokenizer, texts)]
        made = Made(rows)
        if not supervised:
            for index, body in enumerate(bodies):
                room = max(max_length - len(frame.prefix), 1)
                made.truncated += len(body) > room
                made.add(index, frame.prefix + body[-room:], None)
        elif self.text is not None:
            blocks(made, frame, bodies, max_length)
        else:
            ends = [frame.strip(ids, first=False) for ids in bare_ids(tokenizer, answers)]
            completions(made, frame, bodies, ends, max_length)
        encoded = made.encoded(max_length, frame, self.text is not None, supervised)
        encoded.answers = [answers[example["row"]] for example in encoded.examples] if answers else []
        return encoded

    def asked(self, example: dict[str, Any]) -> list[tuple[dict[str, Any], list[int]]]:
        return super().asked(example) if self.text is None else []


def prompt_and_completion(table: Table) -> tuple[str | None, str | None]:
    """The named columns; to one of them the other that is usual; or a usual pair."""
    prompt, completion = table.named.get("prompt"), table.named.get("completion")
    if prompt and not completion:
        usual = [second for first, second in PROMPTS if first == prompt.lower()] + [second for _, second in PROMPTS]
        completion = table.get(*[name for name in usual if name != prompt.lower()])
    elif completion and not prompt:
        usual = [first for first, second in PROMPTS if second == completion.lower()] + [first for first, _ in PROMPTS]
        prompt = table.get(*[name for name in usual if name != completion.lower()])
    elif not prompt:
        return table.pair(PROMPTS) or (None, None)
    return prompt, completion


def _answering(table: Table, sign: Sign, prompt: str, completion: str) -> Claim:
    """The claim on a prompt and a completion, with the context below the prompt where there is one."""
    context = table.named.get("context")
    if context is None and prompt.lower() in WITH_CONTEXT and "prompt" not in table.named:
        context = table.get(*[name for name in CONTEXT if name not in (prompt.lower(), completion.lower())])
    pairs = [table.pair((pair,)) for pair in PROMPTS]
    others = [f"{pair[0]!r} and {pair[1]!r}" for pair in pairs if pair and not {prompt, completion} & set(pair)]
    roles = {"prompt": prompt, **({"context": context} if context else {}), "completion": completion}
    return Claim(sign, roles, "only the completion is learned", others)

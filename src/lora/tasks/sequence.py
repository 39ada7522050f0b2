"""What the tasks share that give one answer for a whole text: tokens, checks and padding.

Shapes: b row, t token, c class.
"""

from __future__ import annotations

import operator
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import Tensor

from lora.data.columns import LABEL, TEXT, Claim, Sign, Table
from lora.data.kinds import Kind
from lora.data.problems import Problems, excerpt, is_missing, text_problem
from lora.data.rows import named
from lora.data.streams import RowStream
from lora.errors import DataError
from lora.plural import number_of
from lora.tasks.base import Encoded, Input, Row, Task, resized

REMEDY = "correct or remove these rows"
PAIRS = (
    ("premise", "hypothesis"), ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("text1", "text2"),
    ("text_1", "text_2"), ("text_a", "text_b"), ("question1", "question2"), ("text", "text_pair"),
    ("question", "sentence"), ("query", "passage"),
)  # fmt: skip
CLEAR_LABEL = ("label", "labels")  # {question, answer, label} classifies: stronger than two names that make a pair


class SequenceTask(Task):
    """A task with a text, perhaps a second one, and a label. Which task it is, the labels' values say.

    Arguments:
        text, text_pair, label: names of the columns.

    Class attributes:
        labels_are: the kind of labels that asks for this task.
    """

    labels_are: ClassVar[Kind]
    roles = ("text", "text_pair", "label")
    to_name = "data.text_column (--data.text-column) and data.label_column (--data.label-column) to classify"
    auto_class = "AutoModelForSequenceClassification"

    def __init__(self, text: str = "text", text_pair: str | None = None, label: str = "label") -> None:
        self.text = text
        self.text_pair = text_pair
        self.label = label

    @classmethod
    def recognise(cls, table: Table, asked: bool) -> Claim | None:
        roles, others = _text_and_label(table)
        sign = Sign.NAMED if asked else _sign(table, roles)
        if sign is None:
            return None
        missing = [role for role in ("text", "label") if role not in roles]
        if missing:
            settings = " and ".join(f"data.{role}_column (--data.{role}-column)" for role in missing)
            what = f"no {' and no '.join(missing)} column is recognised; name it with {settings}"
            return Claim(sign, problem=table.error(what))
        kind, why = table.kind(roles["label"])
        if asked:
            return Claim(sign, roles, "as data.task says", others)
        if kind is Kind.TEXTS:
            problem = DataError(
                f"{named(table.rows)}column {roles['label']!r} holds {why}: is it an answer to be written? Then name "
                "data.prompt_column and data.completion_column; if these are classes, set data.task classification"
            )
            return Claim(sign, problem=problem)
        return Claim(sign, roles, why, others) if kind is cls.labels_are else None

    @classmethod
    def made_up(cls, labels: int = 2, token: int = 1) -> tuple[Task, dict[str, Any]]:
        rows = [{"text": "-", "label": label} for label in cls.made_up_labels(labels)]
        task = cls.from_rows(rows, {"text": "text", "label": "label"})
        assert isinstance(task, SequenceTask)
        return task, {"input_ids": [token, token], "row": 0, "label": task.read_label(rows[0]["label"])}

    @classmethod
    @abstractmethod
    def made_up_labels(cls, count: int) -> list[Any]:
        """Cells from which a task of ``count`` labels is learned, where it has labels."""

    def of_length(self, example: dict[str, Any], length: int) -> dict[str, Any]:
        tokens = {key: resized(example[key], length) for key in example if key in ("input_ids", "token_type_ids")}
        return {**example, **tokens}

    def inputs(self) -> list[Input]:
        return [Input(name) for name in (self.text, self.text_pair) if name]

    def state(self) -> dict[str, Any]:
        return {"task": self.name, "text": self.text, "text_pair": self.text_pair, "label": self.label}

    @abstractmethod
    def read_label(self, value: Any) -> Any:
        """The label of an example from a cell. Raises ValueError saying what is wrong with it."""

    @abstractmethod
    def label_tensor(self, labels: list[Any]) -> Tensor:
        """Labels of a batch as its ``labels`` tensor."""

    def check_labels(self, labels: list[Any], rows: list[Row]) -> None:
        """Look at all labels of the rows together. Raises DataError."""

    def encode(self, rows: list[Row], tokenizer: Any, max_length: int, supervised: bool = True) -> Encoded:
        """Tokenise: special tokens as the tokenizer sets them, long texts cut on the right, of a pair the longer one
            first.

        Examples hold ``input_ids``, ``token_type_ids`` where the tokenizer makes them, ``row`` (index in ``rows``) and,
        with ``supervised``, ``label``. Raises DataError naming every row at fault.
        """
        problems = Problems(rows)
        texts = check_texts(rows, [given.column for given in self.inputs()], problems)
        labels = self._labels(rows, problems) if supervised else []
        problems.raise_if_any(REMEDY)
        if supervised:
            self.check_labels(labels, rows)
        encodings, over = tokenise(tokenizer, texts, max_length)
        truncated = len(over)
        examples: list[dict[str, Any]] = []
        for index, encoding in enumerate(encodings):
            if not encoding["input_ids"]:
                problems.add("the text gives no token", index)
            examples.append({**encoding, "row": index} | ({"label": labels[index]} if supervised else {}))
        problems.raise_if_any(REMEDY)
        notes = [cut_note(truncated, len(rows), max_length, "and {was} cut")] if truncated else []
        lengths = [len(example["input_ids"]) for example in examples]
        return Encoded(examples, lengths, [int(supervised)] * len(examples), truncated, notes)

    def read(self, rows: list[Row]) -> list[Any]:
        """Labels of ``rows``, whose texts are looked at as well. Raises DataError naming every row at fault."""
        problems = Problems(rows)
        check_texts(rows, [given.column for given in self.inputs()], problems)
        labels = self._labels(rows, problems)
        problems.raise_if_any(REMEDY)
        return labels

    def _labels(self, rows: list[Row], problems: Problems) -> list[Any]:
        """Labels of ``rows``; what is wrong goes to ``problems`` (and leaves a gap, so raise before using them)."""
        require_columns(rows, [self.label])
        labels = []
        for index, row in enumerate(rows):
            try:
                labels.append(self.read_label(row.get(self.label)))
            except ValueError as error:
                problems.add(str(error), index)
        return labels

    def collate(
        self, examples: list[dict[str, Any]], pad_token_id: int, padding_side: str = "right"
    ) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` (b, t) long, ``token_type_ids`` (b, t) where there are any, ``labels``."""
        batch = padded_ids([example["input_ids"] for example in examples], pad_token_id, padding_side)
        if "token_type_ids" in examples[0]:
            batch["token_type_ids"] = pad([example["token_type_ids"] for example in examples], 0, padding_side)
        if "label" in examples[0]:
            batch["labels"] = self.label_tensor([example["label"] for example in examples])
        return batch

    def targets(self, examples: Sequence[dict[str, Any]]) -> list[Any]:
        return [example["label"] for example in examples]


def _text_and_label(table: Table) -> tuple[dict[str, str], list[str]]:
    """The columns of a text, perhaps of a second one, and of a label, by role; and (quoted) what would do as well."""
    text, pair, label = (table.named.get(role) for role in ("text", "text_pair", "label"))
    others: list[str] = []
    if label is None:
        labels = [name for name in table.every(LABEL) if name not in (text, pair)]
        label, others = (labels[0], [repr(name) for name in labels[1:]]) if labels else (None, [])
    if text is None:
        free = tuple(both for both in PAIRS if label is None or label.lower() not in both)
        found = table.pair(free) if pair is None else None
        texts = [name for name in table.every(TEXT) if name not in (label, pair)]
        text, pair = found or (texts[0] if texts else None, pair)
        others += [repr(name) for name in texts if name not in (text, pair)]
    roles = {"text": text, "text_pair": pair, "label": label}
    return {role: name for role, name in roles.items() if name is not None}, others


def _sign(table: Table, roles: dict[str, str]) -> Sign | None:
    if "label" in table.named or "text_pair" in table.named:
        return Sign.NAMED
    if "text" not in roles or "label" not in roles:
        return None
    return Sign.CLEAR if "text" in table.named or table.get(*CLEAR_LABEL) else Sign.WEAK


def pad(rows: list[list[int]], value: int, side: str) -> Tensor:
    """(b, t) long: ``rows`` filled up with ``value`` on the ``side`` ("right" or "left")."""
    width = max(len(row) for row in rows)
    filled = [
        row + [value] * (width - len(row)) if side == "right" else [value] * (width - len(row)) + row for row in rows
    ]
    return torch.tensor(filled, dtype=torch.long)


def padded_ids(rows: list[list[int]], pad_token_id: int, side: str) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, (b, t) long, of token ids ``rows``, padded on the ``side``."""
    # By length, never by comparing with the pad token: it may be the end token too.
    return {
        "input_ids": pad(rows, pad_token_id, side),
        "attention_mask": pad([[1] * len(row) for row in rows], 0, side),
    }


def require_columns(rows: Collection[Row] | RowStream, columns: list[str]) -> None:
    """Raise DataError where there is no row, or a column that no row has (another file's spelling, usually)."""
    if not rows:
        raise DataError("there are no rows")
    missing = [name for name in columns if not any(name in row for row in rows)]
    if missing:
        there = ", ".join(dict.fromkeys(str(key) for row in rows for key in row))
        raise DataError(
            f"{named(rows)}no row has the column {', '.join(map(repr, missing))}; columns there are: {there}; "
            "rename them as in the training data"
        )


def check_texts(rows: list[Row], columns: list[str], problems: Problems, blank: bool = False) -> list[list[str]]:
    """The cells of ``columns``, one list per row; no text goes to ``problems``. ``blank``: empty ones will do."""
    require_columns(rows, columns)
    cells = []
    for index, row in enumerate(rows):
        for name in columns:
            problem = text_problem(row.get(name), blank)
            if problem:
                problems.add(f"{name} {problem}", index)
        cells.append([row.get(name, "") for name in columns])
    return cells


class Counted(str):
    """A sentence with numbers in it. Those that say the same of parts of the rows can be added up: see `of`.

    Attributes:
        say: makes the sentence of ``fixed`` and ``numbers``.
        numbers: to be added; but ``total``, where it is among them, is how many rows there are.
    """

    say: Callable[..., str]
    fixed: tuple[Any, ...]
    numbers: dict[str, Any]

    @property
    def what(self) -> Any:
        """The same for sentences that can be added up."""
        return self.say, self.fixed

    @staticmethod
    def of(parts: Sequence[Counted], total: int) -> Counted:
        """One sentence about ``total`` rows for those about parts of them."""
        numbers = {key: reduce(operator.add, [part.numbers[key] for part in parts]) for key in parts[0].numbers}
        return counted(parts[0].say, *parts[0].fixed, **{**numbers, **({"total": total} if "total" in numbers else {})})


def counted(say: Callable[..., str], *fixed: Any, **numbers: Any) -> Counted:
    """The sentence that ``say`` makes. ``numbers``: ints, or whatever else can be added."""
    note = Counted(say(*fixed, **numbers))
    note.say, note.fixed, note.numbers = say, fixed, numbers
    return note


def cut_note(cut: int, total: int, max_length: int, then: str, **more: int) -> str:
    """A sentence about ``cut`` of ``total`` rows.

    ``then``: what became of them, ``{was}`` for was or were, and the names of further numbers, which are in ``more``.
    """
    return counted(_cut, max_length, then, cut=cut, total=total, **more)


def _cut(max_length: int, then: str, cut: int, total: int, **more: int) -> str:
    was = "was" if cut == 1 else "were"
    return f"{cut:,} of {number_of(total, 'row')} {was} longer than {max_length} tokens {then.format(was=was, **more)}."


def label_problem(value: Any) -> str | None:
    """What is wrong with a label cell before its type is looked at; None: nothing."""
    if is_missing(value):
        return "the label is missing"
    problem = text_problem(value) if isinstance(value, str) else None
    return f"the label {problem}" if problem else None


def wrong_type(value: Any, wanted: str) -> str:
    """The message for a label of a type that the task cannot use."""
    return f"the label {excerpt(value)} is not {wanted}"


def tokenise(tokenizer: Any, texts: list[list[str]], max_length: int) -> tuple[list[dict[str, list[int]]], set[int]]:
    """One encoding per row, and the rows that were cut. ``texts``: one or two texts per row."""
    encodings = _call(tokenizer, texts)
    over = [index for index, encoding in enumerate(encodings) if len(encoding["input_ids"]) > max_length]
    if over:
        cut = _call(tokenizer, [texts[index] for index in over], truncation="longest_first", max_length=max_length)
        for index, encoding in zip(over, cut, strict=True):
            encodings[index] = encoding
    return encodings, set(over)


def _call(tokenizer: Any, texts: list[list[str]], **options: Any) -> list[dict[str, list[int]]]:
    side = tokenizer.truncation_side
    tokenizer.truncation_side = "right"
    try:
        # verbose=False: the warning about the model's maximum is moot, cutting comes after
        columns = list(zip(*texts, strict=True))
        out = tokenizer(*map(list, columns), padding=False, verbose=False, return_attention_mask=False, **options)
    finally:
        tokenizer.truncation_side = side
    keys = [key for key in ("input_ids", "token_type_ids") if key in out]
    return [dict(zip(keys, map(list, cells), strict=True)) for cells in zip(*(out[key] for key in keys), strict=True)]

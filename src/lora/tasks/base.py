"""The contract of a task: how its rows become tokens, its outputs a loss and its outputs predictions.

A task is one file in this package and one line in `lora.registry`. Nothing else knows a task by name.
Shapes: b row, t token, v vocabulary, c class.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any, ClassVar, Literal

from torch import Tensor

from lora.data.columns import Claim, Table
from lora.data.formats import Format
from lora.data.rendering import IGNORED
from lora.data.rows import Row
from lora.data.splits import text_key
from lora.statistics.rows import Array
from lora.tasks.examples import Encoded, ExamplePart, Input, NoneLeft, Options, resized
from lora.tasks.figures import Figures, Groups

__all__ = ["Encoded", "ExamplePart", "Input", "NoneLeft", "Options", "Row", "Task", "resized"]


class Task(ABC):
    """One kind of supervision. Instances hold what was learned from the training rows, and nothing else.

    Class attributes:
        roles: the columns it may read, by role: ``data.<role>_column`` or ``data.columns`` names one. A role is also
            the key of ``state`` under which its column is kept.
        optional: those of the roles whose columns a row, and of several sources one, may lack.
        to_name: the settings that name its columns, for the message where nothing is recognised.
        options: its own settings; their names are arguments of the class and keys of ``state`` too.
    """

    name: ClassVar[str]
    roles: ClassVar[tuple[str, ...]]
    optional: ClassVar[tuple[str, ...]] = ()
    to_name: ClassVar[str]
    options: ClassVar[type[Options]] = Options
    auto_class: ClassVar[str]  # name of the transformers Auto class that loads a fitting base model
    best_metric: ClassVar[str]  # key of `metrics` that picks the best checkpoint
    # The numbers among `metrics`, any of which can pick the best checkpoint, and whether more of it is better.
    measures: ClassVar[Mapping[str, bool]]
    per_token: ClassVar[bool] = False  # whether its labels are of single tokens: the logits are (b, t, c), not (b, c)
    # Whether the loss is the cross-entropy of each next token that ``labels`` of an example holds: such examples can be
    # packed into one row, and the head computed for supervised positions alone.
    next_token: ClassVar[bool] = False
    # Whether label smoothing is of the cross-entropy of those tokens, and not of the task's own loss.
    smooths_tokens: ClassVar[bool] = True
    # Whether its supervised positions are tokens whose distribution can be held to the base's (``training.kl``).
    holds_to_base: ClassVar[bool] = False
    # Whether what two passes say of the same rows can be held to each other (``training.r_drop``).
    agrees: ClassVar[bool] = False
    rows: ClassVar[int] = 1  # of a padded batch that one example makes
    generates: ClassVar[bool] = False  # whether its answer is a text, which the model writes; its logits are (b, t, v)
    # What becomes of a running text (`for_running_text`), in a word or two; and in a sentence, unless it is plain.
    running_kind: ClassVar[str] = "next tokens"
    running_note: ClassVar[str] = ""
    # What is learned of a row: one of its ``labels``, several, a number, which of two answers is better, or a text.
    learns: ClassVar[Literal["label", "labels", "number", "pairs", "written"]] = "written"

    # Of an instance, where it has such.
    labels: Sequence[Any] = ()  # names of its labels, in the order of the logits
    added: Sequence[str] = ()  # those of them that no row had which it was made from
    format: Format | None = None  # the chat format of its adapter; None: texts are bare
    tools: str | None = None  # the column of functions that the assistant may call

    @classmethod
    def suits(cls, base: Any) -> bool:
        """Whether the task may be meant where the settings name none and the base has the configuration ``base``
        (transformers'; None: not known)."""
        return True

    @classmethod
    def for_texts(cls, base: Any, messages: bool) -> Task | None:
        """The task by which a base without an adapter, of the configuration ``base``, is asked for a text: with
        ``messages`` in a chat template, or with a bare prompt. None: not by this one."""
        return None

    @classmethod
    def for_running_text(cls, base: Any, column: str = "text") -> Task | None:
        """The task by which a base of the configuration ``base`` reads the text in ``column``, of no task's own: what
        is replayed, and what forgetting is measured on. None: not by this one. Its rows are those of `running_rows`."""
        return None

    def running_rows(self, rows: Iterable[Row], column: str = "text") -> Iterator[Row]:
        """Rows with a text in ``column``, as the task of `for_running_text` takes them: one of each."""
        yield from rows

    @classmethod
    @abstractmethod
    def recognise(cls, table: Table, asked: bool) -> Claim | None:
        """Whether the columns are meant for this task, how clearly, and which is which; None: not at all.

        ``asked``: the settings name this task, so the columns need not; then names that would do are enough.
        """

    @classmethod
    @abstractmethod
    def from_rows(cls, rows: list[Row], columns: Mapping[str, str]) -> Task:
        """Learn label names and the like from training rows. Raises DataError naming the rows at fault.

        ``columns``: role -> column, as ``recognise`` gives it.
        """

    @classmethod
    @abstractmethod
    def made_up(cls, labels: int = 2, token: int = 1) -> tuple[Task, dict[str, Any]]:
        """A task as its rows could make it, of ``labels`` where it has them, and a short supervised example of it, of
        ``token`` alone.

        What a plan is made of where there are no data; all that can be learned is, which takes the most.
        """

    def size(self, example: dict[str, Any]) -> tuple[int, int, int]:
        """Of a supervised example its length and supervised positions as `Encoded` has them, and how many tokens of it
        ``max_length`` limits."""
        tokens, labels = len(example["input_ids"]), example.get("labels")
        return tokens, 1 if labels is None else sum(label != IGNORED for label in labels), tokens

    def of_length(self, example: dict[str, Any], length: int) -> dict[str, Any]:
        """``example`` as if ``max_length`` limited ``length`` tokens of it: of each part the same share, contents of no
        meaning."""
        own = len(example["input_ids"])
        return {
            key: resized(value, length) if isinstance(value, list) and len(value) == own else value
            for key, value in example.items()
        }

    @classmethod
    def from_chunks(cls, chunks: Iterable[list[Row]], columns: Mapping[str, str]) -> Task:
        """As `from_rows`, of rows that come some at a time. A task that can do with less than all of them says how."""
        return cls.from_rows([row for chunk in chunks for row in chunk], columns)

    def for_training(self, rows: list[Row]) -> Task:
        """The task as it is where ``rows`` alone are trained on: what was estimated from rows is estimated from these.

        What rows only declare, such as the names of labels, stays. Raises DataError where they teach nothing.
        """
        return self

    @abstractmethod
    def inputs(self) -> list[Input]:
        """The columns that the model sees; the first is what a plain string stands for."""

    def key(self, row: Row) -> int:
        """64 bits of what the model is asked with, case and white space aside: by it rows are split."""
        cells = [given.asked(row.get(given.column)) for given in self.inputs()]
        while cells and not cells[-1].strip():  # rows of another source may lack the column altogether
            cells.pop()
        return text_key(cells)

    def classes(self) -> str | None:
        """The column whose values should all be met in training and in evaluation; None: there is no such column."""
        return None

    def remarks(self) -> list[str]:
        """What a user should know of what was learned from the rows, or seen of the tokenizer, in full sentences."""
        return []

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """JSON-serialisable state, stored beside the adapter. ``tasks.from_state`` restores the task."""

    def with_tokenizer(self, tokenizer: Any) -> Task:
        """The task as it is with this tokenizer (its template, say), asked before anything is encoded.

        Raises DataError where rows would become other tokens than those the adapter was trained with.
        """
        return self

    def check_smoothing(self, label_smoothing: float) -> None:
        """Raise ConfigError where ``training.label_smoothing`` is nothing that the task's loss has."""
        return None

    def ends(self) -> list[int]:
        """Token ids that end a generated answer, beside the model's and the tokenizer's own."""
        return []

    def met(self, ends: Sequence[int]) -> None:
        """Take note of `Encoded.ends`, of rows that another process may have encoded."""
        return None

    @property
    def greater_is_better(self) -> bool:
        """Whether more of ``best_metric`` is better."""
        return self.measures[self.best_metric]

    @property
    def reference(self) -> bool:
        """Whether the loss compares with the base: it then runs on the same examples, in the same batch."""
        return False

    def model_options(self) -> dict[str, Any]:
        """Keyword arguments for ``from_pretrained`` (``num_labels``, ``id2label``, ``problem_type``)."""
        return {}

    @abstractmethod
    def encode(self, rows: list[Row], tokenizer: Any, max_length: int, supervised: bool = True) -> Encoded:
        """Tokenise ``rows``, each for itself: parts of them give the same examples as all at once.

        Examples hold ``row``, the index of theirs. With ``supervised=False`` labels may be absent (prediction).
        Raises DataError; `NoneLeft` where every row was left out.
        """

    @abstractmethod
    def collate(
        self, examples: list[dict[str, Any]], pad_token_id: int, padding_side: str = "right"
    ) -> dict[str, Tensor]:
        """Pad ``examples`` to one batch of tensors: ``input_ids`` (b, t), ``attention_mask`` (b, t), ``labels``, …"""

    def for_base(self, batch: dict[str, Tensor], base: Any) -> dict[str, Tensor]:
        """``batch`` with what only the base model itself can make of it. Raises ModelError where it cannot."""
        return batch

    def asked(self, example: dict[str, Any]) -> list[tuple[dict[str, Any], list[int]]]:
        """Of each answer that a supervised example teaches: what stands before it, as generation begins with that, and
        its tokens. Empty: there is no answer to be written."""
        if not self.next_token:
            return []
        ids, learned = example["input_ids"], [label != -100 for label in example["labels"]]
        rest, out, end = {key: example[key] for key in example if key != "labels"}, [], 0
        for does, run in groupby(learned):
            start, end = end, end + len(list(run))
            if does and start:
                out.append(({**rest, "input_ids": ids[:start]}, ids[start:end]))
        return out

    def parts(self, example: dict[str, Any]) -> list[ExamplePart]:
        """All tokens of an example, by its parts in order; a part without a name falls into what is learned and what is
        not, or into the messages of its row."""
        labels = example.get("labels")
        return [("text", example["input_ids"], labels if isinstance(labels, list) else None)]

    def last_tokens(self, example: dict[str, Any]) -> list[int]:
        """The last token of each answer that is learned of a supervised example."""
        labels = [*example["labels"], IGNORED]
        return [label for label, after in pairwise(labels) if label != IGNORED and after == IGNORED]

    @abstractmethod
    def row_losses(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Loss sums (b,) in fp32 and numbers of supervised positions (b,): sums until the last division.

        With ``reference`` this takes one more argument of that name, the base's outputs; so does ``predictions``.
        """

    def token_losses(self, outputs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """With ``next_token``: cross-entropy sums and numbers of supervised tokens, of each padded row."""
        return self.row_losses(outputs, batch)

    def row_divergences(self, outputs: Any, batch: dict[str, Tensor], reference: Any) -> Tensor:
        """With ``holds_to_base``: KL(base ‖ adapter) summed over the supervised tokens of each row, (b,) in fp32.

        ``reference``: the base's outputs for the same batch.
        """
        raise NotImplementedError

    def row_disagreements(self, one: Any, other: Any, batch: dict[str, Tensor]) -> Tensor:
        """With ``agrees``: KL(one ‖ other) + KL(other ‖ one) of the outputs of two passes for the same batch, over the
        supervised positions of each row as its loss is over them, (b,) in fp32."""
        raise NotImplementedError

    def packed_loss(
        self, losses: Tensor, examples: list[dict[str, Any]], reference: Tensor | None, label_smoothing: float
    ) -> Tensor:
        """With ``next_token``: the loss of ``examples``, summed, from those of their supervised tokens.

        Args:
            losses: (n,) cross-entropy, example by example.
            reference: (n,) the same of the base; None where ``reference`` is false.
        """
        return losses.sum()

    @abstractmethod
    def predictions(self, outputs: Any, batch: dict[str, Tensor]) -> list[Any]:
        """One prediction per row, as plain Python: what ``metrics`` and ``answers`` consume."""

    def answers(self, rows: list[Row], encoded: Encoded, predictions: list[Any]) -> list[dict[str, Any]]:
        """What ``lora predict`` says of each of ``rows``, JSON-serialisable.

        ``encoded``: these rows; ``predictions``: one per example of it. A task that makes several examples of a row
        puts them together again. Here: probabilities by name, a bare number under ``value``.
        """
        out = []
        for said in predictions:
            answer = dict(said) if isinstance(said, dict) else {"value": said}
            if self.labels and "probabilities" in answer:
                answer["probabilities"] = dict(zip(self.labels, answer["probabilities"], strict=True))
            out.append(answer)
        return out

    @abstractmethod
    def targets(self, examples: Sequence[dict[str, Any]]) -> list[Any]:
        """The true answer of each example, in the form that ``metrics`` compares with ``predictions``."""

    def labels_in(self, target: Any) -> list[Any]:
        """The labels that a target holds, as those of ``labels`` are counted: one, several, or one for each word."""
        return target if isinstance(target, list) else [target]

    @abstractmethod
    def metrics(self, predictions: list[Any], targets: list[Any], loss_sum: float, count: int) -> dict[str, Any]:
        """Metrics of one adapter: a flat dict of floats, and nested ones for per-class and confusion tables.

        Where a number can be a figure of rows, it is that of `figures`; None where that is undefined.
        """

    def figures(self, predictions: Sequence[Any], targets: Sequence[Any], groups: Groups = None) -> Figures:
        """By the keys of `metrics` what each is, and of which rows: from it come values, intervals and tests.

        Without the loss, which follows from `row_losses` alone. Empty: of this task nothing is known beside that.
        ``groups``: what examples belong together (parts of one row), for those that are drawn together.

        Raises DataError where a prediction is no finite number.
        """
        return {}

    def stated(self, predictions: Sequence[Any], targets: Sequence[Any]) -> tuple[Array, Array] | None:
        """The probabilities that predictions state, (n, c), and what is true: the place of each row's class, (n,), or 0
        and 1 by label, (n, c), where a row can have several. None: they state none."""
        return None

    def told(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        """What was expected of an example and what was answered, to be read side by side; equal: no error. None: there
        is no such answer."""
        return None, None

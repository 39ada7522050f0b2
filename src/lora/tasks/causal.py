"""Next tokens: of plain text, or of a completion after its prompt. Shapes: b row, t token, v vocabulary, n supervised
token.

Prompt and completion are tokenised each for itself and the ids put together. The mask is then a matter of counting,
and what a server sends as a prompt is, token for token, what was trained on; the price is that no token spans the
boundary (write a separating space or line break into one of the two columns if the format needs one; none is added).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lora.data.problems import Problems, is_missing
from lora.errors import DataError
from lora.tasks.base import Encoded, Row, Task
from lora.tasks.sequence import REMEDY, check_texts, cut_note, pad

IGNORED = -100  # what transformers and torch take for "no label here"
JOIN = "\n\n"  # between an instruction and its input (alpaca), simple enough to write by hand when serving


class CausalTask(Task):
    """Next-token prediction.

    Arguments:
        text: column of plain text, all of it learned; or None with
        prompt, completion: columns of a prompt and of the answer to it, which alone is learned; and
        context: column that goes below the prompt, after an empty line, where it is not blank (alpaca's ``input``).
    """

    name = "causal"
    auto_class = "AutoModelForCausalLM"
    best_metric = "loss"
    greater_is_better = False

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

    @classmethod
    def from_rows(cls, rows: list[Row], columns: Any) -> CausalTask:
        """Nothing is learned from the rows; they are checked. Raises DataError naming the rows at fault."""
        task = cls(columns.text, columns.prompt, columns.completion, columns.context)
        task._texts(rows, supervised=True)
        return task

    def state(self) -> dict[str, Any]:
        return {
            "task": self.name, "text": self.text, "prompt": self.prompt, "completion": self.completion,
            "context": self.context,
        }  # fmt: skip

    def _texts(self, rows: list[Row], supervised: bool) -> tuple[list[str], list[str]]:
        """Texts or prompts of the rows, and completions (empty for plain text and for prediction). Raises DataError."""
        problems = Problems()
        if self.text is not None:
            texts = [cells[0] for cells in check_texts(rows, [self.text], problems)]
            problems.raise_if_any(len(rows), REMEDY)
            return texts, []
        assert self.prompt is not None and self.completion is not None
        # A blank prompt is a wish like others ("write something"); a blank completion is a row that was not filled in.
        prompts = [cells[0] for cells in check_texts(rows, [self.prompt], problems, blank=True)]
        answers = [cells[0] for cells in check_texts(rows, [self.completion], problems)] if supervised else []
        for index, row in enumerate(rows):
            more = row.get(self.context) if self.context else None
            if is_missing(more):
                continue
            if not isinstance(more, str):
                problems.add(f"{self.context} is of the type {type(more).__name__}, not text", index)
            elif more.strip() and isinstance(prompts[index], str):
                prompts[index] += JOIN + more
        problems.raise_if_any(len(rows), REMEDY)
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
        bodies = [frame.strip(ids) for ids in _ids(tokenizer, texts)]
        made = _Made()
        if not supervised:
            for index, body in enumerate(bodies):
                room = max(max_length - len(frame.prefix), 1)
                made.truncated += len(body) > room
                made.add(index, frame.prefix + body[-room:], None)
        elif self.text is not None:
            _blocks(made, frame, bodies, max_length)
        else:
            _answers(
                made, frame, bodies, [frame.strip(ids, first=False) for ids in _ids(tokenizer, answers)], max_length
            )
        return made.encoded(len(rows), max_length, frame, self.text is not None, supervised)

    def collate(
        self, examples: list[dict[str, Any]], pad_token_id: int, padding_side: str = "right"
    ) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``labels``: (b, t) long. Padding is masked by length: it may be eos."""
        ids = [example["input_ids"] for example in examples]
        return {
            "input_ids": pad(ids, pad_token_id, padding_side),
            "attention_mask": pad([[1] * len(row) for row in ids], 0, padding_side),
            "labels": pad(
                [example.get("labels", [IGNORED] * len(example["input_ids"])) for example in examples],
                IGNORED,
                padding_side,
            ),
        }

    def row_losses(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over a row's supervised tokens (b,) fp32, and their number (b,).

        ``outputs.logits``: (b, t, v); position t predicts token t+1. Only supervised positions are copied to fp32:
        the whole of (b, t, v) would be the largest tensor of the run. Smoothing as in
        ``torch.nn.functional.cross_entropy``.
        """
        chosen, labels, mask = self._supervised(outputs, batch)
        scores = chosen.float()  # (n, v)
        normaliser = scores.logsumexp(dim=-1)
        losses = normaliser - scores.gather(1, labels.unsqueeze(1)).squeeze(1)
        if label_smoothing:
            losses = (1 - label_smoothing) * losses + label_smoothing * (normaliser - scores.mean(dim=-1))
        return _per_row(losses, mask), mask.sum(dim=1).float()

    @torch.no_grad()
    def predictions(self, outputs: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """``{"loss": sum, "tokens": supervised ones, "correct": those whose most likely token is right}`` per row."""
        chosen, labels, mask = self._supervised(outputs, batch)
        losses, counts = self.row_losses(outputs, batch)
        correct = _per_row((chosen.argmax(dim=-1) == labels).float(), mask)
        return [
            {"loss": loss, "tokens": int(tokens), "correct": int(right)}
            for loss, tokens, right in zip(losses.tolist(), counts.tolist(), correct.tolist(), strict=True)
        ]

    def targets(self, examples: list[dict[str, Any]]) -> list[Any]:
        """Numbers of supervised tokens."""
        return [sum(label != IGNORED for label in example["labels"]) for example in examples]

    def metrics(self, predictions: list[Any], targets: list[Any], loss_sum: float, count: int) -> dict[str, Any]:
        """Loss per token, its exponential (perplexity), share of tokens predicted right, number of tokens."""
        loss = loss_sum / count
        tokens = sum(row["tokens"] for row in predictions)
        return {
            "loss": loss,
            # exp(709.8) is the largest that fp64 holds; above it Python raises. NaN stays NaN.
            "perplexity": math.inf if loss > 709 else math.exp(loss),
            "token_accuracy": sum(row["correct"] for row in predictions) / tokens if tokens else 0.0,
            "tokens": tokens,
        }

    @staticmethod
    def _supervised(outputs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, v) in their own dtype, labels (n,), and which positions they come from (b, t-1)."""
        following = batch["labels"][:, 1:]
        mask = following != IGNORED
        return outputs.logits[:, :-1][mask], following[mask], mask


def _per_row(values: Tensor, mask: Tensor) -> Tensor:
    """Sums (b,) of ``values`` (n,), which stand at ``mask`` (b, t-1)."""
    # Not index_add: on CUDA its order, and so its last bit, changes from run to run.
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values).sum(dim=1)


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts before a text, and the end token that belongs after it.

    Tokenizers differ: some add a beginning, some an end as well, some nothing. So texts are tokenised bare, and this
    is put around them once.
    """

    prefix: list[int]
    end: list[int]

    @classmethod
    def of(cls, tokenizer: Any) -> Frame:
        with_special = tokenizer("a", verbose=False)["input_ids"]
        bare = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        eos = tokenizer.eos_token_id
        end = [] if eos is None else [eos]
        for start in range(len(with_special) - len(bare) + 1):
            if with_special[start : start + len(bare)] == bare and bare:
                return cls(list(with_special[:start]), end)
        bos = tokenizer.bos_token_id
        return cls([bos] if bos is not None and with_special[:1] == [bos] else [], end)

    def strip(self, ids: list[int], first: bool = True) -> list[int]:
        """``ids`` without the beginning and end that some data carries as text (``<s>…</s>``): they come from here."""
        if first and self.prefix and ids[: len(self.prefix)] == self.prefix:
            ids = ids[len(self.prefix) :]
        return ids[:-1] if self.end and ids[-1:] == self.end else ids


@dataclass
class _Made:
    """The examples so far."""

    examples: list[dict[str, Any]] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)
    truncated: int = 0
    dropped: int = 0
    parts: int = 0  # examples that over-long texts became

    def add(self, row: int, ids: list[int], labels: list[int] | None) -> None:
        if not ids:
            self.problems.add("the text gives no token", row)
        elif labels is not None and all(label == IGNORED for label in labels):
            self.problems.add("no token to learn (a single token has nothing before it to be predicted from)", row)
        else:
            self.examples.append({"input_ids": ids, "row": row} | ({} if labels is None else {"labels": labels}))

    def encoded(self, total: int, max_length: int, frame: Frame, plain: bool, supervised: bool) -> Encoded:
        """Everything as `Encoded`, with its notes. Raises DataError as `CausalTask.encode`."""
        self.problems.raise_if_any(total, REMEDY)
        notes = []
        if self.dropped:
            notes.append(
                cut_note(
                    self.dropped,
                    total,
                    max_length,
                    "with the completion alone and {was} left out: an answer is never cut",
                )
            )
        if not self.examples:
            raise DataError(f"{notes[0]} None is left; raise data.max_length")
        if self.truncated and plain and supervised:
            notes.append(cut_note(self.truncated, total, max_length, f"and became {self.parts} examples"))
        elif self.truncated:
            whose = "texts" if plain else "prompts"
            notes.append(cut_note(self.truncated, total, max_length, f"and lost the beginning of their {whose}"))
        if supervised and not frame.end:
            notes.append("The tokenizer has no end token: the adapter will not learn where an answer ends.")
        supervision = [sum(label != IGNORED for label in example.get("labels", ())) for example in self.examples]
        return Encoded(
            self.examples, [len(example["input_ids"]) for example in self.examples], supervision, self.truncated, notes
        )


def _blocks(made: _Made, frame: Frame, bodies: list[list[int]], max_length: int) -> None:
    """Plain texts, cut where they are too long; neighbouring blocks share one token."""
    for index, body in enumerate(bodies):
        ids = frame.prefix + body + frame.end
        blocks = [ids[start : start + max_length] for start in range(0, max(len(ids) - 1, 1), max_length - 1)]
        if len(blocks) > 1:
            made.truncated += 1
            made.parts += len(blocks)
        for block in blocks:
            made.add(index, block, [IGNORED, *block[1:]])


def _answers(made: _Made, frame: Frame, prompts: list[list[int]], answers: list[list[int]], max_length: int) -> None:
    """Prompts and completions, too long a prompt cut on the left."""
    for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        completion = answer + frame.end
        room = max_length - len(frame.prefix) - len(completion)
        if room < min(len(prompt), 1):
            made.dropped += 1
            continue
        if len(prompt) > room:
            made.truncated += 1
            prompt = prompt[len(prompt) - room :]
        start = frame.prefix + prompt
        labels = [IGNORED] * len(start) + completion
        # What stands first has nothing before it to be predicted from (no beginning token and a blank prompt).
        labels[0] = IGNORED
        made.add(index, start + completion, labels)


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    out = tokenizer(
        texts, add_special_tokens=False, padding=False, truncation=False, verbose=False, return_attention_mask=False
    )
    return [list(ids) for ids in out["input_ids"]]

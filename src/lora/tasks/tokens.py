"""Token ids for the prediction of next tokens: what stands around a text, what is learned of it, what is cut.

Prompt and completion are tokenised each for itself and the ids put together. The mask is then a matter of counting,
and what a server sends as a prompt is, token for token, what was trained on; the price is that no token spans the
boundary (write a separating space or line break into one of the two columns if the format needs one; none is added).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lora.data.problems import Problems
from lora.data.rendering import IGNORED
from lora.data.rows import named
from lora.tasks.base import Encoded, NoneLeft, Row
from lora.tasks.sequence import REMEDY, cut_note

NO_END = "The tokenizer has no end token: the adapter will not learn where an answer ends."


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
class Made:
    """The examples of ``rows`` so far, and what happened on the way."""

    rows: list[Row]
    examples: list[dict[str, Any]] = field(default_factory=list)
    truncated: int = 0
    dropped: int = 0
    parts: int = 0  # examples that over-long texts became

    def __post_init__(self) -> None:
        self.problems = Problems(self.rows)

    def add(self, row: int, ids: list[int], labels: list[int] | None) -> None:
        if not ids:
            self.problems.add("the text gives no token", row)
        elif labels is not None and all(label == IGNORED for label in labels):
            self.problems.add("no token to learn (a single token has nothing before it to be predicted from)", row)
        else:
            self.examples.append({"input_ids": ids, "row": row} | ({} if labels is None else {"labels": labels}))

    def encoded(self, max_length: int, frame: Frame, plain: bool, supervised: bool) -> Encoded:
        """Everything as `Encoded`, with its notes. Raises DataError as `CausalTask.encode`."""
        self.problems.raise_if_any(REMEDY)
        total = len(self.rows)
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
            raise NoneLeft(
                f"{named(self.rows)}{notes[0]} None is left; raise data.max_length",
                notes,
                self.truncated + self.dropped,
            )
        if self.truncated and plain and supervised:
            notes.append(cut_note(self.truncated, total, max_length, "and became {parts} examples", parts=self.parts))
        elif self.truncated:
            whose = "texts" if plain else "prompts"
            notes.append(cut_note(self.truncated, total, max_length, f"and lost the beginning of their {whose}"))
        if supervised and not frame.end:
            notes.append(NO_END)
        supervision = [sum(label != IGNORED for label in example.get("labels", ())) for example in self.examples]
        return Encoded(
            self.examples, [len(example["input_ids"]) for example in self.examples], supervision,
            self.truncated + self.dropped, notes,
        )  # fmt: skip


def blocks(made: Made, frame: Frame, bodies: list[list[int]], max_length: int) -> None:
    """Plain texts, cut where they are too long; neighbouring blocks share one token."""
    for index, body in enumerate(bodies):
        ids = frame.prefix + body + frame.end
        blocks = [ids[start : start + max_length] for start in range(0, max(len(ids) - 1, 1), max_length - 1)]
        if len(blocks) > 1:
            made.truncated += 1
            made.parts += len(blocks)
        for block in blocks:
            made.add(index, block, [IGNORED, *block[1:]])


def completions(made: Made, frame: Frame, prompts: list[list[int]], answers: list[list[int]], max_length: int) -> None:
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


def bare_ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    out = tokenizer(
        texts, add_special_tokens=False, padding=False, truncation=False, verbose=False, return_attention_mask=False
    )
    return [list(ids) for ids in out["input_ids"]]


def per_row(values: Tensor, mask: Tensor) -> Tensor:
    """Sums (b,) of ``values`` (n,), which stand at ``mask`` (b, t)."""
    # Not index_add: on CUDA its order, and so its last bit, changes from run to run.
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values).sum(dim=1)

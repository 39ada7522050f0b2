"""Answers of an encoder-decoder (T5, BART, Marian): the encoder reads a source, the decoder writes its target.

Columns, losses and metrics are those of a prompt and its completion; tokens and batches are not.
Shapes: b row, s token of a source, t token of a target, v vocabulary, n supervised token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any, Self

from pydantic import Field
from torch import Tensor

from lora.core.configs import is_encoder_decoder
from lora.data.columns import Claim, Table
from lora.data.problems import Problems
from lora.data.rows import named
from lora.errors import ModelError
from lora.tasks.base import Encoded, ExamplePart, NoneLeft, Options, Row, Task, resized
from lora.tasks.causal import CausalTask
from lora.tasks.sequence import REMEDY, cut_note, pad, padded_ids, tokenise
from lora.tasks.tokens import IGNORED, NO_END

WORDS = 300  # of a running text that are read


class Prefixed(Options):
    """What the task can be told with ``data.options``."""

    prefix: str = Field(default="", description="text before every source, as T5 knows it: 'summarize: '")


class Seq2SeqTask(CausalTask):
    """Writing a target for a source.

    Arguments:
        prompt, completion, context: columns as of `CausalTask`; the prompt, with its context, is the source.
        options: see `Prefixed`.
    """

    name = "seq2seq"
    roles = ("prompt", "context", "completion")
    options = Prefixed
    auto_class = "AutoModelForSeq2SeqLM"
    next_token = False  # of the decoder it is, but behind an encoder: no packed rows
    running_kind = "second halves"
    running_note = f"The decoder is given the second half of each text (its first {WORDS} words) for the first."

    def __init__(self, prompt: str, completion: str, context: str | None = None, **options: Any) -> None:
        super().__init__(prompt=prompt, completion=completion, context=context)
        self.settings = Prefixed.make(options)

    @classmethod
    def suits(cls, base: Any) -> bool:
        return is_encoder_decoder(base)

    @classmethod
    def for_texts(cls, base: Any, messages: bool) -> Task | None:
        return cls(prompt="prompt", completion="completion") if cls.suits(base) else None  # it knows no messages

    @classmethod
    def for_running_text(cls, base: Any, column: str = "text") -> Task | None:
        return cls(prompt="prompt", completion="completion") if cls.suits(base) else None

    def running_rows(self, rows: Iterable[Row], column: str = "text") -> Iterator[Row]:
        """With the first half of each text and the second: what it was trained to write differs between families, but
        any of them can be asked for that. A lone word is written for itself."""
        for row in rows:
            text, changed = row.get(column), copy.copy(row)  # a copy still knows its place
            if isinstance(text, str):
                words = text.split()[:WORDS]
                half = len(words) // 2
                changed["prompt"], changed["completion"] = " ".join(words[:half] or words), " ".join(words[half:])
            else:
                changed["prompt"] = changed["completion"] = text  # encoding says what is wrong with it
            yield changed

    @classmethod
    def recognise(cls, table: Table, asked: bool) -> Claim | None:
        claim = super().recognise(table, asked)
        if claim is None or "text" not in claim.roles:
            return claim
        what = (
            f"text is column {claim.roles['text']!r}, but an encoder-decoder learns what to write for it: name that "
            "with data.completion_column (--data.completion-column), and the text with data.prompt_column"
        )
        return Claim(claim.sign, problem=table.error(what))

    def with_tokenizer(self, tokenizer: Any) -> Self:
        return self  # what is written never stands behind its source, so nothing is glued to it

    def state(self) -> dict[str, Any]:
        columns = {"prompt": self.prompt, "completion": self.completion, "context": self.context}
        return {"task": self.name, **columns, **self.settings.model_dump()}

    def encode(self, rows: list[Row], tokenizer: Any, max_length: int, supervised: bool = True) -> Encoded:
        """Sources with whatever the tokenizer puts around a text, cut on the right; targets as its ``text_target``
        with an end token behind, never cut: rows whose target is longer than ``max_length`` are left out and counted.

        Examples hold ``input_ids`` (s,), ``row`` (index in ``rows``) and, with ``supervised``, ``labels`` (t,). Their
        length is s + t. Raises DataError: rows at fault, or no row left.
        """
        texts, answers = self._texts(rows, supervised)
        sources, over = tokenise(tokenizer, [[self.settings.prefix + text] for text in texts], max_length)
        targets = _targets(tokenizer, answers)
        problems, examples = Problems(rows), list[dict[str, Any]]()
        for index, source in enumerate(sources):
            example = {"input_ids": source["input_ids"], "row": index}
            if not source["input_ids"]:
                problems.add("the text gives no token", index)
            elif not supervised:
                examples.append(example)
            elif len(targets[index]) <= max_length:
                examples.append(example | {"labels": targets[index]})
        problems.raise_if_any(REMEDY)
        notes, dropped = [], len(rows) - len(examples)
        cut = sum(example["row"] in over for example in examples)
        if dropped:
            then = "with the target alone and {was} left out: an answer is never cut"
            notes.append(cut_note(dropped, len(rows), max_length, then))
        if not examples:
            raise NoneLeft(f"{named(rows)}{notes[0]} None is left; raise data.max_length", notes, dropped)
        if cut:
            notes.append(cut_note(cut, len(rows), max_length, "and lost the end of their sources"))
        if supervised and tokenizer.eos_token_id is None:
            notes.append(NO_END)
        counts = [len(example.get("labels", ())) for example in examples]
        lengths = [len(example["input_ids"]) + count for example, count in zip(examples, counts, strict=True)]
        kept = [answers[example["row"]] for example in examples] if supervised else []
        return Encoded(examples, lengths, counts, cut + dropped, notes, kept)

    @classmethod
    def made_up(cls, labels: int = 2, token: int = 1) -> tuple[Task, dict[str, Any]]:
        return cls("prompt", "completion"), {"input_ids": [token, token], "labels": [token, token], "row": 0}

    def size(self, example: dict[str, Any]) -> tuple[int, int, int]:
        source, target = len(example["input_ids"]), len(example["labels"])
        return source + target, target, max(source, target)

    def of_length(self, example: dict[str, Any], length: int) -> dict[str, Any]:
        """The longer of source and target has ``length`` tokens, and the other its share of that."""
        _, _, longest = self.size(example)
        made = {key: max(1, round(len(example[key]) * length / longest)) for key in ("input_ids", "labels")}
        return {**example, **{key: resized(example[key], tokens) for key, tokens in made.items()}}

    def parts(self, example: dict[str, Any]) -> list[ExamplePart]:
        source, target = example["input_ids"], example.get("labels")
        return [("source", source, None), ("target", target, target)] if target else [("text", source, None)]

    def collate(
        self, examples: list[dict[str, Any]], pad_token_id: int, padding_side: str = "right"
    ) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask`` (b, s) and, where there are any, ``labels`` (b, t): long."""
        batch = padded_ids([example["input_ids"] for example in examples], pad_token_id, padding_side)
        if "labels" in examples[0]:
            batch["labels"] = pad([example["labels"] for example in examples], IGNORED, "right")
        return batch

    def for_base(self, batch: dict[str, Tensor], base: Any) -> dict[str, Tensor]:
        """With ``decoder_input_ids`` (b, t): the labels shifted right, as this model does it (families differ)."""
        if "labels" not in batch:
            return batch
        shift = getattr(base, "prepare_decoder_input_ids_from_labels", None)
        if shift is None:
            raise ModelError(
                f"the task {self.name} needs a model loaded with {self.auto_class}, and this one is a "
                f"{type(base).__name__}"
            )
        return {**batch, "decoder_input_ids": shift(batch["labels"])}

    def asked(self, example: dict[str, Any]) -> list[tuple[dict[str, Any], list[int]]]:
        return [({key: example[key] for key in example if key != "labels"}, example["labels"])]

    @staticmethod
    def _supervised(outputs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, v) in their own dtype, labels (n,), and which positions they come from (b, t)."""
        mask = batch["labels"] != IGNORED  # the decoder's input is shifted already
        return outputs.logits[mask], batch["labels"][mask], mask


def _targets(tokenizer: Any, answers: list[str]) -> list[list[int]]:
    """Token ids of ``answers``, an end token behind each whether or not the tokenizer puts one there."""
    if not answers:
        return []
    end = tokenizer.eos_token_id
    ids = tokenizer(text_target=["a", *answers], padding=False, truncation=False, verbose=False)["input_ids"]
    probe, *targets = [list(row) for row in ids]
    if end is None or end in probe:  # perhaps before a language's code
        return targets
    return [row if row[-1:] == [end] else [*row, end] for row in targets]

"""Completions of prompts: batched, greedy unless asked otherwise; what ends them, and the room that they leave."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora.config import EVAL_BATCH_SIZE, MAX_NEW_TOKENS, SamplingConfig
from lora.core.configs import is_encoder_decoder
from lora.data.batches import in_order
from lora.data.conversations import holds_messages, to_answer
from lora.errors import ConfigError, ModelError
from lora.evaluation.decoding import decode
from lora.model.base import MAX_LENGTH, longest_row, pad_token_id
from lora.tasks import Encoded, Row, Task
from lora.tasks.inputs import length_for
from lora.tasks.templated import MessagesInput

if TYPE_CHECKING:
    from lora.model.lora import LoRA


@dataclass(frozen=True)
class Completion:
    """What a model wrote.

    Attributes:
        text: without prompt and special tokens.
        tokens: its number of tokens, the end token not counted.
        stopped: whether it ended with an end token, and not for want of room.
    """

    text: str
    tokens: int
    stopped: bool


def complete(
    model: LoRA,
    task: Task,
    encoded: Encoded,
    adapter: str,
    tokenizer: Any,
    *,
    batch_size: int = EVAL_BATCH_SIZE,
    max_new_tokens: int = MAX_NEW_TOKENS,
    **options: Any,
) -> list[Completion]:
    """What the model writes for each prompt, in the order of ``encoded``.

    Args:
        encoded: prompts, tokenised without labels.
        max_new_tokens: fewer where the model has no more positions behind the longest prompt of a batch.
        options: of transformers' ``generate``, e.g. ``do_sample=True, temperature=0.7``. Default: greedy.
    """
    pad, ends = pad_token_id(tokenizer, model.base), ends_of(model, tokenizer, task)
    sampling = SamplingConfig(max_new_tokens=max_new_tokens)
    completions: list[Completion | None] = [None] * len(encoded)
    for indices in in_order(encoded.lengths, batch_size):
        prompts = [encoded.examples[i]["input_ids"] for i in indices]
        rows = len(indices)
        found = decode(
            model, prompts, [adapter] * rows, [ends] * rows, sampling, [0] * rows, pad_token_id=pad, **options
        )
        for index, its in zip(indices, found, strict=True):
            text = tokenizer.decode(its.ids, skip_special_tokens=True)
            completions[index] = Completion(text, len(its.ids), its.stop == "end")
    return [completion for completion in completions if completion is not None]


def ends_of(model: LoRA, tokenizer: Any, task: Task | None) -> frozenset[int]:
    """Ids that end an answer: the model's own, the tokenizer's, which training puts behind answers, and the task's."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = [
        *(own if isinstance(own, (list, tuple)) else [own]),
        tokenizer.eos_token_id,
        *(task.ends() if task else ()),
    ]
    return frozenset(int(token) for token in found if token is not None)


def until(ids: Sequence[int], ends: Collection[int]) -> Sequence[int]:
    """``ids`` up to the first of ``ends``."""
    return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)


def prompt_length(
    model: LoRA, names: Sequence[str], tokenizer: Any, max_length: int | None, max_new_tokens: int
) -> int:
    """Tokens kept of a prompt: so many that ``max_new_tokens`` fit behind it; of the source of an encoder-decoder,
    behind which nothing is written, as many as the adapters ``names`` were trained with.

    Raises ConfigError, ModelError where the model has too few positions.
    """
    if is_encoder_decoder(model.base.config):
        return length_for(model, names, tokenizer, max_length)
    wanted = (MAX_LENGTH if max_length is None else max_length) + max_new_tokens
    try:
        return longest_row(tokenizer, model.base, wanted) - max_new_tokens
    except ModelError:
        room = longest_row(tokenizer, model.base) - max_new_tokens
    if max_length is not None or room < 2:
        raise ConfigError(
            f"a prompt of {max_length or 2} tokens and {max_new_tokens} new ones are more than the model has "
            "positions for; lower max_new_tokens" + ("" if max_length is None else " or max_length")
        )
    return room


def asked_with(task: Task, row: Row) -> dict[str, Any]:
    """What an answer to ``row`` is told beside: a ``prompt``, or ``messages`` without the answer that the data have."""
    given = task.inputs()[0]
    cell: Any = row[given.column]
    if not isinstance(given, MessagesInput) or not holds_messages(cell):
        return {"prompt": cell}
    return {"messages": to_answer(json.loads(cell) if isinstance(cell, str) else cell)}

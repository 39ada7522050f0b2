"""Completions of prompts: batched, greedy unless asked otherwise.

A decoder goes on behind its prompt, so prompts are padded on the left; an encoder-decoder writes a text of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from lora.config import EVAL_BATCH_SIZE, MAX_NEW_TOKENS
from lora.core.configs import is_encoder_decoder
from lora.data.batches import in_order
from lora.errors import ConfigError, ModelError
from lora.model.base import MAX_LENGTH, longest_row, pad_token_id, positions_of
from lora.tasks import Encoded, Task
from lora.tasks.inference import collated, evaluating, to_device

if TYPE_CHECKING:
    from lora.model.lora import LoRA


# A checkpoint's own generation settings may carry others; in greedy search these mean nothing but a warning.
GREEDY = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
ONE_BEAM = {"num_beams": 1, "early_stopping": False, "length_penalty": 1.0}


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


@torch.no_grad()
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
        options: of ``generate``, e.g. ``do_sample=True, temperature=0.7``. Default: greedy.
    """
    pad = pad_token_id(tokenizer, model.base)
    ends = sorted({*end_tokens(model, tokenizer), *task.ends()})
    if not options.get("do_sample"):
        options = {**GREEDY, **({} if "num_beams" in options else ONE_BEAM), **options}
    apart = is_encoder_decoder(model.base.config)  # the prompt is the encoder's, and not repeated in the output
    positions = positions_of(model.base)
    completions: list[Completion | None] = [None] * len(encoded)
    with evaluating(model):
        for indices in in_order(encoded.lengths, batch_size):
            examples = [encoded.examples[i] for i in indices]
            batch = to_device(collated(model, task, examples, pad, "right" if apart else "left"), model)
            before = 1 if apart else batch["input_ids"].shape[1]  # the decoder begins with a token of its own
            out = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], adapters=[adapter] * len(indices),
                max_new_tokens=min(max_new_tokens, positions - before) if positions else max_new_tokens,
                pad_token_id=pad, eos_token_id=ends or None, **options,
            )  # fmt: skip
            if len(out) != len(indices):
                raise ConfigError("one completion per prompt is given back; leave num_return_sequences out")
            for index, ids in zip(indices, out[:, before:].tolist(), strict=True):
                written = until(ids, ends)
                text = tokenizer.decode(written, skip_special_tokens=True)
                completions[index] = Completion(text, len(written), len(written) < len(ids))
    return [completion for completion in completions if completion is not None]


def end_tokens(model: LoRA, tokenizer: Any) -> list[int]:
    """Ids that end a completion: the model's own, and the tokenizer's, which training puts behind every answer."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = list(own) if isinstance(own, (list, tuple)) else [own]
    return sorted({int(token) for token in [*found, tokenizer.eos_token_id] if token is not None})


def until(ids: Sequence[int], ends: list[int]) -> Sequence[int]:
    """``ids`` up to the first of ``ends``."""
    # Cut, not filtered: behind the end stands padding, and the padding token may be an ordinary one.
    return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)


def prompt_length(model: LoRA, tokenizer: Any, max_length: int | None, max_new_tokens: int) -> int:
    """Tokens kept of a prompt, so that ``max_new_tokens`` fit behind it.

    Raises ConfigError where the model has too few positions for both.
    """
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

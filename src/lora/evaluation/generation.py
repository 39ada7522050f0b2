"""Completions of prompts: batched, padded on the left, greedy unless asked otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lora.config import EVAL_BATCH_SIZE, MAX_NEW_TOKENS
from lora.data.batches import in_order
from lora.errors import ConfigError, ModelError
from lora.model.base import MAX_LENGTH, longest_row, pad_token_id
from lora.tasks import Encoded, Task
from lora.tasks.inference import evaluating, to_device

if TYPE_CHECKING:
    from lora.model.lora import LoRA


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
) -> list[str]:
    """What the model writes after each prompt, in the order of ``encoded``; the prompt and special tokens left out.

    Args:
        encoded: prompts, tokenised without labels.
        options: of ``generate``, e.g. ``do_sample=True, temperature=0.7``. Default: greedy.
    """
    pad = pad_token_id(tokenizer, model.base)
    ends = sorted({*end_tokens(model, tokenizer), *task.ends()})
    if not options.get("do_sample"):
        # A checkpoint's own generation settings may carry these; in greedy search they mean nothing but a warning.
        options = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **options}
    completions = [""] * len(encoded)
    with evaluating(model):
        for indices in in_order(encoded.lengths, batch_size):
            batch = to_device(task.collate([encoded.examples[i] for i in indices], pad, "left"), model)
            out = model.generate(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], adapters=[adapter] * len(indices),
                max_new_tokens=max_new_tokens, pad_token_id=pad, eos_token_id=ends or None, **options,
            )  # fmt: skip
            if len(out) != len(indices):
                raise ConfigError("one completion per prompt is given back; leave num_return_sequences out")
            for index, ids in zip(indices, out[:, batch["input_ids"].shape[1] :].tolist(), strict=True):
                completions[index] = tokenizer.decode(_until(ids, ends), skip_special_tokens=True)
    return completions


def end_tokens(model: LoRA, tokenizer: Any) -> list[int]:
    """Ids that end a completion: the model's own, and the tokenizer's, which training puts behind every answer."""
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = list(own) if isinstance(own, (list, tuple)) else [own]
    return sorted({int(token) for token in [*found, tokenizer.eos_token_id] if token is not None})


def _until(ids: Sequence[int], ends: list[int]) -> Sequence[int]:
    # Cut, not filtered: behind the end stands padding, and the padding token may be an ordinary one.
    return next((ids[:place] for place, token in enumerate(ids) if token in ends), ids)


def prompt_length(model: LoRA, tokenizer: Any, max_length: int | None, max_new_tokens: int) -> int:
    """Tokens kept of a prompt, so that ``max_new_tokens`` fit behind it.

    Raises ConfigError where the model has too few positions for both.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
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

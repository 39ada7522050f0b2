"""New tokens: into the tokenizer, and where its ids go beyond the base's embedding, rows for them in the base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lora.errors import ConfigError, ModelError
from lora.model.facade import Facade


def add_tokens(base: nn.Module, tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Add special ``tokens`` to ``tokenizer``, and rows for them to ``base`` where it has none; returns their ids.

    Those are for an adapter's ``token_rows``. A token that is known keeps its id. Done before adapters are put on the
    base: afterwards nothing writes to it.

    >>> ids = add_tokens(base, tokenizer, ["<|im_start|>", "<|im_end|>"])
    >>> model = LoRA(base, token_rows=ids)

    Raises:
        ConfigError: adapters sit on ``base`` already.
        ModelError: it cannot be made larger.
    """
    if isinstance(tokens, str):
        raise ConfigError(f"tokens: a list is needed, as in [{tokens!r}]")
    if not tokens:
        return []
    if isinstance(base, Facade):
        raise ConfigError("tokens are added before adapters are put on a base: add_tokens(base, ...), then LoRA(base)")
    # The second argument is called otherwise in some versions; it keeps the special tokens there are.
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)}, False)
    ids = sorted(int(number) for number in tokenizer.convert_tokens_to_ids(list(tokens)))
    enlarge(base, ids[-1] + 1)
    return ids


@torch.no_grad()
def enlarge(base: nn.Module, size: int) -> None:
    """Give ``base`` a vocabulary of ``size`` tokens, if it has fewer; a padded one that has room is left as it is.

    A new row is the mean of the old ones: always the same, and of no consequence where an adapter trains its own.
    """
    if not size:
        return
    kind, model = type(base).__name__, base
    embedding: Any = model.get_input_embeddings() if hasattr(model, "get_input_embeddings") else None  # type: ignore[operator]
    if not isinstance(embedding, nn.Embedding):
        raise ModelError(f"{kind}: it has no embedding of tokens that could be made larger")
    old = embedding.weight.shape[0]
    if size <= old:
        return
    before = {name: _is_loaded(parameter) for name, parameter in model.named_parameters()}
    try:
        with torch.random.fork_rng(devices=[]):  # the rows that it draws are written over
            model.resize_token_embeddings(size, mean_resizing=False)  # type: ignore[operator]
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise ModelError(f"{kind}: its vocabulary cannot be made larger ({error})") from None
    head: Any = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None  # type: ignore[operator]
    layers = [model.get_input_embeddings(), *([] if head is None else [head])]  # type: ignore[operator]
    for layer in layers:
        for tensor in (layer.weight, getattr(layer, "bias", None)):
            if tensor is not None and len(tensor) == size:
                tensor[old:] = tensor[:old].mean(0, dtype=torch.float32).to(tensor.dtype)
    for name, parameter in model.named_parameters():
        if before.get(name):  # else it would be taken for one that the checkpoint does not have
            parameter._is_hf_initialized = True  # type: ignore[attr-defined]


def _is_loaded(parameter: nn.Parameter) -> bool:
    return bool(getattr(parameter, "_is_hf_initialized", False))

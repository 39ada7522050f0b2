"""New tokens: into the tokenizer, and where its ids go beyond the base's embedding, rows for them in the base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora.config import AdapterConfig
from lora.errors import ConfigError, ModelError
from lora.model.base import load_tokenizer
from lora.model.facade import Facade


def tokenizer_for(
    name: str, new_tokens: Sequence[str] = (), start: Path | None = None, trust_remote_code: bool = False
) -> Any:
    """The tokenizer that a run of base ``name`` uses: with its ``new_tokens``, or of the adapter folder ``start``.

    Raises:
        ConfigError: the adapter that is gone on with does not have these tokens.
        ModelError: there is no tokenizer.
    """
    tokenizer = load_tokenizer(name, trust_remote_code, start)
    if start is None:
        extend(tokenizer, new_tokens)
    elif unknown := [token for token in new_tokens if token not in tokenizer.get_vocab()]:
        raise ConfigError(
            f"new_tokens: {start}, which training starts from, has no rows for {', '.join(unknown)}; leave them out, "
            "or begin with a fresh adapter"
        )
    return tokenizer


def extend(tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Add special ``tokens`` to ``tokenizer`` where it does not know them; returns their ids, ascending.

    One that is known stays what it is: a word of the vocabulary would be no word any more.
    """
    known = tokenizer.get_vocab()
    unknown = [token for token in tokens if token not in known]
    if unknown:
        # The second argument is called otherwise in some versions; it keeps the special tokens there are.
        tokenizer.add_special_tokens({"additional_special_tokens": unknown}, False)
    return sorted({int(number) for number in tokenizer.convert_tokens_to_ids(list(tokens))})


def train_rows(adapter: AdapterConfig, ids: Sequence[int]) -> None:
    """Have ``adapter`` train the rows of new tokens too. Raises ConfigError where its rows are given as a table."""
    if ids and isinstance(adapter.token_rows, dict):
        raise ConfigError("adapter.token_rows: beside new_tokens a list of ids is needed, not a table of modules")
    if ids:
        adapter.token_rows = sorted({*adapter.token_rows, *ids})


def add_tokens(base: nn.Module, tokenizer: Any, tokens: Sequence[str]) -> list[int]:
    """Add special ``tokens`` to ``tokenizer``, and rows for them to ``base`` where it has none; returns their ids.

    Those are for an adapter's ``token_rows``. A token that is known keeps its id, and stays what it is. Done before
    adapters are put on the base: afterwards nothing writes to it.

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
    ids = extend(tokenizer, tokens)
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

"""Loading a base model and its tokenizer: a folder or a hub id, in the type that suits the machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora.core.configs import text_config
from lora.errors import ModelError
from lora.hub import offline_unless_reachable

MAX_LENGTH = 1024  # tokens of a row unless said otherwise: longer rows are rare and cost much


def load_tokenizer(name: str, trust_remote_code: bool = False) -> Any:
    """The tokenizer of base model ``name``; raises ModelError saying what is missing."""
    from transformers import AutoTokenizer

    name = check_folder(name)
    with loading(name, "its tokenizer cannot be loaded"):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def load_base_config(name: str, trust_remote_code: bool = False) -> Any:
    """transformers' configuration of base model ``name``, without its weights; raises ModelError."""
    from transformers import AutoConfig

    name = check_folder(name)
    with loading(name, "its config.json cannot be read"):
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)


def load_base(
    name: str,
    auto_class: str,
    dtype: torch.dtype,
    options: dict[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """Base model ``name`` through transformers' ``auto_class``.

    Raises:
        ModelError: nothing there, not a model, or one that does not fit the task.
    """
    import transformers

    name = check_folder(name)
    with loading(name, f"cannot be loaded as {auto_class}"):
        return getattr(transformers, auto_class).from_pretrained(
            name, dtype=dtype, trust_remote_code=trust_remote_code, **(options or {})
        )


def shape_of_base(
    name: str, config: Any, auto_class: str, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> nn.Module:
    """Base model ``name`` of ``config`` on torch's meta device: shapes alone, no weight is read or made.

    Raises:
        ModelError: transformers has no such model for this configuration.
    """
    import transformers

    options = {"trust_remote_code": True} if trust_remote_code else {}
    with loading(name, f"cannot be made as {auto_class}"), torch.device("meta"):
        model: nn.Module = getattr(transformers, auto_class).from_config(
            config, **({} if dtype is None else {"dtype": dtype}), **options
        )
    return model


@contextmanager
def loading(name: str, failure: str) -> Iterator[None]:
    """Turn whatever transformers raises into ModelError; a hub that does not answer is not waited for."""
    with offline_unless_reachable(name) as reachable:
        try:
            yield
        except Exception as error:
            if not reachable and "cached" in str(error):  # not: it is here and does not fit
                raise ModelError(
                    f"{name}: there is no such folder here, the hub cannot be reached, and what was loaded from it "
                    "before does not hold this; check the name and the network, or give a local folder"
                ) from None
            place = "" if Path(name).is_dir() else "there is no such folder here, and as a hub id "
            raise ModelError(f"{name}: {place}{failure} ({short(error)})") from None


def pad_token_id(tokenizer: Any, model: nn.Module | None = None) -> int:
    """The id to pad with. Padding is masked by length, so any id will do.

    The model's config learns it where it has none: decoders with a classification head look for the last token that is
    not padding.
    """
    found = tokenizer.pad_token_id
    if found is None:
        found = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0
    config = getattr(model, "config", None)
    if config is not None and getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = found
    return int(found)


def longest_row(tokenizer: Any, model: nn.Module, wanted: int | None = None) -> int:
    """Tokens kept of a row: what the model and tokenizer take, at most `MAX_LENGTH` unless ``wanted`` says otherwise.

    Raises:
        ModelError: more is wanted than the model has positions for.
    """
    positions = positions_of(model)
    # Tokenizers without a limit give huge values.
    limits = [limit for limit in (positions, getattr(tokenizer, "model_max_length", None)) if limit and limit < 10**7]
    if wanted is not None:
        if positions and wanted > positions:
            raise ModelError(f"max_length {wanted} is above the {positions} positions that the base model has")
        return wanted
    return min([*limits, MAX_LENGTH])


def positions_of(model: nn.Module) -> int | None:
    """Positions that a row can have; None: there is no limit, as with relative positions (T5, BLOOM)."""
    text = text_config(getattr(model, "config", None))
    positions = getattr(text, "max_position_embeddings", None) or getattr(text, "n_positions", None)
    if positions and getattr(text, "model_type", "") in ("roberta", "xlm-roberta", "camembert", "longformer"):
        positions -= 2  # these families count positions from the padding id + 1
    return positions if positions and positions > 0 else None  # -1 is XLNet's way to say that it has no limit


def check_folder(name: str) -> str:
    """The name to load by: a folder's path, or a hub id as it is.

    A path that does not exist must not be tried as a hub id: the message would be about a network.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            adapter = (
                " (it is an adapter folder: name its base model here)"
                if (path / "adapter_config.json").is_file()
                else ""
            )
            raise ModelError(f"{name}: no config.json in this folder, so it holds no base model{adapter}")
    elif path.is_file() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: there is no such folder; give a folder with config.json and weights, or a hub id")
    return str(path) if path.is_dir() else name


def short(error: Exception) -> str:
    """The first line of an error of transformers, which can run over a screen."""
    if "trust_remote_code" in str(error):  # its last line, and a first that does not say what to do
        return "it brings code of its own; read it, then say --trust-remote-code (trust_remote_code=True)"
    if "Unrecognized configuration class" in str(error):
        kind = str(error).partition("class ")[2].partition(" for")[0].split(".")[-1].rstrip("'>")
        return f"transformers has none of that kind for a model with a {kind}; choose a base made for this task"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]

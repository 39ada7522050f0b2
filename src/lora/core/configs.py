"""What a transformers configuration says of the part of a model that reads text."""

from __future__ import annotations

from typing import Any


def text_config(config: Any) -> Any:
    """The configuration of the text part where a model has several parts, else ``config`` itself, which may be None."""
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def is_encoder_decoder(config: Any) -> bool:
    """Whether a model so configured reads by an encoder and writes by a decoder (T5, BART); of None it is not known."""
    return bool(getattr(config, "is_encoder_decoder", False))

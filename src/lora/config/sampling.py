"""How a model writes."""

from __future__ import annotations

from pydantic import Field

from lora.config.defaults import MAX_NEW_TOKENS
from lora.settings import Settings


class SamplingConfig(Settings):
    """How text is written by a model: what the next token is drawn from."""

    aliases = {"max_tokens": "max_new_tokens"}

    # 0: the same prompt gives the same text, and what is compared differs by the adapter and not by chance.
    temperature: float = Field(default=0.0, ge=0, description="spread of what is drawn; 0: always the likeliest token")
    top_p: float = Field(default=1.0, gt=0, le=1, description="only the likeliest tokens that together have this share")
    top_k: int = Field(default=0, ge=0, description="only this many of the likeliest tokens; 0: all")
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="only tokens of at least this share of the likeliest one's probability"
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="above 1: tokens of the prompt and the answer so far become less likely"
    )
    seed: int = Field(default=0, ge=0, description="of what is drawn: the same seed gives the same text")
    max_new_tokens: int = Field(default=MAX_NEW_TOKENS, ge=1, description="longest text written, in tokens")

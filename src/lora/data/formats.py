"""The chat format that an adapter is trained in: found once, kept with the adapter, and held to ever after.

Kept are the template's text, the token ids that it makes of a conversation that never changes (golden ones), and the
tokens that end an answer. Who asks the adapter in another format asks it in one that it never saw.
"""

from __future__ import annotations

from typing import Any

from lora.data.rendering import Renderer
from lora.data.templates import DATE, find_template
from lora.errors import DataError

Format = dict[str, Any]  # {"template": str, "golden": [int], "ends": [int]}: it goes into a JSON file


def settle(
    kept: Format | None, wanted: str | None, options: dict[str, Any], tokenizer: Any
) -> tuple[Format, Renderer, list[str]]:
    """The format in force with ``tokenizer``, what renders it, and a sentence about where it comes from.

    Args:
        kept: of an adapter that is trained already.
        wanted, options: template and its variables, of one that is not.

    Raises:
        ConfigError: there is no such template, or the tokenizer lacks its tokens.
        DataError: the template takes no plain conversation, or makes other tokens of it than in training.
    """
    if kept is None:
        text, source = find_template(wanted, tokenizer)
        notes = [f"Chat template: {source}."]
    else:
        text, notes = kept["template"], []
    renderer = Renderer(tokenizer, text, options)
    try:
        golden = renderer.golden()
    except ValueError as error:
        raise DataError(f"the chat template does not take a plain conversation: its messages {error}") from None
    if kept is not None and golden != kept["golden"]:
        raise DataError(
            "this tokenizer makes other token ids of a conversation than the one that the adapter was trained with, so "
            "the model would be asked in a format that it never saw; use the base model's own tokenizer, as it was in "
            "training"
        )
    if renderer.template != text and kept is None:
        notes.append(f"The template writes today's date: for the adapter it is {DATE:%d %B %Y}, whatever day it is.")
    return {"template": renderer.template, "golden": golden, "ends": sorted(renderer.ends)}, renderer, notes

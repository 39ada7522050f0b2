"""How many bytes of text the supervised tokens stand for, where that is known exactly."""

from __future__ import annotations

from typing import Any

from lora.tasks import Encoded
from lora.tasks.tokens import IGNORED


def byte_sizes(encoded: Encoded, tokenizer: Any) -> list[int] | None:
    """UTF-8 bytes of the supervised tokens of each example; None where they cannot be counted exactly.

    They can with a tokenizer of bytes: each character of one of its tokens is a byte, also where a text was cut inside
    a character. Others lose or add something on the way (case, white space, accents), so that a byte count would
    be of another text than the data's. Special tokens, such as the end of an answer, are predicted and have no bytes.
    """
    inner = getattr(tokenizer, "backend_tokenizer", None)
    if inner is None or not _of_bytes(inner) or "labels" not in encoded.examples[0]:
        return None
    added, special = tokenizer.added_tokens_decoder, set(tokenizer.all_special_ids)
    known: dict[int, int] = {}

    def size(token: int) -> int:
        if token not in known:
            if token in special or (token in added and added[token].special):
                known[token] = 0
            elif token in added:
                known[token] = len(added[token].content.encode())
            else:
                known[token] = len(tokenizer.convert_ids_to_tokens(token))
        return known[token]

    return [sum(size(token) for token in example["labels"] if token != IGNORED) for example in encoded.examples]


def _of_bytes(inner: Any) -> bool:
    """Whether tokens are written with a character for each byte, and nothing was changed before."""
    import json

    state = json.loads(inner.to_str())
    decoder = state.get("decoder") or {}
    steps = decoder.get("decoders", [decoder])
    return state.get("normalizer") is None and any(step.get("type") == "ByteLevel" for step in steps)

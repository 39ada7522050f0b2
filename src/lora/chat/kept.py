"""Keys and values of a conversation, kept from turn to turn: what a prompt begins with is not computed again."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from torch import nn


class Kept:
    """The cache of one conversation with one adapter: keys and values are an adapter's own.

    Arguments:
        base: the base model. One that does not take transformers' cache keeps nothing.
    """

    def __init__(self, base: nn.Module) -> None:
        self._base = base
        self._config: Any = getattr(base, "config", None)
        self._name: str | None = None
        self._ids: list[int] = []  # tokens whose keys and values are in the cache
        self._cache: Any = None

    def begin(self, name: str, prompt: Sequence[int]) -> tuple[Any, int]:
        """A cache that holds a beginning of ``prompt``, to be filled further, and how long that is."""
        if not self._taken():
            return None, 0
        common = 0
        if name == self._name and self._cache is not None:
            # The last token is always computed: the answer is read from it.
            most = min(len(self._ids), len(prompt) - 1)
            common = next((i for i in range(most) if self._ids[i] != prompt[i]), most)
            if common < len(self._ids) and not self._cropped(len(self._ids) - common):
                common = 0
        if not common:
            from transformers import DynamicCache

            self._cache = DynamicCache(config=self._config)
        self._name, self._ids = name, list(prompt[:common])
        return self._cache, common

    def end(self, name: str, ids: Sequence[int]) -> None:
        """The answer is written: ``ids`` are prompt and answer, of which the last token or tokens may not be in."""
        if self._cache is None:
            return
        length = int(self._cache.get_seq_length())
        if length > len(ids):
            self.forget()
        else:
            self._name, self._ids = name, list(ids[:length])

    def forget(self) -> None:
        """Keep nothing."""
        self._name, self._ids, self._cache = None, [], None

    def _cropped(self, count: int) -> bool:
        """Whether the last ``count`` tokens could be taken off the cache."""
        try:
            self._cache.crop(-count)
        except (RuntimeError, ValueError, NotImplementedError, AttributeError):
            # Sliding windows that are full, and recurrent states, have lost what was before.
            self.forget()
            return False
        return True

    def _taken(self) -> bool:
        supported = getattr(self._base, "_supports_default_dynamic_cache", None)
        return (
            "past_key_values" in inspect.signature(self._base.forward).parameters
            and not getattr(self._config, "is_encoder_decoder", False)
            and (supported is None or bool(supported()))
        )

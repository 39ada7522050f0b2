"""Text of an answer, piece by piece while its tokens come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Stream:
    """Tokens to pieces of text, as soon as they are whole characters."""

    def __init__(self, tokenizer: Any, ends: frozenset[int], on_text: Callable[[str], None]) -> None:
        self.tokenizer, self.ends, self.on_text = tokenizer, ends, on_text
        self.ids: list[int] = []
        self._shown = ""

    def put(self, token: int) -> None:
        self.ids.append(token)
        if token not in self.ends:
            text = self._text()
            # Half a character is decoded as U+FFFD, and its other half comes with the next token.
            if not text.endswith("\ufffd"):
                self._show(text)

    def close(self) -> str:
        """The whole text."""
        text = self._text()
        self._show(text)
        return text

    def _text(self) -> str:
        ids = self.ids[:-1] if self.ids and self.ids[-1] in self.ends else self.ids
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        assert isinstance(text, str)
        return text

    def _show(self, text: str) -> None:
        # A tokenizer that tidies up spaces may take back what it gave: what was shown stays.
        if text.startswith(self._shown) and text != self._shown:
            self.on_text(text[len(self._shown) :])
            self._shown = text

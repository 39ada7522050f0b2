"""Requests that come adapter by adapter and are computed once, for all adapters."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from lora.tasks.tokens import Frame

if TYPE_CHECKING:
    from lora.model.lora import LoRA


class Progress(Protocol):
    """Who is told how far it is."""

    def expect(self, count: int) -> None:
        """So many requests more are to be computed."""

    def advance(self, count: int) -> None:
        """So many were."""


@dataclass
class Shared:
    """What the adapters' models have in common: the model itself, and what is known of every adapter.

    Attributes:
        adapters: all that are asked, ``"base"`` among them.
        ends: token ids that end a text, by adapter.
        positions: that a row can have.
        progress: told of the requests to be computed, and of those that were, for all adapters.
        known: answers by request and adapter.
    """

    model: LoRA
    tokenizer: Any
    adapters: Sequence[str]
    ends: Mapping[str, Collection[int]]
    pad_token_id: int
    batch_size: int
    positions: int
    progress: Progress | None = None
    known: dict[bytes, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.frame = Frame.of(self.tokenizer)

    def tell(self, count: int) -> None:
        if self.progress:
            self.progress.advance(count)

    def answers(
        self, name: str, requests: Sequence[tuple[Any, ...]], compute: Callable[[list[int]], Mapping[str, list[Any]]]
    ) -> list[Any]:
        """Answers of adapter ``name``, in the order of ``requests``.

        Args:
            requests: what tells them apart; of equal ones each is a request of its own, as of several samples.
            compute: gives, for those at these places, the answers of every adapter.
        """
        seen: Counter[bytes] = Counter()
        keys = []
        for request in requests:
            digest = hashlib.blake2b(repr(request).encode(), digest_size=16).digest()
            keys.append(digest + seen[digest].to_bytes(4, "big"))
            seen[digest] += 1
        missing = [place for place, key in enumerate(keys) if key not in self.known]
        if missing:
            if self.progress:
                self.progress.expect(len(missing))
            found = compute(missing)
            for number, place in enumerate(missing):
                self.known[keys[place]] = {each: its[number] for each, its in found.items()}
        return [self.known[key][name] for key in keys]

"""Which batches go through the base together, and how many adapters that keeps busy.

A pass costs about max(F, c·b) seconds for b tokens: F for launches and for reading the weights, c for the arithmetic.
As long as a pass is below the knee b* = F/c, more tokens in it are nearly free, and so is another adapter's batch;
beyond it nothing is gained. So passes are filled up to the knee and no further: several adapters then take as long as
one after another at the worst. Because no adapter's result depends on its neighbours, what is mixed with what is a
matter of speed alone, and may follow a measurement.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lora.errors import RoutingError, is_out_of_memory
from lora.training.passes import Passes, Share

GAIN = 1.05  # a doubled pass that is not this much faster per token is past the knee
LONGEST = 4.0  # seconds that the calibration may take


@dataclass
class Knee:
    """What the calibration found.

    Attributes:
        tokens: of a pass beyond which nothing is gained, or for which memory does not suffice.
        speeds: (tokens of a pass, tokens per second), as measured.
    """

    tokens: int
    speeds: list[tuple[int, float]]

    def describe(self, adapters: int, tokens: int) -> str:
        """A sentence for the log on what was made of it: so many adapters, and passes of so many ``tokens``."""
        measured = ", ".join(f"{tokens:,} tokens {speed:,.0f}/s" for tokens, speed in self.speeds)
        return f"{adapters} at once, passes of up to {tokens:,} tokens (measured: {measured})."


class Mixer:
    """Fills passes.

    Attributes:
        most_tokens: of a pass; a batch that is larger by itself makes a pass of its own. None: no limit.
        note: what a user should know of how the adapters shared passes.
    """

    def __init__(self, passes: Passes) -> None:
        self.passes = passes
        self.most_tokens: int | None = None
        self.note: str | None = None
        self._apart = False

    def run(self, shares: Sequence[Share]) -> Iterator[list[Share]]:
        """Compute ``shares`` in as few passes as the limit allows; after each pass come those that were in it."""
        groups = self._groups(shares)
        while groups:
            group = groups.pop(0)
            if len(group) == 1 or self._apart:
                for share in group:
                    self.passes.run([share])
                    yield [share]
                continue
            try:
                self.passes.run(group)
            except RoutingError as error:
                # Still all in one loop. Nothing has been added to any gradient, since the backward comes last.
                if len({share.layout for share in group}) > 1:
                    self.passes.keep_apart()
                    self.note = f"Only batches of like width share passes, which is slower: {error}"
                else:  # a base whose rows cannot be told apart (experts, time-major models)
                    self._apart = True
                    self.note = f"Adapters take turns instead of sharing passes: {error}"
                groups = self._groups([share for again in (group, *groups) for share in again])
            else:
                yield group

    def _groups(self, shares: Sequence[Share]) -> list[list[Share]]:
        """Shares of one kind together, in the order they come, up to the limit."""
        open_groups: dict[Any, list[Share]] = {}
        groups: list[list[Share]] = []
        for share in shares:
            kind = self.passes.kind(share)
            group = open_groups.get(kind)
            full = (
                group is not None
                and self.most_tokens is not None
                and sum(s.tokens for s in group) + share.tokens > self.most_tokens
            )
            if group is None or full:
                group = open_groups[kind] = []
                groups.append(group)
            group.append(share)
        return groups


def find_knee(passes: Passes, share: Share, most: int) -> Knee:
    """Time passes of up to ``most`` tokens, made of copies of ``share``; gradients are thrown away."""
    speeds: list[tuple[int, float]] = []
    begun, copies, best = time.perf_counter(), 1, share.tokens
    while True:
        larger = replace(share, indices=share.indices * copies)
        try:
            seconds = min(_timed(passes, larger), _timed(passes, larger))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error) or not speeds:
                raise  # not even one batch fits
            break
        speeds.append((larger.tokens, larger.tokens / seconds))
        if len(speeds) > 1 and speeds[-1][1] < GAIN * speeds[-2][1]:
            break
        best = larger.tokens
        if 2 * larger.tokens > most or time.perf_counter() - begun + 4 * seconds > LONGEST:
            break
        copies *= 2
    share.trainee.begin_step()
    return Knee(best, speeds)


def _timed(passes: Passes, share: Share) -> float:
    begun = time.perf_counter()
    passes.run([share])
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - begun

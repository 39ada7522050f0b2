"""Rows to adapters: which rows of a batch belong to which adapter, worked out once per batch.

Every row of a batch names its adapter. `Routing` sorts the names into groups; a layer computes each group on its own
slice of rows, so that what an adapter gives never depends on its neighbours (a sum over padded ranks would).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora.errors import RoutingError

# Reserved: a row so named gets the base model's output, bit for bit (in mixed batches from groups of 8 on).
BASE = "base"


@dataclass(frozen=True)
class Group:
    """Rows of one adapter. ``start:stop`` are positions after `Routing.sort`."""

    name: str
    start: int
    stop: int


class Routing:
    """The rows of one batch, grouped by adapter.

    Attributes:
        names: adapter of each row, length b; one name for a routing of any size (`uniform`).
        groups: each adapter once, in the order of its first row.
        size: number of rows b, or None for a uniform routing, which fits any batch.
        tokens: tokens per row, where known: layers that see rows and tokens flattened into one axis need it.
    """

    __slots__ = ("_order", "_orders", "_single_rows", "groups", "names", "size", "tokens")

    def __init__(self, names: Sequence[str], tokens: int | None = None) -> None:
        if not names:
            raise RoutingError("a batch needs at least one row, and a name for each")
        self.names = tuple(names)
        self.size: int | None = len(self.names)
        self.tokens = tokens
        self._single_rows: Routing | None = None
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            rows.setdefault(name, []).append(row)
        order = [row for group in rows.values() for row in group]
        # Rows that already lie group by group need no gather: layers take views.
        self._order: list[int] | None = None if order == list(range(len(order))) else order
        self._orders: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}
        groups, start = [], 0
        for name, group in rows.items():
            groups.append(Group(name, start, start + len(group)))
            start += len(group)
        self.groups = tuple(groups)

    @classmethod
    def uniform(cls, name: str) -> Routing:
        """A routing of all rows to one adapter, whatever the size of the batch."""
        routing = cls([name])
        routing.size = None
        return routing

    @property
    def single(self) -> str | None:
        """The adapter of all rows, or None where rows differ."""
        return self.groups[0].name if len(self.groups) == 1 else None

    def fan_out(self, rows: int, dims: int, where: str) -> int:
        """How many consecutive entries of a tensor's first axis make one row of the batch.

        ``rows`` is the tensor's first size, ``dims`` its number of axes. 1 where the axis is the batch; the number of
        tokens where a model has flattened (b, t, i) to (b·t, i). Anything else cannot be attributed: RoutingError.
        """
        size = self.size
        assert size is not None, "a uniform routing is never split"
        if rows == size:
            return 1
        if dims == 2 and self.tokens is not None and rows == size * self.tokens:
            return self.tokens
        raise RoutingError(
            f"{where}: got {rows} rows where the batch names {size} adapters, so its rows cannot be told apart; "
            "run this model with one adapter per batch (`with model.using(name): ...`)"
        )

    def order(self, fan_out: int, device: torch.device) -> tuple[Tensor, Tensor] | None:
        """Permutation that brings groups together and its inverse, both (b·fan_out,); None where none is needed."""
        if self._order is None:
            return None
        key = (fan_out, device)
        if key not in self._orders:
            order = torch.tensor(self._order, device=device)
            if fan_out > 1:
                order = (order[:, None] * fan_out + torch.arange(fan_out, device=device)).flatten()
            inverse = torch.empty_like(order)
            inverse[order] = torch.arange(order.numel(), device=device)
            self._orders[key] = (order, inverse)
        return self._orders[key]

    def split(self, x: Tensor, where: str, ids: bool = False) -> list[Tensor]:
        """The rows of ``x`` (b[·t], ...) of each group, in the order of ``groups``. Views where rows lie together.

        ``ids`` says that ``x`` holds token ids, which have no feature axis: (b, t) is rows and tokens.
        """
        fan_out = self.fan_out(x.shape[0], x.dim() + ids, where)
        order = self.order(fan_out, x.device)
        if order is not None:
            x = x.index_select(0, order[0])
        return [x[group.start * fan_out : group.stop * fan_out] for group in self.groups]

    def join(self, parts: list[Tensor]) -> Tensor:
        """Undo `split`: one tensor with the rows in the batch's order."""
        joined = torch.cat(parts)
        fan_out = joined.shape[0] // (self.size or 1)
        order = self.order(fan_out, joined.device)
        return joined if order is None else joined.index_select(0, order[1])

    def repeated(self, times: int) -> Routing:
        """The routing of a batch in which each row stands ``times`` times in succession (beam search).

        A tensor with as many rows as before is taken to be from before: encoders run before beams are made.
        """
        if times == 1 or self.size is None:
            return self
        routing = Routing([name for name in self.names for _ in range(times)], self.tokens)
        routing._single_rows = self
        return routing

    def fitting(self, rows: int) -> Routing:
        """This routing, or the one before `repeated` where ``rows`` is that one's size."""
        before = self._single_rows
        return before if before is not None and rows == before.size else self

    def __repr__(self) -> str:
        inside = ", ".join(f"{group.name}×{group.stop - group.start}" for group in self.groups)
        return f"Routing({'all rows: ' + self.names[0] if self.size is None else inside})"


class Router(threading.local):
    """Where layers look up the routing of the pass in hand; one per model, its current routing one per thread.

    Outside any explicit routing a model with one adapter uses that one; with several, a name is required: there is no
    hidden active adapter.
    """

    def __init__(self, known: dict[str, Any]) -> None:
        self.known = known  # shared between threads: adapter name -> its configuration
        self.current: Routing | None = None

    def resolve(self) -> Routing:
        """The routing in force."""
        if self.current is not None:
            return self.current
        if len(self.known) == 1:
            return Routing.uniform(next(iter(self.known)))
        if not self.known:
            return Routing.uniform(BASE)
        raise RoutingError(
            f"this model carries {len(self.known)} adapters ({', '.join(self.known)}) and the call names none: pass "
            "adapters=[...] with one name per row, or use `with model.using(name): ...`"
        )

    def check(self, names: Sequence[str]) -> None:
        """Raise RoutingError for a name that is neither an adapter here nor ``base``."""
        unknown = sorted({name for name in names if name != BASE and name not in self.known})
        if unknown:
            raise RoutingError(
                f"unknown adapter {', '.join(map(repr, unknown))}; this model carries: {', '.join([BASE, *self.known])}"
            )

    @contextmanager
    def activate(self, routing: Routing | None) -> Iterator[None]:
        """Put ``routing`` in force for the block (also used to restore it when a checkpointed block is recomputed)."""
        previous, self.current = self.current, routing
        try:
            yield
        finally:
            self.current = previous

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For torch's ``checkpoint(context_fn=...)``: the recomputation sees the routing of the forward."""
        return nullcontext(), self.activate(self.resolve())

    def __deepcopy__(self, memo: dict[int, Any]) -> Router:
        clone = Router(copy.deepcopy(self.known, memo))
        memo[id(self)] = clone
        return clone

    def __reduce__(self) -> tuple[Any, ...]:
        return (Router, (self.known,))

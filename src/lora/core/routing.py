"""Rows to adapters: which rows of a batch belong to which adapter, worked out once per batch.

Every row of a batch names its adapter. `Routing` sorts the names into groups; a layer computes each group on its own
slice of rows, so that what an adapter gives never depends on its neighbours (a sum over padded ranks would).

A batch is padded rows (b, t), or packed: documents one after another in a single row (1, n) without padding. There each
token stands for a row of its own, and a group is a run of tokens.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lora.core.attention import Row, documents
from lora.core.randomness import SeededDropout
from lora.errors import RoutingError, is_out_of_memory

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
        size: number of rows b, or None for a uniform routing, which fits any batch; of a packed batch its tokens n.
        tokens: tokens per row, where known: layers that see rows and tokens flattened into one axis need it.
        packed: whether the batch is one row of documents.
        seeds: in training, for each adapter the seed of what it draws in this pass; None: torch's global generator.
        draws: how often the base model has drawn so far in this pass.
        documents: of a packed row; None: the batch has rows.
    """

    __slots__ = (
        "_order", "_orders", "_single_rows", "documents", "draws", "groups", "names", "one_row_for_all", "packed",
        "seeds", "size", "tokens",
    )  # fmt: skip

    def __init__(self, names: Sequence[str], tokens: int | None = None, seeds: Mapping[str, int] | None = None) -> None:
        if not names:
            raise RoutingError("a batch needs at least one row, and a name for each")
        self.names = tuple(names)
        self.size: int | None = len(self.names)
        self.tokens = tokens
        self.packed = False
        self.seeds = seeds
        self.draws = 0
        self.documents: Row | None = None
        self.one_row_for_all: str | None = None  # a layer that was given one row for the whole batch
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
    def uniform(cls, name: str, seed: int | None = None) -> Routing:
        """A routing of all rows to one adapter, whatever the size of the batch."""
        routing = cls([name], seeds=None if seed is None else {name: seed})
        routing.size = None
        return routing

    @classmethod
    def of_runs(cls, runs: Sequence[tuple[str, int]], seeds: Mapping[str, int] | None = None) -> Routing:
        """The routing of a packed batch: ``runs`` are adapters and their numbers of tokens, each adapter once."""
        routing = cls([name for name, _ in runs], seeds=seeds)
        assert len(routing.groups) == len(runs), "the documents of an adapter lie together"
        routing.packed, start, groups = True, 0, []
        for name, length in runs:
            groups.append(Group(name, start, start + length))
            start += length
        routing.groups, routing.size = tuple(groups), start
        return routing

    def next_draw(self) -> int:
        """The number of the next draw of the base model in this pass."""
        self.draws += 1
        return self.draws

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

    def spans(self, x: Tensor, where: str) -> tuple[list[tuple[int, int]], tuple[Tensor, Tensor] | None]:
        """Where each group lies among the rows of ``x`` (..., i) with all leading axes flattened into one.

        Returns:
            (start, stop) of each group, and what `order` gives: the permutation that ``x`` must undergo before, if any.
        """
        if self.packed:
            self._token_axis(x, where)
            return [(group.start, group.stop) for group in self.groups], None
        assert self.size is not None, "a uniform routing is never split"
        fan_out = self.fan_out(x.shape[0], x.dim(), where)
        times = x.numel() // x.shape[-1] // self.size
        return [(group.start * times, group.stop * times) for group in self.groups], self.order(fan_out, x.device)

    def split(self, x: Tensor, where: str, ids: bool = False) -> list[Tensor]:
        """The rows of ``x`` (b[·t], ...) of each group, in the order of ``groups``. Views where rows lie together.

        ``ids`` says that ``x`` holds token ids, which have no feature axis: (b, t) is rows and tokens. Of a packed
        batch each group's documents are given as one row (1, n', ...), or as tokens (n', ...) where ``x`` is (n, ...).
        """
        if self.packed:
            axis = self._token_axis(x, where)
            return [x.narrow(axis, group.start, group.stop - group.start) for group in self.groups]
        fan_out = self.fan_out(x.shape[0], x.dim() + ids, where)
        order = self.order(fan_out, x.device)
        if order is not None:
            x = x.index_select(0, order[0])
        return [x[group.start * fan_out : group.stop * fan_out] for group in self.groups]

    def _token_axis(self, x: Tensor, where: str) -> int:
        """Where a packed batch has its tokens: the second axis of (1, n, ...), the first of (n, ...)."""
        if x.dim() > 1 and x.shape[0] == 1 and x.shape[1] == self.size:
            return 1
        if x.shape[0] == self.size:
            return 0
        raise RoutingError(
            f"{where}: got the shape {tuple(x.shape)} in a packed batch of {self.size} tokens, so its tokens cannot be "
            "told apart; train this model with packing switched off"
        )

    def join(self, parts: list[Tensor], like: Tensor) -> Tensor:
        """Undo `split` of ``like``: one tensor with the rows in the batch's order."""
        if self.packed:
            return torch.cat(parts, dim=self._token_axis(like, "join"))
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
        routing = Routing([name for name in self.names for _ in range(times)], self.tokens, self.seeds)
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
            with documents(routing.documents if routing is not None else None):
                yield
        except RuntimeError as error:
            layer = None if routing is None else routing.one_row_for_all
            if layer is None or is_out_of_memory(error):
                raise
            # Most models broadcast that row over the batch; some (DeBERTa) count on there being one.
            raise RoutingError(
                f"{layer}: is given one row for the whole batch, of which each adapter makes its own, and the model "
                f"does not take these ({str(error).splitlines()[0]}); run it with one adapter per batch "
                "(`with model.using(name): ...`), or leave that module out"
            ) from error
        finally:
            self.current = previous

    def checkpoint_contexts(self) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """For torch's ``checkpoint(context_fn=...)``: recomputing sees the routing and the draws of the forward."""
        return nullcontext(), self._again(self.resolve())

    def _again(self, routing: Routing) -> AbstractContextManager[None]:
        before = routing.draws  # now, at the block's beginning

        @contextmanager
        def recompute() -> Iterator[None]:
            routing.draws = before
            with self.activate(routing), SeededDropout(self) if routing.seeds is not None else nullcontext():
                yield

        return recompute()

    def __deepcopy__(self, memo: dict[int, Any]) -> Router:
        clone = Router(copy.deepcopy(self.known, memo))
        memo[id(self)] = clone
        return clone

    def __reduce__(self) -> tuple[Any, ...]:
        return (Router, (self.known,))

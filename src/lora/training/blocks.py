"""Padded batches of unlike width in one pass: the repeated layers run once for all, whatever is around them for each.

A longer padding changes the last bits of a row (sums in the attention), so no batch is widened. The layers, which are
nearly all of the work, see one row: each batch flattened, padding included, one after another, under the routing of a
packed row. Their attention cuts the batches out again and gives each to the model's own function, with the mask that it
has alone. Embeddings, masks, pooler and head are computed batch by batch by the model's own forward, which is therefore
run twice, with layers that do nothing: to see what they are called with, and to go on from what they gave.

Which models can be run so is not looked up in a list: before the first pass losses and gradients are compared with
those of each batch by itself.

Shapes: b rows of one batch, w its width, n = Σ b·w tokens of all, h hidden, a attention heads, d head dimension.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from lora.core.attention import Document, Row, attending_by, documents_in_force
from lora.core.routing import Router, Routing
from lora.errors import RoutingError

if TYPE_CHECKING:
    from lora.model.lora import LoRA

NAME = "lora_blocks"
# Of the largest gradient of a parameter, where kernels may add in another order; on the CPU they agree to the bit.
AGREEMENT = {torch.float32: 1e-3, torch.float64: 1e-6}
ROUGH = 5e-2  # the same in half precision

# (number of the layer, what it is called with)
Call = tuple[int, tuple[Any, ...], dict[str, Any]]


class Block(NamedTuple):
    """One adapter's batch among the others."""

    name: str
    rows: int
    width: int

    @property
    def tokens(self) -> int:
        return self.rows * self.width


class Batches(Row):
    """The documents of the one row: every row of every batch, padding included."""

    def __init__(self, blocks: Sequence[Block], router: Router, attention: str) -> None:
        super().__init__([Document(block.width, owner=block.name) for block in blocks for _ in range(block.rows)])
        self.blocks = list(blocks)
        self.router = router
        self.attention = attention  # the model's own


class Each(list[Any]):
    """Values of the batches that cannot become one (masks): handed through the layers to `attend`, which takes each."""


class _Reached(Exception):
    """The last layer is reached: what comes behind it is not wanted yet."""


class Blocks:
    """Runs batches of unlike width on one model."""

    def __init__(self, model: LoRA, layers: list[nn.Module]) -> None:
        self.model = model
        self.config: Any = model.base.config
        self.layers = layers
        self.proved: set[frozenset[str]] = set()  # kinds of adapters: names of their parameters

    def attending(self) -> AbstractContextManager[None]:
        """To be in force during the backward: layers recomputed for it attend again."""
        return attending_by(self.model.base, NAME, attend)

    def outputs(self, inputs: Sequence[dict[str, Tensor]], names: Sequence[str], seeds: dict[str, int]) -> list[Any]:
        """What the base gives for each of ``inputs``, which belong to the adapters ``names``, as it would alone.

        Raises:
            RoutingError: the model does more than calling its layers one after another.
        """
        router = self.model.router
        alone = [Routing.uniform(name, seeds[name]) for name in names]
        calls = [self._calls(values, routing) for values, routing in zip(inputs, alone, strict=True)]
        entering = [of_one[0][1][0] for of_one in calls]
        blocks = [Block(name, *hidden.shape[:2]) for name, hidden in zip(names, entering, strict=True)]
        if len({routing.draws for routing in alone}) > 1:
            raise RoutingError("adapters draw unlike numbers of random values before the layers")
        routing = Routing.of_runs([(block.name, block.tokens) for block in blocks], seeds)
        routing.documents = Batches(blocks, router, self.config._attn_implementation)
        routing.draws = alone[0].draws
        hidden = joined(entering, blocks)
        with self.attending(), router.activate(routing):
            for number, layer in enumerate(self.layers):
                args = [joined(list(values), blocks) for values in zip(*(c[number][1][1:] for c in calls), strict=True)]
                kwargs = {key: joined([c[number][2][key] for c in calls], blocks) for key in calls[0][number][2]}
                hidden = layer(hidden, *args, **kwargs)
        leaving = cut(hidden, blocks)
        return [
            self._rest(values, Routing.uniform(name, seeds[name]), its_own, routing.draws)
            for values, name, its_own in zip(inputs, names, leaving, strict=True)
        ]

    def _calls(self, inputs: dict[str, Tensor], routing: Routing) -> list[Call]:
        """What the layers are called with; each hands its hidden states on as they are."""
        calls: list[Call] = []

        def note(number: int, *args: Any, **kwargs: Any) -> Tensor:
            calls.append((number, args, kwargs))
            if number == len(self.layers) - 1:
                raise _Reached
            return args[0]

        try:
            with self._in_place_of_layers(note), self.model.router.activate(routing):
                self.model.base(**inputs)
        except _Reached:
            pass
        # The same tensor all along: what happens between layers would be lost.
        plain = bool(calls) and all(args and args[0] is calls[0][1][0] for _, args, _ in calls)
        if not plain or [number for number, *_ in calls] != list(range(len(self.layers))) or calls[0][1][0].dim() != 3:
            raise RoutingError(f"{type(self.model.base).__name__} does more than calling its layers one after another")
        return calls

    def _rest(self, inputs: dict[str, Tensor], routing: Routing, leaving: Tensor, draws: int) -> Any:
        """The base's outputs, with ``leaving`` (b, w, h) for what the layers gave after so many draws."""
        called: list[int] = []

        def hand_on(number: int, *args: Any, **kwargs: Any) -> Tensor:
            called.append(number)
            if number < len(self.layers) - 1:
                return args[0]
            routing.draws = draws
            return leaving

        with self._in_place_of_layers(hand_on), self.model.router.activate(routing):
            outputs = self.model.base(**inputs)
        if called != list(range(len(self.layers))):
            raise RoutingError(f"{type(self.model.base).__name__} calls its layers several times")
        return outputs

    @contextmanager
    def _in_place_of_layers(self, function: Callable[..., Tensor]) -> Iterator[None]:
        """For the block each layer's forward is ``function`` of its number and what it is called with."""
        before = [vars(layer).get("forward") for layer in self.layers]  # accelerate may have put one of its own there

        def forward_of(number: int) -> Callable[..., Tensor]:
            return lambda *args, **kwargs: function(number, *args, **kwargs)

        for number, layer in enumerate(self.layers):
            layer.__dict__["forward"] = forward_of(number)
        try:
            yield
        finally:
            for layer, forward in zip(self.layers, before, strict=True):
                del layer.__dict__["forward"]
                if forward is not None:
                    layer.__dict__["forward"] = forward


def find_blocks(model: LoRA) -> Blocks | None:
    """`Blocks` for the longest list of layers of a transformers model; None: there is none, or no attention that could
    be told where batches end."""
    if not hasattr(getattr(model.base, "config", None), "_attn_implementation"):
        return None
    lists = [list(module) for module in model.base.modules() if isinstance(module, nn.ModuleList) and len(module)]
    longest = max(lists, key=len, default=[])
    once = len(set(longest)) == len(longest)  # some models list one layer again and again
    return Blocks(model, longest) if longest and once else None


def joined(values: list[Any], blocks: Sequence[Block]) -> Any:
    """One argument for all batches of ``values``, one of each: (b, w, ...) or (1, w, ...) become (1, n, ...)."""
    first = values[0]
    if all(value is first for value in values) and not isinstance(first, Tensor):
        return first
    if all(isinstance(value, tuple) and len(value) == len(first) for value in values):  # cosine and sine
        return tuple(joined(list(parts), blocks) for parts in zip(*values, strict=True))
    if all(_by_token(value, block) for value, block in zip(values, blocks, strict=True)):
        flat = [
            value.expand(block.rows, *value.shape[1:]).reshape(1, block.tokens, *value.shape[2:])
            for value, block in zip(values, blocks, strict=True)
        ]
        return torch.cat(flat, dim=1)
    return Each(values)


def _by_token(value: Any, block: Block) -> bool:
    # With four axes the second are heads.
    return isinstance(value, Tensor) and value.dim() in (2, 3) and tuple(value.shape[:2]) in {
        (1, block.width), (block.rows, block.width)
    }  # fmt: skip


def cut(value: Any, blocks: Sequence[Block], dim: int = 1) -> list[Any]:
    """Undo `joined`: of (1, n, ...), with tokens on axis ``dim``, each batch's (b, ..., w, ...)."""
    if isinstance(value, Each):
        return value
    if not isinstance(value, Tensor) or value.dim() <= dim or value.shape[dim] != sum(b.tokens for b in blocks):
        return [value] * len(blocks)
    parts = value.transpose(1, dim).split([block.tokens for block in blocks], dim=1)
    return [
        part.reshape(block.rows, block.width, *part.shape[2:]).transpose(1, dim)
        for part, block in zip(parts, blocks, strict=True)
    ]


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **options: Any
) -> tuple[Tensor, None]:
    """What transformers calls in place of the model's own attention, which it calls for each batch: query (1, a, n, d).

    Returns (1, n, a, d), and no weights.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    row = documents_in_force()
    if not isinstance(row, Batches):
        raise RoutingError("layers of another kind attend in the backward")
    eager: Any = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    own = ALL_ATTENTION_FUNCTIONS.get_interface(row.attention, eager)
    routing = row.router.resolve()
    seeds, before, parts = routing.seeds, routing.draws, []
    masks, *tensors = cut(attention_mask, row.blocks), *(cut(x, row.blocks, 2) for x in (query, key, value))
    more = {name: cut(option, row.blocks) for name, option in options.items()}
    for place, block in enumerate(row.blocks):
        # It draws what it would draw alone.
        alone = Routing.uniform(block.name, None if seeds is None else seeds[block.name])
        alone.draws = before
        with row.router.activate(alone):
            q, k, v = (pieces[place] for pieces in tensors)
            out, _ = own(module, q, k, v, masks[place], **{name: option[place] for name, option in more.items()})
        routing.draws = alone.draws
        parts.append(out.reshape(1, block.tokens, *out.shape[2:]))
    return torch.cat(parts, dim=1), None


def same(together: Sequence[Tensor | None], apart: Sequence[Tensor | None], dtype: torch.dtype) -> bool:
    """Whether losses and gradients of a base in ``dtype`` are those of each batch by itself: on the CPU to the bit."""
    for one, other in zip(together, apart, strict=True):
        if one is None or other is None:
            if one is not other:
                return False
            continue
        exact = one.device.type == "cpu"
        allowed = 0.0 if exact else AGREEMENT.get(dtype, ROUGH) * float(other.detach().abs().nan_to_num(0).max())
        if not torch.allclose(one, other, rtol=0, atol=allowed, equal_nan=True):
            return False
    return True

"""Random numbers of training that depend on nothing but the adapter's own seed, the step, the batch and the place.

torch's global generator is one stream: whoever draws moves it on for all others, so an adapter's dropout would depend
on its neighbours, and a block recomputed under gradient checkpointing would see other values. Here each draw has a seed
of its own, made from what names it, and a generator for it alone. Nothing has to be saved to resume.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lora.core.configs import text_config

if TYPE_CHECKING:
    from lora.core.routing import Router, Routing


def seed_of(*parts: int | str) -> int:
    """A seed below 2^63 from anything that names a draw: the same parts give the same seed on every machine."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def dropout(x: Tensor, p: float, seed: int) -> Tensor:
    """Inverted dropout of ``x`` (any shape) with a mask that ``seed``, the shape and the kind of device determine."""
    return x * keep_mask(x.shape, p, seed, x).mul_(1 / kept_share(p))


# Dropout compares 16 random bits with a threshold, so a rate is a multiple of 1/65536; what is kept is divided by the
# exact share that is kept. On the CPU torch's own bernoulli_ takes five times as long, as long as a small frozen layer.
_LEVELS = 1 << 16


def dropped_level(rate: float) -> int:
    """How many of 65536 values are dropped."""
    return min(round(rate * _LEVELS), _LEVELS - 1)


def keep_mask(shape: Sequence[int], rate: float, seed: int, like: Tensor) -> Tensor:
    """0 where a value is dropped and 1 where it is kept, of ``shape``, on the device and in the type of ``like``.

    ``seed``, the number of values and the kind of device alone determine it, not the type.
    """
    generator = torch.Generator(like.device).manual_seed(seed)
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=like.device)
    # All 64 bits: the plain random_() leaves out the sign, and with it half the values of every fourth lane.
    words.random_(-(2**63), None, generator=generator)
    lanes = words.view(torch.int16)[:count].view(*shape)
    # In place, and by way of bf16: comparing into bools and converting those takes torch several times as long.
    return lanes.ge_(dropped_level(rate) - _LEVELS // 2).to(torch.bfloat16).to(like.dtype)


def kept_share(rate: float) -> float:
    """What is kept, as `keep_mask` draws it: inverted dropout divides by it."""
    return 1 - dropped_level(rate) / _LEVELS


class SeededDropout(TorchFunctionMode):
    """While in force, the base model's own dropout is drawn per adapter, by the seeds of the routing in hand.

    It catches ``F.dropout`` (and so ``nn.Dropout``) and the dropout inside scaled dot-product attention. A draw's seed
    comes from its adapter's and from the number of the draw within the pass, the same whatever else is in the batch.
    Rows of an adapter without a seed (the base as a reference) drop nothing.
    """

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        return func(*args, **kwargs)

    def _dropout(self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        routing = self.router.resolve()
        if not training or p == 0 or p == 1 or routing.seeds is None:
            return F.dropout(input, p, training, inplace)
        draw = routing.next_draw()
        seeds = routing.seeds

        def drop(rows: Tensor, name: str) -> Tensor:
            return dropout(rows, p, seed_of(seeds[name], draw)) if name in seeds else rows

        if routing.single is not None:
            return drop(input, routing.single)
        routing = routing.fitting(input.shape[0])
        parts = [
            drop(rows, group.name) for group, rows in zip(routing.groups, routing.split(input, "dropout"), strict=True)
        ]
        return routing.join(parts, input)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
        **options: Any,
    ) -> Tensor:  # fmt: skip
        routing = self.router.resolve()
        if dropout_p == 0 or routing.seeds is None:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, **options)
        draw = routing.next_draw()
        parts = []
        for group, *rows in _by_group(routing, query, key, value, attn_mask):
            # The kernel draws from the global generator, which is put back as it was.
            devices = [query.device] if query.device.type != "cpu" else []
            with torch.random.fork_rng(devices, device_type=query.device.type if devices else "cuda"):
                seed = routing.seeds.get(group)
                torch.manual_seed(0 if seed is None else seed_of(seed, draw))
                q, k, v, shown = rows
                rate = 0.0 if seed is None else dropout_p
                parts.append(F.scaled_dot_product_attention(q, k, v, shown, rate, **options))
        return parts[0] if len(parts) == 1 else routing.join(parts, query)


def _by_group(routing: Routing, *tensors: Tensor | None) -> list[tuple[Any, ...]]:
    """(adapter, its rows of each tensor) for each group; what is one for all rows, or None, is given whole."""
    if routing.single is not None:
        return [(routing.single, *tensors)]
    pieces = [
        [tensor] * len(routing.groups)
        if tensor is None or tensor.dim() < 4 or tensor.shape[0] == 1
        else routing.split(tensor, "attention dropout")
        for tensor in tensors
    ]
    return [(group.name, *(piece[i] for piece in pieces)) for i, group in enumerate(routing.groups)]


def seeded_dropout(model: nn.Module, router: Router) -> AbstractContextManager[Any]:
    """`SeededDropout` where ``model`` has any dropout, else nothing: every torch call passes through the mode."""
    return SeededDropout(router) if drops(model) else nullcontext()


def drops(model: nn.Module) -> bool:
    """Whether ``model`` drops anything in training, as far as its modules and its configuration say."""
    config = getattr(model, "config", None)
    settings = vars(text_config(config)) if config else {}
    named = any(
        isinstance(value, float) and value > 0 for name, value in settings.items() if "drop" in name or "pdrop" in name
    )
    return named or any(_drops(module) for module in model.modules())


def _drops(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0

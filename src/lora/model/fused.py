"""Which modules of a transformers model are known formulas, to be computed by `lora.core.fused` while training.

A module is known by the text of its class's forward: a class that does anything else is left to itself.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lora.core.functions import autocast_dtype
from lora.core.fused import ACTIVATIONS, Activation, gated_mlp, rms_norm
from lora.core.layer import formula_of

_MLP = re.compile(
    r"(?:down_proj = |return )self\.down_proj\(self\.act_fn\(self\.gate_proj\((\w+)\)\) \* self\.up_proj\(\1\)\)"
    r"(?: return down_proj)?"
)
_NORM = re.compile(
    r"input_dtype = (\w+)\.dtype \1 = \1\.to\(torch\.float32\) variance = \1\.pow\(2\)\.mean\(-1, keepdim=True\) "
    r"\1 = \1 \* torch\.rsqrt\(variance \+ self\.variance_epsilon\) return self\.weight \* \1\.to\(input_dtype\)"
)
_ACTIVATIONS = {"SiLUActivation": "silu", "SiLU": "silu", "GELUActivation": "gelu", "GELUTanh": "gelu_tanh"}


class Fused:
    """The known modules of one model."""

    def __init__(self, base: nn.Module) -> None:
        self._forwards: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = []
        for module in base.modules():
            body = _body(type(module))  # type: ignore[arg-type]  # classes can be hashed
            if _NORM.fullmatch(body):
                self._forwards.append((module, functools.partial(_norm, module)))
            elif _MLP.fullmatch(body) and type(module.act_fn).__name__ in _ACTIVATIONS:
                activation = ACTIVATIONS[_ACTIVATIONS[type(module.act_fn).__name__]]
                self._forwards.append((module, functools.partial(_mlp, module, activation)))

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """For the block, which holds a forward and its backward, they are computed so."""
        # accelerate puts a forward of its own where it moves weights about.
        changed = [(module, forward) for module, forward in self._forwards if "forward" not in vars(module)]
        for module, forward in changed:
            module.__dict__["forward"] = forward
        try:
            yield
        finally:
            for module, _ in changed:
                del module.__dict__["forward"]


@functools.cache
def _body(kind: Any) -> str:
    """The statements of the forward of class ``kind``, on one line and without comments; empty: not to be had."""
    try:
        text = inspect.getsource(kind.forward)
    except (OSError, TypeError, AttributeError):
        return ""
    signature = re.search(r"\)(?: -> [^:]+)?:\s*\n", text)
    return " ".join(re.sub(r"#.*", "", text[signature.end() :]).split()) if signature else ""


def _norm(module: Any, hidden_states: Tensor) -> Tensor:
    if module.weight.requires_grad or module.weight.dtype != hidden_states.dtype:
        return type(module).forward(module, hidden_states)
    return rms_norm(hidden_states, module.weight, module.variance_epsilon)


def _mlp(module: Any, activation: Activation, x: Tensor) -> Tensor:
    layers = [module.gate_proj, module.up_proj, module.down_proj]
    known = [formula_of(layer, x) for layer in layers] if autocast_dtype(x) is None else [None]
    gate, up, down = known if all(formula is not None for formula in known) else (None, None, None)
    if gate is None or up is None or down is None:
        return type(module).forward(module, x)
    return gated_mlp(x, gate, up, down, activation)

"""Which modules of a transformers model are known formulas, to be computed by `lora.core.fused` while training.

A module is known by the text of its class's forward: a class that does anything else is left to itself.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

from torch import Tensor, nn

from lora.core.functions import autocast_dtype
from lora.core.fused import Activation, gated_mlp, gated_product
from lora.core.layer import formula_of
from lora.model.kernels import Kernels, Rotary

_MLP = re.compile(
    r"(?:down_proj = |return )self\.down_proj\(self\.act_fn\(self\.gate_proj\((\w+)\)\) \* self\.up_proj\(\1\)\)"
    r"(?: return down_proj)?"
)
_NORM = re.compile(
    r"input_dtype = (\w+)\.dtype \1 = \1\.to\(torch\.float32\) variance = \1\.pow\(2\)\.mean\(-1, keepdim=True\) "
    r"\1 = \1 \* torch\.rsqrt\(variance \+ self\.variance_epsilon\) return self\.weight \* \1\.to\(input_dtype\)"
)
_ROTARY = (
    "cos = cos.unsqueeze(unsqueeze_dim) sin = sin.unsqueeze(unsqueeze_dim) q_embed = (q * cos) + (rotate_half(q) * sin)"
    " k_embed = (k * cos) + (rotate_half(k) * sin) return q_embed, k_embed"
)
_HALF = "x1 = x[..., : x.shape[-1] // 2] x2 = x[..., x.shape[-1] // 2 :] return torch.cat((-x2, x1), dim=-1)"
_ACTIVATIONS = {"SiLUActivation": "silu", "SiLU": "silu", "GELUActivation": "gelu", "GELUTanh": "gelu_tanh"}


class Fused:
    """The known modules of one model, and the ``kernels`` for them."""

    def __init__(self, base: nn.Module, kernels: Kernels | None = None) -> None:
        kernels = kernels or Kernels()
        self._forwards: list[tuple[nn.Module, Callable[..., Any]]] = []
        for module in base.modules():
            forward = type(module).forward
            body = _body(forward)
            if _NORM.fullmatch(body):
                self._forwards.append((module, functools.partial(_norm, module, kernels)))
            elif _MLP.fullmatch(body) and type(module.act_fn).__name__ in _ACTIVATIONS:
                activation = kernels.activations[_ACTIVATIONS[type(module.act_fn).__name__]]
                self._forwards.append((module, functools.partial(_mlp, module, activation)))
            elif (turning := _with_rotary(forward, kernels.rotary)) is not None:
                self._forwards.append((module, functools.partial(turning, module)))

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
def _body(function: Any) -> str:
    """The statements of ``function``, on one line, without comments and docstring; empty: not to be had."""
    try:
        text = inspect.getsource(function)
    except (OSError, TypeError):
        return ""
    signature = re.search(r"\)(?: -> [^:]+)?:\s*\n", text)
    if signature is None:
        return ""
    statements = re.sub(r'\A\s*""".*?"""', "", text[signature.end() :], flags=re.DOTALL)
    return " ".join(re.sub(r"#.*", "", statements).split())


def _with_rotary(forward: Any, rotary: Rotary) -> Callable[..., Any] | None:
    """``forward`` of an attention with ``rotary`` for its rotary embedding; None: it calls none that is known.

    A copy that finds another function by the name: the module where the name stands is everybody's.
    """
    name = "apply_rotary_pos_emb"
    if not isinstance(forward, FunctionType) or name not in forward.__code__.co_names:
        return None
    own: Any = forward.__globals__.get(name)
    if _body(own) != _ROTARY or _body(own.__globals__.get("rotate_half")) != _HALF:
        return None

    def turn(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if args or kwargs or not q.dtype == k.dtype == cos.dtype:
            return own(q, k, cos, sin, *args, **kwargs)  # type: ignore[no-any-return]
        return rotary(q, k, cos, sin)

    names = {**forward.__globals__, name: turn}
    copy = FunctionType(forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def _norm(module: Any, kernels: Kernels, hidden_states: Tensor) -> Tensor:
    if module.weight.requires_grad or module.weight.dtype != hidden_states.dtype:
        return type(module).forward(module, hidden_states)
    return kernels.norm(hidden_states, module.weight, module.variance_epsilon)


def _mlp(module: Any, activation: Activation, x: Tensor) -> Tensor:
    layers = [module.gate_proj, module.up_proj, module.down_proj]
    known = [formula_of(layer, x) for layer in layers] if autocast_dtype(x) is None else [None]
    gate, up, down = known if all(formula is not None for formula in known) else (None, None, None)
    if gate is None or up is None or down is None:
        if activation.exact:
            return type(module).forward(module, x)
        return module.down_proj(gated_product(module.gate_proj(x), module.up_proj(x), activation))
    return gated_mlp(x, gate, up, down, activation)

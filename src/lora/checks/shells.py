"""Tensors without contents, and a ledger of what they would take: a step of training runs on them as it is.

The code that trains is run itself, forward, backward and optimiser, on tensors that have a shape, a type and a device,
and hold nothing. So whatever keeps memory, and however long, is counted, of any architecture, and no weight is read.
torch's own `FakeTensor` is the same idea, at six times the cost of an operator and without answers where code asks for
a number. What is small and holds numbers that decide something (token ids, labels, places) is real.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

from lora.checks.ledger import Ledger

aten: Any = torch.ops.aten
META = torch.device("meta")

# A result of real tensors that is larger than this is made without contents too (masks over pairs of positions).
_REAL_BYTES = 1 << 22
_REAL_ELEMENTS = 1 << 10  # with fewer, no result of theirs comes near

# Multiplications that the time of a step depends on: the two factors' places among the arguments.
_PRODUCTS: dict[Any, tuple[int, int]] = {
    aten.mm: (0, 1), aten.bmm: (0, 1), aten.addmm: (1, 2), aten.addmm_: (1, 2), aten.baddbmm: (1, 2),
    aten.baddbmm_: (1, 2),
}  # fmt: skip
# Operators that make a tensor as large as their argument for themselves: no operator of its own shows it.
_WITHIN = (aten.logsumexp,)
_BY_PLACES = (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_)


class Shell(Tensor):
    """A tensor without contents: ``core``, on torch's meta device, that says it is on ``place``."""

    core: Tensor
    place: torch.device

    @staticmethod
    def __new__(cls, core: Tensor, place: torch.device) -> Shell:
        self: Shell = Tensor._make_subclass(  # type: ignore[attr-defined]
            cls, core, core.requires_grad, dispatch_device=True, device_for_backend_keys=place
        )
        self.core, self.place = core, place
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @property
    def data(self) -> Tensor:
        return Tensor.data.__get__(self)  # type: ignore[attr-defined, no-any-return]

    @data.setter
    def data(self, new: Tensor) -> None:
        """`nn.Module.float` and its like put new contents into a parameter: what it computes with must follow."""
        Tensor.data.__set__(self, new)  # type: ignore[attr-defined]
        if isinstance(new, Shell):
            self.core, self.place = new.core, new.place

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return [0] * self.shape[0] if self.dim() == 1 else [row.tolist() for row in self]


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Operator ``func`` on shells, among them real tensors: by its meta kernel, or by what that gave before."""
    if func is torch.ops.prim.device.default:
        return args[0].place
    kind = _kind(func)
    if kind == "in place":
        return args[0]
    shells: dict[int, Shell] = {}
    inner_args = [_inner(value, shells) for value in args]
    inner_kwargs = {key: _inner(value, shells) for key, value in kwargs.items()}
    place = inner_kwargs.get("device")
    if place is not None:
        inner_kwargs["device"] = META
    elif shells:
        place = next(iter(shells.values())).place
    place = place or torch.device("cpu")
    if kind == "anew":
        key = (func, *map(_described, inner_args), *((k, _described(v)) for k, v in inner_kwargs.items()))
        if key not in _MADE:
            out = func(*inner_args, **inner_kwargs)
            plain = isinstance(out, Tensor) and out.layout == torch.strided
            _MADE[key] = (out.shape, out.stride(), out.dtype) if plain else None
        if (made := _MADE[key]) is not None:
            return Shell(torch.empty_strided(*made[:2], dtype=made[2], device=META), place)
    return _shell(func(*inner_args, **inner_kwargs), shells, place)


# What operators made of tensors of these shapes: many meta kernels are slow, being written in Python.
_MADE: dict[Any, Any] = {}

# In place, but of consequence for the tensor itself.
_RESHAPING = {"resize_", "set_", "t_", "transpose_", "squeeze_", "unsqueeze_", "as_strided_", "resize_as_", "swapdims_"}


@functools.cache
def _kind(func: Any) -> str:
    """``in place``: it gives back its first argument; ``anew``: a tensor of its own; else ``other``."""
    schema, name = func._schema, func._schema.name.partition("::")[2]
    if name.endswith("_") and not name.endswith("__") and name not in _RESHAPING and len(schema.returns) == 1:
        return "in place"
    if schema.is_mutable or len(schema.returns) != 1 or schema.returns[0].alias_info is not None:
        return "other"
    return "anew"


def _described(value: Any) -> Any:
    """What of an argument decides on the shape of a result."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, list):
        return tuple(map(_described, value))
    return type(value), value


# Functions and no closures: one that calls itself would hold on to the tensors until Python looks for cycles.
def _inner(value: Any, shells: dict[int, Shell]) -> Any:
    """``value`` with meta tensors for tensors; of shells it is noted whose they are."""
    if isinstance(value, Shell):
        shells[id(value.core)] = value
        return value.core
    if isinstance(value, Tensor):
        return value.new_empty_strided(value.shape, value.stride(), device=META)
    if isinstance(value, (list, tuple)):
        return [_inner(item, shells) for item in value]
    return value


def _shell(value: Any, shells: dict[int, Shell], place: torch.device) -> Any:
    """``value`` with shells for meta tensors; what was changed in place is the argument itself."""
    if isinstance(value, Tensor):
        return shells[id(value)] if id(value) in shells else Shell(value, place)
    if isinstance(value, (list, tuple)):
        return type(value)([_shell(item, shells, place) for item in value])
    return value


class Shells(TorchDispatchMode):
    """While in force, operators on tensors without contents are counted in ``ledger``.

    What asks for a number that is not there is answered so that the usual way is taken: 0, no, and equal.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self._known: dict[int, Any] = {}
        self._making = False  # whether nothing that is made has contents

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled, and each operator would pay for that

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.prim.device.default:
            return args[0].place
        kwargs = kwargs or {}
        hollow = any(issubclass(kind, Shell) for kind in types)
        if hollow:
            if func in _ANSWERS:
                return _ANSWERS[func](args[0])
            if func.overloadpacket in _BY_PLACES:
                args = (args[0], _places(args[1]), *args[2:])
        self._count(func, args)
        out = run(func, args, kwargs) if hollow or self._large(func, args, kwargs) else func(*args, **kwargs)
        self._note(out)
        return out

    def _count(self, func: Any, args: Any) -> None:
        if func.overloadpacket in _WITHIN:
            size = args[0].numel() * args[0].element_size()
            self.ledger.give_back(self.ledger.make(size), size)
        factors = _PRODUCTS.get(func.overloadpacket)
        if factors is not None:
            self.ledger.operations += 2 * args[factors[0]].numel() * args[factors[1]].shape[-1]
        elif "scaled_dot_product" in func.name():
            self.ledger.operations += _attention(func.name(), args)

    def _large(self, func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        """Whether what ``func`` makes of real tensors, or of none, is to have no contents."""
        if self._making:
            return not any(isinstance(value, Tensor) for value in args)
        numbers = [value for value in args if isinstance(value, int)]
        for value in args:
            if isinstance(value, Tensor):
                numbers.append(value.numel())
            elif isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
                numbers.append(math.prod(value))
        if func._schema.is_mutable or max(numbers, default=0) <= _REAL_ELEMENTS:
            return False
        try:
            out = run(func, args, kwargs)
        except Exception:  # what cannot be said without the numbers
            return False
        return isinstance(out, Tensor) and out.numel() * out.element_size() > _REAL_BYTES

    def _note(self, out: Any) -> None:
        if isinstance(out, Tensor):
            storage = out.untyped_storage()
            key = storage._cdata
            if key not in self._known:
                self._register(key, storage)
        elif isinstance(out, (list, tuple)):
            for value in out:
                self._note(value)

    def _register(self, key: int, storage: Any) -> None:
        size = storage.nbytes()
        number = self.ledger.make(size)

        def gone(_: Any) -> None:
            del self._known[key]
            self.ledger.give_back(number, size)

        self._known[key] = weakref.ref(storage, gone)

    def hollow(self, model: nn.Module, place: torch.device) -> None:
        """Put shells in place of the tensors of ``model``, which is on the meta device; ties stay."""
        made: dict[int, Tensor] = {}
        for module in model.modules():
            for table in (module._parameters, module._buffers):
                for name, tensor in table.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        shell: Tensor = Shell(tensor.detach(), place)
                        if isinstance(tensor, nn.Parameter):
                            shell = nn.Parameter(shell, tensor.requires_grad)
                        self._note(shell)
                        made[id(tensor)] = shell
                    table[name] = made[id(tensor)]  # type: ignore[assignment]

    @contextmanager
    def making(self) -> Iterator[None]:
        """For the block, in which operators are counted, whatever is made has no contents, be it small."""
        self._making = True
        try:
            with nullcontext() if _get_current_dispatch_mode() is self else self:
                yield
        finally:
            self._making = False


def _zero(tensor: Tensor) -> Any:
    return False if tensor.dtype == torch.bool else 0.0 if tensor.is_floating_point() else 0


_ANSWERS: dict[Any, Callable[[Tensor], Any]] = {
    aten._local_scalar_dense.default: _zero,
    aten.is_nonzero.default: lambda tensor: False,
    aten.equal.default: lambda tensor: True,
    aten.allclose.default: lambda tensor: True,
}


def _places(indices: Any) -> list[Any]:
    """Indices with the places where a real mask is true for the mask: how many they are must be known."""
    out: list[Any] = []
    for index in indices:
        if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8) and not isinstance(index, Shell):
            out += index.nonzero().unbind(1)
        else:
            out.append(index)
    return out


def _attention(name: str, args: Any) -> int:
    """Operations of an attention kernel: two products forward, five backward."""
    backward = "backward" in name
    query, key = (args[1], args[2]) if backward else (args[0], args[1])
    pairs = math.prod(query.shape[:-1]) * key.shape[-2]
    return 2 * pairs * query.shape[-1] * (5 if backward else 2)

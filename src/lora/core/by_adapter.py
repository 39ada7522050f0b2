"""Operators of which an element's bits depend on how many stand before it, computed adapter by adapter.

On a CPU torch's loops over elements take a vector at a time, and what is left over one by one, by another formula of
the exponential; threads share the elements, and each has such a rest. So the last bits of silu, sigmoid and the tanh
form of gelu change with the tensor's size (seen in fp32 with 1, 2 and 4 threads). Products and sums
along rows, norms, softmax and attention do not: see `lora.tasks.mixture` for what was measured, and where it ends.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lora.core.routing import Router

ELEMENTWISE = frozenset(
    {
        F.silu, F.gelu, F.glu, F.mish, F.softplus, F.logsigmoid, F.sigmoid, F.elu, F.selu, torch.sigmoid,
        Tensor.sigmoid, torch.special.expit,
    }
)  # fmt: skip


class ByAdapter(TorchFunctionMode):
    """While in force, `ELEMENTWISE` functions see the rows of one adapter at a time.

    For batches in which the adapters' rows lie one adapter after another, equally many of each. Inside a module that an
    adapter owns, rows are its own already.
    """

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in ELEMENTWISE and args and isinstance(args[0], Tensor) and args[0].dim() > 1:
            routing, (x, *rest) = self.router.resolve(), args
            # (b, ...) or (b·t, ...); anything else is no batch, a parameter say.
            if routing.single is None and routing.size and x.shape[0] % routing.size == 0:
                return torch.cat([func(rows, *rest, **kwargs) for rows in x.chunk(len(routing.groups))])
        return func(*args, **kwargs)

"""Single rows of an embedding that an adapter owns: new special tokens, and tokens that the base never learned.

W' is W with the rows ``ids`` replaced by R (n, d); R starts as these rows of W. In the lookup a token of ``ids`` gives
its row of R. In an output head it is a low-rank update with one fixed factor, ΔW = E·(R - W[ids]) with E one-hot
(v, n): the n products x·(R - W[ids])ᵀ are added to n outputs, and nothing of the size of W is made. PEFT stores R and
calls it ``trainable_tokens_delta``.

Shapes: b row, t token, n owned row, d width, v vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lora.core.functions import aligned
from lora.core.geometry import EmbeddingGeometry, Geometry
from lora.core.layer import summed_here
from lora.core.variant import Parameters


class TokenRows(nn.Module):
    """One adapter's rows of one embedding or output head; stands where a `lora.core.layer.Slot` would.

    Attributes:
        numbers: the token ids, in rising order.
        ids: the same as a tensor (n,).
        rows: R (n, d), in fp32 on any base.
    """

    low_rank_update = True  # of a linear layer
    scaling, dropout = 1.0, 0.0
    ids: Tensor

    def __init__(self, numbers: Sequence[int], weight: Tensor) -> None:
        super().__init__()
        self.numbers = tuple(numbers)
        self.register_buffer("ids", torch.tensor(self.numbers, device=weight.device), persistent=False)
        self.rows = nn.Parameter(weight.detach()[self.ids].float())

    def factors(self, geometry: Geometry) -> Parameters:
        """A = R - W[ids] (n, d) and, for E, the ids themselves."""
        return {"A": self.rows - geometry.weight()[self.ids], "B": self.ids}

    def apply_to(self, geometry: Geometry, x: Tensor, base_out: Tensor, seed: int | None = None) -> Tensor:
        """Output of the layer for rows that all belong to this adapter; nothing is dropped."""
        x, base_out = summed_here(x), summed_here(base_out)
        if isinstance(geometry, EmbeddingGeometry):
            out = self._looked_up(geometry, x, base_out)
        else:
            added = F.linear(aligned(x.to(self.rows.dtype)), self.factors(geometry)["A"])
            out = base_out.index_add(-1, self.ids, added.to(base_out.dtype))
        if out.requires_grad:
            out.register_hook(Tensor.contiguous)
        return out

    def _looked_up(self, geometry: EmbeddingGeometry, x: Tensor, base_out: Tensor) -> Tensor:
        """``base_out`` (b, t, d) with R at the tokens x (b, t) that are among the ids."""
        place = torch.searchsorted(self.ids, x.to(self.ids.dtype)).clamp_(max=len(self.numbers) - 1)
        mine = (self.ids[place] == x).unsqueeze(-1)
        padding = geometry.layer.padding_idx  # gets no gradient from a lookup, as in the base
        padding = self.numbers.index(padding) if padding in self.numbers else None
        # Rounded after the lookup: so the gradients of a row's uses are added in fp32. A merged model gives the same.
        rows = F.embedding(place, self.rows, padding_idx=padding).to(geometry.weight().dtype)
        return torch.where(mine, geometry.scaled(rows).to(base_out.dtype), base_out)

    def merged(self, geometry: Geometry) -> Tensor:
        """The weight with the rows in it, in fp32."""
        return geometry.weight().float().index_copy(0, self.ids, self.rows.float())

    def extra_repr(self) -> str:
        return f"{len(self.numbers)} rows of {self.rows.shape[-1]}"


class TiedTokenRows(TokenRows):
    """Another place of the tensor that ``source`` has rows of: the same rows."""

    source: TokenRows

    def __init__(self, source: TokenRows) -> None:
        nn.Module.__init__(self)
        # Not a submodule: its rows must be counted and stepped once.
        object.__setattr__(self, "source", source)

    def __getattr__(self, name: str) -> Any:
        if name == "source":
            raise AttributeError(name)
        return getattr(self.source, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> TiedTokenRows:
        clone = TiedTokenRows(copy.deepcopy(self.source, memo))
        memo[id(self)] = clone
        return clone.train(self.training)

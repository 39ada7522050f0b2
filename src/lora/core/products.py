"""Products in which what is not finite stays in its row, on processors where bf16 does not see to that itself.

oneDNN's AMX kernel reads a row of bf16 up to the next multiple of 32 columns, so into the row behind it, and counts on
zeros in the other factor to take that away again; of NaN and infinity they make NaN (uxlfoundation/oneDNN, issue 5717).
A diverged adapter would spoil the row before its own: in the gradient of a head of 50,257 tokens, for one.
"""

from __future__ import annotations

import torch
from torch import Tensor

_TILE = 32  # columns of bf16 in one row of a tile


def contained(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """``rows`` (n, i) as the left factor of a product, and which of them are to be `lost` afterwards: (n,), or None.

    Where the kernel could carry them over, rows that are not finite are put in as zeros.
    """
    if rows.dtype != torch.bfloat16 or rows.device.type != "cpu" or rows.shape[1] % _TILE == 0:
        return rows, None
    bad = ~rows.isfinite().all(1)
    if not bad.any():
        return rows, None
    return rows.masked_fill(bad[:, None], 0), bad


def lost(out: Tensor, bad: Tensor | None) -> Tensor:
    """The product (n, o) with NaN in the rows that went in as zeros, written in place."""
    return out if bad is None else out.masked_fill_(bad[:, None], torch.nan)

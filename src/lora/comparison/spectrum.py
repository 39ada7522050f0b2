"""Singular values of what training added to each weight: which layers used their rank, and what rank would do.

Shapes: o out, i in, r rank, k singular value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lora.core.layer import AdaptedLayer
from lora.core.owned import OwnedModule
from lora.model.lora import LoRA

SHARES = (0.9, 0.99)  # of the energy (the sum of squared singular values), for which a rank is given
EXACT = 1024  # smaller side of a matrix up to which all singular values are computed
MOST = 256  # of a larger one: so many, the largest


@dataclass(frozen=True)
class Spectrum:
    """Of one layer's update ΔW.

    Attributes:
        values: (k,) singular values, largest first.
        energy: the sum of squares of all of them, of those that were not computed too.
        rank: that the update could have: the adapter's, or the smaller side of the weight.
    """

    values: tuple[float, ...]
    energy: float
    rank: int

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the singular values over their sum (Roy and Vetterli, 2007, definition 1); 0: ΔW is 0.

        1 where one direction holds all, the rank where all of them count alike. Where only the largest singular values
        were computed it is that of those, and so too low.
        """
        total = sum(self.values)
        shares = [value / total for value in self.values if value > 0] if total > 0 else []
        return math.exp(-sum(p * math.log(p) for p in shares)) if shares else 0.0

    def rank_for(self, share: float) -> int:
        """The smallest rank whose best approximation of ΔW keeps ``share`` of its energy (Eckart and Young, 1936)."""
        kept = 0.0
        for count, value in enumerate(self.values, start=1):
            kept += value * value
            if kept >= share * self.energy * (1 - 1e-12):
                return count
        return len(self.values) if not self.energy or len(self.values) >= self.rank else len(self.values) + 1

    def share_of(self, rank: int) -> float:
        """The share of the energy that the best approximation of ``rank`` keeps; nan: ΔW is zero."""
        if not self.energy:
            return math.nan
        return min(1.0, sum(value * value for value in self.values[:rank]) / self.energy)

    def to_dict(self) -> dict[str, Any]:
        return {
            "rank": self.rank, "effective_rank": self.effective_rank, "energy": self.energy,
            **{f"rank_{share:.0%}".rstrip("%"): self.rank_for(share) for share in SHARES},
            "singular_values": [float(f"{value:.5g}") for value in self.values],
        }  # fmt: skip


@torch.no_grad()
def of_product(A: Tensor, B: Tensor, scaling: float) -> Tensor:
    """Singular values (r,) of scaling · B·A, largest first, without forming it.

    With thin QR factorisations B = Q₁R₁ and Aᵀ = Q₂R₂ it is Q₁ (R₁R₂ᵀ) Q₂ᵀ, whose singular values are those of the
    r × r core: the R-SVD of Chan (1982, ACM Transactions on Mathematical Software 8:72) on both sides. In fp64.

    Args:
        A: (r, ...) whose other axes are the input's.
        B: (o, r, ...).
    """
    a, b = A.double().flatten(1), B.double().flatten(1)
    core = torch.linalg.qr(b, mode="r").R @ torch.linalg.qr(a.T, mode="r").R.T
    return scaling * torch.linalg.svdvals(core)


@torch.no_grad()
def of_matrix(delta: Tensor) -> Spectrum:
    """Of ΔW (o, i) itself, in fp64: all singular values, or of a large one the `MOST` largest.

    These by randomised projection with two power iterations (Halko, Martinsson and Tropp, 2011, algorithm 5.1).
    """
    matrix = delta.double().flatten(1)
    most, energy = min(matrix.shape), float(matrix.square().sum())
    if most <= EXACT:
        values = torch.linalg.svdvals(matrix)
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            values = torch.svd_lowrank(matrix, q=MOST, niter=2)[1]
    return Spectrum(tuple(values.tolist()), energy, most)


@torch.no_grad()
def spectra(model: LoRA, name: str) -> dict[str, Spectrum]:
    """By path the update of each weight matrix that adapter ``name`` changes: low-rank ones, and modules of its own.

    Its task head is left out: that was made up when the base was loaded, and what was added to it says nothing of the
    base. Of a variant that does more than B·A the difference of the weights is taken.
    """
    from lora.model.heads import task_heads
    from lora.model.tree import inside

    heads, out = task_heads(model.base), dict[str, Spectrum]()
    slots = model.slots(name)
    for wrapper in model.base.modules():
        if isinstance(wrapper, AdaptedLayer) and wrapper.path in slots:
            slot, geometry = slots[wrapper.path], wrapper.geometry
            if slot.low_rank_update:
                factors = slot.factors(geometry)
                values = tuple(of_product(factors["A"], factors["B"], slot.scaling).tolist())
                out[wrapper.path] = Spectrum(values, sum(value * value for value in values), slot.rank)
            else:
                out[wrapper.path] = of_matrix(slot.merged(geometry) - geometry.weight().float())
        elif isinstance(wrapper, OwnedModule) and name in wrapper.copies and not inside(wrapper.path, heads):
            own = model.owned(name)[wrapper.path]
            out.update((path, of_matrix(delta)) for path, delta in _changes(wrapper.path, wrapper.original, own))
    return out


def _changes(path: str, before: nn.Module, after: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """What was added to each matrix inside a module."""
    old = dict(before.named_parameters())
    for key, parameter in after.named_parameters():
        if parameter.dim() >= 2 and key in old and old[key].shape == parameter.shape:
            yield f"{path}.{key}".removesuffix(".weight"), parameter.float() - old[key].float()


def summed_up(found: Mapping[str, Spectrum], ranks: Sequence[int] = ()) -> dict[str, Any] | None:
    """What the layers have in common, as medians and extremes; None: nothing was changed.

    Args:
        ranks: for which the share of the energy is given that they would keep, as the median of layers.
    """
    changed = {path: its for path, its in found.items() if its.energy > 0}
    if not changed:
        return None
    by_use = sorted(changed, key=lambda path: -changed[path].effective_rank)
    out: dict[str, Any] = {
        "layers": len(found), "unchanged": len(found) - len(changed),
        "rank": max(its.rank for its in changed.values()),
        "effective_rank": _median([its.effective_rank for its in changed.values()]),
        "used_most": [[path, changed[path].effective_rank] for path in by_use[:3]],
        "used_least": [[path, changed[path].effective_rank] for path in by_use[:-4:-1]],
    }  # fmt: skip
    for share in SHARES:
        needed = [its.rank_for(share) for its in changed.values()]
        out[f"rank_{share:.0%}".rstrip("%")] = {"median": _median(needed), "largest": max(needed)}
    out["kept_by_rank"] = {rank: _median([its.share_of(rank) for its in changed.values()]) for rank in ranks}
    return out


def _median(values: Sequence[float]) -> float:
    ordered, middle = sorted(values), len(values) // 2
    return float(ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2)

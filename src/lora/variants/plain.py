"""LoRA: W' = W + scaling · B·A (Hu et al. 2021, arXiv:2106.09685, eq. 3)."""

from __future__ import annotations

from torch import Tensor

from lora.core.geometry import Geometry
from lora.core.variant import Dropout, Parameters, Variant


class Plain(Variant):
    """The update is added to the frozen output; ΔW is never formed outside a merge."""

    name = "plain"
    low_rank_update = True
    kinds = frozenset({"linear", "conv1d_hf", "embedding", "conv2d"})

    def apply(
        self, geometry: Geometry, parameters: Parameters, x: Tensor, base_out: Tensor, scaling: float, dropout: Dropout
    ) -> Tensor:
        A, B = parameters["A"], parameters["B"]
        if x.is_floating_point():
            x = x.to(A.dtype)
            if dropout is not None:
                x = dropout(x)
        # The sum is taken in the adapter's fp32 and rounded once.
        return (base_out + geometry.low_rank(x, A, B) * scaling).to(base_out.dtype)

    def merged(self, geometry: Geometry, parameters: Parameters, scaling: float) -> Tensor:
        return geometry.weight().float() + geometry.delta(parameters["A"].float(), parameters["B"].float()) * scaling

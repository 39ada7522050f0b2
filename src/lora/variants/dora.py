"""DoRA: W' = m · (W + ΔW) / ‖W + ΔW‖_c (Liu et al. 2024, arXiv:2402.09353, eq. 5).

The magnitude m holds one number per output feature. The norm is treated as a constant in the backward (section 4.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lora.core.geometry import Geometry
from lora.core.variant import Dropout, Parameters, Variant


class Dora(Variant):
    """Magnitude and direction are learned apart; m starts at ‖W‖_c, so that W' starts at W."""

    name = "dora"
    kinds = frozenset({"linear", "conv1d_hf", "embedding", "conv2d"})
    peft_keys = {"use_dora": True}
    peft_suffixes = {"magnitude": "lora_magnitude_vector"}

    def create(self, geometry: Geometry, rank: int, generator: torch.Generator) -> Parameters:
        parameters = super().create(geometry, rank, generator)
        parameters["magnitude"] = geometry.magnitude(geometry.weight().detach().float().cpu())
        return parameters

    def apply(
        self, geometry: Geometry, parameters: Parameters, x: Tensor, base_out: Tensor, scaling: float, dropout: Dropout
    ) -> Tensor:
        A, B, magnitude = parameters["A"], parameters["B"], parameters["magnitude"]
        with torch.no_grad():
            norm = geometry.magnitude(geometry.weight().to(A.dtype) + geometry.delta(A, B) * scaling)
        ratio = geometry.per_output(magnitude / norm, base_out)
        bias = geometry.bias()
        if x.is_floating_point():
            x = x.to(A.dtype)
        if dropout is not None and x.is_floating_point():
            # The frozen part of W' sees the same dropped input as the update; PEFT does alike.
            x = dropout(x)
            frozen = geometry.forward(x, geometry.weight().to(x.dtype))
        else:
            frozen = base_out if bias is None else base_out - bias
        update = geometry.low_rank(x, A, B) * scaling
        return (base_out + (ratio - 1) * frozen + ratio * update).to(base_out.dtype)

    def merged(self, geometry: Geometry, parameters: Parameters, scaling: float) -> Tensor:
        weight = geometry.weight().float() + geometry.delta(parameters["A"].float(), parameters["B"].float()) * scaling
        return geometry.scale_rows(weight, parameters["magnitude"].float() / geometry.magnitude(weight))

    def peft_shape(self, geometry: Geometry, tensor: Tensor) -> Tensor:
        return tensor.view(1, -1, 1, 1) if geometry.kind == "conv2d" else tensor

"""Each kind of layer: the product on the input equals the layer with the weight it amounts to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lora.core.geometry import geometry_of
from lora.core.variant import get_variant, variants
from lora.errors import ConfigError


def ids() -> Tensor:
    return torch.tensor([[1, 3, 0], [2, 2, 4]])


LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(6, 4), lambda: torch.randn(3, 5, 6)),
    "linear without bias": (lambda: nn.Linear(4, 6, bias=False), lambda: torch.randn(3, 4)),
    "conv1d of transformers": (lambda: Conv1D(4, 6), lambda: torch.randn(3, 5, 6)),
    "embedding": (lambda: nn.Embedding(5, 6), ids),
    "embedding with padding": (lambda: nn.Embedding(5, 6, padding_idx=0), ids),
    "convolution": (lambda: nn.Conv2d(3, 4, 2), lambda: torch.randn(2, 3, 6, 6)),
    "strided, dilated, padded": (
        lambda: nn.Conv2d(3, 4, (3, 2), stride=2, padding=(1, 2), dilation=(1, 2)),
        lambda: torch.randn(2, 3, 7, 9),
    ),
    "padded the same": (lambda: nn.Conv2d(3, 4, 3, padding="same", bias=False), lambda: torch.randn(2, 3, 6, 6)),
    "padded by reflection": (
        lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        lambda: torch.randn(2, 3, 6, 6),
    ),
}


@pytest.mark.parametrize("variant", sorted(variants()))
@pytest.mark.parametrize("layer", LAYERS)
def test_update_equals_the_merged_layer(layer: str, variant: str) -> None:
    torch.manual_seed(0)
    make, make_x = LAYERS[layer]
    module, x = make(), make_x()
    geometry = geometry_of(module)
    assert geometry is not None
    formula = get_variant(variant)
    parameters = formula.create(geometry, 2, torch.Generator().manual_seed(1))
    base_out = module(x)
    start = formula.apply(geometry, parameters, x, base_out, 1.5, None)
    torch.testing.assert_close(start, base_out, atol=1e-6, rtol=1e-6)
    for tensor in parameters.values():
        tensor.add_(torch.randn(tensor.shape) * 0.3)
    out = formula.apply(geometry, parameters, x, base_out, 1.5, None)
    merged = make()
    merged.load_state_dict({**module.state_dict(), "weight": formula.merged(geometry, parameters, 1.5)})
    torch.testing.assert_close(out, merged(x), atol=2e-6, rtol=1e-5)
    assert (out - base_out).abs().max() > 1e-2
    assert (tuple(parameters["A"].shape), tuple(parameters["B"].shape)) == geometry.shapes(2)


@pytest.mark.parametrize("variant", sorted(variants()))
def test_dropout_is_on_the_update_alone_where_training(variant: str) -> None:
    """With everything dropped the plain update vanishes; DoRA's frozen part sees the same dropped input."""
    module, x = nn.Linear(6, 4), torch.randn(3, 6)
    geometry = geometry_of(module)
    assert geometry is not None
    formula = get_variant(variant)
    parameters = formula.create(geometry, 2, torch.Generator())
    parameters["B"].normal_()
    out = formula.apply(geometry, parameters, x, module(x), 1.0, torch.zeros_like)
    torch.testing.assert_close(out, module(x))


def test_what_cannot_be_adapted_has_no_geometry() -> None:
    for module in (nn.LayerNorm(4), nn.Conv2d(4, 4, 1, groups=2), nn.Conv1d(3, 3, 1), nn.ReLU()):
        assert geometry_of(module) is None


def test_an_unknown_variant_names_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'nope' is unknown; known: dora, plain"):
        get_variant("nope")

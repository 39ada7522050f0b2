"""The law of isolation: a row gives the same bits whatever adapters its neighbours name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lora import LoRA
from lora.core.variant import variants
from lora.errors import RoutingError
from tiny_models import CLASSIFIERS, MODELS, batch, logits, randomise, tiny

VARIANTS = sorted(variants())
NAMES = ("a", "b", "c", "base")


def carrying(arch: str, variant: str, dtype: torch.dtype = torch.float32, **base: Any) -> LoRA:
    """Three adapters that differ in rank, targets and variant; "a" and "b" have heads of their own."""
    model = LoRA(tiny(arch, **base).to(dtype), name="a", rank=3, variant=variant, seed=1)
    model.add_adapter("b", rank=5, alpha=8, targets="attention", variant=variant, seed=2)
    model.add_adapter("c", rank=2, alpha=4, targets="mlp", modules_to_save=[], seed=3)
    for number, name in enumerate(("a", "b", "c")):
        randomise(model.adapter_parameters(name).values(), seed=number)
    return model.eval()


def alone(model: LoRA, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The whole batch through each adapter in turn."""
    out = {}
    for name in NAMES:
        with model.using(name):
            out[name] = logits(model, inputs)
    return out


def check_rows(model: LoRA, inputs: dict[str, Tensor], names: list[str], exact: bool = True) -> None:
    separate = alone(model, inputs)
    mixed = logits(model, inputs, adapters=names)
    for row, name in enumerate(names):
        if exact:
            assert torch.equal(mixed[row], separate[name][row]), f"row {row} ({name})"
        else:
            torch.testing.assert_close(mixed[row], separate[name][row], atol=1e-5, rtol=0)
    different = {name: separate[name] for name in set(names)}
    assert all((different[n] - separate["base"]).abs().max() > 1e-4 for n in different if n != "base")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("arch", MODELS)
def test_a_row_does_not_see_its_neighbours(arch: str, variant: str) -> None:
    model, inputs = carrying(arch, variant), batch(arch, rows=32)
    check_rows(model, inputs, list(NAMES) * 8)
    check_rows(model, inputs, [name for name in NAMES for _ in range(8)])
    check_rows(model, inputs, ["a"] * 24 + ["base"] * 8)
    check_rows(model, inputs, ["b"] + ["base", "a", "c"] * 10 + ["b"], exact=False)


@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_heads_on_a_half_precision_base(arch: str) -> None:
    """Heads of several modules, of which rows of the base and of "c" take the base's own, in its type."""
    model, inputs = carrying(arch, "plain", dtype=torch.bfloat16), batch(arch, rows=32)
    inputs = {key: value.bfloat16() if value.is_floating_point() else value for key, value in inputs.items()}
    mixed, separate = logits(model, inputs, adapters=list(NAMES) * 8), alone(model, inputs)
    for row, name in enumerate(list(NAMES) * 8):
        torch.testing.assert_close(mixed[row].float(), separate[name][row].float(), atol=0.05, rtol=0.05)


@pytest.mark.parametrize("arch", ["bert", "opt", "gemma3", "t5", "vit"])
@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=9))
def test_any_assignment(arch: str, names: list[str]) -> None:
    model = _CACHE.setdefault(arch, carrying(arch, "plain"))
    check_rows(model, batch(arch, rows=len(names)), names, exact=False)


_CACHE: dict[str, LoRA] = {}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("arch, targets", [("vit", ["projection", "q_proj"]), ("llama", ["embed_tokens", "lm_head"]),
                                           ("llama-tied", "embedding"), ("bert", ["embedding", "position_embeddings"]),
                                           ("gpt2", ["wte", "wpe", "c_attn"]), ("t5", ["embedding", "q"])])  # fmt: skip
def test_embeddings_and_convolutions(arch: str, targets: Any, variant: str) -> None:
    model = LoRA(tiny(arch), name="a", rank=3, targets=targets, variant=variant, tie_embeddings=False)
    model.add_adapter("b", rank=2, targets=targets, tie_embeddings=None)
    model.add_adapter("c", rank=4)
    for number, name in enumerate(("a", "b", "c")):
        randomise(model.adapter_parameters(name).values(), seed=number)
    # oneDNN takes another kernel for a 1x1 convolution (B) of 8 images than for one of 32.
    check_rows(model.eval(), batch(arch, rows=32), list(NAMES) * 8)


@pytest.mark.parametrize("arch", CLASSIFIERS)
def test_heads_of_different_width_share_a_batch(arch: str, tmp_path: Any) -> None:
    wide = LoRA(tiny(arch, num_labels=5), rank=2)
    randomise(wide.adapter_parameters("default").values())
    wide.save_adapter("default", tmp_path / "wide")
    model = LoRA(tiny(arch), name="narrow", rank=2)
    model.load_adapter(tmp_path / "wide")
    model.eval()
    inputs = batch(arch, rows=16)
    names = ["wide", "narrow"] * 8
    with model.using("wide"):
        of_wide = logits(model, inputs)
    with model.using("narrow"):
        of_narrow = logits(model, inputs)
    assert of_wide.shape[-1] == 5 and of_narrow.shape[-1] == 3
    mixed = logits(model, inputs, adapters=names)
    assert torch.equal(mixed[0::2], of_wide[0::2])
    assert torch.equal(mixed[1::2, ..., :3], of_narrow[1::2])
    assert (mixed[1::2, ..., 3:] == -torch.inf).all()


@pytest.mark.parametrize("arch", ["bert", "llama", "opt", "vit"])
def test_nan_stays_with_its_adapter(arch: str) -> None:
    model, inputs = carrying(arch, "plain"), batch(arch, rows=32)
    names = list(NAMES) * 8
    before = logits(model, inputs, adapters=names)
    with torch.no_grad():
        for parameter in model.adapter_parameters("b").values():
            parameter.fill_(torch.nan)
    after = logits(model, inputs, adapters=names)
    mine = torch.tensor([name == "b" for name in names])
    assert torch.equal(after[~mine], before[~mine])
    assert after[mine].isnan().all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("arch", ["bert", "modernbert", "gpt2", "opt", "llama", "t5", "vit"])
def test_gradients_are_those_of_each_adapter_alone(arch: str, variant: str) -> None:
    model, inputs = carrying(arch, variant), batch(arch, rows=16)
    names = ["a", "b", "c", "base"] * 4
    weights = torch.randn(logits(model, inputs, adapters=names).shape, generator=torch.Generator().manual_seed(4))

    def gradients(rows: list[int], **options: Any) -> dict[str, dict[str, Tensor]]:
        model.zero_grad()
        out = model(**{key: value[rows] for key, value in inputs.items()}, **options).logits
        (out * weights[rows]).sum().backward()
        return {name: {key: p.grad.clone() for key, p in model.adapter_parameters(name).items() if p.grad is not None}
                for name in ("a", "b", "c")}  # fmt: skip

    together = gradients(list(range(16)), adapters=names)
    for name in ("a", "b", "c"):
        with model.using(name):
            separate = gradients([row for row in range(16) if names[row] == name])
        assert separate[name] and all(not separate[other] for other in separate if other != name)
        assert set(separate[name]) == set(together[name])
        for key, gradient in separate[name].items():
            torch.testing.assert_close(
                together[name][key], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, k=key: f"{k}: {m}"
            )
        if (
            arch != "t5"
        ):  # whose first layer alone reads the relative positions; not all of them are reached by a short row
            assert all(value.abs().max() > 0 for value in separate[name].values())


@pytest.mark.parametrize("arch", ["bert", "gpt2", "opt", "llama", "t5", "vit"])
def test_checkpointing_keeps_rows_and_gradients(arch: str) -> None:
    model, inputs = carrying(arch, "dora"), batch(arch, rows=8)
    names = ["a", "b", "c", "base"] * 2
    model.train()
    for module in model.base.modules():  # a dropped value would differ between the two passes
        for key in ("p", "dropout", "attention_dropout", "dropout_rate"):
            if isinstance(vars(module).get(key), float):
                setattr(module, key, 0.0)
    model.base.config.use_cache = False

    def gradients() -> list[Tensor]:
        model.zero_grad()
        model(**inputs, adapters=names).logits.pow(2).sum().backward()
        return [p.grad.clone() for name in ("a", "b", "c") for p in model.adapter_parameters(name).values()]

    plain = gradients()
    model.gradient_checkpointing_enable()
    assert any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    for left, right in zip(plain, gradients(), strict=True):
        torch.testing.assert_close(left, right, atol=5e-6, rtol=1e-4)


class Flattening(nn.Module):
    """Sees (b·t, i), as older decoders and mixtures of experts do."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.outside = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, keep: int | None = None) -> Tensor:
        flat = torch.tanh(self.inside(x.reshape(-1, x.shape[-1])[:keep])).view(-1, x.shape[1], x.shape[2])
        return self.outside(flat)


def test_rows_and_tokens_in_one_axis_are_told_apart_or_refused() -> None:
    model = LoRA(Flattening(), name="a", rank=2)
    model.add_adapter("b", rank=3)
    for number, name in enumerate("ab"):
        randomise(model.adapter_parameters(name).values(), seed=number)
    x, names = torch.randn(6, 5, 6), ["b", "a", "base", "a", "b", "base"]
    with torch.no_grad():
        mixed = model(x, adapters=names)
        for row, name in enumerate(names):
            with model.using(name):
                torch.testing.assert_close(mixed[row], model(x)[row])
        with pytest.raises(RoutingError, match="inside.*20 rows where the batch names 6"):
            model(x, keep=20, adapters=names)


def test_layers_that_do_not_see_rows_are_refused() -> None:
    """T5's table of relative positions is asked with (t, t): with t = b nothing in the shapes would tell."""
    model = LoRA(tiny("t5"), name="a", rank=2, targets=["relative_attention_bias", "q"])
    model.add_adapter("b", rank=2)
    inputs = batch("t5", rows=7)
    logits(model, inputs, adapters=["a"] * 7)
    with pytest.raises(
        RoutingError, match="relative_attention_bias: a Embedding that does not see the batch row by row"
    ):
        logits(model, inputs, adapters=["a", "b"] * 3 + ["a"])


def test_a_head_owned_by_one_adapter_and_adapted_by_another() -> None:
    model = LoRA(tiny("roberta"), name="a", rank=2)
    model.add_adapter("b", rank=2, targets=["classifier.dense", "query"], modules_to_save=[])
    model.add_adapter("c", rank=2)
    for number, name in enumerate("abc"):
        randomise(model.adapter_parameters(name).values(), seed=number)
    check_rows(model.eval(), batch("roberta", rows=32), list(NAMES) * 8)


@pytest.mark.parametrize("rows", [8, 5])
def test_convolutions_of_odd_rank(rows: int) -> None:
    torch.manual_seed(0)
    model = LoRA(
        nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 7, 3)), name="a", rank=3, targets=["0", "2"]
    )
    model.add_adapter("b", rank=3, targets=["0", "2"])
    for number, name in enumerate("ab"):
        randomise(model.adapter_parameters(name).values(), seed=number)
    x = torch.randn(2 * rows, 3, 12, 12)
    with torch.no_grad():
        mixed = model.eval()(x, adapters=["a"] * rows + ["b"] * rows)
        for name, cut in (("a", slice(0, rows)), ("b", slice(rows, None))):
            with model.using(name):
                assert torch.equal(mixed[cut], model(x)[cut])

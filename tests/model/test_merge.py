"""Merging gives a plain model that computes the same, and leaves everything else as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora import LoRA
from lora.core.variant import variants
from lora.errors import RoutingError
from tiny_models import MODELS, batch, bits, logits, randomise, tiny


def close(left: Tensor, right: Tensor) -> None:
    """Equal within 1e-5 of the values' own size."""
    assert (left - right).abs().max() <= 1e-5 * max(1.0, float(right.detach().abs().max()))


def check_merge(model: LoRA, arch: str, folder: Path | None = None) -> Any:
    """Adapter "default" of ``model``: merged, reloaded, and nothing of the base touched."""
    inputs = batch(arch)
    with model.using("base"):
        plain = logits(model, inputs)
    unmerged = logits(model, inputs)
    before = bits(model.base)
    merged = model.merge("default")
    assert type(merged) is type(model.base)
    assert not any("lora" in type(module).__module__ for module in merged.modules())
    assert all(parameter.requires_grad for parameter in merged.parameters())
    close(logits(merged, inputs), unmerged)
    assert (unmerged - plain).abs().max() > 1e-3, "the adapter has no effect: nothing was compared"
    assert bits(model.base) == before
    assert torch.equal(logits(model, inputs), unmerged)
    if folder is not None:
        merged.save_pretrained(folder)
        again = type(merged).from_pretrained(folder)
        assert torch.equal(logits(again, inputs), logits(merged, inputs))
    return merged


@pytest.mark.parametrize("variant", sorted(variants()))
@pytest.mark.parametrize("arch", MODELS)
def test_merged_computes_the_same(arch: str, variant: str, tmp_path: Path) -> None:
    base = tiny(arch)
    fresh, first = bits(base), logits(base, batch(arch))
    model = LoRA(base, rank=4, alpha=12, variant=variant).eval()
    randomise(model.adapter_parameters("default").values())
    check_merge(model, arch, tmp_path if variant == "plain" else None)
    with model.using("base"):
        assert torch.equal(logits(model, batch(arch)), first)
    assert model.unload() is base
    assert bits(base) == fresh
    assert torch.equal(logits(base, batch(arch)), first)


@pytest.mark.parametrize("arch, settings", [
    ("llama", {"targets": ["embed_tokens", "lm_head"]}),
    ("llama", {"targets": ["embed_tokens", "q_proj"], "variant": "dora"}),
    ("gpt2", {"targets": ["wte", "wpe", "c_attn"], "tie_embeddings": False, "variant": "dora"}),
    ("vit", {"targets": ["projection"], "variant": "dora"}),
    ("vit", {"targets": ["projection"]}),
    ("bert", {"targets": "embedding", "rslora": True, "rank_pattern": {"word_embeddings": 7}}),
    ("roberta", {"modules_to_save": ["out_proj"]}),
    ("llama", {"modules_to_save": ["embed_tokens", "input_layernorm"]}),
])  # fmt: skip
def test_other_places(arch: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = LoRA(tiny(arch), rank=4, **settings).eval()
    randomise(model.adapter_parameters("default").values())
    check_merge(model, arch, tmp_path)


@pytest.mark.parametrize("arch", ["llama-tied", "gemma3", "gpt2", "t5"])
def test_a_shared_update_keeps_the_tie(arch: str, tmp_path: Path) -> None:
    model = LoRA(tiny(arch), rank=4, targets="embedding").eval()
    randomise(model.adapter_parameters("default").values())
    merged = check_merge(model, arch, tmp_path)
    assert merged.get_output_embeddings().weight is merged.get_input_embeddings().weight
    assert len(model.slots("default")) == 1 < len(model.slots("default", tied=True))


@pytest.mark.parametrize("arch, settings", [
    ("llama-tied", {"targets": ["embed_tokens", "q_proj"], "tie_embeddings": False}),
    ("llama-tied", {"targets": ["lm_head"]}),
    ("gpt2", {"targets": ["wte", "lm_head"], "tie_embeddings": False}),
    ("gemma3", {"modules_to_save": ["embed_tokens"], "tie_embeddings": False}),
])  # fmt: skip
def test_half_of_a_tied_pair_is_untied_in_the_copy(arch: str, settings: dict[str, Any], tmp_path: Path) -> None:
    model = LoRA(tiny(arch), rank=4, **settings).eval()
    randomise(model.adapter_parameters("default").values())
    merged = check_merge(model, arch, tmp_path)
    assert merged.get_output_embeddings().weight is not merged.get_input_embeddings().weight
    assert merged.config.tie_word_embeddings is False
    assert model.base.config.tie_word_embeddings is not False
    assert model.base.get_output_embeddings() is not None


def test_one_of_several_and_their_heads(tmp_path: Path) -> None:
    model = LoRA(tiny("bert"), rank=2)
    model.add_adapter("other", rank=3, variant="dora")
    for seed, name in enumerate(model.adapters):
        randomise(model.adapter_parameters(name).values(), seed)
    with pytest.raises(RoutingError, match="name one of the adapters: default, other"):
        model.merge()
    for name in model.adapters:
        with model.using(name):
            close(logits(model.merge(name).eval(), batch("bert")), logits(model.eval(), batch("bert")))


def test_a_wider_head_is_merged_with_its_labels(tmp_path: Path) -> None:
    wide = LoRA(tiny("bert", num_labels=5), rank=2).eval()
    randomise(wide.adapter_parameters("default").values())
    wide.save_adapter("default", tmp_path / "wide")
    model = LoRA(tiny("bert"), name=None).eval()
    model.load_adapter(tmp_path / "wide")
    merged = model.merge("wide")
    close(logits(merged, batch("bert")), logits(wide, batch("bert")))
    merged.save_pretrained(tmp_path / "merged")
    again = type(merged).from_pretrained(tmp_path / "merged")
    assert torch.equal(logits(again, batch("bert")), logits(merged, batch("bert")))
    assert model.base.config.num_labels == 3


def test_a_half_precision_base_is_rounded_once() -> None:
    model = LoRA(tiny("llama").to(torch.bfloat16), rank=4, targets=["q_proj"]).eval()
    randomise(model.adapter_parameters("default").values())
    merged = model.merge()
    layer = model.base.model.layers[0].self_attn.q_proj
    slot = model.slots("default")["model.layers.0.self_attn.q_proj"]
    exact = layer.weight.double() + (slot.B.double() @ slot.A.double()) * slot.scaling
    got = merged.model.layers[0].self_attn.q_proj.weight
    assert got.dtype == torch.bfloat16
    assert ((got.double() - exact).abs() <= exact.abs() * 2**-8).all()


def test_merging_forgets_checkpointing_by_row() -> None:
    model = LoRA(tiny("llama"), rank=2)
    model.add_adapter("b", rank=2)
    model.activation_checkpointing_enable()
    model.base.config.use_cache = False
    merged = model.merge("b").train()
    merged(**batch("llama")).logits.sum().backward()
    assert merged.model.layers[0].self_attn.q_proj.weight.grad is not None


def test_any_module_merges() -> None:
    base = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    model = LoRA(base, rank=2)
    randomise(model.adapter_parameters("default").values())
    x = torch.randn(6, 4)
    close(model.merge()(x), model(x))

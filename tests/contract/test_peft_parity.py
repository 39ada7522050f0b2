"""Folders written here and read by PEFT, and the other way round, compute the same."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from lora import LoRA
from tiny_models import CLASSIFIERS, MODELS, batch, bits, logits, randomise, tiny

TOLERANCE = 1e-5
WEIGHTS = "adapter_model.safetensors"
HEADS = {
    "bert": ["classifier"], "bert-tokens": ["classifier"], "llama-tokens": ["score"], "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "modernbert": ["head", "classifier"], "gpt2-cls": ["score"], "llama-cls": ["score"],
    "t5-cls": ["classification_head"], "vit": ["classifier"],
}  # fmt: skip


def through_peft(arch: str, folder: Path, **overrides: Any) -> nn.Module:
    """Real PEFT's model for ``folder`` on an identical base; fails where a key finds no place or a place no key."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="fan_in_fan_out is set to True")  # GPT-2's head is no Conv1D
        warnings.filterwarnings("ignore", category=FutureWarning)
        # Says only that the embedding and the head go their own ways from here.
        warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        model = peft.PeftModel.from_pretrained(tiny(arch, **overrides), str(folder))
        result = set_peft_model_state_dict(model, load_peft_weights(str(folder)))
    assert result.unexpected_keys == []
    assert not [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    return model.eval()


def peft_made(arch: str, folder: Path, base: dict[str, Any] | None = None, **settings: Any) -> tuple[Tensor, Tensor]:
    """An adapter made and saved by real PEFT; its logits and the untouched base's."""
    settings = {"r": 4, "lora_alpha": 12, "target_modules": "all-linear", **settings}
    model = tiny(arch, **(base or {}))
    plain = logits(model, batch(arch))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(model, peft.LoraConfig(**settings)).eval()
        randomise(parameter for parameter in model.parameters() if parameter.requires_grad)
        model.save_pretrained(folder)
    return logits(model, batch(arch)), plain


def check_ours_to_peft(arch: str, folder: Path, base: dict[str, Any] | None = None, **settings: Any) -> LoRA:
    """Made here, saved, read by PEFT: the same logits, and not the base's."""
    inputs = batch(arch)
    model = LoRA(tiny(arch, **(base or {})), **{"rank": 4, "alpha": 12, **settings}).eval()
    randomise(model.adapter_parameters("default").values())
    ours = logits(model, inputs)
    model.save_adapter("default", folder)
    theirs = logits(through_peft(arch, folder, **(base or {})), inputs)
    with model.using("base"):
        assert (ours - logits(model, inputs)).abs().max() > 100 * TOLERANCE, (
            "the adapter has no effect: nothing was compared"
        )
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    return model


def check_peft_to_ours(
    arch: str, folder: Path, base: dict[str, Any] | None = None, compare_files: bool = True, **settings: Any
) -> LoRA:
    """Made and saved by PEFT, read here: the same logits, and not the base's; saved again: the same file."""
    theirs, plain = peft_made(arch, folder, base, **settings)
    model = LoRA(tiny(arch, **(base or {})), name=None).eval()
    before = bits(model.base)
    name = model.load_adapter(folder)
    ours = logits(model, batch(arch))
    assert (theirs - plain).abs().max() > 100 * TOLERANCE, "the adapter has no effect: nothing was compared"
    torch.testing.assert_close(ours, theirs, atol=TOLERANCE, rtol=0)
    again = folder.parent / "again"
    model.save_adapter(name, again)
    if compare_files:
        same_file(folder, again)
    torch.testing.assert_close(
        logits(through_peft(arch, again, **(base or {})), batch(arch)), theirs, atol=TOLERANCE, rtol=0
    )
    model.unload()
    assert bits(model.base) == before
    return model


def same_file(theirs: Path, ours: Path) -> None:
    """The same keys, shapes and values in both folders."""
    left, right = load_file(theirs / WEIGHTS), load_file(ours / WEIGHTS)
    assert {k: tuple(v.shape) for k, v in left.items()} == {k: tuple(v.shape) for k, v in right.items()}
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


@pytest.mark.parametrize("variant", ["plain", "dora"])
@pytest.mark.parametrize("arch", MODELS)
def test_ours_is_read_by_peft(arch: str, variant: str, tmp_path: Path) -> None:
    model = check_ours_to_peft(arch, tmp_path / "a", variant=variant)
    assert list(model.owned("default")) == HEADS.get(arch, [])


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("arch", MODELS)
def test_peft_is_read_here(arch: str, dora: bool, tmp_path: Path) -> None:
    heads = HEADS.get(arch)
    check_peft_to_ours(arch, tmp_path / "a", use_dora=dora, modules_to_save=heads)


@pytest.mark.parametrize("arch", MODELS)
def test_the_same_settings_give_the_same_keys(arch: str, tmp_path: Path) -> None:
    heads = HEADS.get(arch)
    peft_made(arch, tmp_path / "theirs", modules_to_save=heads)
    LoRA(tiny(arch), rank=4, alpha=12).save_adapter("default", tmp_path / "ours")
    theirs, ours = load_file(tmp_path / "theirs" / WEIGHTS), load_file(tmp_path / "ours" / WEIGHTS)
    assert {k: tuple(v.shape) for k, v in theirs.items()} == {k: tuple(v.shape) for k, v in ours.items()}
    assert all(value.dtype == torch.float32 for value in ours.values())
    # Adapters of engines that read the configuration alone: every key has PEFT's own meaning.
    stored = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert stored["peft_type"] == "LORA" and stored["inference_mode"] is True and stored["r"] == 4
    assert set(stored) <= set(peft.LoraConfig().to_dict())


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("llama", {"rslora": True}),
    "rank and alpha patterns": (
        "llama", {"rank_pattern": {r"layers\.0\..*_proj": 2, "o_proj": 6}, "alpha_pattern": {"mlp.down_proj": 3.5}},
    ),
    "pattern for a whole path": ("bert", {"rank_pattern": {"bert.encoder.layer.1.output.dense": 7}}),
    "one layer": ("qwen2", {"layers": 1}),
    "layers of an encoder": ("bert", {"layers": "1-", "targets": ["query", "dense"]}),
    "exclude": ("mistral", {"exclude": ["k_proj", "mlp.up_proj"]}),
    "exclude by expression": ("gpt2", {"exclude": r".*\.0\.attn\..*"}),
    "attention": ("t5", {"targets": "attention"}),
    "mlp": ("phi3", {"targets": "mlp"}),
    "expression": ("opt", {"targets": r".*layers\.1\.(self_attn\.q_proj|fc1)"}),
    "fractional alpha": ("bloom", {"alpha": 2.5}),
    "untied embedding": ("llama", {"targets": ["embed_tokens", "q_proj"]}),
    "untied embedding and head": ("llama", {"targets": ["embed_tokens", "lm_head", "q_proj"]}),
    "embedding under another name": ("gpt2", {"targets": ["wte", "c_attn"]}),
    "tied embedding alone": ("llama-tied", {"targets": ["embed_tokens", "q_proj"], "tie_embeddings": False}),
    "tied embedding, both alone": ("llama-tied", {"targets": ["embed_tokens", "lm_head"], "tie_embeddings": False}),
    "tied embedding, shared": ("llama-tied", {"targets": ["embed_tokens", "q_proj"]}),
    "scaled embedding": ("gemma3", {"targets": ["embed_tokens", "q_proj"], "tie_embeddings": False}),
    "scaled embedding, shared": ("gemma3", {"targets": ["embed_tokens", "q_proj"]}),
    "gemma 2 embedding, shared": ("gemma2", {"targets": "embedding"}),
    "dora on an embedding": ("llama", {"targets": ["embed_tokens", "q_proj"], "variant": "dora"}),
    "embeddings of t5, shared": ("t5", {"targets": "embedding"}),
    "encoder embedding": ("bert", {"targets": ["embedding", "query"]}),
    "shared embeddings of t5": ("t5", {"targets": ["shared", "q"], "tie_embeddings": False}),
    "convolution": ("vit", {"targets": ["projection", "q_proj"]}),
    "dora on a convolution": ("vit", {"targets": ["projection", "q_proj"], "variant": "dora"}),
    "no head": ("bert", {"modules_to_save": []}),
    "more modules in full": ("bert", {"modules_to_save": ["classifier", "pooler"]}),
    "norm layers in full": ("llama", {"modules_to_save": ["input_layernorm"]}),
    "head only in part": ("roberta", {"modules_to_save": ["out_proj"]}),
    "one head of two": ("distilbert", {"modules_to_save": ["classifier"]}),
    "embedding of a tied pair in full": ("llama-tied", {"modules_to_save": ["embed_tokens"], "tie_embeddings": False}),
    "embedding in full": ("llama", {"modules_to_save": ["embed_tokens"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_settings_are_read_by_peft(case: str, tmp_path: Path) -> None:
    arch, settings = CASES[case]
    model = check_ours_to_peft(arch, tmp_path / "a", **settings)
    # And read back here, the adapter is the same.
    other = LoRA(tiny(arch), name=None).eval()
    other.load_adapter(tmp_path / "a", "back")
    assert torch.equal(logits(other, batch(arch)), logits(model, batch(arch)))
    other.save_adapter("back", tmp_path / "b")
    same_file(tmp_path / "a", tmp_path / "b")


PEFT_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rslora": ("qwen3", {"use_rslora": True}),
    "patterns": (
        "llama", {"rank_pattern": {r"layers\.0\..*_proj": 2, "o_proj": 6}, "alpha_pattern": {"down_proj": 3.5}},
    ),
    "anchored pattern": ("llama", {"rank_pattern": {"^model.layers.0.self_attn.q_proj": 9}}),
    "layers": ("bert", {"target_modules": ["query", "value"], "layers_to_transform": [1]}),
    "layers with a pattern": (
        "llama", {"target_modules": ["q_proj"], "layers_to_transform": 0, "layers_pattern": "layers"},
    ),
    "exclude": ("mistral", {"exclude_modules": ["k_proj"]}),
    "exclude by expression": ("mistral", {"exclude_modules": r".*layers\.0\..*"}),
    "expression": ("opt", {"target_modules": r".*layers\.[01]\.(self_attn\.q_proj|fc1)"}),
    "expression for heads too": ("llama", {"target_modules": r".*(q_proj|lm_head)"}),
    "list": ("distilbert", {"target_modules": ["q_lin", "lin2"], "modules_to_save": ["classifier", "pre_classifier"]}),
    "task type lists both heads": ("bert", {"task_type": "SEQ_CLS", "target_modules": ["query"]}),
    "task type of a decoder": ("llama-cls", {"task_type": "SEQ_CLS", "target_modules": ["q_proj"]}),
    "task type of tags": ("bert-tokens", {"task_type": "TOKEN_CLS", "target_modules": ["query"]}),
    "task type, causal": ("gpt2", {"task_type": "CAUSAL_LM", "target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "untied embedding": ("llama", {"target_modules": ["embed_tokens", "lm_head", "q_proj"]}),
    "embedding and dora": ("llama", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "tied, alone": ("llama-tied", {"target_modules": ["embed_tokens"]}),
    "tied, both alone": ("llama-tied", {"target_modules": ["embed_tokens", "lm_head"]}),
    "tied, shared": ("llama-tied", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "tied, shared, named twice": (
        "llama-tied", {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True},
    ),
    "scaled embedding": ("gemma3", {"target_modules": ["embed_tokens", "q_proj"]}),
    "scaled, shared": ("gemma3", {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}),
    "convolution": ("vit", {"target_modules": ["projection"], "modules_to_save": ["classifier"]}),
    "convolution and dora": ("vit", {"target_modules": ["projection"], "use_dora": True}),
    "embedding in full": ("llama", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "two heads for one name": ("distilbert", {"task_type": "SEQ_CLS", "target_modules": ["q_lin"]}),
    "tied, embedding in full": ("llama-tied", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "tied embeddings of t5": ("t5", {"target_modules": ["q", "embed_tokens"], "ensure_weight_tying": True}),
    "gaussian start": ("llama", {"init_lora_weights": "gaussian", "target_modules": ["q_proj"]}),
    "linear, dora, patterns": (
        "gpt2-cls", {"use_dora": True, "rank_pattern": {"c_attn": 2}, "modules_to_save": ["score"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PEFT_CASES)
def test_settings_of_peft_are_read_here(case: str, tmp_path: Path) -> None:
    arch, settings = PEFT_CASES[case]
    # There PEFT forgets the base weights that it stores for every other targeted embedding.
    check_peft_to_ours(arch, tmp_path / "a", compare_files=case != "tied embeddings of t5", **settings)


# Largest error allowed, as a share of the largest gradient of its tensor. Sums are taken in another order here than in
# PEFT, and each processor's kernels in yet another: single entries that nearly cancel differ by any factor, so entries
# have no tolerance of their own. In fp32 the two then lie within 3e-6, as far as each is from its own fp64 result; in
# fp64 within 1e-14, where no formula but the same one passes.
GRADIENTS = {torch.float64: 1e-12, torch.float32: 2e-5}


@pytest.mark.parametrize("dtype", GRADIENTS)
@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama", "vit"])
def test_gradients_are_those_of_peft(arch: str, dora: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    """DoRA's norm is a constant in the backward (section 4.3 of its paper): outputs alone would not tell."""
    targets = ["projection", "q_proj", "classifier"] if arch == "vit" else "all-linear"
    peft_made(arch, tmp_path / "a", use_dora=dora, target_modules=targets)
    theirs = peft.PeftModel.from_pretrained(tiny(arch), str(tmp_path / "a"), is_trainable=True).eval().to(dtype)
    ours = LoRA(tiny(arch), name=None).eval()
    ours.load_adapter(tmp_path / "a")
    ours.to(dtype)
    inputs = {key: value.to(dtype) if value.is_floating_point() else value for key, value in batch(arch).items()}
    for model in (theirs, ours):
        model(**inputs).logits.pow(2).sum().backward()
    suffixes = {"A": "lora_A.default.weight", "B": "lora_B.default.weight",
                "magnitude": "lora_magnitude_vector.default.weight"}  # fmt: skip
    expected = {
        name.removeprefix("base_model.model."): p.grad for name, p in theirs.named_parameters() if p.requires_grad
    }
    parameters = ours.adapter_parameters("a")
    assert len(expected) == len(parameters)
    for key, parameter in parameters.items():
        path, _, name = key.rpartition(".")
        assert parameter.grad is not None
        gradient = expected[f"{path}.{suffixes[name]}"].view_as(parameter)
        largest = float(gradient.abs().max())
        assert largest > 1e-4, f"{key}: no gradient to compare"
        assert float((parameter.grad - gradient).abs().max()) <= GRADIENTS[dtype] * largest, key


def test_cases_reach_what_they_name() -> None:
    """The archs with heads are the classifiers: a new classifier must say which modules it owns."""
    assert set(HEADS) == set(CLASSIFIERS)
    assert re.search("Conv1D", repr(tiny("gpt2")))

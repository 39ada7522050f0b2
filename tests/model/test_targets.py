"""Which modules a setting picks, and what is said where it picks none."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from lora import LoRA
from lora.config import AdapterConfig
from lora.errors import ConfigError, TargetError
from lora.model.heads import modules_to_own, output_heads, task_heads
from lora.model.targets import TargetReport, find_targets, parse_layers
from lora.model.tree import inside, unwrapped_modules
from tiny_models import MODELS, tiny


def report(model: nn.Module, **settings: Any) -> TargetReport:
    owned = modules_to_own(model, settings.get("modules_to_save"))
    return find_targets(model, AdapterConfig(**{"rank": 2, **settings}), owned)


def paths(model: nn.Module, **settings: Any) -> list[str]:
    return [target.path for target in report(model, **settings).adapted]


# Linear layers of one attention block and of one MLP.
PARTS = {
    "bert": (4, 2), "bert-tokens": (4, 2), "llama-tokens": (4, 3), "roberta": (4, 2),
    "distilbert": (4, 2), "modernbert": (2, 2), "gpt2": (2, 2), "gpt2-cls": (2, 2),
    "opt": (4, 2), "bloom": (2, 2), "llama": (4, 3), "llama-tied": (4, 3), "llama-cls": (4, 3), "qwen2": (4, 3),
    "qwen3": (4, 3), "mistral": (4, 3), "gemma2": (4, 3), "gemma3": (4, 3), "phi3": (2, 2), "vit": (4, 2),
}  # fmt: skip


@pytest.mark.parametrize("arch", MODELS)
def test_presets_divide_the_linear_layers(arch: str) -> None:
    model = tiny(arch)
    attention, mlp, everything = (set(paths(model, targets=name)) for name in ("attention", "mlp", "all-linear"))
    assert attention | mlp <= everything and not attention & mlp
    linear = {
        p for p, m in unwrapped_modules(model).items() if isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D"
    }
    kept_out = {path for path in linear if inside(path, [*output_heads(model), *task_heads(model)])}
    assert everything == linear - kept_out
    # What lies in no layer belongs to neither: BERT's pooler alone.
    assert everything - attention - mlp == ({"bert.pooler.dense"} if arch == "bert" else set())
    if arch in PARTS:
        assert (len(attention), len(mlp)) == tuple(2 * count for count in PARTS[arch])
    else:  # T5: two layers of encoder (self-attention, MLP) and decoder (cross-attention as well)
        assert (len(attention), len(mlp)) == (24, 8)


@pytest.mark.parametrize("arch, expected", [
    ("bert", ["bert.embeddings.word_embeddings"]), ("llama", ["model.embed_tokens"]), ("gpt2", ["transformer.wte"]),
    ("t5", ["shared", "encoder.embed_tokens", "decoder.embed_tokens"]),
])  # fmt: skip
def test_embedding_means_tokens_not_positions(arch: str, expected: list[str]) -> None:
    assert paths(tiny(arch), targets="embedding") == expected


def test_a_model_that_does_not_name_its_embedding_has_the_largest_taken() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(50, 8), "positions": nn.Embedding(9, 8)})
    assert paths(model, targets="embedding") == ["tokens"]
    with pytest.raises(TargetError, match=r"'embedding' matches no module\. Presets"):
        paths(tiny("vit"), targets="embedding")


def test_layers_without_a_name_for_attention() -> None:
    block = nn.ModuleDict({"q_proj": nn.Linear(4, 4), "up": nn.Linear(4, 8)})
    model = nn.ModuleDict({"layers": nn.ModuleList([block]), "first": nn.Linear(4, 4)})
    assert paths(model, targets="attention") == ["layers.0.q_proj"]
    assert paths(model, targets="mlp") == ["layers.0.up"]


def test_names_lists_and_expressions() -> None:
    model = tiny("llama")
    assert paths(model, targets="q_proj") == paths(model, targets=["q_proj"]) == paths(model, targets=r".*\.q_proj")
    assert paths(model, targets=["layers.1.self_attn.q_proj"]) == ["model.layers.1.self_attn.q_proj"]
    assert paths(model, targets=r"model\.layers\.1\..*") == [p for p in paths(model) if ".1." in p]
    assert paths(model, targets=["mlp", "q_proj", "lm_head"]) == [
        p for p in [*paths(model), "lm_head"] if "mlp" in p or "q_proj" in p or "lm_head" in p
    ]
    assert paths(model, targets="all_linear") == paths(model)


@pytest.mark.parametrize("layers, expected", [
    (1, {1}), ("0", {0}), ([0, 2], {0, 2}), ("1-2", {1, 2}), ("2-", {2, 3}), ("-1", {0, 1}), ("0,2-3", {0, 2, 3}),
    (" 0 , 3 ", {0, 3}), (None, None),
])  # fmt: skip
def test_layer_ranges(layers: Any, expected: Any) -> None:
    assert parse_layers(layers, 4) == expected


@pytest.mark.parametrize("layers, message", [
    (4, r"layers: \[4\] not in this model, which has layers 0 to 3"), ("2-9", "not in this model"), ([], "not in this"),
    ("x", "cannot read 'x'"), ("-", "cannot read"), ("1,,2", "cannot read"), ("3-1", "'3-1' not in this model"),
    (-1, r"\[-1\] not in"),
])  # fmt: skip
def test_layer_ranges_that_cannot_be(layers: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_layers(layers, 4)


def test_layers_keep_the_rest_out() -> None:
    found = report(tiny("bert"), layers="1-")
    assert found.adapted and all(".layer.1." in target.path for target in found.adapted)
    assert found.skipped["bert.pooler.dense"] == "outside the chosen layers"


def test_exclusions_say_so() -> None:
    found = report(tiny("llama"), exclude=["k_proj", "layers.0.mlp.up_proj"])
    kept = [target.path for target in found.adapted]
    assert len(kept) == 14 - 3 and not any("k_proj" in path for path in kept)
    assert found.skipped["model.layers.0.mlp.up_proj"] == "excluded"
    assert paths(tiny("llama"), exclude=r".*\.mlp\..*") == paths(tiny("llama"), targets="attention")


def test_ranks_and_alphas_by_pattern() -> None:
    found = report(
        tiny("llama"), rank=4, alpha=8, rank_pattern={"q_proj": 2, r"layers\.1\..*": 3}, alpha_pattern={"mlp.*": 5}
    )
    by_path = {target.path: (target.rank, target.rank * target.scaling) for target in found.adapted}
    assert by_path["model.layers.0.self_attn.q_proj"] == (2, 8)
    assert by_path["model.layers.1.self_attn.q_proj"] == (2, 8)  # the first that fits
    assert by_path["model.layers.1.self_attn.k_proj"] == (3, 8)
    assert by_path["model.layers.0.mlp.up_proj"] == (4, 5)


@pytest.mark.parametrize("settings, message", [
    ({"targets": "q_porj"}, r"'q_porj' matches no module \(did you mean '[qo]_proj'\?\).*There are: .*q_proj ×2"),
    ({"targets": ["q_proj", "nothing"]}, "'nothing' matches no module"),
    ({"targets": "atention"}, r"did you mean 'attention'\?"),
    ({"targets": "(q_proj"}, "neither a module's name nor a regular expression"),
    ({"targets": []}, "matches nothing to adapt"),
    ({"targets": ["self_attn"]}, "'model.layers.0.self_attn' is a LlamaAttention, which cannot be adapted"),
    ({"targets": ["input_layernorm"]}, "is a LlamaRMSNorm"),
    ({"targets": "q_proj", "exclude": ["q_proj"]}, r"all matches were left out: .*q_proj \(excluded\) and 1 more"),
    ({"exclude": ["nothing"]}, "exclude: 'nothing' matches no module"),
    ({"exclude": "*"}, "exclude: .* nor a regular expression"),
    ({"exclude": "nothing.*"}, "matches no module"),
    ({"rank_pattern": {"nothing": 2}}, "rank_pattern: 'nothing' matches none of the adapted modules"),
    ({"alpha_pattern": {"[": 2}}, "alpha_pattern: .* nor a regular expression"),
    ({"rank": 17}, r"rank: above the size of .*k_proj \(rank 17, size 16\).*and 1 more.*Use rank 16 or less"),
    ({"rank_pattern": {"q_proj": 99}}, r"q_proj \(rank 99, size 32\)"),
    ({"layers": 7}, r"\[7\] not in this model"),
    ({"modules_to_save": ["nothing"]}, "modules_to_save: 'nothing' matches no module"),
])  # fmt: skip
def test_what_cannot_be_is_said_with_what_there_is(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        report(tiny("llama"), **settings)


@pytest.mark.parametrize(
    "settings", [{"rank": 0}, {"alpha": 0}, {"alpha": -1.0}, {"dropout": 1.0}, {"rank_pattern": {"x": 0}}]
)
def test_numbers_out_of_range(settings: dict[str, Any]) -> None:
    base = tiny("llama")
    with pytest.raises(ConfigError, match=next(iter(settings))):
        LoRA(base, **settings)
    assert not any("lora" in type(module).__module__ for module in base.modules())
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_attention_of_torch_is_left_alone_with_the_reason() -> None:
    model = nn.TransformerEncoderLayer(8, 2, 16)
    found = report(model)
    assert [target.path for target in found.adapted] == ["linear1", "linear2"]
    assert "MultiheadAttention" in found.skipped["self_attn.out_proj"]
    with pytest.raises(TargetError, match="reads its weight without calling it"):
        report(nn.MultiheadAttention(8, 2))
    with pytest.raises(TargetError, match="reads its weight without calling it"):
        report(model, targets=["out_proj"])


def test_grouped_convolutions_are_no_target() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1))
    assert paths(model, targets=["1"]) == ["1"]
    with pytest.raises(TargetError, match="'0' is a Conv2d, which cannot be adapted"):
        paths(model, targets=["0"])


def test_heads_are_found_and_the_output_embedding_is_none() -> None:
    assert task_heads(tiny("distilbert")) == ["pre_classifier", "classifier"]
    assert task_heads(tiny("llama")) == [] and output_heads(tiny("llama")) == {"lm_head"}
    assert output_heads(tiny("bert")) == set()
    assert modules_to_own(tiny("distilbert"), ["classifier"]) == ["pre_classifier", "classifier"]  # as PEFT reads it
    assert modules_to_own(tiny("llama"), ["self_attn", "q_proj"]) == [f"model.layers.{n}.self_attn" for n in (0, 1)]
    assert modules_to_own(tiny("bert"), []) == []


def test_exclude_takes_one_plain_name():
    assert paths(tiny("llama"), exclude="k_proj") == paths(tiny("llama"), exclude=["k_proj"])
    assert not any(path.endswith("k_proj") for path in paths(tiny("llama"), exclude="k_proj"))


def test_layers_whose_weights_are_read_past_them_are_left_alone() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    model = LoRA(MambaForCausalLM(MambaConfig(hidden_size=16, num_hidden_layers=1, vocab_size=50)), rank=2)
    assert list(model.slots("default")) == ["backbone.layers.0.mixer.in_proj"]
    assert "its weight is read without the layer being called" in set(model.reports["default"].skipped.values())
    for arch in ("bert", "gpt2", "llama", "t5", "modernbert", "vit"):
        assert not LoRA(tiny(arch), rank=2).reports["default"].skipped

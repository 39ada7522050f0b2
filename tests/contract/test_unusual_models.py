"""Models that do something else than most: adapted, trained a step, or left alone where they must be."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers as hf

from lora import LoRA
from lora.errors import AdapterFileError, ConfigError, RoutingError
from lora.model.base import MAX_LENGTH, longest_row
from tiny_models import tiny

IDS = torch.tensor([[5, 6, 7, 8, 9, 3]])
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def steps_back(model: LoRA) -> None:
    model.train()
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert any(p.grad is not None for p in model.adapter_parameters("default").values())


def test_operations_in_place_on_what_layers_give() -> None:
    config = hf.FalconConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
    for variant in ("plain", "dora"):
        steps_back(LoRA(hf.FalconForCausalLM(config), rank=4, variant=variant))


def test_routers_that_give_two_tensors_are_left_alone() -> None:
    config = hf.Llama4TextConfig(**SMALL, num_local_experts=2, intermediate_size_mlp=48)
    model = LoRA(hf.AutoModelForCausalLM.from_config(config), rank=2)
    assert not any("router" in path for path in model.slots("default"))
    steps_back(model)


def test_gates_of_one_output_are_left_alone() -> None:
    config = hf.Qwen2MoeConfig(**SMALL, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=16,
                               shared_expert_intermediate_size=16)  # fmt: skip
    model = LoRA(hf.Qwen2MoeForCausalLM(config), rank=4)
    assert not any(path.endswith("shared_expert_gate") for path in model.slots("default"))
    steps_back(model)


def test_a_rank_that_nobody_chose_fits_small_layers(tmp_path: Path) -> None:
    model = LoRA(tiny("llama"))
    config = model.adapters["default"]
    assert config.rank == 32 and set(config.rank_pattern.values()) == {16}
    ranks = {path: slot.rank for path, slot in model.slots("default").items()}
    assert {rank for path, rank in ranks.items() if path.endswith(("k_proj", "v_proj"))} == {16}
    assert {rank for path, rank in ranks.items() if path.endswith("q_proj")} == {32}
    model.save_adapter("default", tmp_path / "a")
    model.load_adapter(tmp_path / "a", "again")
    assert {path: slot.rank for path, slot in model.slots("again").items()} == ranks
    with pytest.raises(ConfigError, match="rank 32, size 16"):
        LoRA(tiny("llama"), rank=32)


def test_a_masked_language_model_on_a_headless_checkpoint(tmp_path: Path) -> None:
    """Its head is tied to the embeddings and has a new bias and a new layer before it."""
    config = hf.BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4,
                           intermediate_size=48)  # fmt: skip
    hf.BertModel(config).save_pretrained(tmp_path / "base")
    model = LoRA(hf.BertForMaskedLM.from_pretrained(tmp_path / "base"), rank=4)
    assert "cls.predictions.transform.dense" in model.owned("default")
    assert not any(path in ("cls.predictions", "cls.predictions.decoder") for path in model.owned("default"))
    steps_back(model)


@pytest.mark.parametrize("positions", [-1, 0, None])
def test_a_model_without_a_limit_of_length(positions: int | None) -> None:
    model = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=positions))
    assert longest_row(SimpleNamespace(model_max_length=10**30), model) == MAX_LENGTH


def test_an_adapter_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    model = LoRA(tiny("bert"), rank=2)
    with torch.no_grad():
        next(iter(model.slots("default").values())).B.fill_(torch.nan)
    model.save_adapter("default", tmp_path / "a")
    with pytest.raises(AdapterFileError, match=r"lora_B.weight holds NaN or infinity \(1 such\)"):
        model.load_adapter(tmp_path / "a", "again")


def test_one_row_for_all_that_a_model_counts_on() -> None:
    # DeBERTa projects its table of relative positions, one row, and repeats what comes out for each row of the batch.
    config = hf.DebertaV2Config(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], share_att_key=True, num_labels=2,
    )  # fmt: skip
    model = LoRA(hf.DebertaV2ForSequenceClassification(config), rank=4)
    model.add_adapter("b", rank=2)
    with torch.no_grad(), pytest.raises(RoutingError, match="does not take these.*model.using"):
        model(input_ids=IDS.repeat(4, 1), adapters=["default", "b"] * 2)
    assert model(input_ids=IDS.repeat(4, 1), adapters=["b"] * 4).logits.shape == (4, 2)

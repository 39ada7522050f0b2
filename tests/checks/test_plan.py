"""What a run will need: held against what it then takes, and said of what does not fit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM

import lora
from lora import LoRA, RunConfig
from lora.checks import plan as planning
from lora.checks import rehearsal, stand_in
from lora.checks.plan import _root
from lora.checks.rehearsal import Role, rehearse
from lora.checks.stand_in import longer, made_up, rows_for
from lora.cli.plan import _does_not_fit
from lora.config import AdapterConfig, TrainingConfig
from lora.errors import ConfigError
from small_base import labelled, save_base, stories, write_jsonl


def shape(layers: int = 2, **settings: Any) -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, **{**sizes, "vocab_size": 512, **settings}))


def role(length: int = 64, batch: int = 4, rank: int = 4, **training: Any) -> dict[str, Role]:
    settings = TrainingConfig(batch_size=batch, **training)
    return {"a": Role(made_up("causal", length, batch), AdapterConfig(rank=rank), settings)}


@pytest.mark.parametrize("recompute", [False, True])
def test_a_deep_model_is_told_from_two_shallow_ones(recompute: bool, monkeypatch: Any) -> None:
    told = rehearse(shape(16), role(), recompute)
    monkeypatch.setattr(rehearsal, "SHALLOW", 99)
    whole = rehearse(shape(16), role(), recompute)
    assert told.parameters == whole.parameters and told.weights == whole.weights and told.trainable == whole.trainable
    assert told.operations == pytest.approx(whole.operations, rel=1e-6) and told.files == whole.files
    assert told.kept == pytest.approx(whole.kept, rel=1e-3)
    assert told.phases["pass"].peak == pytest.approx(whole.phases["pass"].peak, rel=1e-2)
    assert told.needs.kept.whole == pytest.approx(whole.needs.kept.whole, rel=1e-3)


def test_layers_that_are_told_apart_all_run() -> None:
    everyone = role()
    last = {"a": Role(everyone["a"].prepared, AdapterConfig(rank=4, layers="15"), everyone["a"].training)}
    named = AdapterConfig(rank=4, targets=r".*layers\.15\..*_proj")
    by_name = {"a": Role(everyone["a"].prepared, named, everyone["a"].training)}
    one, other, every = (rehearse(shape(16), roles, False) for roles in (last, by_name, everyone))
    assert one.trainable == other.trainable == {kind: count // 16 for kind, count in every.trainable.items()}
    assert one.kept < every.kept / 4, "below it no gradient flows"


def test_operations_are_those_of_the_reference() -> None:
    found = rehearse(shape(vocab_size=2048), role(length=64, batch=8, packing=False), False)
    body = found.parameters - 2 * 2048 * 64
    adapter = sum(found.trainable.values())
    # Forward and input gradient of the body and of the head; forward, input and own gradient of the adapter.
    per_token = 4 * body + 4 * 2048 * 64 + 6 * adapter
    attention = 2 * (2 + 5) * 2 * 64 * 64  # of each layer two products forward and five backward
    assert found.operations / found.tokens == pytest.approx(per_token + attention, rel=0.03)


def test_what_takes_less_takes_less() -> None:
    plain = rehearse(shape(), role(128, 8), False)
    assert rehearse(shape(), role(128, 8), True).kept < 0.6 * plain.kept
    assert rehearse(shape(), role(128, 4), False).kept == pytest.approx(plain.kept / 2, rel=0.05)
    assert rehearse(shape(), role(128, 8, rank=8), False).state == 2 * plain.state


@pytest.mark.parametrize("packing", [None, False])
def test_two_passes_of_each_row_and_a_mean_of_the_parameters_are_counted(packing: bool | None) -> None:
    # The first one of a process may keep a tensor in a cache of torch's: it is made once before.
    rehearse(shape(), role(64, 8, packing=packing), False)
    plain, twice = (rehearse(shape(), role(64, 8, packing=packing, r_drop=alpha), False) for alpha in (0.0, 1.0))
    assert twice.tokens == 2 * plain.tokens and twice.needs.tokens == 2 * plain.needs.tokens
    assert twice.supervised == plain.supervised and twice.kept > 1.8 * plain.kept
    averaged = rehearse(shape(), role(64, 8, packing=packing, average="ema"), False)
    assert plain.averages == 0 and averaged.averages == averaged.adapters
    assert averaged.needs.state == plain.needs.state + averaged.adapters
    assert averaged.phases["pass"].peak == pytest.approx(plain.phases["pass"].peak + averaged.adapters, rel=1e-3)
    assert averaged.files == (plain.files[0], plain.files[1] + averaged.adapters)
    parts = planning.parts_of(averaged)
    assert parts["mean of the parameters over steps"] == averaged.adapters
    noisy = rehearse(shape(), role(64, 8, packing=packing, neftune_alpha=5), False)
    assert noisy.tokens == plain.tokens and noisy.kept == pytest.approx(plain.kept, rel=0.05)


@pytest.mark.parametrize("packing", [None, False])
def test_kl_to_the_base_takes_the_bases_part_of_a_pass(packing: bool | None) -> None:
    """As many tokens again, whose activations lie beside the adapter's; memory needed of the largest batch alike."""
    plain, held = (rehearse(shape(), role(64, 8, packing=packing, kl=kl), False) for kl in (0.0, 1.0))
    assert held.tokens == 2 * plain.tokens and held.needs.tokens == 2 * plain.needs.tokens
    assert held.kept > 1.4 * plain.kept and held.phases["pass"].peak > 1.3 * plain.phases["pass"].peak
    assert held.operations > 1.3 * plain.operations
    without, needed = (found.needs.memory(1e12, False).needed(found.needs.tokens, 1) for found in (plain, held))
    assert needed > 1.3 * without


def test_replay_is_planned_with(tmp_path: Path) -> None:
    save_base(tmp_path / "base", "llama")
    data = write_jsonl(tmp_path / "data.jsonl", stories(40))
    general = write_jsonl(tmp_path / "general.jsonl", [{"text": "red sun here now " * 10}] * 9)
    settings = {"model": str(tmp_path / "base"), "data": {"train": str(data), "held_out": 0, "max_length": 50},
                "training": {"batch_size": 4}}  # fmt: skip
    plain = lora.plan(RunConfig.make(settings), search=False)
    without = rows_for(RunConfig.make(settings), None).tokens
    settings["data"]["replay"] = {"path": str(general), "share": 0.2}  # type: ignore[index]
    settings["training"].update(kl=1.0, kl_on="replay")  # type: ignore[attr-defined]
    replayed = lora.plan(RunConfig.make(settings), search=False)
    assert plain.steps == 30 and replayed.steps == 39  # 10 and 12.5 batches an epoch
    assert plain.length < replayed.length == 41
    assert rows_for(RunConfig.make(settings), None).tokens == pytest.approx(0.8 * without + 0.2 * 4 * 41)
    settings["data"].pop("train")  # type: ignore[attr-defined]
    assert lora.plan(RunConfig.make(settings), length=32, search=False).tokens == 2 * 4 * 32


def test_several_adapters_share_a_pass() -> None:
    one = rehearse(shape(), role(), False)
    both = {**role(), "b": role()["a"]}
    two = rehearse(shape(), both, False)
    assert two.tokens == 2 * one.tokens and two.state == 2 * one.state and two.kept == pytest.approx(2 * one.kept, 0.05)
    waiting = rehearse(shape(), both, False, at_once=1)
    assert (waiting.tokens, waiting.state, waiting.adapters) == (one.tokens, one.state, two.adapters)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_plan_is_what_training_measures(kind: str, tmp_path: Path) -> None:
    """Parameters, and what a pass keeps, of the base itself with its weights and the real data."""
    base = save_base(tmp_path / "base", kind)
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(32) if kind == "bert" else stories(32))
    config = RunConfig(model=str(base), data={"train": str(data)}, adapter={"rank": 4}, training={"dtype": "float32"})
    found = lora.plan(config, search=False)
    auto = AutoModelForSequenceClassification if kind == "bert" else AutoModelForCausalLM
    real: Any = auto.from_pretrained(base, **({"num_labels": 3} if kind == "bert" else {}))
    model = LoRA(real, rank=4)
    assert found.parameters == model.base_parameter_count()
    assert sum(found.trainable.values()) == sum(p.numel() for p in model.adapter_parameters("default").values())
    assert found.fits and found.packed == (kind == "llama") and found.steps == 6
    assert sum(found.memory.values()) == pytest.approx(found.peak)
    result = lora.fit(model, str(data), output_dir=tmp_path / "run", max_steps=1, tensorboard=False)
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    assert found.disk["adapter"] == pytest.approx(weights.stat().st_size, rel=0.2)
    assert result.steps == 1


def test_what_fits_is_within_what_there_is(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(planning, "_resident", lambda: 2.0**28)  # its own grows with what the first plan imports
    base = save_base(tmp_path / "base", "llama", hidden_size=64)
    config = RunConfig(model=str(base), training={"batch_size": 4, "dtype": "float32"}, data={"held_out": 0})
    own = lora.plan(config, length=32, search=False)
    gib = (own.process + 4 * own.peak) / 2**30
    found = lora.plan(config, length=32, device_gib=gib)
    assert found.fits and found.largest_batch is not None and found.largest_batch > 4
    assert found.largest_length is not None and 32 <= found.largest_length <= 64, "the model has 64 positions"


def test_what_does_not_fit_comes_with_remedies(tmp_path: Path, monkeypatch: Any) -> None:
    base = save_base(tmp_path / "base", "llama", hidden_size=64)
    config = RunConfig(
        model=str(base), data={"held_out": 0},
        training={"batch_size": 64, "dtype": "float32", "gradient_checkpointing": False},
    )  # fmt: skip
    own = lora.plan(config, length=64, search=False)
    monkeypatch.setattr(planning, "_resident", lambda: 0.0)
    found = lora.plan(config, length=64, device_gib=0.5 * own.peak / 2**30)
    assert not found.fits and found.remedies[0][0] == "gradient_checkpointing: true"
    assert found.remedies[-1][1] <= found.available, "and with the last it fits"


def test_no_remedy_is_named_where_the_process_alone_is_above_the_device(llama: Path, monkeypatch: Any) -> None:
    config = RunConfig(model=str(llama), data={"held_out": 0}, training={"batch_size": 4, "dtype": "float32"})
    monkeypatch.setattr(planning, "_resident", lambda: 2.0**28)
    found = lora.plan(config, length=16, device_gib=0.25)
    assert not found.fits and found.available == 0 and found.remedies == [] and found.largest_batch == 0
    said = _does_not_fit(found)
    assert "no run fits: the process alone takes 0.2 GiB" in said and "less" not in said
    # A little is left, and whatever may be changed takes more: that is said before it is listed.
    found = lora.plan(config, length=16, device_gib=0.25 + 2**-20)
    said = _does_not_fit(found)
    assert found.remedies and "Nothing that can be changed here makes it fit" in said and "which fits" not in said


def test_rows_of_another_length_have_all_that_a_row_has() -> None:
    rows = made_up("classification", 5, 3, held=2)
    rows.train.examples[0] = {"input_ids": [7] * 6, "token_type_ids": [0] * 6, "label": "0"}
    made = longer(rows, 9, TrainingConfig(batch_size=4, eval_batch_size=6))
    assert made.train.examples[3] == {"input_ids": [7] * 9, "token_type_ids": [0] * 9, "label": "0"}
    assert made.train.lengths == [9] * 4 and made.held is not None and len(made.held) == 6
    accumulated = longer(rows, 9, TrainingConfig(batch_size=4, accumulation=3))
    assert len(accumulated.train) == 8, "gradients are there while a second batch runs"


def test_of_much_data_a_sample_is_tokenised(tmp_path: Path, monkeypatch: Any) -> None:
    base = save_base(tmp_path / "base", "bert")
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(90))
    config = RunConfig(model=str(base), data={"train": str(data), "held_out": 0}, training={"epochs": 1})
    whole = lora.plan(config, search=False)
    monkeypatch.setattr(stand_in, "LARGE", 40)
    monkeypatch.setattr(stand_in, "LONGEST", 10)
    found = lora.plan(config, search=False)
    assert "90 rows, 40 of them tokenised" in found.notes[0]
    assert (found.length, found.steps) == (whole.length, whole.steps) and found.peak == pytest.approx(whole.peak, 0.1)


def test_the_copy_that_is_compared_after_training_is_planned_for(llama: Path) -> None:
    """It is made where half of what is free then holds it, and only with checks."""
    config = RunConfig(model=str(llama), training={"batch_size": 1, "dtype": "float32"}, adapter={"rank": 1})
    config.data.held_out = 0
    found = lora.plan(config, length=4, search=False)
    weights = sum(size for part, size in found.memory.items() if part.startswith("base weights"))
    assert found.phases["merging"] == pytest.approx(2 * weights + found.memory["adapters, float32"], rel=0.01)
    assert found.peak >= found.phases["merging"]
    config.check = False
    assert "merging" not in lora.plan(config, length=4, search=False).phases
    config.check = True
    tight = (found.process + 2 * weights) / 2**30
    assert "merging" not in lora.plan(config, length=4, search=False, device_gib=tight).phases


def test_a_parabola_is_followed_to_where_it_ends() -> None:
    points = [(x, 100.0 + 2 * x + x * x) for x in (2, 4, 8)]
    assert _root(points, 100 + 2 * 31 + 31 * 31, 1000) == 31
    assert _root(points, 1e12, 50) == 50 and _root(points, 10, 50) == 0


def test_an_8b_model_takes_no_memory_to_speak_of(tmp_path: Path) -> None:
    sizes = {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False, "model_type": "llama",
        "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 8192,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    before = planning._resident()
    config = RunConfig(model=str(tmp_path), training={"dtype": "bfloat16", "batch_size": 2}, data={"held_out": 0})
    found = lora.plan(config, length=64, device_gib=24, search=False)
    assert found.parameters == 8_030_261_248 and found.memory["base weights, bfloat16"] == 2 * 8_030_261_248
    assert planning._resident() - before < 200 * 2**20


@pytest.mark.parametrize(("settings", "said"), [({}, "model: is needed"), ({"model": "BASE"}, "length: is needed")])
def test_what_is_missing_is_said(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        lora.plan(RunConfig(**settings))

"""Full fine-tuning and heads alone as adapters: no updates, modules trained in full."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from lora import Job, LoRA, evaluate, fit
from lora.errors import TargetError
from small_base import labelled, tokenizer
from tiny_models import tiny

FULL: dict[str, Any] = {"targets": "none", "modules_to_save": ["all"]}
SETTINGS: dict[str, Any] = {
    "learning_rate": 1e-3, "warmup_steps": 0, "warmup_ratio": 0.0, "schedule": "constant", "weight_decay": 0.01,
    "batch_size": 4, "progress": False, "length_grouped": False,
}  # fmt: skip


def classifier(folder: Path) -> Any:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return base


def batch_of(vocabulary: int = 20) -> dict[str, torch.Tensor]:
    ids = torch.randint(5, vocabulary, (3, 7), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def test_it_is_what_torch_does_on_the_whole_model(bert: Path) -> None:
    base = classifier(bert)
    plain = copy.deepcopy(base)
    model = LoRA(base, name=None)
    model.add_adapter("full", **FULL)
    untouched = {key: value.clone() for key, value in plain.state_dict().items()}
    rows = labelled(12)
    result = fit(model, rows, False, adapter="full", tokenizer=tokenizer("bert"), epochs=2, **SETTINGS)
    from lora.data.batches import BatchPlan

    data = result.data
    plan = BatchPlan(data.train.lengths, 4, 0, False)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, weight_decay=0.01)
    plain.train()
    for step in range(2 * len(plan)):
        epoch, place = divmod(step, len(plan))
        examples = [data.train.examples[i] for i in plan.epoch(epoch)[place]]
        plain(**data.task.collate(examples, data.pad_token_id)).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    plain.eval(), model.eval()
    with torch.no_grad():
        expected, found = plain(**batch_of()).logits, model(**batch_of(), adapters=["full"] * 3).logits
        before = model(**batch_of(), adapters=["base"] * 3).logits
    assert torch.allclose(found, expected, atol=1e-5) and not torch.allclose(found, before, atol=1e-2)
    own = model.adapter_parameters("full")
    assert sum(p.numel() for p in own.values()) == sum(p.numel() for p in plain.parameters())
    base = model.unload()
    assert all(torch.equal(value, untouched[key]) for key, value in base.state_dict().items()), "the base is as it was"


@pytest.mark.parametrize("kind", ["llama-tied", "llama", "t5", "gpt2"])
def test_saved_loaded_and_merged(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = tiny(kind).eval()
    model = LoRA(copy.deepcopy(base), name=None)
    model.add_adapter("full", **FULL)
    own = model.adapter_parameters("full")
    assert sum(p.numel() for p in own.values()) == sum(p.numel() for p in base.parameters()), "a tied tensor once"
    with torch.no_grad():
        for parameter in own.values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.eval()
    batch = batch_of(16)
    if kind == "t5":
        batch["decoder_input_ids"] = batch["input_ids"]
    with torch.no_grad():
        alone = model(**batch, adapters=["full"] * 3).logits
        plain = base(**batch).logits
        # T5's table of positions knows no rows: there one adapter at a time.
        mixed = alone if kind == "t5" else model(**batch, adapters=["full", "base", "full"]).logits
        mixed = torch.stack([mixed[0], plain[1] if kind == "t5" else mixed[1], mixed[2]])
        assert torch.allclose(mixed[[0, 2]], alone[[0, 2]], atol=1e-5) and torch.allclose(mixed[1], plain[1], atol=1e-5)
        assert torch.allclose(model.merge("full")(**batch).logits, alone, atol=1e-5)
        model.save_adapter("full", tmp_path / "full")
        other = LoRA(copy.deepcopy(base), name=None)
        other.load_adapter(tmp_path / "full", "again")
        other.eval()
        assert torch.equal(other(**batch, adapters=["again"] * 3).logits, alone)
        assert len(other.adapter_parameters("again")) == len(own)


def test_a_head_alone_beside_an_adapter_and_all(bert: Path) -> None:
    """Linear probe, LoRA and full fine-tuning trained at once: each as it is alone."""
    settings = {**SETTINGS, "epochs": 1, "batch_size": 16, "tokenizer": tokenizer("bert")}
    kinds: dict[str, dict[str, Any]] = {
        "probe": {"targets": "none", "modules_to_save": ["classifier"]}, "lora": {"rank": 2}, "full": FULL,
    }  # fmt: skip
    rows = labelled(48)
    together = LoRA(classifier(bert), name=None)
    for name, kind in kinds.items():
        together.add_adapter(name, seed=0, **kind)
    fit(together, {name: Job(rows, False) for name in kinds}, **settings)
    found = evaluate(together, rows, tokenizer=tokenizer("bert"), latency=False)
    for name, kind in kinds.items():
        alone = LoRA(classifier(bert), name=None)
        alone.add_adapter(name, seed=0, **kind)
        fit(alone, rows, False, adapter=name, **settings)
        ours, theirs = together.adapter_parameters(name), alone.adapter_parameters(name)
        assert ours.keys() == theirs.keys()
        assert all(torch.allclose(ours[key], theirs[key], atol=1e-6) for key in ours), name
        assert found[name]["loss"] < found["base"]["loss"]
    assert "3 parameters" not in together.summary() and "full: " in together.summary()


def test_what_trains_nothing_is_refused(bert: Path) -> None:
    model = LoRA(classifier(bert), name=None)
    with pytest.raises(TargetError, match="'none' matches nothing to adapt"):
        model.add_adapter("a", targets="none", modules_to_save=[])
    assert not model.adapters

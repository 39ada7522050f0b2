"""Packed rows give the losses and gradients of padded ones, wherever a probe lets a model through; and nowhere else."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lora import DataConfig, LoRA, fit
from lora.core.attention import Document, Row, per_document
from lora.errors import ConfigError, ModelError, is_out_of_memory
from lora.tasks import Encoded
from lora.tasks.causal import CausalTask
from lora.tasks.mixture import forward
from lora.training import packing
from lora.training.packable import find_packing
from lora.training.packing import Packing
from lora.training.prepare import prepare, read_rows
from small_base import labelled, stories
from tiny_models import randomise, tiny

PACKED = ("gpt2", "opt", "llama", "llama-tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "phi3")
TASK = CausalTask(text="text")


def examples(lengths: tuple[int, ...] = (5, 9, 23, 23, 12, 7), skipped: int = 2) -> list[dict[str, Any]]:
    """Token ids whose first ``skipped`` are a prompt; 23 is longer than the sliding windows of the tiny models (16)."""
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randint(3, 80, (length,), generator=generator).tolist() for length in lengths]
    return [{"input_ids": ids, "labels": [-100] * skipped + ids[skipped:]} for ids in rows]


def probe(model: LoRA, task: Any = TASK) -> Packing | str:
    rows = examples()
    data = Encoded(rows, [len(row["input_ids"]) for row in rows], [1] * len(rows))
    trainee = SimpleNamespace(task=task, name="a", data=data)
    return find_packing(model, trainee, SimpleNamespace(pad_token_id=0, padding_side="right"))


def carrying(arch: str, **settings: Any) -> LoRA:
    model = LoRA(tiny(arch), name="a", rank=3, **settings)
    model.add_adapter("b", rank=2, alpha=5, targets=settings.get("targets", "attention"))
    for number, name in enumerate("ab"):
        randomise(model.adapter_parameters(name).values(), seed=number)
    return model


def padded_loss(model: LoRA, names: list[str], rows: list[Any]) -> torch.Tensor:
    batch = TASK.collate(rows, 0)
    return TASK.row_losses(forward(model, batch, names), batch, 0.1)[0]


def gradients(model: LoRA, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    parameters = {f"{name}.{key}": p for name in "ab" for key, p in model.adapter_parameters(name).items()}
    return {key: p.grad.clone() for key, p in parameters.items() if p.grad is not None}


@pytest.mark.parametrize(
    "arch, settings",
    [(arch, {}) for arch in PACKED]
    + [("llama-tied", {"targets": "embedding"}), ("llama", {"targets": ["lm_head", "q_proj"]}),
       ("llama", {"variant": "dora", "targets": ["lm_head", "v_proj"]}), ("gemma2", {"targets": ["lm_head", "q_proj"],
        "tie_embeddings": False})]
    + [(arch, {"token_rows": [3, 40, 79]}) for arch in ("gpt2", "llama", "llama-tied", "gemma2", "gemma3")]
    + [("llama", {"token_rows": [3, 40, 79], "head_rows": False})],
)  # fmt: skip
def test_losses_and_gradients_of_packed_rows(arch: str, settings: dict[str, Any]) -> None:
    model = carrying(arch, **settings)
    for tensor in [*model.parameters(), *model.buffers()]:
        # These random weights make a hundredfold of any rounding. (transformers' Gemma 2 gives NaN in fp64.)
        if tensor.is_floating_point() and arch != "gemma2":
            tensor.data = tensor.data.double()
    packed = probe(model)
    assert isinstance(packed, Packing), packed
    rows, names = examples(), ["a"] * 4 + ["b"] * 2
    expected = padded_loss(model, names, rows)
    with per_document(model.base):
        found = packed.losses([rows[:4], rows[4:]], ["a", "b"], None, [0.1, 0.1])
    assert found[0].sum().item() == pytest.approx(expected[:4].sum().item(), rel=1e-5)
    assert found[1].sum().item() == pytest.approx(expected[4:].sum().item(), rel=1e-5)
    one = gradients(model, expected.sum())
    with per_document(model.base):
        found = packed.losses([rows[:4], rows[4:]], ["a", "b"], None, [0.1, 0.1])
        other = gradients(model, torch.cat(found).sum())
    assert one.keys() == other.keys() and one
    for key, gradient in one.items():
        assert (gradient - other[key]).abs().max() <= 2e-5 * gradient.abs().max().clamp(min=1e-3), key


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("arch", PACKED)
def test_the_probe_lets_it_pass_in_every_type(arch: str, dtype: torch.dtype) -> None:
    found = probe(LoRA(tiny(arch).to(dtype), name="a", rank=2))
    assert isinstance(found, Packing), found


@pytest.mark.parametrize(
    "arch, why", [("bloom", "see each other"), ("t5", "does not run on packed rows"), ("bert", "no output head")]
)
def test_models_that_cannot_are_told(arch: str, why: str) -> None:
    found = probe(LoRA(tiny(arch), name="a", rank=2))
    assert isinstance(found, str) and why in found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_leak_shows_in_any_type(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention over the whole row, as if documents did not end: the probe must not let it pass."""
    monkeypatch.setattr(packing, "Row", lambda ds: Row([Document(sum(d.length for d in ds))]))
    found = probe(LoRA(tiny("llama").to(dtype), name="a", rank=2))
    assert isinstance(found, str) and "see each other" in found


def test_another_scale_of_the_logits_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LoRA(tiny("gemma2"), name="a", rank=2)
    model.base.config.final_logit_softcapping = None
    model.base.get_output_embeddings().weight.data.mul_(50)
    assert isinstance(probe(model), Packing)
    forward_ = type(model.base).forward

    def scaled(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = forward_(self, *args, **kwargs)
        out.logits = out.logits * 1.5
        return out

    monkeypatch.setattr(type(model.base), "forward", scaled)
    found = probe(model)
    assert isinstance(found, str) and "other losses" in found


def base(folder: Any) -> Any:
    torch.manual_seed(0)
    return LoRA(AutoModelForCausalLM.from_pretrained(folder), rank=4)


def test_fit_packs_by_itself_and_agrees_with_padding(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora.training.passes import Passes

    seen, run = [], Passes.run

    def noted(self: Passes, shares: Any) -> None:
        seen.append(shares[0].packed)
        run(self, shares)

    monkeypatch.setattr(Passes, "run", noted)
    losses = {}
    for asked in (None, False, True):
        seen.clear()
        result = fit(base(llama), stories(24), False, learning_rate=1e-2, max_steps=4, packing=asked)
        losses[asked] = [entry["loss"] for entry in result.history]
        assert set(seen) == {asked is not False}
    assert losses[None] == losses[True]
    assert losses[None] == pytest.approx(losses[False], rel=1e-4)


@pytest.mark.parametrize("kind", ["cpu", "python", "cuda", "none"])
def test_memory_that_runs_out_says_nothing_of_the_model(
    kind: str, llama: Any, bert: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that were padded for it would need more still."""
    from transformers import AutoModelForSequenceClassification

    from lora.training.checks import refuse_misfit

    def failing(*_: Any, **__: Any) -> Any:
        if kind == "cpu":
            return torch.empty(2**48)  # the allocator's own words, whatever they are in this version
        if kind == "none":
            raise RuntimeError("shapes do not match")
        raise MemoryError if kind == "python" else torch.OutOfMemoryError("CUDA out of memory")

    model, one = base(llama), LoRA(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), rank=2)
    prepared = prepare(one, read_rows(labelled(), None, DataConfig(), 0))
    monkeypatch.setattr(Packing, "losses", failing)
    monkeypatch.setattr("lora.training.checks.forward", failing)
    if kind == "none":
        assert "does not run on packed rows (RuntimeError: shapes" in str(probe(model))
        with pytest.raises(ModelError, match="does not take the rows"):
            refuse_misfit(one, "default", prepared)
        return
    for call in (lambda: probe(model), lambda: refuse_misfit(one, "default", prepared)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            call()
        assert is_out_of_memory(caught.value)


def test_packing_that_was_asked_for_and_cannot_be(bert: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    model = LoRA(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), rank=2)
    with pytest.raises(ConfigError, match="packing: the task classification is not next-token prediction"):
        fit(model, labelled(), False, max_steps=1, packing=True)


def test_attention_dropout_in_packed_rows_is_drawn_by_document(llama: Any) -> None:
    """Dropout inside the attention acts, is repeatable, and is the same under gradient checkpointing."""

    def run(rate: float, seed: int, **options: Any) -> list[float]:
        model = base(llama)
        for module in model.base.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = rate
        model.base.config.attention_dropout = rate
        result = fit(model, stories(24), False, learning_rate=1e-2, max_steps=3, seed=seed, packing=True, **options)
        return [entry["loss"] for entry in result.history]

    assert run(0.5, 0) == run(0.5, 0) == run(0.5, 0, gradient_checkpointing=True)
    assert run(0.5, 0) != run(0.0, 0)

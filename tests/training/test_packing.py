"""Packed rows give the losses and gradients of padded ones, wherever a probe lets a model through; and nowhere else."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from lora import LoRA, fit
from lora.core.attention import per_document
from lora.errors import ConfigError
from lora.tasks import Encoded
from lora.tasks.causal import CausalTask
from lora.tasks.inference import forward
from lora.training.packing import Packing, find_packing
from small_base import stories
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
        "tie_embeddings": False})],
)  # fmt: skip
def test_losses_and_gradients_of_packed_rows(arch: str, settings: dict[str, Any]) -> None:
    model = carrying(arch, **settings)
    packing = probe(model)
    assert isinstance(packing, Packing), packing
    rows, names = examples(), ["a"] * 4 + ["b"] * 2
    expected = padded_loss(model, names, rows)
    with per_document(model.base):
        found = packing.losses([rows[:4], rows[4:]], ["a", "b"], None, [0.1, 0.1])
    torch.testing.assert_close(found[0].sum(), expected[:4].sum(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(found[1].sum(), expected[4:].sum(), rtol=1e-5, atol=1e-4)
    one = gradients(model, expected.sum())
    with per_document(model.base):
        found = packing.losses([rows[:4], rows[4:]], ["a", "b"], None, [0.1, 0.1])
        other = gradients(model, torch.cat(found).sum())
    assert one.keys() == other.keys() and one
    for key, gradient in one.items():
        assert (gradient - other[key]).abs().max() <= 2e-5 * gradient.abs().max().clamp(min=1e-3), key


@pytest.mark.parametrize(
    "arch, why", [("bloom", "see each other"), ("t5", "does not run on packed rows"), ("bert", "no output head")]
)
def test_models_that_cannot_are_told(arch: str, why: str) -> None:
    found = probe(LoRA(tiny(arch), name="a", rank=2))
    assert isinstance(found, str) and why in found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_leak_shows_in_any_type(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention over the whole row, as if documents did not end: the probe must not let it pass."""
    from lora.core import attention

    monkeypatch.setattr(attention, "_runs", lambda row: [(0, 1, sum(d.length for d in row), None)])
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
    for packing in (None, False, True):
        seen.clear()
        result = fit(base(llama), stories(24), False, learning_rate=1e-2, max_steps=4, packing=packing)
        losses[packing] = [entry["loss"] for entry in result.history]
        assert set(seen) == {packing is not False}
    assert losses[None] == losses[True]
    assert losses[None] == pytest.approx(losses[False], rel=1e-4)


def test_packing_that_was_asked_for_and_cannot_be(bert: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    from small_base import labelled

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


@pytest.mark.parametrize("heads, shared", [(4, 4), (6, 2), (3, 1)])
def test_attention_of_short_documents_by_hand(heads: int, shared: int) -> None:
    """Beside torch's kernel in fp64, and its gradients beside finite differences."""
    from lora.core.attention import _short

    def draw(count: int) -> torch.Tensor:
        return torch.randn(2, count, 7, 5, dtype=torch.float64, requires_grad=True)

    q, k, v = draw(heads), draw(shared), draw(shared)
    wide = [x.repeat_interleave(heads // shared, 1) for x in (k, v)]
    expected = torch.nn.functional.scaled_dot_product_attention(q, *wide, is_causal=True, scale=0.3)
    torch.testing.assert_close(_short(q, k, v, 0.3), expected)
    assert torch.autograd.gradcheck(lambda *x: _short(*x, 0.3), (q, k, v))


def test_short_documents_in_bfloat16_go_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora.core import attention

    model, rows = LoRA(tiny("llama").to(torch.bfloat16), name="a", rank=2), examples()
    packing = probe(model)
    assert isinstance(packing, Packing)

    def loss() -> torch.Tensor:
        with per_document(model.base):
            return packing.losses([rows], ["a"], None, [0.0])[0].sum()

    by_hand = loss()
    monkeypatch.setattr(attention, "SHORT", 0)
    assert by_hand != loss() and abs(by_hand - loss()) < 2e-3 * loss()

"""Padded batches of unlike width in one pass: each adapter comes out as it does alone, on the CPU to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf

from lora import LoRA, fit
from lora.training import blocks
from lora.training.job import Job
from lora.training.passes import Passes
from small_base import labelled, tokenizer
from tiny_models import HIDDEN, LABELS, LAYERS, VOCABULARY, tiny


def jobs() -> dict[str, Job]:
    """Adapters with rows of unlike length, and unlike in all else."""
    return {
        "short": Job(
            labelled(40, 0, longest=4), False, {"rank": 2, "targets": "attention"},
            {"learning_rate": 1e-2, "batch_size": 8, "seed": 1},
        ),
        "dropped": Job(
            labelled(36, 1, longest=9), False, {"rank": 7, "alpha": 64, "dropout": 0.3},
            {"learning_rate": 1e-2, "batch_size": 12, "seed": 2},
        ),
        "long": Job(
            labelled(48, 2, longest=14), False, {"rank": 4, "variant": "dora", "dropout": 0.1},
            {"learning_rate": 1e-2, "batch_size": 8, "seed": 3, "accumulation": 2},
        ),
        "smoothed": Job(
            labelled(24, 3, longest=6), False, {"rank": 3, "rslora": True, "variant": "dora"},
            {"learning_rate": 1e-2, "batch_size": 8, "seed": 4, "label_smoothing": 0.1},
        ),
    }  # fmt: skip


@pytest.fixture
def passes(monkeypatch: Any) -> list[list[int]]:
    """The widths of the batches in each pass that was run."""
    seen: list[list[int]] = []
    run = Passes.run

    def noted(self: Passes, shares: Any) -> None:
        run(self, shares)
        seen.append([share.batch["input_ids"].shape[1] for share in shares])

    monkeypatch.setattr(Passes, "run", noted)
    return seen


def unlike(passes: list[list[int]]) -> list[list[int]]:
    return [widths for widths in passes if len(set(widths)) > 1]


def train(base: Any, jobs: dict[str, Job], at_once: int = 4, **options: Any) -> tuple[LoRA, dict[str, Any]]:
    model = LoRA(base, name=None)
    for name, job in jobs.items():
        if name == "diverged":
            model.add_adapter(name, job.adapter_settings(name), seed=0)
            with torch.no_grad():
                for parameter in model.adapter_parameters(name).values():
                    parameter.fill_(torch.nan)
    options = {"tokenizer": tokenizer("bert"), "max_steps": 4, "progress": False, **options}
    return model, fit(model, jobs, False, at_once=at_once, **options)


def check(make: Callable[[], Any], jobs: dict[str, Job], passes: list[list[int]], **options: Any) -> dict[str, Any]:
    """Train together, then each alone, and hold one against the other; gives the results of training together."""
    model, results = train(make(), jobs, **options)
    shared = list(passes)
    for name, job in jobs.items():
        alone, result = train(make(), {name: job}, **options)
        for one, other in zip(results[name].history, result[name].history, strict=True):
            assert repr({**one, "tokens_per_second": 0}) == repr({**other, "tokens_per_second": 0}), name
        for key, parameter in alone.adapter_parameters(name).items():
            assert torch.allclose(parameter, model.adapter_parameters(name)[key], 0, 0, equal_nan=True), f"{name} {key}"
    passes[:] = shared
    return results


@pytest.mark.parametrize("way", ["fp32", "bf16", "checkpointed"])
@pytest.mark.parametrize("arch", ["bert", "roberta", "distilbert", "modernbert", "gpt2-cls", "llama-cls"])
def test_together_as_alone(arch: str, way: str, passes: list[list[int]]) -> None:
    dtype = torch.bfloat16 if way == "bf16" else torch.float32
    check(lambda: tiny(arch).to(dtype), jobs(), passes, gradient_checkpointing=way == "checkpointed")
    # The first step of each: every batch of the four in one pass, whatever their widths.
    assert [len(widths) for widths in unlike(passes)] == [4, 4, 4, 4]


def test_with_eager_attention_and_an_adapted_embedding(passes: list[list[int]]) -> None:
    """The eager attention draws its own dropout, and has masks of numbers."""
    more = {**jobs(), "embedding": Job(
        labelled(40, 5, longest=11), False, {"rank": 2, "targets": ["word_embeddings", "query", "dense"]},
        {"learning_rate": 1e-2, "batch_size": 8, "seed": 5},
    )}  # fmt: skip
    check(lambda: tiny("bert", attn_implementation="eager"), more, passes, at_once=5)
    assert len(unlike(passes)) >= 4


def test_one_that_is_nan_leaves_the_others_alone(passes: list[list[int]]) -> None:
    job = Job(labelled(40, 6, longest=12), False, {"rank": 2, "targets": "attention"}, {"batch_size": 8})
    results = check(lambda: tiny("bert"), jobs(), passes)
    before = {name: result.history for name, result in results.items()}
    passes.clear()
    _, results = train(tiny("bert"), {"diverged": job, **jobs()}, at_once=5)
    assert "loss is nan" in str(results["diverged"].error) and len(unlike(passes)[0]) == 5
    for name, history in before.items():
        for one, other in zip(history, results[name].history, strict=True):
            assert repr({**one, "tokens_per_second": 0}) == repr({**other, "tokens_per_second": 0}), name


def albert() -> Any:
    """Runs the same layer again and again."""
    torch.manual_seed(0)
    return hf.AlbertForSequenceClassification(
        hf.AlbertConfig(vocab_size=VOCABULARY, embedding_size=16, hidden_size=HIDDEN, num_hidden_layers=LAYERS,
                        num_attention_heads=4, intermediate_size=48, num_labels=LABELS)
    )  # fmt: skip


def mpnet() -> Any:
    """Layers that give tuples, and an attention of its own."""
    torch.manual_seed(0)
    return hf.MPNetForSequenceClassification(
        hf.MPNetConfig(vocab_size=VOCABULARY, hidden_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=4,
                       intermediate_size=48, num_labels=LABELS)
    )  # fmt: skip


@pytest.mark.parametrize("make", [albert, mpnet])
def test_models_that_do_otherwise_share_passes_of_like_width_only(make: Any, passes: list[list[int]]) -> None:
    results = check(make, {**jobs(), "again": jobs()["short"]}, passes, at_once=5)
    assert any("like width" in note for note in results["short"].notes)
    assert not unlike(passes) and any(len(widths) > 1 for widths in passes)


def test_what_comes_out_otherwise_is_not_shared(monkeypatch: Any, passes: list[list[int]]) -> None:
    """An attention that lets batches see each other is found out before anything is learned from it."""
    own = blocks.attend

    def leaking(module: Any, query: Any, key: Any, value: Any, *rest: Any, **options: Any) -> Any:
        return own(module, query + 1e-6 * query.mean(), key, value, *rest, **options)

    monkeypatch.setattr(blocks, "attend", leaking)
    results = check(lambda: tiny("bert"), {**jobs(), "again": jobs()["short"]}, passes, at_once=5)
    assert any("something else" in note for note in results["short"].notes)
    assert not unlike(passes) and any(len(widths) > 1 for widths in passes)

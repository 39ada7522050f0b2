"""Noise on embedded tokens: its formula, who gets it and who does not; neither layout nor company changes it."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from lora import LoRA, fit
from lora.config import TrainingConfig
from lora.core.randomness import seed_of
from lora.errors import ConfigError
from lora.io.run import RunFolder
from lora.model.noise import embedding_of
from lora.tasks import TASKS
from lora.training.job import Job
from lora.training.passes import Passes
from lora.training.prepare import Prepared
from lora.training.trainee import Trainee
from small_base import labelled, stories, tokenizer
from tiny_models import tiny

SIZE = {"vocab_size": 25}
KINDS = {"bert": "classification", "llama": "causal", "t5": "seq2seq", "gemma3": "causal", "gpt2": "causal"}


def ready(arch: str, alpha: float, packing: bool | None = None, training: bool = True, **settings: Any) -> Any:
    model = LoRA(tiny(arch, **SIZE), name=None)
    model.add_adapter("a", rank=4, seed=0)
    if arch == "bert":
        rows, columns = labelled(8, longest=6), {"text": "text", "label": "label"}
    else:
        rows, columns = stories(8), {"prompt": "prompt", "completion": "completion"}
    kind: Any = TASKS[KINDS[arch]]
    tokens = tokenizer(arch if arch in ("bert", "t5") else "llama")
    task = kind.from_rows(rows, columns)
    encoded = task.encode(rows, tokens, 64)
    prepared = Prepared(task, tokens, encoded, None, None, 64, 0, "right", [], "")
    config = TrainingConfig(batch_size=8, learning_rate=1e-3, neftune_alpha=alpha, packing=packing, **settings)
    trainee, passes = Trainee(model, "a", task, encoded, config), Passes(model)
    packed = passes.why_padded(trainee, prepared) is None
    model.train(training)
    return model, passes, passes.next_share(trainee, prepared, packed)


def embedded(model: LoRA, passes: Passes, share: Any) -> list[Tensor]:
    """What a pass embeds, call by call, noise included."""
    seen: list[Tensor] = []
    embedding, _ = embedding_of(model.base)
    call = type(embedding).__call__

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        out = call(self, *args, **kwargs)  # with what hooks make of it
        if self is embedding:
            seen.append(out.detach().clone())
        return out

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(type(embedding), "__call__", watched)
        passes.forward([share])
    return seen


@pytest.mark.parametrize("packing", [None, False])
@pytest.mark.parametrize("arch", list(KINDS))
def test_it_is_the_formula_of_the_paper(arch: str, packing: bool | None) -> None:
    plain, noisy = (
        embedded(model, passes, share) for model, passes, share in (ready(arch, 0, packing), ready(arch, 5, packing))
    )
    _, _, share = ready(arch, 5, packing)
    assert share.packed is (packing is None and arch in ("llama", "gpt2", "gemma3"))
    found, width = noisy[0] - plain[0], plain[0].shape[-1]
    for other, unchanged in zip(noisy[1:], plain[1:], strict=True):  # the decoder's input
        assert arch == "t5" and torch.equal(other, unchanged)
    start = 0
    for number, example in enumerate(share.examples):
        length = len(example["input_ids"])
        generator = torch.Generator().manual_seed(seed_of(share.trainee.seed(0), "noise", number))
        uniform = torch.rand(length, width, generator=generator) * 2 - 1
        rows = found[0, start : start + length] if share.packed else found[number, :length]
        torch.testing.assert_close(rows, uniform * (5 / math.sqrt(length * width)), rtol=0, atol=1e-6)
        start += length
        if not share.packed:
            assert not found[number, length:].any()
    assert len({len(example["input_ids"]) for example in share.examples}) > 1  # else rows' own lengths show nothing


@pytest.mark.parametrize("arch", ["bert", "llama"])
def test_none_in_evaluation_mode(arch: str) -> None:
    with_noise, without = (embedded(*ready(arch, alpha, training=False))[0] for alpha in (5, 0))
    assert torch.equal(with_noise, without)


def test_what_the_base_computes_beside_gets_none() -> None:
    """With KL to the base: the base's rows are those of a pass without noise."""
    for packing in (None, False):
        noisy, plain = (embedded(*ready("llama", alpha, packing, kl=1.0))[0] for alpha in (5, 0))
        half = noisy.shape[0] // 2 if packing is False else None
        own, base = (slice(0, half), slice(half, None)) if half else (None, None)
        if half:
            assert torch.equal(noisy[base], plain[base]) and not torch.equal(noisy[own], plain[own])
        else:
            middle = noisy.shape[1] // 2
            assert torch.equal(noisy[:, middle:], plain[:, middle:])
            assert not torch.equal(noisy[:, :middle], plain[:, :middle])


def test_packed_and_padded_rows_get_the_same() -> None:
    def loss(packing: bool | None) -> float:
        _, passes, share = ready("llama", 5, packing)
        return float(passes.forward([share])[0].detach())

    assert loss(None) == pytest.approx(loss(False), rel=1e-5)


def base(folder: Any) -> Any:
    torch.manual_seed(0)
    if "llama" in str(folder):
        return AutoModelForCausalLM.from_pretrained(folder)
    if "t5" in str(folder):
        return AutoModelForSeq2SeqLM.from_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)


def rows(folder: Any, seed: int = 0) -> list[dict[str, Any]]:
    return labelled(32, seed, longest=5 + seed) if "bert" in str(folder) else stories(32, seed)


def trained(folder: Any, names: tuple[str, ...], **settings: Any) -> dict[str, dict[str, Tensor]]:
    jobs = {
        name: Job(rows(folder, number), False, {"rank": 2 + number, "dropout": 0.1},
                  {"neftune_alpha": alpha, "seed": number})
        for number, (name, alpha) in enumerate({"quiet": 0, "some": 5, "more": 15}.items())
        if name in names
    }  # fmt: skip
    model = LoRA(base(folder), name=None)
    fit(model, jobs, batch_size=8, max_steps=5, learning_rate=1e-2, progress=False, at_once=3, **settings)
    return {name: {key: p.detach() for key, p in model.adapter_parameters(name).items()} for name in names}


@pytest.mark.parametrize("settings", [{}, {"packing": False}, {"gradient_checkpointing": True}, {"accumulation": 2}])
@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_together_as_alone(request: Any, kind: str, settings: dict[str, Any]) -> None:
    folder = request.getfixturevalue(kind)
    together = trained(folder, ("quiet", "some", "more"), **settings)
    for name, parameters in together.items():
        for key, parameter in trained(folder, (name,), **settings)[name].items():
            assert torch.equal(parameter, parameters[key]), f"{name}: {key}"


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_layers_recomputed_in_the_backward_change_nothing_and_noise_does(request: Any, kind: str) -> None:
    folder = request.getfixturevalue(kind)
    kept, again = (trained(folder, ("some",), gradient_checkpointing=on)["some"] for on in (False, True))
    assert all(torch.equal(kept[key], again[key]) for key in kept)
    model = LoRA(base(folder), name=None)
    job = Job(rows(folder, 1), False, {"rank": 3, "dropout": 0.1}, {"seed": 1})
    fit(model, {"some": job}, batch_size=8, max_steps=5, learning_rate=1e-2, progress=False)
    plain = model.adapter_parameters("some")
    assert any(not torch.equal(kept[key], plain[key]) for key in kept)


def test_resume_gives_the_same_bits(llama: Any, tmp_path: Any, monkeypatch: Any) -> None:
    settings: dict[str, Any] = {
        "neftune_alpha": 5, "batch_size": 8, "max_steps": 8, "save_every": 3, "learning_rate": 1e-2, "progress": False,
    }  # fmt: skip
    whole, again = (LoRA(base(llama), rank=4, dropout=0.1) for _ in range(2))
    fit(whole, stories(32), False, output_dir=tmp_path / "whole", **settings)
    log = RunFolder.log

    def failing(self: RunFolder, entry: dict[str, Any]) -> None:
        log(self, entry)
        if entry["step"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFolder, "log", failing)
        fit(LoRA(base(llama), rank=4, dropout=0.1), stories(32), False, output_dir=tmp_path / "run", **settings)
    fit(again, stories(32), False, output_dir=tmp_path / "run", resume=True, **settings)
    for key, parameter in whole.adapter_parameters("default").items():
        assert torch.equal(parameter, again.adapter_parameters("default")[key]), key


def test_bases_that_cannot_are_refused_before_training(bert: Any, monkeypatch: Any) -> None:
    xlnet = nn.Module()
    xlnet.config = SimpleNamespace(model_type="xlnet")
    with pytest.raises(ConfigError, match=r"neftune_alpha: Module works on tokens first"):
        embedding_of(xlnet)
    with pytest.raises(ConfigError, match=r"neftune_alpha: Linear has no embeddings"):
        embedding_of(nn.Linear(2, 2))
    model = LoRA(base(bert), rank=2)
    unused = nn.Embedding(3, 3)
    monkeypatch.setattr(type(model.base), "get_input_embeddings", lambda self: unused)
    with pytest.raises(ConfigError, match=r"does not call its Embedding"):
        fit(model, labelled(24), False, neftune_alpha=5, max_steps=1, progress=False)


def test_hugging_faces_name_and_null(bert: Any) -> None:
    assert TrainingConfig.make({"neftune_noise_alpha": 5}, "training").neftune_alpha == 5
    assert TrainingConfig.make({"neftune_noise_alpha": None}, "training").neftune_alpha == 0

"""Training that is held to the base: KL beside the loss, in the same batch, packed and padded alike, whatever stands
beside it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lora import LoRA, fit
from lora.config import TrainingConfig
from lora.core.routing import BASE
from lora.errors import ConfigError
from lora.tasks import TASKS
from lora.tasks.mixture import forward
from lora.training.job import Job
from lora.training.memory import largest_batch
from lora.training.passes import Passes
from lora.training.prepare import Prepared
from lora.training.trainee import Trainee
from small_base import labelled, stories, tokenizer
from tiny_models import tiny

SIZE = {"vocab_size": 25}
TOKENS = tokenizer("llama")


def adapted(arch: str, name: str = "a", **adapter: Any) -> LoRA:
    """With an adapter that is not at its start, where it and the base are one."""
    model = LoRA(tiny(arch, **SIZE), name=None)
    model.add_adapter(name, rank=4, seed=0, **adapter)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        for key, parameter in model.adapter_parameters(name).items():
            if key.endswith((".B", "lm_head.weight")):
                parameter.normal_(std=0.3, generator=generator)
    return model


def passes_of(model: LoRA, rows: list[dict], settings: TrainingConfig, replay: int = 0, task: str = "causal") -> Any:
    kind: Any = TASKS[task]
    its = kind.from_rows(rows, {"prompt": "prompt", "completion": "completion"})
    encoded = its.encode(rows, TOKENS, 64)
    encoded.replay = replay
    prepared = Prepared(its, TOKENS, encoded, None, None, 64, 0, "right", [], "")
    trainee = Trainee(model, "a", its, encoded, settings)
    passes = Passes(model)
    packed = passes.why_padded(trainee, prepared) is None
    return passes, trainee, prepared, packed


def expected(model: LoRA, trainee: Trainee, indices: list[int], kl: float, held: set[int]) -> torch.Tensor:
    """The step's loss by torch's own operators: every row by itself, the base in a forward of its own, all logits."""
    total, task = torch.zeros(()), trainee.task
    for i in indices:
        example = trainee.data.examples[i]
        batch = task.for_base(task.collate([example], 0), model.base)
        labels = batch["labels"]
        own = forward(model, batch, "a").logits.float()
        with torch.no_grad():
            base = forward(model, batch, BASE).logits.float()
        if trainee.task.name != "seq2seq":
            own, base, labels = own[:, :-1], base[:, :-1], labels[:, 1:]
        mask = labels != -100
        total = total + F.cross_entropy(own[mask], labels[mask], reduction="sum")
        if i in held:
            p, q = own[mask].log_softmax(-1), base[mask].log_softmax(-1)
            total = total + kl * F.kl_div(p, q, reduction="sum", log_target=True)
    return total / trainee.supervised([indices])


@pytest.mark.parametrize("packing", [None, False])
@pytest.mark.parametrize("arch", ["llama", "gemma2", "qwen3", "gpt2", "t5"])
@pytest.mark.parametrize("replay", [0, 3])
def test_loss_and_gradient_are_those_of_full_logits(arch: str, packing: bool | None, replay: int) -> None:
    model = adapted(arch)  # in evaluation mode: nothing is dropped
    task = "seq2seq" if arch == "t5" else "causal"
    settings = TrainingConfig(
        kl=0.7, kl_on="replay" if replay else "all", packing=packing, batch_size=8, learning_rate=1e-3
    )
    if arch == "t5":
        settings.packing = None
    passes, trainee, prepared, packed = passes_of(model, stories(8), settings, replay, task)
    assert packed == (packing is None and arch != "t5")
    share = passes.next_share(trainee, prepared, packed)
    passes.run([share])
    found = {key: p.grad.clone() for key, p in trainee.parameters.items() if p.grad is not None}
    mine, apart = float(trainee.loss), float(trainee.divergence)
    trainee.begin_step()
    assert float(trainee.divergence) == 0
    loss = expected(model, trainee, share.indices, 0.7, {5, 6, 7} if replay else set(range(8)))
    assert mine == pytest.approx(float(loss.detach()), rel=1e-4)
    alone = float(expected(model, trainee, share.indices, 0.0, set()).detach())
    assert apart > 0 and alone + 0.7 * apart == pytest.approx(mine, rel=1e-4)
    loss.backward()
    plain = {key: p.grad for key, p in trainee.parameters.items() if p.grad is not None}
    assert found.keys() == plain.keys() and found
    for key, gradient in found.items():
        assert float((gradient - plain[key]).abs().max()) <= 5e-4 * float(plain[key].abs().max()), key


@pytest.mark.parametrize("adapter", [
    {"targets": ["lm_head", "q_proj"]}, {"targets": ["lm_head", "q_proj"], "variant": "dora"},
    {"targets": ["q_proj"], "modules_to_save": ["lm_head"]},
], ids=["adapted", "dora", "own"])  # fmt: skip
def test_the_head_itself_may_train(adapter: dict[str, Any]) -> None:
    model = adapted("llama", **adapter)
    settings = TrainingConfig(kl=0.7, batch_size=8, learning_rate=1e-3)
    passes, trainee, prepared, packed = passes_of(model, stories(8), settings)
    assert packed
    share = passes.next_share(trainee, prepared, packed)
    passes.run([share])
    found = {key: p.grad.clone() for key, p in trainee.parameters.items() if p.grad is not None}
    mine, apart = float(trainee.loss), float(trainee.divergence)
    trainee.begin_step()
    loss = expected(model, trainee, share.indices, 0.7, set(range(8)))
    assert mine == pytest.approx(float(loss.detach()), rel=1e-4)
    alone = float(expected(model, trainee, share.indices, 0.0, set()).detach())
    assert alone + 0.7 * apart == pytest.approx(mine, rel=1e-4), "counted once, though the logits are made twice"
    loss.backward()
    assert any("lm_head" in key for key in found)
    for key, gradient in found.items():
        plain = trainee.parameters[key].grad
        assert plain is not None and float((gradient - plain).abs().max()) <= 5e-4 * float(plain.abs().max()), key


def run(model: LoRA, jobs: dict[str, Any], **settings: Any) -> dict[str, dict[str, torch.Tensor]]:
    given = {"max_steps": 3, "learning_rate": 1e-2, "batch_size": 5, "progress": False} | settings
    fit(model, jobs, False, tokenizer=TOKENS, **given)
    return {name: {k: p.detach().clone() for k, p in model.adapter_parameters(name).items()} for name in jobs}


def job(rows: list[dict], **training: Any) -> Job:
    return Job(rows, False, {"rank": 4}, {"seed": 3, "batch_size": 5, **training})


@pytest.mark.parametrize("packing, dropout", [(None, 0.0), (False, 0.0), (None, 0.2)])
def test_together_as_each_alone(packing: bool | None, dropout: float) -> None:
    """Bit for bit: one held to the base, one held more, one not at all."""
    rows = {"p": stories(16), "q": stories(12, 5), "s": stories(16, 9)}
    kl = {"p": 0.5, "q": 2.0, "s": 0.0}

    def trained(names: list[str]) -> dict[str, dict[str, torch.Tensor]]:
        model = LoRA(tiny("llama", **SIZE, attention_dropout=dropout), name=None)
        return run(model, {n: job(rows[n], kl=kl[n]) for n in names}, packing=packing, at_once=len(names))

    together = trained(["p", "q", "s"])
    for name, parameters in together.items():
        alone = trained([name])[name]
        assert all(torch.equal(alone[key], parameters[key]) for key in alone), name


@pytest.mark.parametrize("packing", [None, False])
def test_accumulation_and_recomputed_layers_change_nothing(packing: bool | None) -> None:
    def trained(**settings: Any) -> dict[str, torch.Tensor]:
        model = adapted("llama", "default")
        return run(model, {"default": job(stories(24), kl=1.0, **settings)}, packing=packing)["default"]

    whole, again = trained(batch_size=8), trained(batch_size=8, gradient_checkpointing=True)
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    # Batches of rows of like length are drawn for either size alike where all rows are one batch.
    one, two = trained(batch_size=24, max_steps=2), trained(batch_size=12, accumulation=2, max_steps=2)
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-3, atol=1e-5)


def test_two_processes_share_a_step() -> None:
    """The gradients of both together are those of one process that takes their batches one after another."""
    rows, settings = stories(16), TrainingConfig(kl=0.7, kl_on="replay", batch_size=5, learning_rate=1e-3)

    def gradients(processes: int, rank: int, accumulation: int) -> dict[str, torch.Tensor]:
        model = adapted("llama")
        its = settings.model_copy(update={"accumulation": accumulation})
        passes, trainee, prepared, packed = passes_of(model, rows, its, replay=9)
        trainee = Trainee(model, "a", trainee.task, trainee.data, its, processes, rank)
        while (share := passes.next_share(trainee, prepared, packed)) is not None:
            passes.run([share])
            if trainee.count_round():
                break
        return {key: p.grad for key, p in trainee.parameters.items() if p.grad is not None}

    first, second, alone = gradients(2, 0, 1), gradients(2, 1, 1), gradients(1, 0, 2)
    for key, whole in alone.items():
        torch.testing.assert_close(first[key] + second[key], whole, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("packing", [None, False])
def test_every_step_says_how_far_it_is_from_the_base(packing: bool | None) -> None:
    """Accumulated over batches it is the same; beside others it is its own; who is not held has none."""
    rows = stories(24)

    def steps(names: list[str], **settings: Any) -> dict[str, list[dict[str, Any]]]:
        model = LoRA(tiny("llama", **SIZE), name=None)
        kl = {"held": 0.5, "free": 0.0}
        jobs = {name: job(rows, kl=kl[name], **({"batch_size": 24} | settings)) for name in names}
        results = fit(model, jobs, False, tokenizer=TOKENS, max_steps=3, learning_rate=1e-2, packing=packing,
                      at_once=len(names), progress=False)  # fmt: skip
        return {name: [line for line in result.history if "loss" in line] for name, result in results.items()}

    both = steps(["held", "free"])
    own = [line["kl"] for line in both["held"]]
    assert own[0] == 0 < own[1] < own[2] and not any("kl" in line for line in both["free"])
    assert [line["kl"] for line in steps(["held"])["held"]] == own
    halves = [line["kl"] for line in steps(["held"], batch_size=12, accumulation=2)["held"]]
    assert halves == pytest.approx(own, rel=1e-3, abs=1e-7)


def test_a_heavy_weight_keeps_the_adapter_at_the_base() -> None:
    def moved(kl: float) -> float:
        torch.manual_seed(0)
        model = LoRA(tiny("llama", **SIZE), rank=4)
        fit(model, stories(24), False, tokenizer=TOKENS, max_steps=15, learning_rate=1e-2, kl=kl, progress=False)
        batch = {"input_ids": torch.arange(5, 25).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
        with torch.no_grad():
            p, q = (forward(model, batch, name).logits.log_softmax(-1) for name in ("default", BASE))
        return float(F.kl_div(p, q, reduction="batchmean", log_target=True))

    free, held = moved(0.0), moved(10.0)
    assert held < free / 4, (free, held)


@pytest.mark.parametrize("settings, said", [
    ({"kl": 1.0}, "training.kl: is for tasks that learn to write, and this is classification"),
    ({"kl_on": "replay"}, "training.kl_on: says on which rows training.kl acts, which is 0"),
])  # fmt: skip
def test_where_it_makes_no_sense_it_is_refused(settings: dict[str, Any], said: str) -> None:
    model = LoRA(tiny("llama-cls", vocab_size=25, num_labels=3), rank=2)
    with pytest.raises(ConfigError, match=said):
        fit(model, labelled(12), False, tokenizer=TOKENS, max_steps=1, progress=False, **settings)


def test_on_replay_without_any_and_beside_preferences_it_is_refused() -> None:
    model = LoRA(tiny("llama", **SIZE), rank=2)
    with pytest.raises(ConfigError, match="needs data.replay"):
        fit(model, stories(12), False, tokenizer=TOKENS, max_steps=1, progress=False, kl=1.0, kl_on="replay")
    pairs = [{"prompt": "red", "chosen": "cat", "rejected": "dog"}] * 12
    with pytest.raises(ConfigError, match="data.options .beta"):
        fit(model, pairs, False, tokenizer=TOKENS, max_steps=1, progress=False, kl=1.0)


def test_what_a_pass_takes_counts_the_bases_part() -> None:
    def needed(kl: float) -> tuple[int, float]:
        model = adapted("llama")
        passes, trainee, prepared, packed = passes_of(
            model, stories(16), TrainingConfig(kl=kl, batch_size=8, learning_rate=1e-3)
        )
        participant: Any = SimpleNamespace(trainee=trainee, prepared=prepared, packed=packed)
        tokens, _ = largest_batch(participant)
        share = passes.next_share(trainee, prepared, packed)
        return tokens, share.tokens

    (plain, its), (held, its_held) = needed(0.0), needed(1.0)
    assert held == 2 * plain and its_held == 2 * its

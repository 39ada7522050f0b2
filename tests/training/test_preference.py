"""Preference training through `fit`: the base is the reference in the same batch, packed and padded alike, and whatever
stands beside it."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch

from lora import LoRA, evaluate, fit
from lora.config import DataConfig
from lora.core.attention import per_document
from lora.core.routing import BASE
from lora.errors import ConfigError
from lora.tasks import TASKS, from_state
from lora.tasks.mixture import forward
from lora.training.job import Job
from lora.training.packing import Packing
from small_base import WORDS, stories, tokenizer
from tiny_models import tiny

SIZE = {"vocab_size": 25}
TOKENS = tokenizer("llama")
COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """The chosen answer has a cat in it, the rejected one a dog."""
    random_ = random.Random(seed)

    def words(fewest: int, most: int) -> str:
        return " ".join(random_.choices(WORDS, k=random_.randint(fewest, most)))

    return [
        {"prompt": words(1, 9), "chosen": f"cat {words(0, 5)}", "rejected": f"dog {words(0, 9)}"} for _ in range(count)
    ]


def model_of(arch: str, seed: int = 0, **settings: Any) -> LoRA:
    model = LoRA(tiny(arch, **SIZE, **settings), name=None)
    model.add_adapter("a", rank=4, seed=seed)
    with torch.no_grad():  # not at the start, where adapter and base are one
        generator = torch.Generator().manual_seed(7)
        for key, parameter in model.adapter_parameters("a").items():
            if key.endswith(".B"):
                parameter.normal_(std=0.3, generator=generator)
    return model


@pytest.mark.parametrize("arch", ["llama", "mistral", "gemma2", "qwen3"])
@pytest.mark.parametrize("loss", ["sigmoid", "ipo", "orpo", "simpo"])
def test_packed_is_as_each_answer_behind_a_prompt_of_its_own(arch: str, loss: str) -> None:
    """Losses and gradients beside plain rows, the base in a forward of its own: nothing of ours but the formula."""
    rows, model = pairs(6), model_of(arch).train()
    task = from_state({**TASKS["preference"].from_rows(rows, COLUMNS).state(), "loss": loss, "beta": 0.5})
    examples = task.encode(rows, TOKENS, 64).examples
    own = list(model.adapter_parameters("a").values())
    with per_document(model.base):
        losses = Packing(model).losses([examples], ["a"], {"a": 3}, [0.0], [task.reference])
        smoothing = 0.1 if loss == "sigmoid" else 0.0
        packed = task.packed_loss(losses[0], examples, losses[1] if task.reference else None, smoothing)
        found = torch.autograd.grad(packed, own)
    batch = task.collate(examples, 0)
    with torch.no_grad():
        base = forward(model, batch, BASE)
    compared = {"reference": base} if task.reference else {}
    expected = task.row_losses(forward(model, batch, "a"), batch, smoothing, **compared)[0].sum()
    torch.testing.assert_close(packed, expected, rtol=1e-4, atol=1e-5)
    for mine, other in zip(found, torch.autograd.grad(expected, own), strict=True):
        assert float((mine - other).abs().max()) <= 2e-4 * float(other.abs().max())


@pytest.mark.parametrize("packing", [None, False])
def test_the_margin_grows_and_the_base_does_not_move(packing: bool | None) -> None:
    model = LoRA(tiny("llama", **SIZE), rank=4)
    before = copy.deepcopy(model.base.state_dict())
    result = fit(model, pairs(24), pairs(12, 1), tokenizer=TOKENS, max_steps=24, batch_size=8, learning_rate=2e-2,
                 packing=packing, progress=False)  # fmt: skip
    first = next(line["loss"] for line in result.history if "loss" in line)
    assert first == pytest.approx(0.6931, abs=1e-3), "at the start adapter and base are one"
    found = evaluate(model, pairs(24), tokenizer=TOKENS)
    tuned, base = found["default"], found[BASE]
    assert tuned["accuracy"] > 0.9 and tuned["margin"] > 0.1
    assert base["accuracy"] == 0.5 and base["margin"] == 0.0
    assert all(
        torch.equal(before[key], value) for key, value in model.base.state_dict().items() if ".slots." not in key
    )


def run(names: list[str], packing: bool | None, dropout: float = 0.0) -> dict[str, dict[str, torch.Tensor]]:
    model = LoRA(tiny("llama", **SIZE, attention_dropout=dropout), name=None)
    data = {"p": pairs(16), "q": pairs(12, 5), "s": stories(16)}
    loss = {"p": "sigmoid", "q": "ipo"}
    jobs = {
        name: Job(data[name], False, {"rank": 4}, {"seed": 3, "batch_size": 5},
                  columns={"options": {"loss": loss[name]}} if name in loss else None)
        for name in names
    }  # fmt: skip
    fit(model, jobs, False, tokenizer=TOKENS, max_steps=3, learning_rate=1e-2, packing=packing, progress=False,
        at_once=len(names))  # fmt: skip
    return {name: {k: p.detach().clone() for k, p in model.adapter_parameters(name).items()} for name in names}


@pytest.mark.parametrize("packing, dropout", [(None, 0.0), (False, 0.0), (None, 0.2)])
def test_together_as_each_alone(packing: bool | None, dropout: float) -> None:
    """Bit for bit, though two of them share the base's rows in a pass."""
    together = run(["p", "q", "s"], packing, dropout)
    for name, parameters in together.items():
        alone = run([name], packing, dropout)[name]
        assert all(torch.equal(alone[key], parameters[key]) for key in alone), name


@pytest.mark.parametrize(
    "options, smoothing, match",
    [
        ({"loss": "robust"}, 0.5, "to the loss robust it is the share of pairs"),
        ({"loss": "hinge"}, 0.1, "the loss hinge has none; leave it out"),
        ({"loss": "orpo"}, 0.1, "the loss orpo has none"),
        ({"loss": "sigmoid", "gamma": 0.5}, 0.0, "data.options: gamma 0.5 is the margin of simpo"),
    ],
)
def test_settings_that_the_loss_has_not(options: dict[str, Any], smoothing: float, match: str) -> None:
    model = LoRA(tiny("llama", **SIZE), rank=4)
    with pytest.raises(ConfigError, match=match):
        fit(model, pairs(8), False, tokenizer=TOKENS, max_steps=1, label_smoothing=smoothing, progress=False,
            data=DataConfig(options=options))  # fmt: skip


def test_a_reward_model_learns_and_scores(tmp_path: Any) -> None:
    from lora import predict

    model = LoRA(tiny("llama-cls", **SIZE, num_labels=1), rank=4)
    fit(model, pairs(32), pairs(12, 1), tokenizer=TOKENS, max_steps=20, batch_size=8, learning_rate=1e-2,
        data=DataConfig(task="reward"), progress=False)  # fmt: skip
    assert evaluate(model, pairs(12, 1), tokenizer=TOKENS)["default"]["accuracy"] > 0.9
    rows = [{"prompt": "red sun", "completion": answer} for answer in ("cat now", "dog now")]
    good, bad = predict(model, rows, tokenizer=TOKENS)
    assert good["reward"] > bad["reward"]

"""The mean of parameters over steps: what it is a mean of, that training does not notice, and where it is used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from lora import LoRA, fit
from lora.config import DataConfig, TrainingConfig
from lora.io.run import RunFolder
from lora.training.averaging import Average
from lora.training.job import Job
from lora.training.memory import state_bytes
from lora.training.participant import Participant
from small_base import labelled, tokenizer

SETTINGS: dict[str, Any] = {
    "max_steps": 10, "batch_size": 8, "learning_rate": 1e-2, "save_every": 1, "keep_checkpoints": 99, "eval_every": 2,
    "schedule": "constant", "progress": False,
}  # fmt: skip


def model(folder: Any, name: str | None = "default") -> LoRA:
    torch.manual_seed(0)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    return LoRA(base, name=name, **({"rank": 4, "dropout": 0.1} if name else {}))


def after_each_step(run: Any) -> dict[int, dict[str, torch.Tensor]]:
    """The parameters in training, as the checkpoints have them."""
    return {
        int(folder.name.removeprefix("step-")): {
            key.removeprefix("now."): tensor
            for key, tensor in load_file(folder / "training.safetensors").items()
            if key.startswith("now.")
        }
        for folder in run.glob("checkpoints/step-*")
    }


def losses(history: list[dict[str, Any]]) -> list[Any]:
    return [(entry["step"], entry["loss"], entry["grad_norm"]) for entry in history if "loss" in entry]


@pytest.mark.parametrize("kind", ["swa", "ema"])
@pytest.mark.parametrize("start", [0.0, 0.5, 0.95])
def test_the_result_is_the_mean_of_the_last_steps(bert: Any, tmp_path: Any, kind: str, start: float) -> None:
    averaged = model(bert)
    settings = {**SETTINGS, "average": kind, "average_from": start, "average_decay": 0.6}
    result = fit(averaged, labelled(40), False, output_dir=tmp_path / "run", **settings)
    steps = after_each_step(tmp_path / "run")
    chosen = [steps[step] for step in range({0.0: 1, 0.5: 6, 0.95: 10}[start], 11)]
    for key, parameter in averaged.adapter_parameters("default").items():
        mean = chosen[0][key].double()
        for number, its in enumerate(chosen[1:], 2):
            share = 1 / number if kind == "swa" else max(1 / number, 0.4)
            mean = (1 - share) * mean + share * its[key].double()
        torch.testing.assert_close(parameter.detach().double(), mean, rtol=1e-5, atol=1e-7)
    if start == 0.0:  # and by the definition of a mean
        key = next(iter(chosen[0]))
        plain = torch.stack([its[key] for its in chosen]).double().mean(0)
        moved = averaged.adapter_parameters("default")[key].detach().double()
        assert torch.allclose(plain, moved, rtol=1e-5, atol=1e-7) is (kind == "swa")
    # Training itself has not noticed.
    plain_run = fit(model(bert), labelled(40), False, **SETTINGS)
    assert losses(plain_run.history) == losses(result.history)


def test_evaluations_and_the_best_see_the_mean(bert: Any, tmp_path: Any) -> None:
    averaged, seen = model(bert), []

    def evaluate(model: LoRA, name: str) -> dict[str, float]:
        seen.append({key: p.detach().clone() for key, p in model.adapter_parameters(name).items()})
        return {"score": float(len(seen) == 4)}  # the fourth of five wins, at step 8

    result = fit(
        averaged, labelled(40), output_dir=tmp_path / "run", evaluate=evaluate, best_metric="score",
        greater_is_better=True, average="swa", average_from=0.5, **SETTINGS,
    )  # fmt: skip
    steps = after_each_step(tmp_path / "run")
    assert result.best_step == 8
    saved = LoRA(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), name=None)
    saved.load_adapter(tmp_path / "run/checkpoints/best", name="best")
    written = saved.adapter_parameters("best")
    for key, parameter in averaged.adapter_parameters("default").items():
        assert torch.equal(seen[1][key], steps[4][key])  # before the first step that counts
        expected = torch.stack([steps[step][key] for step in (6, 7, 8)]).mean(0)
        torch.testing.assert_close(seen[3][key], expected)
        assert torch.equal(parameter, seen[3][key]) and torch.equal(written[key], parameter)
    assert not torch.equal(next(iter(seen[3].values())), next(iter(steps[8].values())))


@pytest.mark.parametrize("kind", ["swa", "ema"])
@pytest.mark.parametrize("after", [3, 7, 9])
def test_resume_gives_the_same_bits(bert: Any, tmp_path: Any, monkeypatch: Any, kind: str, after: int) -> None:
    settings = {**SETTINGS, "average": kind, "average_from": 0.4, "save_every": 3}
    whole = model(bert)
    fit(whole, labelled(40), labelled(24, seed=1), output_dir=tmp_path / "whole", **settings)
    log = RunFolder.log

    def failing(self: RunFolder, entry: dict[str, Any]) -> None:
        log(self, entry)
        if entry["step"] == after and "loss" in entry:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFolder, "log", failing)
        fit(model(bert), labelled(40), labelled(24, seed=1), output_dir=tmp_path / "run", **settings)
    again = model(bert)
    fit(again, labelled(40), labelled(24, seed=1), output_dir=tmp_path / "run", resume=True, **settings)
    for key, parameter in whole.adapter_parameters("default").items():
        assert torch.equal(parameter, again.adapter_parameters("default")[key]), key


def test_beside_others_as_alone(bert: Any) -> None:
    def train(names: tuple[str, ...]) -> dict[str, dict[str, torch.Tensor]]:
        jobs = {
            name: Job(
                labelled(40, seed=number), labelled(12, seed=9), {"rank": 2 + number, "dropout": 0.1},
                {"average": name, "seed": number},
            )
            for number, name in enumerate(("none", "swa", "ema"))
            if name in names
        }  # fmt: skip
        several = model(bert, None)
        fit(several, jobs, **SETTINGS)
        return {name: several.adapter_parameters(name) for name in names}

    together = train(("none", "swa", "ema"))
    for name, parameters in together.items():
        for key, parameter in train((name,))[name].items():
            assert torch.equal(parameter, parameters[key]), f"{name}: {key}"


def test_of_a_step_that_is_not_there_nothing_is_taken() -> None:
    parameters = {"w": torch.nn.Parameter(torch.ones(2))}
    average = Average(parameters, TrainingConfig(average="swa", average_from=0.99), 4)
    for step in range(1, 4):
        average.take(step)
        assert not average.tensors
    average.take(4)  # at least the last
    assert torch.equal(average.tensors["w"], parameters["w"])


def test_its_memory_is_counted(bert: Any) -> None:
    from lora.training.prepare import prepare, read_rows
    from lora.training.processes import Processes

    averaged = model(bert)
    rows = read_rows(labelled(40), False, DataConfig(), 0)
    prepared = prepare(averaged, rows, tokenizer("bert"))

    def bytes_of(**settings: Any) -> int:
        participant = Participant(
            averaged, "default", prepared, TrainingConfig(learning_rate=1e-3, **settings), Processes()
        )
        participant.ready()
        return state_bytes(participant)

    own = sum(p.numel() * 4 for p in averaged.adapter_parameters("default").values())
    assert bytes_of(average="ema") - bytes_of() == own


def test_settings_that_do_nothing_are_named(bert: Any) -> None:
    notes = fit(model(bert), labelled(24), False, **{**SETTINGS, "max_steps": 1, "average_from": 0.2}).notes
    assert "Without training.average training.average_from has no effect." in notes

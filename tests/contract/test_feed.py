"""Adapters that come while others train: as each does alone, to the last bit; places stay full; who leaves, leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from lora import LoRA, fit
from lora.errors import ConfigError, LoraError
from lora.training.feed import Feed
from lora.training.job import Job
from lora.training.participant import FitResult, Participant
from lora.training.passes import Passes
from small_base import WORDS, labelled
from together import base, mixed_jobs, same_bits, train


class Listed(Feed):
    """Gives ``jobs`` one by one; keeps what became of each, and takes it off the model."""

    def __init__(self, model: LoRA, jobs: dict[str, Job], dismiss: dict[str, int] | None = None) -> None:
        self.model, self.coming, self.jobs = model, list(jobs), jobs
        self.dismiss = dismiss or {}
        self.at_most = len(jobs)
        self.heard: list[tuple[str, int, float]] = []
        self.found: dict[str, Any] = {}
        self.refusals: dict[str, str] = {}

    def largest(self) -> Mapping[str, Job]:
        return {"largest": next(iter(self.jobs.values()))}

    def next(self) -> tuple[str, Job] | None:
        return (name := self.coming.pop(0), self.jobs[name]) if self.coming else None

    def refused(self, name: str, error: LoraError) -> None:
        self.refusals[name] = str(error)

    def evaluated(self, participant: Participant, metrics: Mapping[str, Any]) -> str | None:
        step = participant.trainee.step
        self.heard.append((participant.name, step, metrics["loss"]))
        return "not good enough" if step >= self.dismiss.get(participant.name, 10**6) else None

    def left(self, result: FitResult) -> None:
        name = result.adapter
        self.found[name] = {
            "parameters": {key: p.detach().clone() for key, p in self.model.adapter_parameters(name).items()},
            "history": [{k: v for k, v in e.items() if k != "tokens_per_second"} for e in result.history],
            "error": result.error,
        }
        self.model.remove_adapter(name)


def run(folder: Any, jobs: dict[str, Job], dismiss: dict[str, int] | None = None, **options: Any) -> Any:
    model = LoRA(base(folder), name=None)
    feed = Listed(model, jobs, dismiss)
    results = fit(model, feed, progress=False, **options)
    assert not model.adapters, "each was taken off"
    return feed, results


def trials(count: int, **training: Any) -> dict[str, Job]:
    data, held = labelled(40, 0, longest=5), labelled(12, 9, longest=5)
    settings = {"batch_size": 8, "max_steps": 6, "eval_every": 2, **training}
    return {
        f"trial {k}": Job(data, held, {"rank": 1 + k}, {"learning_rate": 1e-3 * (k + 1), "seed": k, **settings})
        for k in range(count)
    }


@pytest.mark.parametrize("at_once", [1, 2, 4])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_each_comes_out_as_it_does_alone(request: Any, kind: str, at_once: int) -> None:
    folder = request.getfixturevalue(kind)
    jobs = mixed_jobs(folder, "dora")
    feed, results = run(folder, jobs, at_once=at_once)
    assert set(results) == set(jobs)
    for name, job in jobs.items():
        same_bits(name, feed.found[name], train(folder, {name: job})[name])


def test_one_that_owns_modules_of_the_base_comes_late(llama: Any) -> None:
    """What a later one trains in full is not there when the first begins; together from the start is the measure."""
    data = [{"prompt": f"red {word}", "completion": f"moon {word} now"} for word in WORDS]
    training = {"learning_rate": 1e-2, "batch_size": 8, "max_steps": 4}
    jobs = {
        "first": Job(data, False, {"rank": 2}, {**training, "max_steps": 2}),
        "second": Job(data, False, {"rank": 2}, training),
        "third": Job(data, False, {"rank": 3, "dropout": 0.2, "modules_to_save": ["norm"]}, {**training, "seed": 2}),
    }
    feed, _ = run(llama, jobs, at_once=2)
    expected = train(llama, jobs, at_once=2)
    for name in jobs:
        same_bits(name, feed.found[name], expected[name])


def test_places_are_refilled_at_once(bert: Any, monkeypatch: Any) -> None:
    """While anybody waits every round has as many batches as there are places, whoever is sent away."""
    sizes, compute = [], Passes.run

    def counted(self: Passes, shares: Any) -> None:
        sizes.append(len(shares))
        compute(self, shares)

    monkeypatch.setattr(Passes, "run", counted)
    _, results = run(bert, trials(6), {"trial 0": 2, "trial 2": 4, "trial 3": 2}, at_once=3)
    steps = {name: result.steps for name, result in results.items()}
    assert steps == {"trial 0": 2, "trial 1": 6, "trial 2": 4, "trial 3": 2, "trial 4": 6, "trial 5": 6}
    dismissed = {name for name, result in results.items() if result.dismissed}
    assert dismissed == {"trial 0", "trial 2", "trial 3"} and not any(result.error for result in results.values())
    assert sizes == [3] * 6 + [2] * 4, "until trial 1 has done its last, when nobody waits any more"


def test_who_is_sent_away_changes_nothing_for_the_others(bert: Any) -> None:
    jobs = trials(4)
    sent, _ = run(bert, jobs, {"trial 1": 2}, at_once=2)
    stayed, _ = run(bert, jobs, at_once=3)
    for name in ("trial 0", "trial 2", "trial 3"):
        same_bits(name, sent.found[name], stayed.found[name])
    cut = [line for line in stayed.found["trial 1"]["history"] if line["step"] <= 2]
    assert sent.found["trial 1"]["history"] == cut, "and until then it was the same itself"


def test_every_evaluation_is_heard(bert: Any) -> None:
    feed, results = run(bert, trials(3), at_once=2)
    for name, result in results.items():
        told = [(entry["step"], entry["eval"]["loss"]) for entry in result.history if "eval" in entry]
        assert [(step, loss) for who, step, loss in feed.heard if who == name] == told and len(told) == 3


def test_at_its_last_evaluation_nobody_is_sent_away(bert: Any) -> None:
    _, results = run(bert, trials(2), {"trial 0": 6}, at_once=2)
    assert results["trial 0"].dismissed is None and results["trial 0"].steps == 6


def test_who_diverges_or_does_not_fit_makes_room(bert: Any, tmp_path: Path) -> None:
    jobs = trials(4)
    jobs["trial 1"].training = {**jobs["trial 1"].training, "learning_rate": 1e30, "clip": None}  # type: ignore[dict-item]
    jobs["trial 2"].adapter = {"targets": ["no_such_layer"]}
    feed, results = run(bert, jobs, at_once=2, output_dir=tmp_path / "set")
    assert "no_such_layer" in feed.refusals["trial 2"] and "trial 2" not in results
    assert results["trial 1"].error and "Lower learning_rate" in results["trial 1"].error
    assert results["trial 0"].error is None and results["trial 3"].steps == 6
    assert not (tmp_path / "set" / "trial 1" / "adapter").exists()
    assert (tmp_path / "set" / "trial 3" / "adapter" / "adapter_config.json").is_file()


def test_one_alone_and_none_at_all(bert: Any) -> None:
    _, results = run(bert, trials(1))
    assert results["trial 0"].steps == 6
    model = LoRA(base(bert), name=None)
    feed = Listed(model, trials(2))
    feed.coming = []
    assert fit(model, feed, progress=False) == {}


def test_going_on(bert: Any, tmp_path: Path) -> None:
    """Stopped and called again, with the jobs that were not done: each goes on where its checkpoint stands."""
    jobs = trials(4, save_every=2)
    whole, _ = run(bert, jobs, at_once=2)
    model = LoRA(base(bert), name=None)
    feed = Listed(model, jobs)
    hear = feed.evaluated

    class Killed(BaseException):
        pass

    def dying(participant: Participant, metrics: Mapping[str, Any]) -> str | None:
        if participant.name == "trial 2" and participant.trainee.step == 4:
            raise Killed
        return hear(participant, metrics)

    feed.evaluated = dying  # type: ignore[method-assign]
    with pytest.raises(Killed):
        fit(model, feed, output_dir=tmp_path / "cut", at_once=2, progress=False)
    assert set(feed.found) == {"trial 0", "trial 1"}
    left = {name: job for name, job in jobs.items() if name not in feed.found}
    again, _ = run(bert, left, at_once=2, output_dir=tmp_path / "cut", resume=True)
    assert again.heard[0][:2] == ("trial 2", 4), "from its checkpoint, not from the start"
    for name in left:
        for key, parameter in whole.found[name]["parameters"].items():
            assert torch.equal(parameter, again.found[name]["parameters"][key]), name


def test_what_belongs_to_data_is_refused(bert: Any) -> None:
    model = LoRA(base(bert), name=None)
    with pytest.raises(ConfigError, match="jobs bring their own"):
        fit(model, Listed(model, trials(1)), eval_data=[], progress=False)  # type: ignore[call-overload]


def test_what_is_wrong_with_the_largest_is_told_before(bert: Any) -> None:
    model = LoRA(base(bert), name=None)
    jobs = trials(1)
    jobs["trial 0"].adapter = {"targets": ["no_such_layer"]}
    with pytest.raises(LoraError, match="no_such_layer"):
        fit(model, Listed(model, jobs), progress=False)
    assert not model.adapters

"""A whole search on a tiny model: each trial as by itself, what is kept, verdicts, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

import lora
from lora import LoRA, RunConfig
from lora.config import TuningConfig
from lora.errors import ConfigError, DataError, TrainingError
from lora.overrides import load_config
from lora.tuning.result import TuneResult
from lora.tuning.search import name_of
from small_base import labelled, write_jsonl
from small_searches import by_number, history, settings, tuned


@pytest.fixture(scope="module")
def found(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    return tuned(bert, tmp_path_factory.mktemp("tuned"))


def test_files(found: TuneResult, tmp_path: Path) -> None:
    told = json.loads((found.output / "tune.json").read_text())
    assert told["format"] == 1 and told["sentence"] == found.verdict and told["best"] == found.best.number
    assert [its["number"] for its in told["trials"]] == list(range(6))
    assert {its["state"] for its in told["trials"]} == {"done"}
    for its in told["trials"]:
        curve = [(line["epoch"], line["f1_macro"]) for line in its["curve"]]
        assert [(report["epoch"], report["value"]) for report in its["reports"]] == curve and len(curve) == 2
        assert its["values"] == [max(value for _, value in curve)] and its["tokens"] > 0 and its["parameters"] > 0
    so_far = [line["best"] for line in told["plots"]["history"]]
    assert so_far == sorted(so_far) and so_far[-1] == told["trials"][found.best.number]["values"][0]
    assert [axis["name"] for axis in told["plots"]["parallel"]["axes"]] == ["learning_rate", "rank", "dropout"]
    assert len(told["plots"]["parallel"]["lines"]) == 6
    text = (found.output / "tune.md").read_text()
    for heading in ("6 trials", "Fresh runs on the test rows", "Protocol"):
        assert f"## {heading}" in text, heading
    best = load_config(found.output / "best.yaml", {"output": str(tmp_path / "again"), "training.max_steps": 1})
    assert best.training.learning_rate == found.training.learning_rate
    assert lora.workflow.train(best, progress=False, latency=False).fit.steps == 1


def test_the_first_trial_is_the_configuration_itself(found: TuneResult) -> None:
    first = by_number(found)[0].user_attrs["settings"]
    assert first == {"training.learning_rate": 3e-3, "adapter.rank": 4, "adapter.dropout": 0.0}


def test_each_trial_is_the_run_of_its_configuration(found: TuneResult, tmp_path: Path) -> None:
    """`lora train trials/trial-000k/config.yaml` gives the same lines, to the last bit."""
    seen = set()
    for number, its in by_number(found).items():
        place = found.output / "trials" / name_of(number)
        config = load_config(place / "config.yaml", {"output": str(tmp_path / str(number)), "check": False})
        seen.add((config.adapter.rank, config.training.learning_rate, config.adapter.dropout))
        if number % 2:
            continue
        lora.workflow.train(config, progress=False, latency=False)
        assert history(tmp_path / str(number)) == history(place), its.params
    assert len(seen) == 6


def test_what_is_kept(found: TuneResult) -> None:
    left = {path.parent.name for path in found.output.glob("trials/*/adapter")}
    assert left == {name_of(found.best.number)}
    assert not list(found.output.glob("*/*/checkpoints")), "moments are not kept"
    assert found.folder is not None and (found.folder / "adapter_config.json").is_file()
    runs = found.judged.sides["best"].runs if found.judged else {}
    best = max(runs.values(), key=lambda run: run.best_value or 0.0)
    assert best.output is not None
    same = "adapter_model.safetensors"
    assert (found.folder / same).read_bytes() == (best.output / "adapter" / same).read_bytes()


def test_fresh_seeds_and_unseen_rows(found: TuneResult, bert: Path) -> None:
    judged = found.judged
    assert judged is not None and judged.comparison is not None
    assert {name: set(side.runs) for name, side in judged.sides.items()} == {"best": {1, 2}, "default": {1, 2}}
    test = [json.loads(line) for line in (found.output.parent / "data" / "test.jsonl").read_text().splitlines()]
    import torch

    from lora import evaluate
    from lora.model.base import load_base

    for name, side in judged.sides.items():
        for seed, value in side.by_seed.items():
            base = load_base(str(bert), "AutoModelForSequenceClassification", torch.float32, {"num_labels": 3})
            model = LoRA(base, None)
            model.load_adapter(judged.folders[name][seed] / "adapter", "alone")
            alone = evaluate(model, test, adapters=["alone"], baseline=False, latency=False)["alone"]
            assert value == pytest.approx(alone["f1_macro"], abs=1e-6), (name, seed)
    assert (
        judged.comparison.units == 24
        and "on 24 test rows" in found.verdict
        and found.rows == {"train": 40, "validation": 16, "test": 24}
    )


def test_the_default_may_win(bert: Path, tmp_path: Path) -> None:
    found = tuned(bert, tmp_path, space={"dropout": [0.0, 0.1]}, trials=1)
    assert found.judged is not None and found.judged.word == "the default itself"
    assert found.verdict.startswith("No better than the default") and set(found.judged.sides) == {"best"}


def test_who_loses_is_stopped_and_the_place_refilled(bert: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from lora.training.passes import Passes

    sizes, compute = [], Passes.run

    def counted(self: Passes, shares: Any) -> None:
        sizes.append(len(shares))
        compute(self, shares)

    monkeypatch.setattr(Passes, "run", counted)
    found = tuned(bert, tmp_path, trials=10, pruner="halving", seeds=0, epochs=4)
    states = [its.state for its in found.trials]
    assert states.count(TrialState.PRUNED) >= 4 and states.count(TrialState.COMPLETE) >= 1
    for its in found.trials:
        steps = its.user_attrs["steps"]
        assert (steps == 20) == (its.state == TrialState.COMPLETE), "5 steps an epoch"
        if its.state == TrialState.PRUNED:
            assert steps in (5, 15) and its.user_attrs["pruned"].startswith("pruned after")
            assert not (found.output / "trials" / name_of(its.number) / "adapter").exists()
    full = [size for size in sizes if size == 3]
    total = sum(its.user_attrs["steps"] for its in found.trials)
    assert sum(sizes) >= total and len(full) >= (total - 3 * 20) / 3, "until nobody waits any more"


def test_one_that_diverges_is_not_the_end(bert: Path, tmp_path: Path) -> None:
    space = {"learning_rate": [1e-3, 1e30]}
    found = tuned(bert, tmp_path, space=space, sampler="grid", trials=None, seeds=0, clip=None)
    of_rate = {its.user_attrs["settings"]["training.learning_rate"]: its for its in found.trials}
    assert of_rate[1e-3].state == TrialState.COMPLETE and found.best.number == of_rate[1e-3].number
    assert of_rate[1e30].state == TrialState.PRUNED and "Lower learning_rate" in of_rate[1e30].user_attrs["error"]
    assert "diverged" in (found.output / "tune.md").read_text()


def test_none_comes_to_its_end(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"no trial came to its end\ntrial 0: .*Lower learning_rate"):
        tuned(bert, tmp_path, space={"learning_rate": [1e29, 1e30]}, sampler="grid", trials=None, clip=None)


def test_several_objectives(bert: Path, tmp_path: Path) -> None:
    space = {"rank": [1, 2, 4], "learning_rate": [1e-4, 1e-2]}
    found = tuned(bert, tmp_path, space=space, sampler="grid", trials=None, objectives=["accuracy", "size"], seeds=1)
    values = {its.number: (its.values[0], -its.values[1]) for its in found.trials}
    assert len(values) == 6

    def beaten(own: tuple[float, float]) -> bool:
        return any(other != own and other[0] >= own[0] and other[1] >= own[1] for other in values.values())

    assert found.front == [number for number, own in values.items() if not beaten(own)]
    assert found.best.number in found.front and values[found.best.number][0] == max(v[0] for v in values.values())
    sizes = {its.user_attrs["settings"]["adapter.rank"]: its.values[1] for its in found.trials}
    assert sizes[1] < sizes[2] < sizes[4]
    kept = {path.parent.name for path in found.output.glob("trials/*/adapter")}
    assert kept == {name_of(number) for number in found.front}
    assert "## Pareto front" in (found.output / "tune.md").read_text()


def test_latency(bert: Path, tmp_path: Path) -> None:
    found = tuned(bert, tmp_path, objectives=["f1_macro", "latency"], trials=2, seeds=0)
    assert all(0 < its.values[1] < 1e4 for its in found.trials)


def test_a_quick_probe(bert: Path, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, epochs=30)
    found = lora.tune(config, TuningConfig(quick=True), progress=False)
    rates = sorted(its.user_attrs["settings"]["training.learning_rate"] for its in found.trials)
    assert len(rates) == 9 and rates[0] == 3e-5 and rates[-1] == 0.3
    assert {its.user_attrs["steps"] for its in found.trials if its.state == TrialState.COMPLETE} == {30}
    assert not (found.output / "final").exists() and found.folder is None
    best = load_config(found.output / "best.yaml")
    lowest = min((its for its in found.trials if its.state == TrialState.COMPLETE), key=lambda its: its.values[0])
    assert best.training.learning_rate == lowest.user_attrs["settings"]["training.learning_rate"]
    assert best.training.epochs == 30 and best.training.max_steps is None and best.training.schedule == "linear"


def test_budgets_of_tokens_and_time(bert: Path, tmp_path: Path, monkeypatch: Any) -> None:
    told: list[str] = []
    config = settings(bert, tmp_path)
    found = lora.tune(
        config, TuningConfig(tokens=1000, seeds=0, sampler="random", space=["learning_rate"]), progress=False,
        say=told.append,
    )  # fmt: skip
    assert [its.user_attrs["tokens"] for its in found.trials] == [478] * 3, "three at once, which end together"
    assert "No more trials: 1,000 tokens are used up." in told
    config.output = str(tmp_path / "timed")
    found = lora.tune(
        config, TuningConfig(minutes=1e-6, trials=5, seeds=0, sampler="random", space=["learning_rate"]),
        progress=False,
    )  # fmt: skip
    assert [its.state for its in found.trials].count(TrialState.COMPLETE) == 1, "one at least"


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_samplers_that_learn(bert: Path, tmp_path: Path, sampler: str) -> None:
    """Deterministic under a seed, with the number of places given."""
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}, "dropout": {"low": 0.0, "high": 0.2}}
    first = tuned(bert, tmp_path, space=space, sampler=sampler, trials=12, seeds=0, epochs=1)
    (tmp_path / "again").mkdir()
    again = tuned(bert, tmp_path / "again", space=space, sampler=sampler, trials=12, seeds=0, epochs=1)
    assert [its.params for its in first.trials] == [its.params for its in again.trials]
    assert [its.values for its in first.trials] == [its.values for its in again.trials]
    assert len({its.params["learning_rate"] for its in first.trials}) == 12


def test_mistakes(bert: Path, tmp_path: Path, found: TuneResult) -> None:
    def refused(message: str, error: type[Exception] = ConfigError, **asked: Any) -> None:
        with pytest.raises(error, match=message):
            tuned(bert, tmp_path, **asked)
        assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("t*")), "nothing was begun"

    refused(r"tune\.space\.learning_rat: unknown setting; did you mean 'learning_rate'", space=["learning_rat"])
    refused(r"tune\.space\.seed: cannot be searched: a seed that wins was lucky", space=["seed"])
    refused(r"tune\.space\.data\.max_length: 'data' is no section", space={"data.max_length": [8, 16]})
    refused(r"low \(0\.1\) must be below high \(0\.01\)", space={"learning_rate": {"low": 0.1, "high": 0.01}})
    refused(r"tune\.space\.rank: adapter\.rank: .*greater than or equal to 1", space={"rank": [0, 4]})
    refused(r"rank", space={"rank": [4, 999]})
    refused(r"no_such_layer", space={"targets": [["no_such_layer"], ["query"]]})
    refused(r"no setting with a range or choices", space={"rank": 4})
    refused(r"when\.variant: is not searched itself", space={"rank": {"choices": [1, 2], "when": {"variant": "dora"}}})
    refused(r"'f1_makro' is not measured", objectives=["f1_makro"])
    refused(r"alone are best where nothing is learned", objectives=["size"])
    refused(r"nobody knows who is losing", objectives=["accuracy", "size"], pruner="median")
    refused(r"cmaes follows a single objective", objectives=["accuracy", "size"], sampler="cmaes")
    refused(r"trials: must be greater than or equal to 1", trials=0)
    refused(r"sampler: must be 'tpe', 'random', 'grid' or 'cmaes'", sampler="tp")
    refused(r"a quick probe tries learning rates alone", quick=True)
    refused(r"tune\.storage: nonsense", storage="nonsense")
    with pytest.raises(ConfigError, match="already holds a search"):
        tuned(bert, found.output.parent)
    with pytest.raises(ConfigError, match=r"this is not a search's folder"):
        lora.tune(tmp_path, resume=True)
    with pytest.raises(ConfigError, match="under the search's own settings"):
        lora.tune(found.output, resume=True, trials=3)
    config = settings(bert, tmp_path)
    config.data.held_out, config.data.train = 0, str(write_jsonl(tmp_path / "rows.jsonl", labelled(30)))
    with pytest.raises(ConfigError, match="no rows to compare trials on"):
        lora.tune(config, trials=2)
    with pytest.raises((DataError, ConfigError), match="nowhere"):
        lora.tune(
            RunConfig.make({"model": str(bert), "data": str(tmp_path / "nowhere"), "output": str(tmp_path / "x")}),
            trials=1,
        )
    assert not (tmp_path / "x").exists()


def test_two_cannot_write_into_one_folder(bert: Path, tmp_path: Path) -> None:
    from lora.tuning.begin import alone_in

    with alone_in(tmp_path / "out"), pytest.raises(ConfigError, match="a search is writing into"):
        tuned(bert, tmp_path)

"""A whole comparison on tiny models: the numbers of each alone, going on after a kill, the grid, what is refused."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import lora
from chat_base import save_chat_base
from lora import LoRA, RunConfig, evaluate
from lora.cli import main
from lora.comparison import compare as module
from lora.comparison.alone import measure, sample
from lora.comparison.candidates import Candidate, Outcome, Trial, best_rate, beyond
from lora.comparison.page import render
from lora.comparison.protocol import load, read
from lora.comparison.result import ComparisonResult
from lora.comparison.trials import Bench, choose_rates
from lora.config import AdapterConfig, ComparisonConfig
from lora.errors import ConfigError, DataError, Interrupted, TargetError, TrainingError
from lora.io.run import RunFolder
from lora.model.base import load_base
from lora.overrides import load_config
from small_base import WORDS, labelled, stories, write_jsonl

QUICK: dict[str, Any] = {
    "ranks": [1, 2],
    "target_sets": ["attention"],
    "rate_factors": [10],
    "seeds": 2,
    "alone": False,
}
TRAINING = {"max_steps": 3, "batch_size": 8, "dtype": "float32", "learning_rate": 1e-3}


def settings(base: Path, folder: Path, rows: list[dict[str, Any]] | None = None, **training: Any) -> RunConfig:
    data = write_jsonl(folder / "rows.jsonl", labelled(60, longest=4) if rows is None else rows)
    return RunConfig.make({
        "model": str(base), "data": str(data), "output": str(folder / "out"), "at_once": 4,
        "training": {**TRAINING, **training},
    })  # fmt: skip


def compared(base: Path, folder: Path, rows: list[dict[str, Any]] | None = None, **asked: Any) -> ComparisonResult:
    return lora.compare(settings(base, folder, rows), progress=False, **{**QUICK, **asked})


@pytest.fixture(scope="module")
def found(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparisonResult:
    return compared(bert, tmp_path_factory.mktemp("compared"))


@pytest.fixture(scope="module")
def learned(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> ComparisonResult:
    """One whose adapter tells the classes apart."""
    folder = tmp_path_factory.mktemp("learned")
    test = write_jsonl(folder / "test.jsonl", labelled(60, seed=4, longest=3))
    config = settings(
        bert, folder, labelled(90, longest=3), max_steps=120, learning_rate=1e-2, eval_every=30
    )  # fmt: skip
    asked = {"ranks": [4], "target_sets": ["all-linear"], "rate_factors": [1], "seeds": 1, "full": False}
    return lora.compare(config, progress=False, test=str(test), alone=False, **asked)


def test_each_is_measured_as_it_is_alone(found: ComparisonResult, bert: Path) -> None:
    assert [its.name for its in found.measured] == ["probe", "r1-attention", "r2-attention", "full"]
    rows, *_ = read(load_config(None, {"model": str(bert), "data.train": found.config.data.train}), found.asked.test)
    assert rows.test is not None
    for its in found.measured:
        for seed, trial in its.chosen.runs.items():
            model = LoRA(
                load_base(str(bert), "AutoModelForSequenceClassification", _float32(), {"num_labels": 3}), None
            )
            model.load_adapter(found.output / "trials" / trial.name / "adapter", "alone")
            alone = evaluate(model, list(rows.test), adapters=["alone"], baseline=False, latency=False)["alone"]
            for key in ("accuracy", "f1_macro", "loss"):
                assert its.by_seed(key)[seed] == pytest.approx(alone[key], abs=1e-5), (its.name, key)
        assert its.parameters == sum(p.numel() for p in model.adapter_parameters("alone").values())
        assert its.stored == sum(p.stat().st_size for p in (_run(found, its) / "adapter").iterdir())
        assert its.estimates["accuracy"].value == pytest.approx(sum(its.by_seed("accuracy").values()) / 2), (
            "all runs together"
        )
        assert its.estimates["accuracy"].units == len(rows.test), "rows are drawn, not rows times runs"


def _float32() -> Any:
    import torch

    return torch.float32


def _run(found: ComparisonResult, its: Any) -> Path:
    return found.output / "trials" / its.chosen.runs[0].name


def test_protocol(found: ComparisonResult) -> None:
    assert found.rows == {"train": 27, "validation": 20, "test": 13}
    assert "27 rows train; 20 validation rows choose learning rates" in found.protocol[0]
    rates = {its.kind: its.chosen.rate for its in found.measured}
    assert rates == {"probe": 0.1, "lora": 0.01, "full": 0.001}, "each kind around its own default"
    for its in found.measured:
        assert {outcome.steps for outcome in its.chosen.outcomes.values()} == {3}, "one budget for all"
        assert its.spectrum is None if its.kind == "probe" else its.spectrum["layers"] > 0
    assert found.verdict.margin == 0.01


def test_files(found: ComparisonResult, tmp_path: Path) -> None:
    told = json.loads((found.output / "compare.json").read_text())
    assert told["format"] == 1 and told["recommendation"] == found.recommendation
    one = told["candidates"][1]
    assert one["name"] == "r1-attention" and one["metrics"]["f1_macro"]["by_seed"].keys() == {"0", "1"}
    assert one["layers"]["bert.encoder.layer.0.attention.self.query"]["rank"] == 1
    text = (found.output / "compare.md").read_text()
    for heading in ("What they take", "Pareto fronts", "All metrics", "Learning rates", "Which layers", "Protocol"):
        assert f"## {heading}" in text, heading
    assert (found.output / "compare.html").read_text(encoding="utf-8") == render(told)
    assert not list(found.output.glob("trials/*/checkpoints")), "moments are not kept"


def test_the_winner(learned: ComparisonResult, tmp_path: Path) -> None:
    assert learned.verdict.recommended == "r4-all-linear"
    values = {"output": str(tmp_path / "again"), "training.max_steps": 1}
    winner = load_config(learned.output / "winner.yaml", values)
    assert winner.adapter == next(
        its.candidate.adapter for its in learned.measured if its.name == learned.verdict.recommended
    )
    assert lora.workflow.train(winner, progress=False, latency=False).fit.steps == 1
    adapter = learned.adapter()
    assert adapter is not None and (adapter / "adapter_config.json").is_file()


def test_nobody_is_recommended_who_has_not_learned(found: ComparisonResult, learned: ComparisonResult) -> None:
    """Three steps teach nothing: the constant answer stands beside the candidates, and the best does not beat it."""
    counts = Counter(row["label"] for row in found_rows(found))
    label, count = counts.most_common(1)[0]
    assert found.verdict.recommended is None and found.adapter() is None and not (found.output / "winner.yaml").exists()
    assert found.recommendation.startswith(
        f"Nothing here is shown to be better than a constant answer: always {label!r}, the most frequent class "
        f"({count} of 13 rows), has F1 macro "
    )
    told = json.loads((found.output / "compare.json").read_text())
    its, n = told["reference"], 13
    assert (its["name"], its["tested"]) == ("constant answer", True)
    assert its["metrics"]["accuracy"]["value"] == pytest.approx(count / n)
    assert its["metrics"]["f1_macro"]["value"] == pytest.approx(2 * count / (n + count) / 3)
    assert "loss" not in its["metrics"] and its["metrics"]["f1_macro"]["units"] == n
    best = next(each for each in told["candidates"] if each["name"] == told["best"])
    assert its["against_best"]["difference"] == -best["against_reference"]["difference"]
    assert best["above_chance"]["metric"] == "MCC" and best["above_chance"]["b"] == 0
    table = (found.output / "compare.md").read_text().split("## What they take")[0]
    assert f"| constant answer | reference | {its['metrics']['f1_macro']['value']:.4g} (" in table
    page = (found.output / "compare.html").read_text(encoding="utf-8")
    assert 'data-path="/reference/metrics/f1_macro/value"' in page and "constant answer: always" in page
    assert {each["verdict"] for each in _of_best(learned)} == {"better"}


def found_rows(found: ComparisonResult) -> list[dict[str, Any]]:
    rows, *_ = read(
        load_config(None, {"model": found.config.model, "data.train": found.config.data.train}), found.asked.test
    )
    assert rows.test is not None
    return list(rows.test)


def _of_best(found: ComparisonResult) -> list[dict[str, Any]]:
    told = json.loads((found.output / "compare.json").read_text())
    best = next(each for each in told["candidates"] if each["name"] == told["best"])
    return [best["against_reference"], best["above_chance"]]


def test_a_metric_that_no_constant_answer_has(bert: Path, tmp_path: Path) -> None:
    """It stands beside the candidates by the metrics it has, and nobody is held against it."""
    config = settings(bert, tmp_path, best_metric="loss")
    found = lora.compare(config, progress=False, **{**QUICK, "ranks": [1], "seeds": 1, "full": False})
    assert found.reference is not None and not found.reference.tested and "accuracy" in found.reference.estimates
    assert found.verdict.recommended is not None and found.reference.against_best is None
    assert not any(entry.against_reference or entry.above_chance for entry in found.entries)
    assert any("no constant answer has" in note for note in found.notes)


def test_going_on_after_a_kill(found: ComparisonResult, bert: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Stopped while full fine-tuning was at it: the same result, and nothing that was done is trained again."""
    log = RunFolder.log

    def stopping(self: RunFolder, entry: dict[str, Any]) -> None:
        log(self, entry)
        if "full" in self.path.name and entry["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched, pytest.raises(Interrupted, match=r"lora compare --resume .*out"):
        patched.setattr(RunFolder, "log", stopping)
        compared(bert, tmp_path)
    assert not (tmp_path / "out" / "compare.json").exists()
    trained: list[str] = []

    def noted(self: RunFolder, entry: dict[str, Any]) -> None:
        log(self, entry)
        trained.append(self.path.name)

    monkeypatch.setattr(RunFolder, "log", noted)
    again = lora.compare(tmp_path / "out", resume=True, progress=False)
    assert not any(name.endswith("seed0") and "full" not in name for name in trained), "done before"
    for before, after in zip(found.measured, again.measured, strict=True):
        assert before.by_seed("loss") == after.by_seed("loss"), before.name
    assert again.recommendation == found.recommendation
    trained.clear()
    assert lora.compare(again.output, resume=True, progress=False).recommendation == found.recommendation
    assert not trained, "a comparison that is done is only measured"
    write_jsonl(tmp_path / "rows.jsonl", labelled(60, seed=5, longest=4))
    with pytest.raises(ConfigError, match="was trained on other rows"):
        lora.compare(again.output, resume=True, progress=False)


def test_a_folder_that_is_used(found: ComparisonResult, bert: Path, tmp_path: Path) -> None:
    config = settings(bert, tmp_path)
    config.output = str(found.output)
    with pytest.raises(ConfigError, match="already holds a comparison"):
        lora.compare(config, progress=False, **QUICK)
    (tmp_path / "out" / "trials").mkdir(parents=True)
    (tmp_path / "out" / "trials" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="holds trials, which no comparison made"):
        lora.compare(settings(bert, tmp_path), overwrite=True, progress=False, **QUICK)
    assert (tmp_path / "out" / "trials" / "mine.txt").exists()


def test_replacing_a_comparison(bert: Path, tmp_path: Path) -> None:
    asked = {**QUICK, "ranks": [1], "seeds": 1, "full": False}
    compared(bert, tmp_path, **asked)
    with pytest.raises(TargetError):
        lora.compare(settings(bert, tmp_path), overwrite=True, progress=False, **{**asked, "target_sets": ["x"]})
    assert (tmp_path / "out" / "compare.json").exists(), "nothing is replaced before everything has been checked"
    found = lora.compare(settings(bert, tmp_path), overwrite=True, progress=False, **{**asked, "ranks": [2]})
    assert not list(found.output.glob("trials/r1-*")) and list(found.output.glob("trials/r2-*"))


def test_settings_and_rows_that_would_mislead_are_said(bert: Path, tmp_path: Path) -> None:
    config = settings(bert, tmp_path)
    config.adapter.rank = 8
    said: list[str] = []
    test = write_jsonl(tmp_path / "test.jsonl", labelled(60, longest=4)[:12])
    asked = {**QUICK, "ranks": [1], "seeds": 1, "full": False, "test": str(test)}
    found = lora.compare(config, progress=False, say=said.append, **asked)
    assert any("adapter.rank is not used" in line for line in said)
    assert any("of the test rows have an input that is trained on too" in line for line in found.protocol)
    assert "of the test rows have an input that is trained on: all figures are too good." in found.recommendation
    assert any("Each is trained for 3 steps of 8 rows a step" in line for line in found.protocol)


def test_another_answer_to_the_same_question_is_trained_on_too(tmp_path: Path) -> None:
    """As the held-out split has it: what is asked makes a row the same, whatever is answered."""

    def talks(asked: list[str], answer: str) -> list[dict[str, Any]]:
        said = [("user", "red"), ("assistant", "blue")]
        return [
            {"messages": [{"role": role, "content": text} for role, text in
                          (*said, ("user", its), ("assistant", answer))]} for its in asked
        ]  # fmt: skip

    base, first = save_chat_base(tmp_path / "base"), WORDS[:10]
    config = settings(base, tmp_path, talks(first, "sun"))
    held = talks([first[3], "new moon", first[5].upper()], "other")
    config.data.validation = str(write_jsonl(tmp_path / "held.jsonl", held))
    test = write_jsonl(tmp_path / "test.jsonl", talks([*first[:4], "old moon"], "other"))
    _, protocol, seen = read(config, str(test))
    assert seen == 4
    assert [line for line in protocol if "trained on too" in line] == [
        "2 of the validation rows have an input that is trained on too: they flatter everybody.",
        "4 of the test rows have an input that is trained on too: they flatter everybody.",
    ]


def test_ctrl_c_after_training(bert: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_measure_alone", stopped)
    with pytest.raises(Interrupted, match="what is trained is kept. Go on with: lora compare --resume"):
        compared(bert, tmp_path, ranks=[1], seeds=1, full=False, alone=True)


# -- learning rates ----------------------------------------------------------------------------------------------------


def outcome(value: float | None, loss: float = 1.0) -> Outcome:
    return Outcome(value, loss, 1, 1, 1.0, 10, None if value is not None else "diverged")


def test_the_best_rate() -> None:
    assert best_rate({1e-3: outcome(0.5), 1e-2: outcome(0.7), 1e-1: outcome(None)}, True) == 1e-2
    assert best_rate({1e-3: outcome(0.5), 1e-2: outcome(0.7)}, False) == 1e-3
    assert best_rate({1e-3: outcome(0.7, 2.0), 1e-2: outcome(0.7, 1.0)}, True) == 1e-2, "of equal ones the lower loss"
    assert best_rate({1e-3: outcome(math.nan), 1e-2: outcome(0.1)}, True) == 1e-2
    assert best_rate({1e-3: outcome(None)}, True) is None
    assert beyond([1, 3, 9], 9) == 27 and beyond([9, 1, 3], 1) == pytest.approx(0.333) and beyond([1, 3, 9], 3) is None
    assert beyond([1], 1) is None


def test_a_grid_is_extended_once(monkeypatch: Any) -> None:
    """Made-up outcomes: one is best at the lowest rate, one in the middle, one ever higher, one fails everywhere."""
    shape = {"low": lambda r: -r, "middle": lambda r: -abs(r - 3), "high": lambda r: r, "fails": lambda r: None}
    dropped, ran = list[str](), list[str]()

    class Made(Bench):
        def __init__(self) -> None:
            self.config, self.say = RunConfig(), lambda line: None

        def run(self, trials: Any) -> dict[Trial, Outcome]:
            ran.extend(trial.name for trial in trials)
            return {trial: outcome(shape[trial.candidate.name](trial.rate)) for trial in trials}

        def drop(self, trial: Trial) -> None:
            dropped.append(trial.name)

    everyone = [Candidate(name, "lora", AdapterConfig(), (1.0, 3.0, 9.0)) for name in shape]
    chosen = {its.candidate.name: its for its in choose_rates(Made(), [*everyone, Candidate("base", "base")], 2, True)}
    assert {name: (its.rate, its.extended, its.at_the_end) for name, its in chosen.items()} == {
        "low": (0.333, 0.333, True), "middle": (3.0, None, False), "high": (27.0, 27.0, True),
        "fails": (None, None, False), "base": (None, None, False),
    }  # fmt: skip
    assert chosen["fails"].error == "diverged" and chosen["base"].error is None
    assert len(set(ran)) == 12 + 2 + 3, "each once, extensions, and a further seed of each that lives"
    assert "high-lr9-seed0" in dropped and "high-lr27-seed0" not in dropped


# -- other tasks -------------------------------------------------------------------------------------------------------


def test_a_language_model_is_beside_its_base(llama: Path, tmp_path: Path) -> None:
    found = compared(llama, tmp_path, stories(60), ranks=[1], seeds=1)
    assert [its.name for its in found.measured] == ["base", "r1-attention", "full"]
    assert found.key == "loss" and not found.greater
    base = found.measured[0]
    assert found.reference is not None and (found.reference.name, found.reference.tested) == ("base", True)
    assert [bool(its.against_reference) for its in found.entries] == [False, True, True]
    assert base.costs()["parameters"] == 0 and base.estimates["perplexity"].value > 1
    assert base.estimates["loss"].value != found.measured[2].estimates["loss"].value
    assert found.verdict.margin == pytest.approx(0.01 * min(its.quality.value for its in found.entries))


def test_a_number(bert: Path, tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [{"text": " ".join(draw.choices(WORDS, k=4)), "label": draw.gauss(0, 5) + 0.5} for _ in range(60)]
    found = compared(bert, tmp_path, rows, ranks=[1], seeds=1)
    assert found.reference is not None and "the mean of the true values" in found.reference.said
    assert found.reference.tested and not any(entry.above_chance for entry in found.entries)
    assert found.key == "rmse" and {"mae", "r2"} <= found.measured[0].estimates.keys()
    assert found.measured[0].spectrum is None


def test_rates_that_diverge_are_not_chosen(bert: Path, tmp_path: Path) -> None:
    config = settings(bert, tmp_path, clip=None)
    asked = {**QUICK, "ranks": [1], "seeds": 1, "linear_probe": False}
    found = lora.compare(config, progress=False, **{**asked, "rate_factors": [1, 1e30]})
    for its in found.measured:
        rates = its.chosen.tried
        assert rates[max(rates)].error and its.chosen.rate != max(rates)
        assert "step " in str(rates[max(rates)].error) and "Checkpoints" not in str(rates[max(rates)].error)
    config.output = str(tmp_path / "none")
    with pytest.raises(TrainingError, match="no candidate could be trained:\nr1-attention: stopped in training: step"):
        lora.compare(config, progress=False, **{**asked, "rate_factors": [1e30]})


# -- alone -------------------------------------------------------------------------------------------------------------


def test_memory_and_time_alone(found: ComparisonResult, bert: Path, tmp_path: Path) -> None:
    config = load_config(None, {"model": str(bert), "data.train": found.config.data.train, "training.dtype": "float32"})
    rows, *_ = read(config, found.asked.test)
    _, prepared = load(config, rows)
    training = config.training.model_copy(update={"batch_size": 4, "learning_rate": 1e-3})
    chosen = sample(prepared, training)
    lengths = prepared.train.lengths
    assert max(lengths[row] for row in chosen[:4]) == max(lengths), "the largest batch comes first"
    asked = {
        "r1": (AdapterConfig(rank=1), training),
        "bad": (AdapterConfig(rank=1, targets="nothing_of_that_name"), training),
        "full": (AdapterConfig(targets="none", modules_to_save=["all"]), training),
    }
    told = dict(measure(config, prepared, asked, tmp_path))
    assert told.keys() == asked.keys() and not list(tmp_path.iterdir())
    for name in ("r1", "full"):
        assert told[name]["memory"] > 2**27 and told[name]["tokens_per_second"] > 0 and told[name]["steps"] == 9
    assert "TargetError" in told["bad"]["error"] and "nothing_of_that_name" in told["bad"]["error"]


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "asked", "error", "words"),
    [
        ({"model": None, "output": None}, {}, ConfigError, "model: is needed\noutput: is needed"),
        ({"data.held_out": 0}, {}, ConfigError, "data.held_out: with 0 there are no rows to choose learning rates on"),
        ({"training.best_metric": "f2"}, {}, ConfigError, "best_metric: 'f2' is not measured for the task classif"),
        ({"training.eval_every": None}, {}, ConfigError, "without evaluations nothing chooses learning rates"),
        ({}, {"ranks": [0]}, ConfigError, "ranks: each must be above 0"),
        ({}, {"ranks": []}, ConfigError, "ranks: names none"),
        ({}, {"ranks": [2, 2]}, ConfigError, "ranks: names one twice"),
        ({}, {"rank": [2]}, ConfigError, "rank: unknown setting; did you mean 'ranks'"),
        ({}, {"ranks": [999]}, ConfigError, "above the size of"),
        ({}, {"target_sets": ["nothing"]}, TargetError, "'nothing' matches no"),
        ({}, {"target_sets": ["mlp", ["mlp"]]}, ConfigError, "come to the same name, r1-mlp"),
        ({}, {"seeds": 0}, ConfigError, "seeds: must be greater than or equal to 1"),
        ({}, {"margin": 0.0}, ConfigError, "margin: must be greater than 0"),
        ({}, {"margin": 1.0}, ConfigError, "margin: 1 is as much as f1_macro can differ by"),
        ({}, {"test": "not/there.jsonl"}, DataError, "not/there.jsonl"),
        ({}, {"test": "{folder}/unseen.jsonl"}, DataError, "zebra"),
    ],
)
def test_what_is_refused(
    bert: Path, tmp_path: Path, changes: dict[str, Any], asked: dict[str, Any], error: type[Exception], words: str
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", labelled(60))
    write_jsonl(tmp_path / "unseen.jsonl", [{"text": "red", "label": "zebra"}])
    asked = {key: value.format(folder=tmp_path) if key == "test" else value for key, value in asked.items()}
    given = {"model": str(bert), "data.train": str(tmp_path / "rows.jsonl"), "output": str(tmp_path / "out")}
    with pytest.raises(error, match=words):
        lora.compare(load_config(None, {**given, **changes}), progress=False, **{**QUICK, **asked})
    assert not (tmp_path / "out" / "trials").exists(), "refused before anything is trained"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"text": f"red {i}", "label": "x"} for i in range(30)], "every row has the label 'x'"),
        ([{"text": "red sun", "label": "x"}, {"text": "blue sun", "label": "y"}], "nothing|single input|held out"),
    ],
)
def test_rows_that_cannot_be_compared_on(bert: Path, tmp_path: Path, rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        compared(bert, tmp_path, rows)


def test_arguments_that_contradict(bert: Path, tmp_path: Path) -> None:
    config = settings(bert, tmp_path)
    for call, words in (
        (lambda: lora.compare(config, ComparisonConfig(), seeds=1), "either a ComparisonConfig or keyword"),
        (lambda: lora.compare(config, resume=True, seeds=1), "under the comparison's own settings"),
        (lambda: lora.compare(tmp_path, resume=True), "no compare.yaml here"),
        (lambda: lora.compare("somewhere"), "a RunConfig with model, data and output is needed"),
        (lambda: lora.compare(resume=True), "resume needs the folder"),
    ):
        with pytest.raises(ConfigError, match=words):
            call()


def test_ranks_above_the_layers_are_left_out(bert: Path, tmp_path: Path) -> None:
    said: list[str] = []
    config = settings(bert, tmp_path)
    found = lora.compare(
        config, say=said.append, progress=False, **{**QUICK, "ranks": None, "full": False, "seeds": 1}
    )  # fmt: skip
    assert [its.rank for its in found.measured] == [None, 1, 4, 16]
    assert any("r64-attention is left out: the smallest of its layers has rank 32" in line for line in said)
    assert not any(entry.against_full for entry in found.entries)


def test_the_command(bert: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    write_jsonl(tmp_path / "rows.jsonl", labelled(60, longest=4))
    write_jsonl(tmp_path / "test.jsonl", labelled(20, seed=4))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> tuple[int, str, str]:
        code = main(["compare", *map(str, arguments)])
        return code, *capsys.readouterr()

    code, out, error = run(
        "-m", bert, "-d", "rows.jsonl", "-o", "out", "--ranks", "1", "--target-sets", "query+value", "--rate-factors",
        "3", "--seeds", "1", "--no-alone", "--no-linear-probe", "--max-steps", "2", "--dtype", "float32",
        "--at-once", 2, "--test", "test.jsonl#13",
    )  # fmt: skip
    assert code == 0, error
    assert (
        "r1-query" in out
        and "constant" in out
        and "No adapter is recommended" in out
        and "winner.yaml" not in out
        and "out/compare.html" in out
        and "on 13 test rows" in out
        and "Held out" in error
    )
    with monkeypatch.context() as elsewhere:
        (tmp_path / "elsewhere").mkdir()
        elsewhere.chdir(tmp_path / "elsewhere")
        code, out, error = run("--resume", "../out", "--json", "-q")
    told = json.loads(out)
    assert code == 0 and [its["name"] for its in told["candidates"]] == ["r1-query+value", "full"] and not error
    assert told["candidates"][0]["targets"] == ["query", "value"]
    for arguments, words in (
        (["--resume", "out", "--seeds", "2"], "leave other options out"),
        (["-m", bert, "-d", "rows.jsonl", "-o", "out"], "already holds a comparison"),
        (["-m", bert, "-d", "rows.jsonl", "-o", "x", "--ranks", "1,two"], "ranks"),
        (["-m", bert, "-o", "x"], "data.train: is needed"),
    ):
        code, _, error = run(*arguments)
        assert code == 2 and words in error and "Traceback" not in error, error

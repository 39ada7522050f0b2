"""Searches that are cut off: what is finished stays, what was under way is taken up again, the set is the same."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import lora
from command import Started
from command import lora as run
from lora.errors import ConfigError, Interrupted
from lora.io.run import RunFolder
from lora.tuning.result import TuneResult
from lora.tuning.study import Ledger
from small_base import labelled, write_jsonl
from small_searches import by_number, history, settings, tuned


class Killed(BaseException):
    pass


def outcome(found: TuneResult) -> dict[int, Any]:
    """What must not depend on how often a search was stopped."""
    facts = ("settings", "steps", "best_step", "metrics", "curve", "tokens", "parameters")
    return {
        number: (its.state, its.params, its.values, its.intermediate_values, [its.user_attrs[key] for key in facts])
        for number, its in by_number(found).items()
    }


@pytest.fixture(scope="module")
def whole(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> TuneResult:
    return tuned(bert, tmp_path_factory.mktemp("whole"), seeds=1)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_moments(whole: TuneResult, bert: Path, tmp_path: Path, monkeypatch: Any, seed: int) -> None:
    """Between any two things that are written: a line of a run, or what becomes of a trial."""
    draw, left, done = random.Random(seed), [0], dict[int, Any]()
    log, tell, taken = RunFolder.log, Ledger.tell, Ledger._taken

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Killed

    def logged(self: RunFolder, entry: dict[str, Any]) -> None:
        count()
        log(self, entry)

    def told(self: Ledger, *args: Any, **facts: Any) -> Any:
        count()
        found = tell(self, *args, **facts)
        count()
        return found

    def took(self: Ledger, trial: Any) -> Any:
        count()
        return taken(self, trial)

    config, cuts = settings(bert, tmp_path), 0
    with monkeypatch.context() as patched:
        patched.setattr(RunFolder, "log", logged)
        patched.setattr(Ledger, "tell", told)
        patched.setattr(Ledger, "_taken", took)
        for _ in range(10):
            left[0] = draw.randint(1, 25)
            cuts += 1
            try:
                if (tmp_path / "out" / "tune.yaml").exists():
                    lora.tune(tmp_path / "out", resume=True, progress=False)
                else:
                    tuned(bert, tmp_path, seeds=1)
                break
            except Killed:
                study = optuna.load_study(study_name="tune", storage=f"sqlite:///{tmp_path / 'out' / 'study.db'}")
                now = {its.number: its for its in study.trials if its.state == TrialState.COMPLETE}
                for number, before in done.items():
                    assert now[number].values == before, "what was finished stays"
                done = {number: its.values for number, its in now.items()}
                assert len(study.trials) == 6, "none is made twice"
        assert cuts >= 5, "it was killed often"
    again = lora.tune(config.output, resume=True, progress=False)
    assert outcome(again) == outcome(whole)
    assert again.judged is not None and whole.judged is not None
    assert again.judged.sides["best"].by_seed == whole.judged.sides["best"].by_seed
    for number in by_number(whole):
        name = f"trial-{number:04d}"
        assert history(again.output / "trials" / name) == history(whole.output / "trials" / name)
    kept = {path.parent.name for path in again.output.glob("trials/*/adapter")}
    assert kept == {f"trial-{whole.best.number:04d}"} and not list(again.output.glob("*/*/checkpoints"))


def test_the_command_killed_by_the_system(whole: TuneResult, bert: Path, tmp_path: Path) -> None:
    """SIGKILL, three times, at moments of its own; then to its end, with the trials of the whole search."""
    config = settings(bert, tmp_path)
    arguments = [
        "tune", "-m", bert, "-d", config.data.train, "-o", tmp_path / "out", "--rank", 4, "--batch-size", 8, "--dtype",
        "float32", "--epochs", 2, "--lr", 3e-3, "--at-once", 3, "--trials", 6, "--seeds", 1, "--sampler", "random",
        "--pruner", "none",
    ]  # fmt: skip
    space = tmp_path / "space.yaml"
    space.write_text("tune:\n  space: {learning_rate: default, rank: [1, 2, 4, 8], dropout: default}\n")
    first = ["lora", *map(str, [*arguments, space])]
    resume = ["lora", "tune", "--resume", str(tmp_path / "out")]
    draw, call = random.Random(0), first
    for kill in range(3):
        started = Started(call)
        lines = draw.randint(2, 12) + sum(1 for _ in _lines(tmp_path / "out"))
        while started.poll() is None and sum(1 for _ in _lines(tmp_path / "out")) < lines:
            time.sleep(0.01)
        assert started.poll() is None, f"still at work, at kill {kill}"
        started.kill()
        call = resume if (tmp_path / "out" / "study.db").exists() else first
    ended = run("tune", "--resume", tmp_path / "out")
    assert ended.returncode == 0, ended.stderr
    assert "that were cut off are taken up again" in ended.stderr
    assert f"adapter: {tmp_path / 'out' / 'best' / 'adapter'}" in ended.stdout
    assert outcome(lora.tune(tmp_path / "out", resume=True, progress=False)) == outcome(whole)


def _lines(folder: Path) -> Any:
    for file in folder.glob("trials/*/metrics.jsonl"):
        yield from file.read_bytes().splitlines()


def test_ctrl_c(bert: Path, tmp_path: Path, monkeypatch: Any) -> None:
    log = RunFolder.log

    def stopping(self: RunFolder, entry: dict[str, Any]) -> None:
        log(self, entry)
        if self.path.name == "trial-0004" and entry["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched, pytest.raises(Interrupted, match=r"Go on with: lora tune --resume .*out"):
        patched.setattr(RunFolder, "log", stopping)
        tuned(bert, tmp_path)
    assert not (tmp_path / "out" / "tune.json").exists()
    trained: list[str] = []

    def noted(self: RunFolder, entry: dict[str, Any]) -> None:
        log(self, entry)
        trained.append(self.path.name)

    monkeypatch.setattr(RunFolder, "log", noted)
    again = lora.tune(tmp_path / "out", resume=True, progress=False)
    assert len(again.trials) == 6 and "trial-0000" not in trained and "trial-0005" in trained
    trained.clear()
    once_more = lora.tune(tmp_path / "out", resume=True, progress=False)
    assert outcome(once_more) == outcome(again)
    assert not [name for name in trained if name.startswith("trial")], "a search that is done trains no trial"


def test_other_data_are_refused(bert: Path, tmp_path: Path) -> None:
    tuned(bert, tmp_path, trials=1, seeds=0)
    write_jsonl(tmp_path / "data" / "train.jsonl", labelled(40, seed=7, longest=4))
    with pytest.raises(ConfigError, match="was begun with other data"):
        lora.tune(tmp_path / "out", resume=True, progress=False)


def test_replaced(bert: Path, tmp_path: Path) -> None:
    tuned(bert, tmp_path, trials=2, seeds=0)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    found = lora.tune(
        settings(bert, tmp_path), trials=1, seeds=0, space=["dropout"], overwrite=True, progress=False
    )  # fmt: skip
    assert len(found.trials) == 1 and (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert not (tmp_path / "out" / "trials" / "trial-0001").exists()

"""Training runs of a comparison: at once where they fit, each kept when it is done and never made twice."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from lora.comparison.candidates import FULL, Candidate, Outcome, Trial, best_rate, beyond
from lora.config import RunConfig, TrainingConfig
from lora.errors import ConfigError, Interrupted
from lora.io.atomic import write_text
from lora.model.lora import LoRA
from lora.tasks import Task
from lora.training.job import Job
from lora.training.loop import fit
from lora.training.prepare import Prepared

RECORD = "trial.json"
Say = Callable[[str], None]


@dataclass
class Bench:
    """What all trials share.

    Attributes:
        folder: of the comparison; each trial has one of its own in ``folder/trials``, and those there are gone on with.
        trained_on: test rows whose input is among the training rows.
    """

    model: LoRA
    prepared: Prepared
    config: RunConfig
    folder: Path
    say: Say
    progress: bool | None = None
    trained_on: int = 0

    @property
    def task(self) -> Task:
        return self.prepared.task

    @property
    def metric(self) -> str:
        return self.config.training.best_metric or self.task.best_metric

    def place(self, trial: Trial) -> Path:
        return self.folder / "trials" / trial.name

    def settings(self, trial: Trial) -> TrainingConfig:
        """Those of the run: the comparison's own but for rate and seed."""
        changes = {
            "learning_rate": trial.rate, "seed": trial.seed, "tensorboard": False, "keep_checkpoints": 1,
            "generate_rows": 0,
        }  # fmt: skip
        return TrainingConfig.make({**self.config.training.model_dump(), **changes})

    def run(self, trials: Sequence[Trial]) -> dict[Trial, Outcome]:
        """Train those of ``trials`` that are not done yet: low ranks and heads at once, whole models one by one.

        A whole model shares nothing with others, so that together they would take memory and save no time.
        """
        out = {trial: found for trial in trials if (found := self._known(trial)) is not None}
        left = [trial for trial in trials if trial not in out]
        together = [trial for trial in left if trial.candidate.kind != FULL]
        for group in [together, *([trial] for trial in left if trial.candidate.kind == FULL)]:
            if group:
                out |= self._fit(group)
        return {trial: out[trial] for trial in trials}

    def _fit(self, trials: Sequence[Trial]) -> dict[Trial, Outcome]:
        jobs = {
            trial.name: Job(prepared=self.prepared, adapter=trial.candidate.adapter, training=self.settings(trial))
            for trial in trials
        }
        begun = any((self.place(trial) / "metrics.jsonl").exists() for trial in trials)
        try:
            results = fit(
                self.model, jobs, output_dir=self.folder / "trials", resume=begun, at_once=self.config.at_once,
                memory_gib=self.config.memory_gib, compile=self.config.compile, liger=self.config.liger,
                progress=self.progress,
            )  # fmt: skip
        except Interrupted as error:
            first = str(error).partition(". ")[0]
            raise Interrupted(f"{first}. {how_to_go_on(self.folder)}") from None
        out = {}
        for trial in trials:
            result = results[trial.name]
            best = [line for line in result.history if line.get("step") == result.best_step and "eval" in line]
            out[trial] = Outcome(
                value=None if result.error else result.best_value, loss=best[-1]["eval"].get("loss") if best else None,
                best_step=result.best_step, steps=result.steps, epochs=round(result.epochs, 4), tokens=result.tokens,
                # What it says of checkpoints is no longer true: they are deleted below.
                error=result.error and result.error.partition(" Checkpoints up to here")[0],
            )  # fmt: skip
            record = {"data": self.prepared.digest, "metric": self.metric, **asdict(out[trial])}
            write_text(self.place(trial) / RECORD, json.dumps(record, indent=2) + "\n")
            # Moments of whole models: three times their size, and nobody goes on with them.
            shutil.rmtree(self.place(trial) / "checkpoints", ignore_errors=True)
            if trial.name in self.model.adapters:
                self.model.remove_adapter(trial.name)
        return out

    def _known(self, trial: Trial) -> Outcome | None:
        """What a trial that was done before came to. Raises ConfigError where that was with other data."""
        try:
            record = json.loads((self.place(trial) / RECORD).read_text(encoding="utf-8"))
            data, metric = record.pop("data"), record.pop("metric")
            found = Outcome(**record)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        if data != self.prepared.digest or metric != self.metric:
            raise ConfigError(
                f"{self.place(trial)}: was trained on other rows, or for another metric, than the comparison has now; "
                "bring them back, or begin a new one in another folder"
            )
        return found

    def release(self) -> None:
        """Let go of the model, which is not needed any more."""
        del self.model
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def drop(self, trial: Trial) -> None:
        """Delete the weights of a trial whose rate was not chosen; its record stays."""
        shutil.rmtree(self.place(trial) / "adapter", ignore_errors=True)


@dataclass
class Chosen:
    """A candidate with its rate.

    Attributes:
        tried: what came of each rate, on the validation rows.
        rate: the best of them; None: all were stopped, and ``error`` says why.
        extended: the rate that the grid was extended by; None: the best lay inside.
        at_the_end: whether the best is still the lowest or highest that was tried.
        runs: its trials at that rate, by seed.
    """

    candidate: Candidate
    tried: dict[float, Outcome]
    rate: float | None
    extended: float | None
    at_the_end: bool
    runs: dict[int, Trial]
    outcomes: dict[int, Outcome]
    error: str | None = None

    @property
    def end(self) -> str | None:
        """Which end of the grid the best lies at, ``highest`` or ``lowest``; None: it lies inside."""
        if not self.at_the_end or self.rate is None:
            return None
        return "highest" if self.rate == max(self.tried) else "lowest"


def choose_rates(bench: Bench, candidates: Sequence[Candidate], seeds: int, greater: bool) -> list[Chosen]:
    """Search each candidate's rate on the validation rows, then run it with further seeds."""
    seed = bench.config.training.seed
    trials = [Trial(its, rate, seed) for its in candidates for rate in its.rates]
    bench.say(f"Learning rates: {len(trials)} runs of {len({its.candidate.name for its in trials})} candidates.")
    found = bench.run(trials)
    tried = {its.name: {trial.rate: found[trial] for trial in trials if trial.candidate == its} for its in candidates}
    more: dict[str, Trial] = {}
    for its in candidates:
        best = best_rate(tried[its.name], greater)
        further = None if best is None else beyond(list(tried[its.name]), best)
        if further is not None:
            more[its.name] = Trial(its, further, seed)
    if more:
        said = ", ".join(f"{name} ({trial.rate:.3g})" for name, trial in more.items())
        bench.say(f"The best rate was the last one tried; one beyond it is tried for {said}.")
        for trial, outcome in bench.run(list(more.values())).items():
            tried[trial.candidate.name][trial.rate] = outcome
    out = []
    for its in candidates:
        rate = best_rate(tried[its.name], greater) if its.rates else None
        runs = {} if rate is None else {seed + k: Trial(its, rate, seed + k) for k in range(seeds)}
        extended = more[its.name].rate if its.name in more else None
        ends = rate is not None and beyond(list(tried[its.name]), rate) is not None
        why = next((outcome.error for outcome in tried[its.name].values() if outcome.error), None)
        out.append(
            Chosen(its, tried[its.name], rate, extended, ends, runs, {}, why if its.rates and not runs else None)
        )
    final = [trial for its in out for trial in its.runs.values()]
    if seeds > 1:
        bench.say(f"Seeds: {len(final) - sum(1 for its in out if its.runs)} further runs at the chosen rates.")
    done = bench.run(final)
    for each in out:
        each.outcomes = {number: done[trial] for number, trial in each.runs.items()}
        stopped = next((its.error for its in each.outcomes.values() if its.error), None)
        each.error = each.error or stopped
        for rate in each.tried:
            trial = Trial(each.candidate, rate, seed)
            if rate != each.rate:
                bench.drop(trial)
    return out


def how_to_go_on(folder: Path) -> str:
    return f"Go on with: lora compare --resume {folder}"


def size_of(folder: Path) -> int:
    """Bytes of all files in ``folder``."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

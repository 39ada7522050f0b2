"""A search as a feed of `fit`: each trial an adapter in the running batch; when it is done the next takes its place."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, Trial, TrialState

from lora.config import AdapterConfig, RunConfig, TrainingConfig
from lora.errors import ConfigError, LoraError
from lora.io.atomic import write_text
from lora.model.lora import LoRA
from lora.overrides import save_config
from lora.training.feed import Feed
from lora.training.job import Job
from lora.training.participant import FitResult, Participant
from lora.training.prepare import Prepared
from lora.tuning.objectives import Objective, metrics_of, parameters_of, values_of
from lora.tuning.sampling import HUNDREDTHS
from lora.tuning.study import Ledger

TRIALS = "trials"
# Of so many in a row that do not fit model or data the space is at fault.
REFUSALS = 10
PATIENCE = 5.0  # seconds between two looks whether a worker that others wait for is alive

Say = Callable[[str], None]


@dataclass
class _Running:
    trial: Trial
    values: dict[str, Any]


@dataclass
class Search(Feed):
    """Asks the ledger for trials and tells it what became of them.

    Attributes:
        config: what trials have in common; rate resolved.
        folder: of the search; each trial has one of its own below.
        running: what is in training, by name.
    """

    model: LoRA
    prepared: Prepared
    config: RunConfig
    ledger: Ledger
    objectives: list[Objective]
    folder: Path
    say: Say = lambda line: None
    places: int = 1
    running: dict[str, _Running] = field(default_factory=dict)
    begun: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        tuning = self.ledger.tuning
        self._again = self.ledger.cut_off()
        self._refused = 0
        done = self.ledger.trials()
        self._any = any(its.state.is_finished() for its in done)
        self._before = sum(float(its.user_attrs.get("seconds_of_search", 0.0)) for its in done)
        self._tokens = sum(int(its.user_attrs.get("tokens", 0)) for its in done)
        self._since = self.begun
        waiting = sum(its.state in (TrialState.WAITING, TrialState.RUNNING) for its in done)
        bounded = tuning.trials is not None or tuning.sampler == "grid"
        self.at_most = max(1, waiting) if bounded and not self.ledger.shared else 10**6
        if self._again:
            self.say(f"{len(self._again)} trials that were cut off are taken up again.")
        self._with_adapter: set[str] = set()
        self._sweep(done)

    # -- the feed -----------------------------------------------------------------------------------------------------

    def largest(self) -> Mapping[str, Job]:
        return {
            f"largest {place}": self._job(adapter, training)
            for place, (adapter, training) in enumerate(self.ledger.space.largest())
        }

    def _job(self, adapter: AdapterConfig, training: TrainingConfig) -> Job:
        return Job(prepared=self.prepared, adapter=adapter, training=training)

    def next(self) -> tuple[str, Job] | None:
        while True:
            trial = self._again.pop(0) if self._again else None if self._used_up() else self.ledger.next()
            if trial is not None:
                return self._begun(trial)
            # The last of a shared study: others may die, and their trials are then ours.
            if self.running or self._used_up() or not self.ledger.others_run:
                return None
            time.sleep(PATIENCE)

    def _begun(self, trial: Trial) -> tuple[str, Job]:
        self._any = True
        values = self.ledger.suggest(trial)
        name = name_of(trial.number)
        adapter, training = self.ledger.space.settings(values)
        trial.set_user_attr("settings", {f"{its.section}.{its.name}": values[its.name]
                                         for its in self.ledger.space.searched if its.name in values})  # fmt: skip
        self.running[name] = _Running(trial, values)
        write_text(self.folder / TRIALS / name / "config.yaml", save_config(self.own_config(name, adapter, training)))
        return name, self._job(adapter, training)

    def own_config(self, name: str, adapter: AdapterConfig, training: TrainingConfig) -> RunConfig:
        """What `lora train` makes the same trial from."""
        update = {"adapter": adapter, "training": training, "output": str(self.folder / TRIALS / name), "tune": None}
        return self.config.model_copy(update=update)

    def refused(self, name: str, error: LoraError) -> None:
        why = str(error).removeprefix(f"adapters.{name}: ")
        self.say(f"{name}: cannot be trained: {why}")
        self._tell(name, TrialState.FAIL, None, error=why)
        self._refused += 1
        if self._refused >= REFUSALS:
            raise ConfigError(
                f"tune.space: {REFUSALS} trials, one after another, could not be trained; the last: {why}"
            ) from error

    def evaluated(self, participant: Participant, metrics: Mapping[str, Any]) -> str | None:
        if len(self.objectives) > 1:
            return None
        running, key = self.running[participant.name], self.objectives[0].key
        clock = round(HUNDREDTHS * participant.trainee.epoch)
        if self.ledger.report(running.trial, clock, float(metrics[key])):
            return f"pruned after {participant.trainee.epoch:.3g} epochs with {key} {metrics[key]:.4g}"
        return None

    def left(self, result: FitResult) -> None:
        name, self._refused = result.adapter, 0
        parameters = parameters_of(self.model, name)
        values = None
        if result.error is None and result.dismissed is None:
            values = values_of(self.objectives, self.model, self.prepared, name, result)
        self.model.remove_adapter(name)
        self._tokens += result.tokens
        facts = {
            "tokens": result.tokens, "steps": result.steps, "epochs": round(result.epochs, 4),
            "seconds": round(result.seconds, 2), "best_step": result.best_step, "parameters": parameters,
            "metrics": _finite(metrics_of(result)), "curve": _curve(result),
        }  # fmt: skip
        one = len(self.objectives) == 1
        if result.error is not None:
            why = result.error.partition(" Checkpoints up to here")[0]
            # Of one that was stopped the sampler learns that such settings are bad; of a failed one, nothing.
            self._tell(name, TrialState.PRUNED if one else TrialState.FAIL, None, error=why, **facts)
        elif result.dismissed is not None:
            self._tell(name, TrialState.PRUNED, None, pruned=result.dismissed, **facts)
        elif values is None or any(math.isnan(value) for value in values):
            self._tell(name, TrialState.FAIL, None, error="an objective is undefined on the validation rows", **facts)
        else:
            self._tell(name, TrialState.COMPLETE, values, **facts)

    # -- what becomes of trials ---------------------------------------------------------------------------------------

    def _tell(self, name: str, state: TrialState, values: list[float] | None, **facts: Any) -> None:
        now = time.perf_counter()
        facts["seconds_of_search"], self._since = round(now - self._since, 2), now
        self.ledger.tell(self.running.pop(name).trial, state, values, **facts)
        self._keep_the_best(name)

    def _keep_the_best(self, name: str) -> None:
        """Of a trial that is done the adapter stays where no other is better; what going on would need goes."""
        best = {name_of(number) for number in self.ledger.front()}
        shutil.rmtree(self.folder / TRIALS / name / "checkpoints", ignore_errors=True)
        for place in self._with_adapter:
            if place not in best:
                shutil.rmtree(self.folder / TRIALS / place / "adapter", ignore_errors=True)
        if name not in best:
            shutil.rmtree(self.folder / TRIALS / name / "adapter", ignore_errors=True)
        self._with_adapter = (self._with_adapter | {name}) & best

    def _sweep(self, done: list[FrozenTrial]) -> None:
        """Finish the tidying that a kill cut short."""
        for its in done:
            place = self.folder / TRIALS / name_of(its.number)
            if its.state.is_finished() and place.is_dir():
                self._with_adapter |= {place.name} if (place / "adapter").is_dir() else set()
                self._keep_the_best(place.name)

    def _used_up(self) -> bool:
        """Whether a budget of time or tokens is; not before there is a trial at all."""
        tuning = self.ledger.tuning
        if not self._any:
            return False
        minutes = (self._before + time.perf_counter() - self.begun) / 60
        if tuning.minutes is not None and minutes >= tuning.minutes:
            self._stop(f"{tuning.minutes:g} minutes are used up")
        if tuning.tokens is not None and self._tokens >= tuning.tokens:
            self._stop(f"{tuning.tokens:,} tokens are used up")
        return self.ledger.stopped

    def _stop(self, why: str) -> None:
        if not self.ledger.stopped:
            self.say(f"No more trials: {why}.")
        self.ledger.stopped = True


def name_of(number: int) -> str:
    """What trial ``number``, its adapter and its folder are called."""
    return f"trial-{number:04d}"


def _curve(result: FitResult) -> list[dict[str, Any]]:
    """Each evaluation."""
    return [
        {"step": line["step"], "epoch": line["epoch"], **_finite(line["eval"])}
        for line in result.history if "eval" in line
    ]  # fmt: skip


def _finite(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Numbers that strict JSON can hold."""
    return {
        key: value if math.isfinite(value) else None
        for key, value in values.items() if isinstance(value, (int, float)) and not isinstance(value, bool)
    }  # fmt: skip

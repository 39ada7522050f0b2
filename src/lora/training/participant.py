"""One adapter's run inside of `fit`: its trainee, its folder, its evaluations, and what becomes of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora.config import AdapterConfig, TrainingConfig
from lora.core.randomness import drops
from lora.errors import ConfigError, TrainingError
from lora.io.fingerprint import fingerprint
from lora.io.peft import save_adapter
from lora.io.run import RunFolder, load_checkpoint, save_checkpoint
from lora.model.heads import name_labels, newly_initialised, task_heads
from lora.model.tree import inside
from lora.training.checks import locate_non_finite, refuse_misfit, untouched_modules
from lora.training.held_out import evaluator
from lora.training.job import Evaluate
from lora.training.prepare import Prepared, digest
from lora.training.processes import Processes
from lora.training.progress import Events
from lora.training.trainee import Trainee

if TYPE_CHECKING:
    from lora.model.lora import LoRA


@dataclass
class FitResult:
    """What the training of one adapter came to.

    Attributes:
        adapter: its name in the model; the model holds the best checkpoint's parameters.
        steps, epochs: what was done, earlier parts of a resumed run included.
        learning_rate: the peak rate, given or derived.
        best_step, best_metric, best_value: the evaluation that picked the result; None without held-out data.
        stopped_early: patience ran out before the last step.
        error: why it was stopped, where it could not go on beside others that did; None: it ended well.
        history: lines of ``metrics.jsonl``.
        seconds, tokens: of the whole run; of earlier parts what led up to the checkpoint that was gone on from.
        seconds_before: of these, those of earlier parts.
        output: the run's folder; None if nothing was written.
        data: tokenised data and task, ready for ``evaluate``.
        notes: what a user should know (split, truncation, modules without gradient).
    """

    adapter: str
    steps: int
    epochs: float
    best_step: int | None
    best_metric: str
    best_value: float | None
    stopped_early: bool
    seconds: float
    tokens: int
    output: Path | None
    data: Prepared = field(repr=False)
    learning_rate: float
    seconds_before: float = 0.0
    error: str | None = None
    history: list[dict[str, Any]] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list)


class Participant:
    """An adapter that joins the loop, takes its steps, and leaves with a `FitResult`.

    Nothing here is shared with another participant but the base model.

    Args:
        name: of an adapter that the model has by the time of `join`.
        settings: ``learning_rate`` resolved.
        run: where it writes; None: nowhere.
        evaluate: in place of the task's own metrics on the held-out data.
        say: called with lines for a person to read.
    """

    def __init__(
        self, model: LoRA, name: str, prepared: Prepared, settings: TrainingConfig, processes: Processes,
        run: RunFolder | None = None, evaluate: Evaluate | None = None, say: Callable[[str], None] = print,
    ) -> None:  # fmt: skip
        self.model, self.name, self.prepared, self.settings = model, name, prepared, settings
        self.processes, self.run, self.say = processes, run, say
        if evaluate is None and prepared.held is not None:
            evaluate = evaluator(prepared, settings, processes)
            if self.metric not in prepared.task.measures:
                raise ConfigError(
                    f"training.best_metric: {self.metric!r} is not measured for the task {prepared.task.name}; known: "
                    + ", ".join(prepared.task.measures)
                )
        self.evaluate = evaluate
        self.packed = False  # whether its batches go into one row; known before anybody trains
        self.done = False  # whether a run that is gone on with had taken all its steps
        self.error: str | None = None
        self.notes = list(prepared.notes)
        self.history: list[dict[str, Any]] = []
        self.tokens = 0
        self.seconds_before = 0.0
        self.started = time.perf_counter()
        self.trainee: Trainee

    @property
    def label(self) -> str:
        """How many steps of how many, for messages."""
        return f"{self.trainee.step} of {self.trainee.total_steps}"

    @property
    def seconds(self) -> float:
        """How long the run has taken so far, earlier parts included."""
        return self.seconds_before + time.perf_counter() - self.started

    # -- joining ------------------------------------------------------------------------------------------------------

    def prepare(self, resume: bool, compile: bool = False, liger: bool = False) -> None:
        """Make the trainee, which complains of settings that do not fit, and look at the checkpoint to go on from.

        Before anyone trains. ``compile``: whether the run's kernels are compiled. Raises ConfigError, ModelError,
        TrainingError.
        """
        self.ready()
        self.notes += _without_effect(self.model, self.name, self.settings, self.evaluate is not None)
        self.identity = _identity(self.model, self.name, self.prepared) | {
            "compile": compile or None,
            "liger": liger or None,
        }
        found = self.run.checkpoints() if self.run is not None and resume else []
        if found:
            state = load_checkpoint(found[-1])[0]
            self._check_identity(found[-1], state)
            self.done = state["step"] >= self.trainee.total_steps

    def ready(self) -> None:
        """Make the trainee, and see that the model takes the rows. Raises ConfigError, ModelError, TrainingError."""
        self.trainee = Trainee(
            self.model, self.name, self.prepared.task, self.prepared.train, self.settings, self.processes.count,
            self.processes.rank,
        )  # fmt: skip
        refuse_misfit(self.model, self.name, self.prepared)

    def open(self, resume: bool) -> None:
        """Make the folder ready, now that nobody has complained: what is replaced goes, also that of who must wait."""
        if self.run is not None and self.processes.main:
            self.run.recover() if resume else self.run.clear()

    def join(self, resume: bool, alone: bool = True) -> None:
        """Begin, or go on where the newest checkpoint stands.

        Args:
            alone: whether this is the only adapter in training, which then goes on with torch's global random stream.
        """
        self.started = time.perf_counter()
        self.processes.share(self.trainee.parameters)
        self.model.notes[self.name] = {**self.model.notes.get(self.name, {}), **_notes(self.prepared, self.settings)}
        if self.model.adapters[self.name].token_rows:
            self.model.tokenizers[self.name] = self.prepared.tokenizer
        if len(self.model.adapters) == 1:
            name_labels(self.model.base, self.model.notes[self.name]["task"].get("labels"))
        run, main = self.run, self.processes.main
        # At a checkpoint, or at step 0, which is saved too: a full disk shows now, not after hours. A run cut short
        # before that begins anew.
        found = run.checkpoints() if run is not None and resume else []
        if found:
            self._restore(found[-1], alone)
        if run is not None and main:
            run.forget_after(self.trainee.step)
        if run is not None and not found:
            self.checkpoint()
        self.processes.wait()
        self.history = run.history() if run else []
        # TensorBoard hides what a killed run wrote from this step on; the checkpoint's own step stands.
        writes = run is not None and self.settings.tensorboard and main
        self.events = Events(run.tensorboard if run and writes else None, self.trainee.step + 1 if found else None)

    def _restore(self, folder: Path, alone: bool) -> None:
        state, tensors = load_checkpoint(folder)
        self.trainee.load(state, tensors)
        self.seconds_before, self.tokens = state.get("seconds", 0.0), state.get("tokens", 0)
        if alone:
            self.processes.restore_random(tensors)

    def _check_identity(self, folder: Path, state: dict[str, Any]) -> None:
        """Raise ConfigError naming what is not as it was when the run began."""
        other = [key for key, value in self.identity.items() if state["identity"].get(key) != value]
        if "adapter" in other:
            # As it would be written now: settings that came later were not there, and at their defaults.
            then = AdapterConfig.make(state["identity"]["adapter"]).model_dump(mode="json")
            now = self.identity["adapter"]
            other.remove("adapter")
            other += [
                f"adapter.{key}: {then.get(key)!r} then, {now[key]!r} now" for key in now if then.get(key) != now[key]
            ]
        if other:
            raise ConfigError(
                f"{folder.parent.parent}: the run began with other things than are given now, so it cannot go on:\n  "
                + "\n  ".join(other)
                + "\nBring them back, or start a new run"
            )

    # -- steps --------------------------------------------------------------------------------------------------------

    def end_round(self) -> bool:
        """After a pass with its batch: step, log, evaluate and save as they fall due. True where a step was taken.

        Raises:
            TrainingError: it cannot go on; its parameters are those of the step before.
        """
        if not self.trainee.count_round():
            return False
        trainee, s = self.trainee, self.settings
        rate, tokens, seconds = trainee.rate, trainee.tokens, trainee.seconds
        begun = time.perf_counter()
        own = [float(trainee.loss), float(trainee.divergence)]
        loss, divergence = self.processes.sum_up(trainee.parameters.values(), own)
        if trainee.step == 0:
            self.notes += untouched_modules(trainee)
        norm = trainee.update() if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            trainee.begin_step()
            raise TrainingError(self._diverged(loss, norm))
        self.tokens += tokens
        speed = tokens / max(seconds + time.perf_counter() - begun, 1e-9)
        figures = {"loss": loss, **({"kl": divergence} if s.kl else {}), "learning_rate": rate, "grad_norm": norm}
        self._log({**figures, "tokens": tokens, "tokens_per_second": round(speed, 1)})
        if trainee.step % s.log_every == 0:
            self.events.write(trainee.step, {f"train/{key}": value for key, value in figures.items()})
        if self.evaluate is not None and trainee.due(s.eval_every):
            self._evaluate(self.evaluate)
        if self.run is not None and trainee.due(s.save_every):
            self.checkpoint()
        return True

    def _evaluate(self, evaluate: Evaluate) -> None:
        with self.trainee.average.in_place():
            self._evaluate_in_place(evaluate)

    def _evaluate_in_place(self, evaluate: Evaluate) -> None:
        metrics = self.processes.agree(evaluate(self.model, self.name))
        better = self.trainee.record(metrics)
        self._log({"eval": metrics, "best": better})
        self.events.write(self.trainee.step, {f"eval/{key}": value for key, value in metrics.items()})
        key = self.metric
        loss = f", loss {metrics['loss']:.4f}" if isinstance(metrics.get("loss"), float) and key != "loss" else ""
        best = " (best so far)" if better else ""
        self.say(f"step {self.trainee.step}: {key} {metrics[key]:.4f}{loss}{best}")
        if better and self.run is not None and self.processes.main:
            save_adapter(self.model, self.name, self.run.best)

    @property
    def metric(self) -> str:
        return self.settings.best_metric or self.prepared.task.best_metric

    def _log(self, entry: dict[str, Any]) -> None:
        entry = {"step": self.trainee.step, "epoch": round(self.trainee.epoch, 4), **entry}
        self.history.append(entry)
        if self.run is not None and self.processes.main:
            self.run.log(entry)

    def checkpoint(self) -> None:
        """Save everything that going on needs, on all processes together. Raises SaveError."""
        if self.run is None:
            return
        counts = {"seconds": self.seconds, "tokens": self.tokens}
        state = self.trainee.state() | {"identity": self.identity} | counts
        tensors = self.trainee.tensors() | self.processes.random_states()
        if self.processes.main:
            keep = self.settings.keep_checkpoints
            save_checkpoint(self.run, self.model, self.name, self.trainee.step, state, tensors, keep)
        self.processes.wait()

    def _diverged(self, loss: float, norm: float) -> str:
        what = f"the gradient's norm is {norm}" if math.isfinite(loss) else f"the loss is {loss}"
        where = locate_non_finite(self.model, self.trainee, self.prepared)
        kept = f" Checkpoints up to here are in {self.run.path / 'checkpoints'}." if self.run else ""
        return (
            f"step {self.trainee.step + 1}: {what}{where}. "
            f"Lower learning_rate (now {self.settings.learning_rate:g}), or clip harder.{kept}"
        )

    # -- leaving ------------------------------------------------------------------------------------------------------

    def finish(self) -> FitResult:
        """Keep the best parameters and save the adapter. Raises SaveError."""
        if self.error is None:
            # As the first process sees it: others may not see its disk.
            if self.run is not None and self.processes.agree(self.run.newest_step() < self.trainee.step):
                self.checkpoint()  # a finished run that is resumed is not trained again
            self.trainee.restore_best()
            if self.run is not None and self.processes.main:
                save_adapter(self.model, self.name, self.run.adapter)
            self.processes.wait()
        trainee = self.trainee
        trainee.release()
        assert self.settings.learning_rate is not None, "resolved before"
        return FitResult(
            adapter=self.name,
            steps=trainee.step,
            epochs=trainee.epoch,
            best_step=trainee.best_step if trainee.best_value is not None else None,
            best_metric=self.metric,
            best_value=trainee.best_value,
            stopped_early=self.error is None and trainee.step < trainee.total_steps,
            seconds=self.seconds,
            seconds_before=self.seconds_before,
            tokens=self.tokens,
            output=self.run.path if self.run else None,
            data=self.prepared,
            learning_rate=self.settings.learning_rate,
            error=self.error,
            history=self.history,
            notes=self.notes,
        )

    def close(self) -> None:
        """Flush what is written aside; whatever happened."""
        if hasattr(self, "events"):
            self.events.close()


def _without_effect(model: LoRA, name: str, settings: TrainingConfig, evaluates: bool) -> list[str]:
    """What was asked for and does nothing, and what does something that was not asked for: in sentences."""
    said = []
    if not evaluates or settings.eval_every is None:
        named = [key for key in ("patience", "best_metric") if getattr(settings, key) is not None]
        if named:
            said.append(f"Without evaluations {' and '.join(f'training.{key}' for key in named)} has no effect.")
    if settings.r_drop and not (model.adapters[name].dropout or settings.neftune_alpha or drops(model.base)):
        said.append(
            "Neither the adapter nor its base drops anything, so both passes of training.r_drop are one: it costs a "
            "pass and has no effect. Set adapter.dropout."
        )
    if settings.average == "none":
        fields = type(settings).model_fields
        named = [key for key in ("average_from", "average_decay") if getattr(settings, key) != fields[key].default]
        if named:
            said.append(f"Without training.average {' and '.join(f'training.{key}' for key in named)} has no effect.")
    owned = list(model.owned(name))
    heads = [path for path in task_heads(model.base) if not inside(path, owned)]
    new = [path for path in newly_initialised(model.base) if inside(path, heads)]
    if new:
        said.append(
            f"{new[0]} was made up when the base was loaded, and is neither trained nor saved: modules_to_save leaves "
            "it out, so the adapter will answer otherwise on another load of the base."
        )
    return said


def _notes(prepared: Prepared, settings: TrainingConfig) -> dict[str, Any]:
    """What is stored beside the adapter: enough to use it without the run."""
    return {
        "task": prepared.task.state(),
        "max_length": prepared.max_length,
        "trained_on": {"rows": prepared.train.rows, "digest": prepared.digest},
        "training": settings.model_dump(mode="json"),
    }


def _identity(model: LoRA, name: str, prepared: Prepared) -> dict[str, Any]:
    """What must be the same for a run to go on: by the words that a message uses."""
    return {
        "training data": prepared.digest,
        "held-out data": digest(prepared.held) if prepared.held is not None else None,
        "base model": fingerprint(model.base),
        "adapter": model.adapters[name].model_dump(mode="json"),
    }

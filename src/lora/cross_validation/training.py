"""Training runs of a cross-validation: all at once, each kept when its held-out rows are answered."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lora.comparison.candidates import Outcome
from lora.config import CrossValidationConfig, RunConfig
from lora.cross_validation.material import Material
from lora.cross_validation.runs import Run
from lora.errors import ConfigError, Interrupted
from lora.io.atomic import write_text
from lora.model.lora import LoRA
from lora.statistics.rows import Array
from lora.tasks.inference import infer
from lora.training.job import Job
from lora.training.loop import fit
from lora.training.prepare import Prepared, digest

RUNS, RECORD, PROBABILITIES = "runs", "out_of_fold.json", "probabilities.npy"
Say = Callable[[str], None]


@dataclass
class Answered:
    """A run with its answers to the rows that it was not trained on, example by example.

    Attributes:
        outcome: how it was trained; with an ``error`` there are no answers.
        train, held: rows that it was trained on (a checkpoint's choice left out), and that it answered.
        predictions, losses, counts: as of `Outcome` of `lora.tasks.inference`.
        probabilities: where labels are of words, (words, c) those of each label.
    """

    outcome: Outcome
    train: int
    held: int
    predictions: list[Any] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    probabilities: Array | None = None


@dataclass
class Bench:
    """What all runs share.

    Attributes:
        chosen: by the name of a fold the settings chosen for it.
    """

    model: LoRA
    material: Material
    config: RunConfig
    asked: CrossValidationConfig
    folder: Path
    say: Say
    progress: bool | None = None
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    _parts: dict[tuple[str, float], Prepared] = field(default_factory=dict)

    def place(self, run: Run) -> Path:
        return self.folder / RUNS / run.name

    def settings(self, run: Run) -> RunConfig:
        return run.settings(self.config, self.chosen.get(run.fold.name, {}), bool(self.material.inner))

    def part(self, run: Run) -> Prepared:
        key = run.fold.name, run.setup.share
        if key not in self._parts:  # the same for all seeds and ablations
            self._parts[key] = self.material.part(run.fold, run.setup.share, self.asked.shares)
        return self._parts[key]

    def run(self, runs: Sequence[Run]) -> dict[Run, Answered]:
        """Train those of ``runs`` that are not done, all at once, and have each answer its held-out rows.

        Raises:
            ConfigError: one was done before with other rows or settings. Interrupted: how to go on is in the message.
        """
        parts = {run: self.part(run) for run in runs}
        out = {run: found for run in runs if (found := self._known(run, parts[run])) is not None}
        left = [run for run in runs if run not in out]
        if not left:
            return {run: out[run] for run in runs}
        jobs = {}
        for run in left:
            own = self.settings(run)
            jobs[run.name] = Job(prepared=parts[run], adapter=own.adapter, training=own.training)
        begun = any((self.place(run) / "metrics.jsonl").exists() for run in left)
        try:
            results = fit(
                self.model, jobs, output_dir=self.folder / RUNS, resume=begun, at_once=self.config.at_once,
                memory_gib=self.config.memory_gib, compile=self.config.compile, liger=self.config.liger,
                progress=self.progress,
            )  # fmt: skip
        except Interrupted as error:
            raise Interrupted(f"{str(error).partition('. ')[0]}. {how_to_go_on(self.folder)}") from None
        for run in left:
            result = results[run.name]
            best = [line for line in result.history if line.get("step") == result.best_step and "eval" in line]
            outcome = Outcome(
                value=None if result.error else result.best_value, loss=best[-1]["eval"].get("loss") if best else None,
                best_step=result.best_step, steps=result.steps, epochs=round(result.epochs, 4), tokens=result.tokens,
                error=result.error and result.error.partition(" Checkpoints up to here")[0],
            )  # fmt: skip
            out[run] = self._answer(run, parts[run], outcome)
            self._keep(run, parts[run], out[run])
        return {run: out[run] for run in runs}

    def _answer(self, run: Run, part: Prepared, outcome: Outcome) -> Answered:
        assert part.test is not None, "a fold holds rows out"
        out = Answered(outcome, part.train.rows, part.test.rows)
        if outcome.error:
            return out
        task: Any = _WithProbabilities(part.task) if part.task.per_token else part.task
        found = infer(
            self.model, task, part.test, [run.name], pad_token_id=part.pad_token_id,
            batch_size=self.config.training.evaluation_rows, padding_side=part.padding_side,
        )[run.name]  # fmt: skip
        out.predictions, out.losses, out.counts = found.predictions, found.losses, found.counts
        if part.task.per_token:
            out.probabilities = np.concatenate([its.pop("probabilities") for its in out.predictions])
        return out

    def _keep(self, run: Run, part: Prepared, answered: Answered) -> None:
        """Write what a run came to; its checkpoints go, and its adapter too unless that was asked for."""
        place = self.place(run)
        values = {key: value for key, value in vars(answered).items() if key not in ("outcome", "probabilities")}
        if answered.probabilities is not None:
            np.save(place / PROBABILITIES, answered.probabilities.astype(np.float32))
        record = {"made of": self._made_of(run, part), "outcome": asdict(answered.outcome), **values}
        write_text(place / RECORD, json.dumps(record) + "\n")
        self._tidy(place)
        if run.name in self.model.adapters:
            self.model.remove_adapter(run.name)

    def _tidy(self, place: Path) -> None:
        for name in ["checkpoints", *([] if self.asked.keep_adapters else ["adapter"])]:
            shutil.rmtree(place / name, ignore_errors=True)

    def _known(self, run: Run, part: Prepared) -> Answered | None:
        """What a run that was done before came to. Raises ConfigError where that was with other rows or settings."""
        place = self.place(run)
        try:
            record = json.loads((place / RECORD).read_text(encoding="utf-8"))
            made_of, outcome = record.pop("made of"), Outcome(**record.pop("outcome"))
            found = Answered(outcome, **record)
            if part.task.per_token and not outcome.error:
                found.probabilities = np.load(place / PROBABILITIES).astype(np.float64)
        except (OSError, ValueError, TypeError, KeyError):
            return None
        if made_of != self._made_of(run, part):
            raise ConfigError(
                f"{place}: was trained on other rows, or with other settings, than the cross-validation has now; bring "
                "them back, or begin a new one in another folder"
            )
        self._tidy(place)  # a kill may have come between
        return found

    def _made_of(self, run: Run, part: Prepared) -> str:
        """A short hash of rows and settings."""
        assert part.test is not None, "a fold holds rows out"
        own = self.settings(run)
        rows = [part.digest, digest(part.held) if part.held else None, digest(part.test), part.task.state()]
        said = [*rows, own.adapter.model_dump(mode="json"), own.training.model_dump(mode="json")]
        return hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode()).hexdigest()[:16]


class _WithProbabilities:
    """A task whose labels are of words, as inference asks it: predictions also hold the probabilities of all labels."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def predictions(self, outputs: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        found = outputs.logits[..., : len(self._task.labels)].detach().float().softmax(dim=-1).cpu()
        masks = (batch["labels"] != -100).cpu()
        said = self._task.predictions(outputs, batch)
        return [
            {**its, "probabilities": row[mask].numpy().astype(np.float32)}
            for its, row, mask in zip(said, found, masks, strict=True)
        ]


def how_to_go_on(folder: Path) -> str:
    return f"Go on with: lora cv --resume {folder}"

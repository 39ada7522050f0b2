"""What a search came to, and its files: ``tune.json`` for programs, ``tune.md`` to read, ``best.yaml`` to train."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from lora.config import AdapterConfig, RunConfig, TrainingConfig
from lora.config.tuning import TuningConfig
from lora.errors import ConfigError
from lora.evaluation.grid import Cell, Grid, escape
from lora.evaluation.report import versions
from lora.evaluation.result import plain
from lora.io.atomic import write_text
from lora.overrides import ADAPTER_SECTIONS, save_config
from lora.tuning.final import BEST, Judged
from lora.tuning.objectives import Objective
from lora.tuning.search import TRIALS, name_of
from lora.tuning.space import Space
from lora.yaml_text import read_yaml, write_yaml

JSON, MARKDOWN, WINNER, SETTINGS = "tune.json", "tune.md", "best.yaml", "tune.yaml"
FILES = (JSON, MARKDOWN, WINNER)  # that a search replaces
FORMAT = 1
STATES = {"COMPLETE": "done", "PRUNED": "stopped early", "FAIL": "failed", "RUNNING": "running", "WAITING": "waiting"}


@dataclass
class TuneResult:
    """What `tune` found.

    Attributes:
        output: its folder. ``config``, ``tuning``: its settings, the default configuration among them.
        trials: all of the study.
        front: numbers of those that no other beats; of one objective the best alone.
        best: the one that was chosen: the best in the first objective.
        adapter, training: the settings recommended: the best trial's, or the default's where that was found better.
        folder: an adapter with these, ready for use; None: there is none.
        judged: fresh runs on the test rows; None: not asked for.
        importance: share of the objective's variation that each setting explains.
        protocol, notes: sentences.
        rows: how many train, validate and test.
    """

    output: Path
    config: RunConfig
    tuning: TuningConfig
    space: Space
    objectives: list[Objective]
    trials: list[FrozenTrial]
    front: list[int]
    best: FrozenTrial
    adapter: AdapterConfig
    training: TrainingConfig
    folder: Path | None
    judged: Judged | None
    importance: dict[str, float]
    protocol: list[str]
    notes: list[str]
    rows: dict[str, int]
    task: str
    seconds: float = 0.0
    default: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Those of the best trial, by key."""
        return dict(self.best.user_attrs["settings"])

    @property
    def verdict(self) -> str:
        """One sentence, or two."""
        if self.judged is not None:
            return self.judged.sentence
        said = ", ".join(f"{its.key} {value:.4g}" for its, value in zip(self.objectives, self._values(), strict=True))
        return f"Best on the validation rows: trial {self.best.number} ({said}). Nothing was measured on test rows."

    def _values(self) -> list[float]:
        return list(self.best.values or [])

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that strict JSON can hold."""
        found: dict[str, Any] = plain({
            "format": FORMAT, "model": self.config.model, "task": self.task, "rows": self.rows,
            "objectives": [{"key": its.key, "higher_is_better": its.greater} for its in self.objectives],
            "verdict": self.judged.word if self.judged else None, "sentence": self.verdict,
            "best": self.best.number, "front": self.front, "settings": self.settings,
            "default": self.default, "adapter": self.folder and str(self.folder),
            "trials": [_trial(its) for its in self.trials],
            "plots": {"history": history(self.trials, self.objectives), "parallel": parallel(self.space, self.trials),
                      "importance": self.importance},
            "final": self._final(), "space": self.space.to_dict(), "seconds": self.seconds,
            "protocol": self.protocol, "notes": self.notes,
            "config": self.config.model_dump(mode="json", exclude={"tune"}),
            "tune": self.tuning.model_dump(mode="json"), "versions": versions(),
        })  # fmt: skip
        return found

    def _final(self) -> dict[str, Any] | None:
        if self.judged is None:
            return None
        return {
            "metric": self.objectives[0].key if self.objectives[0].is_metric else self.config.training.best_metric,
            **{name: {
                "by_seed": side.by_seed, "metrics": {key: its.to_dict() for key, its in side.estimates.items()},
                "error": side.error, "validation": {seed: its.best_value for seed, its in side.runs.items()},
                "folders": {seed: str(place) for seed, place in self.judged.folders.get(name, {}).items()},
            } for name, side in self.judged.sides.items()},
            "comparison": self.judged.comparison and self.judged.comparison.to_dict(),
        }  # fmt: skip

    def tables(self) -> list[Grid]:
        """Trials, and fresh runs where there are some; a Grid can be had for a terminal: ``grid.rich()``."""
        out = [self._trials()]
        if len(self.objectives) > 1:
            out.append(self._front())
        if self.judged is not None:
            out.append(self._fresh())
        if self.importance:
            rows: list[list[Cell]] = [[name, f"{share:.0%}"] for name, share in self.importance.items()]
            out.append(Grid("What the settings explain", ["", "share"], rows))
            out[-1].below = [
                "Share of the variation between trials that came to their end, by functional ANOVA over a random "
                "forest (Hutter et al., 2014); of few trials it is rough."
            ]
        return out

    def _trials(self) -> Grid:
        names = [its.name for its in self.space.searched]
        grid = Grid(f"{len(self.trials)} trials", ["", *names, *(its.key for its in self.objectives), "epochs", ""], [])
        first = self.objectives[0]
        done = sorted(self.trials, key=lambda its: (its.state != TrialState.COMPLETE, _order(its, first), its.number))
        for its in done:
            settings = {key.rpartition(".")[2]: value for key, value in its.user_attrs.get("settings", {}).items()}
            values = its.values if its.state == TrialState.COMPLETE and its.values else []
            word = STATES[its.state.name]
            if its.number == self.best.number:
                word = "best"
            elif its.user_attrs.get("error"):
                word = "diverged" if its.state == TrialState.PRUNED else "failed"
            elif its.state == TrialState.PRUNED and its.intermediate_values:
                word += f" at {its.intermediate_values[max(its.intermediate_values)]:.4g}"
            shown: list[Cell] = [f"{value:.4g}" for value in values] or [""] * len(self.objectives)
            epochs = its.user_attrs.get("epochs")
            row: list[Cell] = [str(its.number), *(_short(settings.get(name, "")) for name in names), *shown]
            grid.rows.append([*row, "" if epochs is None else f"{epochs:g}", word])
        return grid

    def _front(self) -> Grid:
        """Trials that no other beats."""
        by_number = {its.number: its for its in self.trials}
        rows: list[list[Cell]] = [
            [str(number), *(f"{value:.4g}" for value in by_number[number].values or [])] for number in self.front
        ]
        return Grid("Pareto front", ["", *(its.key for its in self.objectives)], rows)

    def _fresh(self) -> Grid:
        """The winner beside the default."""
        assert self.judged is not None
        grid = Grid("Fresh runs on the test rows", ["", "metric", "value (95 %)", "by seed"], [], left=2)
        for name, side in self.judged.sides.items():
            for key, its in side.estimates.items():
                by_seed = ", ".join(f"{value:.4g}" for value in side.by_seed.values())
                ends = f"{its.value:.4g} ({its.low:.4g}–{its.high:.4g})"
                grid.rows.append([name, key, ends, by_seed if key == self.config.training.best_metric else ""])
        return grid

    def to_markdown(self) -> str:
        """The report, headings of level 1 and 2."""
        settings = ", ".join(f"{key} = {_short(value)}" for key, value in self.settings.items())
        head = ["# Search for settings", "", escape(self.verdict), "", escape(f"Best trial: {settings}."), ""]
        if self.folder is not None:
            head += [f"Adapter: `{self.folder}`", ""]
        tail = ["## Protocol", "", *(f"- {escape(line)}" for line in self.protocol), ""]
        if self.notes:
            tail += ["## Notes", "", *(f"- {escape(line)}" for line in self.notes), ""]
        return "\n".join([*head, *(grid.markdown() for grid in self.tables()), *tail])


def write(result: TuneResult) -> None:
    """Write the files into the search's folder; each is whole or not there. Raises SaveError."""
    text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(result.output / JSON, text + "\n")
    write_text(result.output / MARKDOWN, result.to_markdown())
    config = result.config.model_copy(
        update={"adapter": result.adapter, "training": result.training, "output": str(result.output / BEST),
                "tune": None}
    )  # fmt: skip
    write_text(result.output / WINNER, save_config(config))


def history(trials: Sequence[FrozenTrial], objectives: Sequence[Objective]) -> list[dict[str, Any]]:
    """For each trial that came to its end its values, and of a single objective the best so far."""
    out, best = list[dict[str, Any]](), None
    for its in trials:
        if its.state != TrialState.COMPLETE or its.values is None:
            continue
        entry: dict[str, Any] = {"trial": its.number, "values": its.values}
        if len(objectives) == 1:
            value = its.values[0]
            best = value if best is None else (max if objectives[0].greater else min)(best, value)
            entry["best"] = best
        out.append(entry)
    return out


def parallel(space: Space, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """Axes and lines of parallel coordinates; a setting that was not active in a trial is null."""
    axes = [
        {"name": its.name, "log": its.domain.log, "choices": its.domain.choices, "low": its.domain.low,
         "high": its.domain.high} for its in space.searched
    ]  # fmt: skip
    lines = []
    for its in trials:
        settings = its.user_attrs.get("settings")
        if settings is not None and its.state.is_finished():
            values = its.values if its.state == TrialState.COMPLETE else None
            lines.append({"trial": its.number, "state": STATES[its.state.name], "values": values,
                          "settings": [settings.get(one.key) for one in space.searched]})  # fmt: skip
    return {"axes": axes, "lines": lines}


def _trial(its: FrozenTrial) -> dict[str, Any]:
    facts: Mapping[str, Any] = its.user_attrs
    return {
        "number": its.number, "state": STATES[its.state.name], "settings": facts.get("settings", {}),
        "values": its.values if its.state == TrialState.COMPLETE else None,
        "reports": [{"epoch": clock / 100, "value": value if math.isfinite(value) else None}
                    for clock, value in sorted(its.intermediate_values.items())],
        **{key: facts.get(key) for key in ("metrics", "curve", "parameters", "steps", "epochs", "tokens", "seconds",
                                           "best_step", "error", "pruned", "worker")},
        "folder": f"{TRIALS}/{name_of(its.number)}",
    }  # fmt: skip


def _order(its: FrozenTrial, objective: Objective) -> float:
    value = its.values[0] if its.state == TrialState.COMPLETE and its.values else 0.0
    return -value if objective.greater else value


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def save_settings(folder: Path, config: RunConfig, tuning: TuningConfig) -> None:
    """What going on with the search needs."""
    # What was not set stays so, as ranks by default are brought down to small layers.
    run = config.model_dump(mode="json", include=config.model_fields_set - {"tune"}, exclude_unset=True)
    run |= {key: getattr(config, key).model_dump(mode="json", exclude_unset=True) for key in ADAPTER_SECTIONS}
    values = {"run": run}
    write_text(folder / SETTINGS, write_yaml({**values, "tune": tuning.model_dump(mode="json", exclude_unset=True)}))


def load_settings(folder: Path) -> tuple[RunConfig, TuningConfig]:
    """The settings of the search in ``folder``. Raises ConfigError: there is none."""
    file = folder / SETTINGS
    if not file.is_file():
        raise ConfigError(f"{folder}: no {SETTINGS} here, so this is not a search's folder that could be resumed")
    values = read_yaml(file)
    config = RunConfig.make(values.get("run"), "run")
    config.output = str(folder)
    return config, TuningConfig.make(values.get("tune"), "tune")

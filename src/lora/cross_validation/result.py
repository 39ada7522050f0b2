"""What a cross-validation came to, and its files: ``cv.json`` for programs, ``cv.md`` to read, answers row by row."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lora.config import CrossValidationConfig, RunConfig
from lora.cross_validation.figures import Validated
from lora.cross_validation.material import Material
from lora.cross_validation.runs import Run
from lora.cross_validation.tables import curve, folds, label_errors, markdown, metrics, tested
from lora.cross_validation.training import Answered
from lora.data.rows import places
from lora.errors import ConfigError
from lora.evaluation.report import versions
from lora.evaluation.result import plain
from lora.io.atomic import write_text
from lora.statistics.metric import Metric
from lora.tasks import Encoded
from lora.yaml_text import read_yaml, write_yaml

JSON, MARKDOWN, SETTINGS = "cv.json", "cv.md", "cv.yaml"
PREDICTIONS, LABEL_ERRORS, CHOICES = "predictions.jsonl", "label_errors.jsonl", "choices.json"
FILES = (JSON, MARKDOWN, PREDICTIONS, LABEL_ERRORS, CHOICES)  # that a cross-validation replaces
FORMAT = 1


@dataclass
class CrossValidationResult:
    """What `cross_validate` found.

    Attributes:
        output: its folder. ``config``, ``asked``: its settings.
        key, metric: what is told first and compared, as `Task.metrics` and as `lora.statistics` have it.
        everyone: the configuration as it stands, then shares of the rows and ablations.
        label_errors: labels in doubt, see `lora.cross_validation.doubts`; None: of this task none can be told.
        protocol, notes: sentences.
        rows: how many there are, and how many of them were held out at least once.
        task: its name.
    """

    output: Path
    config: RunConfig
    asked: CrossValidationConfig
    key: str
    metric: Metric
    everyone: list[Validated]
    label_errors: list[dict[str, Any]] | None
    protocol: list[str]
    notes: list[str]
    rows: dict[str, int]
    task: str
    chosen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def configuration(self) -> Validated:
        """The configuration as it stands."""
        return self.everyone[0]

    @property
    def shares(self) -> list[Validated]:
        """The learning curve: the configuration on less of the data, the smallest share first, and on all."""
        found = [its for its in self.everyone if its.setup.kind == "share"]
        return [*found, self.configuration] if found else []

    @property
    def ablations(self) -> list[Validated]:
        return [its for its in self.everyone if its.setup.kind == "ablation"]

    def __getitem__(self, name: str) -> Validated:
        """Of the configuration (``"as it stands"``), a share or an ablation (``"adapter.rank=8"``), by its name."""
        return next(its for its in self.everyone if its.setup.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that strict JSON can hold."""
        errors = self.label_errors
        found: dict[str, Any] = plain({
            "format": FORMAT, "model": self.config.model, "task": self.task,
            "metric": {"key": self.key, "name": self.metric.name, "higher_is_better": self.metric.higher_is_better},
            "rows": self.rows, "protocol": self.protocol, "notes": self.notes,
            "configuration": self._told(self.configuration),
            "shares": [self._told(its) for its in self.shares],
            "ablations": [self._told(its) for its in self.ablations],
            "label_errors": None if errors is None else {"count": len(errors), "first": errors[:20]},
            "chosen": self.chosen,
            "config": self.config.model_dump(mode="json"), "asked": self.asked.model_dump(mode="json"),
            "versions": versions(),
        })  # fmt: skip
        return found

    def _told(self, its: Validated) -> dict[str, Any]:
        return {
            "name": its.setup.name, "share": its.setup.share, "changes": dict(its.setup.changes), "error": its.error,
            "metrics": {
                key: {"pooled": found.to_dict(), "mean_of_folds": its.means[key].to_dict()}
                for key, found in its.pooled.items()
            },
            "by_seed": its.by_seed,
            "folds": [
                {"name": name, "train": its.train[name], "held_out": its.held[name], "metrics": own}
                for name, own in its.by_fold.items()
            ],
            "against": its.against and its.against.to_dict(),
            "against_folds": its.against_folds and its.against_folds.to_dict(),
        }  # fmt: skip

    def to_markdown(self) -> str:
        """The report, headings of level 1 and 2."""
        return markdown(self)

    def tables(self) -> list[Any]:
        """For a terminal: ``rich.print(*found.tables())``."""
        made = [metrics(self), folds(self), curve(self), tested(self), label_errors(self, 5)]
        return [grid.rich() for grid in made if grid is not None]


def write(result: CrossValidationResult, material: Material, answers: Mapping[Run, Answered]) -> None:
    """Write the files into the folder; each is whole or not there. Raises SaveError."""
    lines = [json.dumps(plain(line), ensure_ascii=False) for line in out_of_fold(material, answers)]
    write_text(result.output / PREDICTIONS, "".join(f"{line}\n" for line in lines))
    if result.label_errors is not None:
        lines = [json.dumps(plain(line), ensure_ascii=False) for line in result.label_errors]
        write_text(result.output / LABEL_ERRORS, "".join(f"{line}\n" for line in lines))
    told = json.dumps(result.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    write_text(result.output / JSON, told + "\n")
    write_text(result.output / MARKDOWN, result.to_markdown())


def out_of_fold(material: Material, answers: Mapping[Run, Answered]) -> Iterator[dict[str, Any]]:
    """A line for each row and run that held it out, of the configuration as it stands, in the order of the rows."""
    task, found = material.task, list[tuple[int, int, int, dict[str, Any]]]()
    for run, its in answers.items():
        if run.setup.kind != "configuration" or its.outcome.error:
            continue
        at = material.examples(run.fold.held)
        examples = [material.prepared.train.examples[place] for place in at]
        rows = np.unique(material.example_rows[at])
        number = {int(row): place for place, row in enumerate(rows)}
        own = [material.rows[int(material.numbers[row])] for row in rows]
        # By places of their own: a task puts its examples to rows by number.
        local = [
            {**example, "row": number[int(row)]}
            for example, row in zip(examples, material.example_rows[at], strict=True)
        ]
        encoded = Encoded(local, [1] * len(local), [1] * len(local))
        said = task.answers(own, encoded, its.predictions)
        true = _true(material, its.predictions, local, len(said))
        of_row = rows if len(said) == len(rows) else material.example_rows[at]
        for row, answer, target in zip(of_row, said, true, strict=True):
            place = int(material.numbers[row])
            line = {
                "row": place + 1, "place": places([material.rows[place]], [0]),
                "repeat": run.fold.repeat, "fold": run.fold.number, "seed": run.seed, "true": target, **answer,
            }  # fmt: skip
            found.append((int(row), run.fold.repeat, run.seed, line))
    for *_, line in sorted(found, key=lambda its: its[:3]):
        yield line


def _true(material: Material, predictions: Sequence[Any], examples: list[dict[str, Any]], count: int) -> list[Any]:
    """What each of the answers should have been; parts of one row are put together where answers are."""
    task = material.task
    expected = [
        task.told(said, target)[0] for said, target in zip(predictions, task.targets(examples), strict=True)
    ]  # fmt: skip
    if len(expected) == count:
        return expected
    by_row: dict[int, list[Any]] = {}
    for example, own in zip(examples, expected, strict=True):
        by_row.setdefault(example["row"], []).extend(own if isinstance(own, list) else [own])
    return [by_row[row] for row in sorted(by_row)]


def save_settings(folder: Path, config: RunConfig, asked: CrossValidationConfig) -> None:
    """What going on needs."""
    values = {"run": config.model_dump(mode="json"), "cv": asked.model_dump(mode="json")}
    write_text(folder / SETTINGS, write_yaml(values))


def load_settings(folder: Path) -> tuple[RunConfig, CrossValidationConfig]:
    """The settings of the cross-validation in ``folder``. Raises ConfigError: there is none."""
    file = folder / SETTINGS
    if not file.is_file():
        raise ConfigError(f"{folder}: no {SETTINGS} here, so this is no cross-validation's folder to go on with")
    values = read_yaml(file)
    config = RunConfig.make(values.get("run"), "run")
    config.output = str(folder)
    return config, CrossValidationConfig.make(values.get("cv"), "cv")

"""What a comparison came to, and its files: ``compare.json`` for programs, a page and ``compare.md`` to read."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lora.comparison.candidates import BASE, LOW_RANK, Candidate
from lora.comparison.page import render
from lora.comparison.reference import CONSTANT, Reference
from lora.comparison.spectrum import Spectrum
from lora.comparison.tables import costs, markdown, overview
from lora.comparison.told import Told
from lora.comparison.trials import Chosen
from lora.comparison.verdict import Entry, Verdict
from lora.config import ComparisonConfig, RunConfig
from lora.errors import ConfigError
from lora.evaluation.report import versions
from lora.evaluation.result import plain
from lora.evaluation.saved import COMPARISON, page_of
from lora.io.atomic import write_text
from lora.overrides import save_config
from lora.statistics.estimate import Estimate
from lora.statistics.metric import Metric
from lora.tasks.figures import Figures
from lora.yaml_text import read_yaml, write_yaml

JSON, MARKDOWN, WINNER, SETTINGS = COMPARISON, "compare.md", "winner.yaml", "compare.yaml"
PAGE = str(page_of(Path(JSON)))
FILES = (JSON, MARKDOWN, PAGE, WINNER)  # that a comparison replaces
FORMAT = 1


@dataclass
class Measured:
    """A candidate with all that was measured.

    Attributes:
        chosen: its learning rate and its runs.
        runs: by seed the figures of the test rows.
        estimates: every metric of all runs together, with its interval.
        parameters: that are trained. ``stored``: bytes of the adapter's folder.
        layers: by path the singular values of what was added. ``spectrum``: what they have in common.
        alone: memory and speed by itself, see `lora.comparison.alone.measure`.
        error: why it is left out of the comparison.
    """

    chosen: Chosen
    runs: dict[int, Figures] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    parameters: int | None = None
    stored: int | None = None
    layers: dict[str, Spectrum] = field(default_factory=dict)
    spectrum: dict[str, Any] | None = None
    alone: dict[str, Any] = field(default_factory=dict)
    error: str | None = None

    @property
    def candidate(self) -> Candidate:
        return self.chosen.candidate

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def kind(self) -> str:
        return self.candidate.kind

    @property
    def rank(self) -> int | None:
        return self.candidate.rank

    @property
    def said(self) -> str:
        """How a sentence calls it."""
        adapter = self.candidate.adapter
        if self.kind != LOW_RANK or adapter is None:
            return {"probe": "the head alone", "full": "full fine-tuning"}.get(self.kind, "the base as it is")
        targets = adapter.targets if isinstance(adapter.targets, str) else ", ".join(adapter.targets)
        return f"rank {adapter.rank} on {targets}"

    @property
    def tokens(self) -> int | None:
        """Trained on in a run."""
        return next((its.tokens for its in self.chosen.outcomes.values()), None)

    def costs(self) -> dict[str, float | None]:
        if self.kind == BASE:
            return {"parameters": 0, "memory": 0, "seconds": 0, "stored": 0}  # nothing is trained
        speed = self.alone.get("tokens_per_second")
        seconds = self.tokens / speed if speed and self.tokens else None
        return {"parameters": self.parameters, "memory": self.alone.get("memory"), "seconds": seconds,
                "stored": self.stored}  # fmt: skip

    def by_seed(self, key: str) -> dict[int, float]:
        """A metric of each run."""
        return {seed: run[key][0].value(run[key][1]) for seed, run in self.runs.items()}

    def best_run(self, greater: bool) -> str | None:
        """The name of the run with the best value on the validation rows."""
        values = {seed: its.value for seed, its in self.chosen.outcomes.items() if its.value is not None}
        if not values:
            return None
        seed = (max if greater else min)(values, key=lambda seed: (values[seed], -seed if greater else seed))
        return self.chosen.runs[seed].name


@dataclass
class ComparisonResult:
    """What `compare` found.

    Attributes:
        output: its folder. ``config``, ``asked``: its settings.
        key, metric: what is compared, as `Task.metrics` and as `lora.statistics` have it.
        measured: all candidates, those that failed too.
        entries: of those that did not, figures and tests.
        verdict: who is enough; ``recommendation``: the same in a paragraph.
        protocol, notes: sentences.
        base_parameters: of the base.
        rows: how many train, validate and test.
        task: its name.
        reference: what is reached without training; None: nothing is known of that.
    """

    output: Path
    config: RunConfig
    asked: ComparisonConfig
    key: str
    metric: Metric
    measured: list[Measured]
    entries: list[Entry]
    verdict: Verdict
    recommendation: str
    protocol: list[str]
    notes: list[str]
    base_parameters: int
    rows: dict[str, int]
    task: str
    reference: Reference | None = None

    @property
    def greater(self) -> bool:
        return self.metric.higher_is_better is not False

    def adapter(self, name: str | None = None) -> Path | None:
        """The folder of candidate ``name``'s adapter (default: of the recommended one), of its run that was best on
        the validation rows; None: it trains nothing."""
        name = name or self.verdict.recommended
        its = next((its for its in self.measured if its.name == name), None)
        run = its.best_run(self.greater) if its else None
        return self.output / "trials" / run / "adapter" if run else None

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that strict JSON can hold."""
        verdict = asdict(self.verdict)
        adapter = self.adapter()
        found: dict[str, Any] = plain({
            "format": FORMAT, "model": self.config.model, "base_parameters": self.base_parameters, "task": self.task,
            "metric": {"key": self.key, "name": self.metric.name, "higher_is_better": self.greater},
            "rows": self.rows, "protocol": self.protocol, "notes": self.notes,
            "budget": {"epochs": self.config.training.epochs, "max_steps": self.config.training.max_steps,
                       "batch_size": self.config.training.batch_size * self.config.training.accumulation},
            "seeds": self.asked.seeds, **verdict, "recommendation": self.recommendation,
            "adapter": adapter and str(adapter),
            "reference": self.reference and self._reference(self.reference),
            "candidates": [self._candidate(its) for its in self.measured],
            "config": self.config.model_dump(mode="json"), "asked": self.asked.model_dump(mode="json"),
            "versions": versions(),
        })  # fmt: skip
        return found

    def _reference(self, its: Reference) -> dict[str, Any]:
        """A candidate's own figures are not said twice."""
        metrics = {key: found.to_dict() for key, found in its.estimates.items()} if its.name == CONSTANT else {}
        return its.to_dict(metrics)

    def _candidate(self, its: Measured) -> dict[str, Any]:
        entry = next((entry for entry in self.entries if entry.name == its.name), None)
        chosen, adapter = its.chosen, its.candidate.adapter
        folder = self.adapter(its.name)
        word = self.verdict.word(its.name)
        share = None if its.parameters is None else its.parameters / max(1, self.base_parameters)
        return {
            "name": its.name, "kind": its.kind, "rank": its.rank, "targets": adapter.targets if adapter else None,
            "said": its.said, "error": its.error, "status": word,
            "learning_rate": chosen.rate, "rate_extended": chosen.extended, "rate_at_the_end": chosen.at_the_end,
            "rates": [{"learning_rate": rate, **asdict(found)} for rate, found in sorted(chosen.tried.items())],
            "runs": {seed: {**asdict(found), "folder": str(self.output / "trials" / chosen.runs[seed].name)}
                     for seed, found in chosen.outcomes.items()},
            "metrics": {key: {**found.to_dict(), "by_seed": (own := its.by_seed(key)),
                              "spread": deviation(list(own.values()))}
                        for key, found in its.estimates.items()},
            "parameters": its.parameters, "parameters_share": share, "stored_bytes": its.stored,
            "memory_bytes": its.costs()["memory"], "memory_kind": its.alone.get("kind"),
            "tokens": its.tokens, "tokens_per_second": its.alone.get("tokens_per_second"),
            "seconds": its.costs()["seconds"], "alone_error": its.alone.get("error"),
            "against_best": entry.against_best.to_dict() if entry and entry.against_best else None,
            "against_full": entry.against_full.to_dict() if entry and entry.against_full else None,
            "against_reference": entry.against_reference.to_dict() if entry and entry.against_reference else None,
            "above_chance": entry.above_chance.to_dict() if entry and entry.above_chance else None,
            "spectrum": its.spectrum, "layers": {path: found.to_dict() for path, found in its.layers.items()},
            "adapter": folder and str(folder),
        }  # fmt: skip

    def to_markdown(self) -> str:
        """The report, headings of level 1 and 2."""
        return markdown(self.to_dict())

    def tables(self) -> list[Any]:
        """Quality and costs for a terminal: ``rich.print(*found.tables())``."""
        told = Told.of(self.to_dict())
        return [overview(told).rich(), costs(told).rich()]


def deviation(values: list[float]) -> float:
    """Standard deviation between runs; nan of one."""
    return statistics.stdev(values) if len(values) > 1 and all(map(math.isfinite, values)) else math.nan


def write(result: ComparisonResult) -> None:
    """Write the files of a comparison into its folder; each is whole or not there. Raises SaveError."""
    told = result.to_dict()
    text = json.dumps(told, indent=2, ensure_ascii=False, allow_nan=False)
    write_text(result.output / JSON, text + "\n")
    write_text(result.output / MARKDOWN, markdown(told))
    write_text(result.output / PAGE, render(told))
    winner = next((its for its in result.measured if its.name == result.verdict.recommended), None)
    if winner is None or winner.candidate.adapter is None:
        (result.output / WINNER).unlink(missing_ok=True)
        return
    config = result.config.model_copy(deep=True)
    config.adapter = winner.candidate.adapter
    config.training.learning_rate = winner.chosen.rate
    config.output = str(result.output / "winner")
    write_text(result.output / WINNER, save_config(config))


def save_settings(folder: Path, config: RunConfig, asked: ComparisonConfig) -> None:
    """What going on with the comparison needs."""
    values = {"run": config.model_dump(mode="json"), "comparison": asked.model_dump(mode="json")}
    write_text(folder / SETTINGS, write_yaml(values))


def load_settings(folder: Path) -> tuple[RunConfig, ComparisonConfig]:
    """The settings of the comparison in ``folder``. Raises ConfigError: there is none."""
    file = folder / SETTINGS
    if not file.is_file():
        raise ConfigError(f"{folder}: no {SETTINGS} here, so this is not a comparison's folder that could be resumed")
    values = read_yaml(file)
    config = RunConfig.make(values.get("run"), "run")
    config.output = str(folder)
    return config, ComparisonConfig.make(values.get("comparison"), "comparison")

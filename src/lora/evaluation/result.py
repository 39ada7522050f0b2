"""What an evaluation came to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lora.core.routing import BASE
from lora.evaluation.lenient import whole

T = TypeVar("T")

if TYPE_CHECKING:
    from rich.table import Table

    from lora.evaluation.forgetting_result import Forgetting
    from lora.evaluation.speed_plan import SpeedGrid


@dataclass
class Generation:
    """Answers written to some of the prompts.

    Attributes:
        answers: of each prompt ``{"prompt": text, "references": [text, ...], "answers": {adapter: text}}``.
        references: how many there are in all; rows of the same prompt are references of one answer.
        reference_length: their mean number of tokens.
        max_new_tokens: what an answer could have at most.
        signatures: what sacrebleu says of how its metrics were computed, by metric.
        notes: what a user should know of them, in full sentences.
    """

    answers: list[dict[str, Any]]
    references: int
    reference_length: float
    max_new_tokens: int
    signatures: dict[str, str]
    notes: list[str] = field(default_factory=list)


@dataclass
class Evaluation:
    """Metrics of every adapter on one data set, the base beside them.

    Attributes:
        metrics: adapter name -> what `Task.metrics` gave, ``"base"`` first if it ran; ``evaluation[name]`` for short.
        rows: rows measured on.
        truncated: rows that were longer than the model takes.
        task: name of the task; ``best_metric`` is the key of ``metrics`` that it is judged by.
        untrained_head: the base's task head was made up at random when it was loaded, so its answers are guesses.
        reference: a constant answer, ``{"name": in words, "metrics": ...}``: what is reached without reading the text.
        speed: adapter name -> ``latency_p50_ms``, ``latency_p95_ms``, ``rows_per_second``, ``tokens_per_second``, and
            ``to_base``, the factors to the base's with their intervals; see `lora.evaluation.speed`.
        speed_grid: the same by batch size and length, merged and unmerged, and how fast texts are written, where that
            was asked for.
        peak_memory_bytes: largest use during the evaluation; ``peak_memory_kind`` says of what.
        generation: answers that were written, where that was asked for; their metrics are among the others.
        forgetting: base and adapters on general text, where that was asked for and can be measured.
        intervals: adapter name -> metric -> `lora.statistics.estimate.Estimate` as a dict.
        class_intervals: adapter name -> class -> the same of its F1, where classes are counted.
        comparisons: adapter name -> metric -> `lora.statistics.compare.Comparison` as a dict, against the base.
        pairs: comparisons of two adapters, each with their names as ``a`` and ``b``, ``metric`` and the rest.
        calibration: adapter name -> ``bins`` (the reliability table), ``ece``, ``brier``, ``temperature`` (before and
            after scaling), ``selective`` (the accuracy of the surest rows).
        slices: adapter name -> `lora.statistics.slices.Slices` as a dict.
        robustness: adapter name -> noise -> what it costs, a comparison as a dict.
        errors: adapter name -> worst rows first, ``{"row", "text", "expected", "answer", "score"}``.
        seconds: wall-clock time of everything.
        notes: what a user should know, in full sentences.
        source: file, folder or hub id of the rows.
        dtype: of the base's weights, in which everything was computed: ``float32``, ``bfloat16``, ...
    """

    metrics: dict[str, dict[str, Any]]
    rows: int
    truncated: int = 0
    notes: list[str] = field(default_factory=list)
    task: str = ""
    best_metric: str = "loss"
    greater_is_better: bool = False
    untrained_head: bool = False
    reference: dict[str, Any] | None = None
    speed: dict[str, dict[str, Any]] = field(default_factory=dict)
    speed_grid: SpeedGrid | None = None
    peak_memory_bytes: int | None = None
    peak_memory_kind: str | None = None
    generation: Generation | None = None
    forgetting: Forgetting | None = None
    intervals: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    class_intervals: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    comparisons: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)
    calibration: dict[str, dict[str, Any]] = field(default_factory=dict)
    slices: dict[str, dict[str, Any]] = field(default_factory=dict)
    robustness: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    errors: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    seconds: float = 0.0
    source: str | None = None
    dtype: str = ""

    def __getitem__(self, name: str) -> dict[str, Any]:
        return self.metrics[name]

    @property
    def base(self) -> str | None:
        """``"base"`` where it stands beside something tuned, else None."""
        return BASE if BASE in self.metrics and len(self.metrics) > 1 else None

    @property
    def tuned(self) -> list[str]:
        """All that is not the base; the base alone if nothing else was measured."""
        return [name for name in self.metrics if name != BASE] or list(self.metrics)

    def label(self, name: str) -> str:
        """``name`` as a table shows it: an untrained head is said."""
        return f"{name} (untrained head)" if name == BASE and self.untrained_head else name

    def to_dict(self) -> dict[str, Any]:
        """Everything as values that strict JSON can hold: NaN and infinities are None."""
        return plain({entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)})

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evaluation:
        """What `to_dict` gave, of this version of lora or another: what it does not know is left out."""
        known = {entry.name: entry for entry in dataclasses.fields(cls)}
        given: dict[str, Any] = {key: value for key, value in values.items() if key in known and value is not None}
        for key, kind in _parts().items():
            if key in given:
                given[key] = rebuilt(kind, given[key])
        return cls(**{"metrics": {}, "rows": 0, **given})

    def to_markdown(self) -> str:
        """Comparison, per-class table, confusions and written answers in Markdown, headings of level 2."""
        from lora.evaluation.tables import markdown

        return markdown(self)

    def table(self) -> Table:
        """The comparison for a terminal: ``rich.print(evaluation.table())``."""
        from lora.evaluation.tables import comparison

        return comparison(self).rich()


def _parts() -> dict[str, type]:
    """What is a dataclass of its own in an `Evaluation`."""
    from lora.evaluation.forgetting_result import Forgetting
    from lora.evaluation.speed_plan import SpeedGrid

    return {"generation": Generation, "forgetting": Forgetting, "speed_grid": SpeedGrid}


def rebuilt(kind: type[T], values: Any) -> T | None:
    """A dataclass from what `plain` made of it; None where that is another's."""
    if not isinstance(values, Mapping):
        return None
    names = {entry.name for entry in dataclasses.fields(kind)}  # type: ignore[arg-type]
    try:
        return kind(**{key: value for key, value in values.items() if key in names})
    except TypeError:  # something is missing
        return None


def plain(value: Any) -> Any:
    """``value`` for strict JSON in UTF-8: string keys, lists, numbers; NaN and infinities None, other things text."""
    if isinstance(value, str):
        return whole(value)
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {whole(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return plain({entry.name: getattr(value, entry.name) for entry in dataclasses.fields(value)})
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy's and torch's numbers and arrays
        return plain(value.tolist())
    return str(value)

"""What candidates must beat to have learned anything: the constant answer that fits best, else the untrained base."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora.comparison.verdict import Entry
from lora.statistics.compare import Comparison
from lora.statistics.estimate import Estimate

CONSTANT = "constant answer"


@dataclass
class Reference:
    """What is reached without training.

    Attributes:
        name: a candidate's (the base's), or `CONSTANT`.
        said: what it answers, in words.
        estimates: its metrics on the test rows, by key; it has none that need probabilities.
        tested: whether candidates were held against it: by the metric that is compared, where that is defined of it.
        against_best, against_full: it against these; None: it is the one, or was not tested.
    """

    name: str
    said: str
    estimates: dict[str, Estimate] = field(default_factory=dict)
    tested: bool = False
    against_best: Comparison | None = None
    against_full: Comparison | None = None

    def beside(self, entries: Sequence[Entry], best: str | None) -> None:
        """Turn round how the best, and full fine-tuning, of ``entries`` compare with it."""
        for entry in entries:
            if entry.name == best:
                self.against_best = turned(entry.against_reference)
            if entry.kind == "full":
                self.against_full = turned(entry.against_reference)

    def to_dict(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """``metrics``: those of ``estimates`` as a candidate's are written."""
        return {
            "name": self.name, "said": self.said, "tested": self.tested, "metrics": metrics,
            "against_best": self.against_best.to_dict() if self.against_best else None,
            "against_full": self.against_full.to_dict() if self.against_full else None,
        }  # fmt: skip


def turned(its: Comparison | None) -> Comparison | None:
    """b against a, of a against b."""
    if its is None:
        return None
    return replace(
        its, a=its.b, b=its.a, difference=-its.difference, low=-its.high, high=-its.low, effect=-its.effect
    )  # fmt: skip


def defined_of(estimates: Mapping[str, Estimate], key: str) -> bool:
    """Whether there is a value to be better than."""
    return key in estimates and not math.isnan(estimates[key].value)

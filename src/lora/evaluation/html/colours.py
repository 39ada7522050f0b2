"""Whose colour is whose, on every chart of a page."""

from __future__ import annotations

from lora.core.routing import BASE
from lora.evaluation.result import Evaluation

SYSTEMS = 12  # in a chart; a table has all


def place_of(evaluation: Evaluation, name: str) -> int:
    """The place of a system's colour: the base's is 0."""
    tuned = evaluation.tuned
    return 0 if name == BASE and tuned != [BASE] else 1 + (tuned.index(name) if name in tuned else 0)

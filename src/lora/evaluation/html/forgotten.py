"""The section on what was forgotten: tables of base and adapter on general text, and how far each has moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora.evaluation.forgetting_result import Forgetting
from lora.evaluation.grid import Number, pieces
from lora.evaluation.html.blocks import Block, Keys, Lines, Panel, Panels, Section, Table, section
from lora.evaluation.html.charts.dots import Dot, dot_chart
from lora.evaluation.html.colours import SYSTEMS, place_of
from lora.evaluation.result import Evaluation, rebuilt

MOVED = {"loss_change": "Change of the loss per token", "kl": "KL(base ‖ adapter) per token", "cosine": "Cosine"}


def forgotten(report: Mapping[str, Any], evaluation: Evaluation | None, keys: Keys) -> Section:
    """Base and adapters on general text: what a run measured at its end, and what an evaluation was asked for."""

    def blocks() -> list[Block]:
        found = report.get("forgetting")
        out: list[Block] = [Lines([f"Not measured: {found}."])] if found and isinstance(found, str) else []
        for path, own in (("/forgetting", rebuilt(Forgetting, found)),
                          ("/evaluation/forgetting", evaluation.forgetting if evaluation else None)):  # fmt: skip
            if own is not None and own.adapters:
                out += [Table(own.grid(path)), *_moved(own, path, evaluation, keys)]
        return out

    return section("forgetting", "Forgetting", blocks, "Measured on general text that is none of the training data's.")


def _moved(found: Forgetting, path: str, evaluation: Evaluation | None, keys: Keys) -> list[Block]:
    """How far each adapter has moved from the base, with intervals."""
    panels = []
    for key, title in MOVED.items():
        dots = []
        for name in [name for name, own in found.adapters.items() if isinstance(own.get(key), Mapping)][:SYSTEMS]:
            numbers = [piece for piece in pieces(found.cell(name, key, path)) if isinstance(piece, Number)]
            low, high = numbers[1:] if len(numbers) == 3 else (None, None)
            dots.append(Dot(name, numbers[0], low, high, place_of(evaluation, name) if evaluation else 1))
        if (svg := dot_chart(keys(), title, [("", dots)], zero=key != "cosine")) is not None:
            panels.append(Panel(title, svg))
    return [Panels(panels)] if panels else []

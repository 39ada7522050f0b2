"""Loss and metric over the steps of a run, drawn where matplotlib is installed."""

from __future__ import annotations

import io
import math
from typing import Any

Series = tuple[list[float], list[float]]  # steps, values
SMOOTH = 60  # points above which the training loss gets a running mean over a twentieth of them
POINTS = 400  # of a series in report.json; metrics.jsonl has every step


def series(history: list[dict[str, Any]]) -> dict[str, Series]:
    """Finite numbers of every key over the steps; those of an evaluation are called ``eval.<metric>``."""
    out: dict[str, Series] = {}
    for entry in history:
        evaluated = entry.get("eval")
        values = {f"eval.{key}": value for key, value in evaluated.items()} if isinstance(evaluated, dict) else entry
        for key, value in values.items():
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if number and key != "step" and "step" in entry:
                steps, numbers = out.setdefault(key, ([], []))
                steps.append(entry["step"])
                numbers.append(value)
    return out


def thinned(steps: list[float], values: list[float], most: int = POINTS) -> dict[str, Any]:
    """At most ``most`` points of a series: means over ``each`` neighbours, at the last one's step.

    Returns:
        ``{"steps", "values", "each"}``
    """
    each = -(-len(steps) // most)
    parts = range(0, len(steps), each or 1)
    means = [math.fsum(part := values[place : place + each]) / len(part) for place in parts]
    return {"steps": [steps[min(place + each, len(steps)) - 1] for place in parts], "values": means, "each": each}


def draw(history: list[dict[str, Any]], best_metric: str | None = None) -> bytes | None:
    """A PNG of losses, metric and learning rate; None without matplotlib or anything to draw."""
    found = series(history)
    metrics = [f"eval.{best_metric}", *(key for key in found if key.startswith("eval."))]
    metric = next((key for key in metrics if key in found and key != "eval.loss"), None)
    losses = [key for key in ("loss", "eval.loss") if key in found]
    panels = [
        keys for keys in (losses, [metric] if metric else [], ["learning_rate"]) if any(key in found for key in keys)
    ]
    if not panels:
        return None
    try:
        # Figure, not pyplot: no window system is touched and no state is left behind.
        from matplotlib.figure import Figure
    except ImportError:
        return None
    figure = Figure(figsize=(4.5 * len(panels), 3.2), layout="constrained")
    for place, keys in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for key in keys:
            _line(axes, key, found[key])
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120)
    return out.getvalue()


def _line(axes: Any, key: str, values: Series) -> None:
    steps, numbers = values
    name = {"loss": "training loss", "eval.loss": "validation loss"}.get(
        key, key.removeprefix("eval.").replace("_", " ")
    )
    if key.startswith("eval."):
        axes.plot(steps, numbers, marker="o", markersize=3, label=name)
    elif key == "loss" and len(numbers) > SMOOTH:
        axes.plot(steps, numbers, alpha=0.25, color="tab:blue")
        axes.plot(steps, running_mean(numbers, len(numbers) // 20), color="tab:blue", label=f"{name} (running mean)")
    else:
        axes.plot(steps, numbers, label=name)


def running_mean(values: list[float], width: int) -> list[float]:
    """Mean of the last ``width`` values (fewer at the beginning) at each place."""
    return [
        math.fsum(part := values[max(0, place - width + 1) : place + 1]) / len(part) for place in range(len(values))
    ]

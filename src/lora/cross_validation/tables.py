"""Tables of a cross-validation: metrics, folds, learning curve, ablations, labels in doubt."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from lora.comparison.tables import interval, spread
from lora.evaluation.grid import Cell, Grid, escape
from lora.evaluation.tables import short
from lora.plural import number_of
from lora.statistics.folds import FoldMean

if TYPE_CHECKING:
    from lora.cross_validation.figures import Validated
    from lora.cross_validation.result import CrossValidationResult

SHOWN = 20  # labels in doubt
POOLED = (
    "Pooled: of the answers to all held-out rows; its interval (rows, or groups of them, drawn anew) says what other "
    "rows would change, the trained models being given."
)
MEAN = (
    "Mean of folds: its interval (corrected resampled t; Nadeau and Bengio, 2003) says what other training rows would "
    "change as well. Folds share training rows, so a plain t interval of them would be too narrow, and with repeats "
    "far too narrow."
)


def metrics(result: CrossValidationResult) -> Grid:
    """Every metric of the configuration as it stands."""
    its, asked = result.configuration, result.asked
    what = [number_of(asked.folds, "fold")]
    what += [number_of(asked.repeats, "repeat")] if asked.repeats > 1 else []
    what += [number_of(asked.seeds, "seed")] if asked.seeds > 1 else []
    headers = ["", "pooled (95 %)", "mean of folds (95 %)", "folds ±"]
    grid = Grid(f"{', '.join(what)}, {number_of(result.rows['held_out'], 'held-out row')}", headers, [])
    keys = [result.key, *(key for key in its.pooled if key != result.key)]
    for key in keys:
        mean, style = its.means[key], "bold" if key == result.key else ""
        grid.rows.append([(its.pooled[key].metric, style), interval(its.pooled[key]), _mean(mean), _deviation(mean)])
    grid.below += [POOLED, MEAN]
    if len(its.by_seed) > 1:
        grid.below.append(f"Between seeds {result.metric.name} has a standard deviation of {_seeds(its)}.")
    return grid


def folds(result: CrossValidationResult) -> Grid:
    """The configuration's folds."""
    its = result.configuration
    rows: list[list[Cell]] = [
        [_named(name, result.asked.repeats), f"{its.train[name]:,}", f"{its.held[name]:,}", _number(own[result.key])]
        for name, own in its.by_fold.items()
    ]
    return Grid("Folds", ["", "training rows", "held out", result.metric.name], rows)


def curve(result: CrossValidationResult) -> Grid | None:
    """Quality against the share of the training rows; None: it was not asked for."""
    if not result.shares:
        return None
    grid = Grid("Learning curve", ["share", "training rows", f"{result.metric.name} pooled (95 %)",
                                   "mean of folds (95 %)"], [])  # fmt: skip
    for its in result.shares:
        count = f"{sum(its.train.values()) / max(1, len(its.train)):,.0f}"
        grid.rows.append([f"{its.setup.share:.3g}", count, *_quality(its, result.key)])
    grid.below.append(
        "All on the same held-out rows; training rows as a mean over folds, the smaller within the larger."
    )
    return grid


def tested(result: CrossValidationResult) -> Grid | None:
    """Ablations beside the configuration as it stands; None: none were asked for."""
    if not result.ablations:
        return None
    headers = ["", f"{result.metric.name} pooled (95 %)", "on these rows", "", "over folds", ""]
    grid = Grid("Ablations, beside the configuration as it stands", headers, [])
    grid.rows.append([result.configuration.setup.name, _quality(result.configuration, result.key)[0], "", "", "", ""])
    for its in result.ablations:
        if its.error:
            grid.rows.append([its.setup.name, "stopped", "", "", "", ""])
            continue
        row: list[Cell] = [its.setup.name, _quality(its, result.key)[0]]
        if (rows := its.against) is not None:
            style = {"better": "green", "worse": "red"}.get(rows.verdict, "")
            row += [f"{rows.difference:+.3g}{_p(rows.p_corrected)}", (rows.verdict, style)]
        if (over := its.against_folds) is not None:
            ends = "" if math.isnan(over.low) else f" ({over.low:+.2g} to {over.high:+.2g}{_p(over.p_value, ', ')})"
            row += [f"{over.value:+.3g}{ends}", "shown" if over.p_value <= 1 - over.level else "not shown"]
        grid.rows.append(row)
    grid.below.append(
        "On these rows: the paired test of the answers, the trained models being given. Over folds: the corrected "
        "resampled t test, to which other training rows are chance too. p-values are corrected for the number of "
        "ablations (Holm)."
    )
    return grid


def label_errors(result: CrossValidationResult, most: int = SHOWN) -> Grid | None:
    """The labels most in doubt; None: of this task none can be told."""
    lines = result.label_errors
    if lines is None:
        return None
    some = f", the first {most}" if len(lines) > most else ""
    grid = Grid(f"Labels in doubt: {len(lines):,}{some}", ["row", "text", "label", "rather", "margin"], [], left=4)
    for line in lines[:most]:
        label, rather = str(line["label"]), str(line["suggested"])
        if "given" in line:
            label, rather = (f"has {label}", "not") if line["given"] else (f"lacks {label}", "has it")
        text = f"{line['word']} (in: {line['text']})" if "word" in line else str(line["text"])
        grid.rows.append([f"{line['row']:,}", short(text), label, rather, f"{line['margin']:.2f}"])
    right = result.configuration.pooled.get("accuracy")
    if right is not None and not math.isnan(right.value):
        grid.below.append(f"The list is as good as the models, whose answers are right in {right.value:.1%}.")
    grid.below.append(
        "Rows whose label the models that were not trained on them confidently contradict (confident learning, "
        "Northcutt et al., 2021): look at them. Some are errors, some are hard; all are in label_errors.jsonl."
    )
    return grid


def headline(result: CrossValidationResult) -> str:
    """The result in a line."""
    pooled = result.configuration.pooled[result.key]
    return f"{pooled.metric} {interval(pooled)} on {number_of(result.rows['held_out'], 'held-out row')}"


def markdown(result: CrossValidationResult) -> str:
    """The report."""
    lines = [
        "# Cross-validation",
        "",
        escape(f"{result.config.model}, task {result.task}: {headline(result)}"),
        "",
    ]
    made = [metrics(result), folds(result), curve(result), tested(result), label_errors(result)]
    lines += [grid.markdown() for grid in made if grid is not None]
    lines += ["## Protocol", ""] + [f"- {escape(line)}" for line in (*result.protocol, *result.notes)]
    return "\n".join(lines) + "\n"


def _quality(its: Validated, key: str) -> list[Cell]:
    if its.error:
        return ["stopped", ""]
    return [interval(its.pooled[key]), _mean(its.means[key])]


def _mean(its: FoldMean) -> str:
    if math.isnan(its.value):
        return "–"
    return f"{its.value:.4g}" + ("" if math.isnan(its.low) else f" ({its.low:.4g}–{its.high:.4g})")


def _deviation(its: FoldMean) -> str:
    return "" if math.isnan(its.deviation) else f"{its.deviation:.2g}"


def _seeds(its: Validated) -> str:
    return spread(list(its.by_seed.values()))


def _number(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def _p(value: float, before: str = " (") -> str:
    if math.isnan(value):
        return ""
    return f"{before}p={value:.2g}" + (")" if before == " (" else "")


def _named(name: str, repeats: int) -> str:
    """``repeat1-fold2`` as a person says it."""
    name = name if repeats > 1 else name.removeprefix("repeat1-")
    return name.replace("-", ", ").replace("repeat", "repeat ").replace("fold", "fold ")

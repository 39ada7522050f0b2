"""Tables of an evaluation: base beside tuned, per class, and what is confused with what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora.core.routing import BASE
from lora.evaluation.grid import Cell, Grid
from lora.plural import number_of

if TYPE_CHECKING:
    from lora.evaluation.result import Evaluation

MATRIX = 15  # classes; a larger matrix is wider than a page and mostly zeros
PAIRS = 15  # most confused pairs shown instead
ANSWERS = 5  # written answers shown, evenly over all of them
EXCERPT = 240  # characters of a text shown


@dataclass(frozen=True)
class Metric:
    """How a number is shown.

    ``better``: 1 where more is better, -1 where less is, 0 where neither is meant, None where that says nothing.
    """

    title: str
    form: str = ".4f"
    better: int | None = 1


METRICS = {
    "accuracy": Metric("accuracy"),
    "f1": Metric("F1"),
    "precision": Metric("precision"),
    "recall": Metric("recall"),
    "f1_strict": Metric("F1 strict"),
    "f1_macro": Metric("F1 macro"),
    "precision_macro": Metric("precision macro"),
    "recall_macro": Metric("recall macro"),
    "f1_micro": Metric("F1 micro"),
    "f1_weighted": Metric("F1 weighted"),
    "hamming": Metric("wrong cells (Hamming loss)", better=-1),
    "rmse": Metric("RMSE", ".4g", -1),
    "mae": Metric("MAE", ".4g", -1),
    "mse": Metric("MSE", ".4g", -1),
    "r2": Metric("R²"),
    "pearson": Metric("Pearson's r"),
    "loss": Metric("loss", better=-1),
    "perplexity": Metric("perplexity", ",.2f", -1),
    "token_accuracy": Metric("token accuracy"),
    "margin": Metric("margin of rewards", ".4f"),
    "reward_chosen": Metric("reward, chosen", ".4f", 0),
    "reward_rejected": Metric("reward, rejected", ".4f", 0),
    "likelihood_accuracy": Metric("chosen more likely per token"),
    "loss_chosen": Metric("loss per token, chosen", better=0),
    "loss_rejected": Metric("loss per token, rejected", better=0),
    "tokens": Metric("supervised tokens", ",.0f", None),
    "bleu": Metric("BLEU", ".2f"),
    "chrf": Metric("chrF", ".2f"),
    "rouge_l": Metric("ROUGE-L"),
    "exact_match": Metric("exact match"),
    "stop_rate": Metric("answers that end"),
    "answer_length": Metric("tokens of an answer", ",.1f", 0),
}
SPEED = {
    "latency_p50_ms": Metric("latency p50, ms", ",.2f", -1),
    "latency_p95_ms": Metric("latency p95, ms", ",.2f", -1),
    "rows_per_second": Metric("rows per second", ",.1f"),
    "tokens_per_second": Metric("tokens per second", ",.0f"),
}


def comparison(evaluation: Evaluation) -> Grid:
    """Metrics and speed, the base's column first. Differences: a column beside one adapter, brackets with several."""
    names = ([evaluation.base] if evaluation.base else []) + evaluation.tuned
    single = len(evaluation.tuned) == 1 and evaluation.base is not None
    headers = ["", *[evaluation.label(name) for name in names], *(["difference"] if single else [])]
    grid = Grid(f"Evaluation on {number_of(evaluation.rows, 'row')}", headers, [], [])
    for table, described in ((evaluation.metrics, _described(evaluation)), (evaluation.speed, SPEED)):
        if table:
            grid.rows += [_row(table, key, metric, names, single) for key, metric in described.items()]
    grid.below = remarks(evaluation)
    return grid


def _described(evaluation: Evaluation) -> dict[str, Metric]:
    """The plain numbers among the metrics, known ones in the order above, others after them."""
    first = evaluation[evaluation.tuned[0]]
    numbers = [key for key, value in first.items() if value is None or isinstance(value, (int, float))]
    out = {key: metric for key, metric in METRICS.items() if key in numbers}
    if "hamming" in out:
        out["accuracy"] = Metric("all labels right")
    return out | {key: Metric(key, ".4g", 0) for key in numbers if key not in out}


def _row(table: dict[str, dict[str, Any]], key: str, metric: Metric, names: list[str], single: bool) -> list[Cell]:
    values = [table[name].get(key) for name in names]
    cells: list[Cell] = [metric.title, shown(values[0], metric)]
    for name, value in zip(names[1:], values[1:], strict=True):
        delta, style, beside = "", "", "{} ({})"
        if "to_base" in table[name]:
            delta, style = times(table[name]["to_base"][key], metric)
            beside = "{}, {}"
        elif names[0] == BASE:
            delta, style = difference(value, values[0], metric)
        if single or not delta:
            cells += [shown(value, metric), *([(delta, style)] if single else [])]
        else:
            cells.append((beside.format(shown(value, metric), delta), style))
    return cells


def shown(value: Any, metric: Metric) -> str:
    """A number as its metric is written; a dash where it is not defined."""
    if value is None:
        return "–"
    return format(value, metric.form) if math.isfinite(value) else str(float(value))


def difference(value: Any, base: Any, metric: Metric) -> tuple[str, str]:
    """``value`` - ``base`` with its sign, and a style: green where that is better, red where worse."""
    if metric.better is None:
        return "", ""
    if value is None or base is None or not math.isfinite(value - base):
        return "–", ""
    written = format(float(value - base), "+z" + metric.form)  # z: never -0.0000
    if not metric.better or not any(digit in written for digit in "123456789"):
        return written, ""
    return written, "green" if (value - base) * metric.better > 0 else "red"


def times(factor: dict[str, float | None], metric: Metric) -> tuple[str, str]:
    """A factor to the base with its interval, and a style: none where the interval holds 1, so chance would do."""
    value, low, high = factor["value"], factor["low"], factor["high"]
    if low is None or high is None:
        return f"×{value:.2f}", ""
    written = f"×{value:.2f} ({low:.2f}–{high:.2f})"
    if low <= 1 <= high or not metric.better:
        return written, ""
    return written, "green" if (low > 1) == (metric.better > 0) else "red"


def remarks(evaluation: Evaluation) -> list[str]:
    """What stands under the comparison: the answer that needs no model, the untrained head, memory."""
    out = []
    if evaluation.reference:
        values, described = evaluation.reference["metrics"], _described(evaluation)
        # Of one label per row, F1 micro is the accuracy.
        keys = ("accuracy", "f1", "f1_macro", *(["f1_micro"] if "hamming" in values else []), "rmse", "mae")
        metrics = {key: described.get(key, METRICS[key]) for key in keys if key in values}
        numbers = ", ".join(f"{metric.title} {shown(values[key], metric)}" for key, metric in metrics.items())
        out.append(f"For reference: {evaluation.reference['name']}: {numbers}.")
    if evaluation.untrained_head:
        out.append(
            "The base's head is untrained (made up at random): its column shows guessing; compare with the reference."
        )
    if evaluation.speed:
        out.append(
            "Latency: the forward pass of one tokenised row. Rows and tokens per second: in batches, without padding."
        )
    if any("to_base" in speed for speed in evaluation.speed.values()):
        out.append("×: how many times the base's, with its 95 % interval; one that holds 1 shows no difference.")
    if written := evaluation.generation:
        out.append(
            f"Written answers: greedy, to {len(written.answers):,} different prompts, at most {written.max_new_tokens} "
            f"tokens; beside {written.references:,} references with {written.reference_length:.1f} tokens on average. "
            "ROUGE-L: F1, the nearest reference. Exact match: but for case and white space. "
            + " ".join(f"{METRICS[key].title}: {signature}." for key, signature in written.signatures.items())
        )
        out += written.notes
    if evaluation.peak_memory_bytes:
        out.append(f"Peak memory: {evaluation.peak_memory_bytes / 2**20:,.0f} MiB, {evaluation.peak_memory_kind}.")
    return out


def per_class(evaluation: Evaluation, name: str) -> Grid | None:
    """Precision, recall and F1 of every class, the base's F1 beside; worst first where there are many."""
    classes: dict[str, dict[str, Any]] | None = evaluation[name].get("per_class")
    if not classes:
        return None
    base = evaluation[evaluation.base]["per_class"] if evaluation.base else None
    headers = ["class", "support", "precision", "recall", "F1"] + (
        [f"F1 {evaluation.label(BASE)}", "difference"] if base else []
    )
    grid = Grid(f"Per class: {name}", headers, [])
    order = list(classes)
    if len(order) > MATRIX:
        order.sort(key=lambda each: (not classes[each]["support"], classes[each]["f1"]))
        grid.below.append("Sorted by F1, the worst first; classes without support last.")
    form = Metric("")
    for each in order:
        row = classes[each]
        cells: list[Cell] = [
            each,
            str(row["support"]),
            *[shown(row[key], form) for key in ("precision", "recall", "f1")],
        ]
        if base:
            cells += [shown(base[each]["f1"], form), difference(row["f1"], base[each]["f1"], form)]
        grid.rows.append(cells)
    return grid


def confusion(evaluation: Evaluation, name: str) -> Grid | None:
    """The confusion matrix (a line per true class); the most confused pairs where it would be too large."""
    found = evaluation[name].get("confusion")
    if not found:
        return None
    labels, matrix = found["labels"], found["matrix"]
    if len(labels) > MATRIX:
        return _pairs(labels, matrix, name)
    rows: list[list[Cell]] = [[label, *map(str, counts)] for label, counts in zip(labels, matrix, strict=True)]
    return Grid(f"Confusions: {name}", ["true ↓ predicted →", *labels], rows)


def _pairs(labels: list[str], matrix: list[list[int]], name: str) -> Grid:
    size = range(len(labels))
    pairs = sorted(
        ((matrix[i][j], i, j) for i in size for j in size if i != j and matrix[i][j]),
        key=lambda pair: (-pair[0], *pair[1:]),
    )
    rows: list[list[Cell]] = [
        [labels[i], labels[j], str(count), f"{count / sum(matrix[i]):.0%}"] for count, i, j in pairs[:PAIRS]
    ]
    hidden = len(pairs) - len(rows)
    below = (
        [f"{number_of(hidden, 'more pair')}, each with {number_of(pairs[len(rows)][0], 'row')} or fewer."]
        if hidden
        else []
    )
    if not pairs:
        below = ["No row was taken for another class."]
    return Grid(f"Most confused: {name}", ["true", "predicted", "rows", "of the true class"], rows, below)


def answers(evaluation: Evaluation) -> Grid | None:
    """Some of the written answers, side by side with a reference."""
    if evaluation.generation is None:
        return None
    names = ([evaluation.base] if evaluation.base else []) + evaluation.tuned
    every = evaluation.generation.answers
    places = sorted({round(place * (len(every) - 1) / (ANSWERS - 1)) for place in range(ANSWERS)})
    rows: list[list[Cell]] = []
    for answer in (every[place] for place in places):
        first, *more = answer["references"]
        reference = _short(first) + (f" (and {len(more)} more)" if more else "")
        rows.append([_short(answer["prompt"]), reference, *[_short(answer["answers"][name]) for name in names]])
    headers = ["prompt", "reference", *[evaluation.label(name) for name in names]]
    return Grid(f"Written answers, {len(rows)} of {len(every)}", headers, rows, texts=True)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return (text if len(text) <= EXCERPT else text[:EXCERPT] + " …") or "(nothing)"


def headline(evaluation: Evaluation) -> str:
    """One sentence: the metric that counts, the base's, and the difference."""
    key, described = evaluation.best_metric, _described(evaluation)
    metric = described.get(key, Metric(key))
    parts = []
    for name in evaluation.tuned:
        value = evaluation[name].get(key)
        before = evaluation[evaluation.base].get(key) if evaluation.base else None
        gain = f" ({difference(value, before, metric)[0]})" if before is not None else ""
        parts.append(f"{metric.title} {shown(value, metric)} with {name}{gain}")
    base = ""
    if evaluation.base:
        base = f", {shown(evaluation[evaluation.base].get(key), metric)} with {evaluation.label(BASE)}"
    return f"{'; '.join(parts)}{base}, on {number_of(evaluation.rows, 'row')}"


def markdown(evaluation: Evaluation) -> str:
    """All tables in Markdown, and the notes."""
    from lora.evaluation.speed_tables import speed_tables  # which is written with what stands here

    grids = [comparison(evaluation)]
    grids[0].below += evaluation.notes
    for name in evaluation.tuned:
        grids += [grid for grid in (per_class(evaluation, name), confusion(evaluation, name)) if grid]
    if (written := answers(evaluation)) is not None:
        grids.append(written)
    if evaluation.speed_grid is not None:
        grids += speed_tables(evaluation.speed_grid)
    if evaluation.forgetting is not None:
        grids.append(evaluation.forgetting.grid())
    return "\n".join(grid.markdown() for grid in grids)

"""Tables of an evaluation: base beside tuned, per class, and what is confused with what."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora.core.routing import BASE
from lora.evaluation.grid import Cell, Grid, Number, Piece, pointer
from lora.evaluation.lenient import dicts
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
    "precision_micro": Metric("precision micro"),
    "recall_micro": Metric("recall micro"),
    "f1_weighted": Metric("F1 weighted"),
    "mcc": Metric("MCC"),
    "auroc": Metric("AUROC"),
    "average_precision": Metric("average precision"),
    "hamming": Metric("wrong cells (Hamming loss)", better=-1),
    "rmse": Metric("RMSE", ".4g", -1),
    "mae": Metric("MAE", ".4g", -1),
    "mse": Metric("MSE", ".4g", -1),
    "r2": Metric("R²"),
    "pearson": Metric("Pearson's r"),
    "spearman": Metric("Spearman's ρ"),
    "loss": Metric("loss", better=-1),
    "perplexity": Metric("perplexity", ",.2f", -1),
    "bits_per_byte": Metric("bits per byte", better=-1),
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
COUNT, FACTOR, SHARE = Metric("", ",.0f", 0), Metric("", ".2f"), Metric("", ".0%", 0)
MEMORY = Metric("memory, MiB", ",.0f", -1)
MIB = 2**20


def comparison(evaluation: Evaluation) -> Grid:
    """Metrics and speed, the base's column first. Differences: a column beside one adapter, brackets with several."""
    names = ([evaluation.base] if evaluation.base else []) + evaluation.tuned
    single = len(evaluation.tuned) == 1 and evaluation.base is not None
    headers = ["", *[evaluation.label(name) for name in names], *(["difference"] if single else [])]
    grid = Grid(f"Evaluation on {number_of(evaluation.rows, 'row')}", headers, [], [])
    for place in ("metrics", "speed"):
        if getattr(evaluation, place):
            described = described_metrics(evaluation) if place == "metrics" else SPEED
            grid.rows += [_row(evaluation, place, key, metric, names, single) for key, metric in described.items()]
    grid.below = remarks(evaluation)
    return grid


def described_metrics(evaluation: Evaluation) -> dict[str, Metric]:
    """The plain numbers among the metrics, known ones in the order above, others after them."""
    first = evaluation[evaluation.tuned[0]]
    numbers = [key for key, value in first.items() if value is None or isinstance(value, (int, float))]
    out = {key: metric for key, metric in METRICS.items() if key in numbers}
    if "hamming" in out:
        out["accuracy"] = Metric("all labels right")
    return out | {key: Metric(key, ".4g", 0) for key in numbers if key not in out}


def _row(evaluation: Evaluation, place: str, key: str, metric: Metric, names: list[str], single: bool) -> list[Cell]:
    table: dict[str, dict[str, Any]] = getattr(evaluation, place)
    paths = [pointer("evaluation", place, name, key) for name in names]
    values = [table.get(name, {}).get(key) for name in names]
    cells: list[Cell] = [metric.title, number(values[0], metric, paths[0])]
    for name, value, path in zip(names[1:], values[1:], paths[1:], strict=True):
        delta: list[Piece] = []
        before, after = " (", ")"
        if factor := table.get(name, {}).get("to_base", {}).get(key):
            delta = times(factor, metric, pointer("evaluation", place, name, "to_base", key))
            before, after = ", ", ""
        elif names[0] == BASE:
            delta = change(value, values[0], metric, path, paths[0])
        cells.append(number(value, metric, path))
        if single:
            cells.append(delta or "")
        elif delta:
            cells[-1] = [number(value, metric, path), before, *delta, *([after] if after else [])]
    return cells


def shown(value: Any, metric: Metric) -> str:
    """A number as its metric is written; a dash where it is not defined."""
    if value is None:
        return "–"
    if not isinstance(value, (int, float)) and not hasattr(value, "dtype"):
        return str(value)
    return format(value, metric.form) if math.isfinite(value) else str(float(value))


def number(value: Any, metric: Metric, path: str, style: str = "") -> Number:
    """``value``, at ``path`` in the report, as its metric is written."""
    return Number(shown(value, metric), value, path, style=style)


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


def change(value: Any, base: Any, metric: Metric, path: str, minus: str) -> list[Piece]:
    """The same as a cell, which says that ``path`` and ``minus`` lead to the two; nothing where it says nothing."""
    written, style = difference(value, base, metric)
    if not any(digit in written for digit in "0123456789"):
        return [written] if written else []
    return [Number(written, value - base, path, minus, style=style)]


def times(factor: dict[str, float | None], metric: Metric, path: str) -> list[Piece]:
    """A factor to the base with its interval; without a colour where that holds 1, so chance would do."""
    value, low, high = factor["value"], factor["low"], factor["high"]
    style = ""
    if low is not None and high is not None and not low <= 1 <= high and metric.better:
        style = "green" if (low > 1) == (metric.better > 0) else "red"
    written = shown(value, FACTOR)
    out: list[Piece] = [Number(written if value is None else f"×{written}", value, f"{path}/value", style=style)]
    if low is not None and high is not None:
        out += [(" (", style), number(low, FACTOR, f"{path}/low", style), ("–", style)]
        out += [number(high, FACTOR, f"{path}/high", style), (")", style)]
    return out


def remarks(evaluation: Evaluation) -> list[Cell]:
    """What stands under the comparison: the answer that needs no model, the untrained head, memory."""
    out: list[Cell] = []
    if evaluation.reference:
        values, described = evaluation.reference["metrics"], described_metrics(evaluation)
        # Of one label per row, F1 micro is the accuracy.
        keys = ("accuracy", "f1", "f1_macro", *(["f1_micro"] if "hamming" in values else []), "rmse", "mae")
        metrics = {key: described.get(key, METRICS[key]) for key in keys if key in values}
        line: list[Piece] = [f"For reference: {evaluation.reference['name']}: "]
        for place, (key, metric) in enumerate(metrics.items()):
            path = pointer("evaluation", "reference", "metrics", key)
            line += [f"{', ' if place else ''}{metric.title} ", number(values[key], metric, path)]
        out.append([*line, "."])
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
            f"tokens; beside {written.references:,} references with "
            f"{shown(written.reference_length, METRICS['answer_length'])} tokens on average. "
            "ROUGE-L: F1, the nearest reference. Exact match: but for case and white space. "
            + " ".join(f"{METRICS[key].title}: {signature}." for key, signature in written.signatures.items())
        )
        out += written.notes
    if (memory := peak_memory(evaluation)) is not None:
        out.append(["Peak memory: ", memory, f" MiB, {evaluation.peak_memory_kind}."])
    return out


def peak_memory(evaluation: Evaluation) -> Number | None:
    """The largest use of memory, in MiB."""
    if not evaluation.peak_memory_bytes:
        return None
    return mebibytes(evaluation.peak_memory_bytes, pointer("evaluation", "peak_memory_bytes"))


def mebibytes(value: int | None, path: str) -> Number:
    """Bytes as MiB."""
    return Number(shown(None if value is None else value / MIB, MEMORY), value, path, scale=MIB)


def per_class(evaluation: Evaluation, name: str) -> Grid | None:
    """Precision, recall and F1 of every class, the base's F1 beside; worst first where there are many."""
    classes: dict[str, dict[str, Any]] | None = evaluation[name].get("per_class")
    if not classes:
        return None
    base = evaluation[evaluation.base].get("per_class") if evaluation.base else None
    headers = ["class", "support", "precision", "recall", "F1"] + (
        [f"F1 {evaluation.label(BASE)}", "difference"] if base else []
    )
    grid = Grid(f"Per class: {name}", headers, [])
    order = list(classes)
    if len(order) > MATRIX:
        order.sort(key=lambda each: (not classes[each]["support"], classes[each]["f1"]))
        grid.below.append("Sorted by F1, the worst first; classes without support last.")
    form, path = Metric(""), ("evaluation", "metrics")
    for each in order:
        row, own = classes[each], (*path, name, "per_class", each)
        cells: list[Cell] = [each, number(row["support"], COUNT, pointer(*own, "support"))]
        cells += [number(row[key], form, pointer(*own, key)) for key in ("precision", "recall", "f1")]
        if base:
            at, before = pointer(*path, BASE, "per_class", each, "f1"), base.get(each, {}).get("f1")
            cells += [number(before, form, at), change(row["f1"], before, form, pointer(*own, "f1"), at)]
        grid.rows.append(cells)
    return grid


def confusion(evaluation: Evaluation, name: str) -> Grid | None:
    """The confusion matrix (a line per true class); the most confused pairs where it would be too large."""
    found = evaluation[name].get("confusion")
    if not found:
        return None
    labels, matrix = found["labels"], found["matrix"]
    if len(labels) > MATRIX:
        return confused_pairs(labels, matrix, name)
    rows: list[list[Cell]] = [
        [labels[i], *(number(count, COUNT, cell_path(name, i, j)) for j, count in enumerate(counts))]
        for i, counts in enumerate(matrix)
    ]
    return Grid(f"Confusions: {name}", ["true ↓ predicted →", *labels], rows)


def cell_path(name: str, true: int, predicted: int) -> str:
    """Where a cell of the confusion matrix of ``name`` stands."""
    return pointer("evaluation", "metrics", name, "confusion", "matrix", true, predicted)


def confused_pairs(labels: list[str], matrix: list[list[int]], name: str, most: int = PAIRS) -> Grid:
    """The ``most`` confused pairs of classes."""
    size = range(len(labels))
    pairs = sorted(
        ((matrix[i][j], i, j) for i in size for j in size if i != j and matrix[i][j]),
        key=lambda pair: (-pair[0], *pair[1:]),
    )
    rows: list[list[Cell]] = [
        [labels[i], labels[j], number(count, COUNT, cell_path(name, i, j)), shown(count / sum(matrix[i]), SHARE)]
        for count, i, j in pairs[:most]
    ]
    hidden = len(pairs) - len(rows)
    below: list[Cell] = []
    if hidden:
        below = [f"{number_of(hidden, 'more pair')}, each with {number_of(pairs[len(rows)][0], 'row')} or fewer."]
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
        reference = short(first) + (f" (and {len(more)} more)" if more else "")
        rows.append([short(answer["prompt"]), reference, *[short(answer["answers"].get(name) or "") for name in names]])
    headers = ["prompt", "reference", *[evaluation.label(name) for name in names]]
    return Grid(f"Written answers, {len(rows)} of {len(every)}", headers, rows, texts=True)


def short(said: str) -> str:
    said = " ".join(said.split())
    return (said if len(said) <= EXCERPT else said[:EXCERPT] + " …") or "(nothing)"


def tested(evaluation: Evaluation, name: str) -> str:
    """What a test says of the difference to the base in the metric that counts, as ", better"; empty: there is none."""
    its = dicts(dicts(evaluation.comparisons).get(name)).get(evaluation.best_metric, {})
    return f", {its['verdict']}" if isinstance(its.get("verdict"), str) else ""


def headline(evaluation: Evaluation) -> Cell:
    """One sentence: the metric that counts, the base's, and the difference."""
    key, described = evaluation.best_metric, described_metrics(evaluation)
    metric = described.get(key, Metric(key))

    def value(name: str) -> tuple[Any, str]:
        return evaluation[name].get(key), pointer("evaluation", "metrics", name, key)

    out: list[Piece] = []
    for place, name in enumerate(evaluation.tuned):
        own, path = value(name)
        out += [f"{'; ' if place else ''}{metric.title} ", number(own, metric, path), f" with {name}"]
        if evaluation.base and (before := value(evaluation.base))[0] is not None:
            out += [" (", *(change(own, before[0], metric, path, before[1]) or [""]), tested(evaluation, name), ")"]
    if evaluation.base:
        out += [", ", number(value(evaluation.base)[0], metric, value(evaluation.base)[1])]
        out.append(f" with {evaluation.label(BASE)}")
    return [*out, f", on {number_of(evaluation.rows, 'row')}"]


def markdown(evaluation: Evaluation) -> str:
    """All tables in Markdown, and the notes."""
    from lora.evaluation import certainty, details  # which are written with what stands here
    from lora.evaluation.speed_tables import speed_tables

    grids = [comparison(evaluation)]
    grids[0].below += evaluation.notes
    grids += certainty.certainty(evaluation)
    for name in evaluation.tuned:
        grids += [grid for grid in (per_class(evaluation, name), confusion(evaluation, name)) if grid]
    grids += details.grids(evaluation)
    if (written := answers(evaluation)) is not None:
        grids.append(written)
    if evaluation.speed_grid is not None:
        grids += speed_tables(evaluation.speed_grid, pointer("evaluation", "speed_grid"))
    if evaluation.forgetting is not None:
        grids.append(evaluation.forgetting.grid(pointer("evaluation", "forgetting")))
    return "\n".join(grid.markdown() for grid in grids)

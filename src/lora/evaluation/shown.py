"""How a number of a report is written: its metric's title and digits, its interval, and which way is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora.evaluation.grid import Number, Piece

if TYPE_CHECKING:
    from lora.evaluation.result import Evaluation

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


def described_metrics(evaluation: Evaluation) -> dict[str, Metric]:
    """The plain numbers among the metrics, known ones in the order above, others after them."""
    first = evaluation[evaluation.tuned[0]]
    numbers = [key for key, value in first.items() if value is None or isinstance(value, (int, float))]
    out = {key: metric for key, metric in METRICS.items() if key in numbers}
    if "hamming" in out:
        out["accuracy"] = Metric("all labels right")
    return out | {key: Metric(key, ".4g", 0) for key in numbers if key not in out}


def metric_of(evaluation: Evaluation, key: str) -> Metric:
    return described_metrics(evaluation).get(key) or METRICS.get(key) or Metric(key, ".4g", 0)


def systems(evaluation: Evaluation) -> list[str]:
    """The base first, where it stands beside something."""
    return ([evaluation.base] if evaluation.base else []) + evaluation.tuned


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


def with_ends(found: Mapping[str, Any], key: str, metric: Metric, path: str, sign: str = "") -> list[Piece]:
    """``found[key]`` and its interval in brackets, where there is one; ``sign`` "+" writes the sign of all three."""
    form = Metric(metric.title, sign + metric.form, metric.better)
    out: list[Piece] = [number(found.get(key), form, f"{path}/{key}")]
    if (both := ends(found, form, path)) is not None:
        signed = form.form.startswith("+") or both[0].text.startswith("-")  # a dash would look like one more sign
        out += [" (", both[0], " to " if signed else "–", both[1], ")"]
    return out


def ends(found: Mapping[str, Any], metric: Metric, path: str) -> tuple[Number, Number] | None:
    """The ends of the interval of ``found``, an entry at ``path`` in the report; None where it has none."""
    if found.get("low") is None or found.get("high") is None:
        return None
    return number(found["low"], metric, f"{path}/low"), number(found["high"], metric, f"{path}/high")


def mebibytes(value: int | None, path: str) -> Number:
    """Bytes as MiB."""
    return Number(shown(None if value is None else value / MIB, MEMORY), value, path, scale=MIB)


def short(said: str) -> str:
    said = " ".join(said.split())
    return (said if len(said) <= EXCERPT else said[:EXCERPT] + " …") or "(nothing)"

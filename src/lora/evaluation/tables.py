"""The tables of an evaluation: base beside tuned, written answers; and all there are, in their order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora.core.routing import BASE
from lora.evaluation import certainty, classes, details
from lora.evaluation.grid import Cell, Grid, Number, Piece, pointer
from lora.evaluation.lenient import dicts
from lora.evaluation.shown import (
    METRICS,
    SPEED,
    Metric,
    change,
    described_metrics,
    mebibytes,
    number,
    short,
    shown,
    systems,
    times,
)
from lora.evaluation.speed_tables import speed_tables
from lora.plural import number_of

if TYPE_CHECKING:
    from lora.evaluation.result import Evaluation

HALF = ("bfloat16", "float16")
COARSE = ": on one in float32, or in other batches, the last digits may be others"
ANSWERS = 5  # written answers shown, evenly over all of them


def comparison(evaluation: Evaluation) -> Grid:
    """Metrics and speed, the base's column first. Differences: a column beside one adapter, brackets with several."""
    names = systems(evaluation)
    single = len(evaluation.tuned) == 1 and evaluation.base is not None
    headers = ["", *[evaluation.label(name) for name in names], *(["difference"] if single else [])]
    grid = Grid(f"Evaluation on {number_of(evaluation.rows, 'row')}", headers, [], [])
    for place in ("metrics", "speed"):
        if getattr(evaluation, place):
            described = described_metrics(evaluation) if place == "metrics" else SPEED
            grid.rows += [_row(evaluation, place, key, metric, names, single) for key, metric in described.items()]
    grid.below = remarks(evaluation)
    return grid


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
    if evaluation.dtype:
        out.append(f"Computed on a base in {evaluation.dtype}{COARSE if evaluation.dtype in HALF else ''}.")
    return out


def peak_memory(evaluation: Evaluation) -> Number | None:
    """The largest use of memory, in MiB."""
    if not evaluation.peak_memory_bytes:
        return None
    return mebibytes(evaluation.peak_memory_bytes, pointer("evaluation", "peak_memory_bytes"))


def answers(evaluation: Evaluation) -> Grid | None:
    """Some of the written answers, side by side with a reference."""
    if evaluation.generation is None:
        return None
    names, every = systems(evaluation), evaluation.generation.answers
    places = sorted({round(place * (len(every) - 1) / (ANSWERS - 1)) for place in range(ANSWERS)})
    rows: list[list[Cell]] = []
    for answer in (every[place] for place in places):
        first, *more = answer["references"]
        reference = short(first) + (f" (and {len(more)} more)" if more else "")
        rows.append([short(answer["prompt"]), reference, *[short(answer["answers"].get(name) or "") for name in names]])
    headers = ["prompt", "reference", *[evaluation.label(name) for name in names]]
    return Grid(f"Written answers, {len(rows)} of {len(every)}", headers, rows, texts=True)


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
    grids = [comparison(evaluation)]
    grids[0].below += evaluation.notes
    grids += certainty.certainty(evaluation)
    for name in evaluation.tuned:
        grids += classes.grids(evaluation, name)
    grids += details.grids(evaluation)
    if (written := answers(evaluation)) is not None:
        grids.append(written)
    if evaluation.speed_grid is not None:
        grids += speed_tables(evaluation.speed_grid, pointer("evaluation", "speed_grid"))
    if evaluation.forgetting is not None:
        grids.append(evaluation.forgetting.grid(pointer("evaluation", "forgetting")))
    return "\n".join(grid.markdown() for grid in grids)

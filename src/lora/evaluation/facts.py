"""A run beside its evaluation, as tables: the course of training, what went into it, where the adapter comes from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora.evaluation.curves import series, thinned
from lora.evaluation.grid import Cell, Grid, Number, Piece, pointer
from lora.evaluation.lenient import dicts, entries, is_number, mapping
from lora.evaluation.shown import METRICS, Metric, number, shown

EVALUATIONS = 30  # lines of the validation table; a longer history is thinned evenly, its ends and best line kept
FIRST = ("notes", "base", "adapter", "adapters", "data", "training", "timing")  # sections; others, then config
OWN = ("format", "evaluation", "forgetting", "history")  # keys of report.json that are no facts
WHOLE, BROKEN = Metric("", "", 0), Metric("", ".6g", 0)
STEP, LOSS = Metric("step", ".0f", None), METRICS["loss"]


def ordered(facts: Mapping[str, Any]) -> list[str]:
    """Names of the sections in the order in which they are shown."""
    rest = [key for key in facts if key not in (*FIRST, *OWN, "versions", "config")]
    return [key for key in (*FIRST, *rest, "versions", "config") if key in facts]


def course(history: list[dict[str, Any]]) -> dict[str, Any]:
    """What ``report.json`` keeps of ``metrics.jsonl``: all evaluations, the first and last step, and thinned series."""
    steps = [entry for entry in history if "loss" in entry]
    found = series(history)
    return {
        "steps": steps[-1].get("step") if steps else 0,
        "first": steps[0] if steps else None,
        "last": steps[-1] if steps else None,
        "series": {key: thinned(*found[key]) for key in ("loss", "kl", "learning_rate", "grad_norm") if key in found},
        "evaluations": [entry for entry in history if isinstance(entry.get("eval"), dict)],
    }


def evaluations(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The evaluations of a history as `course` keeps it; one without metrics has none, so that places stay."""
    return [{**each, "eval": mapping(each.get("eval"))} for each in entries(told.get("evaluations"))]


def best_evaluation(measured: list[dict[str, Any]]) -> int | None:
    """The place of the best one, as training marked it."""
    return next((place for place in reversed(range(len(measured))) if measured[place].get("best")), None)


def first_and_last(told: Mapping[str, Any]) -> Cell | None:
    """A sentence on the training loss."""
    first, last = (told.get(side) for side in ("first", "last"))
    if not isinstance(first, Mapping) or not isinstance(last, Mapping):
        return None
    out: list[Piece] = ["Training loss "]
    for side, entry, after in (("first", first, ", "), ("last", last, ".")):
        out += [number(entry.get("loss"), LOSS, pointer("history", side, "loss")), " at step "]
        out += [number(entry.get("step"), STEP, pointer("history", side, "step")), after]
    return out


def validation(told: Mapping[str, Any]) -> Grid | None:
    """Metrics on the held-out rows over the steps."""
    measured = evaluations(told)
    keys = dict.fromkeys(key for each in measured for key, value in each["eval"].items() if is_number(value))
    if not keys:
        return None
    keep = {round(place * (len(measured) - 1) / (EVALUATIONS - 1)) for place in range(EVALUATIONS)}
    best = best_evaluation(measured)
    rows: list[list[Cell]] = []
    for place in sorted(keep | ({best} if best is not None else set())):
        entry, path = measured[place], pointer("history", "evaluations", place)
        row: list[Cell] = [number(entry.get("step"), STEP, f"{path}/step")]
        for key in keys:
            metric = METRICS.get(key, Metric(key, ".4g"))
            row.append(number(entry["eval"].get(key), metric, path + pointer("eval", key)))
        rows.append([*row, "best" if place == best else ""])
    headers = ["step", *[METRICS[key].title if key in METRICS else key for key in keys], ""]
    return Grid("Validation", headers, rows)


def lineage(report: Mapping[str, Any]) -> Grid | None:
    """From the base to the adapter: what was started from, what it learned from, and by what it can be told.

    An evaluation has ``adapters``, each with its own; its ``data`` are what was measured on.
    """
    base, data, config, training = (mapping(report.get(key)) for key in ("base", "data", "config", "training"))
    rows: list[list[Cell]] = []
    if base:
        kind = f" ({base['class']})" if base.get("class") else ""
        rows.append(["base", f"{base.get('name') or '–'}{kind}", str(base.get("fingerprint") or "–")])
    for its in entries(report.get("lineage")):
        rows.append([str(its.get("step", "before")), str(its.get("name", "–")), str(its.get("fingerprint") or "–")])
    if config.get("start"):
        rows.append(["begun with", str(config["start"]), "–"])
    for name, its in dicts(report.get("adapters")).items():
        rows += _of_adapter(name, its)
    for its in entries(data.get("sources")):
        split = f", {its['split']}" if its.get("split") else ""
        what = "measured on" if report.get("adapters") else "learned from"
        rows.append([what, f"{its.get('name') or '–'}{split}", str(its.get("sha256") or "–")])
    if training.get("steps") is not None:
        line: list[Piece] = [number(training["steps"], WHOLE, "/training/steps"), " steps"]
        if training.get("best_step") is not None:
            line += [", the best of them ", number(training["best_step"], WHOLE, "/training/best_step")]
        rows.append(["trained for", line, "–"])
    if rows and isinstance(report.get("adapter"), str) and report["adapter"].strip():
        rows.append(["adapter", report["adapter"].strip().splitlines()[0], "–"])
    return Grid("Lineage", ["", "what", "fingerprint or SHA-256"], rows, texts=True) if len(rows) > 1 else None


def _of_adapter(name: str, its: Mapping[str, Any]) -> list[list[Cell]]:
    """An adapter that was measured: what it was begun with, the oldest first, what it learned from, and itself."""
    out: list[list[Cell]] = []
    path = pointer("adapters", name)
    steps = [(f"{path}/begun_with/{place}", own) for place, own in enumerate(entries(its.get("begun_with")))]
    for at, own in [*reversed(steps), (path, its)]:
        said = name if own is its else f"{name}: begun with"
        learned = mapping(own.get("trained_on"))
        line: list[Piece] = [str(own.get("folder") or "–")]
        if is_number(learned.get("rows")):
            line += [", trained on ", number(learned["rows"], WHOLE, f"{at}/trained_on/rows"), " rows of digest "]
            line += [str(learned.get("digest") or "–")]
        out.append([said, line, str(own.get("sha256") or "–")])
    return out


def fact_grids(key: str, value: Mapping[str, Any], path: str) -> list[Grid]:
    """A section of values by name: a table, and one more for each list of entries in it (such as the data's files)."""
    title = key.replace("_", " ").capitalize()
    lists = {name: item for name, item in value.items() if _is_table(item)}
    rows: list[list[Cell]] = [
        [str(name).replace("_", " "), inline(item, path + pointer(name))]
        for name, item in value.items() if name not in lists
    ]  # fmt: skip
    out = [Grid(title, ["", ""], rows, texts=True)] if rows else []
    for name, lines in lists.items():
        columns = list(dict.fromkeys(column for entry in lines for column in entry))
        body: list[list[Cell]] = [
            [inline(entry.get(column), path + pointer(name, place, column)) for column in columns]
            for place, entry in enumerate(lines)
        ]
        headers = [str(column).replace("_", " ") for column in columns]
        out.append(Grid(f"{title}: {str(name).replace('_', ' ')}", headers, body, texts=True))
    return out


def inline(value: Any, path: str) -> Cell:
    """A value in one line; lists and dicts by commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float)):
        return Number(shown(value, WHOLE if isinstance(value, int) else BROKEN), value, path)
    if isinstance(value, Mapping):
        named = [[f"{key}: ", *_flat(inline(item, path + pointer(key)))] for key, item in value.items()]
        return _joined(named, ", ")
    if isinstance(value, list):
        return _joined([_flat(inline(item, path + pointer(place))) for place, item in enumerate(value)], "; ")
    return str(value)


def _joined(parts: list[list[Piece]], mark: str) -> list[Piece]:
    return [piece for place, part in enumerate(parts) for piece in ([mark] if place else []) + part]


def _flat(cell: Cell) -> list[Piece]:
    return cell if isinstance(cell, list) else [cell]


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, Mapping) and item for item in value)

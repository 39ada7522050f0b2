"""A run's report: ``report.md`` to read, ``report.json`` for programs, ``curves.png`` where matplotlib is installed."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import lora
from lora.evaluation.curves import draw
from lora.evaluation.forgetting import Forgetting
from lora.evaluation.grid import Cell, Grid, escape
from lora.evaluation.result import Evaluation, plain
from lora.evaluation.tables import METRICS, Metric, headline, markdown, shown
from lora.io.atomic import saving, write_text

MARKDOWN, JSON, CURVES = "report.md", "report.json", "curves.png"
EVALUATIONS = 30  # lines of the validation table; a longer history is thinned evenly, its ends and best line kept
FIRST = (
    "notes",
    "base",
    "adapter",
    "data",
    "training",
    "timing",
)  # order of the sections; others follow, config comes last


def write_report(
    folder: str | Path,
    facts: dict[str, Any],
    history: list[dict[str, Any]],
    evaluation: Evaluation | None = None,
    forgetting: Forgetting | str | None = None,
) -> Path:
    """Write the report of a run into ``folder``; each file is whole or not there.

    Args:
        facts: sections by name, each a text, a list or a dict of plain values: ``config`` (the resolved configuration),
            ``adapter``, ``data`` (files, hashes, counts), ``base`` (name, fingerprint), ``training`` or ``timing``,
            ``notes``; ``versions`` are added where absent.
        history: lines of ``metrics.jsonl``.
        evaluation: None where nothing was held out.
        forgetting: base and adapter on general text, or why there is none.

    Returns:
        path of ``report.md``.

    Raises:
        SaveError: disk full or no permission; an older report is then still there.
    """
    folder = Path(folder)
    facts = plain({**facts, "versions": facts.get("versions") or versions()})
    picture = draw(history, evaluation.best_metric if evaluation else None)
    if picture is not None:
        _write_bytes(folder / CURVES, picture)
    summary = {
        "format": 1,
        "evaluation": evaluation.to_dict() if evaluation else None,
        "forgetting": plain(forgetting),
        "history": plain(_history(history)),
        **{key: facts[key] for key in _order(facts)},
    }
    # allow_nan=False: the word NaN is no JSON, and most readers refuse the whole file for it.
    write_text(folder / JSON, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(folder / MARKDOWN, _markdown(facts, history, evaluation, forgetting, picture is not None))
    return folder / MARKDOWN


def versions() -> dict[str, str | None]:
    """Versions of what a result depends on; None for what is not installed."""
    out: dict[str, str | None] = {"lora": lora.__version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "tokenizers", "accelerate", "numpy", "scikit-learn", "sacrebleu"):
        try:
            out[name] = version(name)
        except PackageNotFoundError:
            out[name] = None
    return out | {"platform": platform.platform()}


def _history(history: list[dict[str, Any]]) -> dict[str, Any]:
    """All evaluations, and the first and last step; every step is in ``metrics.jsonl``."""
    steps = [entry for entry in history if "loss" in entry]
    return {
        "steps": steps[-1].get("step") if steps else 0,
        "first": steps[0] if steps else None,
        "last": steps[-1] if steps else None,
        "evaluations": [entry for entry in history if isinstance(entry.get("eval"), dict)],
    }


def _order(facts: dict[str, Any]) -> list[str]:
    rest = [key for key in facts if key not in (*FIRST, "versions", "config")]
    return [key for key in (*FIRST, *rest, "versions", "config") if key in facts]


def _markdown(
    facts: dict[str, Any],
    history: list[dict[str, Any]],
    evaluation: Evaluation | None,
    forgetting: Forgetting | str | None,
    picture: bool,
) -> str:
    parts = ["# Report", ""]
    if evaluation is not None:
        parts += [f"**{escape(headline(evaluation))}**", "", markdown(evaluation)]
    else:
        parts += ["Nothing was held out, so there is no evaluation.", ""]
    if isinstance(forgetting, str):
        parts += ["## Forgetting", "", escape(f"Not measured: {forgetting}."), ""]
    elif forgetting is not None:
        parts += [forgetting.grid().markdown()]
    parts += _course(history, picture)
    for key in _order(facts):
        if facts[key] not in (None, "", [], {}):
            parts += [
                f"## {key.replace('_', ' ').capitalize()}",
                "",
                *_section(facts[key], as_yaml=key == "config"),
                "",
            ]
    return "\n".join(parts).rstrip() + "\n"


def _course(history: list[dict[str, Any]], picture: bool) -> list[str]:
    """Validation over the steps, and the curves."""
    told = _history(history)
    out = ["## Course of training", ""] if told["first"] or told["evaluations"] else []
    if told["first"]:
        first, last = told["first"], told["last"]
        loss = METRICS["loss"]
        out += [
            f"Training loss {shown(first['loss'], loss)} at step {first.get('step')}, "
            f"{shown(last['loss'], loss)} at step {last.get('step')}.", "",
        ]  # fmt: skip
    if told["evaluations"]:
        out += [_evaluations(told["evaluations"]), ""]
    return out + (["![loss, metric and learning rate over the steps](curves.png)", ""] if picture else [])


def _evaluations(entries: list[dict[str, Any]]) -> str:
    keys = list(
        dict.fromkeys(
            key for entry in entries for key, value in entry["eval"].items() if isinstance(value, (int, float))
        )
    )
    keep = {round(place * (len(entries) - 1) / (EVALUATIONS - 1)) for place in range(EVALUATIONS)}
    bests = [place for place, entry in enumerate(entries) if entry.get("best")]
    keep |= {bests[-1]} if bests else set()
    rows: list[list[Cell]] = []
    for place in sorted(keep):
        entry = entries[place]
        values = [shown(entry["eval"].get(key), METRICS.get(key, Metric(key, ".4g"))) for key in keys]
        rows.append([str(entry.get("step", "")), *values, "best" if bests and place == bests[-1] else ""])
    grid = Grid("", ["step", *[METRICS[key].title if key in METRICS else key for key in keys], ""], rows)
    return grid.markdown().partition("\n\n")[2].rstrip()


def _section(value: Any, as_yaml: bool = False) -> Iterable[str]:
    """A fact in Markdown: a text as it is, a list as points, a dict as a table."""
    if as_yaml:
        return _fenced(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip(), "yaml")
    if isinstance(value, str):
        return _fenced(value) if "\n" in value else [escape(value)]
    if isinstance(value, list):
        return [f"- {escape(_inline(item))}" for item in value]
    if isinstance(value, dict):
        rows = [f"| {escape(str(key).replace('_', ' '))} | {escape(_inline(item))} |" for key, item in value.items()]
        return ["| | |", "|:--|:--|", *rows]
    return [escape(_inline(value))]


def _inline(value: Any) -> str:
    """A value in one line; lists and dicts by commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_inline(item)}" for key, item in value.items())
    if isinstance(value, list):
        return "; ".join(map(_inline, value))
    return str(value)


def _fenced(value: str, language: str = "") -> list[str]:
    # Longer than any run of backticks inside, or the text would end its own fence.
    fence = "```"
    while fence in value:
        fence += "`"
    return [fence + language, value, fence]


def _write_bytes(path: Path, content: bytes) -> None:
    """As `lora.io.atomic.write_text`, for a picture."""
    stage = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with saving(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            stage.write_bytes(content)
            stage.replace(path)
    finally:
        stage.unlink(missing_ok=True)

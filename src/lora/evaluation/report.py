"""A run's report: ``report.html`` and ``report.md`` to read, ``report.json`` for programs.

``curves.png`` is for ``report.md``, and there where matplotlib is installed.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import lora
from lora.errors import ConfigError
from lora.evaluation.curves import draw
from lora.evaluation.facts import course, fact_grids, first_and_last, inline, lineage, ordered, validation
from lora.evaluation.forgetting_result import Forgetting
from lora.evaluation.grid import escape, pointer, text
from lora.evaluation.html import render
from lora.evaluation.lenient import dicts, mapping, whole
from lora.evaluation.result import Evaluation, plain, rebuilt
from lora.evaluation.saved import HTML, JSON, MARKDOWNS, PAGES, nested
from lora.evaluation.tables import headline, markdown
from lora.io.atomic import saving, write_text

MARKDOWN, CURVES = "report.md", "curves.png"


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
        "history": plain(course(history)),
        **{key: facts[key] for key in ordered(facts)},
    }
    # allow_nan=False: the word NaN is no JSON, and most readers refuse the whole file for it.
    write_text(folder / JSON, json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    write_text(
        folder / MARKDOWN, whole(_markdown(summary, course(history), evaluation, forgetting, picture is not None))
    )
    write_text(folder / HTML, render(summary))
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


def as_file(report: Mapping[str, Any], file: Path, source: str = JSON) -> str:
    """A report, or an evaluation alone, as the text of ``file``: by its ending a page, Markdown, or JSON.

    Args:
        source: the name of the JSON that the report is from, for the page to say.

    Raises:
        ConfigError: Markdown of a report whose parts have shapes that are not known here.
    """
    ending = file.suffix.lower()
    if ending in PAGES:
        return render(report, source)
    if ending not in MARKDOWNS:
        return json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    whole_report = nested(report)
    try:
        found = mapping(whole_report.get("evaluation"))
        evaluation = Evaluation.from_dict(found) if dicts(found.get("metrics")) else None
        told = whole_report.get("forgetting")
        forgetting = told if isinstance(told, str) and told else rebuilt(Forgetting, told)
        return whole(
            _markdown(whole_report, mapping(whole_report.get("history")), evaluation, forgetting, picture=False)
        )
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{file}: the report has a part whose shape is not known here ({type(error).__name__}: {error}), so there "
            "is no Markdown of it; its page leaves such parts out: name a file that ends in .html"
        ) from None


def _markdown(
    summary: Mapping[str, Any],
    told: Mapping[str, Any],
    evaluation: Evaluation | None,
    forgetting: Forgetting | str | None,
    picture: bool,
) -> str:
    parts = ["# Report", ""]
    if evaluation is not None:
        parts += [f"**{escape(text(headline(evaluation)))}**", "", markdown(evaluation)]
    else:
        parts += ["Nothing was held out, so there is no evaluation.", ""]
    if isinstance(forgetting, str):
        parts += ["## Forgetting", "", escape(f"Not measured: {forgetting}."), ""]
    elif forgetting is not None:
        parts += [forgetting.grid().markdown()]
    parts += _course(told, picture)
    if (line := lineage(summary)) is not None:
        parts.append(line.markdown())
    for key in ordered(summary):
        value, title = summary[key], escape(key.replace("_", " ").capitalize())
        if value in (None, "", [], {}):
            continue
        if isinstance(value, dict) and key != "config":
            parts += [grid.markdown() for grid in fact_grids(key, value, pointer(key))]
        else:
            parts += [f"## {title}", "", *_section(value, pointer(key), as_yaml=key == "config"), ""]
    return "\n".join(parts).rstrip() + "\n"


def _course(told: Mapping[str, Any], picture: bool) -> list[str]:
    """Validation over the steps, and the curves."""
    out = ["## Course of training", ""] if told.get("first") or told.get("evaluations") else []
    if (line := first_and_last(told)) is not None:
        out += [escape(text(line)), ""]
    if (grid := validation(told)) is not None:
        out += [grid.markdown().partition("\n\n")[2].rstrip(), ""]
    return out + (["![loss, metric and learning rate over the steps](curves.png)", ""] if picture else [])


def _section(value: Any, path: str, as_yaml: bool = False) -> Iterable[str]:
    """A fact in Markdown: a text as it is, a list as points."""
    if as_yaml:
        return _fenced(yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip(), "yaml")
    if isinstance(value, str) and "\n" in value:
        return _fenced(value)
    if isinstance(value, list):
        return [f"- {escape(text(inline(item, path + pointer(place))))}" for place, item in enumerate(value)]
    return [escape(text(inline(value, path)))]


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

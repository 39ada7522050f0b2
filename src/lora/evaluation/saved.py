"""Reports that were written: read again, whatever version wrote them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora.errors import ConfigError
from lora.evaluation.facts import course
from lora.evaluation.lenient import mapping
from lora.evaluation.result import plain
from lora.io.run import read_history

JSON, HTML = "report.json", "report.html"
COMPARISON = "compare.json"
PAGES, MARKDOWNS = (".html", ".htm"), (".md", ".markdown")  # endings of files
FACTS = ("base", "adapters", "data", "versions", "config")  # what `lora eval` writes beside the evaluation itself


def read_report(place: str | Path) -> tuple[Path, dict[str, Any]]:
    """The report of a run's folder, or of a file: ``report.json``, or an evaluation alone as `lora eval` writes it.

    Or what a comparison came to, ``compare.json``.

    A report that was written before curves were kept in it gets them from the ``metrics.jsonl`` beside it.

    Returns:
        the file, and what it holds.

    Raises:
        ConfigError: no such file, or one that is no report.
    """
    path = Path(place).expanduser()
    file = path
    if path.is_dir():
        file = next((found for name in (JSON, COMPARISON) if (found := path / name).is_file()), path / JSON)
    if not file.is_file():
        raise ConfigError(f"{place}: {_nothing(path)}")
    try:
        # A constant: the words NaN and Infinity, which are no JSON, but other programs write them.
        report = json.loads(file.read_text(encoding="utf-8"), parse_constant=lambda word: None)
    except (ValueError, OSError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON ({error}); name a report.json that lora wrote") from None
    if not isinstance(report, dict) or not {"evaluation", "history", "metrics", "config", "candidates"} & set(report):
        raise ConfigError(f"{file}: is no report: it has neither an evaluation nor a history")
    if "candidates" in report:
        return file, report
    history = mapping(report.get("history"))
    if file.name == JSON and not history.get("series") and (lines := read_history(file.with_name("metrics.jsonl"))):
        report["history"] = {**history, "series": plain(course(lines)["series"])}
    return file, report


def is_alone(report: Mapping[str, Any]) -> bool:
    """Whether this is an evaluation alone, as `lora eval` writes it, and no report that holds one."""
    return "evaluation" not in report and "metrics" in report


def nested(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """A report as it is; an evaluation alone as one: its numbers under ``evaluation``, the facts beside them."""
    if not is_alone(report):
        return report
    facts = {key: report[key] for key in FACTS if key in report}
    return {"evaluation": {key: its for key, its in report.items() if key not in facts}, **facts}


def _nothing(path: Path) -> str:
    """Why there is no report, and what to name."""
    if not path.exists():
        return "is not there; name a run's folder, or a report.json"
    runs = sorted(file.parent.name for file in path.glob(f"*/{JSON}"))
    if runs:
        return f"holds several runs; name one of them: {', '.join(str(path / name) for name in runs[:5])}"
    if (path / "compare.yaml").is_file():
        return f"holds a comparison that is not done; `lora compare --resume {path}` goes on with it"
    return f"holds no {JSON}; a run writes it when it ends (`lora train --resume {path}` goes on with one)"


def page_of(file: Path) -> Path:
    """Where the page of a report goes: beside it."""
    return file.with_name(HTML if file.name == JSON else f"{file.stem}.html")

"""What is wrong with the lines of a file, in one error, and files that hold nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora.data.rows import Row
from lora.errors import DataError
from lora.plural import number_of

SHOWN = 5  # broken lines named in one error; the rest is counted


def raise_broken(path: Path, broken: list[str], remedy: str) -> None:
    if broken:
        more = [f"… and {len(broken) - SHOWN} more"] if len(broken) > SHOWN else []
        raise DataError(
            "\n  ".join([f"{path}: {number_of(len(broken), 'row')} cannot be read:", *broken[:SHOWN], *more])
            + f"\n{remedy}"
        )


def not_empty(path: Path, rows: list[Row], besides: str = "") -> list[Row]:
    if not rows:
        raise DataError(f"{path}: holds nothing{besides}; it needs at least one row")
    return rows


def cut(line: str, width: int = 80) -> str:
    line = line.strip()
    return line if len(line) <= width else line[: width - 1] + "…"


def kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a true/false value", type(None): "null"}
    return names.get(type(value), "a number")

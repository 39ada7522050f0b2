"""What others may have written: what has not the shape that is known counts as absent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeGuard


def mapping(value: Any) -> dict[str, Any]:
    """``value`` if it is a dict, else an empty one."""
    return dict(value) if isinstance(value, Mapping) else {}


def dicts(value: Any) -> dict[str, dict[str, Any]]:
    """The entries of a dict that are dicts."""
    return {key: dict(item) for key, item in mapping(value).items() if isinstance(item, Mapping)}


def entries(value: Any) -> list[dict[str, Any]]:
    """The items of a list; an empty dict stands where one is no dict, so that places stay those of the file."""
    return [mapping(item) for item in value] if isinstance(value, list) else []


def whole(text: str) -> str:
    """``text`` as UTF-8 can hold it: halves of surrogate pairs (JSON can name them) are joined or replaced."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether ``value`` is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)

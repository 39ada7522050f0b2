"""Texts and values on their way into the page."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import quote

from lora.evaluation.lenient import whole

# Control characters would be invisible or, as NUL, change in the reading: they are shown as their pictures.
_PICTURES = {place: 0x2400 + place for place in range(0x20) if chr(place) not in "\t\n"} | {0x7F: 0x2421}
# C1 controls and what no document may hold.
_PICTURES |= {place: 0xFFFD for place in (*range(0x80, 0xA0), 0xFFFE, 0xFFFF)}
_CHANGED = re.compile("[%" + re.escape("".join(map(chr, (*_PICTURES, 0x0D)))) + "\ud800-\udfff]")


def clean(text: str) -> str:
    """``text`` as a page can hold it: control characters as pictures, halves of surrogate pairs replaced."""
    return whole(text).replace("\r\n", "\n").translate(_PICTURES)


def excerpt(text: str, most: int) -> tuple[str, int]:
    """The first ``most`` characters, and how many are left out."""
    return (text, 0) if len(text) <= most else (text[:most], len(text) - most)


EVALUATION = "/evaluation"
_alone: ContextVar[bool] = ContextVar("alone", default=False)


@contextmanager
def evaluation_alone(alone: bool) -> Iterator[None]:
    """For the block pointers lead into a file that has the keys of an evaluation at its top, as `lora eval` writes it;
    with ``alone`` false into a report, which has them under ``evaluation``."""
    token = _alone.set(alone)
    try:
        yield
    finally:
        _alone.reset(token)


def data_path(path: str) -> str:
    """A JSON pointer as an attribute: what `clean` would change is percent-encoded, as in a URI (RFC 6901, 6)."""
    if _alone.get() and path.startswith(f"{EVALUATION}/"):
        path = path.removeprefix(EVALUATION)
    return _CHANGED.sub(lambda found: quote(found[0].encode("utf-8", "surrogatepass")), path)


def data_value(value: Any) -> str:
    """A value as JSON, which is how the test reads it again; ``null`` for what is undefined."""
    return json.dumps(value, default=str)

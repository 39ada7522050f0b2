"""Numbers with their nouns, in messages."""

from __future__ import annotations


def number_of(number: int, one: str, many: str = "") -> str:
    """``1 row``, ``1,000 rows``; ``many``: the plural, where it is not made with an s."""
    return f"{number:,} {noun(number, one, many)}"


def noun(number: int, one: str, many: str = "") -> str:
    """The noun alone, or a verb: ``noun(number, "has", "have")``."""
    return one if number == 1 else many or f"{one}s"

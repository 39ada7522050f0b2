"""What the parts of a data set are called."""

from __future__ import annotations

from lora.errors import DataError

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "dev": "validation",
    "val": "validation", "eval": "validation", "test": "test",
}  # fmt: skip


def split_name(split: str | None) -> str:
    """One of `SPLITS` by any of its names; None: train. Raises DataError."""
    name = SPLIT_NAMES.get((split or "train").lower())
    if name is None:
        raise DataError(f"split {split!r} is unknown; known: {', '.join(SPLIT_NAMES)}")
    return name

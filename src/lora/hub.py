"""The Hugging Face hub, which is not waited for where it does not answer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SECONDS = 5  # for its first answer, which takes well under one


@contextmanager
def offline_unless_reachable(name: str) -> Iterator[bool]:
    """Within the block the libraries do not ask the hub for ``name`` if it does not answer.

    What was loaded before still comes from their cache, and what was not is known in seconds. They would try again for
    half a minute (or, in a network that swallows packets, for many) and write a line about each try. Gives whether it
    answers; a ``name`` that is here is nothing to ask about.
    """
    reachable = Path(name).exists() or is_reachable()
    # Read from the environment when the libraries were imported, which is past.
    libraries = [] if reachable else ["huggingface_hub.constants", "datasets.config"]
    places = [sys.modules[library] for library in libraries if library in sys.modules]
    before = [place.HF_HUB_OFFLINE for place in places]
    for place in places:
        place.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
    try:
        yield reachable
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value  # type: ignore[attr-defined]


def is_reachable() -> bool:
    """Whether the hub answers at all; no where the user has switched it off."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except Exception:  # whatever its HTTP client raises, which is not always the same one
        return False
    return True

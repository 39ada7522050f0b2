"""What a model said, and what there is to say about it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """What was answered, and how.

    Attributes:
        stop: ``end`` (an end token), ``length`` (no room for more) or ``stopped`` (by the user).
        tokens: written.
        prompt: tokens of the prompt.
        kept: of them, those whose keys and values were there from the turn before.
        notes: what a user should know, in full sentences.
    """

    name: str
    text: str
    stop: str
    tokens: int
    seconds: float
    prompt: int
    kept: int = 0
    notes: list[str] = field(default_factory=list)

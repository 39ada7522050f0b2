"""What a check found, for people and for programs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["passed", "note", "failed", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        check: its name, a few words.
        status: a ``note`` is worth a look and stops nobody.
        said: what was seen, with numbers.
        why: why it matters; of what passed it is not told.
        remedy: what to do.
    """

    check: str
    status: Status
    said: str
    why: str = ""
    remedy: str = ""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return " ".join(part for part in (f"{self.check}: {self.said}.", self.why, self.remedy) if part)

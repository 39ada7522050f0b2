"""Rows that say the same: within a split, with different answers, and on both sides of training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lora.checks.findings import Finding, Level, Part, counted, found, located, quote, share, where
from lora.checks.minhash import nearest
from lora.checks.texts import Said, plain
from lora.data.rows import Row

SHOWN = 3  # pairs and contradictions that are quoted
QUOTED = 70  # characters of each text of a pair


@dataclass
class Duplicates:
    """What was found.

    Attributes:
        repeated: rows of each split whose input another row of it has before them.
        leaked: rows of each other split whose input is in training too.
        near: the same of inputs that are nearly those of a training row.
        pairs: of the latter, the most alike: places, texts and Jaccard index.
        threshold: of that index.
    """

    threshold: float
    repeated: dict[str, int] = field(default_factory=dict)
    leaked: dict[str, int] = field(default_factory=dict)
    near: dict[str, int] = field(default_factory=dict)
    pairs: list[dict[str, Any]] = field(default_factory=list)


def look_for_duplicates(
    parts: Sequence[Part], said: Sequence[Sequence[Said]], threshold: float, several: Level
) -> tuple[Duplicates, list[Finding]]:
    """Duplicates of ``parts``, the first of which is training.

    Args:
        said: of each part its rows.
        several: how bad different answers to one input are; ``note``: they may all be good.
    """
    out, findings = Duplicates(threshold), list[Finding]()
    for part, rows in zip(parts, said, strict=True):
        again = _repeated(rows)
        out.repeated[part.name] = len(again)
        if again and part is parts[0]:
            what = f"{_of(again, rows, part)} {'repeats' if len(again) == 1 else 'repeat'} an input"
            why = "they weigh as often as they are there; the first of each is not counted"
            quotes = sorted({quote(rows[index].asked) for index in again[:SHOWN]})
            findings.append(found("repeated", "note", what, why, part.rows, again, quotes))
    findings += _contradictions(parts, said, several)
    for part, rows in zip(parts[1:], said[1:], strict=True):
        findings += _across(out, parts[0], said[0], part, rows)
    return out, findings


def _across(
    out: Duplicates, train: Part, known: Sequence[Said], part: Part, rows: Sequence[Said]
) -> list[Finding]:  # fmt: skip
    """Rows of ``part`` that are in training, the same or nearly so: into ``out``, and as findings."""
    first = {row.key: index for index, row in reversed(list(enumerate(known))) if row.key}
    leaked = [index for index, row in enumerate(rows) if row.key in first]
    fresh = [index for index, row in enumerate(rows) if row.key and row.key not in first]
    distinct = list(first.values())
    near = [
        (distinct[pair.first], fresh[pair.second], pair.jaccard)
        for pair in nearest([known[i].asked for i in distinct], [rows[i].asked for i in fresh], out.threshold)
    ]
    out.leaked[part.name], out.near[part.name] = len(leaked), len(near)
    out.pairs += [
        {
            "split": part.name, "row": located(part.rows, other), "training_row": located(train.rows, one),
            "text": quote(rows[other].asked, 200), "training_text": quote(known[one].asked, 200),
            "jaccard": round(index, 3),
        }
        for one, other, index in near[:SHOWN]
    ]  # fmt: skip
    findings = []
    if leaked:
        what = f"{_of(leaked, rows, part)} {_are(leaked)} in training too"
        why = "they measure what was learned by heart; remove them from training"
        quotes = [quote(rows[index].asked) for index in leaked[:SHOWN]]
        findings.append(found("leak", "mend", what, why, part.rows, leaked, quotes))
    if near:
        what = f"{_of(near, rows, part)} {_are(near)} nearly in training (Jaccard {out.threshold:g} and more)"
        quotes = [
            f"{index:.2f}  {where(part.rows, [other])}: {text}\n      training {where(train.rows, [one])}: {again}"
            for one, other, index in near[:SHOWN]
            for text, again in [_both(rows[other].asked, known[one].asked)]
        ]
        why, at = "metrics of them say little of new inputs", sorted(other for _, other, _ in near)
        findings.append(found("near", "look", what, why, part.rows, at, quotes))
    return findings


def _both(first: str, second: str) -> tuple[str, str]:
    """Quotes of two texts, from shortly before they part."""
    first, second = " ".join(first.split()), " ".join(second.split())
    alike = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), 0)
    start = max(alike - QUOTED // 2, 0)
    lead = "…" if start else ""
    return lead + quote(first[start:], QUOTED), lead + quote(second[start:], QUOTED)


def _of(some: Sequence[Any], rows: Sequence[Any], part: Part) -> str:
    return f"{counted(len(some), 'row')} of {part.name} ({share(len(some), len(rows))})"


def _are(items: Sequence[Any]) -> str:
    return "is" if len(items) == 1 else "are"


def _repeated(rows: Sequence[Said]) -> list[int]:
    """Rows whose input is that of one before them."""
    seen, out = set[str](), list[int]()
    for index, row in enumerate(rows):
        if row.key and row.key in seen:
            out.append(index)
        seen.add(row.key)
    return out


def _contradictions(parts: Sequence[Part], said: Sequence[Sequence[Said]], several: Level) -> list[Finding]:
    """Inputs with more than one answer, and pairs of answers that are preferred either way."""
    rows: list[Row] = [row for part in parts for row in part.rows]
    flat = [row for of_part in said for row in of_part]
    groups: dict[str, list[int]] = {}
    for index, row in enumerate(flat):
        if row.key and row.answers:
            groups.setdefault(row.key, []).append(index)
    differing, turned = list[list[int]](), list[list[int]]()
    for members in groups.values():
        if len(members) < 2:
            continue
        answers = {tuple(map(plain, flat[index].answers)) for index in members}
        if any(len(answer) == 2 and answer[0] != answer[1] and answer[::-1] in answers for answer in answers):
            turned.append(members)
        elif len(answers) > 1:
            differing.append(members)
    out = []
    if turned:
        what = f"{counted(len(turned), 'prompt')} with the same two answers, preferred one way and the other"
        out.append(_told("turned", "mend", what, "they cancel each other; keep one", turned, rows, flat))
    if differing and several == "note":
        what = f"{counted(len(differing), 'input')} with several answers"
        out.append(_told("several", "note", what, "fine where each of them is good", differing, rows, flat))
    elif differing:
        what = f"{counted(len(differing), 'input')} with different labels"
        why = "no model can get both right; correct or remove them"
        out.append(_told("contradiction", several, what, why, differing, rows, flat))
    return out


def _told(
    kind: str, level: Level, what: str, why: str, groups: list[list[int]], rows: Sequence[Row], flat: Sequence[Said]
) -> Finding:  # fmt: skip
    quotes = [
        f"{quote(flat[members[0]].asked, 44)}: "
        + "; ".join(f"{quote(' / '.join(flat[i].answers), 28)} ({where(rows, [i])})" for i in _differing(members, flat))
        for members in groups[:SHOWN]
    ]
    return found(kind, level, what, why, rows, sorted(i for members in groups for i in members), quotes)


def _differing(members: Sequence[int], flat: Sequence[Said]) -> list[int]:
    """Of rows with one input, the first of each of the first three answers."""
    return list({tuple(map(plain, flat[i].answers)): i for i in reversed(members)}.values())[::-1][:3]

"""Rows with their texts, one below the other: the worst errors, and what was written."""

from __future__ import annotations

from lora.evaluation.details import PLAIN, said, worst
from lora.evaluation.grid import Cell, pointer
from lora.evaluation.html.blocks import Answer, Block, Card, Cards, Text
from lora.evaluation.html.colours import place_of
from lora.evaluation.html.texts import excerpt
from lora.evaluation.lenient import entries, mapping
from lora.evaluation.result import Evaluation
from lora.evaluation.shown import COUNT, number, systems

OPEN, FOLDED = 5, 45  # rows shown at once, and behind a line
SHOWN, MORE = 700, 12_000  # characters of a text shown at once, and behind a line


def errors(evaluation: Evaluation) -> list[Block]:
    out: list[Block] = []
    for name in evaluation.tuned:
        found, cards = worst(evaluation, name), []
        for place, its in enumerate(found[: OPEN + FOLDED]):
            path = pointer("evaluation", "errors", name, place)
            head: list[tuple[str, Cell]] = []
            for key, metric in (("row", COUNT), ("score", PLAIN)):
                if its.get(key) is not None:
                    head.append((key, number(its[key], metric, f"{path}/{key}")))
            answers = [
                Answer(key, _text(said(its[key])), at) for key, at in (("expected", 0), ("answer", 1)) if key in its
            ]
            cards.append(Card(head, _text(said(its.get("text"))), answers))
        if cards:
            below = [f"{len(cards)} of {len(found)}; all are in report.json."] if len(found) > len(cards) else []
            out.append(Cards(name, cards[:OPEN], cards[OPEN:], below))
    return out


def answers(evaluation: Evaluation) -> list[Block]:
    written = evaluation.generation
    every = entries(written.answers) if written is not None else []
    names, cards = systems(evaluation), []
    for its in every[: OPEN + FOLDED]:
        references = its.get("references") or []
        shown = [Answer("reference" if len(references) == 1 else f"reference {place}", _text(said(each)), -1)
                for place, each in enumerate(references[:3], start=1)]  # fmt: skip
        given = mapping(its.get("answers"))
        shown += [Answer(evaluation.label(name), _text(said(given[name])), place_of(evaluation, name))
                 for name in names if name in given]  # fmt: skip
        cards.append(Card([], _text(said(its.get("prompt"))), shown))
    below = [f"{len(cards)} of {len(every)}; all are in report.json."] if len(every) > len(cards) else []
    return [Cards("", cards[:OPEN], cards[OPEN:], below)] if cards else []


def _text(whole: str) -> Text:
    first, left = excerpt(whole, SHOWN)
    more, left = excerpt(whole[SHOWN:], MORE) if left else ("", 0)
    return Text(first, more, left)

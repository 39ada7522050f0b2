"""Answers that adapters write to the prompts of a data set, scored against those that the data hold."""

from __future__ import annotations

import hashlib
from array import array
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from typing import TYPE_CHECKING, Any

from lora.core.routing import BASE
from lora.evaluation.generation import complete, ends_of, until
from lora.evaluation.result import Generation
from lora.evaluation.speed import spread
from lora.evaluation.text_metrics import signatures_of, text_figures
from lora.statistics.means import EXACT_MATCH, mean, right_rows, value_rows
from lora.tasks import Encoded, Task
from lora.tasks.figures import Figures, values

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from lora.model.lora import LoRA

STOPPED = replace(EXACT_MATCH, name="answers that end")
LENGTH = mean("tokens of an answer", higher_is_better=None, lowest=0.0)
FEW = 0.5  # of the answers that had room: where fewer end by themselves, something is wrong more often than not


@dataclass
class Question:
    """One prompt, and the answers of all rows that have it.

    Attributes:
        example: as `Task.encode` makes it without labels.
        references: texts that would be right.
        lengths: of each the number of tokens, the end token not counted.
        row: that it comes from, the first of them: answers in one conversation belong together.
    """

    example: dict[str, Any]
    references: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    row: int = 0


def has_answers(task: Task, encoded: Encoded) -> bool:
    """Whether the rows have answers that a model can write."""
    return task.generates and any(map(task.asked, islice(encoded.examples, 100)))


def questions(
    task: Task, encoded: Encoded, tokenizer: Any, ends: Collection[int], wanted: int | None = None
) -> list[Question]:
    """The different prompts of supervised rows, in their order, each with the answers of all its rows.

    Args:
        ends: ids of tokens that end an answer.
        wanted: at most so many prompts, evenly over the rows. Of a conversation, which has several, first one by lot
            (the last is mostly a goodbye), always the same; the others where there is room.
    """
    places: dict[bytes, list[tuple[int, int]]] = {}  # of an example, and an answer in it
    rounds: dict[bytes, int] = {}
    for place, example in enumerate(encoded.examples):
        asked = task.asked(example)
        lots = Random(place).sample(range(len(asked)), len(asked))
        for number, ((question, _), lot) in enumerate(zip(asked, lots, strict=True)):
            # Whole prompts of all turns would take a multiple of the data's room.
            key = hashlib.blake2b(array("q", question["input_ids"]).tobytes(), digest_size=16).digest()
            places.setdefault(key, []).append((place, number))
            rounds[key] = min(lot, rounds.get(key, lot))
    groups, turns = list(places.values()), list(rounds.values())
    chosen = range(len(groups)) if wanted is None else _by_rounds(turns, wanted)
    return [_question(task, encoded, tokenizer, ends, groups[i]) for i in chosen]


def _by_rounds(turns: Sequence[int], wanted: int) -> list[int]:
    """At most ``wanted`` places in ``turns``: those of 0 first, then of 1, …, evenly of the last that have no room."""
    chosen = list[int]()
    for turn in sorted(set(turns)):
        if len(chosen) >= wanted:
            break
        its = [place for place, own in enumerate(turns) if own == turn]
        chosen += [its[i] for i in spread(len(its), wanted - len(chosen))]
    return sorted(chosen)


def _question(
    task: Task, encoded: Encoded, tokenizer: Any, ends: Collection[int], places: list[tuple[int, int]]
) -> Question:
    out: Question | None = None
    for place, number in places:
        asked = task.asked(encoded.examples[place])
        question, answer = asked[number]
        answer = list(until(answer, ends))
        out = out or Question(question, row=encoded.examples[place].get("row", place))
        kept = encoded.answers and len(asked) == 1
        own = encoded.answers[place] if kept else tokenizer.decode(answer, skip_special_tokens=True)
        if own not in out.references:
            out.references.append(own)
            out.lengths.append(len(answer))
    assert out is not None, "a group has a row"
    return out


def write_answers(
    model: LoRA, task: Task, encoded: Encoded, names: Sequence[str], tokenizer: Any, *, wanted: int | None,
    max_new_tokens: int, batch_size: int,
) -> tuple[Generation, dict[str, dict[str, float | None]], dict[str, Figures]]:  # fmt: skip
    """Let each of ``names`` answer the same prompts, greedily.

    Args:
        encoded: supervised rows.
        wanted: how many different prompts, evenly over the data; None: all.

    Returns:
        the answers, and metrics of each name: those of `text_figures`; ``stop_rate``, the share that ended with an end
        token; ``answer_length``, mean tokens. And what they are figures of.
    """
    ends = ends_of(model, tokenizer, task)
    asked = questions(task, encoded, tokenizer, ends, wanted)
    prompts = Encoded([q.example for q in asked], [len(q.example["input_ids"]) for q in asked], [0] * len(asked))
    references = [q.references for q in asked]
    texts, found_in = dict[str, list[str]](), dict[str, Figures]()
    groups = [q.row for q in asked] if len({q.row for q in asked}) < len(asked) else None
    for name in names:
        # One after another, not in one batch: a row that has ended waits there for the longest, and a base that has
        # not learned to stop is that.
        done = complete(model, task, prompts, name, tokenizer, batch_size=batch_size, max_new_tokens=max_new_tokens)
        texts[name] = [its.text for its in done]
        found_in[name] = text_figures(texts[name], references, groups) | {
            "stop_rate": (STOPPED, right_rows([its.stopped for its in done], groups=groups)),
            "answer_length": (LENGTH, value_rows([its.tokens for its in done], groups=groups)),
        }
    metrics = {name: values(its) for name, its in found_in.items()}
    lengths = [length for q in asked for length in q.lengths]
    shown = [tokenizer.decode(q.example["input_ids"], skip_special_tokens=True) for q in asked]
    generation = Generation(
        answers=[
            {"prompt": prompt, "references": q.references, "answers": {name: texts[name][place] for name in names}}
            for place, (prompt, q) in enumerate(zip(shown, asked, strict=True))
        ],
        references=len(lengths),
        reference_length=sum(lengths) / len(lengths),
        max_new_tokens=max_new_tokens,
        signatures=signatures_of(references),
        notes=_notes(asked, metrics, max_new_tokens),
    )
    return generation, metrics, found_in


def _notes(asked: Sequence[Question], metrics: dict[str, dict[str, float | None]], max_new_tokens: int) -> list[str]:
    out = []
    room = sum(min(q.lengths) < max_new_tokens for q in asked)
    if room < len(asked):
        out.append(
            f"Of {len(asked) - room} of {len(asked)} prompts no answer in the data fits into {max_new_tokens} new "
            "tokens, so what was written there is cut; raise max_new_tokens."
        )
    for name, its in metrics.items():
        stopped = its["stop_rate"] or 0.0
        if name != BASE and stopped < FEW * room / len(asked):
            out.append(
                f"Only {stopped:.0%} of the answers of {name} ended with an end token; the others ran on to "
                f"{max_new_tokens} tokens. Was the end token never learned? It is, where training is long enough and "
                "every answer has one behind it."
            )
    return out

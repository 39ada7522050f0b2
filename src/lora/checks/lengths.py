"""How long examples are, what is learned of them, what `max_length` takes away, and what padding adds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lora.checks.remarks import Part, Remark, counted, found, share, where
from lora.data.batches import BatchPlan
from lora.data.rendering import IGNORED
from lora.tasks import Encoded, Task

WHOLE = 10**9  # a max_length that cuts nothing
BINS = 10  # of a histogram, and one for all that is longer
TAIL = 97  # percentile at which the last, open bin begins
PADDED = 100  # batches that are padded to see how much of them is padding
QUANTILES = (0, 5, 25, 50, 75, 95, 99, 100)
MANY = 0.1  # a share of rows left out that is more than an accident


@dataclass
class Spread:
    """How values are spread: quantiles by their percentage, and a histogram of (from, below, how many).

    The last bin holds its upper end too.
    """

    count: int
    total: float
    quantiles: dict[int, float]
    histogram: list[tuple[float, float, int]]


@dataclass
class Lengths:
    """Of the training examples.

    Attributes:
        tokens: of an example.
        learned: tokens of an example that are learned; None: the task learns a label for each text.
        max_length: tokens that are kept.
        longest: tokens of the longest row, uncut.
        notes: what encoding said, of all splits: rows that are left out or cut, and by which rule.
        cut: rows by what ``max_length`` did to them: left out, split into several examples, shortened.
        cut_places: where these are, but for those left out, which are a finding.
        lost: tokens that are not seen.
        examples, batches, steps: of an epoch; steps of optimisation.
        total_steps: of the whole run.
        padding: share of padded batches that is padding; None: it has not been looked at.
        padded: whether batches are padded at all; None: where documents cannot be packed.
    """

    tokens: Spread
    learned: Spread | None
    max_length: int
    longest: int
    notes: list[str] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    cut_places: dict[str, str] = field(default_factory=dict)
    lost: int = 0
    examples: int = 0
    batches: int = 0
    steps: int = 0
    total_steps: int = 0
    padding: float | None = None
    padded: bool | None = True


def spread(values: Sequence[float], whole: bool = True) -> Spread:
    """``values`` summed up; ``whole``: they are whole numbers, and so are the ends of bins."""
    array = np.asarray(values, dtype=float)
    places = np.percentile(array, QUANTILES, method="lower" if whole else "linear")
    quantiles = {key: float(value) for key, value in zip(QUANTILES, places, strict=True)}
    low, high = float(array.min()), float(np.percentile(array, TAIL))
    step = _round_step((high - low) / BINS, whole)
    edges = [np.floor(low / step) * step]
    while edges[-1] <= high:
        edges.append(edges[-1] + step)
    counts = np.histogram(array, bins=edges)[0].tolist()
    beyond = int((array >= edges[-1]).sum())
    # numpy counts the last edge in, and here it begins the open bin.
    counts[-1] -= int((array == edges[-1]).sum())
    bins = [(float(a), float(b), int(n)) for a, b, n in zip(edges, edges[1:], counts, strict=False)]
    if beyond:
        bins.append((float(edges[-1]), float(edges[-1]), beyond))
    bins[-1] = (bins[-1][0], float(array.max()), bins[-1][2])
    return Spread(len(array), float(array.sum()), quantiles, bins)


def _round_step(least: float, whole: bool) -> float:
    """The next of 1, 2, 5, 10, 20, …"""
    if least <= 0:
        return 1.0
    power = 10.0 ** np.floor(np.log10(least))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= least * (1 - 1e-9))
    return max(float(step), 1.0) if whole else float(step)


def learned_tokens(examples: Sequence[dict[str, Any]]) -> list[int] | None:
    """Tokens that are learned of each example; None: they have no labels of tokens."""
    if not isinstance(examples[0].get("labels"), list):
        return None
    return [sum(label != IGNORED for label in example["labels"]) for example in examples]


def look_at_lengths(
    part: Part, task: Task, tokenizer: Any, max_length: int, pad_token_id: int, training: Any
) -> tuple[Lengths, list[Remark]]:
    """Lengths of the training examples, and what is to be said of them. ``training``: a `TrainingConfig`."""
    encoded = part.encoded
    learned = learned_tokens(encoded.examples)
    plan = BatchPlan(encoded.lengths, training.batch_size, training.seed, training.length_grouped, encoded.shares)
    out = Lengths(
        spread(encoded.lengths), None if learned is None else spread(learned), max_length, max(encoded.lengths)
    )
    out.notes = list(encoded.notes)
    out.examples, out.batches = len(encoded), len(plan)
    out.steps = -(-out.batches // training.accumulation)
    out.total_steps = training.max_steps or max(1, round(training.epochs * out.steps))
    out.padded = True if not task.next_token or training.packing is False else None
    out.padding = _padding(plan.epoch(0), encoded.examples, task, pad_token_id)
    findings = _cut(out, part, task, tokenizer)
    if learned is not None and task.generates:
        hardly = sorted({encoded.examples[i].get("row", i) for i, count in enumerate(learned) if count <= 1})
        if hardly:
            what = f"{counted(len(hardly), 'row')} with a single token to learn"
            findings.append(found("hardly", "look", what, "as a rule the end token alone", part.rows, hardly))
    return out, findings


def _padding(batches: list[list[int]], examples: Sequence[dict[str, Any]], task: Task, pad_token_id: int) -> float:
    """The share of padding in an epoch, by its first batch, which is the largest, and up to `PADDED` of the others."""

    def measured(batch: list[int]) -> NDArray[np.float64]:
        mask = task.collate([examples[i] for i in batch], pad_token_id)["attention_mask"]
        return np.array([float(mask.sum()), float(mask.numel())])

    sums = measured(batches[0])
    if len(batches) > 1:
        places = np.unique(np.linspace(1, len(batches) - 1, PADDED).astype(int))
        sums += np.mean([measured(batches[place]) for place in places], axis=0) * (len(batches) - 1)
    return float(1 - sums[0] / sums[1])


def _cut(out: Lengths, part: Part, task: Task, tokenizer: Any) -> list[Remark]:
    """What became of rows that are too long: into ``out``, and as findings."""
    encoded = part.encoded
    kept, number = _by_row(encoded, range(len(part.rows)))
    left_out = [row for row in range(len(part.rows)) if row not in number]
    if not left_out and not encoded.truncated:
        return []
    split = [row for row, count in number.items() if count > 1]
    filled = [row for row, length in kept.items() if number[row] == 1 and length >= out.max_length]
    full = _whole(part, task, tokenizer, [*left_out, *split, *filled])
    shortened = [row for row in filled if kept[row] < full[row]]
    told = len(split) + len(shortened)
    if encoded.truncated not in (told, told + len(left_out)):
        # Some do not fill their length, having been cut between messages, say: all are looked at.
        full = _whole(part, task, tokenizer, range(len(part.rows)))
        shortened = [row for row, count in number.items() if count == 1 and kept[row] < full[row]]
    out.longest = max([out.longest, *full.values()])
    # Neighbouring parts of a row share tokens, so of those nothing is known to be lost.
    out.lost = sum(full[row] - kept.get(row, 0) for row in [*left_out, *shortened])
    for name, rows in (("left out", left_out), ("split", split), ("shortened", shortened)):
        if rows:
            out.cut[name] = len(rows)
            if name != "left out":  # a finding of its own
                out.cut_places[name] = where(part.rows, rows)
    if not left_out:
        return []
    much = len(left_out) > MANY * len(part.rows)
    of = f"{counted(len(left_out), 'row')} ({share(len(left_out), len(part.rows))})"
    what = f"{of} left out, too long for {out.max_length:,} tokens"
    why = f"nothing is learned of them; data.max_length {out.longest} would keep all"
    return [found("left_out", "mend" if much else "look", what, why, part.rows, left_out)]


def _whole(part: Part, task: Task, tokenizer: Any, rows: Sequence[int]) -> dict[int, int]:
    """Tokens of each of the ``rows``, uncut."""
    if not rows:
        return {}
    return _by_row(task.encode([part.rows[row] for row in rows], tokenizer, WHOLE), rows)[0]


def _by_row(encoded: Encoded, rows: Sequence[int]) -> tuple[dict[int, int], dict[int, int]]:
    """Tokens, and examples, of each row. ``rows``: the numbers of those that were encoded."""
    tokens, examples = dict[int, int](), dict[int, int]()
    for place, (example, length) in enumerate(zip(encoded.examples, encoded.lengths, strict=True)):
        row = rows[example.get("row", place)]
        tokens[row], examples[row] = tokens.get(row, 0) + length, examples.get(row, 0) + 1
    return tokens, examples

"""Who is good enough, and at what cost: from figures of candidates to sets of them and to one that is recommended.

Nothing here trains or measures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lora.statistics.compare import BETTER, UNKNOWN, WORSE, Comparison, compare_all
from lora.statistics.estimate import Estimate
from lora.statistics.metric import Metric
from lora.statistics.rows import Rows

COSTS = ("parameters", "memory", "seconds", "stored")  # keys of `Entry.costs`
SHARE_MARGIN, OTHER_MARGIN = 0.01, 0.01


@dataclass
class Entry:
    """A candidate with its figures.

    Attributes:
        name, kind, rank: see `lora.comparison.candidates.Candidate`.
        said: how a sentence calls it, as in "rank 4 on attention".
        quality: of the metric on the test rows.
        costs: trained ``parameters``; ``memory`` (bytes) and ``seconds`` measured alone; ``stored`` bytes. None where
            it is not known.
        against_best, against_full: it against the best and against full fine-tuning, p-values corrected; None: it is
            the one, or that one is not there.
        against_reference: it against what is reached without training; None: it is that, or there is none.
        above_chance: its MCC against that of a constant answer, which is 0 as that of all guesses; None: has none.
            Guesses of all classes have a higher macro average than any constant answer.
    """

    name: str
    kind: str
    rank: int | None
    said: str
    quality: Estimate
    costs: dict[str, float | None] = field(default_factory=dict)
    against_best: Comparison | None = None
    against_full: Comparison | None = None
    against_reference: Comparison | None = None
    above_chance: Comparison | None = None

    @property
    def parameters(self) -> float:
        return self.costs.get("parameters") or 0.0

    @property
    def worth(self) -> float:
        """The value, of a metric of which less is better with its sign turned."""
        return self.quality.value if self.quality.higher_is_better else -self.quality.value

    @property
    def learned(self) -> bool:
        """Whether it is found better than what is reached without training, where there is such."""
        return self.not_learned is None

    @property
    def not_learned(self) -> Comparison | None:
        """The comparison by which that is not shown; None: it has learned, or there is nothing to hold it against."""
        both = (self.against_reference, self.above_chance)
        return next((its for its in both if its is not None and its.verdict != BETTER), None)


@dataclass
class Verdict:
    """What the figures come to; names of candidates.

    Attributes:
        best: the one with the best value on the test rows; None: no value is defined.
        margin: loss of the metric that would not matter.
        enough: those shown to be within the margin of the best and not found worse than it, the best among them;
            fewest trained parameters first.
        undecided: not found worse, and not shown to be within the margin either.
        worse: found worse than the best.
        unknown: without a value, or without a test.
        recommended: the first of ``enough`` that has learned (`Entry.learned`); None: there is none.
        smallest: the one with the smallest rank among the LoRA candidates of these; None: there is none.
        fronts: for each cost, and for ``all`` together, those that no other beats in value and cost.
    """

    best: str | None
    margin: float
    enough: list[str] = field(default_factory=list)
    undecided: list[str] = field(default_factory=list)
    worse: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    recommended: str | None = None
    smallest: str | None = None
    fronts: dict[str, list[str]] = field(default_factory=dict)

    def word(self, name: str) -> str | None:
        """Which set candidate ``name`` is in: ``enough``, ``undecided``, ``worse`` or ``unknown``."""
        sets = {"enough": self.enough, "undecided": self.undecided, "worse": self.worse, "unknown": self.unknown}
        return next((word for word, names in sets.items() if name in names), None)


def default_margin(metric: Metric, values: Sequence[float]) -> float:
    """0.01 of a metric that is a share, 1 % of the best value of any other.

    A fixed loss, chosen before the results: one taken from the noise between runs would call the more candidates good
    enough, the worse the data can tell them apart.
    """
    if metric.highest == 1.0 and metric.lowest >= -1.0:
        return SHARE_MARGIN
    found = [abs(value) for value in values if not math.isnan(value)]
    best = (max if metric.higher_is_better else min)(found, default=0.0)
    return OTHER_MARGIN * best or OTHER_MARGIN


def put_to_test(
    metric: Metric, rows: Mapping[str, Rows], entries: Sequence[Entry], seed: int = 0, reference: str | None = None,
    chance: tuple[Metric, Mapping[str, Rows]] | None = None,
) -> None:  # fmt: skip
    """Put into ``entries`` their comparisons with the best, with full fine-tuning and with the one of ``rows`` that is
    called ``reference``, with that by the metric ``chance`` too; each family corrected by Holm.

    The best is the highest on the test rows, which flatters it. Who is compared with the best seen, corrected for the
    number of candidates, keeps the one that is truly best among those not found worse (Hsu, 1984, Annals of Statistics
    12:1136), so that those found worse are rather too few.
    """
    best = best_of(entries)
    full = next((its.name for its in entries if its.kind == "full"), None)
    families = [(best, "against_best", metric, rows), (full, "against_full", metric, rows)]
    families += [(reference, "against_reference", metric, rows)]
    families += [(reference, "above_chance", *chance)] if chance else []
    for against, place, by, of_all in families:
        if against is None or len(of_all) < 2 or against not in of_all:
            continue
        systems = {its.name: of_all[its.name] for its in entries} | {against: of_all[against]}
        found = compare_all(by, systems, against, seed=seed)
        for entry in entries:
            setattr(entry, place, found.get(entry.name))


def best_of(entries: Sequence[Entry]) -> str | None:
    """The best value; of equal ones that with the fewest parameters."""
    known = [its for its in entries if not math.isnan(its.quality.value)]
    if not known:
        return None
    return max(known, key=lambda its: (its.worth, -its.parameters)).name


def judge(entries: Sequence[Entry], margin: float) -> Verdict:
    """Sort ``entries`` into sets; see `Verdict`."""
    out = Verdict(best_of(entries), margin, fronts=fronts(entries))
    for entry in sorted(entries, key=lambda its: (its.parameters, its.name)):
        its = entry.against_best
        if entry.name == out.best or (its is not None and alike_throughout(its, margin)):
            out.enough.append(entry.name)
        elif its is None or its.verdict == UNKNOWN or math.isnan(entry.quality.value):
            out.unknown.append(entry.name)
        elif its.verdict == WORSE:
            out.worse.append(entry.name)
        else:
            (out.enough if its.not_worse(margin) else out.undecided).append(entry.name)
    by_name = {its.name: its for its in entries}
    learned = [name for name in out.enough if by_name[name].learned]
    out.recommended = learned[0] if learned else None
    ranks = [by_name[name] for name in learned if by_name[name].rank is not None]
    out.smallest = min(ranks, key=lambda its: (its.rank or 0, its.parameters)).name if ranks else None
    return out


def alike_throughout(its: Comparison, margin: float) -> bool:
    """Whether two have the same answers on every row, and the rows are many enough for that to mean something.

    Resamples then all have the difference 0, and no interval. By the rule of three (Hanley and Lippman-Hand, 1983) a
    share of up to 3/n of rows may still differ.
    """
    return its.difference == 0 and math.isnan(its.low) and its.units > 0 and 3 / its.units <= margin


def fronts(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Pareto fronts of value against each cost, and against all that are known of everybody, best value first.

    By the figures as they are: that one lies on the front by a hair says nothing that a test would.
    """
    known = [its for its in entries if not math.isnan(its.quality.value)]
    out = {}
    for cost in COSTS:
        having = [its for its in known if its.costs.get(cost) is not None]
        if having:
            out[cost] = _front(having, [cost])
    shared = [cost for cost in COSTS if known and all(its.costs.get(cost) is not None for its in known)]
    if shared:
        out["all"] = _front(known, shared)
    return out


def _front(entries: Sequence[Entry], costs: Sequence[str]) -> list[str]:
    def figures(entry: Entry) -> list[float]:
        return [entry.worth, *(-float(entry.costs[cost] or 0) for cost in costs)]

    def beaten(entry: Entry) -> bool:
        own = figures(entry)
        return any(
            (other := figures(its)) != own and all(a >= b for a, b in zip(other, own, strict=True)) for its in entries
        )

    return [its.name for its in sorted(entries, key=lambda its: -its.worth) if not beaten(its)]

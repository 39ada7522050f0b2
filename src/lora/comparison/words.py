"""The recommendation, composed of figures and of the words that tests have for them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lora.comparison.reference import CONSTANT, Reference
from lora.comparison.verdict import Entry, Verdict, alike_throughout
from lora.statistics.compare import ALIKE, POWER, Comparison

LEAKED = 0.02  # of the test rows: from here on their having been trained on is said in the paragraph itself
USED_UP, HALF = 0.8, 0.5  # of its rank: an update whose effective rank is above, or that needs no more than that


def recommendation(
    entries: Sequence[Entry], verdict: Verdict, rows: int, *,
    spectra: Mapping[str, dict[str, Any] | None] | None = None, ends: Mapping[str, str] | None = None,
    trained_on: int = 0, reference: Reference | None = None,
) -> str:  # fmt: skip
    """One paragraph that follows from the figures alone.

    Args:
        rows: of the test.
        spectra: by candidate what `lora.comparison.spectrum.summed_up` gives.
        ends: of candidates whose best learning rate is the last one that was tried: ``highest`` or ``lowest``.
        trained_on: test rows whose input is among the training rows.
        reference: what is reached without training.
    """
    by_name, ends = {its.name: its for its in entries}, ends or {}
    leaked = ""
    if trained_on and trained_on >= LEAKED * rows:
        leaked = f"{trained_on:,} of the test rows have an input that is trained on: all figures are too good."
    if verdict.best is None:
        why = next((its.quality.note for its in entries if its.quality.note), "")
        return f"Nothing can be recommended: no candidate has a value on the {rows} test rows. {why}".strip()
    best = by_name[verdict.best]
    if verdict.recommended is None:
        parts = [*_nothing_learned(best, len(entries), rows, reference, ends), best.quality.note, leaked]
        return " ".join(part for part in parts if part)
    chosen = by_name[verdict.recommended]
    parts = [_choice(chosen, best, entries, verdict, rows) + _open_end((chosen.name, best.name), ends) + "."]
    parts += [chosen.quality.note, *_costs(chosen, by_name.get("full"))]
    parts += _against_full(chosen, best, "" if chosen.kind == "full" else _open_end(_names_of(entries, "full"), ends))
    parts += _cheaper(chosen, by_name, verdict, rows)
    parts += _dearer(chosen, best, entries, rows)
    parts += _rank_used(chosen, (spectra or {}).get(chosen.name))
    return " ".join(part for part in [*parts, leaked] if part)


def _names_of(entries: Sequence[Entry], kind: str) -> list[str]:
    return [its.name for its in entries if its.kind == kind]


def _nothing_learned(
    best: Entry, count: int, rows: int, reference: Reference | None, ends: Mapping[str, str]
) -> list[str]:
    """In place of a recommendation, where the best value is not found better than what is reached without training."""
    its = best.not_learned
    assert its is not None and reference is not None, "who is held against nothing is taken to have learned"
    what = "a constant answer" if reference.name == CONSTANT else "the base as it is"
    beside = f"{reference.said}, has" if reference.name == CONSTANT else "that has"
    said = f"the test between them: {its.verdict}{_p(its)}"
    if math.isnan(its.p_corrected):
        said = "whether they differ is not known"
    own = _value(best)
    if its is not best.against_reference:
        own = f"{its.a:.4g}, though {best.quality.metric} is {own}, which guesses may reach"
    return [
        f"Nothing here is shown to be better than {what}: {beside} {its.metric} {its.b:.4g} on {rows:,} test "
        f"rows, and {best.name}, the best of {count} candidates, {own}; {said}{_detectable(its)}"
        f"{_open_end((best.name,), ends)}.",
        "No adapter is recommended: train longer, raise the learning rates, or look at the data (lora data).",
    ]


def _choice(chosen: Entry, best: Entry, entries: Sequence[Entry], verdict: Verdict, rows: int) -> str:
    """A sentence without its full stop."""
    verb = {"base": "Leave the base as it is", "probe": "Train the head alone", "full": "Fine-tune in full"}
    said = verb.get(chosen.kind, f"Take {chosen.said}") + f" ({chosen.name})"
    quality = f"{chosen.quality.metric} {_value(chosen)} on {rows:,} test rows"
    if chosen is best:
        others = len(entries) - 1
        if not others:
            return f"{said}: {quality}; no other could be measured"
        if len(verdict.worse) == others:
            worse = {1: "the other is", 2: "both others are"}.get(others, f"all {others} others are")
            return f"{said}: {quality}, and {worse} found worse"
        less = any(its.parameters < chosen.parameters for its in entries)
        rest = f"none that trains less is shown to be within {verdict.margin:.3g} of it" if less else "none trains less"
        return f"{said}: {quality}, the best value of {len(entries)} candidates; {rest}"
    its = chosen.against_best
    assert its is not None, "only the best has none"
    if alike_throughout(its, verdict.margin):
        return f"{said}: {quality}. It gives the same answers as the best, {best.name}, on every row"
    return (
        f"{said}: {quality}. The best value is that of {best.name} ({_value(best)}), and {chosen.name} is "
        f"{its.not_worse_sentence(float(f'{verdict.margin:.3g}'))}; the test between them: {its.verdict}"
        f"{_p(its)}"
    )


def _value(entry: Entry) -> str:
    its = entry.quality
    if math.isnan(its.low):
        return f"{its.value:.4g} (no interval)"
    return f"{its.value:.4g} ({its.level:.0%} {its.low:.4g} to {its.high:.4g})"


def _p(its: Comparison) -> str:
    said = f" (difference {its.difference:+.3g}, p={its.p_corrected:.2g}"
    return said + (f" corrected for {its.comparisons} comparisons)" if its.comparisons > 1 else ")")


def _costs(chosen: Entry, full: Entry | None) -> list[str]:
    if chosen.kind == "base":
        return []
    said = f"It trains {chosen.parameters:,.0f} parameters"
    shares = "" if full is None or full is chosen else _shares(chosen, full)
    return [f"{said}; beside full fine-tuning that is {shares}." if shares else f"{said}."]


def _shares(entry: Entry, other: Entry) -> str:
    """What ``entry`` takes of what ``other`` does; empty: nothing is known."""
    words = {
        "parameters": "of the trained parameters", "memory": "of the peak memory", "seconds": "of the training time",
        "stored": "of the stored size",
    }  # fmt: skip
    shares = []
    for cost, what in words.items():
        own, its = entry.costs.get(cost), other.costs.get(cost)
        if own is not None and its:
            shares.append(f"{percent(own / its)} {what}")
    return _listed(shares) if shares else ""


def percent(share: float) -> str:
    """A share for a person to read."""
    return f"{100 * share:.0f} %" if share >= 0.095 else f"{100 * share:.2g} %"


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _against_full(chosen: Entry, best: Entry, but: str) -> list[str]:
    """``but``: what may be held against the comparison."""
    its = chosen.against_full
    if its is None or best.kind == "full":
        return []  # said already
    if its.verdict == ALIKE:
        return [f"Between it and full fine-tuning no difference is seen{_p(its)}{_detectable(its)}{but}."]
    if math.isnan(its.p_corrected):
        return ["Whether it differs from full fine-tuning is not known."]
    return [f"It is {its.verdict} than full fine-tuning{_p(its)}{but}."]


def _detectable(its: Comparison) -> str:
    if math.isnan(its.detectable):
        return ""
    return f"; {its.units:,} rows would show one of {its.detectable:.2g} or more in {POWER:.0%} of cases"


def _cheaper(chosen: Entry, by_name: Mapping[str, Entry], verdict: Verdict, rows: int) -> list[str]:
    """What is known of those that train less than the chosen one."""
    out = []
    less = [name for name, its in by_name.items() if its.parameters < chosen.parameters]
    worse = [
        f"{name} ({its.difference:+.3g}, p={its.p_corrected:.2g})"
        for name in less
        if name in verdict.worse and (its := by_name[name].against_best) is not None
    ]
    if worse:
        out.append(f"Found worse than the best: {_listed(worse)}.")
    open_ = [name for name in less if name in verdict.undecided]
    if open_:
        many = len(open_) > 1
        seen = [its.detectable for name in open_ if (its := by_name[name].against_best) and its.detectable > 0]
        said = (
            f"Of {_listed(open_)}, which train{'' if many else 's'} less, these rows cannot tell: "
            f"{'they are' if many else 'it is'} not found worse than the best, but not shown to be within "
            f"{verdict.margin:.3g} of it either."
        )
        if seen:
            least = max(seen)
            needed = math.ceil(rows * (least / verdict.margin) ** 2)
            said += f" They show a difference of {least:.2g} or more in {POWER:.0%} of cases"
            more = f"; for {verdict.margin:.3g} about {_round(needed):,} test rows are needed" if needed > rows else ""
            said += f"{more}."
        nearest = max((by_name[name] for name in open_), key=lambda its: its.worth)
        if shares := _shares(nearest, chosen):
            said += f" {nearest.name} takes {shares} of {chosen.name}."
        out.append(said)
    return out


def _dearer(chosen: Entry, best: Entry, entries: Sequence[Entry], rows: int) -> list[str]:
    """What cannot be known of those that train more than the chosen one, where that is the best itself."""
    open_ = [
        its.against_best for its in entries
        if its.parameters > chosen.parameters and its.against_best and its.against_best.verdict == ALIKE
    ]  # fmt: skip
    if chosen is not best or not open_:
        return []
    seen = [its.detectable for its in open_ if its.detectable > 0]
    if not seen:
        return [f"Those that train more give the same answers on all {rows:,} rows, too few to tell them apart."]
    return [
        f"Whether one that trains more would be better by less than {max(seen):.2g}, {rows:,} test rows cannot tell."
    ]


def _round(count: int) -> int:
    digits = max(0, len(str(count)) - 2)
    return int(round(count, -digits))


def _rank_used(chosen: Entry, found: dict[str, Any] | None) -> list[str]:
    rank = chosen.rank
    if found is None or rank is None or rank == 1 or found["rank"] != rank:  # what DoRA changes is of no rank r
        return []
    effective, needed = found["effective_rank"], found["rank_90"]["largest"]
    said = (
        f"In the median layer its update has an effective rank of {effective:.1f} of {rank}; rank {needed} "
        "keeps 90 % of its energy in every layer"
    )
    if needed <= HALF * rank:
        said += ", so that a smaller rank might do, as far as energy tells"
    elif effective >= USED_UP * rank:
        said += ": the rank is used"
    return [f"{said}."]


def _open_end(names: Sequence[str], ends: Mapping[str, str]) -> str:
    """Of those of ``names`` whose best rate lies at an end of the grid, which was extended once: that it does."""
    out = ""
    for end in ("highest", "lowest"):
        own = [name for name in dict.fromkeys(names) if ends.get(name) == end]
        if len(own) == 1:
            out += f"; {own[0]}'s best rate is the {end} tried, so it may do better"
        elif own:
            out += f"; the best rates of {_listed(own)} are the {end} tried, so they may do better"
    return out

"""Verdict, fronts and the paragraph on made-up results."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lora.comparison.reference import CONSTANT, Reference, turned
from lora.comparison.verdict import Entry, Verdict, default_margin, fronts, judge, put_to_test
from lora.comparison.words import recommendation
from lora.statistics.classes import MCC, averaged, label_rows
from lora.statistics.estimate import estimate
from lora.statistics.means import EXACT_MATCH, LOSS, right_rows, token_rows, value_rows
from lora.statistics.means import mean as mean_of
from lora.statistics.numbers import RMSE
from lora.statistics.rows import pooled

KINDS = {"base": ("base", None, 0), "probe": ("probe", None, 10), "r1": ("lora", 1, 100), "r4": ("lora", 4, 400),
         "r16": ("lora", 16, 1600), "full": ("full", None, 10_000), CONSTANT: ("", None, 0)}  # fmt: skip
SAID = {"r1": "rank 1 on attention", "r4": "rank 4 on attention", "r16": "rank 16 on attention"}


def made_up(wrong: dict[str, set[int]], rows: int) -> list[Entry]:
    """Candidates that have all of ``rows`` right but for those named."""
    systems = {name: right_rows([place not in missed for place in range(rows)]) for name, missed in wrong.items()}
    entries = []
    for name, its in systems.items():
        kind, rank, parameters = KINDS[name]
        costs: dict[str, float | None] = {
            "parameters": parameters, "memory": 1e9 + parameters, "seconds": 10 + parameters, "stored": 4 * parameters
        }  # fmt: skip
        entries.append(Entry(name, kind, rank, SAID.get(name, name), estimate(EXACT_MATCH, its), costs))
    put_to_test(EXACT_MATCH, systems, entries)
    return entries


def told(wrong: dict[str, set[int]], rows: int, **more: Any) -> tuple[Verdict, str]:
    entries = made_up(wrong, rows)
    verdict = judge(entries, 0.01)
    said = recommendation(entries, verdict, rows, **more)
    assert "  " not in said and said[0].isupper() and said.endswith("."), said
    return verdict, said


def some(count: int, start: int = 0) -> set[int]:
    return set(range(start, start + count))


def test_the_smallest_that_is_enough_is_recommended() -> None:
    verdict, said = told({"probe": some(900), "r1": some(402), "r4": some(400), "full": some(401)}, 4000)
    assert (verdict.best, verdict.recommended, verdict.smallest) == ("r4", "r1", "r1")
    assert verdict.enough == ["r1", "r4", "full"] and verdict.worse == ["probe"] and not verdict.undecided
    assert "Take rank 1 on attention (r1): exact match 0.8995 (95% " in said and "on 4,000 test rows" in said
    assert "The best value is that of r4 (0.9 (95%" in said
    assert "r1 is not worse by 0.01 or more (with 95% confidence); the test between them: no difference seen" in said
    assert "1 % of the trained parameters" in said and "of the training time" in said
    assert "Between it and full fine-tuning no difference is seen" in said
    assert "Found worse than the best: probe (-0.125, p=" in said


def test_all_others_are_worse() -> None:
    verdict, said = told({"probe": some(900), "r4": some(700), "full": some(400)}, 4000)
    assert (verdict.best, verdict.recommended, verdict.smallest) == ("full", "full", None)
    assert "Fine-tune in full (full): exact match 0.9" in said and "both others are found worse" in said
    assert "It trains 10,000 parameters." in said and "beside full" not in said
    _, said = told({"r4": some(700), "full": some(400)}, 4000)
    assert "and the other is found worse" in said


def test_the_probe_or_the_base_is_enough() -> None:
    verdict, said = told({"probe": some(400), "r1": some(400), "full": some(402)}, 4000)
    assert verdict.recommended == "probe" and "Train the head alone (probe)" in said
    assert "none trains less" in said and "Whether one that trains more would be better by less than" in said
    verdict, said = told({"base": some(400), "r1": some(900)}, 4000)
    assert verdict.recommended == "base" and "Leave the base as it is (base)" in said and "It trains" not in said
    assert verdict.smallest is None


def test_too_few_rows_to_tell() -> None:
    verdict, said = told({"probe": some(30), "r1": some(12, 40), "r4": some(10), "full": some(9)}, 100)
    assert verdict.recommended == "full" and verdict.undecided == ["r1", "r4"] and verdict.worse == ["probe"]
    assert (
        "Of r1 and r4, which train less, these rows cannot tell: they are not found worse than the best, but not"
        in said
    )
    assert "They show a difference of 0.1" in said and "test rows are needed" in said
    assert "none that trains less is shown to be within 0.01 of it" in said
    assert "r4 takes 4 % of the trained parameters, 100 % of the peak memory, 4.1 % of the training time" in said
    verdict, said = told({"r4": some(10), "full": some(9)}, 100)
    assert "Of r4, which trains less, these rows cannot tell: it is not found worse" in said


def test_the_same_answers_on_every_row() -> None:
    rows = 40
    systems = {name: value_rows([1.0, 0.0] * (rows // 2)) for name in ("r1", "full")}
    score = mean_of("score", lowest=0.0, highest=1.0)

    def entries(rows_of: dict[str, Any]) -> list[Entry]:
        made = [Entry(name, *KINDS[name][:2], name, estimate(score, its), {"parameters": KINDS[name][2]})
                for name, its in rows_of.items()]  # fmt: skip
        put_to_test(score, rows_of, made)
        return made

    few = entries(systems)
    verdict = judge(few, 0.01)
    assert verdict.recommended == "r1" and verdict.undecided == ["full"], "forty rows alike prove no margin of 0.01"
    assert "Those that train more give the same answers on all 40 rows, too few" in recommendation(few, verdict, rows)
    many = entries({name: value_rows([1.0, 0.0] * 500) for name in systems})
    verdict = judge(many, 0.01)
    assert verdict.enough == ["r1", "full"], "of a thousand at most 0.3 % may differ"
    many[0], many[1] = many[1], many[0]
    many[0].quality = replace(many[0].quality, value=0.6)  # full, as if it were ahead
    many[1].against_best = replace(many[0].against_best or many[1].against_best)  # type: ignore[type-var]
    assert "gives the same answers as the best, full, on every row" in recommendation(many, judge(many, 0.01), 1000)


def test_worse_and_better_than_full() -> None:
    _, said = told({"r1": some(400), "full": some(700)}, 4000)
    assert "It is better than full fine-tuning (difference +0.075, p=" in said
    wrong = {"r1": some(30) | some(25, 100), "full": some(30)}
    entries = made_up(wrong, 4000)  # found worse by a test, and yet within the margin
    verdict = judge(entries, 0.01)
    assert verdict.worse == ["r1"] and verdict.recommended == "full"


def test_metrics_of_which_less_is_better() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 1, 500)
    losses = {"r1": 2 + noise, "r4": 1 + noise, "full": 1.001 + noise + generator.normal(0, 0.01, 500)}
    systems = {name: token_rows(values, np.ones(500)) for name, values in losses.items()}
    made = [Entry(name, *KINDS[name][:2], name, estimate(LOSS, its), {"parameters": KINDS[name][2]})
            for name, its in systems.items()]  # fmt: skip
    put_to_test(LOSS, systems, made)
    verdict = judge(made, default_margin(LOSS, [its.quality.value for its in made]))
    assert verdict.margin == pytest.approx(0.01 * made[1].quality.value, rel=0.01)
    assert (verdict.best, verdict.worse, verdict.enough) == ("r4", ["r1"], ["r4", "full"])
    assert verdict.fronts["parameters"] == ["r4", "r1"]


def test_margins() -> None:
    assert default_margin(EXACT_MATCH, [0.3, 0.9]) == 0.01
    assert default_margin(RMSE, [3.0, math.nan, 2.0]) == pytest.approx(0.02)
    assert default_margin(RMSE, [0.0, 1.0]) == 0.01, "a margin is above 0"


def test_nothing_is_known() -> None:
    empty = estimate(EXACT_MATCH, right_rows([]))
    entries = [Entry(name, *KINDS[name][:2], name, empty, {"parameters": 1}) for name in ("r1", "full")]
    verdict = judge(entries, 0.01)
    assert (verdict.best, verdict.recommended, verdict.unknown) == (None, None, ["full", "r1"])
    assert recommendation(entries, verdict, 0) == (
        "Nothing can be recommended: no candidate has a value on the 0 test rows. There are no rows."
    )
    verdict, said = told({"r1": some(3)}, 50)
    assert verdict.recommended == "r1" and "no other could be measured" in said


def test_what_its_updates_say() -> None:
    wrong = {"probe": some(900), "r16": some(400), "full": some(900)}

    def spectrum(effective: float, needed: int) -> dict[str, Any]:
        return {"rank": 16, "effective_rank": effective, "rank_90": {"median": needed, "largest": needed}}

    _, said = told(wrong, 4000, spectra={"r16": spectrum(3.2, 6)})
    assert "effective rank of 3.2 of 16; rank 6 keeps 90 % of its energy in every layer, so that a smaller rank" in said
    _, said = told(wrong, 4000, spectra={"r16": spectrum(14.9, 14)})
    assert "rank 14 keeps 90 % of its energy in every layer: the rank is used." in said
    _, said = told(wrong, 4000, spectra={"r16": spectrum(10, 9)})
    assert "rank 9 keeps 90 % of its energy in every layer." in said
    for found in (None, {**spectrum(7.2, 4), "rank": 384}):  # nothing changed; a formula that is of full rank
        assert "effective rank" not in told(wrong, 4000, spectra={"r16": found})[1]


def test_rates_at_the_end_of_the_grid() -> None:
    """Said in the sentence that compares with who might do better."""
    wrong = {"probe": some(900), "r1": some(402), "r4": some(400), "full": some(700)}
    ends = {"probe": "highest", "r1": "highest", "r4": "highest", "full": "lowest"}
    _, said = told(wrong, 4000, ends=ends)
    sentences = said.split(". ")
    (chosen,) = [its for its in sentences if "The best value is that of r4" in its]
    assert chosen.endswith("; the best rates of r1 and r4 are the highest tried, so they may do better")
    (against_full,) = [its for its in sentences if "better than full fine-tuning" in its]
    assert against_full.endswith("; full's best rate is the lowest tried, so it may do better")
    _, said = told(wrong, 4000, ends={"r1": "lowest", "r4": "highest"})
    assert "; r4's best rate is the highest tried, so it may do better; r1's best rate is the lowest tried, so" in said
    assert "tried" not in told(wrong, 4000, ends={"probe": "highest"})[1], (
        "who is neither best nor chosen nor full may have been tried badly: that is in the table"
    )
    verdict, said = told({"r4": some(700), "full": some(400)}, 4000, ends={"full": "highest"})
    assert verdict.recommended == "full" and "found worse; full's best rate is the highest tried" in said
    assert said.count("highest") == 1
    _, said = told({"r4": some(402), "full": some(401)}, 4000, ends={"full": "highest"})
    assert said.count("full's best rate is the highest tried") == 1 and "none" not in said
    _, said = told({"r1": some(40, 3), "full": some(42)}, 200, ends={"full": "highest"})
    assert "in 80% of cases; full's best rate is the highest tried, so it may do better." in said


def beaten_by(reference: str, wrong: dict[str, set[int]], rows: int, **more: Any) -> tuple[Verdict, str, Reference]:
    """As `told`, where ``reference`` of them is what candidates must be better than."""
    systems = {name: right_rows([place not in missed for place in range(rows)]) for name, missed in wrong.items()}
    entries = [its for its in made_up(wrong, rows) if its.name != CONSTANT]
    put_to_test(EXACT_MATCH, systems, entries, reference=reference)
    found = Reference(reference, "always 'x', the most frequent class", tested=True)
    verdict = judge(entries, 0.01)
    found.beside(entries, verdict.best)
    return verdict, recommendation(entries, verdict, rows, reference=found, **more), found


def test_nothing_is_recommended_where_nothing_has_learned() -> None:
    wrong = {CONSTANT: some(300), "r1": some(299, 60), "r4": some(297, 50), "full": some(310)}
    verdict, said, found = beaten_by(CONSTANT, wrong, 400, ends={"r4": "highest"})
    assert (verdict.best, verdict.recommended, verdict.smallest) == ("r4", None, None)
    assert said.startswith(
        "Nothing here is shown to be better than a constant answer: always 'x', the most frequent class, has exact "
        "match 0.25 on 400 test rows, and r4, the best of 3 candidates, 0.2575 (95% "
    )
    assert "the test between them: no difference seen (difference +0.0075, p=" in said
    assert "corrected for 3 comparisons)" in said and "400 rows would show one of" in said
    assert "r4's best rate is the highest tried, so it may do better." in said
    assert said.endswith("train longer, raise the learning rates, or look at the data (lora data).")
    assert "Take" not in said and "better than full" not in said
    assert found.against_best and found.against_best.difference == pytest.approx(-0.0075)
    assert found.against_full and found.against_full.difference == pytest.approx(0.025)
    assert found.against_best.low == -found_high(found, wrong)


def found_high(found: Reference, wrong: dict[str, set[int]]) -> float:
    turned_back = turned(found.against_best)
    assert turned_back is not None and turned_back.a == pytest.approx(0.2575) and turned_back.b == 0.25
    return turned_back.high


def test_worse_than_a_constant_answer() -> None:
    _, said, _ = beaten_by(CONSTANT, {CONSTANT: some(200), "r1": some(300), "r4": some(320)}, 400)
    assert "the test between them: worse (difference -0.25, p=" in said and said.startswith("Nothing here is shown")


def test_who_has_learned_is_recommended_as_before() -> None:
    wrong = {"probe": some(900), "r1": some(402), "r4": some(400), "full": some(401)}
    verdict, said, found = beaten_by(CONSTANT, {CONSTANT: some(2000), **wrong}, 4000)
    assert (verdict, said) == told(wrong, 4000)
    assert found.against_best and found.against_best.verdict == "worse"


def test_guesses_have_not_learned() -> None:
    """Guesses of seven classes have an F1 macro of a seventh, four times that of a constant answer, and an MCC of 0."""
    draw, classes = np.random.default_rng(0), list(range(7))
    true = draw.integers(0, 7, 2000)
    answers = {CONSTANT: np.zeros(2000, int), "r1": draw.integers(0, 7, 2000), "r4": draw.integers(0, 7, 2000)}
    systems = {name: label_rows(true.tolist(), its.tolist(), labels=classes) for name, its in answers.items()}
    metric = averaged("F1", "macro")
    made = [Entry(name, *KINDS[name][:2], SAID[name], estimate(metric, systems[name]), {"parameters": KINDS[name][2]})
            for name in ("r1", "r4")]  # fmt: skip
    put_to_test(metric, systems, made, reference=CONSTANT, chance=(MCC, systems))
    verdict, found = judge(made, 0.01), Reference(CONSTANT, "always 0", tested=True)
    assert {its.against_reference.verdict for its in made if its.against_reference} == {"better"}
    assert verdict.best and verdict.recommended is None
    said = recommendation(made, verdict, 2000, reference=found)
    assert "always 0, has MCC 0 on 2,000 test rows" in said and "though F1 macro is 0.1" in said
    mostly = np.where(draw.random(2000) < 0.9, true, 0).tolist()
    right = {**systems, "r4": label_rows(true.tolist(), mostly, labels=classes)}
    made[1].quality = estimate(metric, right["r4"])
    put_to_test(metric, right, made, reference=CONSTANT, chance=(MCC, right))
    assert judge(made, 0.01).recommended == "r4"


def test_enough_is_not_enough_where_it_has_not_learned() -> None:
    """With a wide margin someone as good as a constant answer can be near enough to the best."""
    systems = {name: right_rows([place >= missed for place in range(4000)]) for name, missed in
               ((CONSTANT, 2000), ("r1", 2000), ("r4", 1900))}  # fmt: skip
    entries = [its for its in made_up({"r1": some(2000), "r4": some(1900)}, 4000)]
    put_to_test(EXACT_MATCH, systems, entries, reference=CONSTANT)
    entries[0].against_best = replace(entries[0].against_best, p_corrected=0.2)  # type: ignore[type-var]
    verdict = judge(entries, 0.2)
    assert verdict.enough == ["r1", "r4"] and (verdict.recommended, verdict.smallest) == ("r4", "r4")


def test_not_better_than_the_base_as_it_is() -> None:
    verdict, said, found = beaten_by("base", {"base": some(30), "r1": some(28, 1), "r4": some(27, 2)}, 100)
    assert (verdict.best, verdict.recommended) == ("r4", None) and verdict.undecided == ["base", "r1"]
    assert said.startswith("Nothing here is shown to be better than the base as it is: that has exact match 0.7 on 100")
    assert found.against_best and found.against_best.difference == pytest.approx(-0.03)
    verdict, said, _ = beaten_by("base", {"base": some(400), "r1": some(900)}, 4000)
    assert verdict.recommended == "base" and "Leave the base as it is (base)" in said


def test_figures_that_are_too_good_or_of_too_few_rows() -> None:
    wrong = {"r1": some(402), "r4": some(400)}
    assert "80 of the test rows have an input that is trained on: all" in told(wrong, 4000, trained_on=80)[1]
    assert "trained on" not in told(wrong, 4000, trained_on=79)[1]
    assert "Of 5 rows alone the interval says nothing" in told({"r1": some(2), "r4": some(1)}, 5)[1]


def test_runs_together_are_not_more_rows() -> None:
    """Of several runs the rows are drawn, and it is their number that the paragraph speaks of."""
    draw = np.random.default_rng(0)
    answers = {name: [right_rows(draw.random(300) < p) for _ in range(2)] for name, p in (("r1", 0.84), ("full", 0.82))}
    systems = {name: pooled(runs) for name, runs in answers.items()}
    made = [Entry(name, *KINDS[name][:2], name, estimate(EXACT_MATCH, its), {"parameters": KINDS[name][2]})
            for name, its in systems.items()]  # fmt: skip
    put_to_test(EXACT_MATCH, systems, made)
    said = recommendation(made, judge(made, 0.2), 300)
    assert "on 300 test rows" in said and "300 rows would show one of" in said and "600" not in said


def test_fronts() -> None:
    def entry(name: str, value: float, **costs: float | None) -> Entry:
        quality = replace(estimate(EXACT_MATCH, right_rows([1, 0, 1])), value=value)
        return Entry(name, "lora", 1, name, quality, costs)  # type: ignore[arg-type]

    found = fronts([
        entry("a", 0.5, parameters=1, memory=9), entry("b", 0.7, parameters=2, memory=5),
        entry("c", 0.6, parameters=3, memory=1), entry("d", 0.7, parameters=2, memory=None),
        entry("e", math.nan, parameters=0, memory=0),
    ])  # fmt: skip
    assert found == {"parameters": ["b", "d", "a"], "memory": ["b", "c"], "all": ["b", "d", "a"]}
    assert fronts([]) == {}

"""Paired comparisons: no more false findings than they say, and the right words."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import binomtest, false_discovery_control, norm

from lora.errors import ConfigError, DataError
from lora.statistics.classes import ACCURACY, F1_MACRO, label_rows
from lora.statistics.compare import Comparison, compare, compare_all, correct, verdict
from lora.statistics.means import EXACT_MATCH, LOSS, MEAN, mean, right_rows, token_rows, value_rows
from lora.statistics.metric import Metric
from lora.statistics.multiple import corrected
from lora.statistics.paired import bonett_price, exchange_test, mcnemar
from lora.statistics.ranking import AUROC, score_rows
from lora.statistics.rows import Rows

RUNS = 300
Pair = tuple[Rows, Rows]


def labels(rng: np.random.Generator, n: int) -> Pair:
    """Two systems as good as each other, on rows that are hard for both alike."""
    true, right = rng.integers(0, 4, n), 0.4 + 0.5 * rng.random(n)
    said = [np.where(rng.random(n) < right, true, rng.integers(0, 4, n)) for _ in "ab"]
    return label_rows(true, said[0], labels=range(4)), label_rows(true, said[1], labels=range(4))


def values(rng: np.random.Generator, n: int) -> Pair:
    hard = rng.exponential(size=n)
    return value_rows(hard + rng.exponential(size=n)), value_rows(hard + rng.exponential(size=n))


def scores(rng: np.random.Generator, n: int) -> Pair:
    true = rng.integers(0, 2, n)
    seen = true + rng.normal(size=n)
    return score_rows(true, seen + rng.normal(size=n) / 2), score_rows(true, seen + rng.normal(size=n) / 2)


NULL: dict[str, tuple[Metric, Callable[[np.random.Generator, int], Pair], int, str]] = {
    "accuracy, McNemar": (ACCURACY, labels, 100, "auto"),
    "accuracy, bootstrap": (ACCURACY, labels, 100, "bootstrap"),
    "macro F1": (F1_MACRO, labels, 100, "auto"),
    "mean": (MEAN, values, 60, "auto"),
    "mean, exchanged": (MEAN, values, 60, "permutation"),
    "AUROC": (AUROC, scores, 80, "auto"),
}


@pytest.mark.parametrize("case", NULL)
def test_one_in_twenty_findings_is_false(case: str) -> None:
    metric, draw, n, test = NULL[case]
    rng = np.random.default_rng(11)
    p = np.asarray([compare(metric, *draw(rng, n), seed=run, resamples=400, test=test).p_value for run in range(RUNS)])
    # 300 runs at 5 %: a standard error of 1.3 points. A test of half the standard error would find 33 %.
    assert 0.02 <= (p <= 0.05).mean() <= 0.085
    assert 0.4 <= np.median(p) <= 0.6


def test_rates_of_mcnemar_by_enumeration() -> None:
    """Of all outcomes of 60 rows with a share of discordant ones: mid-p stays near 5 %, the exact test far below."""
    found = {
        mid: [sum(math.comb(m, k) * (mcnemar(k, m - k, mid) <= 0.05) for k in range(m + 1)) / 2**m for m in range(61)]
        for mid in (True, False)
    }
    for share, least in ((0.15, 0.03), (0.3, 0.035), (0.6, 0.04)):
        many = [math.comb(60, m) * share**m * (1 - share) ** (60 - m) for m in range(61)]
        rates = {mid: float(np.dot(many, of_many)) for mid, of_many in found.items()}
        assert least < rates[True] < 0.055, share
        assert rates[False] < 0.8 * rates[True], share


def test_mcnemar_is_the_binomial_test() -> None:
    for only_a, only_b in ((0, 0), (0, 5), (3, 9), (7, 7), (1, 0)):
        exact = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
        assert mcnemar(only_a, only_b, mid=False) == pytest.approx(exact)
    assert mcnemar(3, 9) == pytest.approx(binomtest(3, 12).pvalue - math.comb(12, 3) / 2**12)
    assert mcnemar(0, 5) == pytest.approx(1 / 2**5)


def test_mcnemar_of_many_rows_is_quick() -> None:
    begun = time.process_time()
    found = mcnemar(10_000_000, 10_007_000)
    assert time.process_time() - begun < 0.1, "of integers with millions of digits it takes minutes"
    assert found == pytest.approx(2 * norm.cdf(-7000 / math.sqrt(20_007_000)), rel=1e-3)


def test_the_interval_of_two_proportions_covers() -> None:
    rng = np.random.default_rng(0)
    cells = rng.multinomial(60, [0.15, 0.05, 0.8], 4000)
    ends = np.asarray([bonett_price(a, b, 60)[:2] for a, b, _ in cells])
    held = (ends[:, 0] <= 0.1) & (ends[:, 1] >= 0.1)
    assert held.mean() == pytest.approx(0.95, abs=0.02)


def test_a_real_difference_is_found_and_named() -> None:
    rng = np.random.default_rng(0)
    true = rng.integers(0, 5, 400)
    good, bad = (np.where(rng.random(400) < right, true, rng.integers(0, 5, 400)) for right in (0.9, 0.6))
    a, b = label_rows(true, good), label_rows(true, bad)
    for metric in (ACCURACY, F1_MACRO):
        found, other = compare(metric, a, b, resamples=500), compare(metric, b, a, resamples=500)
        assert found.verdict == "better" and other.verdict == "worse"
        assert found.low > 0 and found.difference == pytest.approx(found.a - found.b)
        assert found.low == pytest.approx(-other.high, abs=0.01)
        assert "better, difference +0." in str(found)
        assert json.loads(json.dumps(found.to_dict()))["verdict"] == "better"
    loss = compare(
        LOSS, token_rows(rng.random(90), np.ones(90)), token_rows(1 + rng.random(90), np.ones(90)), resamples=300
    )
    assert loss.difference < 0 and loss.verdict == "better"  # lower is


def test_no_difference_says_what_could_have_been_seen() -> None:
    rng = np.random.default_rng(1)
    found = compare(MEAN, value_rows(rng.normal(size=100)), value_rows(rng.normal(size=100)), resamples=2000)
    assert found.verdict == "no difference seen"
    assert found.detectable == pytest.approx(2.8 * math.sqrt(2) / 10, rel=0.25)
    assert "these rows would show one of 0." in str(found)


def test_a_difference_as_large_as_detectable_is_found_in_four_of_five_cases() -> None:
    rng = np.random.default_rng(2)
    step = 2.8015 / math.sqrt(50)
    found = [
        compare(MEAN, value_rows(rng.normal(step, 1, 50)), value_rows(np.zeros(50)), resamples=400, seed=run)
        for run in range(150)
    ]
    assert np.mean([its.verdict == "no difference seen" for its in found]) == pytest.approx(0.2, abs=0.1)
    assert np.mean([its.detectable for its in found]) == pytest.approx(step, rel=0.05)
    assert np.mean([its.effect for its in found]) == pytest.approx(step, rel=0.1)


def test_not_worse_within_a_margin() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=400)
    alike = compare(mean("score"), value_rows(base + 0.05 * rng.normal(size=400)), value_rows(base), resamples=500)
    assert alike.not_worse(0.02) and "not worse by 0.02 or more" in alike.not_worse_sentence(0.02)
    few = compare(mean("score"), value_rows(rng.normal(size=20)), value_rows(rng.normal(size=20)), resamples=500)
    assert few.verdict == "no difference seen" and not few.not_worse(0.02)  # which is not the same thing
    assert "not shown" in few.not_worse_sentence(0.02)
    lower = compare(LOSS, token_rows(base + 9, np.ones(400)), token_rows(base + 8.9, np.ones(400)), resamples=500)
    assert lower.difference == pytest.approx(0.1) and lower.verdict == "worse"
    with pytest.raises(ConfigError, match="margin"):
        alike.not_worse(0)
    with pytest.raises(ConfigError, match="neither way"):
        compare(MEAN, value_rows(base), value_rows(base), resamples=200).not_worse(0.1)


def test_exchanging_few_rows_goes_through_all() -> None:
    d = np.asarray([0.5, 1.0, -0.2, 0.7, 0.9])
    signs = np.asarray(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    expected = (np.abs(signs @ d) >= abs(d.sum()) - 1e-12).mean()
    assert exchange_test(MEAN, value_rows(d), value_rows(np.zeros(5))) == pytest.approx(expected)
    groups = [place // 5 for place in range(20)]
    ones, zeros = value_rows([1.0] * 20, groups=groups), value_rows([0.0] * 20, groups=groups)
    assert exchange_test(MEAN, ones, zeros) == 2 / 2**4


def test_exchanged_proportions_are_the_exact_mcnemar() -> None:
    a, b = [1] * 11 + [0] * 3 + [1] * 26, [0] * 11 + [1] * 3 + [1] * 26
    found = exchange_test(EXACT_MATCH, right_rows(a), right_rows(b), draws=40_000)
    assert found == pytest.approx(mcnemar(11, 3, mid=False), abs=0.005)


def test_groups_make_less_certain() -> None:
    rng = np.random.default_rng(0)
    groups = np.arange(200) // 10
    shift = 0.35 + rng.normal(size=20)[groups]
    one = compare(MEAN, value_rows(shift), value_rows(np.zeros(200)), resamples=1000)
    whole = compare(
        MEAN, value_rows(shift, groups=groups), value_rows(np.zeros(200), groups=groups), resamples=1000
    )  # fmt: skip
    assert one.p_value < 0.01 < whole.p_value and whole.units == 20 and whole.n == 200


def test_edges() -> None:
    same = label_rows([0, 1] * 10, [0, 1] * 10)
    for metric in (ACCURACY, F1_MACRO):
        found = compare(metric, same, same, resamples=200)
        assert found.difference == 0 and found.verdict == "no difference seen" and found.p_value == 1
    assert compare(MEAN, value_rows([1.0]), value_rows([0.0])).verdict == "not known"
    empty = compare(MEAN, value_rows([]), value_rows([]))
    assert empty.verdict == "not known" and empty.note == "There are no rows."
    one_class = compare(AUROC, score_rows([1, 1], [0.1, 0.2]), score_rows([1, 1], [0.1, 0.3]))
    assert one_class.verdict == "not known" and one_class.note == AUROC.undefined and AUROC.undefined in str(one_class)
    constant = compare(MEAN, value_rows(np.arange(30) + 1.0), value_rows(np.arange(30.0)), resamples=500)
    assert constant.p_value < 0.01 and constant.verdict == "higher" and math.isnan(constant.low)
    assert constant.test == "permutation"
    assert "2 rows alone" in compare(ACCURACY, label_rows([0, 1], [0, 1]), label_rows([0, 1], [1, 1])).note
    for wrong, said in (({"test": "t"}, "test is 't'"), ({"test": "mcnemar"}, "shares of single rows")):
        with pytest.raises(ConfigError, match=said):
            compare(F1_MACRO, same, same, **wrong)
    with pytest.raises(DataError, match="same rows"):
        compare(MEAN, value_rows([1.0]), value_rows([1.0, 2.0]))


def test_corrections() -> None:
    p = np.asarray([0.04, 0.001, 0.03, 0.5, 0.01])
    # Holm by hand: sorted 0.001·5, 0.01·4, 0.03·3, 0.04·2, 0.5, none below the one before it
    assert corrected(p) == pytest.approx([0.09, 0.005, 0.09, 0.5, 0.04])
    assert corrected(p, "bh") == pytest.approx(false_discovery_control(p))
    assert corrected(p, "none") == pytest.approx(p)
    assert corrected([math.nan, 0.02, 0.9])[1:] == pytest.approx([0.04, 0.9])  # what was not tested is not counted
    assert corrected([]).size == 0
    with pytest.raises(ConfigError, match="bonferroni"):
        corrected(p, "bonferroni")
    with pytest.raises(DataError):
        corrected([1.5])


def test_many_systems_are_corrected_for_their_number() -> None:
    rng = np.random.default_rng(3)
    systems = {name: value_rows(rng.normal(size=80)) for name in "abcdefgh"} | {
        "best": value_rows(rng.normal(1, 1, 80))
    }
    found = compare_all(mean("score"), systems, "a", resamples=2000)
    assert set(found) == set(systems) - {"a"} and found["best"].verdict == "better"
    assert all(its.p_corrected >= its.p_value and its.comparisons == 8 for its in found.values())
    assert [its.verdict for name, its in found.items() if name != "best"] == ["no difference seen"] * 7
    assert correct(found, "none")["best"].p_corrected == found["best"].p_value
    with pytest.raises(ConfigError, match="against"):
        compare_all(MEAN, systems, "nobody")
    unknown = compare(MEAN, value_rows([1.0]), value_rows([0.0]))
    assert math.isnan(unknown.p_value)
    some = correct({"best": found["best"], "a": found["b"], "unknown": unknown})
    assert some["best"].comparisons == 2 and some["best"].p_corrected == pytest.approx(2 * found["best"].p_value)


def test_the_seed_draws_the_exchanges() -> None:
    """Also where they stand in for resamples that all say the same."""
    a, b = value_rows(np.arange(15) + 1.0), value_rows(np.arange(15.0))
    p = {compare(MEAN, a, b, resamples=20_000, seed=seed).p_value for seed in range(4)}
    expected = {exchange_test(MEAN, a, b, draws=20_000, seed=seed) for seed in range(4)}
    assert p == expected and len(expected) > 1, "a seed has no part in it"


def test_words_follow_from_the_p_value() -> None:
    assert verdict(0.1, 0.04) == "better" and verdict(0.1, 0.06) == "no difference seen"
    assert verdict(0.1, 0.04, level=0.99) == "no difference seen"
    assert verdict(0.1, 0.04, higher_is_better=False) == "worse"
    assert verdict(-0.1, 0.04, higher_is_better=None) == "lower"
    assert verdict(0.1, math.nan) == "not known"
    fields = set(Comparison.__dataclass_fields__)
    assert {"low", "high", "p_value", "effect", "detectable", "note"} <= fields


def test_what_resamples_cannot_say_names_its_metric() -> None:
    from lora.statistics import compare, estimate
    from lora.statistics.means import MARGIN, value_rows

    same = value_rows([1.0] * 30)
    assert estimate(MARGIN, same).note.startswith("margin: all resamples have the same value")
    assert compare(MARGIN, same, value_rows([0.5] * 30)).note.startswith("margin: all resamples have the same diff")

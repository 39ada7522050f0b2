"""What rows hold, how they are drawn, and what is refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from lora.errors import ConfigError, DataError
from lora.statistics import classes, means, numbers, ranking, texts
from lora.statistics.estimate import estimate
from lora.statistics.means import MEAN, value_rows
from lora.statistics.metric import evaluator
from lora.statistics.resampling import affordable, left_out, resample, weights
from lora.statistics.rows import Rows, aligned, pooled

RNG = np.random.default_rng(0)


def test_equal_rows_share_a_cell() -> None:
    true, said = RNG.integers(0, 77, 3000), RNG.integers(0, 77, 3000)
    said = np.where(RNG.random(3000) < 0.9, true, said)
    rows = classes.label_rows(true, said)
    assert len(rows.cells) == len(set(zip(true.tolist(), said.tolist()))) < 500
    assert rows.counts.sum() == 3000
    assert classes.F1_MACRO.value(rows) == pytest.approx(classes.F1_MACRO.value(rows.take(RNG.permutation(3000))))


@pytest.mark.parametrize("cells", [2, 30, 400])
def test_resamples_are_multinomial(cells: int) -> None:
    # Whichever way they are drawn: units per cell high (counts drawn) or low (units drawn), and all different.
    rows = means.value_rows(np.arange(400) % cells)
    drawn = np.concatenate(list(weights(rows.units, 4000, np.random.default_rng(1))))
    assert (drawn.sum(axis=1) == 400).all()
    share = 1 / cells
    assert drawn.mean(axis=0) == pytest.approx(400 * share, rel=0.15)
    assert drawn.var(axis=0).mean() == pytest.approx(400 * share * (1 - share), rel=0.06)
    assert (drawn == 0).mean() == pytest.approx((1 - share) ** 400, rel=0.03, abs=1e-3)


def test_groups_are_drawn_whole() -> None:
    groups = np.repeat(np.arange(20), 5)
    rows = means.value_rows(groups.astype(float), groups=groups)
    own = evaluator([means.MEAN], rows, rows.units)
    found = resample(own, rows.units, 4000, np.random.default_rng(0))[0]
    alone = means.value_rows(np.arange(20.0))
    expected = resample(evaluator([means.MEAN], alone, alone.units), alone.units, 4000, np.random.default_rng(0))[0]
    assert found.std() == pytest.approx(expected.std(), rel=0.05)


def test_groups_serve_metrics_of_order_too() -> None:
    true, score, groups = RNG.integers(0, 2, 60), RNG.normal(size=60).round(1), RNG.integers(0, 12, 60)
    rows = ranking.score_rows(true, score, groups=groups)
    drawn = np.random.default_rng(3).multinomial(12, np.full(12, 1 / 12), 5).astype(float)
    found = evaluator([ranking.AUROC], rows, rows.units)(drawn)[0]
    numbered = {group: place for place, group in enumerate(dict.fromkeys(groups.tolist()))}
    for counts, value in zip(drawn, found):
        picked = np.repeat(np.arange(60), [int(counts[numbered[group]]) for group in groups.tolist()])
        assert value == pytest.approx(ranking.AUROC.value(ranking.score_rows(true[picked], score[picked])))


@pytest.mark.parametrize("metric", [ranking.AUROC, ranking.AVERAGE_PRECISION])
def test_weights_are_repeated_rows_in_ranking(metric: ranking.OrderMetric) -> None:
    true, score = RNG.integers(0, 2, 40), RNG.integers(0, 9, 40) / 8
    rows = ranking.score_rows(true, score)
    for drawn in np.concatenate(list(weights(rows.units, 6, np.random.default_rng(2)))):
        repeated = np.repeat(rows.cells, drawn.astype(int), axis=0)
        expected = metric.value(ranking.score_rows(repeated[:, 0], repeated[:, 1]))
        assert evaluator([metric], rows, rows.units)(drawn[None])[0, 0] == pytest.approx(expected)


def test_weights_are_repeated_rows_in_spearman() -> None:
    true, said = RNG.integers(0, 6, 40).astype(float), RNG.normal(size=40).round(1)
    rows = numbers.number_rows(true, said)
    drawn = next(weights(rows.units, 3, np.random.default_rng(2)))
    for own in drawn:
        repeated = np.repeat(rows.cells[:, 3:5], own.astype(int), axis=0)
        expected = numbers.SPEARMAN.value(numbers.number_rows(repeated[:, 1], repeated[:, 0]))
        assert evaluator([numbers.SPEARMAN], rows, rows.units)(own[None])[0, 0] == pytest.approx(expected)


def test_many_rows_are_drawn_less_often() -> None:
    assert affordable(means.value_rows(np.arange(20_000.0)).units) == 10_000
    assert affordable(means.value_rows(np.arange(40_000.0)).units) == 5_000
    assert affordable(means.value_rows(np.arange(400_000.0)).units) == 2_000


def test_leaving_out_of_many_speaks_for_all() -> None:
    rows = means.value_rows(RNG.normal(size=5000))
    values, stands_for = left_out(evaluator([means.MEAN], rows, rows.units), rows.units)
    assert values.shape == (1, 1000) and stands_for.sum() == pytest.approx(5000)


def test_pairs_share_their_cells() -> None:
    a, b = RNG.integers(0, 3, 200), RNG.integers(0, 3, 200)
    true = RNG.integers(0, 3, 200)
    one, other = aligned(classes.label_rows(true, a), classes.label_rows(true, b))
    assert (one.which == other.which).all() and len(one.cells) == len(other.cells) <= 27
    assert classes.MCC.value(one) == pytest.approx(classes.MCC.value(classes.label_rows(true, a)))
    assert classes.MCC.value(other) == pytest.approx(classes.MCC.value(classes.label_rows(true, b)))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: classes.label_rows(["a"], ["a", "b"]), "every row needs both"),
        (lambda: classes.label_rows(["a"], ["b"], labels=["a"]), "'b' is none of the 1"),
        (lambda: classes.label_set_rows([[2]], [[1]]), "other values than 0 and 1"),
        (lambda: classes.label_set_rows([[1, 0]], [[1]]), "shape"),
        (lambda: classes.label_set_rows([[1, 0]], [[1, 0]], labels=["a"]), "1 names for 2 columns"),
        (lambda: classes.span_rows([[2]], [[1]], [[2]]), "more right spans"),
        (lambda: means.value_rows([1.0, float("nan")]), "row 1"),
        (lambda: means.right_rows([0.5]), "neither 0 nor 1"),
        (lambda: means.token_rows([1.0], [1, 2]), "one each a row"),
        (lambda: numbers.number_rows([1.0], [float("inf")]), "no finite number"),
        (lambda: numbers.number_rows([1.0, -1e200], [2.0, 3.0]), "row 1 (from 0) holds -1e+200, and its square is bey"),
        (lambda: numbers.number_rows([1.0, 2.0], [1e308, 3.0]), "row 0 (from 0) holds 1e+308, and its square"),
        (lambda: ranking.score_rows([0, 3], [[0.1, 0.9], [0.5, 0.5]]), "outside 0 to 1"),
        (lambda: ranking.score_rows([0, 2], [0.1, 0.9]), "other values"),
        (lambda: texts.bleu_rows(["a"], [[]]), "row 0 (from 0) has no reference"),
        (lambda: texts.chrf_rows(["a"], []), "every row needs both"),
        (lambda: means.value_rows([1.0, 2.0], groups=["x"]), "every row needs one"),
        (lambda: Rows.of("values", [1.0]), "dimensions"),
        (lambda: aligned(means.value_rows([1.0]), means.value_rows([1.0, 2.0])), "same rows"),
        (lambda: aligned(means.value_rows([1.0]), means.value_rows([1.0], groups=["x"])), "unlike groups"),
        (lambda: aligned(classes.label_rows("a", "a"), classes.label_rows("a", "b")), "name the same labels"),
        (lambda: aligned(means.value_rows([1.0]), means.right_rows([1])), "not of one sort"),
    ],
)
def test_bad_rows_are_refused(make: object, said: str) -> None:
    with pytest.raises(DataError) as caught:
        make()  # type: ignore[operator]
    assert said in str(caught.value)


def test_a_metric_of_other_rows_is_refused() -> None:
    with pytest.raises(ConfigError, match="BLEU reads rows of the kind 'BLEU counts', not 'values'"):
        texts.BLEU.value(means.value_rows([1.0]))


def test_no_torch_is_loaded() -> None:
    code = (
        "import sys, pkgutil, importlib, lora.statistics as s\n"
        "[importlib.import_module('lora.statistics.' + m.name) for m in pkgutil.iter_modules(s.__path__)]\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_note_calls_what_is_drawn_by_its_name() -> None:
    rows = value_rows([1.0, 2.0, 4.0])
    assert "Of 3 rows alone" in estimate(MEAN, rows).note
    assert "Of 3 texts alone" in estimate(MEAN, replace(rows, unit="text")).note
    # Of several runs a row is drawn with the answers of all: that is no group of rows to whoever reads it.
    assert "Of 3 rows alone" in estimate(MEAN, pooled([rows, rows])).note
    assert "Of 2 groups alone" in estimate(MEAN, value_rows([1.0, 2.0, 4.0], groups=["a", "a", "b"])).note

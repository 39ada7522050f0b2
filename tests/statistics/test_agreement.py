"""Values of metrics beside those of scikit-learn, sacrebleu, rouge-score and scipy, odd inputs included."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import sacrebleu
import scipy.stats
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from lora.statistics import classes, means, numbers, ranking, texts
from lora.statistics.estimate import estimate
from lora.statistics.metric import Metric
from lora.statistics.rows import Rows

QUICK = settings(max_examples=30, deadline=None, derandomize=True)
SAME = {"rel": 1e-9, "abs": 1e-9, "nan_ok": True}


def value(metric: Metric, rows: Rows) -> float:
    """The value; a warning of ours is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return metric.value(rows)


@pytest.fixture(autouse=True)
def theirs_may_warn() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)


@QUICK
@given(pairs)
def test_labels_are_scikit_learns(found: list[tuple[int, int]]) -> None:
    true, said = map(list, zip(*found))
    rows = classes.label_rows(true, said)
    assert value(classes.ACCURACY, rows) == pytest.approx(sk.accuracy_score(true, said), **SAME)
    assert value(classes.MCC, rows) == pytest.approx(sk.matthews_corrcoef(true, said), **SAME)
    for average in classes.AVERAGES:
        for rate, theirs in (("F1", sk.f1_score), ("precision", sk.precision_score), ("recall", sk.recall_score)):
            expected = theirs(true, said, average=average, zero_division=0)
            assert value(classes.averaged(rate, average), rows) == pytest.approx(expected, **SAME), (rate, average)
    for rate, place in (("precision", 0), ("recall", 1), ("F1", 2)):
        theirs = sk.precision_recall_fscore_support(true, said, labels=rows.labels, zero_division=np.nan)[place]
        own = [value(metric, rows) for metric in classes.by_class(rate, rows)]
        assert own == [pytest.approx(expected, **SAME) for expected in theirs], rate


@QUICK
@given(st.integers(1, 4), st.integers(1, 12), st.randoms(use_true_random=False))
def test_label_sets_are_scikit_learns(labels: int, count: int, random: object) -> None:
    rng = np.random.default_rng(random.getrandbits(32))  # type: ignore[attr-defined]
    true, said = rng.integers(0, 2, (2, count, labels)) * rng.integers(0, 2, (2, 1, labels))
    rows = classes.label_set_rows(true, said)
    occurring = np.flatnonzero(true.any(axis=0) | said.any(axis=0))
    assert value(classes.ACCURACY, rows) == pytest.approx((true == said).all(axis=1).mean(), **SAME)
    assert value(classes.HAMMING, rows) == pytest.approx((true != said).mean(), **SAME)
    for average in classes.AVERAGES:
        if labels > 1 and len(occurring):
            expected = sk.f1_score(true, said, average=average, labels=occurring, zero_division=0)
            if average == "weighted" and not true.any():
                expected = math.nan  # no weight at all; scikit-learn then says 0, which would be a bad mark for nothing
            assert value(classes.averaged("F1", average), rows) == pytest.approx(expected, **SAME)


ranked = st.lists(st.tuples(st.integers(0, 1), st.sampled_from([0.0, 0.1, 0.5, 0.7, 0.9])), min_size=1, max_size=25)


@QUICK
@given(ranked)
def test_ranking_is_scikit_learns(found: list[tuple[int, float]]) -> None:
    true, score = map(list, zip(*found))
    rows = ranking.score_rows(true, score)
    area = sk.roc_auc_score(true, score) if len(set(true)) == 2 else math.nan
    assert value(ranking.AUROC, rows) == pytest.approx(area, **SAME)
    precision = sk.average_precision_score(true, score) if any(true) else math.nan
    assert value(ranking.AVERAGE_PRECISION, rows) == pytest.approx(precision, **SAME)


def test_ranking_of_several_classes_is_the_mean_against_the_rest() -> None:
    rng = np.random.default_rng(0)
    true, score = rng.integers(0, 3, 60), rng.dirichlet([1, 1, 1], 60)
    rows = ranking.score_rows(true, score, labels="abc")
    assert ranking.AUROC.value(rows) == pytest.approx(sk.roc_auc_score(true, score, multi_class="ovr"))
    one = ranking.auroc_of(1, "b").value(rows)
    assert one == pytest.approx(sk.roc_auc_score(true == 1, score[:, 1]))
    sets = rng.integers(0, 2, (60, 3))
    of_sets = ranking.score_rows(sets, score)
    assert ranking.AVERAGE_PRECISION.value(of_sets) == pytest.approx(sk.average_precision_score(sets, score))
    two = ranking.score_rows(np.minimum(true, 1), score)  # the third class has no row: the mean is of the others
    expected = (sk.roc_auc_score(true == 0, score[:, 0]) + sk.roc_auc_score(true > 0, score[:, 1])) / 2
    assert ranking.AUROC.value(two) == pytest.approx(expected)


amounts = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6).map(lambda x: round(x, 3)))


@QUICK
@given(st.lists(st.tuples(amounts, amounts), min_size=1, max_size=25))
def test_numbers_are_the_libraries(found: list[tuple[float, float]]) -> None:
    true, said = map(np.asarray, zip(*found))
    rows = numbers.number_rows(true, said)
    close = {"rel": 1e-7, "abs": 1e-7, "nan_ok": True}
    assert value(numbers.MAE, rows) == pytest.approx(sk.mean_absolute_error(true, said), **close)
    assert value(numbers.MSE, rows) == pytest.approx(sk.mean_squared_error(true, said), **close)
    assert value(numbers.RMSE, rows) == pytest.approx(sk.root_mean_squared_error(true, said), **close)
    varied, both = np.ptp(true) > 0, np.ptp(true) > 0 and np.ptp(said) > 0
    assert value(numbers.R2, rows) == pytest.approx(sk.r2_score(true, said) if varied else math.nan, **close)
    assert value(numbers.PEARSON, rows) == pytest.approx(np.corrcoef(true, said)[0, 1] if both else math.nan, **close)
    spearman = scipy.stats.spearmanr(true, said).statistic if both else math.nan
    assert value(numbers.SPEARMAN, rows) == pytest.approx(spearman, **close)


WORDS = st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "near", "door,", "Ω", ""])
SENTENCE = st.lists(WORDS, max_size=9).map(" ".join)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.tuples(SENTENCE, st.lists(SENTENCE, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_texts_are_sacrebleus(found: list[tuple[str, list[str]]]) -> None:
    answers, references = [row[0] for row in found], [row[1] for row in found]
    most = max(map(len, references))
    turned = [[own[k] if k < len(own) else None for own in references] for k in range(most)]
    expected = sacrebleu.corpus_bleu(answers, turned).score
    assert value(texts.BLEU, texts.bleu_rows(answers, references)) == pytest.approx(expected, **SAME)
    expected = sacrebleu.corpus_chrf(answers, turned).score
    assert value(texts.CHRF, texts.chrf_rows(answers, references)) == pytest.approx(expected, **SAME)


def test_perplexity_and_bits() -> None:
    rows = means.token_rows([3.0, 1.0], [2, 2], [4, 1])
    assert means.LOSS.value(rows) == 1
    assert means.PERPLEXITY.value(rows) == pytest.approx(math.e)
    assert means.BITS_PER_BYTE.value(rows) == pytest.approx(4 / 5 / math.log(2))
    assert math.isnan(value(means.BITS_PER_BYTE, means.token_rows([3.0], [2])))
    assert math.isnan(value(means.PERPLEXITY, means.token_rows([1e6], [1])))


def test_preferences_count_a_tie_as_half() -> None:
    rows = means.preference_rows([1.0, -1.0, 0.0, 2.0])
    assert means.PREFERENCE_ACCURACY.value(rows) == 2.5 / 4
    assert means.MARGIN.value(means.value_rows([1.0, -1.0, 0.0, 2.0])) == 0.5
    assert means.EXACT_MATCH.value(means.right_rows([1, 0, 1, 1])) == 0.75


EMPTY = [
    (classes.F1_MACRO, classes.label_rows([], [])),
    (classes.ACCURACY, classes.label_set_rows(np.empty((0, 3)), np.empty((0, 3)))),
    (ranking.AUROC, ranking.score_rows([], [])),
    (numbers.SPEARMAN, numbers.number_rows([], [])),
    (texts.BLEU, texts.bleu_rows([], [])),
    (texts.CHRF, texts.chrf_rows([], [])),
    (means.PERPLEXITY, means.token_rows([], [])),
    (means.MEAN, means.value_rows([])),
]


@pytest.mark.parametrize(("metric", "rows"), EMPTY)
def test_no_rows_have_no_value_and_a_reason(metric: Metric, rows: Rows) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate(metric, rows)
    assert math.isnan(found.value) and found.note == "There are no rows." and found.to_dict()["value"] is None


UNDEFINED = [
    (ranking.AUROC, ranking.score_rows([1, 1, 1], [0.1, 0.2, 0.3])),
    (ranking.AVERAGE_PRECISION, ranking.score_rows([0, 0], [0.1, 0.2])),
    (numbers.R2, numbers.number_rows([0.1, 0.1, 0.1], [1.0, 2.0, 3.0])),
    (numbers.SPEARMAN, numbers.number_rows([1.0, 2.0], [3.0, 3.0])),
    (classes.F1_MACRO, classes.span_rows([[0]], [[0]], [[0]])),
    (classes.of_class("recall", 1, "b"), classes.label_rows(["a"], ["a"], labels=["a", "b"])),
]


@pytest.mark.parametrize(("metric", "rows"), UNDEFINED)
def test_what_is_undefined_says_why(metric: Metric, rows: Rows) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = estimate(metric, rows, resamples=200)
    assert math.isnan(found.value) and found.note == metric.undefined and metric.undefined
    assert "undefined" in str(found)


def test_ranks_are_of_the_values_as_they_are() -> None:
    """Centred, values far below the mean become one."""
    for said in ([1e-20, 2e-20, 3e-20, 0.5, 1.0], [1e20, 1e-3, 2e-3, 3e-3, 0.5]):
        true = [3.0, 2.0, 1.0, 4.0, 5.0]
        for a, b in ((true, said), (said, true)):
            expected = scipy.stats.spearmanr(a, b).statistic
            assert numbers.SPEARMAN.value(numbers.number_rows(a, b)) == pytest.approx(expected)

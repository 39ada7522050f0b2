"""Metrics that are one sum over another: means of rows, exact match, preferences, perplexity, bits per byte."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lora.errors import DataError
from lora.statistics.metric import SumMetric, ratio
from lora.statistics.rows import Array, Rows

VALUES, RIGHT, TOKENS = "values", "right", "tokens"


def value_rows(values: ArrayLike, *, groups: Sequence[Hashable] | None = None) -> Rows:
    """Rows with one number (n,) each: ROUGE of an answer, a loss, a length, a margin."""
    own = _column(VALUES, values)
    return Rows.of(VALUES, np.column_stack([own, np.ones_like(own)]), groups=groups)


def right_rows(right: ArrayLike, *, groups: Sequence[Hashable] | None = None) -> Rows:
    """Rows that are right or not, (n,) of 0 and 1: exact match, or any judgement with two outcomes."""
    own = _column(RIGHT, right)
    if not np.isin(own, (0, 1)).all():
        raise DataError("right: a row is neither 0 nor 1; numbers in between are rows of `value_rows`")
    return Rows.of(RIGHT, np.column_stack([own, np.ones_like(own)]), groups=groups)


def preference_rows(margins: ArrayLike, *, groups: Sequence[Hashable] | None = None) -> Rows:
    """Pairs of answers with the margin (n,) by which the chosen one is ahead, as right or not, a tie counting half.

    The statistics are those of `value_rows`; `PREFERENCE_ACCURACY` is a mean of them, since ties make it no proportion.
    """
    own = _column(VALUES, margins)
    return value_rows(np.where(own == 0, 0.5, own > 0), groups=groups)


def token_rows(
    nll: ArrayLike, tokens: ArrayLike, size: ArrayLike | None = None, *, groups: Sequence[Hashable] | None = None
) -> Rows:
    """Rows with their summed negative log-likelihood in nats, their number of tokens, and of bytes (UTF-8), each (n,).

    Without ``size`` bits per byte are undefined.
    """
    losses, counts = _column(TOKENS, nll), _column(TOKENS, tokens)
    sizes = np.zeros_like(losses) if size is None else _column(TOKENS, size)
    if not len(losses) == len(counts) == len(sizes):
        raise DataError(
            f"{TOKENS}: {len(losses)} sums, {len(counts)} token counts and {len(sizes)} sizes; one each a row"
        )
    if (counts < 0).any() or (sizes < 0).any():
        raise DataError(f"{TOKENS}: a number of tokens or bytes is negative")
    return Rows.of(TOKENS, np.column_stack([losses, counts, sizes]), groups=groups)


def _column(kind: str, values: ArrayLike) -> Array:
    own = np.asarray(values, dtype=np.float64)
    if own.ndim != 1:
        raise DataError(f"{kind}: has {own.ndim} dimensions; it needs one number a row")
    return own


def _mean(sums: Array) -> Array:
    return ratio(sums[..., 0], sums[..., 1])


def mean(
    name: str, higher_is_better: bool | None = True, lowest: float = -math.inf, highest: float = math.inf
) -> SumMetric:
    """The mean of rows under a name of its own, such as ROUGE-L, which is a mean of F1s of answers."""
    return SumMetric(
        name, (VALUES, RIGHT), "There are no rows.", higher_is_better, lowest, highest, function=_mean
    )  # fmt: skip


MEAN = mean("mean", higher_is_better=None)
ROUGE_L = mean("ROUGE-L", lowest=0.0, highest=1.0)
"""Lin (2004), as the mean of rows that rouge-score gives."""
MARGIN = mean("margin")
PREFERENCE_ACCURACY = mean("preference accuracy", lowest=0.0, highest=1.0)
EXACT_MATCH = SumMetric("exact match", (RIGHT,), "There are no rows.", proportion=True, function=_mean)
LOSS = SumMetric(
    "loss", (TOKENS,), "There are no tokens.", False, 0.0, math.inf, function=_mean
)  # fmt: skip
"""Mean negative log-likelihood of a token, in nats."""
PERPLEXITY = SumMetric(
    "perplexity", (TOKENS,), "There are no tokens, or the loss is beyond what a float holds.", False, 1.0, math.inf,
    function=lambda sums: np.exp(_mean(sums)),
)  # fmt: skip
"""exp of the loss: Jelinek et al. (1977)."""
BITS_PER_BYTE = SumMetric(
    "bits per byte", (TOKENS,), "The rows have no bytes.", False, 0.0, math.inf,
    function=lambda sums: ratio(sums[..., 0], sums[..., 2]) / math.log(2),
)  # fmt: skip
"""Gao et al. (The Pile, 2020), section 3.1: comparable between tokenizers, as perplexity of a token is not."""

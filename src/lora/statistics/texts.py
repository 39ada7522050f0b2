"""BLEU and chrF of a corpus, from counts that sacrebleu takes of each row.

Shapes: n row, k statistic; ... any leading axes.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from lora.errors import DataError
from lora.statistics.metric import SumMetric
from lora.statistics.rows import Array, Rows

ORDERS = 4  # of BLEU's n-grams: sacrebleu's default
_BETA = 2  # of chrF: sacrebleu's default
_BLEU, _CHRF = "BLEU counts", "chrF counts"


def bleu_rows(
    answers: Sequence[str], references: Sequence[Sequence[str]], *, groups: Sequence[Hashable] | None = None
) -> Rows:
    """Counts for BLEU of each answer, with sacrebleu's defaults (13a tokens, case kept, exponential smoothing).

    Args:
        references: of each answer one text or several.
    """
    from sacrebleu.metrics import BLEU

    return _counted(_BLEU, BLEU(), answers, references, groups)


def chrf_rows(
    answers: Sequence[str], references: Sequence[Sequence[str]], *, groups: Sequence[Hashable] | None = None
) -> Rows:
    """Counts for chrF of each answer, with sacrebleu's defaults (6 characters, no words, beta 2)."""
    from sacrebleu.metrics import CHRF

    return _counted(_CHRF, CHRF(), answers, references, groups)


def _counted(
    kind: str, metric: Any, answers: Sequence[str], references: Sequence[Sequence[str]],
    groups: Sequence[Hashable] | None,
) -> Rows:  # fmt: skip
    if len(answers) != len(references):
        raise DataError(f"{kind}: {len(answers)} answers beside references of {len(references)}; every row needs both")
    if not all(references):
        raise DataError(f"{kind}: row {[bool(own) for own in references].index(False)} (from 0) has no reference")
    if not answers:
        width = 2 + 2 * ORDERS if kind == _BLEU else 18
        return Rows.of(kind, np.empty((0, width)), groups=groups)
    most = max(map(len, references))
    turned = [[own[place] if place < len(own) else None for own in references] for place in range(most)]
    # Not public, but what sacrebleu's own resampling uses; a test holds the result against its public scores.
    return Rows.of(kind, metric._extract_corpus_statistics(list(answers), turned), groups=groups)


def _bleu(sums: Array) -> Array:
    """(..., 2 + 2·n): answer and reference lengths, matches by order, n-grams by order. Papineni et al. (2002), with
    method 3 of Chen and Cherry (2014): each order without a match counts half of what the one before it would."""
    length, reference = sums[..., 0], sums[..., 1]
    matches, grams = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    halvings = np.cumsum(matches == 0, axis=-1)
    precision = np.where(matches > 0, matches, 0.5**halvings) / grams
    logs = np.log(100 * precision).mean(axis=-1)
    penalty = np.where(length < reference, np.exp(1 - reference / length), 1.0)
    found = (matches > 0).any(axis=-1) & (grams > 0).all(axis=-1)
    return np.where(found, penalty * np.exp(logs), 0.0)


def _chrf(sums: Array) -> Array:
    """(..., 3·n): of each order n-grams of answers, of references, and matches. Popović (2015), eq. 1."""
    said, true, matches = (sums[..., step::3] for step in range(3))
    counted = (said > 0) & (true > 0)
    orders = np.maximum(counted.sum(axis=-1), 1)
    precision = np.where(counted, matches / said, 0.0).sum(axis=-1) / orders
    recall = np.where(counted, matches / true, 0.0).sum(axis=-1) / orders
    score = 100 * (1 + _BETA**2) * precision * recall / (_BETA**2 * precision + recall)
    return np.where(precision + recall > 0, score, 0.0)


BLEU = SumMetric("BLEU", (_BLEU,), "There are no rows.", highest=100.0, function=_bleu)
CHRF = SumMetric("chrF", (_CHRF,), "There are no rows.", highest=100.0, function=_chrf)

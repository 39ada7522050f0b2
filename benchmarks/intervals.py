"""Seconds of one core that an interval of 10,000 resamples of 10,000 rows takes, by metric.

    python benchmarks/intervals.py [--rows N] [--resamples N]

Rows are made up: 77 classes with 85 % right ones, answers of 5 to 39 words of which four in five are right, scores
without ties. One process; set OMP_NUM_THREADS to say with how many threads. (It cannot be called statistics.py: that
name would hide Python's own module from all scripts in this folder.)
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import numpy as np

from lora.statistics.classes import ACCURACY, F1_MACRO, label_rows
from lora.statistics.estimate import estimate
from lora.statistics.means import PERPLEXITY, token_rows
from lora.statistics.metric import Metric
from lora.statistics.numbers import SPEARMAN, number_rows
from lora.statistics.ranking import AUROC, AVERAGE_PRECISION, score_rows
from lora.statistics.rows import Rows
from lora.statistics.texts import BLEU, CHRF, bleu_rows, chrf_rows


def cases(n: int, rng: np.random.Generator) -> list[tuple[Metric, Callable[[], Rows]]]:
    true = rng.integers(0, 77, n)
    said = np.where(rng.random(n) < 0.85, true, rng.integers(0, 77, n))
    words = np.asarray([f"{letter}{end}" for letter in "bdfgklmnprst" for end in ("at", "ot", "ing", "er")])
    texts = [rng.choice(words, rng.integers(5, 40)) for _ in range(n)]
    references = [[" ".join(text)] for text in texts]
    answers = [" ".join(np.where(rng.random(len(text)) < 0.8, text, rng.choice(words, len(text)))) for text in texts]
    positive, score = rng.integers(0, 2, n), rng.normal(size=n)
    labels, scores = label_rows(true, said), score_rows(positive, score + positive)
    return [
        (ACCURACY, lambda: labels),
        (F1_MACRO, lambda: labels),
        (PERPLEXITY, lambda: token_rows(rng.gamma(20, size=n), rng.integers(1, 40, n))),
        (BLEU, lambda: bleu_rows(answers, references)),
        (CHRF, lambda: chrf_rows(answers, references)),
        (AUROC, lambda: scores),
        (AVERAGE_PRECISION, lambda: scores),
        (SPEARMAN, lambda: number_rows(positive + 0.1 * score, score)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=10_000)
    asked = parser.parse_args()
    print(f"{'metric':20}{'cells':>8}{'seconds':>9}{'MiB':>7}   ({asked.rows:,} rows, {asked.resamples:,} resamples)")
    for metric, make in cases(asked.rows, np.random.default_rng(0)):
        rows = make()
        started = time.process_time()
        found = estimate(metric, rows, resamples=asked.resamples, method="bca")
        seconds = time.process_time() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{metric.name:20}{len(rows.cells):8,}{seconds:9.2f}{peak:7.0f}   {found}")


if __name__ == "__main__":
    main()

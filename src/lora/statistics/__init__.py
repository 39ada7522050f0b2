"""Evaluation beyond one number: metrics with intervals, paired tests, calibration, selective answers, slices, noise.

Pure numpy and scipy: statistics of rows go in, numbers and words come out. See docs/statistics.md.
"""

from lora.statistics.compare import Comparison, compare, compare_all, compare_each, verdict
from lora.statistics.estimate import Estimate, estimate, estimates
from lora.statistics.metric import Metric, OrderMetric, SumMetric
from lora.statistics.multiple import corrected
from lora.statistics.rows import Rows
from lora.statistics.slices import Slices, by_slice

__all__ = [
    "Comparison",
    "Estimate",
    "Metric",
    "OrderMetric",
    "Rows",
    "Slices",
    "SumMetric",
    "by_slice",
    "compare",
    "compare_all",
    "compare_each",
    "corrected",
    "estimate",
    "estimates",
    "verdict",
]

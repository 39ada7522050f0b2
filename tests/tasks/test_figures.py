"""Figures of rows: the values of `Task.metrics`, from which intervals and paired tests come."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch

from lora.statistics.compare import compare
from lora.statistics.estimate import estimate
from lora.statistics.rows import pooled
from lora.tasks.causal import CausalTask
from lora.tasks.classification import ClassificationTask
from lora.tasks.figures import figures
from lora.tasks.inference import Outcome
from lora.tasks.multilabel import MultiLabelTask
from lora.tasks.preference import PreferenceTask
from lora.tasks.regression import RegressionTask
from lora.tasks.token_classification import TokenClassificationTask

N = 40


def answered(kind: str, seed: int = 0) -> tuple[Any, list[dict[str, Any]], Outcome]:
    """A task, examples, and an outcome made up at random."""
    task, examples, said = made_up(kind, seed)
    draw = random.Random(seed)
    counts = [len(e["labels"]) if kind == "causal" else 1 for e in examples]
    losses = [row["loss"] for row in said] if kind == "causal" else [draw.uniform(0, 3) for _ in examples]
    return task, examples, Outcome(said, sum(losses), sum(counts), losses, counts)


def made_up(kind: str, seed: int) -> tuple[Any, list[dict[str, Any]], list[Any]]:
    draw, torch_draw = random.Random(seed), torch.Generator().manual_seed(seed)
    truth = random.Random(99)
    if kind == "classification":
        task: Any = ClassificationTask(["a", "b", "c"])
        examples: list[dict[str, Any]] = [{"label": truth.choice("abc")} for _ in range(N)]
        p = torch.randn(N, 3, generator=torch_draw).softmax(1).tolist()
        said: list[Any] = [{"label": "abc"[int(np.argmax(row))], "probabilities": row} for row in p]
        return task, examples, said
    if kind == "multi-label":
        task = MultiLabelTask(["a", "b", "c"])
        examples = [{"label": [name for name in "abc" if truth.random() < 0.4]} for _ in range(N)]
        p = torch.randn(N, 3, generator=torch_draw).sigmoid().tolist()
        said = [{"labels": [n for n, v in zip("abc", row, strict=True) if v >= 0.5], "probabilities": row} for row in p]
        return task, examples, said
    if kind == "regression":
        task = RegressionTask(mean=3.0, std=2.0)
        examples = [{"label": truth.gauss(3, 2)} for _ in range(N)]
        said = [one["label"] + draw.gauss(0, 1) for one in examples]
        return task, examples, said
    if kind == "causal":
        task = CausalTask(text="text")
        examples = [{"labels": [1] * truth.randint(1, 9)} for _ in range(N)]
        said = [{"loss": draw.uniform(1, 9), "tokens": len(e["labels"]), "correct": draw.randint(0, len(e["labels"]))}
                for e in examples]  # fmt: skip
        return task, examples, said
    if kind == "preference":
        keys = ("reward_chosen", "reward_rejected", "margin", "loss_chosen", "loss_rejected")
        said = [{key: draw.gauss(0, 1) for key in keys} for _ in range(N)]
        return PreferenceTask(prompt="p", chosen="c", rejected="r"), [{}] * N, said
    task = TokenClassificationTask(["B-x", "B-y", "I-x", "I-y", "O"], scheme="IOB2")
    examples, said = [], []
    for number in range(N):  # one row in four has a second window
        tags = [truth.randrange(5) for _ in range(6)]
        examples.append({"row": number * 4 // 5, "labels": [-100, *tags]})
        said.append({"tags": [task.labels[t] if draw.random() < 0.6 else draw.choice(task.labels) for t in tags]})
    return task, examples, said


KINDS = ["classification", "multi-label", "regression", "causal", "preference", "token-classification"]


@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_task(kind: str) -> None:
    task, examples, outcome = answered(kind)
    expected = task.metrics(outcome.predictions, task.targets(examples), outcome.loss_sum, outcome.count)
    found = figures(task, outcome, examples)
    assert task.best_metric in found
    for key, (metric, rows) in found.items():
        assert metric.value(rows) == pytest.approx(expected[key], abs=1e-6), key
    better = {metric.higher_is_better for key, (metric, _) in found.items() if key == task.best_metric}
    assert better <= {task.greater_is_better}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_pooled_are_drawn_by_row(kind: str) -> None:
    made = [answered(kind, seed) for seed in range(3)]
    runs = [figures(task, outcome, examples) for task, examples, outcome in made]
    for key, (metric, rows) in runs[0].items():
        together = pooled([run[key][1] for run in runs])
        assert len(together) == 3 * len(rows) and together.units.drawn == rows.units.drawn, "rows are drawn, not runs"
        values = [metric.value(run[key][1]) for run in runs]
        assert min(values) - 0.05 <= metric.value(together) <= max(values) + 0.05
        same = pooled([rows, rows, rows])
        assert metric.value(same) == pytest.approx(metric.value(rows))
        found, alone = estimate(metric, same, seed=1), estimate(metric, rows, seed=1, method="bca")
        assert found.high - found.low == pytest.approx(alone.high - alone.low, rel=0.15), "three times the same is once"
        assert compare(metric, together, same).units == rows.units.drawn

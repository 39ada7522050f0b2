"""Figures of rows: the values of `Task.metrics`, from which intervals and paired tests come."""

from __future__ import annotations

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch

from lora.errors import DataError
from lora.statistics.compare import compare
from lora.statistics.estimate import estimate
from lora.statistics.numbers import RMSE, number_rows
from lora.statistics.rows import pooled
from lora.tasks import TASKS
from lora.tasks.causal import CausalTask
from lora.tasks.chat import ChatTask
from lora.tasks.classification import ClassificationTask
from lora.tasks.figures import figures
from lora.tasks.inference import Outcome
from lora.tasks.multilabel import MultiLabelTask
from lora.tasks.preference import PreferenceTask
from lora.tasks.regression import RegressionTask
from lora.tasks.reward import RewardTask
from lora.tasks.seq2seq import Seq2SeqTask
from lora.tasks.token_classification import TokenClassificationTask

N = 40
WRITTEN = ("causal", "chat", "seq2seq")
COUNTS = {"tokens"}  # among metrics a number of something, which is nothing to have an interval


def answered(kind: str, seed: int = 0, rows: int = N) -> tuple[Any, list[dict[str, Any]], Outcome]:
    """A task, examples, and an outcome made up at random."""
    task, examples, said = made_up(kind, seed)
    examples, said = examples[:rows], said[:rows]
    draw = random.Random(seed)
    written = kind in WRITTEN
    counts = [len(e["labels"]) if written else 1 for e in examples]
    losses = [row["loss"] for row in said] if written else [draw.uniform(0, 3) for _ in examples]
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
    if kind in WRITTEN:
        chosen = {"causal": CausalTask(text="text"), "chat": ChatTask("m"), "seq2seq": Seq2SeqTask("p", "c")}
        task = chosen[kind]
        examples = [{"labels": [1] * truth.randint(1, 9)} for _ in range(N)]
        said = [{"loss": draw.uniform(1, 9), "tokens": len(e["labels"]), "correct": draw.randint(0, len(e["labels"]))}
                for e in examples]  # fmt: skip
        return task, examples, said
    if kind in ("preference", "reward"):
        keys = ("reward_chosen", "reward_rejected", "margin", "loss_chosen", "loss_rejected")
        said = [{key: draw.gauss(0, 1) for key in keys} for _ in range(N)]
        cls = {"preference": PreferenceTask, "reward": RewardTask}[kind]
        return cls(prompt="p", chosen="c", rejected="r"), [{}] * N, said
    task = TokenClassificationTask(["B-x", "B-y", "I-x", "I-y", "O"], scheme="IOB2")
    examples, said = [], []
    for number in range(N):  # one row in four has a second window
        tags = [truth.randrange(5) for _ in range(6)]
        examples.append({"row": number * 4 // 5, "labels": [-100, *tags]})
        said.append({"tags": [task.labels[t] if draw.random() < 0.6 else draw.choice(task.labels) for t in tags]})
    return task, examples, said


KINDS = list(TASKS)


def same_values(task: Any, examples: list[dict[str, Any]], outcome: Outcome) -> None:
    expected = task.metrics(outcome.predictions, task.targets(examples), outcome.loss_sum, outcome.count)
    numbers = {key for key, value in expected.items() if not isinstance(value, dict)} - COUNTS
    found = figures(task, outcome, examples)
    assert set(found) == numbers
    for key, (metric, rows) in found.items():
        value = metric.value(rows)
        if math.isnan(value):  # rates of spans and label sets, of which there are none, are 0 among metrics
            assert expected[key] is None or (expected[key] == 0 and rows.kind in ("spans", "label sets")), key
            assert metric.reason(rows)
        else:
            assert value == pytest.approx(expected[key], rel=1e-12, abs=1e-9), key


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, N])
def test_metrics_and_figures_are_the_same(kind: str, rows: int) -> None:
    for seed in range(3):
        same_values(*answered(kind, seed, rows))


@pytest.mark.parametrize("kind", KINDS)
def test_constant_rows(kind: str) -> None:
    """One class alone, the same number everywhere, sentences and label sets without a label."""
    task, examples, outcome = answered(kind)
    place = next(i for i, e in enumerate(examples) if kind != "multi-label" or not e["label"])
    examples = [examples[place]] * N
    for name in ("predictions", "losses", "counts"):
        setattr(outcome, name, [getattr(outcome, name)[place]] * N)
    if kind == "multi-label":
        outcome.predictions = [{"labels": [], "probabilities": [0.1, 0.2, 0.3]}] * N
    if kind == "token-classification":
        examples = [{"row": number, "labels": [-100, 4, 4]} for number in range(N)]
        outcome.predictions = [{"tags": ["O", "O"]}] * N
    outcome.loss_sum, outcome.count = sum(outcome.losses), sum(outcome.counts)
    same_values(task, examples, outcome)


@pytest.mark.parametrize("kind", KINDS)
def test_what_picks_the_best_is_among_the_measures(kind: str) -> None:
    task, examples, outcome = answered(kind)
    expected = task.metrics(outcome.predictions, task.targets(examples), outcome.loss_sum, outcome.count)
    assert task.best_metric in task.measures and set(task.measures) <= set(expected)


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


def test_numbers_whose_squares_are_too_large_are_named_without_a_warning() -> None:
    """By the number, not by the loss, which is infinite too."""
    task, said = RegressionTask(mean=0.0, std=1.0), [1.0, 2.0, 3.0]
    examples = [{"input_ids": [1], "label": value} for value in (0.5, 1e200, 3.0)]
    own = Outcome(said, math.inf, 3, [0.25, math.inf, 0.0], [1] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=r"row 1 \(from 0\) holds 1e\+200, and its square is beyond what a 64-bit"):
            figures(task, own, examples)
        fits = number_rows([1e150, 0.0], [0.0, 1e150])
        assert task.metrics(said, [0.5, 1e200, 3.0], 1.0, 3)["rmse"] == math.inf
    assert RMSE.value(fits) == pytest.approx(1e150), "what can be squared is measured"

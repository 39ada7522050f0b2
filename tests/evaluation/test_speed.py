"""Measuring speed: who is timed when, what is not counted, what is compared."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_rows import LABELS, labelled, with_adapters, word_tokenizer

from lora.evaluation import speed as module
from lora.evaluation.speed import THROUGHPUT_BATCHES, WARM_UP, measure_speed
from lora.model.lora import LoRA
from lora.tasks.classification import ClassificationTask
from tiny_models import tiny

SECONDS = {"base": 1.0, "a": 1.5, "b": 0.5}


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...]]]:
    """Every pass that is timed, as (adapter, shape); times are `SECONDS` per row."""
    seen: list[tuple[str, tuple[int, ...]]] = []

    def timed(model: LoRA, name: str, batch: dict[str, Any], device: Any) -> float:
        seen.append((name, tuple(batch["input_ids"].shape)))
        return SECONDS[name] * len(batch["input_ids"])

    monkeypatch.setattr(module, "_timed", timed)
    return seen


def measured(count: int, *names: str, batch_size: int = 4, rows: int = 12) -> dict[str, dict[str, Any]]:
    model = with_adapters(tiny("bert"), "a", "b")
    task = ClassificationTask(LABELS)
    encoded = task.encode(labelled(count), word_tokenizer(), 40)
    return measure_speed(model, task, encoded, names, pad_token_id=0, batch_size=batch_size, rows=rows)


def test_factors_to_the_base(passes) -> None:
    found = measured(24, "base", "a", "b")
    assert "to_base" not in found["base"]
    for name in ("a", "b"):
        factors = found[name]["to_base"]
        assert {key: each["value"] for key, each in factors.items()} == {
            "latency_p50_ms": SECONDS[name], "latency_p95_ms": SECONDS[name],
            "rows_per_second": 1 / SECONDS[name], "tokens_per_second": 1 / SECONDS[name],
        }  # fmt: skip
        assert all(each["low"] == each["high"] == each["value"] for each in factors.values())
    assert not any("to_base" in each for each in measured(24, "a", "b").values())


def test_each_leads_as_often_as_the_others(passes) -> None:
    measured(1, "base", "a", rows=1)
    batches = passes[2 * (WARM_UP + 1) + 2 * WARM_UP :]  # behind the single row and what went before the batches
    pairs = [(batches[place][0], batches[place + 1][0]) for place in range(0, len(batches), 2)]
    assert pairs == [("base", "a"), ("a", "base")] * (THROUGHPUT_BATCHES // 2)


def test_the_first_pass_of_a_shape_is_not_counted(passes, monkeypatch) -> None:
    timed, first = module._timed, set()

    def slow_at_first(model: LoRA, name: str, batch: dict[str, Any], device: Any) -> float:
        shape = (name, tuple(batch["input_ids"].shape))
        extra = 0.0 if shape in first else 1000.0
        first.add(shape)
        return timed(model, name, batch, device) + extra

    monkeypatch.setattr(module, "_timed", slow_at_first)
    found = measured(24, "base", "a")
    assert found["base"]["latency_p95_ms"] == 1000 * SECONDS["base"]
    assert found["a"]["rows_per_second"] == 1 / SECONDS["a"]


def test_few_batches_are_gone_over_again(passes) -> None:
    found = measured(6, "base", "a", batch_size=4)
    assert len([1 for name, shape in passes if name == "a" and shape[0] > 1]) >= THROUGHPUT_BATCHES
    assert found["a"]["rows_per_second"] == 1 / SECONDS["a"]  # rows are counted as often as they are passed
    assert found["a"]["to_base"]["rows_per_second"]["low"] is not None

"""Spaces: usual ranges, one's own, conditions, grids, and what a trial's settings come to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora import RunConfig
from lora.config.tuning import Domain
from lora.errors import ConfigError
from lora.tuning.space import USUAL, USUALLY, Space


def space(asked: Any, **sections: Any) -> Space:
    return Space.of(RunConfig.make(sections), asked, 3e-4)


def test_usual_ranges() -> None:
    found = {its.name: its.domain for its in space([]).searched}
    assert set(found) == set(USUALLY)
    assert (found["learning_rate"].low, found["learning_rate"].high, found["learning_rate"].log) == (3e-5, 3e-3, True)
    every = space(["learning_rate", *USUAL])
    assert len(every.searched) == 11
    for its in every.searched:  # each end of each range is a configuration
        for value in its.domain.values():
            every.settings({its.name: value})


def test_the_usual_ranks_end_where_layers_do() -> None:
    ranks = Space.of(RunConfig(), ["rank"], 1e-3, most=20).searched[0].domain.choices
    assert ranks == [4, 8, 16]
    assert Space.of(RunConfig(), ["rank"], 1e-3, most=2).searched[0].domain.choices == [2]


def test_spellings_and_single_values() -> None:
    found = space(
        {"lr": {"low": 1e-4, "high": 1e-2}, "adapter.r": [2, 4], "lr_scheduler_type": "cosine", "beta2": [0.9]}
    )
    assert [its.key for its in found.searched] == ["training.learning_rate", "adapter.rank", "training.beta2"]
    assert found.settings({"rank": 2})[1].schedule == "cosine", "one value is for all"


def test_conditions() -> None:
    found = space({
        "dropout": {"low": 0.0, "high": 0.2, "when": {"variant": "dora"}},
        "variant": ["plain", "dora"],
        "alpha": {"when": {"rank": [8, 16]}},
        "rank": [4, 8, 16],
    })  # fmt: skip
    order = [its.name for its in found.searched]
    assert order.index("variant") < order.index("dropout") and order.index("rank") < order.index("alpha")
    every = list(found.grid())
    assert len(every) == (1 + 5) * (1 + 2 * 3), "dropout with dora alone, alpha with two of the ranks"
    assert len({tuple(sorted(each.items())) for each in every}) == len(every)
    for each in every:
        assert ("dropout" in each) == (each["variant"] == "dora") and ("alpha" in each) == (each["rank"] > 4)
        adapter, _ = found.settings(each)
        assert adapter.dropout == each.get("dropout", 0.0) and adapter.alpha == each.get("alpha", 32.0)


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"rank": {"choices": [4], "when": {"variant": "dora"}}}, "is not searched itself"),
        ({"rank": {"choices": [4], "when": {"variant": "dorra"}}, "variant": ["plain"]}, "variant is never 'dorra'"),
        ({"rank": {"choices": [4], "when": {"alpha": 2.0}}, "alpha": {"choices": [2.0], "when": {"rank": 4}}},
         "rank and alpha depend on each other"),
        ({"rank": {"choices": []}}, "names no value"),
        ({"rank": {"choices": [4, 4]}}, "names a value twice"),
        ({"rank": {"low": 4}}, "high is needed beside"),
        ({"rank": {"choices": [4], "low": 1, "high": 2}}, "needs either choices, or low and high"),
        ({"rank": {"choices": [4], "log": True}}, "log and step are for a range"),
        ({"dropout": {"low": 0.0, "high": 0.5, "log": True}}, "must be above 0 for a logarithm"),
        ({"dropout": {"low": 0.0, "high": 1.5}}, "tune.space.dropout: adapter.dropout: .*less than 1"),
        ({"rank": {"choises": [1]}}, r"rank\.choises: unknown setting; did you mean 'choices'"),
        ({"rank": [1], "r": [2]}, "rank is named twice"),
        ({"variant": ["plain", "dorra"]}, "dorra"),
        ({"clip": "default"}, "has no usual range"),
        ({"dtype": ["float32"]}, "is the base's"),
        ({"rank": [0], "learning_rat": [1]}, "(?s)rank.*learning_rat|learning_rat"),
    ],
)  # fmt: skip
def test_mistakes(asked: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        space(asked)


def test_in_the_file() -> None:
    config = RunConfig.make({"tune": {"trials": 3, "space": {"rank": [1, 2]}}})
    assert config.tune is not None and config.tune.trials == 3
    with pytest.raises(ConfigError, match=r"tune\.trails: unknown setting; did you mean 'trials'"):
        RunConfig.make({"tune": {"trails": 3}})


def test_the_configuration_as_a_trial() -> None:
    found = space({"rank": [4, 8], "dropout": {"low": 0.0, "high": 0.2, "step": 0.05}}, adapter={"dropout": 0.15})
    assert found.default() == {"dropout": 0.15}, "rank 32 is not among the choices"


def test_what_takes_most_memory() -> None:
    found = space(["rank", "batch_size", "targets", "variant", "dropout"])
    made = [
        (adapter.variant, adapter.targets, adapter.rank, training.batch_size) for adapter, training in found.largest()
    ]
    assert set(made) == {(variant, "all-linear", 64, 32) for variant in USUAL["variant"]["choices"]}
    assert made[0][0] != "plain", "the first is what a pass is measured by"


@given(
    low=st.integers(1, 50), width=st.integers(1, 50), points=st.integers(2, 9), log=st.booleans(),
    scale=st.sampled_from([1, 0.001]),
)  # fmt: skip
def test_a_grid_lies_in_its_range(low: int, width: int, points: int, log: bool, scale: float) -> None:
    ends = {"low": low * scale, "high": (low + width) * scale} if scale != 1 else {"low": low, "high": low + width}
    domain = Domain.make({**ends, "log": log, "points": points})
    values = domain.values()
    assert values == sorted(set(values)) and len(values) <= points
    assert values[0] == pytest.approx(domain.low, rel=1e-3) and values[-1] == pytest.approx(domain.high, rel=1e-3)
    if scale == 1:
        assert all(isinstance(value, int) and domain.holds(value) for value in values)

"""Speed by batch size and length: who is timed when, what a percentile rests on, the budget. The clock is made up."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tiny_rows import LABELS, labelled, texts, with_adapters, word_tokenizer

from lora.errors import ConfigError, ModelError
from lora.evaluation import speed_grid as module
from lora.evaluation import speed_writing
from lora.evaluation.evaluate import evaluate
from lora.evaluation.result import plain
from lora.evaluation.speed_grid import FEWEST, MOST, speed_grid
from lora.evaluation.speed_plan import SpeedPlan, needed, percentiles
from lora.evaluation.speed_tables import speed_tables
from lora.model.lora import LoRA
from lora.tasks.causal import CausalTask
from lora.tasks.classification import ClassificationTask
from tiny_models import tiny

COST = {"base": 1.0, "a": 1.5, "b": 0.5, "merged": 1.25}  # seconds of a row's pass
FIRST, NEXT = 10.0, 2.0  # of a prompt, of a token


class Machine:
    """Passes take what `COST` says, and nothing else takes time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.passes = 0.0, list[tuple[str, tuple[int, ...]]]()
        self.model: LoRA | None = None
        monkeypatch.setattr(module, "clock", lambda: self.now)
        monkeypatch.setattr(module, "forward", self.forward)
        monkeypatch.setattr(speed_writing, "clock", lambda: self.now)
        monkeypatch.setattr(speed_writing, "decode", self.decode)

    def name(self, model: LoRA, adapter: str) -> str:
        return adapter if model is self.model else "merged"

    def forward(self, model: LoRA, batch: dict[str, Any], adapter: str) -> None:
        name = self.name(model, adapter)
        self.passes.append((name, tuple(batch["input_ids"].shape)))
        self.now += COST[name] * len(batch["input_ids"])

    def decode(
        self, model: LoRA, prompts: Any, adapters: Any, ends: Any, sampling: Any, seeds: Any, **options: Any
    ) -> None:
        name = self.name(model, adapters[0])
        self.passes.append((name, (len(prompts), len(prompts[0]))))
        assert len(set(map(len, prompts))) == 1 and not any(ends)
        self.now += FIRST * COST[name]
        for place in range(sampling.max_new_tokens):
            self.now += NEXT * COST[name] if place else 0
            options["on_token"](0, 5)

    def measure(self, model: LoRA, task: Any, rows: list[dict[str, Any]], *names: str, **plan: Any) -> Any:
        self.model = model
        encoded = task.encode(rows, word_tokenizer(), 40)
        return speed_grid(model, task, encoded, names, SpeedPlan(**plan), pad_token_id=0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def classifier(*names: str) -> LoRA:
    return with_adapters(tiny("bert"), *names)


TASK = ClassificationTask(LABELS)


def test_every_batch_size_and_length_of_every_run(machine: Machine) -> None:
    found = machine.measure(classifier("a", "b"), TASK, labelled(24), "base", "a", "b", batch_sizes=(1, 4), seconds=1e6)
    cells = [(cell["batch_size"], cell["length"]) for cell in found.passes]
    lengths = sorted({length for _, length in cells})
    assert cells == [(size, length) for length in lengths for size in (1, 4)] and len(lengths) == 3
    assert not found.notes and not found.generation
    for cell in found.passes:
        assert cell["repetitions"] == MOST
        assert list(cell["runs"]) == ["base", "a", "b", "a, merged", "b, merged"]
        for name, run in cell["runs"].items():
            cost = COST[name if name in COST else "merged"]
            assert run["p50_ms"] == run["p99_ms"] == pytest.approx(1000 * cost * cell["batch_size"])
            assert run["rows_per_second"] == pytest.approx(1 / cost)
            assert run["tokens_per_second"] == pytest.approx(cell["length"] / cost)
            assert run["peak_memory_bytes"] > 0
            if name != "base":
                assert run["to_base"]["p50_ms"]["value"] == pytest.approx(cost)
        assert "to_base" not in cell["runs"]["base"]
    # No padding: every batch has the shape that is said of it.
    assert {shape for _, shape in machine.passes} == set(cells)


def test_merged_and_unmerged_take_turns(machine: Machine) -> None:
    machine.measure(classifier("a"), TASK, labelled(6), "base", "a", batch_sizes=(1,), lengths=(4,), seconds=1e6)
    timed = [name for name, _ in machine.passes][-3 * MOST :]
    rounds = [tuple(timed[place : place + 3]) for place in range(0, len(timed), 3)]
    assert rounds[:3] == [("base", "a", "merged"), ("a", "merged", "base"), ("merged", "base", "a")]
    leads = [names[0] for names in rounds]
    assert max(map(leads.count, set(leads))) - min(map(leads.count, set(leads))) <= 1


@pytest.mark.parametrize(("count", "given"), [(19, ["p50_ms"]), (20, ["p50_ms", "p95_ms"]), (99, ["p50_ms", "p95_ms"])])
def test_a_percentile_needs_something_above_it(count: int, given: list[str]) -> None:
    assert [key for key, value in percentiles([1.0] * count).items() if value is not None] == given
    assert None not in percentiles([1.0] * 100).values() and needed(99) == 100


def test_the_budget_is_kept(machine: Machine) -> None:
    model, rows = classifier("a"), labelled(24)
    found = machine.measure(model, TASK, rows, "base", "a", batch_sizes=(1, 4), seconds=300, merged=False)
    assert machine.now <= 300 + 2.5 * 4  # the pass that was begun is ended
    assert all(FEWEST <= cell["repetitions"] < MOST for cell in found.passes)
    cell = next(cell for cell in found.passes if cell["repetitions"] < 100)
    assert cell["runs"]["a"]["p99_ms"] is None
    assert cell["none"]["p99"] == f"needs 100 repetitions, and there were {cell['repetitions']}"
    (grid,) = speed_tables(found)
    assert "100 times for the 99th percentile" in " ".join(grid.below) and "| – |" in grid.markdown()


def test_what_there_is_no_time_for_is_said(machine: Machine) -> None:
    found = machine.measure(
        classifier("a"), TASK, labelled(24), "base", "a", batch_sizes=(1, 32), lengths=(4, 8), seconds=40, merged=False
    )
    assert [cell["batch_size"] for cell in found.passes] == [1]
    assert "Batches of 32" in found.notes[0] and "a round takes 80.0 s" in found.notes[0]
    assert all("left out, the 40 seconds were over" in note for note in found.notes[1:]) and len(found.notes) == 3
    assert found.notes[0] in speed_tables(found)[-1].below


def prompts(count: int = 12) -> list[dict[str, Any]]:
    return [{"prompt": text, "completion": "w1 w2"} for text in texts(count)]


def test_writing_is_timed_to_the_first_token_and_from_there(machine: Machine) -> None:
    model, task = with_adapters(tiny("llama"), "a"), CausalTask(prompt="prompt", completion="completion")
    found = machine.measure(
        model, task, prompts(), "base", "a", batch_sizes=(1, 4, 8), lengths=(6,), new_tokens=9, seconds=1e6
    )
    assert [(cell["batch_size"], cell["new_tokens"]) for cell in found.generation] == [(1, 9), (4, 9)]
    for cell in found.generation:
        for name, run in cell["runs"].items():
            cost = COST[name if name in COST else "merged"]
            assert run["first_token_p50_ms"] == pytest.approx(1000 * FIRST * cost)
            assert run["tokens_per_second"] == pytest.approx(cell["batch_size"] / (NEXT * cost))
        factors = cell["runs"]["a"]["to_base"]
        assert factors["first_token_p50_ms"]["value"] == pytest.approx(1.5)
        assert factors["tokens_per_second"]["value"] == pytest.approx(1 / 1.5)
    plain_text = machine.measure(model, CausalTask(text="text"), [{"text": its} for its in texts(9)], "a", seconds=1e6)
    assert plain_text.generation and "to_base" not in plain_text.generation[0]["runs"]["a"]


@pytest.mark.parametrize("seconds", [25.0, 600.0, 1500.0])
def test_writing_has_its_share_of_a_small_budget(machine: Machine, seconds: float) -> None:
    model, task = with_adapters(tiny("llama"), "a"), CausalTask(prompt="prompt", completion="completion")
    options: dict[str, Any] = {"batch_sizes": (1, 4), "lengths": (6,), "new_tokens": 9, "merged": False}
    found = machine.measure(model, task, prompts(), "base", "a", seconds=seconds, **options)
    cell, one = found.generation[0], (FIRST + 8 * NEXT) * (COST["base"] + COST["a"])
    assert cell["batch_size"] == 1 and cell["runs"]["base"]["first_token_p50_ms"] == pytest.approx(1000 * FIRST)
    assert cell["runs"]["a"]["tokens_per_second"] == pytest.approx(1 / (NEXT * COST["a"]))
    said = [note for note in found.notes if note.startswith("Writing behind 1 prompt: ")]
    if seconds == 25:  # less than a round
        assert cell["repetitions"] == 1 and cell["runs"]["a"]["to_base"]["first_token_p50_ms"]["low"] is None
        assert said and "measured in 1 round alone, of 65.0 s each" in said[0] and len(found.generation) == 1
        assert any("Batches of 1" in note and "were over" in note for note in found.notes)
    elif seconds == 600:
        assert 1 < cell["repetitions"] < FEWEST and said and len(found.generation) == 1
        assert {cell["batch_size"] for cell in found.passes} == {1, 4}, "half of the time is theirs"
        assert machine.now <= seconds + one
    else:
        assert cell["repetitions"] >= FEWEST and not said
        assert machine.now <= seconds + one


def test_a_merged_copy_that_does_not_fit_or_cannot_be_made_is_left_out(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "free_bytes", lambda device: 1000)
    found = machine.measure(classifier("a"), TASK, labelled(6), "base", "a", batch_sizes=(1,), seconds=1e6)
    assert "a, merged: left out, as its copy of the base takes" in found.notes[0]
    assert list(found.passes[0]["runs"]) == ["base", "a"]
    monkeypatch.undo()
    machine = Machine(monkeypatch)
    model = classifier("a")

    def refuse(name: str) -> None:
        raise ModelError("its weights are quantised")

    monkeypatch.setattr(model, "merge", refuse)
    found = machine.measure(model, TASK, labelled(6), "base", "a", batch_sizes=(1,), seconds=1e6)
    assert found.notes == ["a, merged: left out (its weights are quantised)."]


def test_copies_in_use_elsewhere_are_no_memory_of_a_run(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    class Peak:
        bytes, kind = 10**9, "made up"

        def __init__(self, model: LoRA) -> None: ...

        def __enter__(self) -> Peak:
            return self

        def __exit__(self, *_: Any) -> None: ...

    monkeypatch.setattr(module, "PeakMemory", Peak)
    model = classifier("a")
    weights = sum(parameter.numel() for parameter in tiny("bert").parameters()) * 4
    found = machine.measure(model, TASK, labelled(6), "base", "a", batch_sizes=(1,), seconds=1e6)
    assert {run["peak_memory_bytes"] for run in found.passes[0]["runs"].values()} == {10**9 - weights}


def test_in_an_evaluation(writer: LoRA) -> None:
    """The real thing, small: decoding and merging work, and everything goes into dict and tables."""
    before = {name: its.clone() for name, its in writer.state_dict().items()}
    evaluation = evaluate(
        writer, prompts(6), tokenizer=word_tokenizer(), latency=False,
        speed=SpeedPlan(batch_sizes=(1, 2), lengths=(6,), seconds=0.5, new_tokens=3),
    )  # fmt: skip
    grid = evaluation.speed_grid
    assert grid is not None and list(grid.passes[0]["runs"]) == ["base", "tuned", "tuned, merged"]
    json.dumps(evaluation.to_dict(), allow_nan=False)
    assert evaluation.to_dict()["speed_grid"]["passes"] == plain(grid.passes)
    assert "Speed: one forward pass" in evaluation.to_markdown()
    assert all(its.equal(before[name]) for name, its in writer.state_dict().items())
    assert evaluate(writer, prompts(6), tokenizer=word_tokenizer(), latency=False).speed_grid is None


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"batch_sizes": ()}, "batch_sizes"),
        ({"lengths": (0,)}, "lengths"),
        ({"seconds": 0}, "seconds"),
        ({"new_tokens": 1}, "new_tokens"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        SpeedPlan(**given)


def test_speed_must_be_a_plan_or_a_yes(writer: LoRA) -> None:
    with pytest.raises(ConfigError, match="speed is 3"):
        evaluate(writer, prompts(2), tokenizer=word_tokenizer(), speed=3)  # type: ignore[arg-type]

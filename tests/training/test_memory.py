"""What training takes of memory: measured as it is, decided within the budget, and of no effect on results."""

from __future__ import annotations

import math
import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from lora import Job, LoRA, TrainingConfig, fit
from lora.core import free
from lora.errors import ConfigError
from lora.training import memory
from lora.training.memory import Kept, Memory, Plan, gib, largest_batch, measure, plan, training_mode
from lora.training.mixer import Knee, Mixer
from lora.training.participant import Participant
from lora.training.passes import Passes
from small_base import labelled, stories

sizes = st.integers(1, 10**6)


@given(
    budget=sizes, per_token=sizes, beside=sizes, state=sizes, largest=sizes, tokens=sizes, adapters=st.integers(1, 99)
)
def test_what_is_filled_fits(
    budget: int, per_token: int, beside: int, state: int, largest: int, tokens: int, adapters: int
) -> None:
    budget *= 10**6
    found = Memory(budget, per_token, beside, state, largest)
    most = found.most_tokens(adapters)
    if most:
        assert found.needed(most, adapters) <= budget * (1 + 1e-9)
    assert found.needed(most + 1, adapters) > budget * (1 - 1e-9), "and no more would"
    places = found.most_adapters(tokens)
    if places > 1:
        assert found.needed(tokens * places, places) <= budget * (1 + 1e-9)
        assert found.needed(largest, places) <= budget * (1 + 1e-9)


class Told:
    """Stands for one adapter, its passes and the processes: only what the decision looks at."""

    def __init__(self, monkeypatch: Any, kept: Kept, supported: bool = True) -> None:
        self.asked: list[bool | None] = [None]
        self.measured, self.done = 0, False

        def measured(*_: Any) -> Kept:
            self.measured += 1
            return kept

        monkeypatch.setattr(memory, "measure", measured)
        monkeypatch.setattr(memory, "_sample", lambda *_: None)
        monkeypatch.setattr(memory, "largest_batch", lambda p: (1000, [0]))
        monkeypatch.setattr(memory, "state_bytes", lambda p: 100)
        monkeypatch.setattr(memory, "can_recompute", lambda model: supported)
        monkeypatch.setattr(memory, "free_memory", lambda model: 10**6)

    def plan(self, budget: float | None, at_once: int | None = None, count: int = 1) -> Plan:
        """With a budget in bytes."""
        one: Any = SimpleNamespace(
            main=True, count=count, device=torch.device("cpu"), gather=lambda x: [x], agree=lambda x: x
        )
        participants: Any = [
            SimpleNamespace(settings=TrainingConfig(gradient_checkpointing=asked), packed=False, done=self.done)
            for asked in self.asked
        ]
        passes: Any = SimpleNamespace(model=SimpleNamespace(base=torch.nn.Linear(1, 1)))
        return plan(passes, participants, one, None if budget is None else budget / 2**30, at_once)


# 1000 tokens take 12,000 bytes in whole, 3,000 with layers recomputed, and 100 of state.
KEPT = Kept(tokens=100, whole=1100, recomputed=200, largest=25)


def test_layers_are_recomputed_where_the_budget_asks_for_it(monkeypatch: Any) -> None:
    told = Told(monkeypatch, KEPT)
    ample, short, none = told.plan(12100), told.plan(12099), told.plan(3099)
    assert (ample.recompute, ample.note) == (False, None)
    assert short.recompute and str(short.note).startswith("The largest batch (1,000 tokens) would take ")
    assert "layers are recomputed" in str(short.note) and "may run out" not in str(short.note)
    assert none.recompute and "may run out of memory: a smaller batch_size with more accumulation" in str(none.note)
    assert ample.memory and short.memory and (ample.memory.per_token, short.memory.per_token) == (12, 3)


def test_the_default_budget_is_a_share_of_what_is_free(monkeypatch: Any) -> None:
    told = Told(monkeypatch, KEPT)
    found = told.plan(None), told.plan(None, count=2)
    assert [each.memory and each.memory.budget for each in found] == pytest.approx([0.7e6, 0.35e6])


@pytest.mark.parametrize("version", [1, 2])
def test_a_container_has_less(version: int, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(free, "CONTROL_GROUPS", tmp_path)
    assert free.left_in_container() == math.inf
    folder = tmp_path if version == 2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    limit, used, cache = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    (folder / used).write_text("700\n")
    (folder / "memory.stat").write_text(f"anon 600\n{cache} 50\n")
    (folder / limit).write_text("max\n")
    assert free.left_in_container() == math.inf
    (folder / limit).write_text("1000\n")
    assert free.left_in_container() == 350
    assert memory.free_memory(LoRA(nn.Linear(2, 2), name=None)) == 350


def test_what_is_asked_for_is_obeyed(monkeypatch: Any) -> None:
    told = Told(monkeypatch, KEPT)
    for asked in (True, False):
        told.asked = [asked]
        assert told.plan(1) == Plan(asked) and told.measured == 0, "nothing depends on it"
    told.asked = [None, False]
    found = told.plan(5000)
    assert not found.recompute and "training.gradient_checkpointing is off" in str(found.note)
    assert "fewer adapters at once" in str(found.note)
    told.asked = [None, False, True]
    assert told.plan(5000).recompute and told.plan(5000).note is None and told.plan(10**6).recompute


def test_nothing_is_measured_where_all_are_done(monkeypatch: Any) -> None:
    told = Told(monkeypatch, KEPT)
    told.asked, told.done = [None, None], True
    assert told.plan(1) == Plan(False) and told.measured == 0


def test_adapters_at_once_count(monkeypatch: Any) -> None:
    told = Told(monkeypatch, KEPT)
    told.asked = [None] * 3
    assert not told.plan(12300).recompute and not told.plan(12300, at_once=3).recompute
    assert told.plan(12299, at_once=3).recompute and told.plan(12299, at_once=9).recompute
    assert not told.plan(12299, at_once=2).recompute


def test_a_model_that_cannot(monkeypatch: Any) -> None:
    found = Told(monkeypatch, KEPT, supported=False).plan(5000)
    assert not found.recompute and "Linear cannot recompute layers in the backward. It may run out" in str(found.note)


def test_a_model_whose_layers_are_not_known(monkeypatch: Any) -> None:
    found = Told(monkeypatch, Kept(100, 1100, None, 25)).plan(5000)
    assert found.recompute and str(found.note).endswith("layers are recomputed in the backward.")
    assert found.memory and found.memory.per_token == 12


def test_sizes_for_a_person() -> None:
    assert (gib(5.1 * 2**30), gib(3 * 2**20), gib(2048)) == ("5.1 GiB", "3.0 MiB", "2.0 KiB")


def base(folder: Any) -> Any:
    torch.manual_seed(0)
    if "llama" in str(folder):
        return AutoModelForCausalLM.from_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("packing", [None, False])
def test_the_measurement_counts_what_a_pass_keeps(
    request: Any, monkeypatch: Any, kind: str, packing: bool | None
) -> None:
    """Held against a pass whose tensors stay alive, so that each has an address of its own."""
    folder = request.getfixturevalue(kind)
    found: list[tuple[Kept, int]] = []

    def both(passes: Passes, share: Any) -> Kept:
        own = {t.untyped_storage().data_ptr() for t in (*passes.model.parameters(), *passes.model.buffers())}
        alive = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: alive.append(t) or t, lambda t: t):
            passes.forward([share])
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive}
        found.append((measure(passes, share), sum(size for at, size in storages.items() if at not in own)))
        return found[-1][0]

    monkeypatch.setattr(memory, "measure", both)
    rows = stories(24) if kind == "llama" else labelled(24)
    fit(LoRA(base(folder), rank=2, dropout=0.1), rows, False, max_steps=1, packing=packing)
    [(kept, expected)] = found
    assert kept.whole == expected and kept.largest < kept.whole
    assert kept.recomputed and kept.recomputed < 0.8 * kept.whole, "two layers, of which one is kept"


def test_the_largest_batch(bert: Any) -> None:
    seen: list[Any] = []
    model, run = LoRA(base(bert), rank=2), Passes.run

    def noted(self: Passes, shares: Any) -> None:
        seen.append(shares[0].tokens)
        run(self, shares)

    def look(participant: Any) -> Any:
        found = largest_batch(participant)
        seen.append(found[0])
        return found

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Passes, "run", noted)
        patched.setattr(memory, "largest_batch", look)
        fit(model, labelled(60), False, epochs=1, batch_size=8)
    largest, *passes = seen
    assert len(passes) == 8 and largest == max(passes)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_chosen_by_the_budget_it_gives_the_same_bits(request: Any, kind: str) -> None:
    folder = request.getfixturevalue(kind)
    outcomes: list[Any] = []
    for options in ({}, {"memory_gib": 1e-5}, {"gradient_checkpointing": True}):
        model = LoRA(base(folder), rank=2, dropout=0.2)
        rows = stories(24) if kind == "llama" else labelled(24)
        result = fit(model, rows, False, max_steps=3, learning_rate=1e-2, **options)
        outcomes.append((model.adapter_parameters("default"), result))
        assert not model.base.is_activation_checkpointing and model.training is False
    notes = [[note for note in result.notes if "layers are recomputed" in note] for _, result in outcomes]
    assert [len(said) for said in notes] == [0, 1, 0]
    for parameters, _ in outcomes[1:]:
        assert all(torch.equal(parameter, outcomes[0][0][key]) for key, parameter in parameters.items())


def test_a_run_goes_on_with_another_choice(bert: Any, tmp_path: Any) -> None:
    whole = LoRA(base(bert), rank=2)
    fit(whole, labelled(24), False, max_steps=4, output_dir=tmp_path / "whole", save_every=2, tensorboard=False)
    shutil.rmtree(tmp_path / "whole" / "checkpoints" / "step-00000004")
    again = LoRA(base(bert), rank=2)
    result = fit(
        again, labelled(24), False, max_steps=4, output_dir=tmp_path / "whole", save_every=2, tensorboard=False,
        resume=True, gradient_checkpointing=True,
    )  # fmt: skip
    assert result.steps == 4
    for key, parameter in again.adapter_parameters("default").items():
        assert torch.equal(parameter, whole.adapter_parameters("default")[key])


def test_what_the_user_switched_on_stays_on(bert: Any) -> None:
    model = LoRA(base(bert), rank=2)
    model.gradient_checkpointing_enable()
    for asked in (None, True):
        fit(model, labelled(24), False, max_steps=1, gradient_checkpointing=asked)
        assert model.base.is_activation_checkpointing


def test_one_that_cannot_recompute_is_refused_or_left_alone(bert: Any, monkeypatch: Any) -> None:
    model = LoRA(base(bert), rank=2)
    monkeypatch.setattr(type(model.base), "supports_gradient_checkpointing", False)
    with pytest.raises(ConfigError, match="training.gradient_checkpointing: BertForSequence.* does not support it"):
        fit(model, labelled(24), False, max_steps=1, gradient_checkpointing=True)
    result = fit(model, labelled(24), False, max_steps=1, memory_gib=1e-5)
    assert any("BertForSequenceClassification cannot recompute layers" in note for note in result.notes)


def test_passes_and_places_stay_within_the_budget(bert: Any, monkeypatch: Any) -> None:
    """Under a budget for two adapters and their batches, four take turns."""
    jobs = {name: Job(labelled(40), False, {"rank": 2}, {"batch_size": 8, "max_steps": 3}) for name in "abcd"}
    seen: list[tuple[int, int]] = []
    plans: list[Plan] = []
    make, run = plan, Mixer.run

    def planned(*given: Any) -> Plan:
        plans.append(make(*given))
        return plans[-1]

    def noted(self: Mixer, shares: Any) -> Any:
        for done in run(self, shares):
            seen.append((len(shares), sum(share.tokens for share in done)))
            yield done

    monkeypatch.setattr("lora.training.loop.plan", planned)
    monkeypatch.setattr(Mixer, "run", noted)
    monkeypatch.setattr("lora.training.mixer._timed", lambda passes, share: 1e-3)  # the more the better
    options = {"progress": False, "gradient_checkpointing": False}
    fit(LoRA(base(bert), name=None), jobs, **options)
    assert {places for places, _ in seen} == {4}
    found = plans[0].memory
    assert found
    for adapters, at_once in ((2, None), (1, None), (3, 3)):
        seen.clear()
        budget = found.needed(adapters * found.largest, adapters)
        fit(LoRA(base(bert), name=None), jobs, **options, at_once=at_once, memory_gib=(budget + 1) / 2**30)
        assert max(places for places, _ in seen) == adapters
        assert max(tokens for _, tokens in seen) <= adapters * found.largest


def test_rows_that_are_there_twice_leave_half_the_places(bert: Any, monkeypatch: Any) -> None:
    """With R-Drop a batch holds each row twice, and half as many adapters keep a pass full."""
    alike = [{"text": "one two three", "label": label} for label in ("yes", "no") for _ in range(16)]
    jobs = {name: Job(alike, False, {"rank": 2}, {"batch_size": 8, "max_steps": 2}) for name in "abcd"}
    widths: list[int] = []
    together: set[int] = set()
    run = Mixer.run

    def knee(passes: Any, share: Any, most: int) -> Knee:
        widths.append(share.tokens // share.rows)
        return Knee(4 * 8 * widths[-1], [])

    def noted(self: Mixer, shares: Any) -> Any:
        together.add(len(shares))
        yield from run(self, shares)

    monkeypatch.setattr("lora.training.loop.find_knee", knee)
    monkeypatch.setattr(Mixer, "run", noted)
    for r_drop, expected in ((0.0, 4), (1.0, 2)):
        together.clear()
        fit(LoRA(base(bert), name=None), jobs, progress=False, r_drop=r_drop)
        assert together == {expected}
    assert len(set(widths)) == 1


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf, "much", True])
def test_a_budget_that_is_none(bert: Any, bad: Any) -> None:
    with pytest.raises(ConfigError, match="memory_gib: "):
        fit(LoRA(base(bert), rank=2), labelled(24), False, max_steps=1, memory_gib=bad)


def test_who_is_done_gives_its_memory_back(bert: Any, monkeypatch: Any) -> None:
    """Moments and best parameters count for adapters in training alone."""
    held: list[int] = []
    finish = Participant.finish

    def noted(self: Participant) -> Any:
        result = finish(self)
        held.append(len(self.trainee.optimizer.state) + (self.trainee.best_tensors is not None))
        return result

    monkeypatch.setattr(Participant, "finish", noted)
    jobs = {name: Job(labelled(24, 0), labelled(8, 1), {"rank": 2}, {"max_steps": 2}) for name in "ab"}
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    fit(LoRA(base, name=None), jobs, progress=False, at_once=1)
    assert held == [0, 0]


def test_a_budget_beyond_all_numbers(bert: Any) -> None:
    jobs = {name: Job(labelled(24, 0), False, {"rank": 2}, {"max_steps": 1}) for name in "ab"}
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    results = fit(LoRA(base, name=None), jobs, progress=False, memory_gib=1e300)
    assert [result.steps for result in results.values()] == [1, 1]


def test_whose_choice_does_not_hold_is_told(bert: Any) -> None:
    jobs = {
        name: Job(labelled(24, 0), False, {"rank": 2}, {"max_steps": 1, "gradient_checkpointing": choice})
        for name, choice in (("yes", True), ("no", False), ("open", None))
    }
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    results = fit(LoRA(base, name=None), jobs, progress=False)
    told = {name for name, r in results.items() if any("another adapter's setting holds" in note for note in r.notes)}
    assert told == {"no"}


@pytest.mark.parametrize("at_once", ["2", 1.5, True, 0])
def test_places_that_are_no_number(bert: Any, at_once: Any) -> None:
    base = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3)
    with pytest.raises(ConfigError, match="at_once is .*whole number"):
        fit(LoRA(base, name=None), {"a": labelled(8, 0)}, at_once=at_once)


def test_the_mode_is_put_back() -> None:
    model: Any = torch.nn.Linear(1, 1).eval()
    with pytest.raises(RuntimeError), training_mode(model):
        assert model.training
        raise RuntimeError
    assert not model.training

"""What the checks before training take: foretold by the plan, held against what they take in a process of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import lora
from lora import LoRA, RunConfig
from lora.checks import outputs, rehearsal, rehearsed_checks, steps
from lora.checks import plan as planning
from lora.checks.before import check_training
from lora.checks.heap import is_glibc, resident
from lora.checks.ledger import Ledger
from lora.checks.rehearsal import Role, rehearse
from lora.checks.stand_in import made_up
from lora.cli import main
from lora.config import AdapterConfig, TrainingConfig
from small_base import save_base
from tiny_models import tiny

MIB = 1 << 20
NO_TOKENS: Any = SimpleNamespace(bos_token_id=None, eos_token_id=0, decode=str)


def base(layers: int = 2, device: str = "cpu") -> Any:
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device(device):
        return LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, vocab_size=2048, **sizes))


def role(length: int = 128, batch: int = 16, held: int = 0, **training: Any) -> Role:
    prepared = replace(made_up("causal", length, batch, held), tokenizer=NO_TOKENS)
    return Role(prepared, AdapterConfig(rank=4), TrainingConfig(batch_size=batch, learning_rate=1e-3, **training))


CASES: dict[str, dict[str, Any]] = {
    "packed": {},
    "padded": {"packing": False},
    "padded, recomputed": {"packing": False, "gradient_checkpointing": True},
    "an evaluation takes most": {"batch": 2, "held": 16, "eval_batch_size": 16},
    "one long row": {"length": 1024, "batch": 1, "gradient_checkpointing": True},
}


def checked(case: str) -> None:
    """Run the checks; to be called in a process of its own, which has nothing else."""
    its = role(**CASES[case])
    model = LoRA(base(), name=None)
    model.add_adapter("a", its.adapter)
    check_training(model, "a", its.prepared, its.training)


def allocated(case: str) -> int:
    """The most bytes that torch's allocator gave out during the checks and had not got back, above those before."""
    from torch.profiler import ProfilerActivity, profile

    alive = peak = 0
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        checked(case)
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    for event in sorted(events, key=lambda e: e.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


def held_by_process(case: str) -> tuple[int, int]:
    """By how much the process grew at the most during the checks, and for good; libraries were used once before."""
    checked(case)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    checked(case)
    return _status("VmHWM") - before, _status("VmRSS") - before


def _status(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def apart(what: str, case: str, **environment: str) -> Any:
    """What ``what`` of this file gives for ``case`` in a fresh process."""
    paths = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, __file__, what, case], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# What the checks share with training is told as phases of its own.
SHARED = ("loading", "probe", "measurement", "checks")


@pytest.mark.parametrize("case", CASES)
def test_tensors_take_what_was_foretold(case: str) -> None:
    its = role(**CASES[case])
    told = rehearse(base(device="meta"), {"a": its}, bool(its.training.gradient_checkpointing), checks=True)
    foretold = max(told.phases[name].peak for name in SHARED)
    assert foretold == pytest.approx(apart("allocated", case), rel=0.05)
    assert told.phases["checks"].peak <= told.tensors, "training itself takes as much"


@pytest.mark.skipif(not is_glibc() or sys.platform != "linux", reason="of glibc's heap")
@pytest.mark.parametrize("threshold", ["", "65536"])
def test_a_process_takes_what_was_foretold_and_gives_it_back(threshold: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", threshold)
    if not threshold:
        monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    case = "an evaluation takes most"
    told = rehearse(base(device="meta"), {"a": role(**CASES[case])}, False, checks=True).phases["checks"].held
    most, left = apart("held", case)
    assert told == pytest.approx(most, rel=0.2)
    assert left < 0.1 * most, "freed memory lies with the process"


def test_the_phase_is_there_unless_the_checks_are_left_out(tmp_path: Path, capfd: Any) -> None:
    config = RunConfig(model=str(save_base(tmp_path / "base", "llama")), training={"batch_size": 2})
    told = lora.plan(config, length=32, search=False)
    assert told.phases["loading"] < told.phases["checks"] <= told.peak
    assert "the checks before it" in told.notes[1] and "not counted is the report at the end" in told.notes[1]
    given = ["plan", "--model", config.model or "", "--length", "32", "--batch-size", "2", "--quick"]
    assert main(given) == 0 and "tensors in the checks before it" in capfd.readouterr().out
    assert main([*given, "--no-check"]) == 0 and "the checks before it" not in capfd.readouterr().out
    config.check = False
    without = lora.plan(config, length=32, search=False)
    assert "checks" not in without.phases and "the checks before it" not in without.notes[1]
    # Beside that nothing is told otherwise.
    same = {name: size for name, size in told.phases.items() if name not in ("checks", "merging")}
    assert same == {name: pytest.approx(size, rel=0.01) for name, size in without.phases.items()}


def test_where_the_checks_take_most_leaving_them_out_is_a_remedy(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_resident", lambda: 0.0)
    monkeypatch.setattr(rehearsed_checks, "compare", lambda *_: torch.empty(64 * MIB, dtype=torch.uint8))
    config = RunConfig(model=str(llama), training={"batch_size": 2}, data={"held_out": 0})
    found = lora.plan(config, length=32, device_gib=32 / 1024)
    assert found.peak >= 64 * MIB and not found.fits and "a check before training, where the peak is" in found.memory
    assert [words for words, _ in found.remedies] == ["check: false"] and found.remedies[0][1] <= found.available


def test_a_deep_model_is_told_from_two_shallow_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    told = rehearse(base(16, "meta"), {"a": role(64, 4)}, False, checks=True)
    monkeypatch.setattr(rehearsal, "SHALLOW", 99)
    whole = rehearse(base(16, "meta"), {"a": role(64, 4)}, False, checks=True)
    assert told.phases["checks"].peak == pytest.approx(whole.phases["checks"].peak, rel=0.01)
    assert set(told.phases) == set(whole.phases)


# -- what they take ----------------------------------------------------------------------------------------------------


def test_no_more_rows_are_tried_than_the_run_has_in_a_pass() -> None:
    model = LoRA(tiny("llama", vocab_size=25), rank=4)

    def trial(batch: int, packing: bool | None = None) -> steps.Trial:
        prepared = made_up("causal", 8, 8)
        return steps.Trial(model, "default", prepared, role(batch=batch, packing=packing).training)

    assert [len(trial(batch).few_rows()) for batch in (1, 2, 3, 8)] == [1, 2, 3, 4]
    assert len(trial(8, False).few_rows()) == 4 and len(trial(3, False).few_rows()) == 3
    assert steps.accumulation(trial(2), False).status == "passed"
    alone = steps.accumulation(trial(1), False)
    assert alone.status == "skipped" and "more memory than the run" in alone.said
    # Nothing is recomputed there, so that fewer must do where the run recomputes.
    assert steps.accumulation(trial(8), True).status == "skipped"


def test_gradients_are_no_copies() -> None:
    model = LoRA(tiny("llama", vocab_size=25), rank=4)
    trial = steps.Trial(model, "default", made_up("causal", 8, 4), role().training)
    real, taken = trial.passes.run, dict[str, int]()

    def run(shares: Any) -> None:
        real(shares)
        taken.update({key: p.grad.data_ptr() for key, p in trial.trainee.parameters.items() if p.grad is not None})

    trial.passes.run = run  # type: ignore[method-assign]
    found = trial.gradients([trial.few_rows()])
    assert {key: g.data_ptr() for key, g in found.items() if g is not None} == taken and taken
    assert all(p.grad is None for p in trial.trainee.parameters.values())


def test_of_long_outputs_the_last_are_compared() -> None:
    logits = torch.randn(2, 100, 7, dtype=torch.bfloat16)
    kept = outputs.compared(logits)
    assert kept.dtype == torch.float32 and torch.equal(kept, logits[:, -outputs.LAST :].float())
    assert kept.untyped_storage().nbytes() == 4 * kept.numel(), "and the others are let go"
    single = torch.randn(2, 100)
    assert torch.equal(outputs.compared(single), single)


# -- the C library -----------------------------------------------------------------------------------------------------


def test_what_is_trimmed_goes_back_from_the_heaps_midst() -> None:
    def heap(trim: bool) -> int:
        ledger = Ledger()
        ledger.give_back(ledger.make(MIB), MIB)  # from here on pieces of this size come from the heap
        made = [ledger.make(MIB) for _ in range(9)]
        for number in made[:-1]:
            ledger.give_back(number, MIB)  # and stay with it below the last
        if trim:
            ledger.trim()
        with ledger.phase("after"):
            ledger.make(16)
        ((_, phase),) = ledger.phases
        return resident(ledger.events, [(phase.start, phase.stop)])[0]

    assert heap(False) > 9 * MIB
    assert MIB <= heap(True) < 1.5 * MIB


if __name__ == "__main__":
    print(json.dumps({"allocated": allocated, "held": held_by_process}[sys.argv[1]](sys.argv[2])))

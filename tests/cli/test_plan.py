"""`lora plan` as a command: table, JSON, exit codes, warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

import lora
from lora.checks import pace, plan
from lora.cli import main
from lora.model.base import load_base
from lora.training.device import choose_dtype
from small_base import labelled, save_base, stories, write_jsonl


def test_a_plan_is_shown_and_is_json(tmp_path: Path, llama: Path, capfd: Any) -> None:
    assert main(["plan", "--model", str(llama), "--length", "32", "--batch-size", "2"]) == 0
    shown = capfd.readouterr().out
    for words in ("peak of the run", "Parameters: ", "Time, an estimate", "Disk: ", "Largest batch that fits"):
        assert words in shown
    assert not list(tmp_path.glob("*")), "nothing is written"
    assert main(["plan", "--model", str(llama), "--length", "32", "--batch-size", "2", "--json", "--quick"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["fits"] and told["batch"] == 2 and told["length"] == 32 and told["peak"] > 0
    least, most = told["step_seconds"]
    assert 0 < least < most and told["pace"]["cores"] >= 1


def test_without_data_a_length_is_asked_for(llama: Path, capfd: Any) -> None:
    assert main(["plan", "--model", str(llama)]) == 2 and "length: is needed" in capfd.readouterr().err


def test_what_does_not_fit_ends_with_2(llama: Path, capfd: Any) -> None:
    assert main(["plan", "--model", str(llama), "--length", "32", "--device-gib", "0.01", "--quick"]) == 2
    said = capfd.readouterr().err  # which of the two depends on how large this process is already
    assert "error: this run does not fit: it takes" in said or "error: no run fits" in said


def test_more_than_the_model_has_positions_for_is_refused(llama: Path, capfd: Any) -> None:
    assert main(["plan", "--model", str(llama), "--length", "65", "--quick"]) == 2
    assert "above the 64 positions" in capfd.readouterr().err


@pytest.mark.parametrize("task", ["chat", "causal", "preference"])
def test_next_tokens_of_an_encoder_are_refused_as_in_training(task: str, bert: Path, capfd: Any) -> None:
    assert main(["plan", "--model", str(bert), "--length", "32", "--quick", "--data.task", task]) == 2
    assert "sees the tokens that it is to predict" in capfd.readouterr().err


def test_what_the_c_library_holds_is_warned_of(llama: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["plan", "--model", str(llama), "--length", "32", "--quick", "--gradient-checkpointing"]
    monkeypatch.setattr(plan, "is_glibc", lambda: True)
    monkeypatch.setattr(plan, "device", lambda: plan.torch.device("cpu"))
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    assert main(given) == 0
    assert "warning: Layers are recomputed" in capfd.readouterr().err
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    assert main(given) == 0 and "warning" not in capfd.readouterr().err
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_")
    assert main(given[:-1]) == 0 and "warning" not in capfd.readouterr().err, "nothing is recomputed"


def test_a_busy_machine_is_told(llama: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for load, said in ((64.0, True), (0.0, False)):
        monkeypatch.setattr(pace.os, "getloadavg", lambda load=load: (load, load, load))
        assert main(["plan", "--model", str(llama), "--length", "32", "--quick"]) == 0
        assert ("This machine is busy" in capfd.readouterr().out) == said


def test_what_training_goes_on_from_is_planned(tmp_path: Path, bert: Path, capfd: Any) -> None:
    """With the adapter's own rank, targets, task and head."""
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(24))
    train = ["train", "--model", bert, "--data", data, "--output", tmp_path / "run", "--max-steps", 1, "--no-check"]
    assert main([*map(str, train), "--rank", "3", "--adapter.targets", "query,value", "-q"]) == 0
    start = ["plan", "--start", str(tmp_path / "run"), "--quick", "--json"]
    capfd.readouterr()
    assert main([*start, "--data", str(data)]) == 0
    told = json.loads(capfd.readouterr().out)
    saved = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    assert sum(told["trainable"].values()) == sum(tensor.numel() for tensor in saved.values())
    assert told["trainable"]["attention"] == 2 * 2 * 3 * 2 * 32
    assert main([*start, "--length", "32"]) == 0, "without data its task is known all the same"
    assert "classification" in json.loads(capfd.readouterr().out)["notes"][0]
    assert main([*start, "--data", str(data), "--rank", "8"]) == 2
    assert "adapter.rank: is 3 in" in capfd.readouterr().err


def test_new_tokens_are_planned_for(tmp_path: Path, llama: Path, capfd: Any) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", stories(8))
    given = ["plan", "--model", str(llama), "--data", str(data), "--quick", "--json"]
    assert main(given) == 0
    before = json.loads(capfd.readouterr().out)
    assert main([*given, "--new-tokens", "<a>,<b>"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert told["parameters"] == before["parameters"] + 2 * 2 * 32, "rows of the embedding and of the head"
    assert sum(told["trainable"].values()) >= sum(before["trainable"].values()) + 2 * 32


def test_a_folder_with_a_configuration_alone_is_enough(tmp_path: Path, capfd: Any) -> None:
    base = save_base(tmp_path / "base", "llama")
    for file in base.iterdir():
        if file.name != "config.json":
            file.unlink()
    assert main(["plan", "--model", str(base), "--length", "32", "--quick"]) == 0
    with pytest.raises(lora.LoraError):
        load_base(str(base), "AutoModelForCausalLM", choose_dtype("float32"))


@pytest.mark.parametrize("task", ["classification", "multi-label", "regression", "reward"])
def test_an_encoder_decoder_with_a_head_finds_the_end_that_it_looks_for(task: str, t5: Path, capfd: Any) -> None:
    assert main(["plan", "--model", str(t5), "--length", "32", "--quick", "--data.task", task]) == 0, capfd.readouterr()


def test_a_device_that_holds_not_even_the_process(llama: Path, capfd: Any) -> None:
    assert main(["plan", "--model", str(llama), "--length", "32", "--quick", "--device-gib", "1e-6"]) == 2
    assert "no run fits: the process alone takes" in capfd.readouterr().err

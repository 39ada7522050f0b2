"""`lora plan` as a process: table, JSON, exit codes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from command import lora
from small_base import save_base


def lora_plan(*arguments: str) -> subprocess.CompletedProcess[str]:
    return lora("plan", *arguments)


def test_a_plan_is_shown_and_is_json(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama")
    shown = lora_plan("--model", str(base), "--length", "32", "--batch-size", "2")
    assert shown.returncode == 0, shown.stderr
    for words in ("peak of the run", "Parameters: ", "Time, an estimate", "Disk: ", "Largest batch that fits"):
        assert words in shown.stdout
    assert not list(tmp_path.glob("run*")), "nothing is written"
    found = lora_plan("--model", str(base), "--length", "32", "--batch-size", "2", "--json", "--quick")
    told = json.loads(found.stdout)
    assert told["fits"] and told["batch"] == 2 and told["length"] == 32 and told["peak"] > 0


def test_what_does_not_fit_ends_with_2(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama")
    found = lora_plan("--model", str(base), "--length", "32", "--device-gib", "0.01", "--quick")
    assert found.returncode == 2 and "error: this run does not fit: it takes" in found.stderr
    wrong = lora_plan("--model", str(base))
    assert wrong.returncode == 2 and "length: is needed" in wrong.stderr and "Traceback" not in wrong.stderr

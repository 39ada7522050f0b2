"""``lora doctor`` tells what is there, what is missing and how to add it, whatever is missing."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from lora.cli import doctor, main


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement has a test of its own."""
    monkeypatch.setattr(doctor, "matmul_rate", lambda torch, dtype: 100.0)


def as_json(capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    code = main(["doctor", "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_it_says_what_is_there(capsys) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("Python", "processor", "memory", "disk", "torch", "transformers", "GFLOP/s", "[demo]"):
        assert word in said
    assert said.strip().splitlines()[-1].startswith("ready to train on ")


def test_json_holds_the_same(capsys) -> None:
    code, report = as_json(capsys)
    assert code == 0
    assert report["verdict"]["can_train"] is True
    assert report["missing"] == []
    assert report["memory"]["total"] > report["memory"]["available"] > 0
    assert report["disk"]["free"] > 0
    assert report["processor"]["cores"] >= 1


def test_the_dtype_is_the_one_training_would_choose(capsys) -> None:
    import torch

    _, report = as_json(capsys)
    assert isinstance(getattr(torch, report["dtype"]), torch.dtype)
    assert report["dtype"] in report["verdict"]["text"]


def test_without_torch_it_says_so(capsys, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` an ImportError
    assert main(["doctor"]) == 2
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last.startswith("cannot train: torch missing")
    assert "-m pip install 'torch'" in last


def test_a_missing_requirement_and_its_command(capsys, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "requirements", lambda: (["no-such-package>=2", "torch>=2"], {"more": ["nor-this>=1"]}))
    code, report = as_json(capsys)
    assert code == 2
    assert report["missing"] == ["no-such-package>=2"]
    assert "pip install 'no-such-package>=2'" in report["verdict"]["text"]
    main(["doctor"])
    assert "-m pip install 'nor-this>=1'" in capsys.readouterr().out


def test_a_version_that_is_too_old_counts_as_missing() -> None:
    assert doctor.satisfied("click>=1")
    assert not doctor.satisfied("click>=1000")
    assert not doctor.satisfied("no-such-package")


def test_requirements_agree_with_the_project_file() -> None:
    required, extras = doctor._from_source_tree()
    assert any(item.startswith("torch") for item in required)
    assert {"demo", "serve", "tune", "quant", "dev"} <= set(extras)
    assert not any(item.startswith(doctor.DISTRIBUTION) for items in extras.values() for item in items)


def test_requirements_of_an_installed_package(monkeypatch) -> None:
    lines = ["torch>=2", "pip>=1; extra == 'demo'", "lora-many[demo]; extra == 'dev'", "ruff>=1; extra == 'dev'"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: lines)
    assert doctor.requirements() == (["torch>=2"], {"demo": ["pip>=1"], "dev": ["ruff>=1"]})


def test_the_measurement_is_positive_and_ends(monkeypatch) -> None:
    import torch

    monkeypatch.undo()
    assert doctor.matmul_rate(torch, torch.float32) > 0
    assert doctor.matmul_rate(torch, torch.bfloat16) > 0


def test_paths_below_here_are_short(monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    assert doctor._short_path(str(tmp_path / ".venv" / "bin" / "python")) == ".venv/bin/python"
    assert doctor._short_path("/elsewhere/python") == "/elsewhere/python"


def test_the_cache_is_shown(tmp_path, monkeypatch):
    from lora.cli.doctor import _cache_text, cache

    monkeypatch.setenv("LORA_CACHE", str(tmp_path))
    assert _cache_text(cache()) == f"0 data sets, 0.0 GiB of at most 16.0 GiB, in {tmp_path / 'tokens'}"
    (tmp_path / "tokens" / "entry").mkdir(parents=True)
    with (tmp_path / "tokens" / "entry" / "file").open("wb") as file:
        file.truncate(300 << 20)
    assert _cache_text(cache()).startswith("1 data set, 0.3 GiB of")

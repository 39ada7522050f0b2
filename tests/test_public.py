"""The public namespace: sorted, resolvable, and free of charge until something in it is used."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lora
from lora.cli import COMMANDS

SOURCE = Path(lora.__file__).parents[1]


def modules_after(code: str) -> set[str]:
    """Names in sys.modules of a fresh interpreter that has run ``code``."""
    script = f"{code}\nimport sys\nprint('MODULES', *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_names_are_sorted() -> None:
    assert list(lora.__all__) == sorted(lora.__all__)


def test_every_name_has_a_home_and_the_other_way_round() -> None:
    assert list(lora._HOMES) == list(lora.__all__)
    assert set(lora.__all__) <= set(dir(lora))


@pytest.mark.parametrize("name", lora.__all__)
def test_name_resolves(name: str) -> None:
    assert getattr(lora, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lora.nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from lora import nothing")


def test_import_loads_nothing_heavy() -> None:
    loaded = modules_after("import lora; assert lora.__version__")
    assert loaded.isdisjoint({"torch", "transformers", "pydantic", "numpy", "click", "datasets"})


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["tran"], []])
def test_the_command_line_answers_without_loading_anything_heavy(arguments: list[str]) -> None:
    loaded = modules_after(f"from lora.cli import main; main({arguments!r})")
    assert loaded.isdisjoint({"torch", "transformers", "pydantic", "typer", "rich", "numpy", "yaml", "datasets"})


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_needs_no_torch(command: str) -> None:
    loaded = modules_after(f"from lora.cli import main; assert main([{command!r}, '--help']) == 0")
    assert loaded.isdisjoint({"torch", "transformers", "datasets", "sklearn", "accelerate"})

"""Exit codes and messages of the command line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

import lora
from lora import cli
from lora.errors import DataError, Interrupted, SaveError


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch):
    """Let ``lora doctor`` raise an exception, or return a value."""

    def install(outcome: object) -> None:
        @click.command()
        def command() -> object:
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        monkeypatch.setattr(cli.LazyGroup, "get_command", lambda self, ctx, name: command)

    return install


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (DataError("rows.csv: no rows\nadd some"), 2, "error: rows.csv: no rows\nadd some\n"),
        (Interrupted("resume with --resume"), 2, "interrupted: resume with --resume\n"),
        (KeyboardInterrupt(), 2, "interrupted\n"),
        (SaveError("disk full: nothing was lost"), 2, "error: disk full: nothing was lost\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 2, "error: No space left on device (a/b)\n"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 2, "error: Permission denied (a/b)\n"),
        (MemoryError(), 2, "--batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), 2, "--batch-size"),
        (RuntimeError("shapes do not match"), 1, "internal error: RuntimeError: shapes do not match"),
        (ModuleNotFoundError("No module named 'gone'", name="gone"), 2, "'gone' is not installed; `lora doctor`"),
        (ZeroDivisionError("oops\nmore"), 1, "internal error: ZeroDivisionError: oops (set LORA_DEBUG=1"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 1, "internal error: FileNotFoundError"),
    ],
)
def test_an_exception_becomes_one_message(error, code, words, raising, capsys, monkeypatch) -> None:
    monkeypatch.delenv("LORA_DEBUG", raising=False)
    raising(error)
    assert cli.main(["doctor"]) == code
    said = capsys.readouterr()
    assert words in said.err
    assert "Traceback" not in said.err
    assert said.out == ""


def test_debug_shows_the_traceback(raising, capsys, monkeypatch) -> None:
    monkeypatch.setenv("LORA_DEBUG", "1")
    raising(ZeroDivisionError("oops"))
    assert cli.main(["doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "spins"), [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")]
)
def test_waiting_threads_soon_sleep_unless_the_user_says_otherwise(given, spins, monkeypatch) -> None:
    monkeypatch.setattr(os, "environ", dict(given))
    cli.set_environment()
    assert os.environ.get("GOMP_SPINCOUNT") == spins


@pytest.mark.parametrize(("value", "code"), [(None, 0), (0, 0), (2, 2), ("text", 0)])
def test_a_command_may_return_an_exit_code(value, code, raising) -> None:
    raising(value)
    assert cli.main(["doctor"]) == code


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tran"], "did you mean 'train'?"),
        (["DEMO"], "did you mean 'demo'?"),
        (["qqq"], "known: demo, doctor, data, plan, check, train"),
        (["--hlep"], "--help"),
    ],
)
def test_a_slip_names_the_nearest(arguments, words, capsys) -> None:
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


def test_help_lists_every_command(capsys) -> None:
    assert cli.main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and text in said for name, (_, text) in cli.COMMANDS.items())


def test_version(capsys) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lora {lora.__version__}\n"


@pytest.mark.skipif(sys.platform == "win32", reason="pipes differ")
def test_a_reader_that_leaves_early_is_no_traceback() -> None:
    code = "import sys; from lora.cli import main; sys.exit(main(['--help']))"
    environment = {**os.environ, "PYTHONPATH": str(Path(lora.__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 1


def test_the_users_environment_stands(monkeypatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    cli.set_environment()
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"

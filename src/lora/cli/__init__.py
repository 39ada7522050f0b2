"""The command ``lora``: one file per command, loaded when that command runs.

A command's module has an attribute ``command`` (a ``click.Command``) and one line in ``COMMANDS``. Its function returns
``None`` or an exit code. Modules import torch and transformers inside their functions, so that ``--help`` is immediate.

Exit codes: 0 done; 1 a fault of this program; 2 something the user can mend (said in one message on stderr).
"""

from __future__ import annotations

import difflib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import click

from lora import __version__
from lora.errors import Interrupted, LoraError, is_out_of_memory

# name -> (module, one line of help); the order is that of `lora --help`.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("lora.cli.demo", "Fine-tune, evaluate and save a small model on built-in data."),
    "doctor": ("lora.cli.doctor", "Show what this machine has, what is missing and how to add it."),
    "data": ("lora.cli.data", "Show what training would see of your data."),
    "plan": ("lora.cli.plan", "Say what a training run will need, before anything is loaded."),
    "check": ("lora.cli.check", "Verify before training that a run can succeed."),
    "train": ("lora.cli.train", "Fine-tune an adapter on your data."),
    "compare": ("lora.cli.compare", "Compare LoRA of several ranks with full fine-tuning."),
    "cv": ("lora.cli.cv", "Measure settings by cross-validation, all folds at once."),
    "predict": ("lora.cli.predict", "Apply a trained adapter to new rows."),
    "generate": ("lora.cli.generate", "Write texts for prompts, with one adapter or several."),
    "chat": ("lora.cli.chat", "Talk to a base model and its adapters."),
    "eval": ("lora.cli.eval", "Measure an adapter beside its base model."),
    "report": ("lora.cli.page", "Write a run's report as one page, again."),
    "merge": ("lora.cli.merge", "Write an adapter into a plain copy of its base model."),
    "inspect": ("lora.cli.inspect", "Show what an adapter folder or a base model holds."),
}

# Failures of the machine rather than of the program: one message says it all.
_SYSTEM_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


class LazyGroup(click.Group):
    """A group that knows its commands' names and help, and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = import_module(COMMANDS[cmd_name][0]).command
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name.lower(), COMMANDS, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}."
            ctx.fail(f"No such command {name!r}; {hint}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`lora COMMAND --help` tells more. Start with `lora demo`.",
)
@click.version_option(__version__, prog_name="lora", message="%(prog)s %(version)s")
def cli() -> None:
    """Fine-tune large language models with low-rank adapters."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing but ``SystemExit`` of a third party escapes."""
    set_environment()
    try:
        result = cli.main(args=None if argv is None else list(argv), prog_name="lora", standalone_mode=False)
        sys.stdout.flush()
    except BaseException as error:
        if isinstance(error, (SystemExit, GeneratorExit)):
            raise
        if argv is None and isinstance(error, (KeyboardInterrupt, Interrupted)):
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # impatience would be a traceback out of Python's own exit
        return report(error)
    return result if isinstance(result, int) else 0


def report(error: BaseException) -> int:
    """Say on stderr what went wrong, in the fewest words that help, and return the exit code."""
    if os.environ.get("LORA_DEBUG", "0") not in {"", "0"} and not isinstance(error, click.ClickException):
        traceback.print_exception(error)
    if isinstance(error, BrokenPipeError):
        # The reader (head, less) has gone: not worth a word, but Python would flush once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if isinstance(error, click.ClickException):
        error.show()
        return 2
    code, message = explain(error)
    print(message, file=sys.stderr)
    return code


def explain(error: BaseException) -> tuple[int, str]:
    """The exit code and the message of an exception."""
    if isinstance(error, Interrupted):
        return 2, f"interrupted: {error}"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return 2, "interrupted"
    if isinstance(error, LoraError):
        return 2, f"error: {error}"
    if isinstance(error, OSError) and error.errno in _SYSTEM_ERRORS:
        place = f" ({error.filename})" if error.filename else ""
        return 2, f"error: {error.strerror or error}{place}"
    if is_out_of_memory(error):
        return 2, (
            "error: out of memory. Smaller: --batch-size (with --accumulation to keep the step's size), --max-length; "
            "slower but leaner: --gradient-checkpointing. `lora plan` with the same options says what fits\n"
            f"{_first_line(error)}".rstrip()
        )
    if isinstance(error, ModuleNotFoundError) and error.name and not error.name.startswith("lora"):
        return 2, f"error: the package {error.name!r} is not installed; `lora doctor` names the command that adds it"
    hint = "" if os.environ.get("LORA_DEBUG") else " (set LORA_DEBUG=1 for the traceback)"
    return 1, f"internal error: {type(error).__name__}: {_first_line(error)}{hint}"


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def set_environment() -> None:
    """Switches that third parties read only when they are first imported; what the user has set stands."""
    values = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # Forked data workers make the tokenizers library print a warning and fall back to this very value.
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    if "OMP_WAIT_POLICY" not in os.environ:
        # GNU's OpenMP spins 300,000 times before a waiting thread sleeps (its manual, section GOMP_SPINCOUNT). Where
        # another program has the core of the thread that is waited for, that is lost: 25 steps of a small encoder took
        # 22.6 s on two cores with two other programs, and 5.6 s with 1,000 spins. On an idle machine 2.5 s with either.
        values["GOMP_SPINCOUNT"] = "1000"
    for name, value in values.items():
        os.environ.setdefault(name, value)


def quiet_libraries() -> None:
    """Silence progress bars and notices of transformers and datasets; a command calls it before it loads a model.

    What those notices say and a user must know (a head that is new, a text cut short) is in our own reports.
    """
    set_environment()
    import transformers

    logging: Any = transformers.logging
    if os.environ["TRANSFORMERS_VERBOSITY"] == "error":
        logging.set_verbosity_error()
    logging.disable_progress_bar()
    if "datasets" in sys.modules:
        sys.modules["datasets"].disable_progress_bars()

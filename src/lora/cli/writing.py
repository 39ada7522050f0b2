"""What commands share that read rows and write answers: options, input, and the file that can be gone on with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from lora.cli.progress import RowProgress
from lora.config import SamplingConfig
from lora.errors import ConfigError, DataError, Interrupted

if TYPE_CHECKING:
    from lora.io.lines import LinesFile

F = TypeVar("F", bound=Callable[..., Any])


def sampling_options(function: F) -> F:
    """Decorator: an option for each field of `SamplingConfig`; the function gets those given as ``sampling``."""

    def collect(*args: Any, **kwargs: Any) -> Any:
        given = {name: kwargs.pop(name) for name in SamplingConfig.model_fields}
        return function(*args, sampling={name: value for name, value in given.items() if value is not None}, **kwargs)

    collect.__doc__, collect.__name__ = function.__doc__, function.__name__
    collect.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for name, field in reversed(SamplingConfig.model_fields.items()):
        option = click.option(
            f"--{name.replace('_', '-')}", name, default=None, type=field.annotation, metavar="NUMBER",
            help=f"{field.description}  [default: {field.default:g}]",
        )  # fmt: skip
        option(collect)
    return collect  # type: ignore[return-value]


def base_options(function: F) -> F:
    """Decorator: where the base is and whether it may be another; as ``model`` and ``loading``."""

    def collect(*args: Any, trust_remote_code: bool, allow_other_base: bool, **kwargs: Any) -> Any:
        loading = {"trust_remote_code": trust_remote_code, "allow_other_base": allow_other_base}
        return function(*args, loading=loading, **kwargs)

    collect.__doc__, collect.__name__ = function.__doc__, function.__name__
    collect.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in (
        click.option("--allow-other-base", is_flag=True, help="use an adapter on a base it was not trained on"),
        click.option("--trust-remote-code", is_flag=True, help="let the base model's repository run its own code"),
        click.option("--model", "-m", metavar="BASE", help="the base model (default: the one the adapter names)"),
    ):
        option(collect)
    return collect  # type: ignore[return-value]


def file_options(function: F) -> F:
    """Decorator: what is written where."""
    for option in (
        click.option("--overwrite", is_flag=True, help="replace what --output names, finished or not"),
        click.option("--resume", is_flag=True, help="go on with what a stopped run left of the file --output names"),
        click.option("--output", "-o", metavar="FILE", help="write JSON lines here instead of printing them"),
    ):
        function = option(function)
    return function


def output_file(output: str | None, resume: bool, overwrite: bool, data: str | None) -> LinesFile | None:
    """The file to write; None: standard output. Raises ConfigError."""
    from lora.io.lines import LinesFile

    if output is None:
        if resume:
            raise ConfigError("--resume goes on with a file; name it with --output")
        return None
    return LinesFile(output, resume=resume, overwrite=overwrite, reads=data)


def read_rows(texts: Sequence[str], data: str | None) -> list[Any]:
    """Rows to answer: ``texts``, lines of standard input (``-``), or those of a file, folder or hub id."""
    if data is None:
        return list(texts)
    if data == "-":
        rows: list[Any] = _lines()
        if not rows:
            raise DataError("standard input: there are no lines")
        return rows
    from lora.data.sources import load_rows

    return load_rows(data, "test")


def _lines() -> list[str]:
    """Lines of standard input. An empty one among them is a row at fault: left out, it would shift the answers."""
    lines = [line.rstrip("\r\n") for line in sys.stdin]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def job_of(rows: list[Any], base: Any, folders: Mapping[str, Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of answers is of, to be compared with what it is gone on with.

    Args:
        base: the base model.
        folders: of the adapters, by name.
        settings: whatever else the answers depend on.
    """
    from lora import __version__
    from lora.data.sources import rows_sha256
    from lora.io.describe import files_sha256
    from lora.io.fingerprint import fingerprint

    return {
        "lora": __version__,
        "data": f"{len(rows)} rows, {rows_sha256(rows)[:16]}",
        "base": f"{fingerprint(base)}, {str(base.dtype).removeprefix('torch.')}",
        **{f"adapter {name}".rstrip(): files_sha256(folder)[:16] for name, folder in folders.items()},
        **settings,
    }


def write_answers(
    file: LinesFile, job: Mapping[str, Any], rows: list[Any], each: int, at_once: int,
    answers: Callable[[int, RowProgress], Iterable[Mapping[str, Any]]], what: str,
) -> None:  # fmt: skip
    """Write the answers to ``rows`` and say where they are.

    Args:
        each: answers to a row.
        at_once: rows that are answered together.
        answers: gives those from a row number on, and counts them in the progress.
        what: they are called.

    Raises:
        Interrupted: by Ctrl-C; what was written can be gone on with.
    """
    try:
        with file.open(job, each * at_once) as out, RowProgress(len(rows) * each, out.done, what) as progress:
            if out.done:
                progress.say(f"{out.done} of {len(rows) * each} {what} are there already")
            if out.done < len(rows) * each:
                for answer in answers(out.done // each, progress):
                    out.write(answer)
    except KeyboardInterrupt:
        raise Interrupted(
            f"what was written is in {file.part}; go on with it by the same command and --resume"
        ) from None
    print(f"{len(rows) * each} {what}: {file.path}")

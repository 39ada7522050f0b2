"""``lora eval --harness``: adapters beside their base on standard benchmarks, by lm-eval."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from lora.errors import ConfigError
from lora.io.places import file_to_write

F = TypeVar("F", bound=Callable[..., Any])

OPTIONS = {
    "tasks": click.option(
        "--harness", "tasks", multiple=True, metavar="TASK[,TASK]",
        help="benchmarks of lm-eval, such as arc_easy; for as many adapters as you name",
    ),
    "named": click.option(
        "--adapter", "named", multiple=True, metavar="NAME=FOLDER", help="an adapter, and what to call it"
    ),
    "include": click.option(
        "--harness-include", "include", metavar="DIR", help="folder with benchmarks of your own: YAML files of lm-eval"
    ),
    "limit": click.option("--limit", type=click.IntRange(min=1), metavar="N", help="documents of each benchmark"),
    "fewshot": click.option(
        "--fewshot", type=click.IntRange(min=0), metavar="N",
        help="examples in each prompt of a benchmark (default: as it says)",
    ),
    "chat_template": click.option(
        "--chat-template", is_flag=True, help="put prompts of benchmarks in the tokenizer's chat template"
    ),
}  # fmt: skip

NAMED = {"--adapter": "named", "--harness-include": "include", "--chat-template": "chat_template"}


def harness_options(function: F) -> F:
    """Decorator: what belongs to benchmarks alone; as ``harness``."""

    def collect(*args: Any, **kwargs: Any) -> Any:
        return function(*args, harness={name: kwargs.pop(name) for name in OPTIONS}, **kwargs)

    collect.__doc__, collect.__name__ = function.__doc__, function.__name__
    collect.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    for option in reversed(OPTIONS.values()):
        option(collect)
    return collect  # type: ignore[return-value]


def refuse_without_benchmark(harness: dict[str, Any]) -> None:
    """Raise ConfigError where what benchmarks alone need was given without one."""
    given = [f"--{name.replace('_', '-')}" for name in ("limit", "fewshot") if harness[name] is not None]
    given += [option for option, name in NAMED.items() if harness[name] and name != "named"]
    if given:
        raise ConfigError(f"{given[0]} is for benchmarks; name one with --harness")


def run_benchmarks(
    adapters: tuple[str, ...], model: str | None, harness: dict[str, Any], loading: dict[str, Any], *, baseline: bool,
    batch_size: int, as_json: bool, output: str | None, overwrite: bool, unused: Iterable[tuple[str, Any]],
) -> None:  # fmt: skip
    """Load, measure, show. Everything that can be known to be wrong is said before the model is loaded."""
    from lora.cli import quiet_libraries

    for name, value in unused:
        if value:
            raise ConfigError(f"--harness brings its own data and prompts; leave out {name} and what goes with it")
    tasks = [name.strip() for given in harness["tasks"] for name in given.split(",") if name.strip()]
    if not tasks:
        raise ConfigError("--harness: name a benchmark, as in --harness arc_easy")
    file = file_to_write(output, "--output", overwrite) if output else None
    quiet_libraries()
    from lora.cli.progress import RowProgress
    from lora.cli.show import console, say
    from lora.core.routing import BASE
    from lora.evaluation.harness import benchmark, load_tasks
    from lora.io.atomic import write_text
    from lora.workflow import choose, load_several

    found = load_tasks(tasks, harness["include"], harness["fewshot"])
    loaded = load_several(choose(adapters, harness["named"], model), **loading)
    for note in loaded.notes:
        say(note)
    with RowProgress(0, unit="requests") as progress:
        benchmarks = benchmark(
            loaded.model, found, tokenizer=loaded.tokenizer, adapters=[n for n in loaded.names if n != BASE] or [BASE],
            baseline=baseline or BASE in loaded.names, limit=harness["limit"], chat_template=harness["chat_template"],
            own_tasks=loaded.tasks, batch_size=batch_size, progress=progress,
        )  # fmt: skip
    text = json.dumps(benchmarks.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    if file:
        write_text(file, text + "\n")
    if as_json:
        print(text)
    else:
        console().print(benchmarks.grid().rich())

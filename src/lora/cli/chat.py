"""``lora chat``: talk to a base model and its adapters."""

from __future__ import annotations

from typing import Any

import click

from lora.cli.writing import base_options, sampling_options
from lora.config import CHAT_LENGTH, SamplingConfig


@click.command()
@click.argument("adapters", nargs=-1, metavar="[ADAPTER]...")
@click.option("--adapter", "named", multiple=True, metavar="NAME=FOLDER", help="an adapter, and what it is called")
@click.option("--system", "-s", metavar="TEXT", help="the system message (default: that of the adapter's training)")
@click.option(
    "--max-length", type=click.IntRange(min=4), metavar="TOKENS",
    help=f"longest conversation, its next answer included (default: the model's positions, at most {CHAT_LENGTH})",
)  # fmt: skip
@sampling_options
@base_options
def command(
    adapters: tuple[str, ...], named: tuple[str, ...], system: str | None, max_length: int | None,
    sampling: dict[str, Any], model: str | None, loading: dict[str, Any],
) -> int:  # fmt: skip
    """Talk to each ADAPTER (an adapter's or a run's folder, or a folder of several) on its base, or to a base alone.

    Messages come from the terminal, or line by line from a pipe; /help tells the commands.

    \b
    lora chat runs/mine
    lora chat runs/a --adapter b=runs/other --temperature 0.7
    """
    from lora.cli import quiet_libraries

    settings = SamplingConfig.make(sampling)
    quiet_libraries()
    from lora.chat.screen import Screen
    from lora.chat.session import Session
    from lora.chat.talk import talk
    from lora.workflow import choose, load_several

    loaded = load_several(choose(adapters, named, model), chat=True, writes=True, **loading)
    session, screen = Session(loaded, settings, system, max_length), Screen()
    for note in loaded.notes:
        screen.note(note)
    if screen.terminal:
        screen.note(f"{session.name} answers (there are: {', '.join(session.voices)}); /help tells the commands")
    return talk(session, screen)

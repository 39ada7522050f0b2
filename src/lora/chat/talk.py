"""The loop: read a message or a command, do it, until there is no more. In a terminal, or from a pipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from lora.chat.commands import Commands, Quit
from lora.chat.screen import Screen
from lora.chat.session import Session
from lora.errors import LoraError

QUOTES = '"""'


def talk(session: Session, screen: Screen) -> int:
    """Talk until the end of the input, or /quit. Gives 2 where something went wrong that no one was there to see."""
    interactive = sys.stdin.isatty() and screen.terminal
    commands = Commands(session, screen, lambda run: _stoppable(session, run) if interactive else run())
    read, failed = _typed if interactive else _piped, 0
    while True:
        try:
            message = read_message(read)
            if message is None:
                break
            if message.strip():
                commands.run(message)
        except Quit:
            break
        except LoraError as error:
            screen.error(str(error))
            failed = 2
        except KeyboardInterrupt:
            if not interactive:
                raise
            screen.note("\n(/quit or Ctrl-D to leave)")
    return 0 if interactive else failed


def read_message(read: Callable[[str], str | None]) -> str | None:
    """One message: a line, or several that are joined. None: there is no more.

    Args:
        read: gives the next line, without its end, or None; it is told what to ask for it with.
    """
    line = read("> ")
    if line is None:
        return None
    if line.startswith(QUOTES):
        lines = [line.removeprefix(QUOTES)]
        while not lines[-1].endswith(QUOTES) and (more := read(". ")) is not None:
            lines.append(more)
        return "\n".join(lines).removesuffix(QUOTES).strip("\n")
    lines = [line]
    while lines[-1].endswith("\\") and (more := read(". ")) is not None:
        lines[-1] = lines[-1][:-1]
        lines.append(more)
    return "\n".join(lines)


def _typed(prompt: str) -> str | None:
    with suppress(ImportError):
        import readline  # noqa: F401  (lines can be edited and called back)
    try:
        return input(prompt)
    except EOFError:
        print()
        return None


def _piped(prompt: str) -> str | None:
    line = sys.stdin.readline()
    return line.rstrip("\r\n") if line else None


def _stoppable(session: Session, run: Callable[[], None]) -> None:
    with _interrupt(session):
        run()


@contextmanager
def _interrupt(session: Session) -> Iterator[None]:
    """The first Ctrl-C stops the answer at what there is, the second throws it away."""
    session.stopping = False

    def stop(*_: Any) -> None:
        if session.stopping:
            raise KeyboardInterrupt
        session.stopping = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        session.stopping = False

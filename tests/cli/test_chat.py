"""`lora chat` as a process: from a pipe and in a pseudo-terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from chat_base import CHAT, SINGLE, save_adapters, save_chat_base
from command import COLD, lora, surroundings
from lora.cli import main


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = save_chat_base(tmp_path_factory.mktemp("base"))
    return save_adapters(base, tmp_path_factory.mktemp("adapters"), {"a": CHAT, "b": SINGLE})


def run(*arguments: Any, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return lora(*arguments, text=text, TERM="xterm", COLUMNS="100")


def test_chat_from_a_pipe(adapters: dict[str, Path], tmp_path: Path) -> None:
    talk = [
        "moon sun",
        "/use b",
        "red sun",
        "/compare a b -- red sun",
        "/save " + str(tmp_path / "t.jsonl"),
        "/nonsense",
    ]
    call = ["chat", adapters["a"], "--adapter", f"b={adapters['b']}", "--max-new-tokens", 5, "--system", "be small"]
    done = run(*call, text="\n".join(talk))  # no line break at the end
    assert done.returncode == 2, "a mistake was made, and nobody was there to see it"
    (row,) = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    assert len(answers) == 2 and row["messages"][0] == {"role": "system", "content": "be small"}
    out = done.stdout.split("\n")
    assert out[:2] == answers and out[2] == "a:" and "\x1b" not in done.stdout + done.stderr
    assert out[4:6] == ["b:", answers[1]], "one that is asked with single prompts says the same again"
    assert "error: /nonsense is unknown; known: use" in done.stderr and "Traceback" not in done.stderr
    assert len(re.findall(r"tokens/s, (?:ended by itself|reached max-new-tokens); prompt \d+ tokens", done.stderr)) == 2


def test_chat_refuses(adapters: dict[str, Path], capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        ([], "name an adapter's or a run's folder"),
        ([adapters["a"], "--top-p", "2"], "top_p: must be less than or equal to 1"),
        ([adapters["a"], "--max-new-tokens", "128"], "leave no room for a prompt"),
        ([adapters["a"].parent / "c"], "there is no such adapter folder"),
        (
            [adapters["b"], "--system", "x", "--max-new-tokens", 5],
            "b is asked with a bare text and knows no system message",
        ),
    ):
        assert main(["chat", *map(str, arguments)]) == 2
        said = capfd.readouterr().err
        assert said.count("error:") == 1 and words in said


class Terminal:
    """`lora chat` in a pseudo-terminal."""

    def __init__(self, *arguments: Any) -> None:
        self.process, self.end = pty.fork()
        if self.process == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # jobs of the background ignore it
            os.execve(COLD[0], [*COLD, *map(str, arguments)], surroundings(TERM="xterm", COLUMNS="100"))
        self.shown = ""

    def until(self, pattern: str, seconds: float = 120) -> str:
        """What is shown from now on until ``pattern`` matches it."""
        start, last = len(self.shown), time.monotonic() + seconds
        while not re.search(pattern, self.shown[start:]):
            ready, _, _ = select.select([self.end], [], [], max(0.0, last - time.monotonic()))
            assert ready, f"{pattern!r} has not come: {self.shown}"
            try:
                self.shown += os.read(self.end, 4096).decode()
            except OSError:  # the process has gone
                assert re.search(pattern, self.shown[start:]), self.shown
        return self.shown[start:]

    def type(self, text: str, pattern: str = r"\n(\x1b\[\S*)?> $") -> str:
        os.write(self.end, text.encode())
        return self.until(pattern)

    def leave(self) -> int:
        os.write(self.end, b"\x04")
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def test_chat_in_a_terminal(adapters: dict[str, Path]) -> None:
    terminal = Terminal("chat", adapters["a"], adapters["b"], "--max-new-tokens", 60, "--temperature", 1)
    assert "a answers (there are: a, b, base); /help tells" in terminal.until("> $")
    said = terminal.type("moon sun\n")
    assert "\x1b[1;36ma: " in said and "tokens/s" in said
    said = terminal.type("/compare a base moon sun\n")
    assert re.search(r"\ba\b.*\bbase\b", said), "side by side"
    # Ctrl-C stops an answer and not the program ...
    for seed in range(20):
        terminal.type(f"/set seed {seed}\n")
        os.write(terminal.end, b"tell me all\n")
        terminal.until("a: .*?[a-z]{2,}")
        os.write(terminal.end, b"\x03")
        if "stopped by you" in terminal.until(r"tokens/s, [^\n]*\n[\s\S]*> $"):
            break
    else:
        raise AssertionError("every answer had ended before it was stopped")
    # ... and throws away a line that is begun.
    os.write(terminal.end, b"half a line")
    terminal.until("half a line")
    time.sleep(1)  # a key is echoed before it is read, and Python sleeps over a Ctrl-C while it begins to read
    assert "Ctrl-D to leave" in terminal.type("\x03")
    time.sleep(1)
    said = terminal.type('"""one\ntwo"""\n/history\n', r"user: one\r\ntwo[\s\S]*\n(\x1b\[\S*)?> $")
    assert "did you mean 'quit'" in terminal.type("/quitt\n")
    assert terminal.leave() == 0

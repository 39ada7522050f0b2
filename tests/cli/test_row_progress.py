"""Rows done: lines, a minute apart, where standard error is no terminal, and a bar where it is one."""

from __future__ import annotations

import pytest

from lora.cli import progress
from lora.cli.progress import RowProgress, duration


def test_lines_a_minute_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with RowProgress(1000, done=100, unit="texts") as rows:
        for _ in range(4):
            now[0] += 25
            rows.advance(50)
    said = capsys.readouterr().err
    assert said == "250 of 1000 texts, 2.0 texts/s, 6:15 left\n"


def test_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    with RowProgress(40, done=10) as rows:
        rows.advance(30)
        rows.say("a note [x]")
    said = capsys.readouterr()
    assert "40/40" in said.err and "rows/s" in said.err and "a note [x]" in said.err and said.out == ""


def test_durations() -> None:
    assert [duration(seconds) for seconds in (0.4, 90, 5000)] == ["0:00", "1:30", "1:23:20"]

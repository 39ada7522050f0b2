"""What is shown in a terminal and what is not, and answers side by side."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lora.chat.answer import Answer
from lora.chat.screen import Screen


def answers(*texts: str) -> list[Answer]:
    return [Answer(f"n{place}", text, "end", 3, 2.0, 5) for place, text in enumerate(texts)]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(width: int) -> Screen:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
        return Screen()

    return make


def compare(screen: Screen, *texts: str) -> None:
    """A piece of each in turn, as they come out of one batch; the last ends first."""
    with screen.comparing([f"n{place}" for place in range(len(texts))]) as piece:
        for at in range(max(map(len, texts))):
            for place in reversed(range(len(texts))):
                piece(place, texts[place][at : at + 1])
        piece(len(texts) - 1, None)
    screen.compared(answers(*texts))


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_side_by_side_where_there_is_room(terminal: Any, capsys: pytest.CaptureFixture[str]) -> None:
    compare(terminal(80), "the one [b]", "the other")
    said = plain(capsys.readouterr().out)
    assert re.search(r"n0 .*n1 ", said) and re.search(r"the one \[b\] .*the other", said)
    compare(terminal(60), "the one", "the other")
    said = plain(capsys.readouterr().out)
    assert "n0:\nthe one\n" in said and "n1:\nthe other\n" in said
    assert "n1: 3 tokens, ended by itself" in said and "6 tokens in one batch, 3.0 tokens/s" in said


def test_a_model_does_not_steer_the_terminal(terminal: Any, capsys: pytest.CaptureFixture[str]) -> None:
    steering = "a\x1b[2Jb\x07c\r\x9bd\te\nf"
    for show in (lambda screen: screen.piece(steering), lambda screen: compare(screen, steering, steering)):
        show(terminal(100))
        said = re.sub(r"\x1b\[\??[0-9;]*[A-Za-z]|\r", "", capsys.readouterr().out)  # those of rich
        assert "a[2Jbcd" in said and not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", said)


def test_a_pipe_holds_answers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen()
    screen.begin("a")
    screen.piece("one")
    screen.piece(" two\x1b")
    screen.done(Answer("a", "one two", "length", 4, 2.0, 5, 3, ["Something to know."]))
    screen.error("wrong")
    said = capsys.readouterr()
    assert said.out == "one two\x1b\n"
    assert said.err == (
        "Something to know.\n4 tokens, 2.0 tokens/s, reached max-new-tokens; prompt 5 tokens, 3 of them from before\n"
        "error: wrong\n"
    )


def test_the_first_of_several_comes_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    seen = []
    with Screen().comparing(["a", "b", "c"]) as piece:
        for place, text in ((0, "one"), (1, "1"), (2, "x"), (1, None), (0, " two"), (0, None), (2, "y")):
            piece(place, text)
            seen.append(capsys.readouterr().out)
    assert seen == ["a:\none", "", "", "", " two", "\nb:\n1\nc:\nx", "y"] and capsys.readouterr().out == "\n"

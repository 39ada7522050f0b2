"""What can be typed: commands, several lines, mistakes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lora.chat.commands import COMMANDS, Commands, Quit
from lora.chat.screen import Screen
from lora.chat.session import Session
from lora.chat.talk import read_message
from lora.config import DataConfig
from lora.errors import ConfigError, DataError
from lora.tasks.inputs import task_for


class Typed:
    """Commands of one session, with what was printed since one last looked."""

    def __init__(self, session: Session, capsys: pytest.CaptureFixture[str]) -> None:
        self.session, self._capsys = session, capsys
        self._commands = Commands(session, Screen(), lambda run: run())

    def __call__(self, *lines: str) -> str:
        self._capsys.readouterr()
        for line in lines:
            self._commands.run(line)
        said = self._capsys.readouterr()
        return said.out + said.err


@pytest.fixture
def typed(session: Any, capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(session(), capsys)


def contents(typed: Typed) -> list[str]:
    return [message["content"] for message in typed.session.messages]


def test_messages_and_slashes(typed: Typed) -> None:
    said = typed("red sun", "//moon")
    assert contents(typed)[::2] == ["red sun", "/moon"] and "tokens/s" in said
    assert contents(typed)[1] in said and "of them from before" in said


def test_taking_back(typed: Typed) -> None:
    typed("moon sun", "sun")
    before = contents(typed)
    assert "the same answer comes again" in typed("/retry") and contents(typed) == before
    typed("/set temperature 1.9")
    assert "comes again" not in typed("/retry") and contents(typed)[:3] == before[:3]
    assert "2 messages taken back" in typed("/undo") and contents(typed) == before[:2]
    typed("/system be small", "/clear")
    assert contents(typed) == [] and typed.session.system == "be small"
    assert "there is nothing to take back" in typed("/undo")
    assert "there is no system message" in typed('/system ""')
    with pytest.raises(ConfigError, match="there is nothing to answer yet"):
        typed("/retry")


def test_others_answer(typed: Typed) -> None:
    typed("red sun", "/use b", "moon")
    assert "* b: chat, plain, rank 4" in typed("/adapters") and "single: single prompts" in typed("/adapters")
    assert "  base: chat, the base model itself" in typed("/adapters")
    for line, names in (
        ("/compare a base red sun", ["a", "base"]), ("/compare a b -- base red", ["a", "b"]),
        ("/compare red sun", ["a", "b", "single", "base"]), ("/compare -- a", ["a", "b", "single", "base"]),
    ):  # fmt: skip
        said = [part.removesuffix(":") for part in typed(line).splitlines() if part.endswith(":")]
        assert said == names
    assert len(typed.session.messages) == 4
    for line, words in (("/compare a b", "the text is missing"), ("/compare aa -- x", "did you mean 'a'")):
        with pytest.raises(ConfigError, match=words):
            typed(line)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/uze b", "/uze is unknown; did you mean 'use'"),
        ("/use c", "'c' is unknown"),
        ("/use", "/use NAME; there are: a, b, single, base"),
        ("/undo 3", "/undo stands alone"),
        ("/set temperature hot", "temperature: must be a valid number"),
        ("/set temprature 1", "temprature: unknown setting; did you mean 'temperature'"),
        ("/set top_p 7", "top_p: must be less than or equal to 1"),
        ("/save", "the file is missing"),
        ("/save x.jsonl", "there is no answer yet"),
        ("/load nowhere.jsonl", "there is no such file"),
    ],
)
def test_mistakes(typed: Typed, line: str, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        typed(line)


def test_what_is_saved_can_be_trained_on_and_gone_on_with(typed: Typed, tmp_path: Path) -> None:
    file = tmp_path / "new" / "talk.jsonl"
    typed("/system be small", "red", "sun\u2028moon")
    first = typed.session.whole()
    assert "1 conversation\n" in typed(f"/save {file}")
    typed("/clear", "/system old", "moon")
    assert "2 conversations" in typed(f"/save {file}")
    rows = [json.loads(line) for line in file.read_text().split("\n")[:-1]]
    assert rows == [{"messages": first}, {"messages": typed.session.whole()}]
    task, _ = task_for(rows, DataConfig())
    assert task.name == "chat"
    assert "4 messages" in typed(f"/load {file} 1") and typed.session.whole() == first
    typed(f"/load {file}")
    assert typed.session.system == "old" and len(contents(typed)) == 2
    with pytest.raises(DataError, match="holds 2 conversations; 3 is none of them"):
        typed(f"/load {file} 3")
    file.write_text(json.dumps({"conversations": [{"from": "human", "value": "sun"}]}) + "\n")
    assert "1 message; /retry answers the last" in typed(f"/load {file}")
    typed("/retry")
    assert len(contents(typed)) == 2
    tools = [{"type": "function", "function": {"name": "now"}}]
    file.write_text(json.dumps({"messages": first, "tools": json.dumps(tools)}) + "\n")
    assert "4 messages, 1 tool" in typed(f"/load {file}")
    typed(f"/save {file}")
    assert json.loads(file.read_text().split("\n")[1]) == {"messages": first, "tools": tools}
    file.write_text(json.dumps({"messages": first, "tools": "{"}) + "\n")
    with pytest.raises(DataError, match="row 1: tools is no JSON"):
        typed(f"/load {file}")
    file.write_text('{"prompt": "x"}\n')
    with pytest.raises(DataError, match="row 1 has no messages"):
        typed(f"/load {file}")
    with pytest.raises(ConfigError, match="holds something else than conversations"):
        typed(f"/save {file}")
    assert file.read_text() == '{"prompt": "x"}\n'


def test_help_tells_every_command(typed: Typed) -> None:
    said = typed("/help")
    assert all(f"/{name}" in said and hasattr(Commands, f"do_{name}") for name in COMMANDS)
    with pytest.raises(Quit):
        typed("/exit")


def lines(*given: str) -> Callable[[str], str | None]:
    left = iter(given)
    return lambda prompt: next(left, None)


def test_several_lines() -> None:
    assert read_message(lines("a")) == "a" and read_message(lines()) is None
    assert read_message(lines("a\\", "b\\", "c", "d")) == "a\nb\nc"
    assert read_message(lines('"""', "a", "", 'b"""', "c")) == "a\n\nb"
    assert read_message(lines('"""a"""', "b")) == "a"
    assert read_message(lines("a\\")) == "a\\", "nothing comes any more"

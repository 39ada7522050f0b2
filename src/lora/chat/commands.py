"""What can be typed beside messages: a method for each command, and the text of /help from these."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from lora.chat.screen import Screen
from lora.chat.session import Session
from lora.config import SamplingConfig
from lora.core.routing import BASE
from lora.data.columns import MESSAGES
from lora.data.conversations import holds_messages, read_messages, read_tools
from lora.data.sources import load_rows
from lora.errors import ConfigError, DataError
from lora.io.atomic import write_text
from lora.io.places import file_to_write
from lora.plural import number_of
from lora.registry import unknown
from lora.tasks.templated import named_error

# name -> (what follows it, what it does); the order is that of /help.
COMMANDS = {
    "use": ("NAME", "let another adapter answer, or base"),
    "compare": ("[NAME ...] [--] TEXT", "answers of several to the same, in one batch; without names: of all"),
    "adapters": ("", "who is there"),
    "history": ("", "show the conversation"),
    "undo": ("", "take back the last message and its answer"),
    "retry": ("", "answer the last message again"),
    "clear": ("", "begin a new conversation"),
    "system": ('[TEXT]', 'show or set the system message; "" takes it away'),
    "set": ("[NAME VALUE]", "show or set how answers are drawn, as in /set temperature 0.7"),
    "save": ("FILE", "add the conversation to a jsonl file, which can be trained on"),
    "load": ("FILE [NUMBER]", "go on with a conversation of a file, by default the last"),
    "help": ("", "this"),
    "quit": ("", "leave (also Ctrl-D)"),
}  # fmt: skip
OTHERS = {"exit": "quit", "q": "quit", "?": "help", "h": "help"}
INPUT = (
    'A line that ends with a backslash goes on in the next; a message between two """ has any number of lines.\n'
    "Ctrl-C stops an answer. A message that begins with a slash is written with two."
)


class Quit(Exception):
    """The user wants to leave."""


class Commands:
    """The commands of one session.

    Arguments:
        answered: runs what answers, so that Ctrl-C stops that alone.
    """

    def __init__(self, session: Session, screen: Screen, answered: Callable[[Callable[[], None]], None]) -> None:
        self.session, self.screen, self._answered = session, screen, answered

    def run(self, line: str) -> None:
        """Do what ``line`` says: a command, or a message to be answered. Raises Quit, and LoraError for mistakes."""
        if not line.startswith("/") or line.startswith("//"):
            self._message(line.removeprefix("/") if line.startswith("//") else line)
            return
        word, _, rest = line[1:].partition(" ")
        name = OTHERS.get(word.lower(), word.lower())
        if name not in COMMANDS:
            raise ConfigError(f"/{word} is {unknown(name, COMMANDS)} (a message that begins with / is written with //)")
        rest = rest.strip()
        if rest and not COMMANDS[name][0]:
            raise ConfigError(f"/{name} stands alone; {rest!r} is not understood")
        getattr(self, f"do_{name}")(rest)

    def _message(self, text: str) -> None:
        self._answered(lambda: self._show(lambda: self.session.ask(text, self.screen.piece)))

    def _show(self, answer: Callable[[], object]) -> None:
        self.screen.begin(self.session.name)
        self.screen.done(answer())  # type: ignore[arg-type]

    def do_use(self, rest: str) -> None:
        if not rest:
            raise ConfigError(f"/use NAME; there are: {', '.join(self.session.voices)}")
        self.session.use(rest)
        self.screen.note(f"{rest} answers from now on")

    def do_compare(self, rest: str) -> None:
        names, text = self._names_and_text(rest)
        if not text:
            raise ConfigError("/compare [NAME ...] [--] TEXT: the text is missing")
        self._answered(lambda: self._compare(names, text))

    def _compare(self, names: list[str], text: str) -> None:
        with self.screen.comparing(names) as piece:
            answers = self.session.compare(names, text, piece)
        self.screen.compared(answers)

    def _names_and_text(self, rest: str) -> tuple[list[str], str]:
        """Names as long as words are some, or up to ``--``; without any all there are."""
        before, dashes, after = f" {rest}".partition(" -- ")
        if dashes:
            return [self.session.known(name) for name in before.split()] or list(self.session.voices), after.strip()
        names, text = list[str](), rest
        while text and (word := text.split(maxsplit=1)[0]) in self.session.voices:
            names.append(word)
            text = text[len(word) :].lstrip()
        return list(dict.fromkeys(names)) or list(self.session.voices), text

    def do_adapters(self, rest: str) -> None:
        model = self.session.model
        for name, voice in self.session.voices.items():
            mark = "*" if name == self.session.name else " "
            how = "chat" if voice.chats else "single prompts"
            if name == BASE:
                what = f"the base model itself, {getattr(model.config, '_name_or_path', '')}"
            else:
                config = model.adapters[name]
                what = f"{config.variant}, rank {config.rank}, {self.session.loaded.folders[name]}"
            self.screen.say(f"{mark} {name}: {how}, {what}")

    def do_history(self, rest: str) -> None:
        for message in self.session.whole():
            calls = message.get("tool_calls")
            self.screen.say(f"{message['role']}: {message['content']}{json.dumps(calls) if calls else ''}")
        if not self.session.messages:
            self.screen.note("nothing has been said yet")

    def do_undo(self, rest: str) -> None:
        count = self.session.undo()
        self.screen.note(f"{number_of(count, 'message')} taken back" if count else "there is nothing to take back")

    def do_retry(self, rest: str) -> None:
        if self.session.answered and not self.session.sampling.temperature:
            self.screen.note("the temperature is 0, so the same answer comes again; /set temperature 0.7")
        self._answered(lambda: self._show(lambda: self.session.retry(self.screen.piece)))

    def do_clear(self, rest: str) -> None:
        self.session.clear()
        self.screen.note("a new conversation")

    def do_system(self, rest: str) -> None:
        if rest:
            self.session.system = rest if rest.strip("\"'") else None
        self.screen.note(f"system: {self.session.system}" if self.session.system else "there is no system message")

    def do_set(self, rest: str) -> None:
        now = self.session.sampling.model_dump()
        name, _, value = rest.replace("=", " ").partition(" ")
        if name:
            self.session.sampling = SamplingConfig.make({**now, SamplingConfig.canonical(name): value.strip()})
        shown = self.session.sampling.model_dump().items()
        self.screen.note(", ".join(f"{key.replace('_', '-')} {value:g}" for key, value in shown))

    def do_save(self, rest: str) -> None:
        if not rest:
            raise ConfigError("/save FILE: the file is missing")
        if not any(message["role"] == "assistant" for message in self.session.messages):
            raise ConfigError("there is no answer yet to be saved")
        path = file_to_write(rest, "/save")
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        count = _conversations(before)
        if count is None:
            raise ConfigError(f"/save: {path} holds something else than conversations; name another file")
        if before and not before.endswith("\n"):
            before += "\n"
        row = {"messages": self.session.whole(), **({"tools": self.session.tools} if self.session.tools else {})}
        write_text(path, before + json.dumps(row, ensure_ascii=False) + "\n")
        self.screen.note(f"{path}: {count + 1} conversation{'s' if count else ''}")

    def do_load(self, rest: str) -> None:
        place, _, number = rest.rpartition(" ")
        if not place or not number.isdecimal() or Path(rest).expanduser().exists():
            place, number = rest, ""
        if not place:
            raise ConfigError("/load FILE: the file is missing")
        rows = load_rows(place)
        which = int(number) if number else len(rows)
        if not 1 <= which <= len(rows):
            raise DataError(f"{place} holds {number_of(len(rows), 'conversation')}; {which} is none of them")
        row = rows[which - 1]
        column = next((name for name in MESSAGES if holds_messages(row.get(name))), None)
        if column is None:
            raise DataError(f"{place}: row {which} has no messages (it has: {', '.join(row)})")
        try:
            self.session.replace(named_error(column, read_messages, row), named_error("tools", read_tools, row))
        except ValueError as error:
            raise DataError(f"{place}: row {which}: {error}") from None
        messages = self.session.messages
        tools = f", {number_of(len(self.session.tools), 'tool')}" if self.session.tools else ""
        waits = bool(messages) and messages[-1]["role"] != "assistant"
        self.screen.note(f"{number_of(len(messages), 'message')}{tools}{'; /retry answers the last' if waits else ''}")

    def do_help(self, rest: str) -> None:
        width = max(len(f"/{name} {what}") for name, (what, _) in COMMANDS.items())
        for name, (what, does) in COMMANDS.items():
            self.screen.say(f"{f'/{name} {what}':<{width}}  {does}")
        self.screen.say(INPUT)

    def do_quit(self, rest: str) -> None:
        raise Quit


def _conversations(text: str) -> int | None:
    """How many lines of conversations ``text`` is; None: it is something else."""
    count = 0
    for line in filter(str.strip, text.split("\n")):  # not splitlines: messages may hold other line breaks
        try:
            row = json.loads(line)
        except ValueError:
            return None
        if not isinstance(row, dict) or not holds_messages(row.get("messages")):
            return None
        count += 1
    return count

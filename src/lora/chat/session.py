"""One conversation with a base and its adapters: messages in, answers out, token by token."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lora.chat.answer import Answer
from lora.chat.kept import Kept
from lora.chat.prompts import fitted, prompt_ids
from lora.chat.stream import Stream
from lora.config import CHAT_LENGTH, SamplingConfig
from lora.core.randomness import seed_of
from lora.core.routing import BASE
from lora.data.conversations import Message
from lora.errors import ConfigError, DataError
from lora.evaluation.decoding import Written, decode
from lora.evaluation.voices import Voice, voices_of
from lora.model.base import pad_token_id, positions_of
from lora.registry import unknown

if TYPE_CHECKING:
    from lora.workflow.several import Loaded


class Session:
    """A conversation.

    Arguments:
        loaded: the base, its adapters, their tasks.
        system: the system message; None: that of the adapter's training, if there was one.
        length: tokens of a conversation with its answer; default: the model's positions, at most `CHAT_LENGTH`.
        reuse: whether keys and values are kept from turn to turn.

    Attributes:
        messages: without the system message.
        tools: functions that the assistant may call, as JSON schemas; None: there are none.
        name: who answers.
        stopping: set to leave the answer in the making at what there is.
    """

    def __init__(
        self, loaded: Loaded, sampling: SamplingConfig, system: str | None = None, length: int | None = None,
        reuse: bool = True,
    ) -> None:  # fmt: skip
        self.loaded, self.model, self.tokenizer = loaded, loaded.model, loaded.tokenizer
        names = [*loaded.folders, BASE]
        self.voices: dict[str, Voice] = voices_of(self.model, names, self.tokenizer, loaded.tasks)
        self.name = loaded.names[0]
        self.messages: list[Message] = []
        self.tools: list[Any] | None = None
        self.stopping = False
        self._length = length
        self.sampling = sampling
        self.system = system
        self._kept = Kept(self.model.base) if reuse else None
        self._start = 0  # the first message that is still asked with
        self._told: set[str] = set()
        self._turn = 0

    @property
    def sampling(self) -> SamplingConfig:
        return self._sampling

    @sampling.setter
    def sampling(self, value: SamplingConfig) -> None:
        positions = min(self._length or CHAT_LENGTH, positions_of(self.model.base) or CHAT_LENGTH)
        if positions - value.max_new_tokens < 2:
            raise ConfigError(
                f"max_new_tokens: {value.max_new_tokens} leave no room for a prompt in {positions} tokens; lower it"
            )
        self._sampling, self.room = value, positions - value.max_new_tokens

    @property
    def system(self) -> str | None:
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if text and not self.voice.chats:
            raise ConfigError(f"{self.name} is asked with a bare text and knows no system message")
        self._system = text or None

    @property
    def voice(self) -> Voice:
        return self.voices[self.name]

    def known(self, name: str) -> str:
        """``name``, where somebody is called so. Raises ConfigError naming the nearest."""
        if name not in self.voices:
            raise ConfigError(f"{name!r} is {unknown(name, self.voices)}")
        return name

    def use(self, name: str) -> None:
        """Let ``name`` answer from now on; the conversation stays."""
        self.name = self.known(name)

    # -- answers ------------------------------------------------------------------------------------------------------

    def ask(self, text: str, on_text: Callable[[str], None]) -> Answer:
        """The answer to ``text``, which is handed to ``on_text`` piece by piece. Both become part of the conversation.

        Raises DataError where the adapter cannot be asked with it; the conversation is then as it was.
        """
        self.messages.append({"role": "user", "content": text})
        return self._or_as_before(lambda: self.answer(on_text), self.undo, "this exchange is not kept")

    def retry(self, on_text: Callable[[str], None]) -> Answer:
        """Another answer in place of the last one, which stays where the new one is empty or fails.

        Raises ConfigError: there is nothing to answer.
        """
        taken = self.take_answer_back()
        kept = "the one before it stays" if taken else "it is not kept"
        return self._or_as_before(lambda: self.answer(on_text), lambda: self.messages.extend(taken), kept)

    def _or_as_before(self, answer: Callable[[], Answer], take_back: Callable[[], object], then: str) -> Answer:
        start = self._start

        def undo() -> None:
            take_back()
            self._start = start

        try:
            made = answer()
        except BaseException:
            undo()
            raise
        if made.text.strip():
            return made
        undo()
        return replace(made, notes=[*made.notes, f"The answer is empty; {then}."])

    def answer(self, on_text: Callable[[str], None]) -> Answer:
        """The answer to the conversation as it is, which ends with a message to be answered. It becomes part of the
        conversation, unless it is empty: neither templates nor training take such, nor two messages of one role."""
        ids, notes = self._prompt(self.voice)
        begun = time.monotonic()
        stream = Stream(self.tokenizer, self.voice.ends, on_text)
        cache, kept = self._kept.begin(self.name, ids) if self._kept else (None, 0)
        try:
            (written,) = decode(
                self.model, [ids], [self.name], [self.voice.ends], self.sampling, [self._seed()],
                pad_token_id=pad_token_id(self.tokenizer, self.model.base), cache=cache,
                on_token=lambda _, token: stream.put(token), stop=lambda: self.stopping,
            )  # fmt: skip
        except BaseException:
            if self._kept:
                self._kept.forget()  # layers may have come to different lengths
            raise
        if self._kept:
            self._kept.end(self.name, [*ids, *stream.ids])
        text = stream.close()
        if text.strip():
            self.messages.append({"role": "assistant", "content": text})
        return self._made(self.name, written, ids, text, time.monotonic() - begun, kept, notes)

    def compare(
        self, names: Sequence[str], text: str, on_text: Callable[[int, str | None], None] = lambda *_: None
    ) -> list[Answer]:
        """Answers of several to the same conversation with ``text`` behind it, in one batch; it stays as it is.

        ``on_text``: called with the place in ``names`` and each piece of that answer, as they come; None: it is whole.
        """
        voices = [self.voices[self.known(name)] for name in names]
        start = self._start
        self.messages.append({"role": "user", "content": text})
        try:
            asked = [self._prompt(voice) for voice in voices]
        finally:
            self.messages.pop()
            self._start = start
        streams = [Stream(self.tokenizer, voice.ends, partial(on_text, place)) for place, voice in enumerate(voices)]

        def put(place: int, token: int) -> None:
            streams[place].put(token)
            if token in voices[place].ends:
                streams[place].close()
                on_text(place, None)

        begun, seed = time.monotonic(), self._seed()
        written = decode(
            self.model, [ids for ids, _ in asked], list(names), [voice.ends for voice in voices], self.sampling,
            [seed] * len(names), pad_token_id=pad_token_id(self.tokenizer, self.model.base),
            on_token=put, stop=lambda: self.stopping,
        )  # fmt: skip
        seconds = time.monotonic() - begun
        texts = [stream.close() for stream in streams]
        for place, its in enumerate(written):
            if its.stop != "end":
                on_text(place, None)
        return [
            self._made(name, its, ids, text, seconds, 0, notes)
            for name, its, text, (ids, notes) in zip(names, written, texts, asked, strict=True)
        ]

    def _made(
        self, name: str, written: Written, ids: list[int], text: str, seconds: float, kept: int, notes: list[str]
    ) -> Answer:
        return Answer(name, text, written.stop, len(written.ids), seconds, len(ids), kept, notes)

    def _seed(self) -> int:
        self._turn += 1
        return seed_of(self.sampling.seed, self._turn)

    # -- prompts ------------------------------------------------------------------------------------------------------

    def _prompt(self, voice: Voice) -> tuple[list[int], list[str]]:
        """Token ids that the next answer of ``voice`` follows, and what a user should know. Raises DataError."""
        if not voice.chats:
            ids = self._ids(voice, self.messages[-1]["content"])
            if len(ids) > self.room:
                raise DataError(self._too_long(len(ids)))
            alone = f"{voice.name} is asked with a bare text: each message is answered by itself."
            return ids, self._once(alone) if len(self.messages) > 1 else []
        notes = list[str]()
        if self.tools and not voice.tools:
            notes.append(f"{voice.name} was trained without tools: it is not told which there are.")
        ids, start = fitted(lambda start: self._ids(voice, self._asked(start)), self.messages, self._start, self.room)
        if len(ids) > self.room:
            raise DataError(self._too_long(len(ids)))
        if start > self._start:
            notes.append(
                f"The conversation is longer than the {self.room} tokens there is room for: "
                "its oldest exchanges are no longer read by the model."
            )
        self._start = start
        return ids, self._once(*notes)

    def _too_long(self, count: int) -> str:
        return f"this message makes a prompt of {count} tokens and there is room for {self.room}; shorten it"

    def _asked(self, start: int = 0) -> list[Message]:
        """The messages from ``start`` on, the system message before them."""
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.messages[start:]]

    def _ids(self, voice: Voice, asked: Any) -> list[int]:
        return prompt_ids(voice, self.tokenizer, asked, self.tools)

    def _once(self, *notes: str) -> list[str]:
        new = [note for note in notes if note not in self._told]
        self._told.update(new)
        return new

    # -- the conversation ---------------------------------------------------------------------------------------------

    def undo(self) -> int:
        """Take back the last exchange; gives the number of messages taken."""
        before = len(self.messages)
        last = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        del self.messages[last[-1] if last else 0 :]
        if self._start >= len(self.messages):
            self._start = 0  # an earlier message may be an answer: the next prompt finds anew where it begins
        return before - len(self.messages)

    @property
    def answered(self) -> bool:
        """Whether the conversation ends with an answer."""
        return bool(self.messages) and self.messages[-1]["role"] == "assistant"

    def take_answer_back(self) -> list[Message]:
        """Take back what stands behind the last message to be answered, and give it. Raises ConfigError."""
        last = [i for i, message in enumerate(self.messages) if message["role"] in ("user", "tool")]
        if not last:
            raise ConfigError("there is nothing to answer yet")
        taken = self.messages[last[-1] + 1 :]
        del self.messages[last[-1] + 1 :]
        return taken

    def clear(self) -> None:
        """Begin a new conversation; the system message stays."""
        self.messages.clear()
        self.tools = None
        self._start = 0
        self._told.clear()

    def whole(self) -> list[Message]:
        """All messages, the system message first."""
        return self._asked()

    def replace(self, messages: Sequence[Message], tools: list[Any] | None = None) -> None:
        """Go on with ``messages``, the system message among them or none, and with ``tools``."""
        head = 1 if messages and messages[0]["role"] == "system" else 0
        self._system = messages[0]["content"] if head else None
        self.clear()
        self.messages, self.tools = list(messages[head:]), tools

"""Examples as the model gets them, token by token: what each token's text is, and whether it is learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lora.checks.lengths import WHOLE
from lora.checks.remarks import Part, where
from lora.checks.stretches import Piece, Stretch, by_learning, by_role, row_messages
from lora.data.rendering import IGNORED
from lora.data.rows import SourceRow
from lora.errors import ConfigError
from lora.tasks import Task

CONTEXT = 8  # tokens before one that are decoded with it: whether it begins with a space depends on them
LOST = "\ufffd"  # what a part of a character decodes to
BYTES = 4  # tokens that a character of UTF-8 can be spread over


@dataclass
class Example:
    """One example.

    Attributes:
        why: it is shown.
        split, place: where its row stands.
        tokens, learned: how many; ``learned`` None: the task learns a label of the whole.
        part, parts: of the examples that its row became, which one.
        label: of the whole.
        cut: tokens of the row that ``max_length`` took away, and before which piece they stood.
        left_out: whether it is too long to be used at all; it is shown uncut.
        padding: tokens of padding behind it in its batch of the first epoch.
    """

    why: str
    split: str
    place: str
    tokens: int
    stretches: list[Stretch]
    learned: int | None = None
    part: int = 1
    parts: int = 1
    label: Any = None
    cut: tuple[int, int] | None = None
    left_out: bool = False
    padding: int = 0


@dataclass(frozen=True)
class Choice:
    """Which examples are shown.

    Attributes:
        rows: by their numbers in the source, as errors give them.
        shortest, longest, random: whether these, of training.
        count: how many of each of them.
        seed: of random ones.
    """

    rows: Sequence[int] = field(default_factory=tuple)
    shortest: bool = False
    longest: bool = False
    random: bool = False
    count: int = 3
    seed: int = 0


def choose(choice: Choice, parts: Sequence[Part]) -> list[tuple[str, Part, int, int | None]]:
    """(why, split, row, example) of what ``choice`` names; no example: the row was left out.

    Raises ConfigError: there is no such row.
    """
    import numpy as np

    train = parts[0]
    order = np.argsort(train.encoded.lengths, kind="stable").tolist()
    picked = list[tuple[str, list[int]]]()
    if choice.shortest:
        picked.append(("one of the shortest", order[: choice.count]))
    if choice.longest:
        picked.append(("one of the longest", order[::-1][: choice.count]))
    if choice.random:
        random = np.random.default_rng(choice.seed)
        drawn = random.choice(len(order), min(choice.count, len(order)), replace=False)
        picked.append(("drawn at random", drawn.tolist()))
    if not picked and not choice.rows:
        shares = np.linspace(0.05, 0.95, choice.count) if choice.count > 1 else np.full(choice.count, 0.5)
        at = np.unique(shares * (len(order) - 1)).astype(int)
        picked.append(("", list(dict.fromkeys(order[place] for place in at))))
    out = [_named_row(number, parts) for number in choice.rows]
    flat = [example for of_row in out for example in of_row]
    for why, examples in picked:
        flat += [(why, train, train.encoded.examples[place].get("row", place), place) for place in examples]
    return flat


def _named_row(number: int, parts: Sequence[Part]) -> list[tuple[str, Part, int, int | None]]:
    for part in parts:
        for row, cells in enumerate(part.rows):
            if (cells.number if isinstance(cells, SourceRow) else row + 1) == number:
                its = [place for place, example in enumerate(part.encoded.examples) if example.get("row", place) == row]
                return [("", part, row, place) for place in its] or [("", part, row, None)]
    raise ConfigError(
        f"--rows: there is no row {number}; give numbers as messages about rows do (lines of a text file)"
    )


class Viewer:
    """Makes `Example` of examples.

    Arguments:
        task, tokenizer: of the run.
        widths: of padded batches, by example of training; None: they are packed.
    """

    def __init__(self, task: Task, tokenizer: Any, widths: dict[int, int] | None = None) -> None:
        self.task, self.tokenizer, self.widths = task, tokenizer, widths
        self.specials = special_ids(tokenizer)

    def view(self, why: str, part: Part, row: int, place: int | None) -> Example:
        """Example ``place`` of ``part``, whose row is ``row``; without a place, the row uncut."""
        whole = self.task.encode([part.rows[row]], self.tokenizer, WHOLE)
        examples = part.encoded.examples if place is not None else whole.examples
        example = examples[place or 0]
        ids = ids_of(self.task, example)
        siblings = [i for i, one in enumerate(examples) if one.get("row", i) == (row if place is not None else 0)]
        stretches = self._stretches(example, row_messages(self.task, part.rows[row]))
        labels = [label for _, _, labels in self.task.parts(example) for label in labels or ()]
        out = Example(
            why, part.name, where(part.rows, [row]), len(ids), stretches, part=siblings.index(place or 0) + 1,
            parts=len(siblings), label=example.get("label"), left_out=place is None,
            learned=sum(label != IGNORED for label in labels) if labels else None,
        )  # fmt: skip
        if place is not None and len(siblings) == 1:
            out.cut = _cut(ids, ids_of(self.task, whole.examples[0]))
        if place is not None and self.widths and part.name == "training":
            out.padding = max(self.widths.get(place, 0) - part.encoded.lengths[place], 0)
        return out

    def _stretches(self, example: dict[str, Any], messages: list[tuple[str, str]]) -> list[Stretch]:
        out = list[Stretch]()
        for name, ids, labels in self.task.parts(example):
            pieces = self.pieces(ids, labels)
            if messages and name in ("", "prompt"):
                out += by_role(pieces, messages, name)
            else:
                out += [Stretch(name, pieces)] if name else by_learning(pieces)
        return out

    def pieces(self, ids: list[int], labels: list[int] | None) -> list[Piece]:
        """The tokens with their texts."""
        out, begun, floor = list[Piece](), 0, 0

        def add(stop: int, text: str, special: bool = False) -> None:
            learned = labels is not None and labels[begun] != IGNORED
            out.append(Piece(text, ids[begun:stop], learned, special))

        for place, number in enumerate(ids):
            if number in self.specials:
                if begun < place:  # of a character that was never completed
                    add(place, self._text(ids, floor, begun, place))
                    begun = place
                add(place + 1, str(self.tokenizer.convert_ids_to_tokens(number)), special=True)
                begun = floor = place + 1
                continue
            text = self._text(ids, floor, begun, place + 1)
            if text.endswith(LOST) and place + 1 - begun < BYTES and place + 1 < len(ids):
                continue  # the rest of a character is yet to come
            add(place + 1, text)
            begun = place + 1
        return out

    def _text(self, ids: list[int], floor: int, start: int, stop: int) -> str:
        """What ``ids[start:stop]`` add to the text before them."""
        first = max(floor, start - CONTEXT)
        before = self._decode(ids[first:start])
        both = self._decode(ids[first:stop])
        if both.startswith(before):
            return both[len(before) :]
        return "".join(map(str, self.tokenizer.convert_ids_to_tokens(ids[start:stop])))

    def _decode(self, ids: list[int]) -> str:
        text = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False) if ids else ""
        assert isinstance(text, str)
        return text


def special_ids(tokenizer: Any) -> set[int]:
    """Of tokens that are not text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return set(tokenizer.all_special_ids) | {number for number, token in added.items() if token.special}


def ids_of(task: Task, example: dict[str, Any]) -> list[int]:
    """All token ids of an example; what two answers share before them is there once."""
    return [number for _, ids, _ in task.parts(example) for number in ids]


def _cut(kept: list[int], whole: list[int]) -> tuple[int, int] | None:
    """How many tokens of ``whole`` are missing in ``kept``, and before which token of it they stood."""
    if len(kept) >= len(whole):
        return None
    place = next((i for i, (a, b) in enumerate(zip(kept, whole, strict=False)) if a != b), len(kept))
    return len(whole) - len(kept), place

"""Words to pieces of words: what a cell holds, how a tokenizer takes it, and how a long sentence is cut.

Words are tokenised each for itself (the tokenizers library's ``is_pretokenized``), so that no piece belongs to two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from lora.data.columns import LABEL, Table
from lora.data.problems import is_missing, text_problem, written_list
from lora.errors import DataError, ModelError
from lora.tasks.base import Input

CHUNK = 1000  # sentences tokenised at a time; the tokenizer's own records of them are large
CONTEXT = 4  # a quarter of a window is shared with the next one, half of it on either side


def split(text: str) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a text, which are what stands between white space, and where each begins and ends in it."""
    found = list(re.finditer(r"\S+", text))
    return [match[0] for match in found], [match.span() for match in found]


def listed(cell: Any) -> Any:
    """``cell``, or the list that a cell of a CSV file holds as text: cut at white space it would be other words."""
    found = written_list(cell) if isinstance(cell, str) else None
    return found or cell


def words_of(cell: Any) -> list[str]:
    """The words in a cell: a list of them, or a text. Raises ValueError saying what is wrong with it.

    A word may be blank: data sets have such, and their tags must not move to another.
    """
    if is_missing(cell):
        raise ValueError("is missing")
    cell = listed(cell)
    if isinstance(cell, str):
        problem = text_problem(cell)
        if problem:
            raise ValueError(problem)
        return split(cell)[0]
    if not isinstance(cell, (list, tuple)):
        raise ValueError(f"is of the type {type(cell).__name__}, not a list of words")
    if not cell:
        raise ValueError("is empty")
    for word in cell:
        problem = text_problem(word, blank=True)
        if problem:
            raise ValueError(f"holds a word that {problem}")
    return list(cell)


@dataclass(frozen=True)
class Words(Input):
    """A column of words: lists of them, or texts."""

    def problem(self, value: Any) -> str | None:
        try:
            words_of(value)
        except ValueError as error:
            return str(error)
        return None


def items(cell: Any) -> list[Any] | None:
    """What a cell lists: a list as it is, a text at its white space; None: neither."""
    cell = listed(cell)
    if isinstance(cell, str):
        return split(cell)[0]
    return list(cell) if isinstance(cell, (list, tuple)) else None


def tags_of(cell: Any) -> list[Any]:
    """The tags in a cell. Raises ValueError saying what is wrong with it."""
    tags = items(cell)
    if is_missing(cell):
        raise ValueError("is missing")
    if tags is None:
        raise ValueError(f"is of the type {type(cell).__name__}, not a list of tags")
    if not tags:
        raise ValueError("is empty")
    for tag in tags:
        if is_missing(tag) or (isinstance(tag, str) and not tag.strip()):
            raise ValueError("lacks the tag of a word")
        if not isinstance(tag, (str, int, float)):
            raise ValueError(f"holds a {type(tag).__name__}, which is no tag")
    return tags


def aligned(table: Table, words: str, tags: str) -> bool:
    """Whether two columns look like words and their tags: lists, or texts of equally many parts in every row.

    Lists called as the labels of a whole text are (``labels``) must be as long as those of words in most rows.
    """
    pairs = [(items(row.get(words)) or [], items(row.get(tags)) or []) for row in table.rows]
    equal = sum(len(one) == len(other) for one, other in pairs)
    if table.holds_lists(words) and table.holds_lists(tags):
        return 2 * equal > len(pairs) or tags.lower() not in LABEL
    return equal == len(pairs) and any(len(one) > 1 for one, _ in pairs)


@dataclass(frozen=True)
class Pieces:
    """How a tokenizer cuts words, and what it puts around a sentence.

    Attributes:
        before, after: the special tokens around a sentence.
        space: what is put before every word but the first. Where a tokenizer tells a word after a space from one
            without (GPT-2, RoBERTa, Llama 3), words must come as they do in running text.
        unknown: stands for a word that gives no piece, such as one of control characters.
    """

    tokenizer: Any
    before: list[int]
    after: list[int]
    space: str
    unknown: int

    @classmethod
    def of(cls, tokenizer: Any) -> Pieces:
        """Raises ModelError for a tokenizer that does not say which pieces belong to which word."""
        if not getattr(tokenizer, "is_fast", False):
            raise ModelError(
                f"the tokenizer ({type(tokenizer).__name__}) does not say which pieces belong to which word; a fast "
                "one is needed (a tokenizer.json in the base model's folder)"
            )
        backend = tokenizer.backend_tokenizer
        # What an earlier call asked for stays in force; each call of transformers sets it anew.
        backend.no_truncation()
        backend.no_padding()
        ids, words = _encoded(backend, [["a"]], special=True)[0]
        own = [place for place, word in enumerate(words) if word is not None] or [len(ids)]
        running = backend.encode("a a", add_special_tokens=False).ids
        apart, spaced = (_encoded(backend, [["a", space + "a"]])[0][0] for space in ("", " "))
        known = (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id)
        return cls(
            tokenizer,
            ids[: own[0]],
            ids[own[-1] + 1 :],
            " " if running == spaced != apart else "",
            next((token for token in known if token is not None), 0),
        )

    def __call__(self, sentences: Sequence[list[str]]) -> Iterator[list[list[int]]]:
        """For each sentence the pieces of each of its words; of a word that gives none an empty list."""
        backend = self.tokenizer.backend_tokenizer
        for start in range(0, len(sentences), CHUNK):
            some = sentences[start : start + CHUNK]
            given = [[words[0], *(self.space + word if word else word for word in words[1:])] for words in some]
            for words, (ids, owners) in zip(some, _encoded(backend, given), strict=True):
                pieces: list[list[int]] = [[] for _ in words]
                for token, owner in zip(ids, owners, strict=True):
                    pieces[owner].append(token)
                yield pieces

    def room(self, max_length: int) -> int:
        """Pieces that fit between the special tokens. Raises DataError where there is no room for one."""
        room = max_length - len(self.before) - len(self.after)
        if room < 1:
            raise DataError(
                f"data.max_length {max_length} leaves no room for a word beside the tokenizer's own "
                f"{max_length - room} tokens; raise it"
            )
        return room


def _encoded(backend: Any, sentences: list[list[str]], special: bool = False) -> list[tuple[list[int], list[Any]]]:
    """Ids, and of each the number of its word (None: a special token)."""
    found = backend.encode_batch(sentences, is_pretokenized=True, add_special_tokens=special)
    return [(list(each.ids), list(each.word_ids)) for each in found]


class Window(NamedTuple):
    """Words ``start`` to ``end`` of a sentence, of which ``first`` to ``last`` are answered for; ends not included."""

    start: int
    end: int
    first: int
    last: int


def windows(sizes: Sequence[int], room: int) -> list[Window]:
    """Cut a sentence at words so that each window has at most ``room`` pieces and each word is answered for once.

    ``sizes``: pieces of each word, none above ``room``. Neighbouring windows share about a quarter of their pieces; the
    words in the middle of these go to the one or the other, so that each is seen with what stands on both sides of it.
    """
    out: list[Window] = []
    start = first = 0
    while True:
        end = _reach(sizes, start, room)
        if end <= first:  # the context leaves no room for the next word, which is a long one
            start = first
            end = _reach(sizes, start, room)
        if end == len(sizes):
            return [*out, Window(start, end, first, end)]
        last = _back(sizes, end, first, room // CONTEXT // 2)
        out.append(Window(start, end, first, last))
        start, first = _back(sizes, end, first, room // CONTEXT), last


def _reach(sizes: Sequence[int], start: int, room: int) -> int:
    end, used = start, 0
    while end < len(sizes) and used + sizes[end] <= room:
        used += sizes[end]
        end += 1
    return end


def _back(sizes: Sequence[int], end: int, first: int, most: int) -> int:
    """The place at most ``most`` pieces before ``end``, behind the word at ``first``."""
    place, used = end, 0
    while place - 1 > first and used + sizes[place - 1] <= most:
        place -= 1
        used += sizes[place]
    return place

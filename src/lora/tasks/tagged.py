"""Rows of words, with a tag for each or without: what is read of them, and how they become examples."""

from __future__ import annotations

from typing import Any

from lora.data.problems import Problems
from lora.data.rendering import IGNORED
from lora.data.rows import Places
from lora.plural import number_of
from lora.tasks.base import Encoded, Row
from lora.tasks.labels import name_of
from lora.tasks.sequence import REMEDY, counted, cut_note, require_columns
from lora.tasks.words import Pieces, tags_of, windows, words_of


def read_tagged(
    rows: list[Row], tokens: str, tags: str | None, label_kind: str
) -> tuple[list[list[str]], list[list[str]]]:
    """Words and tags of each row, from the columns ``tokens`` and ``tags``; None: the words alone.

    ``label_kind``: what tags were in the training data. Raises DataError naming every row at fault.
    """
    require_columns(rows, [tokens, tags] if tags else [tokens])
    problems = Problems(rows)
    words, marks = list[list[str]](), list[list[str]]()
    for index, row in enumerate(rows):
        words.append([])
        try:
            words[-1] = words_of(row.get(tokens))
        except ValueError as error:
            problems.add(f"{tokens} {error}", index)
        if not tags:
            continue
        marks.append([])
        try:
            marks[-1] = [name_of(tag, label_kind) for tag in tags_of(row.get(tags))]
        except ValueError as error:
            problems.add(f"{tags} {error}", index)
        # Of a cell that is at fault itself the length says nothing.
        if words[-1] and marks[-1] and len(words[-1]) != len(marks[-1]):
            sizes = f"{len(words[-1])} {tokens} and {len(marks[-1])} {tags}"
            problems.add(f"{sizes}, where each word needs one tag", index)
    problems.raise_if_any(REMEDY)
    return words, marks


def encode_tagged(
    rows: list[Row], words: list[list[str]], marks: list[list[int]] | None, cut: Pieces, max_length: int
) -> Encoded:
    """Examples as of `TokenClassificationTask.encode`. ``marks``: of each word its label; None: there are none."""
    room = cut.room(max_length)
    examples, lengths, counts = list[dict[str, Any]](), list[int](), list[int]()
    made = Encoded(examples, lengths, counts)
    blank, long = list[int](), list[int]()  # rows with words of no piece, or of more than fit
    for index, pieces in enumerate(cut(words)):
        blank += [index for word in pieces if not word]
        long += [index for word in pieces if len(word) > room]
        pieces = [word[:room] or [cut.unknown] for word in pieces]
        own_marks = [0] * len(pieces) if marks is None else marks[index]
        parts = windows([len(word) for word in pieces], room)
        made.truncated += len(parts) > 1
        for part in parts:
            ids, labels = list(cut.before), [IGNORED] * len(cut.before)
            for place in range(part.start, part.end):
                own = part.first <= place < part.last
                ids += pieces[place]
                labels += [own_marks[place] if own else IGNORED] + [IGNORED] * (len(pieces[place]) - 1)
            ids += cut.after
            labels += [IGNORED] * len(cut.after)
            examples.append({"input_ids": ids, "labels": labels, "row": index})
            lengths.append(len(ids))
            counts.append(0 if marks is None else part.last - part.first)
    if made.truncated:
        parts_in_all = made.truncated + len(made) - len(rows)
        what = "and became {parts} overlapping windows; each word is in one of them to be tagged"
        made.notes.append(cut_note(made.truncated, len(rows), max_length, what, parts=parts_in_all))
    without = "without a token (of control characters, say), which stand as the unknown one"
    made.notes += words_note(rows, blank, without)
    made.notes += words_note(rows, long, f"of more than {max_length} tokens, which were cut")
    return made


def words_note(rows: list[Row], found: list[int], what: str) -> list[str]:
    """A sentence about words ``what``, or none. ``found``: of each such word its row."""
    if not found:
        return []
    return [counted(_words, what, words=len(found), where=Places.of(rows, list(dict.fromkeys(found))))]


def _words(what: str, words: int, where: Places) -> str:
    return f"{number_of(words, 'word')} {what}: {where}."

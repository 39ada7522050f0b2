"""Rows of plain text, and of CoNLL's columns."""

from __future__ import annotations

import re
from pathlib import Path

from lora.data.broken import cut, not_empty, raise_broken
from lora.data.encoding import read_text
from lora.data.rows import Origin, Row, SourceRow, located
from lora.plural import number_of


def read_txt(path: Path, limit: int | None = None) -> list[Row]:
    """Plain text: documents are separated by blank lines, or by lines ``<|endoftext|>`` where there are any."""
    text = read_text(path).replace("\r\n", "\n")
    marked = re.search(r"^<\|endoftext\|>[ \t]*$", text, re.MULTILINE)
    parts = re.split(r"^<\|endoftext\|>[ \t]*$" if marked else r"\n(?:[ \t]*\n)+", text, flags=re.MULTILINE)
    documents = [part.strip("\n") for part in parts if part.strip()]
    return not_empty(path, located(({"text": document} for document in documents[:limit]), str(path), "document"))


def read_conll(path: Path, limit: int | None = None) -> list[Row]:
    """CoNLL's columns: a word a line, its tags beside it (separated by tabs, else white space), a blank line between
    sentences.

    Rows have ``tokens``, the first column; ``tags``, the last; and ``column_2`` … for those between. Without a second
    column there are words alone. Lines ``-DOCSTART-`` and comments (``# name = value``) are skipped. Raises DataError
    naming lines that have other columns than the first.
    """
    rows: list[Row] = []
    broken: list[str] = []
    origin, columns, sentence, begun = Origin(str(path), "line"), 0, list[list[str]](), 1
    for number, line in enumerate([*read_text(path).split("\n"), ""], start=1):
        fields = line.rstrip("\r").split("\t") if "\t" in line else line.split()
        if fields and not re.match(r"-DOCSTART-|# [^\t]* = ", line):
            columns, begun = columns or len(fields), begun if sentence else number
            sentence.append(fields)
            if len(fields) != columns:
                broken.append(
                    f"line {number}: {number_of(len(fields), 'column')} where the first has {columns}: {cut(line)}"
                )
        elif not fields and sentence:
            names = ["tokens", *(f"column_{place}" for place in range(2, columns)), *(["tags"] if columns > 1 else [])]
            rows.append(SourceRow(dict(zip(names, map(list, zip(*sentence)), strict=False)), origin, begun))
            sentence = []
        if limit is not None and len(rows) >= limit:
            break
    raise_broken(path, broken, "each line needs a word and its tags, a blank line ends a sentence")
    return not_empty(path, rows)

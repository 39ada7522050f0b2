"""Files to rows: one reader for each kind of file, every error with the file's name and the line.

Nothing is guessed about the meaning of columns here (`lora.data.columns` does).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

from lora.data.broken import not_empty
from lora.data.encoding import read_bytes, read_lines, refuse_packed
from lora.data.json_files import jsonl_rows, read_json, read_jsonl
from lora.data.rows import Row
from lora.data.streams import RowStream
from lora.data.tables import column_rows, delimited_rows, delimiter, read_columns, read_csv, read_tsv, streamed_lines
from lora.data.text_files import read_conll, read_txt
from lora.errors import DataError

READERS: dict[str, Callable[[Path, int | None], list[Row] | dict[str, list[Row]]]] = {
    ".jsonl": read_jsonl, ".ndjson": read_jsonl, ".json": read_json, ".csv": read_csv, ".tsv": read_tsv,
    ".parquet": read_columns, ".arrow": read_columns, ".txt": read_txt, ".conll": read_conll, ".iob": read_conll,
}  # fmt: skip


JSONL, COLUMNS = (".jsonl", ".ndjson"), (".parquet", ".arrow")
STREAMED = (*JSONL, ".csv", ".tsv", *COLUMNS)  # of the kinds of file above, those that can be read in parts


def read_file(path: Path, limit: int | None = None) -> list[Row] | dict[str, list[Row]]:
    """Rows of one file, or rows per split where a .json file holds several.

    Raises DataError with the file's name, the line and what to do.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        refuse_packed(path, read_bytes(path, 8))
        raise DataError(f"{path}: cannot read files of the type {path.suffix or '(none)'}; known: {', '.join(READERS)}")
    return reader(path, limit)


def stream_file(path: Path, limit: int | None = None) -> RowStream:
    """The rows of a file of a type in `STREAMED`, read anew for every pass. Raises DataError then, as `read_file`."""
    kind = path.suffix.lower()

    def rows() -> Iterator[Row]:
        if kind in COLUMNS:
            found = column_rows(path, limit)
        elif kind in JSONL:
            found = jsonl_rows(path, read_lines(path), limit)
        else:
            mark = "\t" if kind == ".tsv" else delimiter(streamed_lines(path))
            found = delimited_rows(path, streamed_lines(path), mark, limit)
        first = list(itertools.islice(found, 1))
        not_empty(path, first, "" if kind in (*JSONL, *COLUMNS) else " but a header")
        yield from itertools.chain(first, found)

    return RowStream(rows)

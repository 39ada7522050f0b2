"""Files to rows: one reader for each kind of file, every error with the file's name and the line.

Nothing is guessed about the meaning of columns here (`lora.data.columns` does). CSV and TSV give strings for
everything.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from lora.data.encoding import read_bytes, read_lines, read_text, refuse_packed
from lora.data.rows import Origin, Row, SourceRow, located
from lora.data.streams import RowStream
from lora.errors import DataError
from lora.plural import number_of

SPLIT_NAMES = {
    "train": "train", "training": "train", "validation": "validation", "valid": "validation", "dev": "validation",
    "val": "validation", "eval": "validation", "test": "test",
}  # fmt: skip
BATCH = 1024  # rows of a parquet file that are read at a time
SHOWN = 5  # broken lines named in one error; the rest is counted


def read_jsonl(path: Path, limit: int | None = None) -> list[Row]:
    """One JSON object per line; blank lines are skipped. Raises DataError naming the broken lines."""
    # split("\n"), not splitlines(): JSON strings may hold U+2028 and its like, which splitlines() takes for line ends.
    return _not_empty(path, list(_jsonl_rows(path, read_text(path).split("\n"), limit)))


def _jsonl_rows(path: Path, lines: Iterable[str], limit: int | None) -> Iterator[Row]:
    """The rows of ``lines``. Raises DataError behind the last of them where lines are broken."""
    count, broken, first = 0, list[str](), ""
    origin = Origin(str(path), "line")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        first = first or line.lstrip()[0]
        try:
            value = json.loads(line, object_pairs_hook=_object)
        except json.JSONDecodeError as error:
            broken.append(f"line {number}: not valid JSON ({error.msg} at column {error.colno}): {_cut(line)}")
        except RepeatedKey as error:
            broken.append(f"line {number}: {error}: {_cut(line)}")
        except RecursionError:
            broken.append(f"line {number}: nested too deeply: {_cut(line)}")
        else:
            if isinstance(value, dict):
                count += 1
                yield SourceRow(value, origin, number)
            else:
                broken.append(f'line {number}: {_kind(value)}, not an object like {{"text": …}}: {_cut(line)}')
        if limit is not None and count + len(broken) >= limit:
            break
    _raise_broken(path, broken, "correct these lines, or rename the file to .json where it is one JSON value"
                  if first == "[" else "correct or remove these lines")  # fmt: skip


class RepeatedKey(ValueError):
    """An object has a key twice."""


def _object(pairs: list[tuple[str, Any]]) -> Row:
    # json lets the last of two equal keys win: a column would be lost without a word.
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RepeatedKey(f"the key {twice!r} stands twice in one object")
    return made


def read_json(path: Path, limit: int | None = None) -> list[Row] | dict[str, list[Row]]:
    """A list of objects, ``{"data": [...]}``, ``{"train": [...], "test": [...]}``, a dict of columns, or JSON lines.

    Returns rows, or rows per split where the file holds several. Raises DataError with line and column.
    """
    text = read_text(path)
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except RepeatedKey as error:
        raise DataError(f"{path}: {error}; rename one of them") from None
    except json.JSONDecodeError as error:
        # Many .json files in the wild are JSON lines: the first line is then a whole value and the rest "extra".
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _not_empty(path, list(_jsonl_rows(path, text.split("\n"), limit)))
        line = text.split("\n")[error.lineno - 1]
        raise DataError(
            f"{path}: not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}: {_cut(line)}"
        ) from None
    except RecursionError:
        raise DataError(f"{path}: not readable: nested too deeply") from None
    if isinstance(value, dict) and value and all(str(key).lower() in SPLIT_NAMES for key in value):
        return {SPLIT_NAMES[key.lower()]: _json_rows(path, part, key, limit) for key, part in value.items()}
    return _json_rows(path, value, "", limit)


def _json_rows(path: Path, value: Any, split: str, limit: int | None) -> list[Row]:
    where = f"{split}: " if split else ""
    if isinstance(value, dict) and isinstance(value.get("data"), list) and not _is_columns(value):
        value, where = value["data"], f"{where}data: "
    if isinstance(value, dict) and _is_columns(value):
        sizes = {key: len(column) for key, column in value.items()}
        if len(set(sizes.values())) > 1:
            listed = ", ".join(f"{key} {size}" for key, size in sizes.items())
            raise DataError(
                f"{path}: {where}columns of unequal length ({listed}); every column needs a value for every row"
            )
        value = [dict(zip(value, cells, strict=True)) for cells in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        keys = f" with the keys {', '.join(map(str, list(value)[:8]))}" if isinstance(value, dict) else ""
        raise DataError(
            f'{path}: {where}{_kind(value)}{keys}; expected a list of objects, {{"data": [...]}}, '
            f'{{"train": [...], "test": [...]}} or a dict of columns'
        )
    value = value[:limit]
    broken = [
        f"{where}element {number}: {_kind(item)}, not an object: {_cut(json.dumps(item))}"
        for number, item in enumerate(value, start=1)
        if not isinstance(item, dict)
    ]
    _raise_broken(path, broken, 'every element must be an object like {"text": …}')
    return _not_empty(path, located(value, f"{path} ({split})" if split else str(path)))


def _is_columns(value: dict[str, Any]) -> bool:
    """A dict of columns: only lists, and not lists of objects (``{"data": [{…}]}`` is no column)."""
    return bool(value) and all(
        isinstance(column, list) and not any(isinstance(cell, dict) for cell in column[:1]) for column in value.values()
    ) and any(value.values())  # fmt: skip


def read_csv(path: Path, limit: int | None = None) -> list[Row]:
    """Comma-separated values with a header line; semicolons are accepted where the header has no comma."""
    lines = _lines(path)
    return _not_empty(path, list(_delimited_rows(path, lines, _delimiter(lines), limit)), " but a header")


def read_tsv(path: Path, limit: int | None = None) -> list[Row]:
    """Tab-separated values with a header line."""
    return _not_empty(path, list(_delimited_rows(path, _lines(path), "\t", limit)), " but a header")


def _lines(path: Path) -> list[str]:
    return list(io.StringIO(read_text(path), newline=""))


def _delimiter(lines: Iterable[str]) -> str:
    header = next((stripped for line in lines if (stripped := line.strip("\r\n"))), "")
    return ";" if ";" in header and "," not in header else ","


def _records(path: Path, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """(line on which the record begins, its fields); blank lines are skipped."""
    # The default of 128 KiB is less than one long document.
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{path}: the row that begins on line {line} is broken ({error}); check its quotes: a quote inside a "
                f'quoted field is written twice ("")'
            ) from None
        if any(field.strip() for field in fields):
            yield line, fields
        line = reader.line_num + 1


def _delimited_rows(path: Path, lines: Iterable[str], delimiter: str, limit: int | None) -> Iterator[Row]:
    """The rows of ``lines``, the first of which is the header. Raises DataError as `_jsonl_rows`."""
    records = _records(path, lines, delimiter)
    _, fields = next(records)
    # pandas writes its index as a first column without a name.
    header = [name.strip() or f"unnamed_{place}" for place, name in enumerate(fields, start=1)]
    twice = [name for name, count in Counter(header).items() if count > 1]
    if twice:
        raise DataError(f"{path}: line 1: column name given twice: {', '.join(twice)}; rename one of each")
    count, broken = 0, list[str]()
    origin = Origin(str(path), "line")
    for line, fields in records:
        if len(fields) == len(header):
            count += 1
            yield SourceRow(dict(zip(header, fields, strict=True)), origin, line)
        else:
            amount = "too many" if len(fields) > len(header) else "too few"
            excerpt = _cut(delimiter.join(fields))
            broken.append(f"line {line}: {amount} fields, {len(fields)} where the header has {len(header)}: {excerpt}")
        if limit is not None and count + len(broken) >= limit:
            break
    separator = {"\t": "tab"}.get(delimiter, delimiter)
    _raise_broken(
        path, broken, f"a field that holds a separator ({separator}) or a line break must stand in double quotes"
    )


def read_parquet(path: Path, limit: int | None = None) -> list[Row]:
    """A parquet file; class numbers get their names back where the file carries them (as Hugging Face writes it)."""
    return _not_empty(path, list(_parquet_rows(path, limit)))


def _parquet_rows(path: Path, limit: int | None) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; remove it or fill it with rows")
    origin, number = Origin(str(path)), 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            described = json.loads((file.schema_arrow.metadata or {}).get(b"huggingface", b"{}"))
            features = described.get("info", {}).get("features", {})
            for batch in file.iter_batches(BATCH):
                rows = batch.to_pylist()
                for row in rows:
                    row.update({key: float(value) for key, value in row.items() if isinstance(value, Decimal)})
                name_classes(rows, features)
                for row in rows:
                    if number == limit:
                        return
                    number += 1
                    yield SourceRow(row, origin, number)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a readable parquet file ({str(error).splitlines()[0]})") from None


def name_classes(rows: list[Row], features: dict[str, Any]) -> None:
    """Write class names over class numbers, in place, as Hugging Face's ``ClassLabel`` features describe them.

    ``features``: column -> description, in the form that ``Features.to_dict`` gives.
    """
    for column, feature in features.items():
        many = isinstance(feature, dict) and isinstance(feature.get("feature"), dict)
        names = ((feature["feature"] if many else feature) or {}).get("names") if isinstance(feature, dict) else None
        if not isinstance(names, list):
            continue

        def name(value: Any, names: list[str] = names) -> Any:
            # -1 is Hugging Face's mark of a label that is withheld
            return (
                names[value] if isinstance(value, int) and 0 <= value < len(names) else (None if value == -1 else value)
            )

        for row in rows:
            value = row.get(column)
            row[column] = [name(item) for item in value] if isinstance(value, list) else name(value)


def read_txt(path: Path, limit: int | None = None) -> list[Row]:
    """Plain text: documents are separated by blank lines, or by lines ``<|endoftext|>`` where there are any."""
    text = read_text(path).replace("\r\n", "\n")
    marked = re.search(r"^<\|endoftext\|>[ \t]*$", text, re.MULTILINE)
    parts = re.split(r"^<\|endoftext\|>[ \t]*$" if marked else r"\n(?:[ \t]*\n)+", text, flags=re.MULTILINE)
    documents = [part.strip("\n") for part in parts if part.strip()]
    return _not_empty(path, located(({"text": document} for document in documents[:limit]), str(path), "document"))


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
                    f"line {number}: {number_of(len(fields), 'column')} where the first has {columns}: {_cut(line)}"
                )
        elif not fields and sentence:
            names = ["tokens", *(f"column_{place}" for place in range(2, columns)), *(["tags"] if columns > 1 else [])]
            rows.append(SourceRow(dict(zip(names, map(list, zip(*sentence)), strict=False)), origin, begun))
            sentence = []
        if limit is not None and len(rows) >= limit:
            break
    _raise_broken(path, broken, "each line needs a word and its tags, a blank line ends a sentence")
    return _not_empty(path, rows)


READERS: dict[str, Callable[[Path, int | None], list[Row] | dict[str, list[Row]]]] = {
    ".jsonl": read_jsonl, ".json": read_json, ".csv": read_csv, ".tsv": read_tsv, ".parquet": read_parquet,
    ".txt": read_txt, ".conll": read_conll, ".iob": read_conll,
}  # fmt: skip


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
        if kind == ".parquet":
            found = _parquet_rows(path, limit)
        elif kind == ".jsonl":
            found = _jsonl_rows(path, read_lines(path), limit)
        else:
            found = _delimited_rows(
                path, read_lines(path), "\t" if kind == ".tsv" else _delimiter(read_lines(path)), limit
            )
        first = list(itertools.islice(found, 1))
        _not_empty(path, first, "" if kind in (".jsonl", ".parquet") else " but a header")
        yield from itertools.chain(first, found)

    return RowStream(rows)


STREAMED = (".jsonl", ".csv", ".tsv", ".parquet")


def _raise_broken(path: Path, broken: list[str], remedy: str) -> None:
    if broken:
        more = [f"… and {len(broken) - SHOWN} more"] if len(broken) > SHOWN else []
        raise DataError(
            "\n  ".join([f"{path}: {number_of(len(broken), 'row')} cannot be read:", *broken[:SHOWN], *more])
            + f"\n{remedy}"
        )


def _not_empty(path: Path, rows: list[Row], besides: str = "") -> list[Row]:
    if not rows:
        raise DataError(f"{path}: holds nothing{besides}; it needs at least one row")
    return rows


def _cut(line: str, width: int = 80) -> str:
    line = line.strip()
    return line if len(line) <= width else line[: width - 1] + "…"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a true/false value", type(None): "null"}
    return names.get(type(value), "a number")

"""Rows of tables: CSV and TSV, which give strings for everything, parquet and arrow."""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

from lora.data.broken import cut, not_empty, raise_broken
from lora.data.encoding import read_lines, read_text
from lora.data.rows import Origin, Row, SourceRow
from lora.errors import DataError

BATCH = 1024  # rows of a parquet or an arrow file that are read at a time


def read_csv(path: Path, limit: int | None = None) -> list[Row]:
    """Comma-separated values with a header line; semicolons, or tabs, are taken where the header has no comma."""
    lines = _lines(path)
    return not_empty(path, list(delimited_rows(path, lines, delimiter(lines), limit)), " but a header")


def read_tsv(path: Path, limit: int | None = None) -> list[Row]:
    """Tab-separated values with a header line."""
    return not_empty(path, list(delimited_rows(path, _lines(path), "\t", limit)), " but a header")


def _lines(path: Path) -> list[str]:
    return list(io.StringIO(read_text(path), newline=""))


def streamed_lines(path: Path) -> Iterator[str]:
    """The lines of a file as they come; they may end in a carriage return alone, as `read_csv` has it."""
    return itertools.chain.from_iterable(io.StringIO(line, newline="") for line in read_lines(path))


def delimiter(lines: Iterable[str]) -> str:
    header = next((stripped for line in lines if (stripped := line.strip("\r\n"))), "")
    return next((mark for mark in ",;\t" if mark in header), ",")


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


def delimited_rows(path: Path, lines: Iterable[str], delimiter: str, limit: int | None) -> Iterator[Row]:
    """The rows of ``lines``, the first of which is the header. Raises DataError as `jsonl_rows`."""
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
            excerpt = cut(delimiter.join(fields))
            broken.append(f"line {line}: {amount} fields, {len(fields)} where the header has {len(header)}: {excerpt}")
        if limit is not None and count + len(broken) >= limit:
            break
    separator = {"\t": "tab"}.get(delimiter, delimiter)
    raise_broken(
        path, broken, f"a field that holds a separator ({separator}) or a line break must stand in double quotes"
    )


def read_columns(path: Path, limit: int | None = None) -> list[Row]:
    """A parquet or an arrow file; class numbers get their names back where it carries them (Hugging Face's does)."""
    return not_empty(path, list(column_rows(path, limit)))


def column_rows(path: Path, limit: int | None) -> Iterator[Row]:
    import pyarrow

    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; remove it or fill it with rows")
    origin, number = Origin(str(path)), 0
    try:
        with _batches(path) as (schema, batches):
            described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
            features = described.get("info", {}).get("features", {})
            for batch in batches:
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
        kind = path.suffix.lower().removeprefix(".")
        raise DataError(f"{path}: not a readable {kind} file ({str(error).splitlines()[0]})") from None


@contextmanager
def _batches(path: Path) -> Iterator[tuple[Any, Iterable[Any]]]:
    """The schema of a parquet or an arrow file, and its rows in batches."""
    import pyarrow
    import pyarrow.parquet

    if path.suffix.lower() == ".parquet":
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file.schema_arrow, file.iter_batches(BATCH)
        return
    with pyarrow.memory_map(str(path)) as source:
        try:
            reader = pyarrow.ipc.open_file(source)
            batches: Iterable[Any] = (reader.get_batch(number) for number in range(reader.num_record_batches))
        except pyarrow.ArrowInvalid:  # datasets writes streams
            source.seek(0)
            reader = batches = pyarrow.ipc.open_stream(source)
        yield reader.schema, (part.slice(start, BATCH) for part in batches for start in range(0, part.num_rows, BATCH))


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

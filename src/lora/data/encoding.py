"""Bytes of a file to text: UTF-8 alone is read; whatever else it seems to be is said, with the way to mend it."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from lora.errors import DataError

# UTF-32's little-endian mark begins with UTF-16's, so it is looked for first.
_OTHER_MARKS = [
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
]  # fmt: skip
# First bytes -> what such a file is, and what to do with it.
_NO_TEXT = [
    (b"\x1f\x8b", "packed with gzip", "unpack it: gunzip -k"),
    (b"BZh9", "packed with bzip2", "unpack it: bunzip2 -k"),
    (b"\xfd7zXZ", "packed with xz", "unpack it: unxz -k"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd", "unpack it: unzstd"),
    (b"PK\x03\x04", "a zip archive, as Excel files are too", "unpack it, or save the table as CSV:"),
    (b"PAR1\x15", "a parquet file", "name it .parquet:"),
]
_LOOKED_AT = 1000  # bytes that tell UTF-16 without a mark from UTF-8


def read_text(path: Path) -> str:
    """The text of a UTF-8 file (a byte-order mark is dropped). Raises DataError: missing, empty, another encoding."""
    raw = read_bytes(path)
    _refuse_no_text(path, raw)
    raw = raw.removeprefix(codecs.BOM_UTF8)
    if not raw.strip():
        raise _empty(path)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _not_utf8(path, raw[error.start], error.start, raw.count(b"\n", 0, error.start) + 1) from None


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file one by one, with their ends. Raises DataError as `read_text`, where it is met."""
    _refuse_no_text(path, read_bytes(path, _LOOKED_AT))
    offset, empty = 0, True
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            raw = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, raw[error.start], offset + error.start, number) from None
            offset += len(raw)
            empty = empty and not line.strip()
            yield line
    if empty:
        raise _empty(path)


def _refuse_no_text(path: Path, raw: bytes) -> None:
    refuse_packed(path, raw)
    name = _other_encoding(raw)
    if name:
        raise DataError(
            f"{path}: is {name}, not UTF-8; re-encode it: iconv -f {name} -t UTF-8 {path.name} > utf8_{path.name}"
        )


def _empty(path: Path) -> DataError:
    return DataError(f"{path}: is empty; remove it or fill it with rows")


def _not_utf8(path: Path, byte: int, offset: int, line: int) -> DataError:
    return DataError(
        f"{path}: is not UTF-8: byte 0x{byte:02x} at offset {offset}, line {line}; re-encode it, for example: "
        f"iconv -f WINDOWS-1252 -t UTF-8 {path.name} > utf8_{path.name}"
    )


def read_bytes(path: Path, size: int = -1) -> bytes:
    """The first ``size`` bytes of a file, or all. Raises DataError: missing, or not readable."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def refuse_packed(path: Path, raw: bytes) -> None:
    """Raise DataError where ``raw``, the beginning of the file, is that of no text file."""
    for mark, what, remedy in _NO_TEXT:
        if raw.startswith(mark):
            raise DataError(f"{path}: is {what}, not a text file; {remedy} {path.name}")


def _other_encoding(raw: bytes) -> str | None:
    for mark, name in _OTHER_MARKS:
        if raw.startswith(mark):
            return name
    # Latin text in UTF-16 has a zero in every second byte; in UTF-8 a zero is no letter at all.
    even, odd = raw[:_LOOKED_AT:2], raw[1:_LOOKED_AT:2]
    if len(odd) > 1 and odd.count(0) > len(odd) // 2:
        return "UTF-16LE"
    return "UTF-16BE" if len(even) > 1 and even.count(0) > len(even) // 2 else None

"""Rows of JSON lines and of JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lora.data.broken import cut, kind, not_empty, raise_broken
from lora.data.encoding import read_text
from lora.data.rows import Origin, Row, SourceRow, located
from lora.data.split_names import SPLIT_NAMES
from lora.errors import DataError


def read_jsonl(path: Path, limit: int | None = None) -> list[Row]:
    """One JSON object per line; blank lines are skipped. Raises DataError naming the broken lines."""
    # split("\n"), not splitlines(): JSON strings may hold U+2028 and its like, which splitlines() takes for line ends.
    return not_empty(path, list(jsonl_rows(path, read_text(path).split("\n"), limit)))


def jsonl_rows(path: Path, lines: Iterable[str], limit: int | None) -> Iterator[Row]:
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
            broken.append(f"line {number}: not valid JSON ({error.msg} at column {error.colno}): {cut(line)}")
        except RepeatedKey as error:
            broken.append(f"line {number}: {error}: {cut(line)}")
        except RecursionError:
            broken.append(f"line {number}: nested too deeply: {cut(line)}")
        except ValueError:  # Python reads no longer ones, lest reading them take forever
            broken.append(f"line {number}: a number of thousands of digits: {cut(line)}")
        else:
            if isinstance(value, dict):
                count += 1
                yield SourceRow(value, origin, number)
            else:
                broken.append(f'line {number}: {kind(value)}, not an object like {{"text": …}}: {cut(line)}')
        if limit is not None and count + len(broken) >= limit:
            break
    raise_broken(path, broken, "correct these lines, or rename the file to .json where it is one JSON value"
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
            return not_empty(path, list(jsonl_rows(path, text.split("\n"), limit)))
        line = text.split("\n")[error.lineno - 1]
        raise DataError(
            f"{path}: not valid JSON: line {error.lineno}, column {error.colno}: {error.msg}: {cut(line)}"
        ) from None
    except RecursionError:
        raise DataError(f"{path}: not readable: nested too deeply") from None
    except ValueError:
        raise DataError(f"{path}: not readable: a number of thousands of digits") from None
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
            f'{path}: {where}{kind(value)}{keys}; expected a list of objects, {{"data": [...]}}, '
            f'{{"train": [...], "test": [...]}} or a dict of columns'
        )
    value = value[:limit]
    broken = [
        f"{where}element {number}: {kind(item)}, not an object: {cut(json.dumps(item))}"
        for number, item in enumerate(value, start=1)
        if not isinstance(item, dict)
    ]
    raise_broken(path, broken, 'every element must be an object like {"text": …}')
    return not_empty(path, located(value, f"{path} ({split})" if split else str(path)))


def _is_columns(value: dict[str, Any]) -> bool:
    """A dict of columns: only lists, and not lists of objects (``{"data": [{…}]}`` is no column)."""
    return bool(value) and all(
        isinstance(column, list) and not any(isinstance(cell, dict) for cell in column[:1]) for column in value.values()
    ) and any(value.values())  # fmt: skip

"""What token ids depend on, as a name: two that have the same were made of the same rows in the same way.

What cannot be named exactly is not kept at all (`Unstorable`): better slow than stale.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import inspect
import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import lora
from lora.data.stored import Unstorable
from lora.tasks.base import Row, Task

# Beside the tokenizer's files: what it makes of these. It may have been changed after it was loaded.
PROBES = ("Hello, world!", " two  spaces\tand\nlines ", "Größe 漢字 🙂 1234567890", "<s>[CLS]</s><|endoftext|>")
OUTSIDE = ("builtins", "abc", "typing")  # modules of a task's base classes that say nothing of tokens


def key_of(
    task: Task, rows_sha256: str, tokenizer: Any, max_length: int, sizes: Sequence[int] = ()
) -> tuple[str, dict[str, Any]]:
    """The key, and the parts that it is the hash of. ``sizes``: rows of each source.

    Raises Unstorable; DataError, ConfigError as `Task.with_tokenizer`.
    """
    # As it stands before the first row: a chat format knows its template's text and golden ids then, and no more.
    task = task.with_tokenizer(tokenizer)
    parts = {
        "rows": rows_sha256,
        "sources": list(sizes),
        "task": {"class": f"{type(task).__module__}.{type(task).__qualname__}", **task.state()},
        "with": {name: repr(value) for name, value in sorted(vars(task).items())},
        "max_length": max_length,
        "tokenizer": tokenizer_sha256(tokenizer),
        "code": code_sha256(type(task)),
        "versions": {name: importlib.metadata.version(name) for name in ("transformers", "tokenizers")}
        | {"lora": lora.__version__},
    }
    return hashlib.sha256(_exact(parts)).hexdigest()[:32], parts


def rows_sha256(rows: Iterable[Row]) -> str:
    """SHA-256 of rows in their order. Raises Unstorable where a cell is of a kind that has no exact spelling."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(_exact(row) + b"\n")
    return digest.hexdigest()


def _exact(value: Any) -> bytes:
    try:
        text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=_spelled)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unstorable(str(error)) from error
    return text.encode("utf-8", "surrogatepass")


def _spelled(value: Any) -> Any:
    """A value that JSON does not know. str() will not do: it shortens arrays and hides types."""
    if isinstance(value, (datetime.date, datetime.time)):
        return {"time": value.isoformat()}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes": hashlib.sha256(value).hexdigest()}
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype != object:
        return {"array": [str(value.dtype), list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]}
    raise TypeError(f"a value of the type {type(value).__name__}")


def tokenizer_sha256(tokenizer: Any) -> str:
    """SHA-256 of all that a tokenizer saves (vocabulary, template, special tokens), its class, and what it does.

    Raises Unstorable: one of somebody's own, which does not save itself.
    """
    digest = hashlib.sha256()
    kind = type(tokenizer)
    digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
    digest.update(_source(kind) if not kind.__module__.startswith("transformers.") else b"")
    try:
        with tempfile.TemporaryDirectory() as folder:
            tokenizer.save_pretrained(folder)
            for path in sorted(Path(folder).rglob("*")):
                if path.is_file():
                    digest.update(path.name.encode() + _as_saved(path))
        for probe in PROBES:
            for special in (True, False):
                digest.update(_exact(dict(tokenizer(probe, add_special_tokens=special, verbose=False))))
            if hasattr(
                tokenizer, "_switch_to_target_mode"
            ):  # where targets are other tokens, they may be so by a setting
                digest.update(_exact(dict(tokenizer(text_target=probe, verbose=False))))
    except Exception as error:  # whatever one of unknown make raises
        raise Unstorable(f"a tokenizer that does not save itself ({type(error).__name__}: {error})") from error
    return digest.hexdigest()


def _as_saved(path: Path) -> bytes:
    raw = path.read_bytes()
    if path.name != "tokenizer.json":
        return raw
    # How the last call cut and padded is saved along, and every call sets it anew.
    return _exact({**json.loads(raw), "truncation": None, "padding": None})


def code_sha256(task: type[Task]) -> str:
    """SHA-256 of the code that makes tokens of rows: whoever changes a line of it need not think of a cache."""
    digest = hashlib.sha256(_package())
    for kind in task.__mro__:
        if kind.__module__ not in OUTSIDE and not kind.__module__.startswith("lora."):
            digest.update(_source(kind))
    return digest.hexdigest()


@functools.cache
def _package() -> bytes:
    folder = Path(lora.__file__).parent
    files = [path for name in ("tasks", "data") for path in sorted((folder / name).glob("*.py"))]
    return b"\0".join(path.name.encode() + path.read_bytes() for path in files)


def _source(kind: type) -> bytes:
    try:
        return Path(inspect.getfile(kind)).read_bytes()
    except (TypeError, OSError) as error:
        raise Unstorable(f"{kind.__qualname__} has no file with its code") from error

"""Examples on disk, read one by one: an Arrow file that is mapped into memory, so that only what is used takes room.

A folder holds ``examples.arrow`` (record batches of `BATCH` examples each, so that a number tells its place),
``lengths.npy`` and ``supervised.npy`` (int64), and ``entry.json``: what else is known, and the SHA-256 of the files.
"""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

EXAMPLES, ENTRY, COUNTS = "examples.arrow", "entry.json", ("lengths", "supervised")
ANSWER = "__answer__"  # the column of `Encoded.answers`, beside those of the examples
BATCH = 1024
CHECKED = 16  # examples of a batch that are read back and compared before they are relied on

Example = dict[str, Any]


class Unstorable(ValueError):
    """What is to be kept on disk has values that it cannot hold or name exactly."""


class Broken(ValueError):
    """What lies on disk is not what was written there."""


class Writer:
    """Writes examples into a folder as they come; `finish` completes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.counts = {name: array("q") for name in COUNTS}
        self.digest = hashlib.sha256()
        self._waiting: list[Example] = []
        self._file: Any = None

    def add(
        self, examples: Sequence[Example], lengths: Sequence[int], supervised: Sequence[int],
        answers: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """``answers``: of each example the text of its answer, or none at all.

        Raises Unstorable; OSError where the disk is full.
        """
        self.counts["lengths"].extend(lengths)
        self.counts["supervised"].extend(supervised)
        update(self.digest, examples)
        self._waiting += (
            [{**one, ANSWER: text} for one, text in zip(examples, answers, strict=True)] if answers else examples
        )
        while len(self._waiting) >= BATCH:
            self._write(self._waiting[:BATCH])
            del self._waiting[:BATCH]

    def _write(self, examples: list[Example]) -> None:
        import pyarrow as pa

        try:
            if self._file is None:
                schema = _schema(pa.RecordBatch.from_pylist(examples).schema)
                self._file = pa.ipc.new_file(str(self.folder / EXAMPLES), schema)
                self._schema, self._keys = schema, set(examples[0])
            batch = pa.RecordBatch.from_pylist(examples, schema=self._schema)
        except (pa.ArrowException, OverflowError, TypeError, UnicodeError) as error:
            raise Unstorable(f"examples that are not all of a kind ({str(error).splitlines()[0]})") from error
        # Arrow knows fewer types than Python: what comes back must be what was given.
        if any(set(example) != self._keys for example in examples) or batch[:CHECKED].to_pylist() != examples[:CHECKED]:
            raise Unstorable("examples that come back as others")
        self._file.write_batch(batch)

    def finish(self, **facts: Any) -> None:
        """Write what is left, and ``facts``: plain values, which `read` gives back."""
        if self._waiting:
            self._write(self._waiting)
        self.close()
        for name, values in self.counts.items():
            np.save(self.folder / f"{name}.npy", np.frombuffer(values, dtype=np.int64))
        files = [EXAMPLES, *(f"{name}.npy" for name in COUNTS)]
        entry: dict[str, Any] = {"facts": facts, "files": {name: _sha256(self.folder / name) for name in files}}
        entry["sha256"] = _of_entry(entry)
        (self.folder / ENTRY).write_text(json.dumps(entry, indent=1), encoding="utf-8")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class StoredExamples(Sequence[Example]):
    """The examples of a folder, each read when it is asked for."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa

        self._source = pa.memory_map(str(path))
        reader = pa.ipc.open_file(self._source)
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._names: list[str] = [name for name in reader.schema.names if name != ANSWER]
        self._batches = [[_column(batch.column(name)) for name in self._names] for batch in batches]
        self.answers = _Answers([batch.column(ANSWER) for batch in batches] if ANSWER in reader.schema.names else [])
        self._length = sum(batch.num_rows for batch in batches)

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._length))]
        place = index + self._length if index < 0 else index
        if not 0 <= place < self._length:
            raise IndexError(f"example {index} of {self._length}")
        batch, row = divmod(place, BATCH)
        return {name: column[row] for name, column in zip(self._names, self._batches[batch], strict=True)}


class _Answers(Sequence[str]):
    """The texts of a column, each read when it is asked for."""

    def __init__(self, columns: Sequence[pa.Array]) -> None:
        self._columns = columns
        self._length = sum(map(len, columns))

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(self._length))]
        place = index + self._length if index < 0 else index
        if not 0 <= place < self._length:
            raise IndexError(f"answer {index} of {self._length}")
        text: str = self._columns[place // BATCH][place % BATCH].as_py()
        return text


class _Lists:
    """A column of lists of numbers: numpy's views on the mapped file, much faster than Arrow's own scalars."""

    def __init__(self, column: pa.ListArray) -> None:
        self.offsets = column.offsets.to_numpy()
        self.values = column.values.to_numpy(zero_copy_only=True)

    def __getitem__(self, row: int) -> list[Any]:
        return self.values[self.offsets[row] : self.offsets[row + 1]].tolist()


class _Values:
    def __init__(self, column: pa.Array) -> None:
        self.column = column

    def __getitem__(self, row: int) -> Any:
        return self.column[row].as_py()


def _column(column: pa.Array) -> _Lists | _Values:
    import pyarrow as pa

    kind = column.type
    numbers = pa.types.is_list(kind) and (pa.types.is_integer(kind.value_type) or pa.types.is_floating(kind.value_type))
    return _Lists(column) if numbers and not column.null_count and not column.values.null_count else _Values(column)


def _schema(found: pa.Schema) -> pa.Schema:
    """Token ids in four bytes: no vocabulary comes near 2**31."""
    import pyarrow as pa

    whole = pa.list_(pa.int64())
    return pa.schema([(field.name, pa.list_(pa.int32()) if field.type == whole else field.type) for field in found])


def update(digest: Any, examples: Sequence[Example]) -> None:
    """Add ``examples`` to a hash: what two runs of the same data have in common."""
    for example in examples:
        for key in sorted(example):
            digest.update(key.encode())
            digest.update(np.asarray(example[key]).tobytes())


def read(folder: Path, check: bool = True) -> tuple[StoredExamples, dict[str, array[int]], dict[str, Any]]:
    """Examples, counts and facts of a folder that a `Writer` finished.

    Args:
        check: compare the files with their hashes.

    Raises:
        Broken: something in it is damaged or missing; FileNotFoundError where there is no such folder.
    """
    import pyarrow as pa

    if not folder.is_dir():
        raise FileNotFoundError(folder)
    try:
        entry = json.loads((folder / ENTRY).read_text(encoding="utf-8"))
        if entry.pop("sha256") != _of_entry(entry):
            raise Broken(f"{ENTRY} is not as it was written")
        for name, sha256 in entry["files"].items():
            if check and _sha256(folder / name) != sha256:
                raise Broken(f"{name} is not as it was written")
        examples, counts = StoredExamples(folder / EXAMPLES), {}
        for name in COUNTS:
            counts[name] = array("q")
            counts[name].frombytes(np.load(folder / f"{name}.npy", allow_pickle=False).astype(np.int64).tobytes())
            if len(counts[name]) != len(examples):
                raise Broken(f"{len(counts[name])} {name} of {len(examples)} examples")
        return examples, counts, entry["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException) as error:
        raise error if isinstance(error, Broken) else Broken(f"{type(error).__name__}: {error}") from error


def _of_entry(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

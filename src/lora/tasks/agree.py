"""One task, and one spelling of its columns, for rows of several sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from lora.config import DataConfig
from lora.data.columns import Columns, Table
from lora.data.rows import Row, SourceRow
from lora.data.sources import Part
from lora.data.streams import joined, through
from lora.errors import DataError
from lora.tasks import Task, task_class
from lora.tasks.inputs import learned, task_for, with_columns
from lora.tasks.recognise import recognise
from lora.tasks.sequence import require_columns


def agree(
    parts: list[Part], settings: DataConfig, task: Task | None = None, base: Any = None
) -> tuple[Task, list[str]]:
    """The task that all ``parts`` are for, and sentences about it. Where columns are spelled unlike, rows are replaced.

    Args:
        task: already known; the rows must have its columns.
        base: transformers' configuration of the base model.

    Raises:
        DataError: a source is for no task, or for another than the first.
    """
    if len(parts) == 1:
        (part,) = parts
        settings = _settings_of(part, settings)
        if task is None:
            task, how = task_for(part.train, settings, base)
            return task, [how]
        task = with_columns(task, settings)
        require_columns(part.train, [given.column for given in task.inputs() if not given.optional])
        return task, []
    if task is not None:
        task = with_columns(task, settings)
        roles = {role: name for role in task.roles if isinstance(name := task.state().get(role), str)}
        notes = [note for part in parts for note in _renamed(part, roles | _named(part), roles)]
        columns = [name for role, name in roles.items() if role not in task.optional]
        for part in parts:
            require_columns(part.train, columns)
        return task, notes
    found = _recognised(parts, settings, base)
    roles = _spelling(found)
    notes = [note for part, its in zip(parts, found, strict=True) for note in _renamed(part, its.roles, roles)]
    task = learned(found[0].task, joined([part.train for part in parts]) or [], roles, settings)
    return task, [" ".join([f"{parts[0].name}: {found[0].how}", *task.remarks()]), *notes]


def _settings_of(part: Part, settings: DataConfig) -> DataConfig:
    """``settings`` with the columns that the source names for itself in place of those for all."""
    own = {f"{role}_column": None for role in part.columns if f"{role}_column" in type(settings).model_fields}
    return settings.model_copy(update={**own, "columns": {**settings.columns, **part.columns}})


def _recognised(parts: list[Part], settings: DataConfig, base: Any) -> list[Columns]:
    """Task and columns of each source. Raises DataError: unrecognised sources, all of them, or of different tasks."""
    found, problems = [], []
    for part in parts:
        try:
            found.append(recognise(part.train, _settings_of(part, settings), base))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    first = found[0]
    optional = task_class(first.task).optional
    for part, its in zip(parts, found, strict=True):
        if its.task != first.task:
            raise DataError(
                "the sources are for different tasks; name columns (or data.task) so that they agree, or train on them "
                f"in two runs:\n  {parts[0].name}: {first.how}\n  {part.name}: {its.how}"
            )
        unlike = (its.roles.keys() ^ first.roles.keys()) - set(optional)
        if unlike:
            raise DataError(
                f"the sources have unlike columns ({', '.join(sorted(unlike))} in one of them only); name columns so "
                f"that they agree, or train on them in two runs:\n  {parts[0].name}: {first.how}\n"
                f"  {part.name}: {its.how}"
            )
    return found


def _spelling(found: list[Columns]) -> dict[str, str]:
    """The column of each role, by the name that it has in the first source with such a column."""
    out: dict[str, str] = {}
    for columns in found:
        for role, name in columns.roles.items():
            if role not in out:
                out[role] = name if name not in out.values() else f"{role} ({name})"
    return out


def _named(part: Part) -> dict[str, str]:
    """The columns that a source names for itself, as its rows spell them. Raises DataError where there is no such."""
    table = Table(part.train)
    out = {role: table.get(name) for role, name in part.columns.items()}
    missing = [f"there is no column {part.columns[role]!r} (columns.{role})" for role, name in out.items() if not name]
    if missing:
        raise table.error("\n".join(missing))
    return {role: name for role, name in out.items() if name}


def _renamed(part: Part, own: dict[str, str], roles: dict[str, str]) -> list[str]:
    """Bring the columns ``own`` of a source to the names in ``roles``; other columns are dropped then. Says so."""
    there = set(Table(part.train).all)
    strange = [name for role, name in roles.items() if role not in own and name in there]
    moved = {role: name for role, name in own.items() if name != roles[role]}
    if not moved and not strange:
        return []

    def renamed(rows: Iterable[Row]) -> Iterator[Row]:
        for row in rows:
            cells = {roles[role]: row[name] for role, name in own.items() if name in row}
            yield SourceRow(cells, row.origin, row.number) if isinstance(row, SourceRow) else cells

    part.train = through(part.train, renamed, len(part.train))
    part.validation = part.validation and through(part.validation, renamed)
    part.test = part.test and through(part.test, renamed)
    told = ", ".join(f"column {name!r} is read as {roles[role]!r}" for role, name in moved.items())
    left = ", ".join(map(repr, strange))
    return [f"{part.name}: " + "; ".join(filter(None, [told, left and f"{left} is not used"])) + "."]

"""Which task rows are for and which column is what: as the settings say, else as the clearest claim of a task has it.

Every task looks at the columns (`Task.recognise`); no task is known here by its name. The errors list the columns there
are and the settings that name one.
"""

from __future__ import annotations

import difflib
from typing import Any

from lora.config import DataConfig
from lora.data.columns import LABEL, TEXT, Claim, Columns, Sign, Table
from lora.data.streams import ListOrStream
from lora.errors import DataError
from lora.registry import unknown
from lora.tasks import TASKS, task_class


def recognise(rows: ListOrStream, config: DataConfig, base: Any = None) -> Columns:
    """Task and columns of ``rows``: what ``config`` names, else what the names and values say.

    Args:
        base: transformers' configuration of the base model: tasks that do not suit it are not meant, unless named.

    Raises DataError: a named column is not there, nothing is recognisable, or settings that contradict each other.
    """
    if not rows:
        raise DataError("there are no rows")
    table = Table(rows)
    table.named = _named(table, config)
    asked = config.task != "auto"
    if not asked:
        _refuse_mixture(table)
    if asked:
        tasks = {config.task: task_class(config.task)}
        _refuse_unread(table, config)
    else:
        # A task that does not read all that the settings name is not the one that they mean.
        readers = {name: task for name, task in TASKS.items() if set(table.named) <= set(task.roles)}
        tasks = {name: task for name, task in readers.items() if task.suits(base)}
    claims = [(name, claim) for name, task in tasks.items() if (claim := task.recognise(table, asked))]
    if not claims:
        raise _nothing(table)
    # max() returns the first of several that are equally clear: the order of the registry.
    task, claim = max(claims, key=lambda pair: pair[1].sign)
    if claim.sign is Sign.LEFT and not asked and not table.named:
        _refuse_misspelt(table, list(claim.roles.values()))
    if claim.problem is not None:
        raise claim.problem
    _refuse_twice(table, claim.roles)
    return Columns(task, claim.roles, _told(table, task, claim))


def check_roles(config: DataConfig) -> None:
    """Raise DataError where ``data.columns`` names a column for something that no task reads."""
    roles = list(dict.fromkeys(role for task in TASKS.values() for role in task.roles))
    wrong = [f"data.columns: {role!r} is {unknown(role, roles)}" for role in config.columns if role not in roles]
    if wrong:
        raise DataError("\n".join(wrong))


def _named(table: Table, config: DataConfig) -> dict[str, str]:
    """The columns that the settings name, as the data spells them; all missing ones are reported at once."""
    check_roles(config)
    found: dict[str, str] = {}
    missing = []
    for role, wanted in config.named_columns().items():
        name = table.get(wanted)
        if name is not None:
            found[role] = name
            continue
        near = difflib.get_close_matches(wanted, table.all, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        missing.append(f"{config.setting_of(role)}: there is no column {wanted!r}{hint}")
    if missing:
        raise table.error("\n".join(missing))
    return found


def _refuse_mixture(table: Table) -> None:
    """Raise DataError where the settings name columns that no single task reads."""
    if any(set(table.named) <= set(task.roles) for task in TASKS.values()):
        return
    readers = {role: [name for name, task in TASKS.items() if role in task.roles] for role in table.named}
    listed = ", ".join(f"a {role.replace('_', ' ')} column ({', '.join(names)})" for role, names in readers.items())
    raise DataError(f"no task reads all that the settings name: {listed}; remove one kind or set data.task")


def _refuse_unread(table: Table, config: DataConfig) -> None:
    """Raise DataError where the settings name columns that the task they name does not read."""
    task = task_class(config.task)
    if unread := [role for role in table.named if role not in task.roles]:
        named = ", ".join(f"{config.setting_of(role)} ({table.named[role]!r})" for role in unread)
        raise table.error(f"the task {config.task} does not read {named}; it reads: {', '.join(task.roles)}")


def _refuse_twice(table: Table, roles: dict[str, str]) -> None:
    """Raise DataError where one column would be two things: a text that is its own label is learned at once."""
    for column in roles.values():
        same = [role.replace("_", " ") for role, name in roles.items() if name == column]
        if len(same) > 1:
            raise table.error(f"column {column!r} would be read as {' and as '.join(same)}; name another for one")


def _nothing(table: Table) -> DataError:
    text = table.get(*TEXT)
    what = "no column is recognised"
    if text:
        what = f"text is column {text!r}, but none of the others is recognised as its label"
    settings = ", ".join(dict.fromkeys(task.to_name for task in TASKS.values()))
    return table.error(f"{what}; name them: {settings}")


def _refuse_misspelt(table: Table, used: list[str]) -> None:
    """Raise DataError where plain text would be learned although a column beside it is a label, a letter apart."""
    known = [name for name in LABEL if name not in ("class", "score", "stars", "topic")]  # "store", "stats" are words
    for name in table.all:
        near = difflib.get_close_matches(name.strip().lower(), known, n=1, cutoff=0.8)
        if name not in used and near:
            raise table.error(
                f"column {name!r} looks like {near[0]!r} misspelt: say data.label_column {name!r} to learn it, or "
                "data.task causal to learn the text alone"
            )


def _told(table: Table, task: str, claim: Claim) -> str:
    """What was chosen, why, and what was left unused: a sentence or two for the log."""
    used = ", ".join(f"{role.replace('_', ' ')} from column {name!r}" for role, name in claim.roles.items())
    chosen = f" Preferred over {', '.join(claim.others)}." if claim.others else ""
    unused = [name for name in table.all if name not in claim.roles.values()]
    left = f" Not used: {', '.join(unused[:12])}{' …' if len(unused) > 12 else ''}." if unused else ""
    return f"Task {task}: {used} ({claim.why}).{chosen}{left}"

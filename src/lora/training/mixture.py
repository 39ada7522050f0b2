"""Several sources of training rows: what is held out of them, what an epoch takes of each, what they have in common."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lora.config import DataConfig
from lora.data.batches import rows_taken
from lora.data.sources import Part
from lora.data.splits import Key, Selection, hold_out, hold_out_text, row_key
from lora.data.streams import ListOrStream, joined, through
from lora.plural import number_of
from lora.tasks import Task


def split_off(parts: list[Part], task: Task, settings: DataConfig, seed: int) -> tuple[ListOrStream | None, list[str]]:
    """Held-out rows, and sentences about them: those that sources bring along, and of the others a part of the
    training rows, which are then no longer among ``parts``.

    No input that is split off is left in the training rows of any source. Raises DataError as `hold_out`.
    """
    open_parts = [part for part in parts if part.validation is None]
    brought = joined([part.validation for part in parts])
    if not open_parts:
        return brought, []
    if settings.held_out == 0:
        return brought, [] if brought else ["No rows are held out: the last step is the result."]
    inputs = task.inputs()
    sizes = [len(part.train) for part in open_parts]
    if inputs[0].divisible:
        found = [hold_out_text(part.train, inputs[0].column, settings.held_out, seed) for part in open_parts]
        selections = _apart(open_parts, [selection for selection, _ in found], task.key)
        names = _names(parts)
        notes = [note if len(parts) == 1 else f"{names[id(part)]}: {note}"
                 for part, (_, note) in zip(open_parts, found, strict=True)]  # fmt: skip
    else:
        rows = joined([part.train for part in open_parts]) or []
        selection, note = hold_out(rows, task.key, settings.held_out, seed, task.classes(), sizes)
        ends = np.cumsum(sizes).tolist()
        selections = [selection.of(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        notes = [note]
    held = [brought]
    for part, selection in zip(open_parts, selections, strict=True):
        held.append(through(part.train, selection.out, len(selection.held) or None))
        part.train = through(part.train, selection.train, len(part.train) - len(selection.held))
    return joined(held), notes


def _apart(parts: list[Part], selections: list[Selection], key_of: Key) -> list[Selection]:
    """``selections`` without the texts that another source trains on; the ends of texts are left as they are."""
    if len(parts) == 1:
        return selections
    keys = [
        [key_of(row) for row in selection.out(part.train)] if selection.column is None else []
        for part, selection in zip(parts, selections, strict=True)
    ]
    held = {key for of_part in keys for key in of_part}
    trained = [
        {key for row in selection.train(part.train) if (key := key_of(row)) in held}
        for part, selection in zip(parts, selections, strict=True)
    ]
    out = []
    for place, selection in enumerate(selections):
        others = set().union(*(of_part for number, of_part in enumerate(trained) if number != place))
        kept = [index for index, key in zip(selection.held, keys[place], strict=False) if key not in others]
        out.append(selection if selection.column is not None else Selection(kept))
    return out


def told(parts: list[Part], task: Task) -> list[str]:
    """What an epoch takes of each source, and the rows that stand in several of them: in sentences."""
    names = _names(parts)
    taken = [rows_taken(len(part.train), part.weight) for part in parts]
    shares = [
        f"{number_of(count, 'row')} of {names[id(part)]}" + ("" if part.weight == 1 else f" (of {len(part.train):,})")
        for part, count in zip(parts, taken, strict=True)
    ]
    percent = ", ".join(f"{count / sum(taken):.0%}" for count in taken)
    notes = [f"An epoch takes {', '.join(shares)}" + (f": {percent}." if len(parts) > 1 else ".")]
    state = task.state()
    columns = [name for role in task.roles if isinstance(name := state.get(role), str)]
    keys = [
        np.fromiter((row_key(row, columns) for row in part.train), dtype=np.uint64)
        for part in (parts if len(parts) > 1 else [])
    ]
    for place, part in enumerate(parts):
        for before in range(place):
            if double := int(np.isin(keys[place], keys[before]).sum()):
                stands, they = ("stands", "it is") if double == 1 else ("stand", "they are")
                notes.append(
                    f"{double:,} of the {number_of(len(part.train), 'row')} of {names[id(part)]} {stands} in "
                    f"{names[id(parts[before])]} too, so {they} learned more often."
                )
    return notes


def _names(parts: list[Part]) -> dict[int, str]:
    """What to call each part (by its id): the last piece of its path where that tells it from the others."""
    short = [Path(part.name).name for part in parts]
    unlike = len(set(short)) == len(short)
    return {id(part): name if unlike else part.name for part, name in zip(parts, short, strict=True)}

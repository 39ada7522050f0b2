"""What small changes of the texts cost: the same rows with noise and without it, each adapter beside itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lora.data.conversations import holds_messages
from lora.data.problems import written_list
from lora.errors import ConfigError, DataError
from lora.evaluation.uncertainty import compared
from lora.statistics.compare import Comparison, correct
from lora.statistics.noise import NOISES, TOKEN_NOISES, perturb, perturb_tokens
from lora.tasks import Encoded, Row, Task
from lora.tasks.figures import Figures, figures
from lora.tasks.inference import infer
from lora.tasks.words import words_of

if TYPE_CHECKING:
    from lora.model.lora import LoRA

SOME = "some"
DEFAULT = ("typos", "case", "whitespace", "punctuation")  # what any script with an alphabet has


def noises_of(task: Task, asked: bool | Sequence[str]) -> list[str]:
    """The noises that are measured; ``some`` (or True) stands for `DEFAULT`.

    Raises ConfigError: an unknown one, one that moves the words that have tags, or a task whose text is itself what is
    learned.
    """
    if task.inputs()[0].divisible:
        raise ConfigError(f"robustness: the texts of the task {task.name} are what is to be predicted, so leave it out")
    known = TOKEN_NOISES if task.per_token else NOISES
    usual = [name for name in DEFAULT if name in known]
    if isinstance(asked, bool):
        return usual
    asked = [name for given in asked for name in (usual if given == SOME else [given])]
    for name in asked:
        if name not in known:
            raise ConfigError(f"robustness: {name!r} is none of the noises for this task: {', '.join(known)}")
    return list(dict.fromkeys(asked))


def with_noise(task: Task, row: Row, noise: str, number: int, seed: int = 0) -> Row:
    """``row`` with noise in all that the model reads of it: texts, words, what users say in conversations."""
    out = dict(row)
    for place, given in enumerate(task.inputs()):
        cell = row.get(given.column)
        stream = seed + 1000 * place  # two texts of a row get noise of their own
        if cell is not None:
            out[given.column] = _changed(cell, noise, number, stream, task.per_token)
    return out


def _changed(cell: Any, noise: str, row: int, seed: int, words: bool) -> Any:
    if words:
        return perturb_tokens(words_of(cell), noise, seed=seed, row=row)
    if holds_messages(cell):
        turns = written_list(cell) if isinstance(cell, str) else cell
        return [
            {**one, "content": perturb(one["content"], noise, seed=seed + turn, row=row)}
            if one.get("role") == "user" and isinstance(one.get("content"), str) else one
            for turn, one in enumerate(turns or ())
        ]  # fmt: skip
    return perturb(cell, noise, seed=seed, row=row) if isinstance(cell, str) else cell


def robustness(
    model: LoRA, task: Task, rows: Sequence[Row], encoded: Encoded, found: Mapping[str, Figures], noises: Sequence[str],
    encode: Callable[[list[Row]], Encoded], *, pad_token_id: int, batch_size: int, resamples: int, seed: int = 0,
) -> tuple[dict[str, dict[str, dict[str, Any]]], list[str]]:  # fmt: skip
    """By adapter and noise what the noise costs: the metric with noise against that without, p-values corrected (Holm)
    for the number of noises; and notes.

    Args:
        found: figures of ``encoded``, the clean rows, by adapter.
        encode: tokenises rows as the clean ones were.
    """
    key, names = task.best_metric, list(found)
    each: dict[str, dict[str, Comparison]] = {name: {} for name in names}
    notes = []
    for noise in noises:
        noisy = [with_noise(task, row, noise, number, seed) for number, row in enumerate(rows)]
        changed = sum(a != b for a, b in zip(noisy, map(dict, rows), strict=True))
        if not changed:
            notes.append(f"Noise {noise!r} changes none of these texts.")
            continue
        try:
            made = encode(noisy)
            outcomes = infer(model, task, made, names, pad_token_id=pad_token_id, batch_size=batch_size)
            measured = {name: figures(task, outcomes[name], made.examples) for name in names}
        except DataError as error:
            notes.append(f"Noise {noise!r} was not measured: {error}.")
            continue
        for name in names:
            own = _aligned(measured[name], made, found[name], encoded, key)
            if own is None:
                notes.append(f"Noise {noise!r} was not measured: its rows became other examples than the clean ones.")
                break
            its = compared(*own, keys=[key], resamples=resamples, seed=seed)[key]
            note = f"{changed} of {len(rows)} rows were changed."
            each[name][noise] = replace(its, note=" ".join(filter(None, (its.note, note))))
    return {
        name: {noise: {**its.to_dict(), "metric": key} for noise, its in correct(own).items()}
        for name, own in each.items() if own
    }, notes  # fmt: skip


def _aligned(a: Figures, made: Encoded, b: Figures, encoded: Encoded, key: str) -> tuple[Figures, Figures] | None:
    """Both figures of the rows that they share; None where rows became several examples, in another way."""
    (metric, noisy), (_, clean) = a[key], b[key]
    ids = [[one.get("row", place) for place, one in enumerate(its.examples)] for its in (made, encoded)]
    if len(noisy) == len(clean) and (ids[0] == ids[1] or list(dict.fromkeys(ids[0])) == list(dict.fromkeys(ids[1]))):
        return {key: a[key]}, {key: b[key]}
    if any(len(set(own)) < len(own) for own in ids):
        return None
    places = [{row: place for place, row in enumerate(own)} for own in ids]
    shared = [row for row in places[0] if row in places[1]]
    return (
        {key: (metric, noisy.take([places[0][row] for row in shared]))},
        {key: (metric, clean.take([places[1][row] for row in shared]))},
    )

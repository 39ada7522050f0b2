"""``generate``: texts for prompts, of several adapters and several samples in mixed batches."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lora.config import EVAL_BATCH_SIZE, SamplingConfig
from lora.core.randomness import seed_of
from lora.data.batches import in_order
from lora.data.problems import is_missing
from lora.errors import ConfigError
from lora.evaluation.decoding import Written, decode
from lora.evaluation.generation import asked_with, prompt_length
from lora.evaluation.inputs import chosen_adapters
from lora.evaluation.predict import Rows, checked_rows, chunks, given_rows
from lora.evaluation.voices import Voice, voices_of
from lora.model.base import pad_token_id
from lora.plural import noun, number_of
from lora.tasks import Row, Task
from lora.tasks.inputs import tokenizer_of

if TYPE_CHECKING:
    from lora.model.lora import LoRA

log = logging.getLogger(__name__)

TOOLS = "tools"  # the column that functions usually stand in
BATCHES = 4  # whose prompts are sorted by length together: what is written of them comes out at once


def generate(
    model: LoRA, rows: Rows, *, adapters: Sequence[str] | str | None = None, n: int = 1, tokenizer: Any = None,
    tasks: Mapping[str, Task] | None = None, batch_size: int = EVAL_BATCH_SIZE, max_length: int | None = None,
    **sampling: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Texts for all rows, as a list: see `generate_iter`.

    All rows are checked before the first text is written.

    >>> generate(model, ["Write a haiku."], adapters=["mine", "base"], temperature=0.7, n=2)
    [{"prompt": "Write a haiku.", "adapter": "mine", "sample": 0, "completion": "...", "stop": "end", ...}, ...]
    """
    given = list(given_rows(rows))
    options: dict[str, Any] = {"tokenizer": tokenizer or tokenizer_of(model), "tasks": tasks}
    for note in check_prompts(model, given, adapters=adapters, **options):
        log.warning(note)
    return list(
        generate_iter(
            model, given, adapters=adapters, n=n, batch_size=batch_size, max_length=max_length, **options, **sampling
        )
    )


def check_prompts(
    model: LoRA, rows: list[Any], *, adapters: Sequence[str] | str | None, tokenizer: Any,
    tasks: Mapping[str, Task] | None = None,
) -> list[str]:  # fmt: skip
    """What a user should know of all ``rows`` before the first is answered: those whose tools are not read.

    Raises DataError for rows that one of the adapters cannot be asked with.
    """
    unread: dict[int, list[str]] = {}
    for voice in _voices(model, adapters, tokenizer, tasks):
        its = [_row(voice, row) for row in rows]
        checked_rows(voice.task, its, 0)
        if count := sum(isinstance(row, Mapping) and voice.tools is None and _has_tools(row) for row in its):
            unread.setdefault(count, []).append(voice.name)
    return [
        f"{', '.join(names)}: {count:,} of {number_of(len(rows), 'row')} {noun(count, 'has', 'have')} tools and "
        f"{noun(count, 'is', 'are')} answered without them, for it was not trained with a column of such. Train on "
        "rows that have one (it is recognised as `tools`, or named with data.columns {tools: NAME}), or leave it out."
        for count, names in unread.items()
    ]


def _has_tools(row: Mapping[str, Any]) -> bool:
    return not is_missing(tools := row.get(TOOLS)) and bool(tools) and tools != "[]"


def generate_iter(
    model: LoRA,
    rows: Rows,
    *,
    adapters: Sequence[str] | str | None = None,
    n: int = 1,
    tokenizer: Any = None,
    tasks: Mapping[str, Task] | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    max_length: int | None = None,
    first: int = 0,
    on_note: Callable[[str], None] = log.warning,
    on_texts: Callable[[int], None] | None = None,
    **sampling: Any,
) -> Iterator[dict[str, Any]]:
    """Texts one by one: row by row, of each row those of each adapter, of each adapter ``n`` samples.

    Args:
        rows: prompts as strings, dicts with the columns of training or with ``prompt`` or ``messages``, or a ``Path``.
        adapters: names, ``"base"`` among them for the base model; default: all adapters. Their rows share batches.
        tasks: how to ask adapters that store no task.
        batch_size: rows of one forward pass, adapters and samples together.
        max_length: tokens kept of a prompt; default: as many as leave room for the text.
        first: number of the first of ``rows``, for one who goes on: it is in the seed of what is drawn.
        on_texts: called with the number of texts that have been written, batch by batch.
        sampling: fields of `SamplingConfig`. What is drawn depends on seed, row and sample, not on the batch, and is
            the same for every adapter.

    Yields:
        ``prompt`` or ``messages``, ``adapter``, ``sample`` (from 0), ``completion``, ``stop`` (``end``: by an end
        token; ``length``: no more room) and ``tokens``.

    Raises:
        ConfigError, RoutingError: unknown adapter or setting, an adapter that writes no text.
        DataError: rows that cannot be used.
    """
    settings = SamplingConfig.make(sampling)
    if n < 1 or (n > 1 and not settings.temperature):
        raise ConfigError(f"n is {n}: " + ("it must be at least 1" if n < 1 else "without a temperature all are alike"))
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    tokenizer = tokenizer or tokenizer_of(model)
    voices = _voices(model, adapters, tokenizer, tasks)
    length = prompt_length(model, [voice.name for voice in voices], tokenizer, max_length, settings.max_new_tokens)
    done = first
    for chunk in chunks(given_rows(rows), rows_at_once(batch_size, len(voices), n)):
        asked: list[list[Row]] = []
        prompts: list[tuple[Voice, int, int, list[int]]] = []  # voice, row, sample, token ids
        for voice in voices:
            ready = checked_rows(voice.task, [_row(voice, row) for row in chunk], done)
            ids, notes = voice.prompts(ready, tokenizer, length)
            for note in notes:
                on_note(f"{voice.name}, rows {done + 1} to {done + len(chunk)}: {note}")
            asked.append(ready)
            prompts += [(voice, row, sample, its) for row, its in enumerate(ids) for sample in range(n)]
        written = _written(model, prompts, settings, done, batch_size, tokenizer, on_texts)
        for row in range(len(chunk)):
            for voice, ready in zip(voices, asked, strict=True):
                for sample in range(n):
                    yield _answer(voice, ready[row], sample, written[voice.name, row, sample], tokenizer)
        done += len(chunk)


def rows_at_once(batch_size: int, adapters: int, n: int) -> int:
    """How many rows are answered at a time: all their texts come out together."""
    return max(1, BATCHES * batch_size // (adapters * n))


def _voices(
    model: LoRA, adapters: Sequence[str] | str | None, tokenizer: Any, tasks: Mapping[str, Task] | None
) -> list[Voice]:
    return list(voices_of(model, chosen_adapters(model, adapters), tokenizer, tasks).values())


def _written(
    model: LoRA, prompts: list[tuple[Voice, int, int, list[int]]], sampling: SamplingConfig, done: int,
    batch_size: int, tokenizer: Any, on_texts: Callable[[int], None] | None,
) -> dict[tuple[str, int, int], Written]:  # fmt: skip
    """What is written behind ``prompts``, by adapter, row and sample."""
    pad = pad_token_id(tokenizer, model.base)
    out: dict[tuple[str, int, int], Written] = {}
    for indices in in_order([len(ids) for *_, ids in prompts], batch_size):
        batch = [prompts[index] for index in indices]
        texts = decode(
            model, [ids for *_, ids in batch], [voice.name for voice, *_ in batch], [voice.ends for voice, *_ in batch],
            sampling, [seed_of(sampling.seed, done + row, sample) for _, row, sample, _ in batch], pad_token_id=pad,
        )  # fmt: skip
        out |= {(voice.name, row, sample): its for (voice, row, sample, _), its in zip(batch, texts, strict=True)}
        if on_texts:
            on_texts(len(batch))
    return out


def _row(voice: Voice, row: Any) -> Any:
    """``row`` with the columns that ``voice`` reads, where it has only those which such usually stand in."""
    if not isinstance(row, dict):
        return row
    cells = copy.copy(row)  # of its own class, which may know the row's place
    for column, usual in ((voice.column, ("messages", "prompt", "text")), (voice.tools, (TOOLS,))):
        found = next((name for name in usual if name in cells), None)
        if column is not None and column not in cells and found is not None:
            cells[column] = cells.pop(found)
    return cells


def _answer(voice: Voice, row: Row, sample: int, written: Written, tokenizer: Any) -> dict[str, Any]:
    return {
        **asked_with(voice.task, row), "adapter": voice.name, "sample": sample,
        "completion": tokenizer.decode(written.ids, skip_special_tokens=True), "stop": written.stop,
        "tokens": len(written.ids),
    }  # fmt: skip

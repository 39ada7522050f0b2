"""The rows that a plan is made for: tokenised ones of the data, or made-up ones of one length."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from lora.config import RunConfig, TrainingConfig
from lora.data.batches import rows_taken
from lora.data.streams import ListOrStream
from lora.errors import ConfigError
from lora.model.base import load_base_config, load_tokenizer, longest_row
from lora.tasks import Encoded, Row, Task, task_class
from lora.training.prepare import Prepared, read_rows
from lora.training.replay import with_replay

LARGE = 4000  # rows; of more, the longest and as many others are tokenised as make this number
LONGEST = 500


@dataclass(frozen=True)
class Rows:
    """What is known of one adapter's rows.

    Attributes:
        prepared: tokenised rows.
        steps: of a run, in all; None: not known without data.
        tokens: of an average batch.
        note: what a reader should know of where they come from.
    """

    prepared: Prepared
    steps: int | None
    tokens: float
    note: str


def made_up(task: str, length: int, rows: int, held: int = 0, labels: int = 2) -> Prepared:
    """Rows of ``length`` tokens, all of them supervised where tokens are predicted."""
    kind: Any = task_class(task)
    if task_class(task).next_token:
        made: Task = kind(text="text")
        example: dict[str, Any] = {"input_ids": [1] * length, "labels": [1] * length}
        supervised = length - 1
    else:
        names: list[Any] = [n / 2 for n in range(labels)] if task == "regression" else [f"{n}" for n in range(labels)]
        if task == "multi-label":
            names = [[name] for name in names]
        rows_of_labels = [{"text": "-", "label": name} for name in names]
        made = kind.from_rows(rows_of_labels, {"text": "text", "label": "label"})
        example, supervised = {"input_ids": [1] * length, "label": made.read_label(names[0])}, 1  # type: ignore[attr-defined]

    def some(count: int) -> Encoded:
        return Encoded([example] * count, [length] * count, [supervised] * count)

    return Prepared(made, None, some(rows), some(held) if held else None, None, length, 0, "right", [], "")


def task_of(config: RunConfig) -> str:
    """The task that is meant where no data say it: the one named, else by what the base was made for."""
    if config.data.task != "auto":
        return config.data.task
    base = load_base_config(config.model or "", config.trust_remote_code)
    made_for = (getattr(base, "architectures", None) or [""])[0]
    return "causal" if made_for.endswith(("ForCausalLM", "LMHeadModel")) else "classification"


def rows_for(config: RunConfig, length: int | None) -> Rows:
    """Rows of the data of ``config``, or made-up ones.

    Raises:
        ConfigError: neither data nor a length.
        DataError, ModelError: as training would.
    """
    batch, accumulation = config.training.batch_size, config.training.accumulation
    if config.data.train is None or length is not None:
        length = length or config.data.max_length
        if length is None:
            raise ConfigError("length: is needed where there are no data (--length 512), or give --data")
        held = 0 if config.data.held_out == 0 or config.training.eval_every is None else config.training.evaluation_rows
        made = made_up(task_of(config), length, batch * min(2, accumulation), held)
        if config.data.replay is not None:  # a batch may be of nothing else
            made.train.replay = len(made.train)
        return Rows(made, config.training.max_steps, batch * length, f"made-up rows of {length:,} tokens")
    kind = load_base_config(config.model or "", config.trust_remote_code)
    rows = read_rows(config.data.train, config.data.validation, config.data, config.training.seed, base=kind)
    tokenizer: Any = load_tokenizer(config.model or "", config.trust_remote_code)
    stand_in: Any = SimpleNamespace(config=kind)
    most = longest_row(tokenizer, stand_in, config.data.max_length)
    task = rows.task.with_tokenizer(tokenizer)
    chosen, share = _sample(rows.train)
    train = task.encode(chosen, tokenizer, most)
    held_rows = _sample(rows.held)[0] if rows.held else None
    held_out = task.encode(held_rows, tokenizer, most) if held_rows else None
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
    prepared = Prepared(task, tokenizer, train, held_out, None, most, pad, "right", [], "")
    # The longest were taken on purpose: the others tell the average.
    usual = train.lengths if share == 1 else train.lengths[LONGEST:] or train.lengths
    count = len(rows.train)
    replayed = 1.0
    if rows.replay is not None:
        chosen_replay = replace(rows.replay, rows=_sample(rows.replay.rows)[0])
        prepared.train = with_replay(train, chosen_replay, tokenizer, most)
        replayed = 1 / (1 - rows.replay.share)
    taken = sum(rows_taken(number, weight) for number, weight in rows.shares or [(count, 1.0)])
    per_epoch = -(-round(taken * len(train) / len(chosen) * replayed) // (batch * accumulation))
    steps = config.training.max_steps or max(1, round(config.training.epochs * per_epoch))
    seen = "" if share == 1 else f", {len(chosen):,} of them tokenised, the longest among them"
    note = f"{count:,} rows{seen}; at most {max(prepared.train.lengths):,} tokens"
    return Rows(prepared, steps, batch * sum(usual) / len(usual), note)


def longer(prepared: Prepared, length: int, training: TrainingConfig) -> Prepared:
    """``prepared`` with rows of ``length`` tokens for one batch in place of its own, held-out ones included."""
    own = prepared.train.examples[0]
    of_tokens = [key for key, value in own.items() if isinstance(value, list) and len(value) == len(own["input_ids"])]
    example = {**own, **{key: [int(key in ("input_ids", "labels"))] * length for key in of_tokens}}
    supervised = length - 1 if prepared.task.next_token else prepared.train.supervised[0]

    def some(count: int) -> Encoded:
        replay = count if prepared.train.replay else 0  # a batch may be of nothing else
        return Encoded([example] * count, [length] * count, [supervised] * count, replay=replay)

    held = some(training.evaluation_rows) if prepared.held else None
    return replace(prepared, train=some(training.batch_size), held=held, max_length=length)


def _sample(rows: ListOrStream) -> tuple[list[Row], float]:
    """Rows to tokenise, the longest first, and which share of all they are."""
    if len(rows) <= LARGE:
        return list(rows), 1
    sizes = np.fromiter((sum(len(str(value)) for value in row.values()) for row in rows), dtype=np.int64)
    order = np.argsort(-sizes, kind="stable").tolist()
    step = (len(order) - LONGEST) / (LARGE - LONGEST)
    chosen = [*order[:LONGEST], *(order[LONGEST + int(place * step)] for place in range(LARGE - LONGEST))]
    wanted = set(chosen)
    picked = {i: row for i, row in enumerate(rows) if i in wanted}
    return [picked[i] for i in chosen], LARGE / len(rows)

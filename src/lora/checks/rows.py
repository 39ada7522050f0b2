"""Checks of what the data have become: token ids and what is learned of them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from lora.checks.examples import ids_of
from lora.checks.finding import Finding
from lora.data.rendering import IGNORED
from lora.evaluation.generation import ends_of
from lora.model.heads import input_embedding
from lora.plural import noun, number_of
from lora.tasks import Encoded, Task
from lora.training.schedule import default_learning_rate

if TYPE_CHECKING:
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared

LITTLE = 0.02  # of the tokens learned: rarely meant
# Times the default rate below which a rate is one of full fine-tuning, and above which runs diverge (the sweep behind
# the default saw that mostly at ten times it).
SLOW, FAST = 1 / 15, 15


def vocabulary(model: LoRA, prepared: Prepared) -> Finding:
    """Whether the base has an embedding for every token of the rows, held-out and test rows included."""
    name = "the base knows every token"
    base: Any = model.base
    embedding = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    size = getattr(embedding, "num_embeddings", None)
    if size is None:
        return Finding(name, "skipped", "the base has no embedding of tokens")
    parts = [part for part in (prepared.train, prepared.held, prepared.test) if part is not None]
    largest = max(max(ids_of(prepared.task, example), default=0) for part in parts for example in part.examples)
    if largest < size:
        return Finding(name, "passed", f"{size:,} in its vocabulary, {largest:,} is the largest of the rows")
    return Finding(
        name, "failed", f"the rows hold token {largest:,}, and its vocabulary has {size:,}",
        "The run would end at the first row with such a token.",
        "Take the tokenizer that belongs to this base; for tokens of your own name them with new_tokens.",
    )  # fmt: skip


def supervised(data: Encoded, task: Task) -> Finding:
    """Whether every example of the data has something to learn, and how much of it; replay may learn all of it."""
    empty = sum(1 for count in data.supervised[: data.own] if not count)
    name = "something to learn in every example"
    if empty:
        return Finding(
            name, "failed", f"{_of(empty, data.own, 'has', 'have')} no supervised token",
            "They cost time and teach nothing, while the loss of the others looks healthy.",
            "Look at them with `lora data show` and correct or remove them.",
        )  # fmt: skip
    if not task.generates:
        return Finding(name, "passed", number_of(data.own, "example"))
    labels = [sum(label != IGNORED for label in one["labels"]) for one in islice(data.examples, data.own)]
    tokens = sum(data.lengths[: data.own])
    share = sum(labels) / max(1, tokens)
    said = f"{sum(labels):,} of {tokens:,} tokens are learned ({share:.0%}), {min(labels)} at least"
    if share < LITTLE:
        return Finding(
            name, "note", said, "Almost all of the time goes into prompts.",
            "See whether the right columns are learned (`lora data show`).",
        )  # fmt: skip
    return Finding(name, "passed", said)


def stops(model: LoRA, prepared: Prepared) -> Finding:
    """Whether the last token learned of each answer is one that stops generation; replayed text may have no end."""
    task, data = prepared.task, prepared.train
    name = "answers end with a stop token"
    if not task.generates or task.inputs()[0].divisible:
        return Finding(name, "skipped", "the task has no answers" if not task.generates else "running text has no end")
    known = ends_of(model, prepared.tokenizer, task)
    # One example at a time, here and below: all of them may be more than memory holds.
    ended = sum(
        bool(last := task.last_tokens(example)) and known.issuperset(last)
        for example in islice(data.examples, data.own)
    )
    shown = ", ".join(repr(prepared.tokenizer.decode([token])) for token in sorted(known)) or "none is known"
    said = f"{_of(ended, data.own, 'does', 'do')} ({shown})"
    if ended == data.own:
        return Finding(name, "passed", said)
    return Finding(
        name, "failed" if not ended else "note", said,
        "A model that never learns an end writes on until it is cut off.",
        "Give the tokenizer an end token, or choose a chat template that ends answers with one.",
    )  # fmt: skip


def beginnings(prepared: Prepared) -> Finding:
    """Whether an example begins with the beginning token twice."""
    begin = prepared.tokenizer.bos_token_id
    name = "one beginning token"
    examples = prepared.train.examples
    # Who has no such token need not look.
    twice = begin is not None and sum(one.get("input_ids", [])[:2] == [begin, begin] for one in examples)
    if twice:
        return Finding(
            name, "failed", f"{_of(twice, len(examples), 'begins', 'begin')} with two",
            "A server sends one, so the model would be asked in a form that it was not trained in.",
            "Take the token out of the data's text, or out of the template.",
        )  # fmt: skip
    return Finding(name, "passed", "no example begins with two")


def _of(number: int, total: int, one: str, many: str) -> str:
    """Some of the examples and a verb."""
    return f"{number:,} of {number_of(total, 'example')} {noun(number, one, many)}"


def cut(prepared: Prepared) -> Finding:
    """How many rows were longer than the length."""
    count, kept = prepared.train.truncated, prepared.train.own
    name = "rows fit the length"
    long, left = ("row has" if count == 1 else "rows have"), ("example is" if kept == 1 else "examples are")
    said = f"{count:,} {long} more than {prepared.max_length:,} tokens; {kept:,} {left} left to train on"
    if count > kept / 10:
        return Finding(
            name, "note", said, "What was cut is not learned; the run's notes say what became of it.",
            "Raise max_length, if model and memory allow it.",
        )  # fmt: skip
    return Finding(name, "passed", said)


def rate(model: LoRA, adapter: str, learning_rate: float) -> Finding:
    """Whether the learning rate is one of LoRA's, or of full fine-tuning where that is done."""
    full = model.adapters[adapter].full
    usual = default_learning_rate(getattr(model.base, "config", None), full)
    name, said = "a learning rate for LoRA", f"{learning_rate:g}, where {usual:.2g} is usual for this model"
    if learning_rate < SLOW * usual and not full:
        return Finding(
            name, "note", said, "That is a rate of full fine-tuning: an adapter needs about ten times as much.",
            "Leave learning_rate out, or raise it.",
        )  # fmt: skip
    if learning_rate > FAST * usual:
        return Finding(name, "note", said, "Most runs diverge there.", "Leave learning_rate out, or lower it.")
    return Finding(name, "passed", said)


@torch.no_grad()
def template_tokens(model: LoRA, adapter: str, prepared: Prepared) -> Finding:
    """Whether the special tokens that the chat format writes have embeddings that were ever trained, or will be."""
    name = "the template's tokens are trained"
    kept = prepared.task.format
    base: Any = model.base
    embedding = base.get_input_embeddings() if hasattr(base, "get_input_embeddings") else None
    if not kept or embedding is None:
        return Finding(name, "skipped", "no chat template is used")
    weight: Any = getattr(embedding, "weight", None)
    special = set(prepared.tokenizer.all_special_ids) | set(prepared.tokenizer.get_added_vocab().values())
    ids = sorted(special & set(kept["golden"]))
    if weight is None or not ids:
        return Finding(name, "passed", "the template writes ordinary tokens alone")
    untrained = [token for token in ids if _untrained(weight, token)]
    words = ", ".join(repr(word) for word in prepared.tokenizer.convert_ids_to_tokens(untrained))
    if not untrained:
        return Finding(name, "passed", f"{len(ids)} special tokens have embeddings of their own")
    entrance, rows = input_embedding(model.base), model.adapters[adapter].token_rows
    if entrance in {*model.slots(adapter, tied=True), *model.owned(adapter)} or set(untrained) <= set(rows):
        return Finding(name, "passed", f"{words} have none yet, and the adapter trains the embedding")
    return Finding(
        name, "note", f"{words} have the embedding of a token that was never trained",
        "The model cannot tell them apart from other unused tokens: an instruction model's template on its base model.",
        f"Train their rows (adapter.token_rows {untrained}), use a template of ordinary tokens (data.options "
        "{template: plain}), or begin from the instruction model.",
    )  # fmt: skip


def _untrained(weight: Any, token: int) -> bool:
    """Whether a row of the embedding is zero, is that of another token as well, or is shorter than any ordinary one."""
    row = weight[token]
    if not bool(row.any()):
        return True
    some = weight[:: max(1, len(weight) // 4096)]
    # The first number tells most apart; compared whole, they would take a byte for each number of the embedding.
    twins = int((weight[weight[:, 0] == row[0]] == row).all(dim=1).sum())
    return twins > 1 or bool(row.float().norm() < 0.1 * some.float().norm(dim=1).median())

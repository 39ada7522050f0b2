"""What an adapter has changed of what its base could do: both on general text that is none of the training data's.

Where the base predicts tokens: the loss per token of each, KL(base ‖ adapter) per token (`lora.core.divergence`), and
the share of tokens at which both find the same one most likely. KL is the finer measure: it grows as soon as the
distribution moves, whichever way, while the loss moves only as far as the text's own tokens are concerned.

How a text is read, the first task says that reads running text with such a base (`Task.for_running_text`). A base
without a language head is looked at by what its layers make of the text: the cosine between base and adapter of the
last hidden state, mean over tokens. It says how far the representation has moved, not whether it has become worse.

Shapes: b row, t token, v vocabulary, m position of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lora.config import EVAL_BATCH_SIZE
from lora.core.divergence import cross_sums, probabilities, rows_of_block
from lora.core.routing import BASE
from lora.errors import DataError
from lora.evaluation.forgetting_result import Forgetting
from lora.evaluation.hidden_states import of_hidden_states
from lora.evaluation.probe import TEXTS
from lora.evaluation.text_sums import OF_TEXTS, estimated
from lora.model.base import pad_token_id
from lora.model.heads import output_heads
from lora.tasks import Encoded, Task, running_text
from lora.tasks.inference import collated, evaluating, in_batches, to_device, without_cache
from lora.tasks.mixture import Mixture
from lora.tasks.tokens import IGNORED

if TYPE_CHECKING:
    from lora.model.lora import LoRA

LONGEST = 512  # tokens that see each other; a longer text is measured in pieces
MOST = 512  # texts measured; of more so many, evenly over all of them


def measure_forgetting(
    model: LoRA,
    names: Sequence[str],
    tokenizer: Any,
    max_length: int,
    texts: Sequence[str] | None = None,
    source: str | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
) -> Forgetting | str:
    """Base and the adapters ``names`` on general text; a sentence where nothing of the kind can be measured.

    Args:
        max_length: tokens that the model takes; of these `LONGEST` at the most are used.
        texts: of the probe; None: the built-in ones. ``source``: where they are from.
        batch_size: rows of one forward pass, adapters together.

    Raises:
        DataError: a text has no token to predict.
    """
    chosen = _spread(TEXTS if texts is None else texts)
    notes = []
    if texts is not None and len(chosen) < len(texts):
        notes.append(f"{MOST} of the {len(texts):,} texts were measured, evenly over all of them.")
    runs = [BASE, *(name for name in names if name != BASE)]
    length = _length(max_length)
    if not output_heads(model.base):
        return of_hidden_states(model, runs, tokenizer, length, chosen, source, batch_size, notes)
    try:
        task, encoded = _encoded(model, tokenizer, length, chosen)
    except DataError as error:
        if texts is None:  # a tokenizer of a few words does not know the built-in texts
            return f"the tokenizer makes no tokens of the built-in texts ({error})"
        raise
    per_text = _sums(model, task, encoded, runs, pad_token_id(tokenizer, model.base), batch_size, len(chosen))
    kept = per_text["tokens"] > 0
    tokens = per_text["tokens"][kept]
    adapters: dict[str, dict[str, Any]] = {}
    said = list[str]()
    for name in runs:
        loss = per_text[name]["loss"][kept]
        mean = float(loss.sum() / tokens.sum())
        adapters[name] = {"loss": mean, "perplexity": math.exp(mean) if mean < 709 else math.inf}
        if name != BASE:
            its = per_text[name]
            columns = [loss - per_text[BASE]["loss"][kept], its["kl"][kept], its["same"][kept], tokens]
            figures, about = estimated(OF_TEXTS, columns)
            adapters[name] |= figures
            said += about
    return Forgetting(
        task.running_kind, source, int(kept.sum()), int(tokens.sum()), adapters,
        {"tokens": tokens.astype(int).tolist(),
         **{name: {key: values[kept].tolist() for key, values in per_text[name].items()} for name in runs}},
        [*([task.running_note] if task.running_note else []), *notes, *dict.fromkeys(said), *encoded.notes],
    )  # fmt: skip


def check_probe(model: LoRA, tokenizer: Any, max_length: int, texts: Sequence[str]) -> None:
    """Raise the DataError that `measure_forgetting` would, before anything is trained."""
    if output_heads(model.base):
        _encoded(model, tokenizer, _length(max_length), _spread(texts))


def _spread(texts: Sequence[str]) -> list[str]:
    """The texts that are measured: `MOST` at the most, evenly over all of them."""
    if len(texts) <= MOST:
        return list(texts)
    return [texts[round(place * (len(texts) - 1) / (MOST - 1))] for place in range(MOST)]


def _length(max_length: int) -> int:
    """Tokens that see each other."""
    return max(2, min(max_length, LONGEST))


def _encoded(model: LoRA, tokenizer: Any, length: int, texts: list[str]) -> tuple[Task, Encoded]:
    """The task that reads the texts, and the texts as tokens; ``row`` of an example is its text."""
    task = running_text(getattr(model.base, "config", None))
    assert task is not None, "the base has a language head"
    return task, task.encode(list(task.running_rows({"text": text} for text in texts)), tokenizer, length)


@torch.no_grad()
def _sums(
    model: LoRA, task: Task, encoded: Encoded, runs: list[str], pad_id: int, batch_size: int, texts: int
) -> dict[str, Any]:
    """Of each text its tokens, and of each of ``runs`` its loss and, but for the base, its KL and the tokens that both
    find most likely: (texts,) in fp64."""
    out: dict[str, Any] = {"tokens": np.zeros(texts)}
    for name in runs:
        out[name] = {key: np.zeros(texts) for key in (("loss",) if name == BASE else ("loss", "kl", "same"))}
    run = Mixture.of(model, task)
    with evaluating(model), without_cache(model):
        for indices in in_batches(model, task, encoded, max(1, batch_size // len(runs)), len(runs)):
            batch = to_device(collated(model, task, [encoded.examples[i] for i in indices], pad_id), model)
            # A decoder's input is shifted already; else a position predicts the token behind it.
            labels = batch["labels"][:, 1:] if task.next_token else batch["labels"]
            places = (labels != IGNORED).nonzero()
            rows = np.asarray([encoded.examples[i]["row"] for i in indices])[places[:, 0].cpu().numpy()]
            np.add.at(out["tokens"], rows, 1)
            logits = [outputs.logits for _, outputs in run(batch, runs)]
            for name, key, part, values in _of_positions(logits, labels, places, runs):
                np.add.at(out[name][key], rows[part], values.double().cpu().numpy())
    return out


def _of_positions(
    logits: list[Tensor], labels: Tensor, places: Tensor, runs: list[str]
) -> Iterator[tuple[str, str, slice, Tensor]]:
    """(adapter, figure, which of ``places``, its values (m,)), a block of positions at a time: never all in fp32."""
    step = rows_of_block(logits[0][0])
    for start in range(0, len(places), step):
        part = slice(start, start + step)
        row, token = places[part, 0], places[part, 1]
        label = labels[row, token].unsqueeze(1)
        of_base = logits[0][row, token].float()
        likeliest = of_base.argmax(1)
        for name, its in zip(runs, logits, strict=True):
            own = its[row, token].to(torch.float32, copy=True)
            chosen, found = own.gather(1, label), own.argmax(1)
            cross = None if name == BASE else cross_sums(own, of_base.clone())
            normaliser = probabilities(own)
            yield name, "loss", part, (normaliser - chosen).squeeze(1)
            if cross is not None:
                yield name, "kl", part, (cross + normaliser).squeeze(1)
                yield name, "same", part, (found == likeliest).float()

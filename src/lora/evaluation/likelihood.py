"""How likely continuations are, by every adapter: each batch goes once through all of them (`lora.tasks.mixture`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from lora.errors import DataError
from lora.tasks.inference import evaluating, to_device, token_batches, without_cache
from lora.tasks.mixture import Mixture
from lora.tasks.sequence import pad

if TYPE_CHECKING:
    from lora.model.lora import LoRA

# A continuation's log probability (the sum over its tokens, in nats), and whether greedy decoding would write it.
Scored = tuple[float, bool]
Row = tuple[Sequence[int], Sequence[int]]  # token ids: what stands before, and the continuation


@torch.no_grad()
def score(
    model: LoRA, rows: Sequence[Row], adapters: Sequence[str], *, pad_token_id: int, batch_size: int, positions: int,
    on_rows: Callable[[int], None] = lambda count: None,
) -> dict[str, list[Scored]]:  # fmt: skip
    """Log probabilities of the continuations in ``rows``, by adapter (``"base"`` among them, if wanted).

    Args:
        batch_size: rows of one forward pass, adapters together.
        positions: that a row can have; what stands before a continuation loses its beginning where there are too few.
        on_rows: called with the number of rows that every adapter is through with, batch by batch.

    Raises:
        DataError: nothing stands before a continuation, or it is longer than the positions.
    """
    # Continuations that differ in their last token alone, such as the answers A to D, are read from one row's logits.
    inputs: dict[tuple[int, ...], list[int]] = {}
    for number, (before, after) in enumerate(rows):
        if not before or len(after) > positions:
            what = f"is longer than the {positions} positions of the model" if before else "follows no token"
            raise DataError(f"a continuation of {len(after)} tokens {what}, so its probability cannot be told")
        inputs.setdefault(tuple([*before, *after][-(positions + 1) : -1]), []).append(number)
    texts = list(inputs)
    out: dict[str, list[Scored]] = {name: [(0.0, True)] * len(rows) for name in adapters}
    rows_each = max(1, batch_size // len(adapters))
    run = Mixture(model, of_tokens=True, generates=True)
    with evaluating(model), without_cache(model):
        for indices in token_batches(model, [len(ids) for ids in texts], rows_each, len(adapters)):
            ids = [list(texts[index]) for index in indices]
            batch = {
                "input_ids": pad(ids, pad_token_id, "right"),
                "attention_mask": pad([[1] * len(row) for row in ids], 0, "right"),
            }
            for name, outputs in run(to_device(batch, model), adapters):
                for place, index in enumerate(indices):
                    for number in inputs[texts[index]]:
                        found = outputs.logits[place, : len(texts[index])]  # (t, v)
                        out[name][number] = _scored(found, rows[number][1])
            on_rows(sum(len(inputs[texts[index]]) for index in indices))
    return out


def _scored(logits: torch.Tensor, after: Sequence[int]) -> Scored:
    """``logits`` (t, v) of a row without its padding, of which the last say what follows."""
    wanted = torch.tensor(after, dtype=torch.long, device=logits.device).unsqueeze(1)  # (n, 1)
    found = logits[len(logits) - len(after) :].float()  # (n, v)
    chosen = found.log_softmax(dim=-1).gather(1, wanted)
    greedy = found.argmax(dim=-1, keepdim=True) == wanted
    return float(chosen.cpu().double().sum()), bool(greedy.all())

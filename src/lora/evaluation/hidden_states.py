"""How far an adapter has moved what its base makes of a text, where that has no language head.

Shapes: b row, t token, h hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora.core.routing import BASE
from lora.data.batches import in_order
from lora.evaluation.forgetting_result import STATES, Forgetting
from lora.evaluation.text_sums import COSINE, estimated
from lora.model.base import pad_token_id
from lora.tasks.inference import evaluating, to_device, without_cache
from lora.tasks.sequence import pad

if TYPE_CHECKING:
    from lora.model.lora import LoRA


@torch.no_grad()
def of_hidden_states(
    model: LoRA, runs: list[str], tokenizer: Any, length: int, texts: list[str], source: str | None, batch_size: int,
    notes: list[str],
) -> Forgetting | str:  # fmt: skip
    """The cosine between base and adapter of each text's mean hidden state."""
    if tokenizer is None or not hasattr(getattr(model.base, "config", None), "to_dict"):
        return f"{type(model.base).__name__} has neither a language head nor hidden states that it tells of"
    ids = [list(row) for row in tokenizer(texts, truncation=True, max_length=length, verbose=False)["input_ids"]]
    cosines: dict[str, NDArray[np.float64]] = {name: np.zeros(len(texts)) for name in runs[1:]}
    fill = pad_token_id(tokenizer, model.base)
    with evaluating(model), without_cache(model):
        for indices in in_order([len(row) for row in ids], max(1, batch_size)):
            batch = {
                "input_ids": pad([ids[i] for i in indices], fill, "right"),
                "attention_mask": pad([[1] * len(ids[i]) for i in indices], 0, "right"),
            }
            batch = to_device(batch, model)
            states = []
            for name in runs:
                state = _last_state(model(**batch, adapters=[name] * len(indices), output_hidden_states=True))
                if state is None:
                    return f"{type(model.base).__name__} has neither a language head nor hidden states that it tells of"
                weights = batch["attention_mask"].unsqueeze(2).float()
                states.append((state.float() * weights).sum(1) / weights.sum(1))
            for name, own in zip(runs[1:], states[1:], strict=True):
                cosines[name][indices] = torch.cosine_similarity(own, states[0]).double().cpu().numpy()
    adapters: dict[str, dict[str, Any]] = {BASE: {}}
    said = list[str]()
    for name, own_cosines in cosines.items():
        adapters[name], about = estimated([COSINE], [own_cosines, np.ones(len(texts))])
        said += about
    per_text: dict[str, Any] = {name: {"cosine": its.tolist()} for name, its in cosines.items()}
    per_text["tokens"] = [len(row) for row in ids]
    return Forgetting(
        STATES, source, len(texts), sum(map(len, ids)), adapters, per_text, [*notes, *dict.fromkeys(said)]
    )


def _last_state(outputs: Any) -> Tensor | None:
    """The last hidden state (b, t, h), of an encoder-decoder its encoder's."""
    state: Tensor | None = getattr(outputs, "encoder_last_hidden_state", None)
    if state is None and (states := getattr(outputs, "hidden_states", None)):
        state = states[-1]
    return state if state is not None and state.dim() == 3 else None

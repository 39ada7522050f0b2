"""One pass: the batches of several adapters through the base together, a loss for each, one backward."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora.core.randomness import seeded_dropout
from lora.model.rows import routing_of
from lora.tasks.inference import to_device

if TYPE_CHECKING:
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared
    from lora.training.trainee import Trainee


@dataclass
class Share:
    """One adapter's next batch, ready to be computed.

    Attributes:
        trainee: whose batch it is.
        number: of the batch in the trainee's step.
        batch: its tensors, ``labels`` included, on the model's device.
    """

    trainee: Trainee
    number: int
    batch: dict[str, Tensor]

    @classmethod
    def next_of(cls, model: LoRA, trainee: Trainee, prepared: Prepared) -> Share | None:
        """The trainee's next batch; None where the step has no more for this process."""
        found = trainee.share()
        if found is None:
            return None
        number, rows = found
        examples = [trainee.data.examples[i] for i in rows]
        batch = trainee.task.collate(examples, prepared.pad_token_id, prepared.padding_side)
        return cls(trainee, number, to_device(batch, model))

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the base model takes; labels stay with the task, which computes the loss itself."""
        return {key: value for key, value in self.batch.items() if key != "labels"}

    @property
    def rows(self) -> int:
        return next(iter(self.batch.values())).shape[0]

    @property
    def tokens(self) -> int:
        ids = next(iter(self.batch.values()))
        return ids.shape[0] * (ids.shape[1] if ids.dim() > 1 else 1)

    @property
    def layout(self) -> Any:
        """Shares of one layout can go through the base together without any of them being padded further.

        A longer row would change the order of additions inside the attention, and so the last bits of a result.
        """
        return tuple((key, *value.shape[1:]) for key, value in self.inputs.items())


class Passes:
    """Runs passes on one model; its dropout mode is worked out once."""

    def __init__(self, model: LoRA) -> None:
        self.model = model
        self._drops: AbstractContextManager[Any] = seeded_dropout(model.base, model.router)

    def run(self, shares: Sequence[Share]) -> None:
        """Forward and backward of ``shares``; each trainee's gradient and loss grow by its own.

        A trainee's loss is its sum over the supervised positions of its *whole* step, so that accumulation and several
        processes give the gradient of one large batch, whatever the lengths. The losses of all are added for one
        backward: an adapter's gradient comes from its own summand alone, even where another's is NaN.
        """
        begun = time.perf_counter()
        outputs = self._forward(shares)
        total: Tensor | None = None
        losses, start = [], 0
        for share in shares:
            trainee, stop = share.trainee, start + share.rows
            count = trainee.supervised(trainee.batches(trainee.step))
            mine = SimpleNamespace(logits=outputs.logits[start:stop])
            sums, _ = trainee.task.row_losses(mine, share.batch, trainee.settings.label_smoothing)
            losses.append(sums.sum() / count)
            total = losses[-1] if total is None else total + losses[-1]
            start = stop
        assert total is not None, "a pass has a share"
        total.backward()
        seconds = time.perf_counter() - begun
        for share, loss in zip(shares, losses, strict=True):
            share.trainee.loss = share.trainee.loss + loss.detach()
            share.trainee.seconds += seconds * share.rows / start

    def _forward(self, shares: Sequence[Share]) -> Any:
        inputs = {key: torch.cat([share.inputs[key] for share in shares]) for key in shares[0].inputs}
        names = [share.trainee.name for share in shares for _ in range(share.rows)]
        routing = routing_of(self.model.base, self.model.router, names, (), inputs)
        routing.seeds = {share.trainee.name: share.trainee.seed(share.number) for share in shares}
        with self.model.router.activate(routing), self._drops:
            return self.model.base(**inputs)

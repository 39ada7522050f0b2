"""One pass: the batches of several adapters through the base together, a loss for each, one backward."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora.core.attention import per_document
from lora.core.randomness import seeded_dropout
from lora.errors import ConfigError
from lora.model.fused import Fused
from lora.model.kernels import Kernels
from lora.model.rows import routing_of
from lora.tasks.inference import to_device
from lora.training.packing import Packing, find_packing

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
        examples: its rows.
        packed: whether they go into one row.
        collate: makes padded tensors of rows.
    """

    trainee: Trainee
    number: int
    examples: list[dict[str, Any]]
    packed: bool
    collate: Callable[[list[dict[str, Any]]], dict[str, Tensor]]

    @functools.cached_property
    def batch(self) -> dict[str, Tensor]:
        """Padded tensors, ``labels`` included, on the model's device."""
        return self.collate(self.examples)

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the base model takes; labels stay with the task, which computes the loss itself."""
        return {key: value for key, value in self.batch.items() if key != "labels"}

    @property
    def tokens(self) -> int:
        """Places that the share takes in a pass, padding included."""
        if self.packed:
            return sum(len(example["input_ids"]) for example in self.examples)
        ids = next(iter(self.batch.values()))
        return ids.shape[0] * (ids.shape[1] if ids.dim() > 1 else 1)

    @property
    def layout(self) -> Any:
        """Shares of one layout can go through the base together without any of them being padded further.

        A longer row would change the order of additions inside the attention, and so the last bits of a result.
        """
        if self.packed:
            return "packed"
        return tuple((key, *value.shape[1:]) for key, value in self.inputs.items())


class Passes:
    """Runs passes on one model by ``kernels`` (None: torch's operators); what it can do is worked out once."""

    def __init__(self, model: LoRA, kernels: Kernels | None = None) -> None:
        self.model = model
        self._drops: AbstractContextManager[Any] = seeded_dropout(model.base, model.router)
        self._fused = Fused(model.base, kernels)
        self._packing: Packing | None = None

    def why_padded(self, trainee: Trainee, prepared: Prepared) -> str | None:
        """Why the trainee's batches cannot go into one row; None: they do, where its settings and the model allow it.

        Raises:
            ConfigError: it was asked for and cannot be.
        """
        if trainee.settings.packing is False:
            return "training.packing is off"
        # Asked for each adapter anew: its layers and its longest documents may be others.
        found = find_packing(self.model, trainee, prepared)
        if isinstance(found, str):
            if trainee.settings.packing:
                raise ConfigError(f"training.packing: {found}; leave the setting out to train with padded rows")
            return found
        self._packing = found
        return None

    def next_share(self, trainee: Trainee, prepared: Prepared, packed: bool) -> Share | None:
        """The trainee's next batch; None where the step has no more for this process."""
        found = trainee.share()
        if found is None:
            return None
        number, rows = found

        def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
            return to_device(trainee.task.collate(examples, prepared.pad_token_id, prepared.padding_side), self.model)

        return Share(trainee, number, [trainee.data.examples[i] for i in rows], packed, collate)

    def run(self, shares: Sequence[Share]) -> None:
        """Forward and backward of ``shares``, all of one layout; each trainee's gradient and loss grow by its own.

        A trainee's loss is its sum over the supervised positions of its *whole* step, so that accumulation and several
        processes give the gradient of one large batch, whatever the lengths. The losses of all are added for one
        backward: an adapter's gradient comes from its own summand alone, even where another's is NaN.
        """
        begun = time.perf_counter()
        packed = shares[0].packed
        with per_document(self.model.base) if packed else nullcontext(), self._fused.in_force():
            sums = self._packed(shares) if packed else self._padded(shares)
            losses = [
                loss / s.trainee.supervised(s.trainee.batches(s.trainee.step))
                for loss, s in zip(sums, shares, strict=True)
            ]
            total = losses[0]
            for loss in losses[1:]:
                total = total + loss
            total.backward()
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()  # else this would be the time that it takes to ask for the work
        seconds, tokens = time.perf_counter() - begun, sum(share.tokens for share in shares)
        for share, loss in zip(shares, losses, strict=True):
            share.trainee.loss = share.trainee.loss + loss.detach()
            share.trainee.seconds += seconds * share.tokens / tokens

    def forward(self, shares: Sequence[Share]) -> list[Tensor]:
        """The loss sums of `run` alone, for a look at what a backward would need."""
        packed = shares[0].packed
        with per_document(self.model.base) if packed else nullcontext(), self._fused.in_force():
            return self._packed(shares) if packed else self._padded(shares)

    def _packed(self, shares: Sequence[Share]) -> list[Tensor]:
        packing = self._packing
        assert packing is not None, "why_padded was asked"
        with self._drops:
            losses = packing.losses(
                [share.examples for share in shares],
                [share.trainee.name for share in shares],
                _seeds(shares),
                [share.trainee.settings.label_smoothing for share in shares],
            )
        return [of_one.sum() for of_one in losses]

    def _padded(self, shares: Sequence[Share]) -> list[Tensor]:
        inputs = {key: torch.cat([share.inputs[key] for share in shares]) for key in shares[0].inputs}
        names = [share.trainee.name for share in shares for _ in share.examples]
        routing = routing_of(self.model.base, self.model.router, names, (), inputs)
        routing.seeds = _seeds(shares)
        with self.model.router.activate(routing), self._drops:
            outputs = self.model.base(**inputs)
        sums, start = [], 0
        for share in shares:
            stop = start + len(share.examples)
            mine = SimpleNamespace(logits=outputs.logits[start:stop])
            losses, _ = share.trainee.task.row_losses(mine, share.batch, share.trainee.settings.label_smoothing)
            sums.append(losses.sum())
            start = stop
        return sums


def _seeds(shares: Sequence[Share]) -> dict[str, int]:
    return {share.trainee.name: share.trainee.seed(share.number) for share in shares}

"""The mean of an adapter's parameters over steps, which is then what is evaluated, picked and kept.

Stochastic weight averaging (Izmailov et al. 2018, arXiv:1803.05407, algorithm 1): every step from one on counts alike.
Its exponential kin lets the older ones fade. Both are w̄ ← w̄ + c·(w - w̄), with c = 1/n at the n-th step for the first
and c = max(1/n, 1 - decay) for the other, which so begins as a plain mean instead of clinging to where it began.

A and B are averaged each for itself. The mean of the products B·A has a rank of up to r times the number of steps: no
adapter of rank r holds it. The two differ by the covariance of B and A over the steps, of second order in how far the
steps lie apart, while the mean of the factors is an adapter like any other: of its rank, mergeable, in its format.
Magnitudes, single rows and whole modules are averaged alike; buffers are those of the last step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from lora.config import TrainingConfig


class Average:
    """The running mean of ``parameters``, from its first step on; before that, and if none is asked for, nothing.

    Attributes:
        tensors: the mean, by the parameters' names; empty before the first step that counts.
        count: steps in it.
    """

    def __init__(self, parameters: Mapping[str, Tensor], settings: TrainingConfig, total_steps: int) -> None:
        self.parameters = parameters
        self.asked = settings.average != "none"
        self.decay = settings.average_decay if settings.average == "ema" else 1.0
        # At least the last step counts.
        self.first = min(int(settings.average_from * total_steps) + 1, total_steps)
        self.tensors: dict[str, Tensor] = {}
        self.count = 0

    @torch.no_grad()
    def take(self, step: int) -> None:
        """Count the parameters after ``step`` steps in."""
        if not self.asked or step < self.first:
            return
        self.count += 1
        if self.count == 1:
            self.tensors = {key: p.detach().clone() for key, p in self.parameters.items()}
            return
        share = max(1 / self.count, 1 - self.decay)
        for key, mean in self.tensors.items():
            mean.lerp_(self.parameters[key], share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """For the block the parameters are their mean, where there is one."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        # By content, one tensor at a time: others may hold on to the parameters' storage, and memory is short.
        for key, mean in self.tensors.items():
            parameter = self.parameters[key]
            now = parameter.clone()
            parameter.copy_(mean)
            mean.copy_(now)

    @torch.no_grad()
    def settle(self) -> None:
        """Make the parameters their mean for good, where there is one."""
        for key, mean in self.tensors.items():
            self.parameters[key].copy_(mean)

    def load(self, count: int, tensors: Mapping[str, Tensor]) -> None:
        """Go back to a checkpoint, whose ``tensors`` are those of `Trainee.tensors`."""
        self.count = count
        self.tensors = {
            key: tensors[f"average.{key}"].to(p.device)
            for key, p in self.parameters.items()
            if f"average.{key}" in tensors
        }

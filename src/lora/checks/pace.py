"""How fast training goes here and now: a few steps of a shallow model of the base's own widths, timed.

Its tensors are made up, so no weight is read. What two depths differ by, every further layer takes. Where even one
layer is too large to be tried within a second or two, a matrix product of its shape is timed instead: that says less.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from lora.checks.depth import cut, layers_of, period_of
from lora.checks.rehearsal import Role
from lora.checks.stand_in import times
from lora.core.configs import text_config
from lora.model.lora import LoRA
from lora.training.memory import can_recompute, free_bytes, recomputing, training_mode
from lora.training.passes import Passes
from lora.training.trainee import Trainee

SLOWER = 2.5  # times the products alone: what a step takes at the most, as seen in benchmarks/README.md
# What the timed passes leave out (updates, drawing batches, the log) and how far steps of a run scatter about them.
FASTEST, SLOWEST = 0.7, 1.3
PASS = 0.25  # seconds that a pass tried here may take
LEAST, MOST = 32, 1024  # tokens of a pass that is tried
BYTES = 1 << 30  # of the tensors made up for that
REPEATS = 3


@dataclass(frozen=True)
class Pace:
    """What was measured.

    Attributes:
        per_token: least and most seconds that a token takes, forward and backward, of the whole model.
        how: what was timed.
        load: processes that wanted to run in the last minute, of them this one; None: the system does not say.
        cores: that there are.
    """

    per_token: tuple[float, float]
    how: str
    load: float | None
    cores: int

    def of(self, tokens: float) -> tuple[float, float]:
        """Least and most seconds for ``tokens``."""
        return tokens * self.per_token[0], tokens * self.per_token[1]

    @property
    def busy(self) -> bool:
        """Whether others use much of this machine: a run alone would be faster, one beside more of them slower."""
        return self.load is not None and self.load > max(1.5, 0.6 * self.cores)


def measure(shape: nn.Module, role: Role, recompute: bool, tokens: float, per_token: float) -> Pace:
    """Time training of the adapter ``role`` on a base like ``shape``, which is on the meta device.

    Args:
        recompute: whether layers are recomputed in the backward.
        tokens: of an average row.
        per_token: operations of one, of the whole model.
    """
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    product = _product(shape)
    found = None
    try:
        with torch.random.fork_rng(devices=[]):
            found = _by_layers(shape, role, recompute, tokens, per_token / product)
    except Exception:  # whatever a model of unknown make objects to: a plan does not depend on it
        found = None
    if found is not None:
        return Pace((FASTEST * found[0], SLOWEST * found[1]), "steps of few layers of its widths", load, cores)
    least = per_token / product
    return Pace(
        (least, SLOWER * least), "a matrix product alone, since its layers are too large to be tried", load, cores
    )


def _by_layers(
    shape: nn.Module, role: Role, recompute: bool, tokens: float, expected: float
) -> tuple[float, float] | None:
    """Seconds of a token, by the fastest and by the slowest of some passes; None: that would take too long.

    ``expected``: seconds of a token of the whole model, by its products.
    """
    layers = layers_of(shape)
    period = period_of(layers) or len(layers)
    depths = [period, 3 * period] if 3 * period < len(layers) else [len(layers)]
    share = depths[-1] / max(1, len(layers))
    most = min(MOST, int(PASS / max(1e-12, SLOWER * expected * share)))
    if most < LEAST:
        return None
    length = max(2, min(round(tokens), most))
    rows = max(1, min(role.training.batch_size, most // length))
    tries = [_trial(cut(shape, depth), role, recompute, length, rows) for depth in depths]
    if any(one is None for one in tries):
        return None
    found = [[one() for one in tries if one is not None] for _ in range(REPEATS + 1)][1:]  # the first one warms up
    ends = [sorted(times_of)[place] for times_of in zip(*found, strict=True) for place in (0, -1)]
    if len(depths) == 1:
        return ends[0], ends[1]
    further = (len(layers) - depths[0]) / (depths[1] - depths[0])
    fast, slow = (ends[place] + further * max(0.0, ends[2 + place] - ends[place]) for place in (0, 1))
    return min(fast, slow), max(fast, slow)


def _trial(base: nn.Module, role: Role, recompute: bool, length: int, rows: int) -> Callable[[], float] | None:
    """What times a pass of ``rows`` rows of ``length`` tokens through ``base``, and gives seconds a token."""
    size = sum(p.numel() * p.element_size() for p in base.parameters())
    if size > min(BYTES, free_bytes(device()) / 8):
        return None
    base.to_empty(device=device())
    with torch.no_grad():
        for tensor, value in [(p, 0.01) for p in base.parameters()] + [(b, 0) for b in base.buffers()]:
            tensor.fill_(value)
    model = LoRA(base, name=None)
    model.add_adapter("pace", role.adapter.model_copy(deep=True), seed=0)
    task = role.prepared.task
    longest = max(role.prepared.train.examples, key=lambda example: task.size(example)[2])
    prepared = replace(role.prepared, train=times(task, task.of_length(longest, length), rows))
    settings = role.training.model_copy(update={"batch_size": rows, "accumulation": 1, "learning_rate": 1e-4})
    trainee, passes = Trainee(model, "pace", task, prepared.train, settings), Passes(model)
    packed = passes.why_padded(trainee, prepared) is None
    share = passes.next_share(trainee, prepared, packed)
    assert share is not None, "nobody has begun"

    def time_one() -> float:
        with training_mode(model), recomputing(model, recompute and can_recompute(model)):
            trainee.begin_step()
            begun = time.perf_counter()
            passes.run([share])
            _wait()
            return (time.perf_counter() - begun) / (rows * prepared.train.lengths[0])

    return time_one


def device() -> torch.device:
    """Where training here computes."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _wait() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _product(shape: nn.Module) -> float:
    """Operations a second of a product as a layer of the base computes it."""
    text: Any = text_config(getattr(shape, "config", None))
    width = min(4096, getattr(text, "hidden_size", None) or 512)
    inner = min(4096, getattr(text, "intermediate_size", None) or 4 * width)
    rows, dtype = 256, next(shape.parameters()).dtype
    x, weight = (torch.ones(size, dtype=dtype, device=device()) for size in ((rows, width), (inner, width)))
    best, end = math.inf, time.perf_counter() + 0.1
    torch.nn.functional.linear(x, weight)
    while time.perf_counter() < end:
        begun = time.perf_counter()
        torch.nn.functional.linear(x, weight)
        _wait()
        best = min(best, time.perf_counter() - begun)
    return 2 * rows * width * inner / best

"""How fast adapters answer, and how much memory that takes.

Each adapter is timed on its own: the pass that compares adapters mixes them in a batch and tells nothing of one alone.
They take turns row by row, so that whatever else the machine does meanwhile falls on all of them alike, and each leads
as often as the others: who comes first finds cold caches.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor

from lora.core.routing import BASE
from lora.data.batches import in_order
from lora.evaluation.factors import factor, median_ratio, p95_ratio, rate_ratio
from lora.tasks.base import Encoded, Task
from lora.tasks.inference import collated, evaluating, to_device
from lora.tasks.mixture import forward

if TYPE_CHECKING:
    from lora.model.lora import LoRA

WARM_UP = 3  # passes not counted at the very beginning, which allocates memory; of each further shape one
THROUGHPUT_BATCHES = 8  # with fewer, the batches are gone over again
SAMPLING = 0.02  # seconds between two looks at the process's memory


@torch.no_grad()
def measure_speed(
    model: LoRA,
    task: Task,
    encoded: Encoded,
    adapters: Sequence[str],
    *,
    pad_token_id: int,
    batch_size: int,
    rows: int,
) -> dict[str, dict[str, Any]]:
    """Times of the forward pass over tokenised rows, per adapter.

    Returns, for each adapter:
        ``latency_p50_ms``, ``latency_p95_ms``: batches of one; ``latency_rows`` of them, spread evenly over the data.
        ``rows_per_second``, ``tokens_per_second``: batches of ``batch_size``, some of each length; padding is no token.
        ``to_base``, where the base ran too: for each of these the factor to the base's, see `lora.evaluation.factors`.
    """

    def collate(indices: Sequence[int]) -> dict[str, Tensor]:
        return collated(model, task, [encoded.examples[i] for i in indices], pad_token_id)

    singles = spread(len(encoded), rows)
    batches = in_order(encoded.lengths, batch_size)
    batches = [batches[i] for i in spread(len(batches), THROUGHPUT_BATCHES)]
    batches *= -(-THROUGHPUT_BATCHES // len(batches))
    with evaluating(model):
        one = _take_turns(model, adapters, [collate([i]) for i in singles])
        many = _take_turns(model, adapters, [collate(indices) for indices in batches])
    rows_done = sum(map(len, batches))
    tokens_done = sum(encoded.lengths[i] for indices in batches for i in indices)
    out: dict[str, dict[str, Any]] = {
        name: {
            "latency_p50_ms": 1000 * float(np.percentile(one[name], 50)),
            "latency_p95_ms": 1000 * float(np.percentile(one[name], 95)),
            "latency_rows": len(singles),
            "rows_per_second": rows_done / sum(many[name]),
            "tokens_per_second": tokens_done / sum(many[name]),
        }
        for name in adapters
    }
    for name in adapters if BASE in adapters else ():
        if name != BASE:
            rate = factor(many[name], many[BASE], rate_ratio)
            out[name]["to_base"] = {
                "latency_p50_ms": factor(one[name], one[BASE], median_ratio),
                "latency_p95_ms": factor(one[name], one[BASE], p95_ratio),
                "rows_per_second": rate,
                "tokens_per_second": rate,
            }
    return out


def spread(count: int, wanted: int) -> list[int]:
    """At most ``wanted`` different places in ``range(count)``, evenly over all of it."""
    return sorted(set(np.linspace(0, count - 1, min(count, max(wanted, 1))).round().astype(int).tolist()))


def _take_turns(model: LoRA, adapters: Sequence[str], batches: list[dict[str, Tensor]]) -> dict[str, list[float]]:
    """Seconds of each batch's forward pass, per adapter: the times at one place are of one batch."""
    device = next(model.parameters()).device
    seconds: dict[str, list[float]] = {name: [] for name in adapters}
    shapes: set[torch.Size] = set()
    for place, batch in enumerate(batches):
        shape = batch["input_ids"].shape
        if shape not in shapes:
            # Kernels are chosen, on CPUs compiled, for a shape when it first comes: that would be the first one's time.
            for name in [*adapters] * (1 if shapes else WARM_UP):
                _timed(model, name, batch, device)
            shapes.add(shape)
        for name in turn(adapters, place):
            seconds[name].append(_timed(model, name, batch, device))
    return seconds


def turn(names: Sequence[str], number: int) -> list[str]:
    """``names`` in the order of this turn: each leads as often as the others."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def synchronize(device: torch.device) -> None:
    """Kernels run behind the program; their end is what counts."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _timed(model: LoRA, name: str, batch: dict[str, Tensor], device: torch.device) -> float:
    started = time.perf_counter()
    forward(model, to_device(batch, model), name)
    synchronize(device)
    return time.perf_counter() - started


class PeakMemory:
    """Largest use of memory within the block: on CUDA what torch allocated there, elsewhere the process's main memory.

    >>> with PeakMemory(model) as peak: ...
    >>> peak.bytes, peak.kind
    """

    def __init__(self, model: LoRA) -> None:
        self._device = next(model.parameters()).device
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self.bytes = 0
        self.kind = (
            "GPU memory allocated by torch" if self._device.type == "cuda" else "main memory of the whole process (RSS)"
        )

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._look()
            self._thread = threading.Thread(target=self._watch, name="lora-peak-memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._thread is None:
            self.bytes = torch.cuda.max_memory_allocated(self._device)
            return
        self._done.set()
        self._thread.join()
        self._look()

    def _look(self) -> None:
        import psutil

        self.bytes = max(self.bytes, psutil.Process().memory_info().rss)

    def _watch(self) -> None:
        while not self._done.wait(SAMPLING):
            self._look()

"""Speed by batch size and length, of base, adapters and merged adapters; to the first token, and token by token.

As in `lora.evaluation.speed` all take turns, so that what else the machine does falls on all alike. Every cell of the
grid has a share of one budget of seconds, however slow the model is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lora.config import SPEED_SECONDS, SamplingConfig
from lora.core.free import free_bytes, gib
from lora.core.routing import BASE
from lora.errors import ConfigError, ModelError
from lora.evaluation.decoding import decode
from lora.evaluation.factors import FEWEST_PAIRS, factor, median_ratio, rate_ratio
from lora.evaluation.speed import WARM_UP, PeakMemory, synchronize, turn
from lora.model.base import positions_of
from lora.tasks.base import Encoded, Task
from lora.tasks.inference import collated, evaluating, forward, to_device, without_cache

if TYPE_CHECKING:
    from lora.model.lora import LoRA

QUANTILES = (0.1, 0.5, 0.9)  # of the data's lengths
FEWEST = FEWEST_PAIRS  # repetitions; a cell that has no time for them is left out
MOST = 200  # repetitions: twice as many as a 99th percentile needs
SHARE = 0.7  # of the free memory that merged copies may take
PERCENTILES = (50, 95, 99)

clock = time.perf_counter


@dataclass(frozen=True)
class SpeedPlan:
    """What is measured.

    Attributes:
        batch_sizes: rows of one pass.
        lengths: tokens of a row, each a length that rows of the data have or the nearest to it; default: the 10th, 50th
            and 90th percentile of the data's.
        seconds: budget of the whole grid. Passes that were begun are ended, and every shape is passed once before.
        new_tokens: that are written behind a prompt.
        merged: measure each adapter merged into a copy of the base too.
    """

    batch_sizes: Sequence[int] = (1, 8, 32)
    lengths: Sequence[int] | None = None
    seconds: float = SPEED_SECONDS
    new_tokens: int = 32
    merged: bool = True

    def __post_init__(self) -> None:
        for name in ("batch_sizes", "lengths"):
            values = getattr(self, name)
            if values is not None and (not values or any(value < 1 for value in values)):
                raise ConfigError(f"speed.{name} is {values!r}; numbers of at least 1 are needed")
        if self.seconds <= 0 or self.new_tokens < 2:
            raise ConfigError("speed: seconds must be above 0 and new_tokens at least 2")


@dataclass
class SpeedGrid:
    """What was measured.

    Attributes:
        passes: of each batch size and length ``batch_size``, ``length`` (tokens of each row, no padding),
            ``repetitions``, ``none`` (percentiles that are None, and why) and ``runs``: by name (``"base"``, an
            adapter, ``"NAME, merged"``) ``p50_ms``, ``p95_ms``, ``p99_ms`` of one forward pass, ``rows_per_second``,
            ``tokens_per_second``, ``peak_memory_bytes`` and ``to_base``, the factor of ``p50_ms`` with its interval.
        generation: of each batch size ``batch_size``, ``prompt_tokens``, ``new_tokens``, ``repetitions``, ``none`` and
            ``runs``: by name ``first_token_p50_ms`` (and 95, 99), ``tokens_per_second`` of all rows together from the
            first token on, ``peak_memory_bytes``, and ``to_base`` with factors of both.
        peak_memory_kind: of what; copies of the base that a run does not use are taken off.
        notes: what was left out, and why, in full sentences.
    """

    passes: list[dict[str, Any]] = field(default_factory=list)
    generation: list[dict[str, Any]] = field(default_factory=list)
    peak_memory_kind: str = ""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass
class Run:
    """One thing that is timed: a model, the adapter of its rows, and the bytes of weights that are its own copy."""

    model: LoRA
    adapter: str
    own: int = 0


@dataclass
class _Job:
    """One shape: what a run does once, giving the seconds that count, and what becomes of them all."""

    said: str
    once: Callable[[Run], list[float]]
    put: Callable[[dict[str, list[list[float]]], dict[str, int]], None]


@torch.no_grad()
def speed_grid(
    model: LoRA, task: Task, encoded: Encoded, adapters: Sequence[str], plan: SpeedPlan | None = None, *,
    pad_token_id: int,
) -> SpeedGrid:  # fmt: skip
    """Measure ``adapters`` (``"base"`` among them, for factors) as ``plan`` says."""
    plan = plan or SpeedPlan()
    started = clock()
    grid = SpeedGrid()
    runs = {name: Run(model, name) for name in adapters}
    if plan.merged:
        runs |= _merged(model, [name for name in adapters if name != BASE], grid.notes)
    grid.peak_memory_kind = PeakMemory(model).kind
    jobs = [
        *_passes(grid, task, encoded, plan, pad_token_id),
        *_writing(grid, model, task, encoded, plan, pad_token_id),
    ]
    with evaluating(model):
        for place, job in enumerate(jobs):
            left = started + plan.seconds - clock()
            if left <= 0:
                grid.notes.append(f"{job.said}: left out, the {plan.seconds:g} seconds were over.")
                continue
            _measure(job, runs, clock() + left / (len(jobs) - place), clock() + left, grid.notes, first=not place)
    grid.seconds = clock() - started
    return grid


def _merged(model: LoRA, names: Sequence[str], notes: list[str]) -> dict[str, Run]:
    """A plain copy of the base with each adapter worked in, as far as there is memory for them."""
    from lora.model.lora import LoRA

    device = next(model.parameters()).device
    weights = {id(parameter): parameter for parameter in model.base.parameters()}
    own = {id(parameter) for name in model.adapters for parameter in model.adapter_parameters(name).values()}
    size = sum(its.numel() * its.element_size() for key, its in weights.items() if key not in own)
    out: dict[str, Run] = {}
    for name in names:
        free = free_bytes(device)
        if size > SHARE * free:
            notes.append(
                f"{name}, merged: left out, as its copy of the base takes {gib(size)} and {gib(free)} are free."
            )
            continue
        try:
            plain = model.merge(name).eval()
        except ModelError as error:
            notes.append(f"{name}, merged: left out ({error}).")
            continue
        out[f"{name}, merged"] = Run(LoRA(plain, name=None), BASE, size)
    return out


def _measure(job: _Job, runs: dict[str, Run], until: float, end: float, notes: list[str], first: bool) -> None:
    """Rounds in which each run has its turn, until the job's time or repetitions are over."""
    begun = clock()
    peaks: dict[str, int] = {}
    for run in runs.values():
        for _ in range(WARM_UP if first else 1):
            job.once(run)
    warmed = clock()
    one = (warmed - begun) / (WARM_UP if first else 1)
    if warmed + (FEWEST + 1) * one > end:
        notes.append(f"{job.said}: left out, a round takes {one:.1f} s, and for {FEWEST} there was no time left.")
        return
    for name, run in runs.items():
        with PeakMemory(run.model) as peak:
            job.once(run)
        # Alone it would have the weights once, whichever they are.
        peaks[name] = max(0, peak.bytes - sum(other.own for other in runs.values()))
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    for number in range(MOST):
        if number >= FEWEST and clock() >= until:
            break
        for name in turn(list(runs), number):
            times[name].append(job.once(runs[name]))
    job.put(times, peaks)


def _passes(grid: SpeedGrid, task: Task, encoded: Encoded, plan: SpeedPlan, pad_token_id: int) -> Iterator[_Job]:
    for length in _lengths(encoded, plan):
        rows = [place for place, its in enumerate(encoded.lengths) if its == length]
        for size in plan.batch_sizes:
            examples = [encoded.examples[rows[place % len(rows)]] for place in range(size)]
            yield _pass(grid, task, examples, length, pad_token_id)


def _lengths(encoded: Encoded, plan: SpeedPlan) -> list[int]:
    """Lengths that rows have, so that a batch needs no padding, the shortest first."""
    have = np.unique(encoded.lengths)
    wanted = plan.lengths or np.quantile(encoded.lengths, QUANTILES)
    return sorted({int(have[np.abs(have - length).argmin()]) for length in wanted})


def _pass(grid: SpeedGrid, task: Task, examples: list[dict[str, Any]], length: int, pad_token_id: int) -> _Job:
    size = len(examples)

    def once(run: Run) -> list[float]:
        batch = collated(run.model, task, examples, pad_token_id)
        with without_cache(run.model):
            begun = clock()
            forward(run.model, to_device(batch, run.model), run.adapter)
            synchronize(next(run.model.parameters()).device)
            return [clock() - begun]

    def put(times: dict[str, list[list[float]]], peaks: dict[str, int]) -> None:
        seconds = {name: [each[0] for each in its] for name, its in times.items()}
        runs: dict[str, dict[str, Any]] = {}
        for name, its in seconds.items():
            rate = size * len(its) / sum(its)
            runs[name] = {
                **percentiles(its), "rows_per_second": rate, "tokens_per_second": rate * length,
                "peak_memory_bytes": peaks[name],
            }  # fmt: skip
            if BASE in seconds and name != BASE:
                runs[name]["to_base"] = {"p50_ms": factor(its, seconds[BASE], median_ratio)}
        repetitions = len(next(iter(seconds.values())))
        grid.passes.append(
            {"batch_size": size, "length": length, "repetitions": repetitions, "none": why(repetitions), "runs": runs}
        )

    return _Job(f"Batches of {size} with {length} tokens", once, put)


def percentiles(seconds: Sequence[float], prefix: str = "") -> dict[str, float | None]:
    """``p50_ms``, ``p95_ms``, ``p99_ms``: each only with so many repetitions that one is expected to lie above it."""
    return {
        f"{prefix}p{share}_ms": 1000 * float(np.percentile(seconds, share)) if len(seconds) >= needed(share) else None
        for share in PERCENTILES
    }


def needed(share: int) -> int:
    """Repetitions that a percentile above the median needs: 20 for the 95th, 100 for the 99th."""
    return 1 if share == 50 else round(100 / (100 - share))


def why(repetitions: int) -> dict[str, str]:
    """Percentiles that so few repetitions have not, and why."""
    return {
        f"p{share}": f"needs {needed(share)} repetitions, and there were {repetitions}"
        for share in PERCENTILES
        if repetitions < needed(share)
    }


def _writing(
    grid: SpeedGrid, model: LoRA, task: Task, encoded: Encoded, plan: SpeedPlan, pad_token_id: int
) -> Iterator[_Job]:  # fmt: skip
    if not task.generates or "input_ids" not in encoded.examples[0]:
        return
    positions = positions_of(model.base)
    new = plan.new_tokens if positions is None else min(plan.new_tokens, positions // 2)
    prompts = sorted((_prompt(task, example) for example in encoded.examples), key=len)
    prompts = [prompt[-(positions - new) :] if positions else prompt for prompt in prompts if prompt]
    length = len(prompts[len(prompts) // 2])
    prompts = [prompt for prompt in prompts if len(prompt) == length]
    for size in list(plan.batch_sizes)[:2]:
        rows = [prompts[place % len(prompts)] for place in range(size)]
        yield _generation(grid, rows, new, pad_token_id)


def _prompt(task: Task, example: dict[str, Any]) -> list[int]:
    """What a text follows; of a row without an answer to it (plain text) its first half."""
    asked = task.asked(example)
    if asked:
        return list(asked[-1][0]["input_ids"])
    ids = list(example["input_ids"])
    return ids[: max(1, len(ids) // 2)]


def _generation(grid: SpeedGrid, rows: list[list[int]], new: int, pad_token_id: int) -> _Job:
    size, sampling = len(rows), SamplingConfig(max_new_tokens=new)

    def once(run: Run) -> list[float]:
        seen: list[float] = []
        begun = clock()
        # No token ends a text: all runs write equally many.
        decode(
            run.model, rows, [run.adapter] * size, [frozenset()] * size, sampling, [0] * size,
            pad_token_id=pad_token_id, on_token=lambda *_: seen.append(clock()),
        )  # fmt: skip
        synchronize(next(run.model.parameters()).device)
        return [seen[0] - begun, clock() - seen[0]]

    def put(times: dict[str, list[list[float]]], peaks: dict[str, int]) -> None:
        first = {name: [each[0] for each in its] for name, its in times.items()}
        rest = {name: [each[1] for each in its] for name, its in times.items()}
        runs: dict[str, dict[str, Any]] = {}
        for name in times:
            runs[name] = {
                **percentiles(first[name], "first_token_"),
                "tokens_per_second": size * (new - 1) * len(rest[name]) / sum(rest[name]),
                "peak_memory_bytes": peaks[name],
            }
            if BASE in times and name != BASE:
                runs[name]["to_base"] = {
                    "first_token_p50_ms": factor(first[name], first[BASE], median_ratio),
                    "tokens_per_second": factor(rest[name], rest[BASE], rate_ratio),
                }
        repetitions = len(next(iter(times.values())))
        grid.generation.append(
            {
                "batch_size": size, "prompt_tokens": len(rows[0]), "new_tokens": new, "repetitions": repetitions,
                "none": why(repetitions), "runs": runs,
            }
        )  # fmt: skip

    return _Job(f"Writing behind {size} prompt{'s' if size > 1 else ''}", once, put)

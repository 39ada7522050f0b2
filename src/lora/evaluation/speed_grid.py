"""Speed by batch size and length, of base, adapters and merged adapters; to the first token, and token by token.

As in `lora.evaluation.speed` all take turns, so that what else the machine does falls on all alike. Every cell of the
grid has a share of one budget of seconds, however slow the model is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lora.core.free import free_bytes, gib
from lora.core.routing import BASE
from lora.errors import ModelError
from lora.evaluation.factors import FEWEST_PAIRS, factor, median_ratio
from lora.evaluation.speed import WARM_UP, PeakMemory, synchronize, turn
from lora.evaluation.speed_plan import Job, Run, SpeedGrid, SpeedPlan, clock, percentiles, why
from lora.evaluation.speed_writing import writing
from lora.plural import number_of
from lora.tasks.base import Encoded, Task
from lora.tasks.inference import collated, evaluating, to_device, without_cache
from lora.tasks.mixture import forward

if TYPE_CHECKING:
    from lora.model.lora import LoRA

QUANTILES = (0.1, 0.5, 0.9)  # of the data's lengths
FEWEST = FEWEST_PAIRS  # repetitions; a cell that has no time for them is left out
MOST = 200  # repetitions: twice as many as a 99th percentile needs
SHARE = 0.7  # of the free memory that merged copies may take


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
    # Writing comes first, and its first job is never left out: it takes the longest and would always be what starves.
    writes = list(writing(grid, model, task, encoded, plan, pad_token_id))
    parts = [part for part in (writes, list(_passes(grid, task, encoded, plan, pad_token_id))) if part]
    with evaluating(model):
        for number, part in enumerate(parts):
            end = clock() + (started + plan.seconds - clock()) / (len(parts) - number)
            for place, job in enumerate(part):
                must, left = part is writes and not place, end - clock()
                if left <= 0 and not must:
                    grid.notes.append(f"{job.said}: left out, the {plan.seconds:g} seconds were over.")
                    continue
                warm_up = 1 if number or place or must else WARM_UP
                _measure(job, runs, clock() + left / (len(part) - place), end, grid.notes, warm_up, must)
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


def _measure(
    job: Job, runs: dict[str, Run], until: float, end: float, notes: list[str], warm_up: int, must: bool
) -> None:  # fmt: skip
    """Rounds in which each run has its turn, until the job's time or repetitions are over.

    Args:
        until: when its own time is over; ``end``: that of its part.
        must: it is measured in one round at least, whatever the time; any other is left out where `FEWEST` have none.
    """
    begun = clock()
    peaks: dict[str, int] = {}
    for run in runs.values():
        for _ in range(warm_up):
            job.once(run)
    warmed = clock()
    one = (warmed - begun) / warm_up
    if warmed + (FEWEST + 1) * one > end and not must:
        notes.append(f"{job.said}: left out, a round takes {one:.1f} s, and for {FEWEST} there was no time left.")
        return
    for name, run in runs.items():
        with PeakMemory(run.model) as peak:
            job.once(run)
        # Alone it would have the weights once, whichever they are.
        peaks[name] = max(0, peak.bytes - sum(other.own for other in runs.values()))
    times: dict[str, list[list[float]]] = {name: [] for name in runs}
    for number in range(MOST):
        if clock() >= until and (number >= FEWEST or (must and number and clock() + one > end)):
            break
        for name in turn(list(runs), number):
            times[name].append(job.once(runs[name]))
    done = len(next(iter(times.values())))
    if done < FEWEST:
        notes.append(
            f"{job.said}: measured in {number_of(done, 'round')} alone, of {one:.1f} s each; fewer than {FEWEST} say "
            "little, and factors have no interval. More time: --speed-seconds."
        )
    job.put(times, peaks)


def _passes(grid: SpeedGrid, task: Task, encoded: Encoded, plan: SpeedPlan, pad_token_id: int) -> Iterator[Job]:
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


def _pass(grid: SpeedGrid, task: Task, examples: list[dict[str, Any]], length: int, pad_token_id: int) -> Job:
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

    return Job(f"Batches of {size} with {length} tokens", once, put)

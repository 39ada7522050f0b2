"""How fast texts are written, for `lora.evaluation.speed_grid`: to the first token, and token by token from there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora.config import SamplingConfig
from lora.core.routing import BASE
from lora.evaluation.decoding import decode
from lora.evaluation.factors import factor, median_ratio, rate_ratio
from lora.evaluation.speed import synchronize
from lora.evaluation.speed_plan import Job, Run, SpeedGrid, SpeedPlan, clock, percentiles, why
from lora.model.base import positions_of
from lora.tasks.base import Encoded, Task

if TYPE_CHECKING:
    from lora.model.lora import LoRA


def writing(
    grid: SpeedGrid, model: LoRA, task: Task, encoded: Encoded, plan: SpeedPlan, pad_token_id: int
) -> Iterator[Job]:  # fmt: skip
    """Jobs that time how texts are written behind prompts of the data; none where the task writes no text."""
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


def _generation(grid: SpeedGrid, rows: list[list[int]], new: int, pad_token_id: int) -> Job:
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

    return Job(f"Writing behind {size} prompt{'s' if size > 1 else ''}", once, put)

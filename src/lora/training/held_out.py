"""The default evaluation during training: the task's own metrics on the held-out rows, shared among the processes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lora.config import TrainingConfig
from lora.tasks.base import Encoded
from lora.tasks.inference import infer
from lora.training.job import Evaluate
from lora.training.prepare import Prepared
from lora.training.processes import Processes

if TYPE_CHECKING:
    from lora.model.lora import LoRA


def evaluator(prepared: Prepared, settings: TrainingConfig, processes: Processes) -> Evaluate:
    """``(model, adapter) -> metrics``; with several processes each measures its part of the rows."""
    assert prepared.held is not None, "there are held-out rows"
    held, task = prepared.held, prepared.task
    targets, picks = task.targets(held.examples), settings.best_metric or task.best_metric
    # Every count-th row: long and short rows fall to all alike. No process may be left without a row.
    count = min(processes.count, len(held))
    part = slice(processes.rank, None, count) if processes.rank < count else slice(0, 0)
    mine = Encoded(held.examples[part], held.lengths[part], held.supervised[part])

    def evaluate(model: LoRA, name: str) -> dict[str, Any]:
        outcome = infer(
            model, task, mine, [name], pad_token_id=prepared.pad_token_id,
            batch_size=settings.evaluation_rows, padding_side=prepared.padding_side,
        )[name]  # fmt: skip
        predictions: list[Any] = [None] * len(held)
        loss_sum, supervised = 0.0, 0
        for rank, (rows, its_sum, its_count) in enumerate(
            processes.gather((outcome.predictions, outcome.loss_sum, outcome.count))
        ):
            if rank < count:
                predictions[rank::count] = rows
            loss_sum, supervised = loss_sum + its_sum, supervised + its_count
        metrics = task.metrics(predictions, targets, loss_sum, supervised)
        found = {key: value for key, value in metrics.items() if isinstance(value, (int, float))}
        # Undefined on these rows (a correlation with a constant), what picks the best is never the best.
        return {picks: math.nan, **found} if picks in task.measures else found

    return evaluate

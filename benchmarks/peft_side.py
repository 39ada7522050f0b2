"""PEFT's model trained by hand over the very batches that ours takes, so that the method alone is compared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from lora import TrainingConfig
from lora.data.batches import BatchPlan
from lora.training.prepare import Prepared
from lora.training.schedule import rate_at, warmup_steps


def train_by_hand(model: torch.nn.Module, prepared: Prepared, settings: TrainingConfig) -> torch.nn.Module:
    """Batches of `BatchPlan`, rates of `rate_at`, transformers' own loss; the model comes back in evaluation mode."""
    plan = BatchPlan(prepared.train.lengths, settings.batch_size, settings.seed, settings.length_grouped)
    total = round(settings.epochs * len(plan))
    warmup = warmup_steps(total, settings.warmup_ratio, settings.warmup_steps)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    model.train()
    for step in range(total):
        epoch, place = divmod(step, len(plan))
        model(**collated(prepared, prepared.train.examples, plan.epoch(epoch)[place])).loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, settings.clip)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, total, settings.learning_rate, settings.schedule, warmup)
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def collated(prepared: Prepared, examples: Any, rows: Iterable[int]) -> dict[str, torch.Tensor]:
    return prepared.task.collate([examples[row] for row in rows], prepared.pad_token_id)

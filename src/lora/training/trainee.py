"""One adapter in training: its parameters, optimiser, schedule, batches, counters and best result.

Everything that belongs to one adapter alone is here, so that several can train side by side without sharing any of it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora.config import TrainingConfig
from lora.core.randomness import seed_of
from lora.data.batches import BatchPlan
from lora.errors import ConfigError, TrainingError
from lora.model.noise import embedding_of
from lora.tasks import Encoded, Task
from lora.training.averaging import Average
from lora.training.refused import check_kl, check_r_drop
from lora.training.schedule import rate_at, warmup_steps

if TYPE_CHECKING:
    from lora.model.lora import LoRA

# Settings that may change between a run and its continuation: they do not touch the mathematics.
FREE_ON_RESUME = {
    "log_every", "save_every", "keep_checkpoints", "tensorboard", "eval_batch_size", "patience",
    "gradient_checkpointing", "generate_rows",
}  # fmt: skip


class Trainee:
    """State of one adapter's training.

    Args:
        model: carries the adapter.
        name: the adapter.
        task: gives losses and metrics.
        data: training rows.
        settings: how to train; ``learning_rate`` resolved.
        processes: number of processes that share each step.
        rank: which of them this is.
    """

    def __init__(
        self, model: LoRA, name: str, task: Task, data: Encoded, settings: TrainingConfig, processes: int = 1,
        rank: int = 0,
    ) -> None:  # fmt: skip
        self.name, self.task, self.data, self.settings = name, task, data, settings
        self.greater_is_better(settings.best_metric or task.best_metric)  # complains now, not after an epoch
        check_kl(task, data, settings)
        check_r_drop(task, settings)
        self.times = 2 if settings.r_drop else 1  # how often each row is in its batch
        if settings.neftune_alpha:
            embedding_of(model.base)  # complains where there is none
        # From which example on they are held to the base.
        self._held_from = len(data) - data.replay if settings.kl_on == "replay" else 0
        self.parameters = {key: p for key, p in model.adapter_parameters(name).items() if p.requires_grad}
        if not self.parameters:
            raise TrainingError(f"adapter {name!r} has no trainable parameter (was it loaded with trainable=False?)")
        self.buffers = {
            f"{path}.{key}": buffer
            for path, module in model.owned(name).items()
            for key, buffer in module.named_buffers()
        }
        assert settings.learning_rate is not None, "resolved before"
        self.optimizer = torch.optim.AdamW(
            self._groups(), lr=settings.learning_rate, betas=(settings.beta1, settings.beta2), eps=settings.epsilon,
            fused=True,  # an adapter is hundreds of small tensors
        )  # fmt: skip
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        self.plan = BatchPlan(data.lengths, settings.batch_size, settings.seed, settings.length_grouped, data.shares)
        self.processes, self.rank = processes, rank
        self.batches_per_step = settings.accumulation * processes
        self.steps_per_epoch = -(-len(self.plan) // self.batches_per_step)
        self.total_steps = settings.max_steps or max(1, round(settings.epochs * self.steps_per_epoch))
        self.warmup = warmup_steps(self.total_steps, settings.warmup_ratio, settings.warmup_steps)
        self.average = Average(self.parameters, settings, self.total_steps)
        self.step = 0
        self.begin_step()
        self.best_value: float | None = None
        self.best_loss: float | None = None  # decides between evaluations that are equal in the metric
        self.best_step = 0
        self.best_tensors: dict[str, Tensor] | None = None
        self.reference: float | None = None  # what patience measures against: the last value that gained enough
        self.evaluations_without_gain = 0

    def _groups(self) -> list[dict[str, Any]]:
        """Decay for matrices alone: pulling biases, norms and magnitudes to zero changes what the model computes."""
        decayed = [p for p in self.parameters.values() if p.dim() > 1]
        others = [p for p in self.parameters.values() if p.dim() <= 1]
        groups = [
            {"params": decayed, "weight_decay": self.settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    # -- data ---------------------------------------------------------------------------------------------------

    def holds(self, index: int) -> bool:
        """Whether example ``index`` is held to the base: ``training.kl`` is part of its loss."""
        return self.settings.kl > 0 and index >= self._held_from

    def begin_step(self) -> None:
        """Forget a step begun and not ended: gradients, sums, and which batch is next."""
        self.optimizer.zero_grad(set_to_none=True)
        self.round = 0  # batches of this step that each process has done
        # Of this step so far, over the whole step's count. A tensor: it is fetched once a step, each time one waits.
        self.loss: float | Tensor = 0.0
        self.divergence: float | Tensor = 0.0  # KL to the base, a part of the loss but for its weight
        self.seconds = 0.0  # this adapter's part of the time spent on this step

    def share(self) -> tuple[int, list[int]] | None:
        """This process's next batch of the step in hand: its number in the step, and its rows; None: no more of it.

        The number counts over all processes, so that what is drawn for a batch does not depend on who computes it.
        """
        number = self.round * self.processes + self.rank
        batches = self.batches(self.step)
        return (number, batches[number]) if number < len(batches) else None

    def count_round(self) -> bool:
        """Count a batch as done, on every process alike; True where the step is full."""
        self.round += 1
        return self.round >= -(-len(self.batches(self.step)) // self.processes)

    def seed(self, number: int) -> int:
        """The seed of whatever is drawn for batch ``number`` of the step in hand."""
        return seed_of("batch", self.settings.seed, self.step, number)

    @property
    def tokens(self) -> int:
        """Tokens of the step in hand, all processes together."""
        return sum(self.data.lengths[i] for batch in self.batches(self.step) for i in batch)

    @property
    def finished(self) -> bool:
        return self.step >= self.total_steps or self.out_of_patience

    def batches(self, step: int) -> list[list[int]]:
        """Row indices of each forward pass of ``step`` (from 0), all processes together: a function of ``step``."""
        epoch, position = divmod(step, self.steps_per_epoch)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self.plan.epoch(epoch))
        start = position * self.batches_per_step
        return self._epoch[1][start : start + self.batches_per_step]

    def supervised(self, batches: list[list[int]]) -> int:
        """Supervised positions of ``batches``: what the step's loss sum is divided by."""
        return sum(self.data.supervised[i] for batch in batches for i in batch)

    # -- stepping -----------------------------------------------------------------------------------------------

    def update(self) -> float:
        """Clip, set the rate of this step, step the optimiser, clear gradients. Returns the gradient's norm."""
        parameters = list(self.parameters.values())
        clip = self.settings.clip if self.settings.clip is not None else float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip))
        if norm != norm or norm == float("inf"):
            return norm  # the caller stops; parameters and moments stay as they were
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate
        self.optimizer.step()
        self.step += 1
        self.average.take(self.step)
        self.begin_step()
        return norm

    @property
    def rate(self) -> float:
        """Learning rate of the step to come."""
        s = self.settings
        assert s.learning_rate is not None
        return rate_at(self.step, self.total_steps, s.learning_rate, s.schedule, self.warmup)

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.step / self.steps_per_epoch

    def due(self, every: int | str | None) -> bool:
        """Whether something done ``every`` steps, or every ``"epoch"``, is due now; always after the last step."""
        if every is None:
            return False
        period = self.steps_per_epoch if every == "epoch" else int(every)
        return self.step % period == 0 or self.step == self.total_steps

    # -- evaluation -----------------------------------------------------------------------------------------------

    def record(self, metrics: dict[str, Any]) -> bool:
        """Take note of an evaluation; True where it is the best so far.

        The best checkpoint is the best, by however little, and of equal ones that of the lowest loss, where one is
        measured; patience counts gains of the metric alone, above ``min_improvement``.

        Raises:
            ConfigError: ``best_metric`` is none of the metrics.
        """
        key = self.settings.best_metric or self.task.best_metric
        value = metrics.get(key)
        if not isinstance(value, (int, float)):
            known = ", ".join(sorted(k for k, v in metrics.items() if isinstance(v, (int, float))))
            raise ConfigError(f"training.best_metric: {key!r} is not measured for this task; known: {known}")
        sign = 1 if self.greater_is_better(key) else -1

        def gain(reference: float | None) -> float:
            """How much better ``value`` is; NaN is never better."""
            if value != value:
                return -math.inf
            return math.inf if reference is None else sign * (value - reference)

        loss = metrics.get("loss")
        loss = float(loss) if isinstance(loss, (int, float)) and math.isfinite(loss) else None
        lower = loss is not None and self.best_loss is not None and loss < self.best_loss
        better = gain(self.best_value) > 0 or (value == self.best_value and lower)
        if gain(self.reference) > self.settings.min_improvement:
            self.reference, self.evaluations_without_gain = float(value), 0
        else:
            self.evaluations_without_gain += 1
        if better:
            self.best_value, self.best_loss, self.best_step = float(value), loss, self.step
            self.best_tensors = {key: tensor.detach().clone() for key, tensor in self._own().items()}
        return better

    def greater_is_better(self, key: str) -> bool:
        """Whether more of metric ``key`` is good.

        Raises:
            ConfigError: a metric of the caller's own, and ``greater_is_better`` is not set.
        """
        return greater_is_better(key, self.settings, self.task)

    @property
    def out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.evaluations_without_gain >= patience

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _own(self) -> dict[str, Tensor]:
        return {**self.parameters, **self.buffers}

    def state(self) -> dict[str, Any]:
        """Counters and settings, for `load`."""
        return {
            "step": self.step,
            "total_steps": self.total_steps,
            "best_value": self.best_value,
            "best_loss": self.best_loss,
            "best_step": self.best_step,
            "averaged": self.average.count,
            "evaluations_without_gain": self.evaluations_without_gain,
            "reference": self.reference,
            "settings": self.settings.model_dump(mode="json"),
            "batches_per_step": self.batches_per_step,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Parameters, moments and step counters, their average and the best parameters so far."""
        out = {f"now.{key}": tensor for key, tensor in self._own().items()}
        out |= {f"average.{key}": tensor for key, tensor in self.average.tensors.items()}
        out |= {f"best.{key}": tensor for key, tensor in (self.best_tensors or {}).items()}
        for key, parameter in self.parameters.items():
            for moment, tensor in self.optimizer.state.get(parameter, {}).items():
                out[f"{moment}.{key}"] = tensor
        return out

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Go back to a checkpoint.

        Raises:
            ConfigError: it was made under settings that give other results.
        """
        now = self.settings.model_dump(mode="json")
        # Settings that came later were not there, and at their defaults.
        then = TrainingConfig().model_dump(mode="json") | state["settings"]
        changed = [
            f"training.{key}: {then.get(key)!r} then, {now[key]!r} now"
            for key in now
            if key not in FREE_ON_RESUME and then.get(key) != now[key]
        ]
        if state["batches_per_step"] != self.batches_per_step and not changed:
            changed.append(f"processes × accumulation: {state['batches_per_step']} then, {self.batches_per_step} now")
        if changed:
            raise ConfigError(
                "cannot go on with other settings than the run began with:\n  " + "\n  ".join(changed)
                + "\nTo train its adapter further under others, load the adapter and begin a new run with it"
            )  # fmt: skip
        own = self._own()
        missing = [key for key in own if f"now.{key}" not in tensors or tensors[f"now.{key}"].shape != own[key].shape]
        if missing:
            raise ConfigError(
                f"the checkpoint has no fitting {missing[0]} ({len(missing)} such): the adapter's settings have changed"
            )
        with torch.no_grad():
            for key, tensor in own.items():
                tensor.copy_(tensors[f"now.{key}"])
        for key, parameter in self.parameters.items():
            if f"exp_avg.{key}" in tensors:
                self.optimizer.state[parameter] = {
                    "step": tensors[f"step.{key}"].to(parameter.device),
                    "exp_avg": tensors[f"exp_avg.{key}"].to(parameter.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{key}"].to(parameter.device),
                }
        self.average.load(state.get("averaged", 0), tensors)
        best = {key: tensors[f"best.{key}"].to(own[key].device) for key in own if f"best.{key}" in tensors}
        self.best_tensors = best or None
        self.step = state["step"]
        self.begin_step()
        self.best_value, self.best_step = state["best_value"], state["best_step"]
        self.best_loss = state.get("best_loss")  # older checkpoints know none
        self.evaluations_without_gain, self.reference = state["evaluations_without_gain"], state["reference"]

    def release(self) -> None:
        """Give back the memory that training took, when it is over."""
        self.begin_step()
        self.optimizer.state.clear()
        self.average.tensors.clear()
        self.best_tensors = None

    def restore_best(self) -> None:
        """Put the best parameters back in place, where an evaluation has picked some; else their average."""
        if self.best_tensors is None:
            self.average.settle()
        else:
            with torch.no_grad():
                for key, tensor in self._own().items():
                    tensor.copy_(self.best_tensors[key])


def greater_is_better(key: str, settings: TrainingConfig, task: Task) -> bool:
    """Whether more of metric ``key`` is good. Raises ConfigError as `Trainee.greater_is_better`."""
    if settings.greater_is_better is not None:
        return settings.greater_is_better
    if key in task.measures:
        return task.measures[key]
    raise ConfigError(
        f"training.best_metric: {key!r} is none that the task {task.name} measures ({', '.join(task.measures)}); for "
        "one of your own say whether more of it is better: greater_is_better=True or False"
    )

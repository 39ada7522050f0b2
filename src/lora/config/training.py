"""Section ``training``."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, field_validator

from lora.settings import Settings

Schedule = Literal["linear", "cosine", "constant"]
Average = Literal["none", "swa", "ema"]


class TrainingConfig(Settings):
    """How the adapter is trained."""

    aliases = {
        "lr": "learning_rate", "per_device_train_batch_size": "batch_size", "micro_batch_size": "batch_size",
        "gradient_accumulation_steps": "accumulation", "grad_accum": "accumulation", "num_train_epochs": "epochs",
        "num_epochs": "epochs", "lr_scheduler_type": "schedule", "lr_scheduler": "schedule",
        "scheduler": "schedule", "max_grad_norm": "clip", "gradient_clipping": "clip",
        "label_smoothing_factor": "label_smoothing", "eval_steps": "eval_every", "save_steps": "save_every",
        "logging_steps": "log_every", "metric_for_best_model": "best_metric", "early_stopping_patience": "patience",
        "early_stopping": "patience", "torch_dtype": "dtype", "per_device_eval_batch_size": "eval_batch_size",
        "neftune_noise_alpha": "neftune_alpha", "rdrop": "r_drop", "rdrop_alpha": "r_drop", "r_drop_alpha": "r_drop",
        "ema_decay": "average_decay",
    }  # fmt: skip

    learning_rate: float | None = Field(default=None, gt=0, description="peak rate; default: derived from the model")
    # About ten times full fine-tuning's; see training/schedule.py for the formula and its source.
    batch_size: int = Field(default=16, ge=1, description="rows of one forward pass")
    # 16 to 32 rows: large batches cost LoRA more than full fine-tuning ("LoRA Without Regret", 2025).
    eval_batch_size: int | None = Field(
        default=None, ge=1, description="rows of one evaluation pass; default: twice batch_size"
    )
    accumulation: int = Field(default=1, ge=1, description="forward passes per step, normalised by supervised tokens")
    epochs: float = Field(default=3.0, gt=0, description="passes over the training data")
    max_steps: int | None = Field(default=None, ge=1, description="take this many steps, whatever the epochs")
    schedule: Schedule = Field(default="linear", description="shape of the learning rate after warm-up")
    warmup_ratio: float = Field(default=0.05, ge=0, le=1, description="share of the steps with a rising rate")
    warmup_steps: int | None = Field(default=None, ge=0, description="steps with a rising rate; wins over warmup_ratio")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay (AdamW)")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's first moment")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's second moment")
    epsilon: float = Field(default=1e-8, gt=0, description="AdamW's epsilon")
    clip: float | None = Field(default=1.0, gt=0, description="largest gradient norm; null switches it off")
    label_smoothing: float = Field(default=0.0, ge=0, lt=1, description="mass spread evenly over the labels")
    kl: float = Field(
        default=0.0, ge=0, description="weight of KL(base ‖ adapter) per learned token beside its loss; 0: none"
    )
    kl_on: Literal["all", "replay"] = Field(
        default="all", description="which rows' tokens are held to the base: all, or those of data.replay alone"
    )
    neftune_alpha: float = Field(
        default=0.0, ge=0, allow_inf_nan=False, description="noise on the embedded tokens, in training alone; 0: none"
    )
    r_drop: float = Field(
        default=0.0, ge=0, allow_inf_nan=False,
        description="weight of the distance between two passes of each row, which drop unlike values; 0: one pass",
    )  # fmt: skip
    average: Average = Field(
        default="none", description="what is evaluated, picked and kept: the parameters, or their mean over steps"
    )
    average_from: float = Field(default=0.5, ge=0, lt=1, description="share of the steps before the first averaged one")
    # A mean over about the last 20 steps: a run on little data has a hundred.
    average_decay: float = Field(
        default=0.95, ge=0, lt=1, description="of average ema: what is left of the mean after a step"
    )
    eval_every: int | Literal["epoch"] | None = Field(
        default="epoch", description="steps between evaluations, 'epoch' or null"
    )
    save_every: int | Literal["epoch"] | None = Field(
        default="epoch", description="steps between checkpoints, 'epoch' or null"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="newest checkpoints kept beside the best")
    log_every: int = Field(
        default=10, ge=1, description="steps between points in TensorBoard; metrics.jsonl has every step"
    )
    best_metric: str | None = Field(
        default=None, description="metric that picks the best checkpoint; default: the task's own"
    )
    patience: int | None = Field(default=None, ge=1, description="stop after this many evaluations without improvement")
    greater_is_better: bool | None = Field(
        default=None, description="whether more of best_metric is good; needed for a metric of one's own"
    )
    min_improvement: float = Field(default=0.0, ge=0, description="gain of best_metric below which patience runs")
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="recompute activations in the backward: less memory, slower; "
        "default: where memory would not suffice (see memory_gib)",
    )
    # No float16: its activations overflow and small gradients vanish without loss scaling.
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="of the base; auto: bfloat16 where the processor is good at it"
    )
    packing: bool | None = Field(
        default=None, description="documents in one row without padding; default: where the model allows it"
    )
    length_grouped: bool = Field(default=True, description="batch rows of like length: less padding")
    seed: int = Field(default=0, ge=0, description="seeds initialisation, order and dropout")
    # Enough to see what the adapter writes and whether it ends; small differences in a score of so few are chance.
    generate_rows: int = Field(
        default=32, ge=0, description="prompts answered for the report, where the task writes answers; 0: none"
    )
    tensorboard: bool = Field(default=True, description="write TensorBoard events")

    @property
    def evaluation_rows(self) -> int:
        """Rows of one evaluation pass."""
        return self.eval_batch_size or 2 * self.batch_size

    @field_validator("gradient_checkpointing", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @field_validator("neftune_alpha", mode="before")
    @classmethod
    def _none(cls, value: Any) -> Any:
        return 0.0 if value is None else value  # as Hugging Face spells it

    @field_validator("eval_every", "save_every")
    @classmethod
    def _at_least_one(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, 'epoch' or null")
        return value

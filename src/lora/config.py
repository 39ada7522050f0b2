"""Typed configuration: the only home of a default.

A configuration is written in YAML, given as options or passed from Python; all three end here. Field names are ours;
PEFT's spellings (``r``, ``lora_alpha``) and Hugging Face's (``per_device_train_batch_size``) are accepted as aliases.
An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from lora.registry import TASKS, VARIANTS, unknown
from lora.settings import Settings

Schedule = Literal["linear", "cosine", "constant"]

# Of evaluation and prediction, where the caller says nothing. No settings of a run: what is trained does not depend on
# them.
EVAL_BATCH_SIZE = 32  # rows of one forward pass: twice training's, as nothing is kept for a backward
MAX_NEW_TOKENS = 128  # of a completion: a paragraph; more costs time with models that have not learned to stop
NEARLY_THE_SAME = 0.8  # Jaccard index of word triples: below it questions of one form are alike, whatever is asked
CHAT_LENGTH = 8192  # tokens of a conversation with its next answer, where the model has as many positions
LATENCY_ROWS = 64  # rows timed one by one: a 95th percentile rests on the slowest few, with fewer on one alone
SPEED_SECONDS = 60.0  # of the grid of batch sizes and lengths: nine shapes and writing, some seconds for each


class AdapterConfig(Settings):
    """What an adapter is: its size, its formula and where it sits."""

    aliases = {
        "r": "rank", "lora_r": "rank", "lora_rank": "rank", "lora_alpha": "alpha", "target_modules": "targets",
        "lora_target": "targets", "lora_dropout": "dropout", "use_rslora": "rslora", "exclude_modules": "exclude",
        "layers_to_transform": "layers", "modules_to_train": "modules_to_save", "ensure_weight_tying": "tie_embeddings",
        "trainable_token_indices": "token_rows",
    }  # fmt: skip

    rank: int = Field(default=32, ge=1, description="rank r of the update B·A")
    # 32: enough for most data sets, raised when capacity-bound (REFERENCE: tinker-cookbook's default).
    alpha: float = Field(default=32.0, gt=0, description="the update is scaled by alpha/rank (alpha/√rank with rslora)")
    # Constant over ranks: with scale alpha/r the best learning rate is then roughly independent of the rank
    # ("LoRA Without Regret", 2025).
    rslora: bool = Field(default=False, description="scale by alpha/√rank (arXiv:2312.03732, eq. 7)")
    variant: str = Field(default="plain", description=f"formula of the update: {', '.join(VARIANTS)}")
    targets: str | list[str] = Field(
        default="all-linear",
        description="all-linear, attention, mlp, embedding, module names, one regular expression; none: no updates",
    )
    # All linear layers: attention-only loses even at equal parameter count ("LoRA Without Regret", 2025).
    exclude: str | list[str] = Field(
        default_factory=list, description="modules never adapted: names or one regular expression"
    )
    layers: str | int | list[int] | None = Field(
        default=None, description="only these layers: 3, [0, 1, 2], '4-7' or '8-'"
    )
    rank_pattern: dict[str, int] = Field(default_factory=dict, description="rank per module pattern")
    alpha_pattern: dict[str, float] = Field(default_factory=dict, description="alpha per module pattern")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    modules_to_save: list[str] | None = Field(
        default=None,
        description="modules trained in full beside the adapter; default: task head and whatever is newly initialised; "
        "all (with targets: none): full fine-tuning",
    )
    tie_embeddings: bool | None = Field(
        default=None,
        description="tied input and output embeddings share one update; default: yes where both are one tensor",
    )
    token_rows: list[int] | dict[str, list[int]] = Field(
        default_factory=list, description="token ids whose embeddings are trained: theirs alone, nothing of the others"
    )
    head_rows: bool | None = Field(
        default=None,
        description="train their rows of an untied output head too; default: yes, unless all of it is adapted",
    )
    # A new row that is the mean of the old ones can never have the highest logit of all, so a model that is to write
    # the token must train it. PEFT's list leaves an untied head alone, its table names both.

    @property
    def full(self) -> bool:
        """Whether this is full fine-tuning."""
        return self.targets in ("none", []) and self.modules_to_save == ["all"]

    @model_validator(mode="before")
    @classmethod
    def _variant_by_key(cls, values: Any) -> Any:
        # PEFT spells a variant as a key of its own (use_…: true). Which, only the variants know, and asking them loads
        # torch: no other unknown key does.
        if isinstance(values, dict) and any(cls.canonical(key).startswith("use_") for key in values):
            return _with_variant({cls.canonical(key): value for key, value in values.items()}, values)
        return values

    @field_validator("variant")
    @classmethod
    def _known_variant(cls, value: str) -> str:
        if value not in VARIANTS:
            raise ValueError(unknown(value, VARIANTS))
        return value

    @field_validator("token_rows")
    @classmethod
    def _each_row_once(cls, value: list[int] | dict[str, list[int]]) -> list[int] | dict[str, list[int]]:
        for ids in value.values() if isinstance(value, dict) else [value]:
            if isinstance(value, dict) and not ids:
                raise ValueError("a module is named with no token ids")
            twice = next((token for token in ids if ids.count(token) > 1), None)
            if twice is not None or min(ids, default=0) < 0:
                raise ValueError(f"token id {twice} is named twice" if twice is not None else "a token id is below 0")
        return {name: sorted(ids) for name, ids in value.items()} if isinstance(value, dict) else sorted(value)

    @field_validator("rank_pattern")
    @classmethod
    def _positive_ranks(cls, value: dict[str, int]) -> dict[str, int]:
        for pattern, rank in value.items():
            if rank < 1:
                raise ValueError(f"rank of {pattern!r} must be at least 1; exclude the module to leave it alone")
        return value

    @field_validator("alpha_pattern")
    @classmethod
    def _positive_alphas(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern, alpha in value.items():
            if not alpha > 0:
                raise ValueError(f"alpha of {pattern!r} must be above 0")
        return value


def _with_variant(keys: dict[str, Any], values: dict[Any, Any]) -> dict[Any, Any]:
    """``values`` with ``variant`` in place of keys that PEFT knows variants by. ``keys``: the same, by our names."""
    from lora.core.variant import variants

    known = {key for variant in variants().values() for key in variant.peft_keys}
    rest = {key: value for key, value in values.items() if AdapterConfig.canonical(key) not in known}
    on = {key: value for key, value in keys.items() if key in known and value}
    if not on:
        return rest
    fitting = [item for item in variants().values() if item.peft_keys and item.peft_keys.items() <= on.items()]
    chosen = max(fitting, key=lambda item: len(item.peft_keys), default=None)
    if chosen is None or len(chosen.peft_keys) < len(on):
        given = ", ".join(f"{key}: {value!r}" for key, value in on.items())
        raise ValueError(f"{given} selects no variant; name it instead, as variant: {', '.join(VARIANTS)}")
    if rest.get("variant", chosen.name) != chosen.name:
        raise ValueError(f"{', '.join(on)} contradicts variant: {rest['variant']!r}; keep one of them")
    return {**rest, "variant": chosen.name}


class Source(Settings):
    """One of several sources of training rows."""

    path: str = Field(min_length=1, description="as data.train where that is a single one")
    weight: float = Field(
        default=1.0, gt=0, le=100, description="how often an epoch takes each of its rows: 0.5 takes half of them"
    )
    columns: dict[str, str] = Field(default_factory=dict, description="as data.columns, of this source alone")


class Replay(Settings):
    """General text that is learned beside the training rows, so that less of it is forgotten."""

    path: str = Field(min_length=1, description="a file, folder or hub id; '#500' takes the first 500 rows")
    share: float = Field(default=0.1, gt=0, le=0.9, description="part of the examples of an epoch that are its")
    columns: dict[str, str] = Field(default_factory=dict, description="as data.columns, of this source alone")


class DataConfig(Settings):
    """Where the rows come from and how they are read."""

    aliases = {
        "path": "train", "dataset": "train", "eval": "validation", "dev": "validation", "cutoff_len": "max_length",
        "max_seq_length": "max_length", "max_seq_len": "max_length", "text": "text_column", "label": "label_column",
        "val_size": "held_out", "eval_fraction": "held_out", "test_size": "held_out", "task_options": "options",
    }  # fmt: skip

    train: str | list[str | Source] | None = Field(
        default=None,
        description="a jsonl, json, csv, tsv, parquet, txt or conll file, a folder, or a hub id; "
        "'#500' takes the first 500 rows; or several of them, '#x2' takes each row of one twice an epoch",
        json_schema_extra={"repeatable": True},
    )
    validation: str | None = Field(
        default=None, description="held-out data of the same kind; default: split off from train"
    )
    replay: str | Replay | None = Field(
        default=None,
        description="general text, or rows like those of train, learned beside them against forgetting: a file or hub "
        "id, as a tenth of each epoch's examples; or {path: FILE, share: 0.2}",
    )
    held_out: float | None = Field(
        default=None,
        ge=0,
        le=0.9,
        description="share split off where no validation data is given, at most 0.9; 0: none",
    )
    task: str = Field(default="auto", description=f"{', '.join(TASKS)}; auto reads it from the columns and the base")
    text_column: str | None = Field(default=None, description="column of the text (default: recognised)")
    text_pair_column: str | None = Field(default=None, description="column of a second text (default: recognised)")
    label_column: str | None = Field(default=None, description="column of the label(s) (default: recognised)")
    prompt_column: str | None = Field(default=None, description="column of the prompt (default: recognised)")
    completion_column: str | None = Field(default=None, description="column of the completion (default: recognised)")
    columns: dict[str, str] = Field(
        default_factory=dict, description="columns by what they are to the task, as in {context: background}"
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="settings that a task has for itself, as in {learn: last}"
    )
    max_length: int | None = Field(
        default=None, ge=2, description="tokens kept of a row; default: what the model takes, at most 1024"
    )
    cache: bool | str = Field(
        default=True, description="keep the token ids of many rows for another run; in YAML also the folder for them"
    )

    @field_validator("train", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        if isinstance(value, (dict, Source)):
            value = [value]
        if not isinstance(value, (list, tuple)):
            return str(value) if isinstance(value, Path) else value
        if not value:
            raise ValueError("names no source; leave it out, or name one at least")
        return [
            # By hand: of a union of types pydantic would tell what is wrong with each of them.
            Source.make(entry, f"source {number}") if isinstance(entry, dict) else
            str(entry) if isinstance(entry, Path) else entry
            for number, entry in enumerate(value, start=1)
        ]  # fmt: skip

    @field_validator("replay", mode="before")
    @classmethod
    def _path_or_table(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return Replay.make(value, "replay")
        return str(value) if isinstance(value, Path) else value

    @property
    def replayed(self) -> Replay | None:
        """``replay`` with its share."""
        return Replay(path=self.replay) if isinstance(self.replay, str) else self.replay

    streaming: bool | None = Field(
        default=None, description="read training rows in parts instead of holding them in memory; default: large files"
    )

    @field_validator("streaming", mode="before")
    @classmethod
    def _auto(cls, value: Any) -> Any:
        return None if value == "auto" else value

    @field_validator("cache", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        words = {"": False, "true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
        return words.get(value.strip().lower(), value) if isinstance(value, str) else value

    @field_validator("task")
    @classmethod
    def _known_task(cls, value: str) -> str:
        if value not in ("auto", *TASKS):
            raise ValueError(unknown(value, ("auto", *TASKS)))
        return value

    @model_validator(mode="after")
    def _named_once(self) -> Self:
        for role, name in self.columns.items():
            if getattr(self, f"{role}_column", None) not in (None, name):
                raise ValueError(f"{role}_column and columns name different columns for {role!r}; keep one of them")
        return self

    def named_columns(self) -> dict[str, str]:
        """Role -> column, for every column that is named."""
        ending = "_column"
        own = {key.removesuffix(ending): getattr(self, key) for key in type(self).model_fields if key.endswith(ending)}
        return {role: name for role, name in own.items() if name is not None} | self.columns

    def setting_of(self, role: str) -> str:
        """The setting that names the column of ``role``."""
        return f"data.columns.{role}" if role in self.columns else f"data.{role}_column"


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

    @field_validator("eval_every", "save_every")
    @classmethod
    def _at_least_one(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1, 'epoch' or null")
        return value


class RunConfig(Settings):
    """Everything one run needs; the YAML file of ``lora train``."""

    aliases = {"base": "model", "model_name_or_path": "model", "base_model": "model", "output_dir": "output"}

    model: str | None = Field(default=None, description="base model: a folder or a hub id")
    output: str | None = Field(default=None, description="the run's folder")
    start: str | None = Field(
        default=None, description="a run or adapter folder whose adapter is trained further; default: a fresh one"
    )
    data: DataConfig = Field(default_factory=DataConfig)
    adapter: AdapterConfig = Field(default_factory=AdapterConfig)
    training: TrainingConfig = Field(default_factory=TrainingConfig)
    trust_remote_code: bool = Field(default=False, description="let the base model's repository run its own code")
    adapters: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        description="several adapters trained at once, by name: settings of each in sections data, adapter, training",
    )
    at_once: int | None = Field(
        default=None, ge=1, description="how many of them at the same time; default: found by a short measurement"
    )
    new_tokens: list[str] = Field(
        default_factory=list,
        description="special tokens added to the tokenizer; their embeddings are trained, and kept with the adapter",
    )
    memory_gib: float | None = Field(
        default=None,
        gt=0,
        description="GiB that training may use beside the weights; default: 70 % of what is free when it begins",
    )
    check: bool = Field(
        default=True,
        description="verify before training that it can succeed (see `lora check`), and after it what came of it",
    )
    probe: str | None = Field(
        default=None,
        description="general text on which base and adapter are compared after training; default: built-in",
    )
    # Of the run and not of an adapter: they choose what the shared passes are computed by.
    compile: bool = Field(
        default=False, description="element-wise parts of decoders by torch's compiler: faster steps, a slow first one"
    )
    liger: bool = Field(default=False, description="the same by Liger's kernels, on CUDA (extra: liger)")

    @field_validator("new_tokens")
    @classmethod
    def _tokens(cls, value: list[str]) -> list[str]:
        for token in value:
            if not token.strip() or value.count(token) > 1:
                raise ValueError(f"{token!r} is named twice" if token.strip() else "a token is empty")
        return value

    @field_validator("adapters", mode="before")
    @classmethod
    def _named_sections(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        out: dict[str, Any] = {}
        for name, own in value.items():
            # `a:` alone, and `a: file.jsonl` for `a: {data: {train: file.jsonl}}`
            own = {} if own is None else {"data": own} if isinstance(own, (str, Path, list)) else own
            if isinstance(own, dict):
                own = {key: {} if section is None else section for key, section in own.items()}
                if isinstance(own.get("data"), (str, Path, list)):
                    own["data"] = {"train": own["data"]}
            else:
                raise ValueError(f"{name}: sections data, adapter and training are needed, or a data file")
            out[str(name)] = own
        return out

    @field_validator("data", "adapter", "training", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        # `adapter:` with every line below it commented out
        return {} if value is None else value

    @field_validator("data", mode="before")
    @classmethod
    def _data_as_path(cls, value: Any) -> Any:
        return {"train": value} if isinstance(value, (str, Path, list)) else value


RANKS = (1, 4, 16, 64)  # a factor of 4 apart: neighbours seldom differ by more than chance


class ComparisonConfig(Settings):
    """What a comparison of LoRA with full fine-tuning trains, and how it judges."""

    ranks: list[int] | None = Field(default=None, description=f"of the LoRA candidates; default: {RANKS}, as they fit")
    target_sets: list[str | list[str]] = Field(
        default=["all-linear", "attention"], description="of the LoRA candidates, each with every rank"
    )
    linear_probe: bool = Field(default=True, description="the base with its task head trained alone")
    full: bool = Field(default=True, description="full fine-tuning")
    # A step of about 3 loses little to the best rate in between, and the best is seldom below a third of the default.
    rate_factors: list[float] = Field(
        default=[1 / 3, 1, 3, 10], description="learning rates tried: times each kind's own default"
    )
    # The first run picks the rate; two more show how far runs of one setting differ.
    seeds: int = Field(default=3, ge=1, description="runs of each candidate at its chosen rate")
    margin: float | None = Field(
        default=None,
        gt=0,
        description="loss of the metric that would not matter; default: 0.01 of a share, else 1 % of the best's",
    )
    test: str | None = Field(default=None, description="test data; default: the source's test split, else split off")
    alone: bool = Field(default=True, description="measure memory and time of each by itself, in a process of its own")

    @field_validator("ranks", "rate_factors", "target_sets")
    @classmethod
    def _each_once(cls, value: Any) -> Any:
        if value is None:
            return None
        if not value:
            raise ValueError("names none")
        if any(isinstance(each, (int, float)) and each <= 0 for each in value):
            raise ValueError("each must be above 0")
        if any(value.count(each) > 1 for each in value):
            raise ValueError("names one twice")
        return value if isinstance(value[0], (str, list)) else sorted(value)


class SamplingConfig(Settings):
    """How text is written by a model: what the next token is drawn from."""

    aliases = {"max_tokens": "max_new_tokens"}

    # 0: the same prompt gives the same text, and what is compared differs by the adapter and not by chance.
    temperature: float = Field(default=0.0, ge=0, description="spread of what is drawn; 0: always the likeliest token")
    top_p: float = Field(default=1.0, gt=0, le=1, description="only the likeliest tokens that together have this share")
    top_k: int = Field(default=0, ge=0, description="only this many of the likeliest tokens; 0: all")
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="only tokens of at least this share of the likeliest one's probability"
    )
    repetition_penalty: float = Field(
        default=1.0, gt=0, description="above 1: tokens of the prompt and the answer so far become less likely"
    )
    seed: int = Field(default=0, ge=0, description="of what is drawn: the same seed gives the same text")
    max_new_tokens: int = Field(default=MAX_NEW_TOKENS, ge=1, description="longest text written, in tokens")

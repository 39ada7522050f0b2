"""Before a comparison: settings, folder, rows of three kinds, the base; and what is the same for all, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora.comparison.result import FILES, SETTINGS, load_settings
from lora.config import AdapterConfig, ComparisonConfig, RunConfig
from lora.data.sources import Part, load_rows
from lora.errors import ConfigError, DataError
from lora.io.places import folder_to_write
from lora.model.base import load_base, load_base_config, load_tokenizer
from lora.model.lora import LoRA
from lora.plural import noun
from lora.training.device import choose_dtype
from lora.training.mixture import split_off
from lora.training.overlap import trained_too
from lora.training.prepare import Prepared, Rows, prepare, read_rows
from lora.training.processes import Processes
from lora.training.trainee import greater_is_better
from lora.workflow.loading import settle, train_new_tokens
from lora.workflow.places import in_full


def settings_of(
    config: RunConfig | str | Path | None, asked: ComparisonConfig | None, settings: dict[str, Any], resume: bool
) -> tuple[RunConfig, ComparisonConfig]:
    """Both kinds of settings, checked; of a comparison that is gone on with, its own. Raises ConfigError."""
    if asked is not None and settings:
        raise ConfigError("give either a ComparisonConfig or keyword settings, not both")
    if resume:
        if asked is not None or settings:
            raise ConfigError("resume goes on under the comparison's own settings; leave others out")
        place = config.output if isinstance(config, RunConfig) else config
        if not place:
            raise ConfigError("resume needs the folder of the comparison to go on with")
        return load_settings(Path(place).expanduser())
    if not isinstance(config, RunConfig):
        raise ConfigError("config: a RunConfig with model, data and output is needed")
    missing = [
        key for key, value in (("model", config.model), ("data.train", config.data.train), ("output", config.output))
        if not value
    ]  # fmt: skip
    problems = [f"{key}: is needed" for key in missing]
    if config.adapters:
        problems.append("adapters: a comparison makes its own candidates; leave the entry out")
    if config.start:
        problems.append("start: all candidates begin anew; leave it out")
    if config.training.eval_every is None:
        problems.append("training.eval_every: without evaluations nothing chooses learning rates; leave it out")
    if config.data.held_out == 0 and not config.data.validation:
        problems.append("data.held_out: with 0 there are no rows to choose learning rates on; leave it out")
    if problems:
        raise ConfigError("\n".join(problems))
    asked = asked.model_copy() if asked is not None else ComparisonConfig.make(settings)
    if asked.test:  # in full, as the other paths: a comparison can be gone on with from any folder
        named = RunConfig.make({"data": asked.test})
        in_full(named)
        assert isinstance(named.data.train, str), "one source"
        asked.test = named.data.train
    return config.model_copy(deep=True), asked


def own_folder(
    config: RunConfig, resume: bool, overwrite: bool, *, settings: str = SETTINGS,
    files: Sequence[str] = (*FILES, "trials"), what: str = "comparison",
) -> Path:  # fmt: skip
    """The folder to write to; paths are written in full into ``config``.

    Args:
        settings: the file by which it is told that ``what`` was made there. ``files``: what else that writes.

    Raises ConfigError: it is not ``what``'s own, or holds one and neither ``resume`` nor ``overwrite`` says what to do
    with it.
    """
    folder = folder_to_write(config.output or "", "output").absolute()
    ours = (folder / settings).is_file()
    if ours and not resume and not overwrite:
        raise ConfigError(
            f"output: {folder} already holds a {what}. Go on with it (--resume, resume=True), replace it "
            "(--overwrite, overwrite=True), or name another folder"
        )
    others = [name for name in (*files, "adapter", "checkpoints", "config.yaml") if (folder / name).exists()]
    if others and not ours:
        raise ConfigError(f"output: {folder} holds {others[0]}, which no {what} made; name another folder")
    config.output = str(folder)
    in_full(config)
    return folder


def read(config: RunConfig, asked: ComparisonConfig) -> tuple[Rows, list[str], int]:
    """Training, validation and test rows, sentences about who does what with which, and how many of the test rows have
    an input that is trained on.

    Raises:
        DataError: rows at fault, or too few for three parts.
    """
    assert config.model and config.data.train, "checked"
    seed = config.training.seed
    kind = load_base_config(config.model, config.trust_remote_code)
    rows = read_rows(config.data.train, config.data.validation, config.data, seed, base=kind)
    config.data.streaming = rows.streamed
    said = []
    if asked.test:
        rows.test = load_rows(asked.test, "test" if Path(asked.test).expanduser().is_dir() else None)
    if rows.test is None:
        if rows.shares:
            raise DataError("several sources without test rows: name test data (--test), or give a single source")
        part = Part("the rows left to train on", rows.train)
        share = config.data.held_out or None
        rows.test, notes = split_off([part], rows.task, config.data.model_copy(update={"held_out": share}), seed + 1)
        rows.train = part.train
        said += [f"For the test: {note}" for note in notes]
    if rows.held is None or not len(rows.held):
        raise DataError("no validation rows: learning rates are chosen on them. Name some (--validation)")
    if rows.test is None or not len(rows.test):
        raise DataError("no test rows: candidates are measured on them. Name some (--test)")
    seen = 0
    for name, kept in (("validation", rows.held), ("test", rows.test)):
        seen = len(trained_too(rows.task, rows.train, kept))
        if seen:
            have = noun(seen, "has", "have")
            said.append(f"{seen:,} of the {name} rows {have} an input that is trained on too: they flatter everybody.")
    protocol = [
        f"{len(rows.train):,} rows train; {len(rows.held):,} validation rows choose learning rates and checkpoints; "
        f"{len(rows.test):,} test rows measure, and choose nothing but the candidate that is recommended.",
        *said,
    ]
    return rows, protocol, seen


def load(config: RunConfig, rows: Rows) -> tuple[LoRA, Prepared]:
    """The base and the rows as tokens. What suits machine and model goes into ``config``."""
    assert config.model, "checked"
    torch.manual_seed(config.training.seed)
    dtype = choose_dtype(config.training.dtype)
    base: Any = load_base(
        config.model, rows.task.auto_class, dtype, rows.task.model_options(), config.trust_remote_code
    )
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    train_new_tokens(base, tokenizer, config)
    model = LoRA(base, name=None)
    rate = config.training.learning_rate
    settle(config, base, dtype)
    config.training.learning_rate = rate  # None: each kind has a default of its own
    return model.to(Processes().device), prepare(model, rows, tokenizer, config.data.max_length)


def more_is_better(model: LoRA, prepared: Prepared, config: RunConfig) -> bool:
    """Whether more of the metric is better. Raises ConfigError where the metric is none of the task's."""
    settings, task = config.training, prepared.task
    metric = settings.best_metric or task.best_metric
    if metric not in task.measures:
        raise ConfigError(
            f"training.best_metric: {metric!r} is not measured for the task {task.name}; known: "
            + ", ".join(task.measures)
        )
    return greater_is_better(metric, settings, task)


def budget(config: RunConfig, asked: ComparisonConfig) -> list[str]:
    """What is the same for all, in sentences."""
    training = config.training
    length = f"{training.max_steps:,} steps" if training.max_steps else f"{training.epochs:g} epochs"
    said = [
        f"Each is trained for {length} of {training.batch_size * training.accumulation} rows a step at each rate, and "
        f"at the best of them with {asked.seeds} seed{'s' if asked.seeds > 1 else ''}; its figures are those of these "
        "runs together."
    ]
    if training.dtype != "float32" and asked.full:
        said.append(
            f"The base is {training.dtype}. What is trained is float32 in any case: of LoRA the updates, in full "
            "fine-tuning all weights, which costs time and memory."
        )
    return said


def unused(config: RunConfig) -> list[str]:
    """Settings that were given and that a comparison makes itself."""
    default = AdapterConfig()
    named = [key for key in ("rank", "targets") if getattr(config.adapter, key) != getattr(default, key)]
    of_reports = [key for key in ("probe", "slices", "robustness") if getattr(config, key)]
    return [
        *(f"adapter.{key} is not used: that is compared (see ranks and target_sets)." for key in named),
        *(f"{key} is not used: it is for the report of a single run, as of winner.yaml." for key in of_reports),
    ]

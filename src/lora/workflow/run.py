"""One training run, from a configuration to a folder with adapter and report."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lora.config import RunConfig
from lora.errors import Interrupted, SaveError
from lora.io.run import RunFolder, how_to_resume
from lora.model.base import load_base_config
from lora.model.lora import LoRA
from lora.workflow.loading import load, task_to_go_on_with
from lora.workflow.measuring import Say, facts_of, forgotten, measure, read_probe, to_measure, verify, verify_trained
from lora.workflow.places import config_file, places

if TYPE_CHECKING:
    from lora.evaluation.evaluate import Evaluation
    from lora.training.loop import FitResult
    from lora.training.processes import Processes


@dataclass
class TrainResult:
    """A finished run: the model with the trained adapter, what training came to, base beside tuned."""

    model: LoRA
    fit: FitResult
    evaluation: Evaluation | None
    report: Path | None
    main: bool = True  # whether this is the process that speaks and writes


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Say | None = None,
    latency: bool = True,
    progress: bool | None = None,
) -> TrainResult:
    """Everything from a configuration to a run folder with adapter, metrics and report.

    Args:
        config: ``data.train``, ``output`` and ``model`` (or ``start``, whose base it is then) must be set.
        resume: go on with the run in ``config.output``.
        overwrite: replace it.
        say: called with each thing a user should know, a line at a time.
        latency: whether the final evaluation times single rows.
        progress: as for `fit`.

    Raises:
        ConfigError, DataError, ModelError, AdapterFileError: before anything is trained.
        TrainingError, Interrupted, SaveError: as `lora.fit`.
    """
    from lora.evaluation.report import write_report
    from lora.training.loop import fit
    from lora.training.prepare import prepare, read_rows
    from lora.training.processes import Processes

    processes = Processes()
    say = say if say and processes.main else (lambda line: None)
    begun = time.perf_counter()
    # Complains before the work, not after; nothing is replaced before everything has been checked.
    run, start = places(config, resume, overwrite)
    task = task_to_go_on_with(config, start)
    assert config.model and config.data.train, "checked among the places"
    # Which task is meant can depend on the kind of base; its weights are loaded when the data have been found good.
    kind = None if task else load_base_config(config.model, config.trust_remote_code)
    rows = read_rows(config.data.train, config.data.validation, config.data, config.training.seed, task, kind)
    config.data.streaming = rows.streamed  # a run resumed elsewhere reads its rows alike
    model, tokenizer = load(config, rows.task, start)
    prepared = prepare(model, rows, tokenizer, config.data.max_length)
    probe = read_probe(config, model, prepared)
    inputs = to_measure(config, rows, prepared)
    for line in [*model.summary().splitlines(), *prepared.notes]:
        say(line)
    if config.check and not resume:
        verify(model, {"default": (prepared, config)}, say)
    newest = run.checkpoints()[-1:] if resume else []
    with _refusals(config, run, processes):
        result = fit(
            model, [], prepared=prepared, output_dir=run.path, resume=resume, overwrite=overwrite,
            config=config.training, memory_gib=config.memory_gib, compile=config.compile, liger=config.liger,
            progress=progress,
        )  # fmt: skip
    if not processes.main:
        return TrainResult(model, result, None, run.path / "report.md", main=False)
    if newest and newest[0].name == f"step-{result.steps:08d}":
        say(f"All {result.steps} steps had been taken before; the result is measured again.")
    facts = facts_of(config, model, rows, result)
    try:
        evaluation = measure(config, model, inputs, result, latency, say)
        forgetting = forgotten(config, {"": config}, model, {"": result}, probe, say)[""]
        if config.check:
            facts["checks_after_training"] = verify_trained(model, result, forgetting, say)
    except KeyboardInterrupt:
        raise Interrupted(
            f"the adapter is trained and saved ({run.adapter}), but not measured. For that: {how_to_resume(run.path)}"
        ) from None
    # The time of earlier parts is that of their training: what they measured, if they came to that, is not counted.
    facts["training"]["total_seconds"] = round(time.perf_counter() - begun + result.seconds_before, 1)
    report = write_report(run.path, facts, result.history, evaluation, forgetting)
    return TrainResult(model, result, evaluation, report)


@contextmanager
def _refusals(config: RunConfig, run: RunFolder, processes: Processes) -> Iterator[None]:
    """`config_file` for the training in the block. Where a disk refuses, say how to go on."""
    try:
        with config_file(config, run.path, processes):
            yield
    except SaveError as error:
        if not run.checkpoints():
            raise
        raise SaveError(f"{error}. Go on from the newest checkpoint with: {how_to_resume(run.path)}") from error

"""One training run, from a configuration to a folder with adapter and report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora.config import RunConfig
from lora.errors import Interrupted, SaveError
from lora.io.peft import read_sidecar
from lora.io.run import RunFolder, how_to_resume
from lora.model.base import load_base_config
from lora.model.lora import LoRA
from lora.plural import number_of
from lora.workflow.loading import load, task_to_go_on_with
from lora.workflow.places import config_file, places

if TYPE_CHECKING:
    from lora.evaluation.evaluate import Evaluation
    from lora.evaluation.forgetting import Forgetting
    from lora.training.loop import FitResult
    from lora.training.prepare import Prepared, Rows
    from lora.training.processes import Processes

Say = Callable[[str], None]


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
    if config.probe:
        from lora.evaluation.probe import probe_texts

        probe_texts(config.probe)  # complains now, not after training
        if config.data.replayed is not None and config.data.replayed.path == config.probe:
            prepared.notes.append(
                "The probe's texts are those of data.replay: what is measured on them was learned, not kept."
            )
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
    try:
        evaluation = measure(config, model, tokenizer, result, latency, say)
    except KeyboardInterrupt:
        raise Interrupted(
            f"the adapter is trained and saved ({run.adapter}), but not measured. For that: {how_to_resume(run.path)}"
        ) from None
    facts, forgetting = facts_of(config, model, rows, result), forgotten(config, model, result)
    if config.check:
        facts["checks_after_training"] = verify_trained(model, result, forgetting, say)
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


def verify(model: LoRA, jobs: Mapping[str, tuple[Prepared, RunConfig]], say: Say) -> None:
    """Run the checks before training for each of ``jobs``, and say what they found worth a look.

    Raises:
        TrainingError: some failed.
    """
    from lora.checks.before import check_training, refuse_failed
    from lora.training.processes import Processes

    model.to(Processes().device)
    begun, count = time.perf_counter(), 0
    for name, (prepared, config) in jobs.items():
        found = check_training(model, name, prepared, config.training, Path(config.output or "."), config.memory_gib)
        for finding in found:
            if finding.status == "note":
                say(f"{name}: {finding}" if len(jobs) > 1 else str(finding))
        refuse_failed(found)
        count += sum(finding.status != "skipped" for finding in found)
    say(f"{number_of(count, 'check')} before training in {time.perf_counter() - begun:.1f} s.")


def forgotten(config: RunConfig, model: LoRA, result: FitResult) -> Forgetting | str:
    """Base and adapter on the probe of general text; or why nothing was measured."""
    from lora.evaluation.forgetting import measure_forgetting
    from lora.evaluation.probe import probe_texts

    prepared = result.data
    return measure_forgetting(
        model, [result.adapter], prepared.tokenizer, prepared.max_length,
        probe_texts(config.probe) if config.probe else None, config.probe, config.training.evaluation_rows,
    )  # fmt: skip


def verify_trained(model: LoRA, result: FitResult, forgetting: Forgetting | str, say: Say) -> dict[str, str]:
    """Run the checks after training, say what they found worth a look, and give all by name for the report."""
    from lora.checks.after import check_trained

    assert result.output is not None
    found = check_trained(model, result.adapter, result.output / "adapter", result.data, forgetting)
    for finding in found:
        if finding.status in ("note", "failed"):
            say(str(finding))
    return {finding.check: f"{finding.status}: {finding.said}" for finding in found}


def measure(
    config: RunConfig, model: LoRA, tokenizer: Any, result: FitResult, latency: bool, say: Say, baseline: bool = True
) -> Evaluation | None:
    """Base beside tuned on the rows kept for it: test rows, else the held-out ones; None where there are neither."""
    from lora.evaluation.answers import has_answers
    from lora.evaluation.evaluate import evaluate

    prepared = result.data
    measured = prepared.test or prepared.held
    if measured is None:
        return None
    generate = config.training.generate_rows if has_answers(prepared.task, measured) else 0
    if generate:
        say(f"Up to {generate} prompts are answered for the report (training.generate_rows: 0 leaves that out).")
    evaluation = evaluate(
        model, measured, tokenizer=tokenizer, task=prepared.task, adapters=[result.adapter], latency=latency,
        baseline=baseline,
        batch_size=config.training.evaluation_rows, max_length=prepared.max_length,
        generate=generate,
    )  # fmt: skip
    if prepared.test is None and result.best_step is not None:
        result.notes.append(
            "The held-out rows measured here also picked the best checkpoint; rows kept for a test alone say more "
            "(a folder with train, validation and test files, or `lora eval`)."
        )
        say(result.notes[-1])
    return evaluation


def facts_of(config: RunConfig, model: LoRA, rows: Rows, result: FitResult) -> dict[str, Any]:
    """What the report says of a run beside its curves and its evaluation."""
    assert result.output is not None
    return {
        "config": config.model_dump(mode="json"),
        "adapter": model.summary(result.adapter),
        "data": {
            "sources": rows.sources, "train_rows": result.data.train.rows,
            "held_out_rows": result.data.held.rows if result.data.held else 0,
            "test_rows": result.data.test.rows if result.data.test else 0,
            **({"replay_examples": result.data.train.replay} if result.data.train.replay else {}),
        },
        "notes": result.notes,
        "training": {
            "steps": result.steps, "epochs": round(result.epochs, 3), "seconds": round(result.seconds, 1),
            "tokens": result.tokens, "tokens_per_second": round(result.tokens / max(result.seconds, 1e-9), 1),
            "learning_rate": result.learning_rate, "best_step": result.best_step, "best_metric": result.best_metric,
            "best_value": result.best_value, "stopped_early": result.stopped_early,
            "dtype": config.training.dtype,
        },
        "base": read_sidecar(result.output / "adapter").get("base", {}),
    }  # fmt: skip

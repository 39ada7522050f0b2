"""One training run, from a configuration to a folder with adapter and report; and going on with one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora.config import AdapterConfig, RunConfig
from lora.data.naming import named_sources
from lora.errors import ConfigError, Interrupted, SaveError
from lora.io.atomic import write_text
from lora.io.peft import read_sidecar
from lora.io.places import folder_to_write
from lora.io.run import RunFolder, how_to_resume
from lora.model.base import load_base, load_base_config
from lora.model.heads import draw_new
from lora.model.lora import LoRA
from lora.model.vocabulary import add_tokens, enlarge, tokenizer_for, train_rows
from lora.overrides import load_config, save_config
from lora.plural import number_of
from lora.tasks import Task, task_class
from lora.training.device import choose_dtype
from lora.workflow.tuned import adapter_folder, base_of, task_of, vocabulary_of

if TYPE_CHECKING:
    from lora.evaluation.evaluate import Evaluation
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
    run, start = _places(config, resume, overwrite)
    task = task_to_go_on_with(config, start)
    assert config.model and config.data.train, "checked among the places"
    # Which task is meant can depend on the kind of base; its weights are loaded when the data have been found good.
    kind = None if task else load_base_config(config.model, config.trust_remote_code)
    rows = read_rows(config.data.train, config.data.validation, config.data, config.training.seed, task, kind)
    config.data.streaming = rows.streamed  # a run resumed elsewhere reads its rows alike
    model, tokenizer = load(config, rows.task, start)
    prepared = prepare(model, rows, tokenizer, config.data.max_length)
    for line in [*model.summary().splitlines(), *prepared.notes]:
        say(line)
    if config.probe:
        from lora.checks.probe import probe_texts

        probe_texts(config.probe)  # complains now, not after training
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
    facts = facts_of(config, model, rows, result)
    if config.check:
        facts["checks_after_training"] = verify_trained(config, model, result, say)
    # The time of earlier parts is that of their training: what they measured, if they came to that, is not counted.
    facts["training"]["total_seconds"] = round(time.perf_counter() - begun + result.seconds_before, 1)
    return TrainResult(model, result, evaluation, write_report(run.path, facts, result.history, evaluation))


def _places(config: RunConfig, resume: bool, overwrite: bool) -> tuple[RunFolder, Path | None]:
    """The run's folder, and the adapter folder that training starts from. Paths are written in full into ``config``.

    In full: the run must be usable, and resumable, from any other folder.
    """
    if config.start and not config.model:
        config.model = base_of(adapter_folder(config.start))
    missing = [
        name
        for name, value in (("model", config.model), ("data.train", config.data.train), ("output", config.output))
        if not value
    ]
    if missing:
        raise ConfigError("\n".join(f"{name}: is needed" for name in missing))
    assert config.model and config.data.train and config.output
    folder_to_write(config.output, "output")
    run = RunFolder(config.output, resume=resume, overwrite=overwrite)
    # A checkpoint is an adapter folder too, and the one that was started from may be gone by now.
    saved = run.checkpoints() if resume else []
    start = None if not config.start else saved[-1] if saved else adapter_folder(config.start)
    if start and not resume and start.resolve().is_relative_to(run.path.resolve()):
        raise ConfigError(f"output: {run.path} holds the adapter that training starts from; name another folder")
    config.output = str(run.path.absolute())
    in_full(config)
    config.start = config.start and _absolute(config.start)
    return run, start


def load(config: RunConfig, task: Task, start: Path | None) -> tuple[LoRA, Any]:
    """Base with its adapter, and tokenizer. What is chosen for this machine and model is written into ``config``.

    Raises:
        ConfigError: ``adapter`` says otherwise than the adapter that training starts from.
    """
    assert config.model
    # Seeds before anything random is made: the head that from_pretrained makes up, and the adapter's A.
    torch.manual_seed(config.training.seed)
    dtype = choose_dtype(config.training.dtype)
    base = load_base(config.model, task.auto_class, dtype, task.model_options(), config.trust_remote_code)
    tokenizer = tokenizer_for(config.model, config.new_tokens, start, config.trust_remote_code)
    if start is None:
        train_new_tokens(base, tokenizer, config)
    else:
        enlarge(base, vocabulary_of(start))
    model = LoRA(base, name=None)
    if start is None:
        model.add_adapter("default", config.adapter, seed=config.training.seed)
        draw_new(base, model.owned("default"), config.training.seed)
        config.adapter = model.adapters["default"]  # ranks that were brought down to small layers stand in it
    else:
        model.load_adapter(start, "default")
        found = model.adapters["default"]
        refuse_other_settings(str(config.start), config.adapter, found)
        config.adapter = found
    settle(config, base, dtype)
    return model, tokenizer


def refuse_other_settings(start: str, asked: AdapterConfig, found: AdapterConfig) -> None:
    """Raise ConfigError where ``asked`` says otherwise than ``found`` of the adapter that training starts from."""
    other = [key for key in asked.model_fields_set if getattr(asked, key) != getattr(found, key)]
    if other:
        raise ConfigError(
            "\n".join(f"adapter.{key}: is {getattr(found, key)!r} in {start}, which training starts from; leave it out"
                      for key in sorted(other))
        )  # fmt: skip


def train_new_tokens(base: Any, tokenizer: Any, *configs: RunConfig) -> None:
    """Add ``new_tokens`` to base and tokenizer, and their ids to the rows that each adapter trains.

    Raises ConfigError where those are given as a table.
    """
    for config in configs:
        train_rows(config.adapter, add_tokens(base, tokenizer, config.new_tokens))


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


def verify_trained(config: RunConfig, model: LoRA, result: FitResult, say: Say) -> dict[str, str]:
    """Run the checks after training, say what they found worth a look, and give all by name for the report."""
    from lora.checks.after import check_trained
    from lora.checks.probe import probe_texts

    assert result.output is not None
    texts = probe_texts(config.probe) if config.probe else None
    found = check_trained(model, result.adapter, result.output / "adapter", result.data, texts)
    for finding in found:
        if finding.status in ("note", "failed"):
            say(str(finding))
    return {finding.check: f"{finding.status}: {finding.said}" for finding in found}


def task_to_go_on_with(config: RunConfig, start: Path | None) -> Task | None:
    """The task of the adapter that training starts from; None: the rows say, as where the settings name another one.

    Raises:
        ConfigError: the other one needs another head than the adapter has.
    """
    if start is None:
        return None
    task, asked = task_of(start), config.data.task
    if asked in ("auto", task.name):
        return task
    # From answers that were shown to answers that are preferred, say: the same model, another loss.
    if task_class(asked).auto_class != task.auto_class or not task.generates:
        raise ConfigError(
            f"data.task: {asked!r} needs another model than the task {task.name}, which {config.start} was trained "
            "for; begin a new run without start"
        )
    return None


def settle(config: RunConfig, base: Any, dtype: torch.dtype) -> None:
    """Write what this machine and model call for into ``config``: a run resumed elsewhere must not choose anew."""
    from lora.training.schedule import default_learning_rate

    config.training.dtype = str(dtype).removeprefix("torch.")  # type: ignore[assignment]
    if config.training.learning_rate is None:
        config.training.learning_rate = default_learning_rate(base.config, config.adapter.full)


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


@contextmanager
def config_file(config: RunConfig, folder: Path, processes: Processes) -> Iterator[None]:
    """Write ``config.yaml`` for the training in the block; put back what was there, or nothing, if that is refused.

    What was refused must not be what the next ``--resume`` goes by.
    """
    file, there = folder / "config.yaml", folder.is_dir()
    before = file.read_text(encoding="utf-8") if file.is_file() else None
    processes.wait()
    if processes.main:
        write_text(file, save_config(config))
    try:
        yield
    except ConfigError:
        if processes.main and before is not None:
            write_text(file, before)
        elif processes.main:
            file.unlink(missing_ok=True)
            if not there:
                with suppress(OSError):  # something else is in it by now
                    folder.rmdir()
        raise


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


def in_full(config: RunConfig) -> None:
    """Write paths to base and data in full: the run must be usable, and resumable, from any other folder."""
    config.model = config.model and _absolute(config.model)
    config.data.validation = config.data.validation and _absolute(config.data.validation)
    config.probe = config.probe and _absolute(config.probe)
    if isinstance(config.data.cache, str):
        config.data.cache = str(Path(config.data.cache).expanduser().absolute())
    if not config.data.train:
        return
    # A weight, or columns of its own, need a table; all else is a name as before.
    full = [
        source if source.columns or source.weight != 1 else source.path
        for source in (source.model_copy(update={"path": _absolute(source.path)})
                       for source in named_sources(config.data.train))
    ]  # fmt: skip
    config.data.train = full[0] if len(full) == 1 and isinstance(full[0], str) else full


def _absolute(place: str) -> str:
    """A local path in full, so that the run can be resumed from another folder; a hub id as it is."""
    if Path(place).expanduser().exists():
        return str(Path(place).expanduser().absolute())
    name, mark, rest = place.rpartition("#")
    path = Path(name).expanduser()
    return f"{path.absolute()}{mark}{rest}" if mark and path.exists() else place


def resume(
    folder: str | Path, say: Say | None = None, progress: bool | None = None, overrides: dict[str, Any] | None = None
) -> TrainResult | dict[str, TrainResult]:
    """Go on with the run, or the set of runs, in ``folder`` under its own configuration.

    Args:
        overrides: of settings that do not change what the run is: where base and data lie now, and those of training
            that leave its mathematics alone.

    Raises:
        ConfigError: no run there, or other settings among ``overrides``.
    """
    from lora.training.trainee import FREE_ON_RESUME

    path = Path(folder).expanduser() / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: no config.yaml here, so this is not a run's folder that could be resumed")
    free = {
        "model",
        "data.train",
        "data.validation",
        "data.cache",
        "data.streaming",
        "memory_gib",
        *(f"training.{key}" for key in FREE_ON_RESUME),
    }
    then = load_config(path)
    fixed = [key for key in overrides or {} if key not in free and _differs(then, path, key, (overrides or {})[key])]
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)}: a run goes on with the settings it began with, to the result of one that was never "
            f"stopped. May change: {', '.join(sorted(free))}.\n"
            f"To train its adapter further under other settings, begin a new run with it: lora train --start {folder} "
            "--data DATA --output ANOTHER_FOLDER ..."
        )
    config = load_config(path, {key: value for key, value in (overrides or {}).items() if key in free})
    config.output = str(folder)
    if config.adapters:
        from lora.workflow.many import train_many

        return train_many(config, resume=True, say=say, progress=progress)
    return train(config, resume=True, say=say, progress=progress)


def _differs(then: RunConfig, path: Path, key: str, value: Any) -> bool:
    """Whether setting ``key`` to ``value`` makes another run than the one that began with ``then``."""
    now = load_config(path, {key: value})
    if key == "output":
        return Path(now.output or "").expanduser().absolute() != Path(then.output or "").absolute()
    return now != then

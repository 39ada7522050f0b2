"""Whole jobs, as the command line runs them and as Python may: load, train, evaluate, report."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora.config import RunConfig, load_config, save_config
from lora.errors import AdapterFileError, ConfigError
from lora.io.atomic import atomic_folder, write_text
from lora.io.peft import CONFIG, read_sidecar, resolve_folder
from lora.model.base import load_base, load_tokenizer
from lora.model.lora import LoRA
from lora.tasks import Task, from_state
from lora.training.device import best_device, choose_dtype

if TYPE_CHECKING:
    from lora.evaluation.evaluate import Evaluation
    from lora.training.loop import FitResult
    from lora.training.prepare import Rows


@dataclass
class TrainResult:
    """A finished run: the model with the trained adapter, what training came to, base beside tuned."""

    model: LoRA
    fit: FitResult
    evaluation: Evaluation | None
    report: Path
    main: bool = True  # whether this is the process that speaks and writes


def train(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Any = None,
    latency: bool = True,
    progress: bool | None = None,
) -> TrainResult:
    """Everything from a configuration to a run folder with adapter, metrics and report.

    Args:
        config: ``model``, ``data.train`` and ``output`` must be set.
        resume: go on with the run in ``config.output``.
        overwrite: replace it.
        say: called with each thing a user should know, a line at a time.
        latency: whether the final evaluation times single rows.
        progress: show the bar; default: where standard error is a terminal.

    Raises:
        ConfigError, DataError, ModelError: before anything is trained.
        TrainingError, Interrupted, SaveError: as `lora.fit`.
    """
    from lora.evaluation.evaluate import evaluate
    from lora.evaluation.report import write_report
    from lora.io.run import RunFolder
    from lora.training.loop import fit
    from lora.training.prepare import prepare, read_rows
    from lora.training.processes import Processes
    from lora.training.schedule import default_learning_rate

    processes = Processes()
    say = say if say and processes.main else (lambda line: None)
    missing = [
        name
        for name, value in (("model", config.model), ("data.train", config.data.train), ("output", config.output))
        if not value
    ]
    if missing:
        raise ConfigError("\n".join(f"{name}: is needed" for name in missing))
    assert config.model and config.data.train and config.output
    # Complains before the work, not after; nothing is replaced before everything has been checked.
    output = RunFolder(config.output, resume=resume, overwrite=overwrite).path
    started = time.perf_counter()
    # In full: the run must be usable, and resumable, from any other folder.
    config.model, config.output = _absolute(config.model), str(output.absolute())
    config.data.train = _absolute(config.data.train)
    config.data.validation = config.data.validation and _absolute(config.data.validation)
    rows = read_rows(config.data.train, config.data.validation, config.data, config.training.seed)
    # Seeds before anything random is made: the head that from_pretrained makes up, and the adapter's A.
    torch.manual_seed(config.training.seed)
    dtype = choose_dtype(config.training.dtype)
    base = load_base(config.model, rows.task.auto_class, dtype, rows.task.model_options(), config.trust_remote_code)
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    model = LoRA(base, name=None)
    model.add_adapter("default", config.adapter, seed=config.training.seed)
    for line in model.summary().splitlines():
        say(line)
    prepared = prepare(model, rows, tokenizer, config.data.max_length)
    for line in prepared.notes:
        say(line)
    # What was chosen for this machine and model goes to the file: a run resumed elsewhere must not choose anew.
    config.training.dtype = str(dtype).removeprefix("torch.")  # type: ignore[assignment]
    if config.training.learning_rate is None:
        config.training.learning_rate = default_learning_rate(base.config)
    processes.wait()
    if processes.main:
        write_text(output / "config.yaml", save_config(config))
    result = fit(
        model, [], prepared=prepared, output_dir=output, resume=resume, overwrite=overwrite, config=config.training,
        progress=progress,
    )  # fmt: skip
    if not processes.main:
        return TrainResult(model, result, None, output / "report.md", main=False)
    evaluation, measured = None, prepared.test or prepared.held
    if measured is not None:
        evaluation = evaluate(
            model, measured, tokenizer=tokenizer, task=prepared.task, adapters=["default"], latency=latency,
            batch_size=config.training.evaluation_rows,
            max_length=prepared.max_length,
        )  # fmt: skip
        if prepared.test is None and result.best_step is not None:
            result.notes.append(
                "The held-out rows measured here also picked the best checkpoint; rows kept for a test alone say more "
                "(a folder with train, validation and test files, or `lora eval`)."
            )
            say(result.notes[-1])
    facts = _facts(config, model, rows, result, output)
    facts["training"]["total_seconds"] = round(time.perf_counter() - started, 1)
    report = write_report(output, facts, result.history, evaluation)
    return TrainResult(model, result, evaluation, report)


def _facts(config: RunConfig, model: LoRA, rows: Rows, result: FitResult, output: Path) -> dict[str, Any]:
    """What the report says of a run beside its curves and its evaluation."""
    return {
        "config": config.model_dump(mode="json"),
        "adapter": model.summary("default"),
        "data": {
            "sources": rows.sources, "train_rows": len(result.data.train), "held_out_rows": len(result.data.held or []),
            "test_rows": len(result.data.test or []),
        },
        "notes": result.notes,
        "training": {
            "steps": result.steps, "epochs": round(result.epochs, 3), "seconds": round(result.seconds, 1),
            "tokens": result.tokens, "tokens_per_second": round(result.tokens / max(result.seconds, 1e-9), 1),
            "learning_rate": result.learning_rate, "best_step": result.best_step, "best_metric": result.best_metric,
            "best_value": result.best_value, "stopped_early": result.stopped_early,
            "dtype": config.training.dtype,
        },
        "base": read_sidecar(output / "adapter").get("base", {}),
    }  # fmt: skip


def _absolute(place: str) -> str:
    """A local path in full, so that the run can be resumed from another folder; a hub id as it is."""
    name, mark, rest = place.partition("#")
    path = Path(name).expanduser()
    return f"{path.absolute()}{mark}{rest}" if path.exists() else place


def resume(folder: str | Path, say: Any = None, progress: bool | None = None) -> TrainResult:
    """Go on with the run in ``folder`` under its own configuration."""
    path = Path(folder).expanduser() / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{folder}: no config.yaml here, so this is not a run's folder that could be resumed")
    config = load_config(path)
    config.output = str(folder)
    return train(config, resume=True, say=say, progress=progress)


def load_tuned(
    adapter: str | Path,
    model: str | None = None,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    allow_other_base: bool = False,
) -> tuple[LoRA, str, Any, Task]:
    """Base model, adapter, tokenizer and task of an adapter folder (or of a run's folder, whose result it takes).

    Args:
        model: the base; default: the one that the adapter names.

    Returns:
        the model, the adapter's name in it, the tokenizer, the task.
    """
    import json

    folder = Path(adapter).expanduser()
    if not (folder / CONFIG).is_file() and (folder / "adapter" / CONFIG).is_file():
        folder = folder / "adapter"
    folder = resolve_folder(folder if folder.exists() else str(adapter))
    sidecar = read_sidecar(folder)
    if "task" not in sidecar:
        raise AdapterFileError(
            f"{folder}: it was not made by lora and does not say its task and labels; "
            "use LoRA(...).load_adapter from Python"
        )
    try:
        named = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError) as error:
        raise AdapterFileError(f"{folder / CONFIG}: cannot be read ({error})") from None
    name = model or (sidecar.get("base") or {}).get("name") or named
    if not name:
        raise AdapterFileError(f"{folder}: does not say its base model; name it with --model")
    task = from_state(sidecar["task"])
    # The base's own head is made up anew: always the same one, so that a comparison can be repeated.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = load_base(name, task.auto_class, choose_dtype(dtype), task.model_options(), trust_remote_code)
    tuned = LoRA(base, name=None)
    loaded = tuned.load_adapter(folder, "tuned", allow_other_base=allow_other_base)
    tuned.to(best_device()).eval()
    return tuned, loaded, load_tokenizer(name, trust_remote_code), task


def merge_folder(
    adapter: str | Path,
    output: Path,
    model: str | None = None,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    allow_other_base: bool = False,
) -> float:
    """Merge an adapter folder into its base and write a plain model folder, tokenizer included, atomically.

    Returns:
        the largest absolute difference between merged and unmerged outputs on a probe, relative to the largest output.

    Raises:
        ConfigError, ModelError, AdapterFileError: before anything is written.
        SaveError: disk full or no permission; nothing half-written is left.
    """
    output = output.expanduser()
    sources = [Path(adapter).expanduser().resolve(), *([Path(model).expanduser().resolve()] if model else [])]
    if any(output.resolve() == source or output.resolve() in source.parents for source in sources):
        raise ConfigError(f"output: {output} holds what is being merged; name another folder")
    tuned, name, tokenizer, _ = load_tuned(
        adapter, model, dtype=dtype, trust_remote_code=trust_remote_code, allow_other_base=allow_other_base
    )
    if output.resolve() == Path(getattr(tuned.base.config, "_name_or_path", "") or ".").resolve():
        raise ConfigError(f"output: {output} is the base model's own folder; name another")
    merged: Any = tuned.merge(name).eval()
    config: Any = tuned.base.config
    ids = torch.arange(16).unsqueeze(0) % config.get_text_config().vocab_size
    ids = ids.to(best_device())
    with torch.no_grad(), tuned.using(name):
        expected, found = tuned(input_ids=ids).logits.float(), merged(input_ids=ids).logits.float()
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-9))
    if not difference <= (1e-4 if dtype == "float32" else 0.1):  # NaN is refused too
        raise AdapterFileError(
            f"merged and unmerged outputs differ by {difference:.1e} of the largest; nothing was written"
        )
    with atomic_folder(output) as stage:
        merged.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    return difference

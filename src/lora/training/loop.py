"""``fit``: training, from top to bottom."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora.config import DataConfig, TrainingConfig
from lora.errors import ConfigError, Interrupted, TrainingError
from lora.io.fingerprint import fingerprint
from lora.io.peft import save_adapter
from lora.io.run import RunFolder, load_checkpoint, save_checkpoint
from lora.tasks import Task
from lora.tasks.inference import forward, infer, to_device
from lora.training.checks import locate_non_finite, untouched_modules
from lora.training.interrupt import StopRequest
from lora.training.prepare import Data, Prepared, digest, prepare, read_rows
from lora.training.processes import Processes
from lora.training.progress import Events, Progress
from lora.training.schedule import default_learning_rate
from lora.training.trainee import Trainee

if TYPE_CHECKING:
    from lora.model.lora import LoRA

Evaluate = Callable[["LoRA", str], dict[str, Any]]


@dataclass
class FitResult:
    """What a training run came to.

    Attributes:
        adapter: its name in the model; the model holds the best checkpoint's parameters.
        steps, epochs: what was done, earlier parts of a resumed run included.
        learning_rate: the peak rate, given or derived.
        best_step, best_metric, best_value: the evaluation that picked the result; None without held-out data.
        stopped_early: patience ran out before the last step.
        history: lines of ``metrics.jsonl``.
        seconds, tokens: of this call.
        output: the run's folder; None if nothing was written.
        data: tokenised data and task, ready for ``evaluate``.
        notes: what a user should know (split, truncation, modules without gradient).
    """

    adapter: str
    steps: int
    epochs: float
    best_step: int | None
    best_metric: str
    best_value: float | None
    stopped_early: bool
    seconds: float
    tokens: int
    output: Path | None
    data: Prepared
    learning_rate: float
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def fit(
    model: LoRA,
    train_data: Data,
    eval_data: Data | bool | None = None,
    *,
    adapter: str | None = None,
    tokenizer: Any = None,
    task: Task | None = None,
    data: DataConfig | None = None,
    prepared: Prepared | None = None,
    output_dir: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    evaluate: Evaluate | None = None,
    config: TrainingConfig | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> FitResult:
    """Train one adapter of ``model``.

    >>> fit(LoRA(base, rank=8), "train.jsonl", output_dir="run", epochs=3)

    Args:
        model: base and adapters; the others are not touched.
        train_data: a file, folder or hub id, or rows as dicts (a list, a ``datasets.Dataset``).
        eval_data: the same for held-out data. None: split off from the training data, unless ``evaluate`` brings its
            own. False: none, the last step wins.
        adapter: which adapter; may be left out where there is only one.
        tokenizer: default: that of the base model's folder.
        task: default: read from the columns.
        data: column names, task, length; see `DataConfig`.
        prepared: data already tokenised, in place of ``train_data``.
        output_dir: the run's folder. None: nothing is written and the best parameters are kept in memory.
        resume: go on from the newest checkpoint in ``output_dir``, exactly.
        overwrite: replace the run that ``output_dir`` holds.
        evaluate: ``(model, adapter) -> metrics`` in place of the task's own metrics on the held-out data.
        config: training settings, or give them as keywords (``learning_rate=1e-3, epochs=5``).
        progress: show the bar; default: where standard error is a terminal.

    Raises:
        ConfigError, DataError: before anything is trained.
        TrainingError: the loss is no longer finite; checkpoints so far are kept.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been saved and the message says how to go on.
        SaveError: a checkpoint could not be written; those before are kept.
    """
    if config is not None and settings:
        raise ConfigError("give either a config or keyword settings, not both")
    settings_ = config.model_copy() if config is not None else TrainingConfig.make(settings, "training")
    name = adapter or model._only("fit")
    model._known(name)
    if settings_.learning_rate is None:
        settings_.learning_rate = default_learning_rate(getattr(model.base, "config", None))
    if resume and output_dir is None:
        raise ConfigError("resume needs output_dir: the folder of the run to go on with")
    if evaluate is not None and eval_data is None:
        eval_data = False

    processes = Processes()
    run = RunFolder(output_dir, resume=resume, overwrite=overwrite) if output_dir is not None else None
    processes.wait()  # every process has looked before the first one writes
    data = data or DataConfig()
    if prepared is None:
        prepared = prepare(
            model, read_rows(train_data, eval_data, data, settings_.seed, task), tokenizer, data.max_length
        )
    model.to(processes.device)
    torch.manual_seed(settings_.seed + processes.rank)
    trainee = Trainee(model, name, prepared.task, prepared.train, settings_, processes.count)
    processes.share(trainee.parameters)
    model.notes[name] = {**model.notes.get(name, {}), **_notes(prepared, settings_)}

    # Where to begin: at a checkpoint, or at step 0, which is saved too: a full disk shows now, not after hours.
    # A run cut short before that begins anew.
    if run is not None and processes.main:
        run.recover() if resume else run.clear()
    processes.wait()
    found = run.checkpoints() if run is not None and resume else []
    identity = _identity(model, name, prepared)
    if found:
        _restore(trainee, identity, found[-1], processes)
    if run is not None and processes.main:
        run.forget_after(trainee.step)
    if run is not None and not found:
        _checkpoint(run, model, trainee, identity, processes)
    processes.wait()

    if evaluate is None and prepared.held is not None:
        evaluate = _evaluator(prepared, settings_)
    history = run.history() if run else []
    # TensorBoard hides what a killed run wrote from this step on; the checkpoint's own step stands.
    events = Events(
        run.tensorboard if run and settings_.tensorboard and processes.main else None,
        trainee.step + 1 if found else None,
    )
    bar = Progress(trainee.total_steps, trainee.step, progress if processes.main else False)
    notes = list(prepared.notes)
    started, tokens_seen = time.perf_counter(), 0

    def log(entry: dict[str, Any]) -> None:
        history.append(entry)
        if run is not None and processes.main:
            run.log(entry)

    was_training = model.training
    model.train()
    try:
        if settings_.gradient_checkpointing:
            _checkpointing(model, True)
        with StopRequest(enabled=run is not None) as stop:
            while trainee.step < trainee.total_steps and not trainee.out_of_patience:
                begun, rate = time.perf_counter(), trainee.rate
                loss, tokens = _step(model, trainee, prepared, processes)
                if trainee.step == 0:
                    notes += untouched_modules(trainee)
                norm = trainee.update() if math.isfinite(loss) else math.nan
                if not math.isfinite(norm):
                    trainee.optimizer.zero_grad()
                    raise TrainingError(_diverged(model, trainee, prepared, loss, norm, run))
                tokens_seen += tokens
                speed = tokens / (time.perf_counter() - begun)
                log(
                    {"step": trainee.step, "epoch": round(trainee.epoch, 4), "loss": loss, "learning_rate": rate}
                    | {"grad_norm": norm, "tokens": tokens, "tokens_per_second": round(speed, 1)}
                )
                bar.step(trainee.step, loss, rate, speed)
                if trainee.step % settings_.log_every == 0:
                    events.write(
                        trainee.step, {"train/loss": loss, "train/learning_rate": rate, "train/grad_norm": norm}
                    )
                if evaluate is not None and trainee.due(settings_.eval_every):
                    metrics = processes.agree(evaluate(model, name))
                    better = trainee.record(metrics)
                    log({"step": trainee.step, "epoch": round(trainee.epoch, 4), "eval": metrics, "best": better})
                    events.write(trainee.step, {f"eval/{key}": value for key, value in metrics.items()})
                    bar.say(_evaluation_line(trainee, metrics, better))
                    if better and run is not None and processes.main:
                        save_adapter(model, name, run.best)
                stopping = processes.any(stop.asked)
                if run is not None and (stopping or trainee.due(settings_.save_every)):
                    _checkpoint(run, model, trainee, identity, processes)
                if run is not None and stopping and trainee.step < trainee.total_steps:
                    raise Interrupted(
                        f"stopped at step {trainee.step} of {trainee.total_steps}; everything up to it is saved. "
                        f"Go on with: {run.how_to_resume()}"
                    )
    finally:
        bar.close()
        events.close()
        model.train(was_training)
        if settings_.gradient_checkpointing:
            _checkpointing(model, False)

    trainee.restore_best()
    model.eval()
    if run is not None and processes.main:
        save_adapter(model, name, run.adapter)
    processes.wait()
    return FitResult(
        adapter=name,
        steps=trainee.step,
        epochs=trainee.epoch,
        best_step=trainee.best_step if trainee.best_value is not None else None,
        best_metric=settings_.best_metric or prepared.task.best_metric,
        best_value=trainee.best_value,
        stopped_early=trainee.step < trainee.total_steps,
        seconds=time.perf_counter() - started,
        tokens=tokens_seen,
        output=run.path if run else None,
        data=prepared,
        learning_rate=settings_.learning_rate,
        history=history,
        notes=notes,
    )


def _step(model: LoRA, trainee: Trainee, prepared: Prepared, processes: Processes) -> tuple[float, int]:
    """Forward and backward of one step's batches. Returns the mean loss over its supervised positions, and its tokens.

    Each batch contributes its loss sum over the whole step's count, so that accumulation and several processes give the
    gradient of one large batch, whatever the lengths.
    """
    batches = trainee.batches(trainee.step)
    count = trainee.supervised(batches)
    total: float | torch.Tensor = 0.0
    for indices in processes.mine(batches):
        batch = trainee.task.collate(
            [trainee.data.examples[i] for i in indices], prepared.pad_token_id, prepared.padding_side
        )
        batch = to_device(batch, model)
        outputs = forward(model, batch, [trainee.name] * len(indices))
        sums, _ = trainee.task.row_losses(outputs, batch, trainee.settings.label_smoothing)
        loss = sums.sum() / count
        loss.backward()
        total = total + loss.detach()  # fetched once per step: each fetch would wait for the device
    loss_value = processes.sum_up(trainee.parameters.values(), float(total))
    return loss_value, sum(trainee.data.lengths[i] for batch in batches for i in batch)


def _evaluator(prepared: Prepared, settings: TrainingConfig) -> Evaluate:
    """The task's own metrics on the held-out rows."""
    assert prepared.held is not None
    held = prepared.held
    targets = prepared.task.targets(held.examples)

    def evaluate(model: LoRA, name: str) -> dict[str, Any]:
        outcome = infer(
            model, prepared.task, held, [name], pad_token_id=prepared.pad_token_id,
            batch_size=settings.eval_batch_size or 2 * settings.batch_size, padding_side=prepared.padding_side,
        )[name]  # fmt: skip
        metrics = prepared.task.metrics(outcome.predictions, targets, outcome.loss_sum, outcome.count)
        return {key: value for key, value in metrics.items() if isinstance(value, (int, float))}

    return evaluate


def _notes(prepared: Prepared, settings: TrainingConfig) -> dict[str, Any]:
    """What is stored beside the adapter: enough to use it without the run."""
    return {
        "task": prepared.task.state(),
        "max_length": prepared.max_length,
        "trained_on": {"rows": len(prepared.train), "digest": prepared.digest},
        "training": settings.model_dump(mode="json"),
    }


def _identity(model: LoRA, name: str, prepared: Prepared) -> dict[str, Any]:
    """What must be the same for a run to go on: by the words that a message uses."""
    return {
        "training data": prepared.digest,
        "held-out data": digest(prepared.held) if prepared.held is not None else None,
        "base model": fingerprint(model.base),
        "adapter": model.adapters[name].model_dump(mode="json"),
    }


def _checkpointing(model: LoRA, on: bool) -> None:
    """Switch gradient checkpointing; raises ConfigError where the base model has none."""
    kind = "activation" if hasattr(model.base, "activation_checkpointing_disable") else "gradient"
    if not hasattr(model.base, f"{kind}_checkpointing_enable"):
        raise ConfigError(f"training.gradient_checkpointing: {type(model.base).__name__} does not support it")
    getattr(model, f"{kind}_checkpointing_{'enable' if on else 'disable'}")()


def _checkpoint(run: RunFolder, model: LoRA, trainee: Trainee, identity: dict[str, Any], processes: Processes) -> None:
    state = trainee.state() | {"identity": identity}
    tensors = trainee.tensors() | processes.random_states()
    if processes.main:
        save_checkpoint(run, model, trainee.name, trainee.step, state, tensors, trainee.settings.keep_checkpoints)
    processes.wait()


def _restore(trainee: Trainee, identity: dict[str, Any], folder: Path, processes: Processes) -> None:
    state, tensors = load_checkpoint(folder)
    other = [key for key, value in identity.items() if state["identity"].get(key) != value]
    if "adapter" in other:
        then, now = state["identity"]["adapter"], identity["adapter"]
        other.remove("adapter")
        other += [
            f"adapter.{key}: {then.get(key)!r} then, {now[key]!r} now" for key in now if then.get(key) != now[key]
        ]
    if other:
        raise ConfigError(
            f"{folder.parent.parent}: the run began with other things than are given now, so it cannot go on:\n  "
            + "\n  ".join(other)
            + "\nBring them back, or start a new run"
        )
    trainee.load(state, tensors)
    processes.restore_random(tensors)


def _evaluation_line(trainee: Trainee, metrics: dict[str, Any], better: bool) -> str:
    key = trainee.settings.best_metric or trainee.task.best_metric
    loss = f", loss {metrics['loss']:.4f}" if isinstance(metrics.get("loss"), float) and key != "loss" else ""
    return f"step {trainee.step}: {key} {metrics[key]:.4f}{loss}{' (best so far)' if better else ''}"


def _diverged(
    model: LoRA, trainee: Trainee, prepared: Prepared, loss: float, norm: float, run: RunFolder | None
) -> str:
    what = f"the loss is {loss}" if loss != loss or abs(loss) == float("inf") else f"the gradient's norm is {norm}"
    where = locate_non_finite(model, trainee, prepared)
    kept = f" Checkpoints up to here are in {run.path / 'checkpoints'}." if run else ""
    return (
        f"step {trainee.step + 1}: {what}{where}. "
        f"Lower learning_rate (now {trainee.settings.learning_rate:g}), or clip harder."
        f"{kept}"
    )

"""``fit``: training of one adapter or several over one base, from top to bottom."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import nn

from lora.config import AdapterConfig, DataConfig, TrainingConfig
from lora.errors import ConfigError, Interrupted, TrainingError
from lora.io.run import RunFolder
from lora.model.heads import draw_new, task_heads
from lora.model.kernels import choose
from lora.model.targets import find_targets
from lora.tasks import Task
from lora.tasks.inputs import check_arguments
from lora.training.interrupt import StopRequest, stopped_at
from lora.training.job import Evaluate, Job, jobs_of, named_errors
from lora.training.mixer import Mixer, find_knee, most_in_memory
from lora.training.participant import FitResult, Participant
from lora.training.passes import Passes
from lora.training.prepare import Data, Prepared, prepare, read_rows
from lora.training.processes import Processes
from lora.training.progress import Progress, progress_for
from lora.training.schedule import default_learning_rate

if TYPE_CHECKING:
    from lora.model.lora import LoRA

__all__ = ["FitResult", "Job", "fit"]


@overload
def fit(
    model: LoRA, train_data: Mapping[str, Data | Job], eval_data: Any = None, **options: Any
) -> dict[str, FitResult]: ...
@overload
def fit(model: LoRA, train_data: Data, eval_data: Data | bool | None = None, **options: Any) -> FitResult: ...
def fit(
    model: LoRA,
    train_data: Data | Mapping[str, Data | Job],
    eval_data: Any = None,
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
    at_once: int | None = None,
    compile: bool = False,
    liger: bool | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> FitResult | dict[str, FitResult]:
    """Train one adapter of ``model``, or several at once.

    >>> fit(LoRA(base, rank=8), "train.jsonl", output_dir="run", epochs=3)
    >>> fit(LoRA(base, name=None), {"a": "a.jsonl", "b": Job("b.jsonl", adapter={"rank": 4})}, learning_rate=1e-3)

    Several adapters share the base's passes and nothing else: each has its own data, settings, optimiser, schedule,
    seed and folder, and comes out as it would alone (on the CPU to the last bit, see docs/many.md). One that diverges
    is stopped alone, with its reason in `FitResult.error`. What does not fit in at once waits for a free place.

    Args:
        model: base and adapters; those not named are not touched.
        train_data: a file, folder or hub id, or rows as dicts (a list, a ``datasets.Dataset``). For several adapters a
            dict: name -> the same, or a `Job` that says more. Adapters that the model does not have are made.
        eval_data: the same for held-out data. None: split off from the training data, unless ``evaluate`` brings its
            own. False: none, the last step wins. For several adapters one for all, or a dict by name.
        adapter: which adapter; may be left out where there is only one.
        tokenizer: default: that of the base model's folder.
        task: default: read from the columns.
        data: column names, task, length; see `DataConfig`.
        prepared: data already tokenised, in place of ``train_data``.
        output_dir: the run's folder; of several adapters each has a folder of its name in it, like a run of its own.
            None: nothing is written and the best parameters are kept in memory.
        resume: go on from the newest checkpoints in ``output_dir``, exactly.
        overwrite: replace the run that ``output_dir`` holds.
        evaluate: ``(model, adapter) -> metrics`` in place of the task's own metrics on the held-out data.
        config: training settings, or give them as keywords (``learning_rate=1e-3, epochs=5``).
        at_once: how many adapters train at the same time; default: found by a short measurement.
        compile: compute element-wise parts of decoders by torch's compiler (see docs/training.md, as for ``liger``).
        liger: the same by Liger's kernels; None: where liger-kernel is installed and the model on CUDA.
        progress: show the bar; default: where standard error is a terminal.

    Returns:
        a `FitResult`, or one by name where ``train_data`` is a dict.

    Raises:
        ConfigError, DataError, ModelError: before anything is trained.
        TrainingError: the loss is no longer finite (of the only adapter); checkpoints so far are kept.
        Interrupted: Ctrl-C or SIGTERM; checkpoints have been saved and the message says how to go on.
        SaveError: a checkpoint could not be written; those before are kept.
    """
    check_arguments(model=model, task=task, config=config, data=data, tokenizer=tokenizer)
    if config is not None and settings:
        raise ConfigError("give either a config or keyword settings, not both")
    common = config.model_copy() if config is not None else TrainingConfig.make(settings, "training")
    if resume and output_dir is None:
        raise ConfigError("resume needs output_dir: the folder of the run to go on with")
    if at_once is not None and at_once < 1:
        raise ConfigError(f"at_once is {at_once}; it must be at least 1")
    several = isinstance(train_data, Mapping)
    if isinstance(train_data, Mapping):
        if adapter is not None or prepared is not None:
            raise ConfigError("adapter and prepared are for one adapter; a dict of data names its own (see Job)")
        jobs = jobs_of(train_data, eval_data, task)
    else:
        name = adapter or model._only("fit")
        model._known(name)
        jobs = {name: Job(train_data, eval_data, task=task, prepared=prepared, evaluate=evaluate)}

    # Everything is read and checked before the first adapter trains.
    processes = Processes()
    waiting: deque[Participant] = deque()
    with _as_before(model):
        for name, job in jobs.items():
            with named_errors(name if several else None):
                place = None if output_dir is None else Path(output_dir) / name if several else Path(output_dir)
                make = RunFolder.of_a_set if several else RunFolder
                run = None if place is None else make(place, resume=resume, overwrite=overwrite)
                s = job.settings(name, common)
                if s.learning_rate is None:
                    s.learning_rate = default_learning_rate(getattr(model.base, "config", None))
                evaluation = job.evaluate or evaluate
                if job.prepared is None:
                    held = False if evaluation is not None and job.eval_data is None else job.eval_data
                    columns = job.data_settings(name, data or DataConfig())
                    rows = read_rows(job.data if job.data is not None else [], held, columns, s.seed, job.task)
                    job.prepared = prepare(model, rows, tokenizer, columns.max_length)
                _place(model, name, job, s.seed)
                waiting.append(Participant(model, name, job.prepared, s, processes, run, evaluation))
        processes.wait()  # every process has looked before the first one writes
        model.to(processes.device)
        passes = Passes(model, choose(processes.device, compile, liger))
        for participant in waiting:
            participant.prepare(resume, compile)
            why = passes.why_padded(participant.trainee, participant.prepared)
            participant.packed = why is None
            if why and participant.settings.packing is None and participant.prepared.task.next_token:
                participant.notes.append(f"Rows are padded, which is slower: {why}.")
    torch.manual_seed(common.seed + processes.rank)  # for what a base may draw beside dropout

    total, results = len(waiting), dict[str, FitResult]()
    active: list[Participant] = []
    mixer, places = Mixer(passes), 1 if total == 1 else at_once
    bar: Progress = progress_for([p.name for p in waiting], progress if processes.main else False)
    was_training, checkpointing = model.training, any(p.settings.gradient_checkpointing for p in waiting)
    model.train()
    try:
        if checkpointing:
            _checkpointing(model, True)
        for participant in waiting:  # nobody has complained
            participant.open(resume)
        processes.wait()
        with StopRequest(enabled=output_dir is not None) as stop:
            while waiting or active:
                # Join: fill the free places.
                while waiting and (places is None or len(active) < places):
                    participant = waiting.popleft()
                    participant.say = bar.teller(participant.name)
                    active.append(participant)
                    participant.join(resume, alone=total == 1)
                    bar.join(participant)
                    if total > 1 and mixer.most_tokens is None and not participant.trainee.finished:
                        places = _fill(mixer, participant, total, at_once, processes, bar)
                # One batch of each, in as few passes as pays.
                training = [p for p in active if not p.trainee.finished]
                mixer.run(
                    [share for p in training if (share := mixer.passes.next_share(p.trainee, p.prepared, p.packed))]
                )
                # Each whose batches are complete takes its step.
                for participant in training:
                    try:
                        if participant.end_round():
                            bar.step(participant)
                    except (ConfigError, TrainingError) as error:
                        if not several:
                            raise
                        participant.error = str(error)
                # Leave: done, out of patience, or diverged.
                for participant in [p for p in active if p.error or p.trainee.finished]:
                    active.remove(participant)
                    results[participant.name] = participant.finish()
                    bar.leave(participant)
                    participant.close()
                # One adapter alone may go on with torch's global stream, which is that of a step's beginning.
                between = len(active) != 1 or active[0].trainee.round == 0
                if processes.any(stop.asked) and between and (active or waiting):
                    for participant in active:
                        participant.checkpoint()
                    assert output_dir is not None, "without a folder signals are not caught"
                    raise Interrupted(stopped_at(active, Path(output_dir)))
    finally:
        bar.close()
        for participant in active:
            participant.close()
        model.train(was_training)
        if checkpointing:
            _checkpointing(model, False)
    model.eval()
    if not several:
        return results[name]
    for result in results.values():
        result.notes += [mixer.note] if mixer.note else []
    return {name: results[name] for name in jobs}


@contextmanager
def _as_before(model: LoRA) -> Iterator[None]:
    """Take adapters made in the block off again where it fails."""
    before = set(model.adapters)
    try:
        yield
    except BaseException:
        for name in [name for name in model.adapters if name not in before]:
            model.remove_adapter(name)
        raise


def _place(model: LoRA, name: str, job: Job, seed: int) -> None:
    """Make the adapter of ``job`` where the model does not have it, with a head for the labels of its data.

    Raises:
        ConfigError: the model has an adapter of that name with other settings, or a head that is too narrow.
    """
    assert job.prepared is not None, "its data have been read"
    labels = job.prepared.task.model_options().get("num_labels")
    if name not in model.adapters:
        model.add_adapter(name, job.adapter_settings(name), seed=seed)
        draw_new(model.base, model.owned(name), seed, labels)
    elif job.adapter is not None and _differs(model, name, job.adapter_settings(name)):
        raise ConfigError(
            f"adapters.{name}: the model already has an adapter of that name with other settings; remove it first "
            f"(model.remove_adapter({name!r})), or leave adapter= out to train it on"
        )
    outputs = [
        layer.out_features for m in model.owned(name).values() for layer in m.modules() if isinstance(layer, nn.Linear)
    ]
    has_head = bool(outputs) or bool(task_heads(model.base))  # what has none is found out with the first row
    width = max([getattr(model.base.config, "num_labels", 0), *outputs]) if hasattr(model.base, "config") else None
    if has_head and labels is not None and width is not None and width < labels:
        raise ConfigError(
            f"{name}: its data have {labels} labels and its head {width} outputs; load the base with "
            f"num_labels={labels}"
        )


def _differs(model: LoRA, name: str, asked: AdapterConfig) -> bool:
    """Whether adapter ``name`` is another than one made as ``asked`` would be, small layers' ranks included."""
    asked = asked.model_copy(deep=True)  # the caller's own
    find_targets(model.base, asked, list(model.owned(name)))
    return asked != model.adapters[name]


def _fill(
    mixer: Mixer, first: Participant, total: int, at_once: int | None, processes: Processes, bar: Progress
) -> int:
    """How many adapters train at once: ``at_once``, else as many as keep a pass full by a measurement.

    The mixer learns how large a pass may be: for memory, and where it was measured for speed.
    """
    found = (0, 0, "")
    if processes.main:  # which has the first batch of every step
        share = mixer.passes.next_share(first.trainee, first.prepared, first.packed)
        assert share is not None, "an unfinished adapter has a batch"
        if at_once is not None:
            found = (most_in_memory(mixer.passes, share), at_once, "")
        else:
            knee = find_knee(mixer.passes, share)
            places = min(total, max(1, -(-knee.tokens // share.tokens)))
            found = (knee.tokens, places, knee.describe(places))
    mixer.most_tokens, places, said = processes.agree(found)
    if said:
        bar.say(said)
    return places


def _checkpointing(model: LoRA, on: bool) -> None:
    """Switch gradient checkpointing; raises ConfigError where the base model has none."""
    kind = "activation" if hasattr(model.base, "activation_checkpointing_disable") else "gradient"
    if not hasattr(model.base, f"{kind}_checkpointing_enable"):
        raise ConfigError(f"training.gradient_checkpointing: {type(model.base).__name__} does not support it")
    getattr(model, f"{kind}_checkpointing_{'enable' if on else 'disable'}")()

"""``fit``: training of one adapter or several over one base, from top to bottom."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch

from lora.config import DataConfig, RunConfig, TrainingConfig
from lora.errors import ConfigError, Interrupted, TrainingError
from lora.tasks import Task
from lora.tasks.inputs import check_arguments
from lora.training.begin import Entrance, as_before
from lora.training.feed import Feed, Given, OnCall
from lora.training.interrupt import StopRequest, stopped_at
from lora.training.job import Evaluate, Job, jobs_of
from lora.training.memory import Memory, plan, recomputing, training_mode
from lora.training.mixer import Mixer, find_knee
from lora.training.participant import FitResult, Participant
from lora.training.prepare import Data, Prepared
from lora.training.processes import Processes
from lora.training.progress import Progress, progress_for

if TYPE_CHECKING:
    from lora.model.lora import LoRA

__all__ = ["FitResult", "Job", "fit"]


@overload
def fit(
    model: LoRA, train_data: Mapping[str, Data | Job] | Feed, eval_data: Any = None, **options: Any
) -> dict[str, FitResult]: ...
@overload
def fit(model: LoRA, train_data: Data, eval_data: Data | bool | None = None, **options: Any) -> FitResult: ...
def fit(
    model: LoRA,
    train_data: Data | Mapping[str, Data | Job] | Feed,
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
    memory_gib: float | None = None,
    compile: bool = False,
    liger: bool = False,
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
            dict: name -> the same, or a `Job` that says more; or a `lora.training.feed.Feed`, which makes jobs while
            others train. Adapters that the model does not have are made.
        eval_data: the same for held-out data. None: split off from the training data, unless ``evaluate`` brings its
            own. False: none, the last step wins. For several adapters one for all, or a dict by name.
        adapter: which adapter; may be left out where there is only one.
        tokenizer: default: that of the base model's folder.
        task: default: read from the columns, and from what the base is.
        data: column names, task, length; see `DataConfig`.
        prepared: data already tokenised, in place of ``train_data``.
        output_dir: the run's folder; of several adapters each has a folder of its name in it, like a run of its own.
            None: nothing is written and the best parameters are kept in memory.
        resume: go on from the newest checkpoints in ``output_dir``, exactly.
        overwrite: replace the run that ``output_dir`` holds.
        evaluate: ``(model, adapter) -> metrics`` in place of the task's own metrics on the held-out data.
        config: training settings, or give them as keywords (``learning_rate=1e-3, epochs=5``).
        at_once: how many adapters train at the same time; default: found by a short measurement.
        memory_gib: GiB that training may use on the device beside the weights, in each process; default: 70 % of what
            is free when it begins. It decides on `TrainingConfig.gradient_checkpointing` where that is left open, and
            bounds how many adapters share a pass or train at once. No result depends on it.
        compile: compute element-wise parts of decoders by torch's compiler (see docs/training.md, as for ``liger``).
        liger: the same by Liger's kernels, on CUDA.
        progress: show the bar, or nothing; default: the bar where standard error is a terminal, else a line now and
            then.

    Returns:
        a `FitResult`, or one by name where ``train_data`` is a dict or a feed.

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
    if at_once is not None and (type(at_once) is not int or at_once < 1):
        raise ConfigError(f"at_once is {at_once!r}; it must be a whole number of at least 1")
    memory_gib = RunConfig.make({"memory_gib": memory_gib}).memory_gib
    several, feed = isinstance(train_data, (Mapping, Feed)), None
    jobs: dict[str, Job] = {}
    if isinstance(train_data, Feed):
        feed = train_data
        if any(given is not None for given in (adapter, prepared, eval_data)):
            raise ConfigError("adapter, prepared and eval_data are for data; a feed's jobs bring their own (see Job)")
    elif isinstance(train_data, Mapping):
        if adapter is not None or prepared is not None:
            raise ConfigError("adapter and prepared are for one adapter; a dict of data names its own (see Job)")
        jobs = jobs_of(train_data, eval_data, task)
    else:
        name = adapter or model._only("fit")
        model._known(name)
        jobs = {name: Job(train_data, eval_data, task=task, prepared=prepared, evaluate=evaluate)}

    # Everything is read and checked before the first adapter trains.
    processes = Processes()
    if feed is not None and processes.count > 1:
        raise ConfigError("a feed decides in a single process; start it without a launcher")
    entrance = Entrance(
        model, processes, several=several, common=common, data=data or DataConfig(), tokenizer=tokenizer,
        evaluate=evaluate, output_dir=output_dir, resume=resume, overwrite=overwrite, compile=compile, liger=liger,
    )  # fmt: skip
    with as_before(model):
        if feed is None:
            participants, passes = entrance.enter(jobs)
        else:  # where the run begins is seen as each one comes
            participants, passes = replace(entrance, output_dir=None, resume=False).enter(feed.largest())
        total = len(participants) if feed is None else feed.at_most
        with training_mode(model):
            planned = plan(passes, participants, processes, memory_gib, at_once, total)
        while feed is not None and participants:  # measured, and not to be kept
            model.remove_adapter(participants.pop().name)
    torch.manual_seed(common.seed + processes.rank)  # for what a base may draw beside dropout

    results, active = dict[str, FitResult](), list[Participant]()
    mixer, places = Mixer(passes), 1 if total == 1 else at_once
    with training_mode(model), recomputing(model, planned.recompute), ExitStack() as at_the_end:
        bar: Progress = progress_for([p.name for p in participants], progress if processes.main else False, total > 1)
        at_the_end.callback(_close, active)
        at_the_end.callback(bar.close)
        line = Given(participants, planned, resume) if feed is None else OnCall(feed, entrance, passes, planned)
        if planned.note:
            bar.say(planned.note)
        processes.wait()
        with StopRequest(enabled=output_dir is not None) as stop:
            while True:
                # Join: fill the free places.
                while (places is None or len(active) < places) and (joining := line.next()) is not None:
                    participant = joining
                    participant.say = bar.teller(participant.name)
                    active.append(participant)
                    participant.join(resume, alone=total == 1)
                    bar.join(participant)
                    if total > 1 and mixer.most_tokens is None and not participant.trainee.finished:
                        assert planned.memory is not None, "measured for several"
                        places = _fill(mixer, planned.memory, participant, line.places, at_once, processes, bar)
                if not active:
                    break
                # One batch of each, in as few passes as pays. Each whose batches are complete takes its step.
                training = {p.name: p for p in active if not p.trainee.finished}
                shares = [mixer.passes.next_share(p.trainee, p.prepared, p.packed) for p in training.values()]
                for done in mixer.run([share for share in shares if share]):
                    if processes.count == 1:  # at once: no gradient waits for the passes of others
                        for share in done:
                            _end_round(training.pop(share.trainee.name), bar, several)
                for participant in training.values():  # all processes in this order, whatever passes each has had
                    _end_round(participant, bar, several)
                # Leave: done, out of patience, diverged or dismissed.
                for participant in [p for p in active if p.leaves]:
                    active.remove(participant)
                    results[participant.name] = participant.finish()
                    bar.leave(participant)
                    participant.close()
                    line.left(results[participant.name])
                # One adapter alone may go on with torch's global stream, which is that of a step's beginning.
                between = len(active) != 1 or active[0].trainee.round == 0
                if processes.any(stop.asked) and between and (active or line.waiting):
                    for participant in active:
                        participant.checkpoint()
                    assert output_dir is not None, "without a folder signals are not caught"
                    raise Interrupted(stopped_at(active, Path(output_dir)))
    model.eval()
    if not several:
        return results[name]
    for result in results.values():
        result.notes += [mixer.note] if mixer.note else []
    return {name: results[name] for name in (jobs if feed is None else results)}


def _close(active: list[Participant]) -> None:
    for participant in active:
        participant.close()


def _end_round(participant: Participant, bar: Progress, several: bool) -> None:
    """Let ``participant`` take its step where its batches are complete; of several one that cannot go on is noted."""
    try:
        if participant.end_round():
            bar.step(participant)
    except (ConfigError, TrainingError) as error:
        if not several:
            raise
        participant.error = str(error)


def _fill(
    mixer: Mixer, memory: Memory, first: Participant, most: int, at_once: int | None, processes: Processes,
    bar: Progress,
) -> int:  # fmt: skip
    """How many adapters train at once: ``at_once``, else as many as keep a pass full by a measurement, and fit.

    The mixer learns how large a pass may be: for memory, and where it was measured for speed. ``most``: all there are.
    """
    found = (0, 0, "")
    if processes.main:  # which has the first batch of every step
        share = mixer.passes.next_share(first.trainee, first.prepared, first.packed)
        assert share is not None, "an unfinished adapter has a batch"
        if at_once is not None:
            found = (memory.most_tokens(min(at_once, most)), at_once, "")
        else:
            knee = find_knee(mixer.passes, share, memory.most_tokens(1))
            # The first batch is the largest of its data; most leave room for more beside them.
            data, batch_size = first.trainee.data, first.settings.batch_size
            usual = first.trainee.times * sum(data.lengths) * batch_size // len(data)
            places = min(most, max(1, -(-knee.tokens // max(1, usual))), memory.most_adapters(usual))
            tokens = min(knee.tokens, memory.most_tokens(places))
            found = (tokens, places, knee.describe(places, tokens))
    mixer.most_tokens, places, said = processes.agree(found)
    if said:
        bar.say(said)
    return places

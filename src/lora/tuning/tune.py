"""``tune``: good settings for one's own data; every trial an adapter on one base, many of them in training at once."""

from __future__ import annotations

import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.importance import FanovaImportanceEvaluator, get_param_importances
from optuna.trial import FrozenTrial, TrialState

from lora.comparison.candidates import largest_rank
from lora.comparison.protocol import load
from lora.config import RunConfig, TrainingConfig
from lora.config.tuning import TuningConfig
from lora.errors import ConfigError, Interrupted, TrainingError
from lora.io.atomic import atomic_folder
from lora.model.lora import LoRA
from lora.plural import number_of
from lora.statistics.compare import WORSE
from lora.training.loop import fit
from lora.training.prepare import Prepared
from lora.training.processes import Processes
from lora.training.schedule import default_learning_rate
from lora.tuning.begin import alone_in, as_probe, clear, own_folder, rows_of, settings_of
from lora.tuning.final import BEST, DEFAULT, Judged, forget_checkpoints, judge
from lora.tuning.objectives import Objective, objectives
from lora.tuning.result import SETTINGS, TuneResult, save_settings, write
from lora.tuning.search import TRIALS, Search, name_of
from lora.tuning.space import Space
from lora.tuning.study import Ledger

Say = Callable[[str], None]
LEARNED_FROM = 3  # a sampler that learns must see trials end before it proposes most of the others


def tune(
    config: RunConfig | str | Path | None = None, tuning: TuningConfig | None = None, *, resume: bool = False,
    overwrite: bool = False, say: Say | None = None, progress: bool | None = None, **settings: Any,
) -> TuneResult:  # fmt: skip
    """Search settings of adapter and training.

    >>> found = lora.tune(RunConfig(model="BASE", data="rows.jsonl", output="runs/tuned"), trials=16)
    >>> print(found.verdict, found.folder)

    Trials are compared on validation rows. The best one's settings are then run with fresh seeds beside the
    configuration's own, and both are measured on test rows that the search has not seen. See docs/tuning.md.

    Args:
        config: as for `lora train`; what is not searched holds for all trials. With ``resume`` the search's folder.
        tuning: what is searched and how, or give it as keywords (``space=["rank"], trials=8``); default: the section
            ``tune`` of ``config``.
        resume: go on with the search in that folder. Trials that are done stay, those cut off are taken up again.
        overwrite: replace the search that ``output`` holds.
        say: called with each thing a user should know, a line at a time.
        progress: as for `fit`.

    Raises:
        ConfigError, DataError, ModelError, TargetError: before anything is trained.
        TrainingError: no trial came to its end.
        Interrupted: Ctrl-C or SIGTERM; the message says how to go on.
    """
    say = say or (lambda line: None)
    config, tuning = settings_of(config, tuning, settings, resume)
    if Processes().count > 1:
        raise ConfigError("a search runs in a single process; for several let them share one study (tune.storage)")
    folder = own_folder(config, resume, overwrite)
    with alone_in(folder):
        return _tune(config, tuning, folder, resume, overwrite, say, progress)


def _tune(
    config: RunConfig, tuning: TuningConfig, folder: Path, resume: bool, overwrite: bool, say: Say,
    progress: bool | None,
) -> TuneResult:  # fmt: skip
    begun = time.perf_counter()
    given, asked = config.model_copy(deep=True), tuning
    rows, protocol = rows_of(config, tuning)
    model, prepared = load(config, rows)
    rate = config.training.learning_rate or default_learning_rate(model.base.config, config.adapter.full)
    config.training.learning_rate = rate
    wanted = config.model_copy(deep=True)  # the configuration that trials are measured against
    if tuning.quick:
        tuning = as_probe(config, tuning, rate, prepared.train.rows)
    goals = objectives(tuning.objectives, config, prepared.task)
    space = Space.of(config, tuning.space, rate, _most(model, config))
    for its in space.searched:
        if its.name == "label_smoothing":  # a task that cannot do it says so now
            prepared.task.check_smoothing(max(its.domain.values()))
    _try_on(model, space)
    protocol += _told(tuning, goals, space)
    for line in (*protocol, *prepared.notes):
        say(line)
    if overwrite and not resume:  # nobody has complained
        clear(folder)
    save_settings(folder, given, asked)
    try:
        ledger = Ledger(
            folder, tuning, space, [its.direction for its in goals], [its.key for its in goals], config.training.seed,
            {"data": prepared.digest, "task": prepared.task.name},
        )  # fmt: skip
    except ConfigError:
        if not resume:  # what was refused must not be what the next call finds
            (folder / SETTINGS).unlink(missing_ok=True)
        raise
    try:
        best, front = _searched(ledger, model, prepared, config, goals, folder, say, progress)
        trials, number = ledger.trials(), best.number
        adapter, training = space.settings(_values(space, best))
        judged = None
        if tuning.seeds and not tuning.quick:
            judged = _judged(model, prepared, config, space, best, folder, tuning.seeds, say, progress)
        importance = _importance(ledger, goals, config.training.seed)
    except Interrupted as error:
        raise Interrupted(f"{str(error).partition('. ')[0]}. {how_to_go_on(folder)}") from None
    except KeyboardInterrupt:
        raise Interrupted(f"what is trained is kept. {how_to_go_on(folder)}") from None
    finally:
        ledger.close()
    if judged is not None and judged.word == WORSE:
        adapter, training = space.settings({})
    if tuning.quick:  # the rate alone is what was asked
        adapter = wanted.adapter
        training = wanted.training.model_copy(update={"learning_rate": training.learning_rate})
        best_folder = None
    else:
        best_folder = _ready(folder, judged, goals[0], number)
    result = TuneResult(
        folder, config, tuning, space, goals, trials, front, best, adapter, training, best_folder, judged, importance,
        protocol, list(prepared.notes),
        {"train": prepared.train.rows, "validation": _count(prepared.held), "test": _count(prepared.test)},
        prepared.task.name, round(time.perf_counter() - begun, 1), space.default(),
    )  # fmt: skip
    write(result)
    forget_checkpoints(folder)
    return result


def _searched(
    ledger: Ledger, model: LoRA, prepared: Prepared, config: RunConfig, goals: list[Objective], folder: Path,
    say: Say, progress: bool | None,
) -> tuple[FrozenTrial, list[int]]:  # fmt: skip
    """Run the search to its end: the best trial, and those that no other beats."""
    search = Search(model, prepared, config, ledger, goals, folder, say)
    left = sum(not its.state.is_finished() for its in ledger.trials())
    learns = ledger.tuning.sampler in ("tpe", "cmaes")
    search.places = max(2, -(-left // LEARNED_FROM)) if learns and ledger.tuning.trials else max(1, left or 10**6)
    if left or ledger.tuning.trials is None:
        fit(
            model, search, output_dir=folder / TRIALS, resume=True, at_once=config.at_once,
            memory_gib=config.memory_gib, compile=config.compile, liger=config.liger, progress=progress,
            config=TrainingConfig(seed=config.training.seed),
        )  # fmt: skip
    front = ledger.front()
    trials = {its.number: its for its in ledger.trials()}
    if not front:
        why = [f"trial {its.number}: {its.user_attrs['error']}" for its in trials.values() if "error" in its.user_attrs]
        raise TrainingError("no trial came to its end" + "".join(f"\n{line}" for line in why[:5]))
    sign = 1 if goals[0].greater else -1
    best = max(front, key=lambda number: (sign * trials[number].values[0], -number))
    return trials[best], front


def _judged(
    model: LoRA, prepared: Prepared, config: RunConfig, space: Space, best: FrozenTrial, folder: Path, seeds: int,
    say: Say, progress: bool | None,
) -> Judged:  # fmt: skip
    chosen = {BEST: space.settings(_values(space, best)), DEFAULT: space.settings({})}
    if chosen[BEST] == chosen[DEFAULT]:
        del chosen[DEFAULT]
    say(f"{number_of(seeds, 'fresh run')} of the winner{' and of the default' if DEFAULT in chosen else ''}.")
    metric = config.training.best_metric
    assert metric, "the first objective that is a metric"
    return judge(model, prepared, config, folder, chosen, seeds, metric, progress)


def _ready(folder: Path, judged: Judged | None, goal: Objective, number: int) -> Path | None:
    """Copy the adapter that is recommended to ``best/adapter``: of fresh runs the one best on the validation rows."""
    if judged is None:
        source: Path | None = folder / TRIALS / name_of(number) / "adapter"
    else:
        name = DEFAULT if judged.word == WORSE else BEST
        run = judged.sides[name].best_run(goal.greater)
        source = None if run is None or run.output is None else run.output / "adapter"
    if source is None or not source.is_dir():
        return None  # of a shared study another worker may have it
    place = folder / BEST / "adapter"
    with atomic_folder(place) as stage:
        shutil.copytree(source, stage, dirs_exist_ok=True)
    return place


def _values(space: Space, trial: FrozenTrial) -> dict[str, Any]:
    own = trial.user_attrs["settings"]
    return {its.name: own[its.key] for its in space.searched if its.key in own}


def _importance(ledger: Ledger, goals: list[Objective], seed: int) -> dict[str, float]:
    """Of the first objective; nothing where trials are too few or too much alike."""
    done = [its for its in ledger.trials() if its.state == TrialState.COMPLETE]
    if len(done) < 4 or len({its.values[0] for its in done}) < 2:
        return {}
    target = None if len(goals) == 1 else (lambda trial: trial.values[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = get_param_importances(
                ledger.study, evaluator=FanovaImportanceEvaluator(seed=seed % 2**32), target=target
            )
        except (ValueError, RuntimeError):  # no setting that all of them have
            return {}
    return {key: float(value) for key, value in found.items()}


def _most(model: LoRA, config: RunConfig) -> int:
    """The largest rank that the configuration's layers take."""
    targets = config.adapter.targets
    return 10**6 if targets in ("none", []) else largest_rank(model, config, targets)


def _try_on(model: LoRA, space: Space) -> None:
    """Make the largest adapters, and one for each choice of targets, and take them off again.

    Raises:
        ConfigError: they do not fit the model; now, and not in the middle of the search.
    """
    each = [space.settings({its.name: value})[0] for its in space.searched if its.name == "targets"
            for value in its.domain.values()]  # fmt: skip
    for adapter in [*(adapter for adapter, _ in space.largest()), *each]:
        try:
            model.add_adapter("trial", adapter, seed=0)
        except ConfigError as error:
            raise ConfigError(f"tune.space: {error}") from None
        finally:
            if "trial" in model.adapters:
                model.remove_adapter("trial")


def _told(tuning: TuningConfig, goals: list[Objective], space: Space) -> list[str]:
    """What is searched and how, in sentences."""
    budget = [number_of(tuning.trials, "trial")] if tuning.trials else []
    if tuning.sampler == "grid" and not tuning.trials:
        budget.append(f"all {sum(1 for _ in space.grid()):,} points of the grid")
    budget += [f"{tuning.minutes:g} minutes"] if tuning.minutes else []
    budget += [f"{tuning.tokens:,} tokens"] if tuning.tokens else []
    names = ", ".join(its.name for its in space.searched)
    aims = " and ".join(f"{'more' if its.greater else 'less'} {its.key}" for its in goals)
    said = [f"Searched: {names}; for {aims}; {' or '.join(budget)}, by {tuning.sampler}."]
    if tuning.sampler == "cmaes" and any(its.domain.choices is not None for its in space.searched):
        said.append("cmaes moves along ranges; settings with choices are drawn at random.")
    return said


def _count(encoded: Any) -> int:
    return 0 if encoded is None else encoded.rows


def how_to_go_on(folder: Path) -> str:
    return f"Go on with: lora tune --resume {folder}"

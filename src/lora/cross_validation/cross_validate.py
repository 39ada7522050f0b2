"""``cross_validate``: folds, repeats, seeds, shares of the data and ablations as adapters on one base, all at once."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lora.comparison.protocol import load, own_folder
from lora.config import CrossValidationConfig, RunConfig
from lora.cross_validation.doubts import label_errors
from lora.cross_validation.figures import Validated, put_to_test, validated
from lora.cross_validation.material import Material, divide, inner_share
from lora.cross_validation.result import (
    CHOICES,
    FILES,
    SETTINGS,
    CrossValidationResult,
    load_settings,
    save_settings,
    write,
)
from lora.cross_validation.runs import Run, runs_of, setups
from lora.cross_validation.training import RUNS, Bench, Say, how_to_go_on
from lora.data.folds import Fold
from lora.data.rows import Row
from lora.errors import ConfigError, Interrupted, TrainingError
from lora.io.atomic import write_text
from lora.model.base import load_base_config
from lora.model.heads import task_heads
from lora.model.lora import LoRA
from lora.model.targets import find_targets
from lora.plural import number_of
from lora.tasks import Task
from lora.training.prepare import Prepared, Rows, read_rows
from lora.training.processes import Processes


@dataclass(frozen=True)
class FoldRows:
    """What the settings of one fold may be chosen from: its training rows and nothing else.

    Attributes:
        name: of the fold.
        rows: its training rows.
        prepared: the same, tokenised; there are no held-out rows in it.
        model: the base that everything is trained on; adapters made on it must be taken off again.
        config: the settings that the fold has if nothing is chosen.
        folder: a place for files of the choice.
    """

    name: str
    rows: list[Row]
    prepared: Prepared
    model: LoRA
    config: RunConfig
    folder: Path


Choose = Callable[[FoldRows], Mapping[str, Any]]


def cross_validate(
    config: RunConfig | str | Path | None = None, asked: CrossValidationConfig | None = None, *,
    choose: Choose | None = None, resume: bool = False, overwrite: bool = False, say: Say | None = None,
    progress: bool | None = None, **settings: Any,
) -> CrossValidationResult:  # fmt: skip
    """Measure a configuration by cross-validation: each row is answered by models that were not trained on it.

    >>> found = lora.cross_validate(RunConfig(model="BASE", data="rows.jsonl", output="runs/cv"), folds=5, seeds=2)
    >>> print(found.configuration.pooled["accuracy"], found.configuration.means["accuracy"])

    All runs (folds × repeats × seeds, shares of the data, ablations) are adapters on one base, trained at once by
    `fit`; each comes out as alone. See docs/cross-validation.md.

    Args:
        config: model, data, output, and the settings to be measured. With ``resume`` the folder to go on with.
        asked: how the rows are divided and what else is trained, or give it as keywords (``folds=10``).
        choose: nested: called with the training rows of each fold, gives settings for it, as in
            ``{"training.learning_rate": 1e-3}``. What it chooses is kept, and not chosen again by ``resume``.
        resume: go on in that folder: what is trained already is not trained again.
        overwrite: replace the cross-validation that ``output`` holds.
        say: called with each thing a user should know, a line at a time.
        progress: as for `fit`.

    Raises:
        ConfigError, DataError, ModelError, TargetError: before anything is trained.
        TrainingError: a run of the configuration as it stands was stopped (its loss is not finite).
        Interrupted: Ctrl-C or SIGTERM; the message says how to go on.
    """
    say = say or (lambda line: None)
    config, asked = _settings(config, asked, settings, resume)
    if Processes().count > 1:
        raise ConfigError("a cross-validation runs in a single process; start it without a launcher")
    if choose is not None and any(share < 1 for share in asked.shares):
        raise ConfigError(
            "shares: settings chosen from all training rows would flatter the smaller shares; leave it out"
        )
    inner = inner_share(config)
    everything, notes = setups(config, asked)
    folder = own_folder(
        config, resume, overwrite, settings=SETTINGS, files=(*FILES, RUNS), what="cross-validation"
    )  # fmt: skip
    rows, said = _read(config)
    model, prepared = load(config, rows)
    assert isinstance(rows.train, list), "not streamed"
    material = divide(rows.train, prepared, config, asked)
    key = _metric(config, asked, prepared.task)
    notes += [*said, *prepared.notes]
    protocol = [*_protocol(material, asked, inner), *material.notes]
    for line in (*protocol, *notes):
        say(line)
    bench = Bench(model, material, config, asked, folder, say, progress)
    seeds = [config.training.seed + number for number in range(asked.seeds)]
    runs = [run for setup in everything for run in runs_of(setup, material.folds, seeds)]
    _check(bench, runs)
    if overwrite and not resume:  # nobody has complained
        shutil.rmtree(folder / RUNS, ignore_errors=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    save_settings(folder, config, asked)
    try:
        bench.chosen = _chosen(bench, choose, resume)
        say(f"{number_of(len(runs), 'run')} on one base.")
        answers = bench.run(runs)
        found = [validated(material, setup, answers, key) for setup in everything]
    except KeyboardInterrupt:
        raise Interrupted(f"what is trained is kept. {how_to_go_on(folder)}") from None
    everyone: list[Validated] = [its for its, _ in found]
    base, metric = found[0]
    if base.error:
        raise TrainingError(f"the cross-validation came to nothing: {base.error}. Settings: {folder / SETTINGS}")
    if metric is None:
        raise ConfigError(
            f"metric: {key!r} is no figure of held-out rows for the task {prepared.task.name}; known: "
            + ", ".join(base.pooled)
        )
    put_to_test(everyone, metric, key, config.training.seed)
    held = {int(row) for fold in material.folds for row in fold.held}
    result = CrossValidationResult(
        folder, config, asked, key, metric, everyone, label_errors(material, everything[0], answers), protocol, notes,
        {"all": len(material.numbers), "held_out": len(held)}, prepared.task.name, bench.chosen,
    )  # fmt: skip
    write(result, material, answers)
    return result


def _settings(
    config: RunConfig | str | Path | None, asked: CrossValidationConfig | None, settings: dict[str, Any], resume: bool
) -> tuple[RunConfig, CrossValidationConfig]:
    """Both kinds of settings, checked; where one goes on, those it began with. Raises ConfigError."""
    if asked is not None and settings:
        raise ConfigError("give either a CrossValidationConfig or keyword settings, not both")
    if resume:
        if asked is not None or settings:
            raise ConfigError("resume goes on under the cross-validation's own settings; leave others out")
        place = config.output if isinstance(config, RunConfig) else config
        if not place:
            raise ConfigError("resume needs the folder of the cross-validation to go on with")
        return load_settings(Path(place).expanduser())
    if not isinstance(config, RunConfig):
        raise ConfigError("config: a RunConfig with model, data and output is needed")
    needed = {"model": config.model, "data.train": config.data.train, "output": config.output}
    problems = [f"{key}: is needed" for key, value in needed.items() if not value]
    refused = {
        "adapters": (config.adapters, "its adapters are the folds; leave the entry out"),
        "start": (config.start, "an adapter that was trained already has seen rows that are held out; leave it out"),
        "data.validation": (config.data.validation, "its validation rows are the folds; leave it out"),
        "data.replay": (config.data.replay, "is not part of a cross-validation yet; leave it out"),
    }  # fmt: skip
    problems += [f"{key}: {why}" for key, (value, why) in refused.items() if value]
    if problems:
        raise ConfigError("\n".join(problems))
    asked = asked.model_copy() if asked is not None else CrossValidationConfig.make(settings)
    return config.model_copy(deep=True), asked


def _read(config: RunConfig) -> tuple[Rows, list[str]]:
    """The rows to divide. Those that the source sets aside for tests stay aside."""
    assert config.model and config.data.train, "checked"
    config.data.streaming = False
    kind = load_base_config(config.model, config.trust_remote_code)
    rows = read_rows(config.data.train, False, config.data, config.training.seed, base=kind)
    said = []
    if rows.test is not None and len(rows.test):
        said.append(f"The source's {number_of(len(rows.test), 'test row')} are not used.")
    rows.test = None
    return rows, said


def _metric(config: RunConfig, asked: CrossValidationConfig, task: Task) -> str:
    key = asked.metric or config.training.best_metric or task.best_metric
    if key not in task.measures:
        setting = "metric" if asked.metric else "training.best_metric"
        raise ConfigError(
            f"{setting}: {key!r} is not measured for the task {task.name}; known: {', '.join(task.measures)}"
        )
    return key


def _protocol(material: Material, asked: CrossValidationConfig, inner: float) -> list[str]:
    """How it is done, in sentences."""
    count = len(material.numbers)
    if material.times is not None:
        how = (
            f"{count:,} rows in order of {asked.time_column}: {asked.folds} folds, each trained on rows "
            "earlier than those it answers"
        )
    else:
        repeated = f", {asked.repeats} times anew" if asked.repeats > 1 else ""
        by = "stratified" if material.strata is not None else "at random"
        how = f"{count:,} rows in {asked.folds} folds, {by}{repeated}: each is answered by models not trained on it"
    how += f"; rows of one {asked.group_column} stay on one side." if asked.group_column else "."
    if inner:
        picks = f"{inner:.0%} of each fold's training rows choose its checkpoint, and are not trained on."
    else:
        picks = "The last step of each run is taken; nothing is chosen on held-out rows."
    return [how, picks]


def _check(bench: Bench, runs: list[Run]) -> None:
    """Complain of settings and of folds with too few rows before anything is trained."""
    heads = task_heads(bench.model.base)
    for setup in {run.setup: run for run in runs}.values():
        own = bench.settings(setup)
        bench.material.task.check_smoothing(own.training.label_smoothing)
        find_targets(bench.model.base, own.adapter.model_copy(deep=True), heads)
    for run in runs:
        bench.part(run)


def _chosen(bench: Bench, choose: Choose | None, resume: bool) -> dict[str, dict[str, Any]]:
    """By fold the settings chosen for it; each choice is kept as soon as it is made. Raises ConfigError."""
    file = bench.folder / CHOICES
    known: dict[str, dict[str, Any]] = {}
    if resume and file.is_file():
        known = json.loads(file.read_text(encoding="utf-8"))
    elif choose is None:
        return {}
    else:
        write_text(file, "{}\n")  # one who goes on must know that something is to be chosen
    for fold in bench.material.folds:
        if fold.name in known:
            continue
        if choose is None:
            raise ConfigError(f"{file}: nothing is chosen for {fold.name} yet; give choose= to go on")
        bench.say(f"{fold.name}: its settings are chosen on its training rows.")
        known[fold.name] = _choice(bench, fold, choose)
        write_text(file, json.dumps(known, indent=2) + "\n")
    return known


def _choice(bench: Bench, fold: Fold, choose: Choose) -> dict[str, Any]:
    material = bench.material
    part = replace(material, inner=0.0).part(fold)  # what chooses divides the rows as it likes
    before = set(bench.model.adapters)
    everything = Prepared(**{**vars(part), "held": None, "test": None})
    place = bench.folder / "choices" / fold.name
    rows = [material.rows[int(number)] for number in material.numbers[fold.train]]
    given = FoldRows(fold.name, rows, everything, bench.model, bench.config.model_copy(deep=True), place)
    found = dict(choose(given))
    for name in set(bench.model.adapters) - before:
        bench.model.remove_adapter(name)
    if bad := [key for key in found if key.partition(".")[0] not in ("adapter", "training")]:
        raise ConfigError(f"choose: gave {', '.join(bad)}; settings of adapter and training alone can be chosen")
    return found

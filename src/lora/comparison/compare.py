"""``compare``: LoRA against full fine-tuning and the base with its head, on one's own data, under one protocol."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lora.comparison.alone import measure
from lora.comparison.candidates import BASE, FULL, candidates
from lora.comparison.result import FILES, SETTINGS, ComparisonResult, Measured, load_settings, save_settings, write
from lora.comparison.spectrum import spectra, summed_up
from lora.comparison.trials import Bench, Chosen, Say, choose_rates, how_to_go_on, size_of
from lora.comparison.verdict import Entry, default_margin, judge, put_to_test
from lora.comparison.words import recommendation
from lora.config import AdapterConfig, ComparisonConfig, RunConfig, TrainingConfig
from lora.core.routing import BASE as NONE
from lora.data.sources import Part, load_rows
from lora.data.splits import row_key
from lora.errors import ConfigError, DataError, Interrupted, TrainingError
from lora.io.atomic import write_text
from lora.io.places import folder_to_write
from lora.model.base import load_base, load_base_config, load_tokenizer
from lora.model.lora import LoRA
from lora.statistics.estimate import Estimate, estimates
from lora.statistics.rows import Rows as FigureRows
from lora.statistics.rows import pooled
from lora.tasks import Encoded
from lora.tasks.figures import Figures, figures
from lora.tasks.inference import infer
from lora.training.device import choose_dtype
from lora.training.mixture import split_off
from lora.training.prepare import Prepared, Rows, prepare, read_rows
from lora.training.processes import Processes
from lora.training.trainee import greater_is_better
from lora.workflow.run import in_full, settle, train_new_tokens


def compare(
    config: RunConfig | str | Path | None = None, asked: ComparisonConfig | None = None, *, resume: bool = False,
    overwrite: bool = False, say: Say | None = None, progress: bool | None = None, **settings: Any,
) -> ComparisonResult:  # fmt: skip
    """Compare LoRA of several ranks and targets with full fine-tuning and with the base and a trained head.

    >>> found = lora.compare(RunConfig(model="BASE", data="rows.jsonl", output="runs/compared"), ranks=[1, 4], seeds=1)
    >>> print(found.recommendation)

    All are trained by `fit`, on the same rows, for the same number of epochs. Learning rates and checkpoints are chosen
    on validation rows; test rows only measure. See docs/compare.md for the protocol.

    Args:
        config: model, data and output; settings of adapters and of training are those of all candidates. With
            ``resume`` the folder of a comparison.
        asked: what is compared and how, or give it as keywords (``ranks=[1, 4]``).
        resume: go on with the comparison in that folder: what is trained already is not trained again.
        overwrite: replace the comparison that ``output`` holds.
        say: called with each thing a user should know, a line at a time.
        progress: as for `fit`.

    Raises:
        ConfigError, DataError, ModelError, TargetError: before anything is trained.
        TrainingError: no candidate could be trained.
        Interrupted: Ctrl-C or SIGTERM; the message says how to go on.
    """
    say = say or (lambda line: None)
    config, asked = _settings(config, asked, settings, resume)
    if Processes().count > 1:
        raise ConfigError("a comparison runs in a single process; start it without a launcher")
    folder = _folder(config, resume, overwrite)
    assert config.model, "checked"
    rows, protocol = read(config, asked)
    model, prepared = _load(config, rows)
    greater = _greater(model, prepared, config)
    everyone, notes = candidates(model, config, asked)
    notes += _unused(config)
    known = _measured(model, prepared, config, [NONE])[NONE]
    metric = config.training.best_metric or prepared.task.best_metric
    if metric not in known:
        raise ConfigError(
            f"training.best_metric: {metric!r} is no figure of test rows for the task {prepared.task.name}; known: "
            + ", ".join(known)
        )
    protocol += _budget(config, asked)
    for line in (*protocol, *notes, *prepared.notes):
        say(line)
    if overwrite and not resume:  # nobody has complained
        shutil.rmtree(folder / "trials", ignore_errors=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    save_settings(folder, config, asked)
    bench = Bench(model, prepared, config, folder, say, progress)
    size = model.base_parameter_count()
    try:
        chosen = choose_rates(bench, everyone, asked.seeds, greater)
        found = [_measure(bench, its, asked.seeds, known) for its in chosen]
        del model
        bench.release()  # before others need its memory
        if asked.alone:
            _measure_alone(bench, found)
    except KeyboardInterrupt:
        raise Interrupted(f"what is trained is kept. {how_to_go_on(folder)}") from None
    return _conclude(bench, asked, found, size, protocol, [*notes, *prepared.notes])


def _settings(
    config: RunConfig | str | Path | None, asked: ComparisonConfig | None, settings: dict[str, Any], resume: bool
) -> tuple[RunConfig, ComparisonConfig]:
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
    return config.model_copy(deep=True), asked or ComparisonConfig.make(settings)


def _folder(config: RunConfig, resume: bool, overwrite: bool) -> Path:
    folder = folder_to_write(config.output or "", "output").absolute()
    ours = (folder / SETTINGS).is_file()
    if ours and not resume and not overwrite:
        raise ConfigError(
            f"output: {folder} already holds a comparison. Go on with it (--resume, resume=True), replace it "
            "(--overwrite, overwrite=True), or name another folder"
        )
    others = [name for name in (*FILES, "trials", "adapter", "checkpoints", "config.yaml") if (folder / name).exists()]
    if others and not ours:
        raise ConfigError(f"output: {folder} holds {others[0]}, which no comparison made; name another folder")
    config.output = str(folder)
    in_full(config)
    return folder


def read(config: RunConfig, asked: ComparisonConfig) -> tuple[Rows, list[str]]:
    """Training, validation and test rows, and sentences about who does what with which.

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
    inputs = [given.column for given in rows.task.inputs()]
    trained = {row_key(row, inputs) for row in rows.train}
    for name, part in (("validation", rows.held), ("test", rows.test)):
        if seen := sum(row_key(row, inputs) in trained for row in part):
            said.append(f"{seen:,} of the {name} rows have an input that is trained on too: they flatter everybody.")
    protocol = [
        f"{len(rows.train):,} rows train; {len(rows.held):,} validation rows choose learning rates and checkpoints; "
        f"{len(rows.test):,} test rows measure, and choose nothing but the candidate that is recommended.",
        *said,
    ]
    return rows, protocol


def _load(config: RunConfig, rows: Rows) -> tuple[LoRA, Prepared]:
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


def _greater(model: LoRA, prepared: Prepared, config: RunConfig) -> bool:
    """Whether more of the metric is better. Raises ConfigError where the metric is none of the task's."""
    settings, task = config.training, prepared.task
    metric = settings.best_metric or task.best_metric
    if task.measures and metric not in task.measures:
        raise ConfigError(
            f"training.best_metric: {metric!r} is not measured for the task {task.name}; known: "
            + ", ".join(task.measures)
        )
    return greater_is_better(metric, settings, task)


def _budget(config: RunConfig, asked: ComparisonConfig) -> list[str]:
    """What is the same for all, in sentences."""
    training = config.training
    length = f"{training.max_steps:,} steps" if training.max_steps else f"{training.epochs:g} epochs"
    said = [
        f"Each is trained for {length} of {training.batch_size * training.accumulation} rows a step at each rate, and at "
        f"the best of them with {asked.seeds} seed{'s' if asked.seeds > 1 else ''}; its figures are those of these runs "
        "together."
    ]
    if training.dtype != "float32" and asked.full:
        said.append(
            f"The base is {training.dtype}. What is trained is float32 in any case: of LoRA the updates, in full "
            "fine-tuning all weights, which costs time and memory."
        )
    return said


def _unused(config: RunConfig) -> list[str]:
    """Settings that were given and that a comparison makes itself."""
    default = AdapterConfig()
    named = [key for key in ("rank", "targets") if getattr(config.adapter, key) != getattr(default, key)]
    return [f"adapter.{key} is not used: that is compared (see ranks and target_sets)." for key in named]


def _measured(model: LoRA, prepared: Prepared, config: RunConfig, names: Sequence[str]) -> dict[str, Figures]:
    """Figures of the test rows of each of ``names``."""
    test = prepared.test
    assert test is not None, "there are test rows"
    outcomes = infer(
        model, prepared.task, test, list(names), pad_token_id=prepared.pad_token_id,
        batch_size=config.training.evaluation_rows * len(names), padding_side=prepared.padding_side,
    )  # fmt: skip
    return {name: figures(prepared.task, outcome, test.examples) for name, outcome in outcomes.items()}


def _measure(bench: Bench, chosen: Chosen, seeds: int, of_base: Figures) -> Measured:
    """A candidate on the test rows, and what its updates are like."""
    candidate, model = chosen.candidate, bench.model
    out = Measured(chosen)
    if candidate.kind == BASE:
        out.runs = {bench.config.training.seed + k: of_base for k in range(seeds)}
        out.parameters = out.stored = 0
        return out
    if chosen.error or not chosen.runs:
        out.error = f"stopped in training: {chosen.error}"
        return out
    # Whole models one by one: each is as large as the base.
    groups = [[run] for run in chosen.runs.items()] if candidate.kind == FULL else [list(chosen.runs.items())]
    for group in groups:
        for _, trial in group:
            model.load_adapter(bench.place(trial) / "adapter", trial.name, trainable=False)
        model.to(Processes().device)
        try:
            found = _measured(model, bench.prepared, bench.config, [trial.name for _, trial in group])
        except DataError as error:
            out.error = f"no figures: {error}"
        else:
            out.runs |= {seed: found[trial.name] for seed, trial in group}
        for seed, trial in group:
            if seed == min(chosen.runs):
                out.parameters = sum(p.numel() for p in model.adapter_parameters(trial.name).values())
                out.stored = size_of(bench.place(trial) / "adapter")
                out.layers = spectra(model, trial.name)
            model.remove_adapter(trial.name)
    ranks = sorted({1, *([] if candidate.rank is None else [candidate.rank])})
    out.spectrum = summed_up(out.layers, ranks if candidate.kind != FULL else [1, 4, 16, 64, 256])
    return out


def _measure_alone(bench: Bench, everyone: Sequence[Measured]) -> None:
    """Memory and speed of each by itself, of those that have not been measured before."""
    files, ahead = dict[str, Path](), dict[str, tuple[AdapterConfig, TrainingConfig]]()
    for its in everyone:
        runs, adapter = its.chosen.runs, its.candidate.adapter
        if adapter is None or not runs or its.error:
            continue
        trial = runs[min(runs)]
        files[its.name] = bench.place(trial) / "alone.json"
        try:
            its.alone = dict(json.loads(files[its.name].read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            ahead[its.name] = adapter, bench.settings(trial)
    if ahead:
        bench.say(f"Memory and time: some steps of {len(ahead)} candidates, each in a process of its own.")
    by_name = {its.name: its for its in everyone}
    for name, found in measure(bench.config, bench.prepared, ahead, bench.folder):
        by_name[name].alone = found
        if "error" in found:
            bench.say(f"{name}: memory and time alone could not be measured ({found['error']}).")
        else:
            write_text(files[name], json.dumps(found) + "\n")


def _conclude(
    bench: Bench, asked: ComparisonConfig, found: list[Measured], base: int, protocol: list[str], notes: list[str]
) -> ComparisonResult:
    """Statistics, verdict and words; and everything in files."""
    key, entries, pools = bench.metric, list[Entry](), dict[str, FigureRows]()
    seed, alive = bench.config.training.seed, [its for its in found if its.runs and not its.error]
    if not alive:
        raise TrainingError("no candidate could be trained:\n" + "\n".join(f"{its.name}: {its.error}" for its in found))
    for its in alive:
        its.estimates, pools[its.name] = _estimated(list(its.runs.values()), key, seed)
        entries.append(Entry(its.name, its.kind, its.rank, its.said, its.estimates[key], its.costs()))
    metric = next(iter(alive[0].runs.values()))[key][0]
    put_to_test(metric, pools, entries, seed)
    margin = asked.margin or default_margin(metric, [its.quality.value for its in entries])
    verdict = judge(entries, margin)
    ends = [its.name for its in alive if its.chosen.at_the_end]
    count = len(bench.prepared.test or ())
    words = recommendation(
        entries, verdict, count, spectra={its.name: its.spectrum for its in alive}, at_the_end=ends
    )  # fmt: skip
    result = ComparisonResult(
        bench.folder, bench.config, asked, key, metric, found, entries, verdict, words, protocol, notes, base,
        {"train": bench.prepared.train.rows, "validation": _count(bench.prepared.held), "test": count},
        bench.task.name,
    )  # fmt: skip
    write(result)
    return result


def _estimated(runs: list[Figures], key: str, seed: int) -> tuple[dict[str, Estimate], FigureRows]:
    """Every metric of all runs together with its interval, and the rows of the metric ``key``."""
    first, alike = runs[0], dict[int, list[str]]()
    for name, (_, rows) in first.items():
        alike.setdefault(id(rows), []).append(name)  # read from the same rows, they share resamples
    out, of_key = dict[str, Estimate](), first[key][1]
    for names in alike.values():
        together = pooled([run[names[0]][1] for run in runs])
        out.update(zip(names, estimates([first[name][0] for name in names], together, seed=seed), strict=True))
        if key in names:
            of_key = together
    return {name: out[name] for name in first}, of_key


def _count(encoded: Encoded | None) -> int:
    return 0 if encoded is None else encoded.rows

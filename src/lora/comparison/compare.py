"""``compare``: LoRA against full fine-tuning and the base with its head, on one's own data, under one protocol."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora.comparison.alone import measure
from lora.comparison.candidates import BASE, FULL, candidates
from lora.comparison.figures import estimated, measured, outcomes
from lora.comparison.protocol import budget, load, more_is_better, own_folder, parts, read, settings_of, unused
from lora.comparison.reference import CONSTANT, Reference, defined_of
from lora.comparison.result import FILES, ComparisonResult, Measured, save_settings, write
from lora.comparison.spectrum import spectra, summed_up
from lora.comparison.trials import Bench, Chosen, Say, choose_rates, how_to_go_on, size_of
from lora.comparison.verdict import Entry, default_margin, judge, put_to_test
from lora.comparison.words import recommendation
from lora.config import AdapterConfig, ComparisonConfig, RunConfig, TrainingConfig
from lora.core.routing import BASE as NONE
from lora.errors import ConfigError, DataError, Interrupted, TrainingError
from lora.evaluation.reference import constant_figures
from lora.io.atomic import write_text
from lora.statistics.metric import Metric
from lora.statistics.rows import Rows as FigureRows
from lora.statistics.rows import pooled
from lora.tasks import Encoded
from lora.tasks.figures import Figures, figures
from lora.training.prepare import Prepared
from lora.training.processes import Processes

MCC = "mcc"  # as figures have it


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
    config, asked = settings_of(config, asked, settings, resume)
    if Processes().count > 1:
        raise ConfigError("a comparison runs in a single process; start it without a launcher")
    folder = own_folder(config, resume, overwrite)
    assert config.model, "checked"
    rows, said, seen = read(config, asked.test)
    model, prepared = load(config, rows)
    greater = more_is_better(model, prepared, config)
    everyone, notes = candidates(model, config, asked)
    notes += unused(config)
    outcome, answers = outcomes(model, prepared, config, [NONE])[NONE], _test_rows(prepared).examples
    try:
        known = figures(prepared.task, outcome, answers)
    except DataError as error:
        raise DataError(f"test rows: {error}") from None
    constant = constant_figures(prepared.task, outcome.predictions, answers)
    metric = config.training.best_metric or prepared.task.best_metric
    if metric not in known:
        raise ConfigError(
            f"training.best_metric: {metric!r} is no figure of test rows for the task {prepared.task.name}; known: "
            + ", ".join(known)
        )
    protocol = [parts(rows), *said, *budget(config, asked)]
    spread = known[metric][0].highest - known[metric][0].lowest
    if asked.margin is not None and asked.margin >= spread:
        raise ConfigError(
            f"margin: {asked.margin:g} is as much as {metric} can differ by, so that nobody could be worse"
        )
    for line in (*protocol, *notes, *prepared.notes):
        say(line)
    if overwrite and not resume:  # nobody has complained
        shutil.rmtree(folder / "trials", ignore_errors=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
    save_settings(folder, config, asked)
    bench = Bench(model, prepared, config, folder, say, progress, seen)
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
    return _conclude(bench, asked, found, size, protocol, [*notes, *prepared.notes], constant)


def _test_rows(prepared: Prepared) -> Encoded:
    assert prepared.test is not None, "there are test rows"
    return prepared.test


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
            found = measured(model, bench.prepared, bench.config, [trial.name for _, trial in group])
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
    bench: Bench, asked: ComparisonConfig, found: list[Measured], base: int, protocol: list[str], notes: list[str],
    constant: tuple[str, Figures] | None,
) -> ComparisonResult:  # fmt: skip
    """Statistics, verdict and words; and everything in files. ``constant``: what `constant_figures` gives."""
    key, entries, pools = bench.metric, list[Entry](), dict[str, FigureRows]()
    seed, alive = bench.config.training.seed, [its for its in found if its.runs and not its.error]
    if not alive:
        raise TrainingError("no candidate could be trained:\n" + "\n".join(f"{its.name}: {its.error}" for its in found))
    for its in alive:
        its.estimates, pools[its.name] = estimated(list(its.runs.values()), key, seed)
        entries.append(Entry(its.name, its.kind, its.rank, its.said, its.estimates[key], its.costs()))
    metric = next(iter(alive[0].runs.values()))[key][0]
    reference, rows = _reference(found, constant, key, seed, asked.seeds)
    if reference is not None and reference.tested:
        pools[reference.name] = rows or pools[reference.name]
    chance = None
    if reference is not None and reference.tested and constant is not None and rows is not None:
        chance = _chance(alive, constant[1], asked.seeds)
    against = reference.name if reference is not None and reference.tested else None
    put_to_test(metric, pools, entries, seed, against, chance)
    margin = asked.margin or default_margin(metric, [its.quality.value for its in entries])
    verdict = judge(entries, margin)
    if reference is not None:
        reference.beside(entries, verdict.best)
    ends = {its.name: its.chosen.end for its in alive if its.chosen.end}
    count = len(bench.prepared.test or ())
    words = recommendation(
        entries, verdict, count, spectra={its.name: its.spectrum for its in alive}, ends=ends,
        trained_on=bench.trained_on, reference=reference,
    )  # fmt: skip
    if reference is not None and not reference.tested:
        notes = [*notes, f"{metric.name} is what no {reference.name} has, so that nobody is held against one."]
    result = ComparisonResult(
        bench.folder, bench.config, asked, key, metric, found, entries, verdict, words, protocol, notes, base,
        {"train": bench.prepared.train.rows, "validation": _count(bench.prepared.held), "test": count},
        bench.task.name, reference,
    )  # fmt: skip
    write(result)
    return result


def _reference(
    found: Sequence[Measured], constant: tuple[str, Figures] | None, key: str, seed: int, seeds: int
) -> tuple[Reference | None, FigureRows | None]:
    """The constant answer and, where the metric ``key`` is defined of it, its rows; else the base, if that is measured.

    A constant answer that has other metrics alone stands beside the candidates, and nothing is held against it.
    """
    base = next((its for its in found if its.kind == BASE), None)
    if constant is not None:
        said, its = constant
        # As often as a candidate has runs: a resample then draws the rows of both alike.
        estimates, rows = estimated([its] * seeds, key if key in its else next(iter(its)), seed)
        tested = defined_of(estimates, key)
        if tested or base is None:
            return Reference(CONSTANT, said, estimates, tested), rows if tested else None
    if base is None:
        return None, None
    return Reference(base.name, base.said, base.estimates, defined_of(base.estimates, key)), None


def _chance(alive: Sequence[Measured], constant: Figures, seeds: int) -> tuple[Metric, dict[str, FigureRows]] | None:
    """MCC with the rows of everybody, where the task has it."""
    if MCC not in constant:
        return None
    rows = {its.name: pooled([run[MCC][1] for run in its.runs.values()]) for its in alive}
    return constant[MCC][0], {**rows, CONSTANT: pooled([constant[MCC][1]] * seeds)}


def _count(encoded: Encoded | None) -> int:
    return 0 if encoded is None else encoded.rows

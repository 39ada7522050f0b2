"""Several adapters from one configuration: one base, one loop, a run's folder for each."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora.config import DataConfig, RunConfig
from lora.errors import ConfigError, DataError, Interrupted
from lora.io.places import folder_to_write
from lora.io.run import RunFolder, holds_a_set, how_to_resume
from lora.model.base import load_base, load_base_config, load_tokenizer
from lora.model.heads import draw_new
from lora.model.lora import LoRA
from lora.overrides import each_adapter, load_config
from lora.training.device import choose_dtype
from lora.workflow.loading import settle, train_new_tokens
from lora.workflow.measuring import Say, facts_of, forgotten, measure, read_probe, to_measure, verify, verify_trained
from lora.workflow.places import config_file, in_full
from lora.workflow.run import TrainResult

if TYPE_CHECKING:
    from lora.training.prepare import Rows


def train_many(
    config: RunConfig,
    *,
    resume: bool = False,
    overwrite: bool = False,
    say: Say | None = None,
    latency: bool = False,
    progress: bool | None = None,
) -> dict[str, TrainResult]:
    """Train the adapters of ``config.adapters``, each as `train` would by itself; arguments and errors as there.

    Args:
        latency: whether each one's final evaluation times single rows.

    Returns:
        a result by adapter; ``fit.error`` of one that was stopped says why.
    """
    from lora.evaluation.report import write_report
    from lora.training.job import Job, named_errors
    from lora.training.loop import fit
    from lora.training.prepare import prepare, read_rows
    from lora.training.processes import Processes

    processes = Processes()
    say = say if say and processes.main else (lambda line: None)
    configs = _checked(config, resume, overwrite)
    assert config.model, "checked"
    kind = load_base_config(config.model, config.trust_remote_code)
    rows: dict[str, Rows] = {}
    problems = []
    for name, each in configs.items():
        assert each.data.train, "checked"
        try:
            with named_errors(name):
                rows[name] = read_rows(each.data.train, each.data.validation, each.data, each.training.seed, base=kind)
            each.data.streaming = rows[name].streamed
        except DataError as error:
            problems.append(str(error))
    if problems:  # of all adapters, not of the first: they may be mended in one go
        raise DataError("\n".join(problems))
    model, tokenizer = load(config, configs, rows)
    jobs, inputs, probe = {}, {}, None
    for name, each in configs.items():
        prepared = prepare(model, rows[name], tokenizer, each.data.max_length)
        probe = read_probe(each, model, prepared)  # the same for all
        inputs[name] = to_measure(each, rows[name], prepared)
        jobs[name] = Job(prepared=prepared, training=each.training)
        for line in [*model.summary(name).splitlines(), *prepared.notes]:
            say(f"{name}: {line}" if line in prepared.notes else line)
    if config.check and not resume:
        verify(model, {name: (job.prepared, configs[name]) for name, job in jobs.items() if job.prepared}, say)
    output = Path(config.output or "")
    with ExitStack() as files:
        files.enter_context(config_file(config, output, processes))
        for name, each in configs.items():
            files.enter_context(config_file(each, output / name, processes))
        results = fit(
            model, jobs, output_dir=output, resume=resume, overwrite=overwrite, at_once=config.at_once,
            memory_gib=config.memory_gib, compile=config.compile, liger=config.liger,
            progress=progress,
        )  # fmt: skip
    finished = {name: result for name, result in results.items() if processes.main and result.error is None}
    out = {name: TrainResult(model, result, None, None, main=processes.main) for name, result in results.items()}
    try:
        forgetting = forgotten(config, configs, model, finished, probe, say)
        for name, result in finished.items():
            # The base's head, made up for the first one's labels, has nothing to say of other labels.
            fits = _labels(rows[name]) in (None, getattr(model.base.config, "num_labels", None))
            evaluation = measure(configs[name], model, inputs[name], result, latency, lambda line: None, baseline=fits)
            facts = facts_of(configs[name], model, rows[name], result)
            if config.check:
                facts["checks_after_training"] = verify_trained(model, result, forgetting[name], lambda line: None)
            path = write_report(output / name, facts, result.history, evaluation, forgetting[name])
            out[name] = TrainResult(model, result, evaluation, path)
    except KeyboardInterrupt:
        raise Interrupted(
            f"all adapters are trained and saved in {output}, but not all are measured. For that: "
            + how_to_resume(output)
        ) from None
    return out


def _checked(config: RunConfig, resume: bool, overwrite: bool) -> dict[str, RunConfig]:
    """The configuration of each adapter, paths in full; everything that is wrong with the set before work begins."""
    problems = [f"{key}: is needed" for key in ("model", "output") if not getattr(config, key)]
    if config.start:
        problems.append("start: several adapters begin anew; train one further by itself")
    configs = each_adapter(config)
    problems += [f"adapters.{name}.data.train: is needed" for name, each in configs.items() if not each.data.train]
    # One base, loaded once: what belongs to it cannot differ.
    problems += [
        f"adapters.{name}.training.dtype: is the base's, which all share; set training.dtype"
        for name, each in configs.items()
        if each.training.dtype != config.training.dtype
    ]
    if problems:
        raise ConfigError("\n".join(problems))
    output = folder_to_write(config.output or "", "output").absolute()
    if not resume:
        _check_free(output, list(configs), overwrite)
    config.output = str(output)
    in_full(config)
    for name, each in configs.items():
        each.output = str(Path(config.output) / name)
        in_full(each)
        RunFolder.of_a_set(each.output, resume=resume, overwrite=overwrite)  # complains before the work, not after
        # In full in the set's own file too: it can be gone on with from any folder. What is of all stands there once,
        # so that it can be named anew for all.
        own = config.adapters[name]
        named = {DataConfig.canonical(key) for key in own.get("data", {})} & {"train", "validation", "replay"}
        paths = each.data.model_dump(mode="json", include=named, exclude_none=True)
        rest = {key: value for key, value in own.get("data", {}).items() if DataConfig.canonical(key) not in paths}
        config.adapters[name] = {**own, "data": {**rest, **paths}}
    return configs


def _check_free(output: Path, names: list[str], overwrite: bool) -> None:
    """Raise ConfigError where ``output`` itself holds a run, or a set of others than ``names``."""
    if holds_a_set(output):
        then = load_config(output / "config.yaml").adapters
        begun = [name for name in then if (output / name / "checkpoints").is_dir()]
        if begun and not overwrite:
            raise ConfigError(
                f"output: {output} already holds a set of runs ({', '.join(begun)}). Go on with it (--resume), "
                "replace it (--overwrite), or name another folder"
            )
        gone = [name for name in begun if name not in names]
        if gone:
            raise ConfigError(f"output: {output} holds runs that would stay ({', '.join(gone)}); name another folder")
    else:
        run = RunFolder(output, overwrite=overwrite)
        if run.history() or run.checkpoints():  # even to be overwritten: its files would stay beside the set's
            raise ConfigError(f"output: {output} holds a single run; name another folder for a set of them")


def load(config: RunConfig, configs: dict[str, RunConfig], rows: dict[str, Rows]) -> tuple[LoRA, Any]:
    """Base with all adapters, and tokenizer. What is chosen for machine and model goes into the configurations."""
    from lora.training.job import named_errors

    kinds = {name: each.task.auto_class for name, each in rows.items()}
    first, *others = kinds
    for name in others:
        if kinds[name] != kinds[first]:
            raise ConfigError(
                f"adapters {first!r} and {name!r} need different models of the same base ({kinds[first]} and "
                f"{kinds[name]}: their tasks are {rows[first].task.name} and {rows[name].task.name}); train them in "
                "two runs"
            )
    assert config.model
    torch.manual_seed(config.training.seed)
    dtype = choose_dtype(config.training.dtype)
    base: Any = load_base(config.model, kinds[first], dtype, rows[first].task.model_options(), config.trust_remote_code)
    tokenizer = load_tokenizer(config.model, config.trust_remote_code)
    train_new_tokens(base, tokenizer, *configs.values())
    model = LoRA(base, name=None)
    settle(config, base, dtype)
    for name, each in configs.items():
        with named_errors(name):
            model.add_adapter(name, each.adapter, seed=each.training.seed)
        draw_new(base, model.owned(name), each.training.seed, _labels(rows[name]))
        each.adapter = model.adapters[name]  # ranks that were brought down to small layers stand in it
        config.adapters[name] = {**config.adapters[name], "adapter": each.adapter.model_dump(mode="json")}
        by_default = each.training.learning_rate is None
        settle(each, base, dtype)
        if by_default and each.adapter.full:  # its default is not that of the others
            own = config.adapters[name].get("training") or {}
            config.adapters[name]["training"] = {**own, "learning_rate": each.training.learning_rate}
    return model, tokenizer


def _labels(rows: Rows) -> int | None:
    """Outputs that the head of this task has; None for a task that brings no head."""
    return rows.task.model_options().get("num_labels")

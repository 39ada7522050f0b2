"""What a trained adapter is verified and measured by, and what its report says of the run: of one or of a set."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora.config import RESAMPLES, RunConfig
from lora.errors import ConfigError, DataError, LoraError
from lora.io.peft import read_sidecar
from lora.model.lora import LoRA
from lora.plural import number_of

if TYPE_CHECKING:
    from lora.evaluation.evaluate import Evaluation
    from lora.evaluation.forgetting_result import Forgetting
    from lora.evaluation.inputs import Inputs
    from lora.training.loop import FitResult
    from lora.training.prepare import Prepared, Rows

Say = Callable[[str], None]


def read_probe(config: RunConfig, model: LoRA, prepared: Prepared) -> list[str] | None:
    """The texts of ``config.probe``, read before training: what is wrong with them is said then. None: it is not set.

    Raises DataError.
    """
    if not config.probe:
        return None
    from lora.evaluation.forgetting import check_probe
    from lora.evaluation.probe import probe_texts

    if config.data.replayed is not None and config.data.replayed.path == config.probe:
        prepared.notes.append(
            "The probe's texts are those of data.replay: what is measured on them was learned, not kept."
        )
    texts = probe_texts(config.probe)
    try:
        check_probe(model, prepared.tokenizer, prepared.max_length, texts)
    except DataError as error:
        raise DataError(f"probe: {config.probe}: {error}") from None
    return texts


def to_measure(config: RunConfig, rows: Rows, prepared: Prepared) -> Inputs | None:
    """What the report measures: test rows, else the held-out ones; None where there are neither.

    Checked before training: raises ConfigError for ``config.slices`` and ``config.robustness`` that they cannot give.
    """
    from lora.evaluation.beside import Beside
    from lora.evaluation.inputs import Inputs

    encoded, kept = (prepared.held, rows.held) if prepared.test is None else (prepared.test, rows.test)
    beside = Beside(config.slices, config.robustness, RESAMPLES)
    if encoded is None:
        if config.slices or config.robustness:
            raise ConfigError("slices, robustness: are of test rows or held-out rows, and there are none")
        return None
    inputs = Inputs(prepared.task, encoded, prepared.pad_token_id)
    # Rows that are read in parts are held in memory only where they are asked for; else the texts of a few are looked
    # up again.
    if kept is not None and not isinstance(kept, list):
        inputs.stream = kept
    if kept is not None and (isinstance(kept, list) or config.slices or config.robustness):
        inputs.rows = list(kept)
        inputs.encode = lambda some: prepared.task.encode(some, prepared.tokenizer, prepared.max_length)
    beside.check(inputs)
    return inputs


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


def forgotten(
    config: RunConfig, configs: Mapping[str, RunConfig], model: LoRA, results: Mapping[str, FitResult],
    probe: list[str] | None, say: Say,
) -> dict[str, Forgetting | str]:  # fmt: skip
    """By name, base and adapter on the texts of the probe (None: the built-in ones); or why nothing was measured.

    The base is measured once for as many adapters as a pass holds rows. What goes wrong, such as memory that does not
    suffice, is a reason: the trained adapter and its report are not lost to it.

    Args:
        config: of the run or the set, whose probe it is.
        configs: by the names of ``results``.
    """
    from lora.evaluation.forgetting import LONGEST, measure_forgetting

    lots = dict[int, list[str]]()
    for name, result in results.items():
        lots.setdefault(min(result.data.max_length, LONGEST), []).append(name)
    out = dict[str, "Forgetting | str"]()
    for length, names in lots.items():
        rows = min(configs[name].training.evaluation_rows for name in names)
        most = max(1, rows - 1)  # the base has a row of each pass too
        for lot in (names[start : start + most] for start in range(0, len(names), most)):
            adapters = [results[name].adapter for name in lot]
            tokenizer = results[lot[0]].data.tokenizer
            try:
                found = measure_forgetting(model, adapters, tokenizer, length, probe, config.probe, rows)
            except (LoraError, RuntimeError) as error:  # torch has no narrower one for memory on all devices
                found = str(error).partition("\n")[0].rstrip(".") or type(error).__name__
                say(f"What was forgotten is not measured: {found}.")
            for name, adapter in zip(lot, adapters, strict=True):
                out[name] = found if isinstance(found, str) else found.of(adapter)
    return out


def verify_trained(model: LoRA, result: FitResult, forgetting: Forgetting | str, say: Say) -> dict[str, str]:
    """Run the checks after training, say what they found worth a look, and give all by name for the report."""
    from lora.checks.after import check_trained

    assert result.output is not None
    found = check_trained(model, result.adapter, result.output / "adapter", result.data, forgetting)
    for finding in found:
        if finding.status in ("note", "failed"):
            say(str(finding))
    return {finding.check: f"{finding.status}: {finding.said}" for finding in found}


def measure(
    config: RunConfig, model: LoRA, inputs: Inputs | None, result: FitResult, latency: bool, say: Say,
    baseline: bool = True,
) -> Evaluation | None:  # fmt: skip
    """Base beside tuned on the rows of `to_measure`; None where there are none."""
    from lora.evaluation.answers import has_answers
    from lora.evaluation.evaluate import evaluate

    prepared = result.data
    if inputs is None:
        return None
    if prepared.test and prepared.held and result.output is not None:
        keep_temperature(model, result, config.training.evaluation_rows)
    generate = config.training.generate_rows if has_answers(prepared.task, inputs.encoded) else 0
    if generate:
        say(f"Up to {generate} prompts are answered for the report (training.generate_rows: 0 leaves that out).")
    evaluation = evaluate(
        model, inputs, tokenizer=prepared.tokenizer, task=prepared.task, adapters=[result.adapter], latency=latency,
        baseline=baseline,
        batch_size=config.training.evaluation_rows, max_length=prepared.max_length,
        generate=generate, slices=config.slices, robustness=config.robustness,
    )  # fmt: skip
    if prepared.test is None and result.best_step is not None:
        result.notes.append(
            "The held-out rows measured here also picked the best checkpoint; rows kept for a test alone say more "
            "(a folder with train, validation and test files, or `lora eval`)."
        )
        say(result.notes[-1])
    return evaluation


def keep_temperature(model: LoRA, result: FitResult, batch_size: int) -> None:
    """Fit a temperature on the held-out rows and store it with the adapter, where its task states probabilities."""
    from lora.evaluation.calibrating import temperature_of
    from lora.io.peft import add_to_sidecar
    from lora.tasks.inference import infer

    prepared, name = result.data, result.adapter
    assert prepared.held is not None and result.output is not None
    if prepared.task.learns not in ("label", "labels") or prepared.task.per_token:
        return
    outcome = infer(
        model, prepared.task, prepared.held, [name], pad_token_id=prepared.pad_token_id, batch_size=batch_size,
        padding_side=prepared.padding_side,
    )[name]  # fmt: skip
    found = temperature_of(prepared.task, outcome, prepared.held.examples)
    if found is not None and found.note:  # at an end of its range it would make probabilities of 1, or all alike
        result.notes.append(f"No temperature is kept with the adapter. On the held-out rows: {found.note}")
    elif found is not None:
        # Of whoever measures the adapter later, none can see which rows these were.
        kept = {"temperature": found.value, "temperature_rows_picked": result.best_step is not None}
        model.notes.setdefault(name, {}).update(kept)
        add_to_sidecar(result.output / "adapter", kept)


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
            **({"replay_examples": result.data.train.replay} if result.data.train.replay else {}),
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

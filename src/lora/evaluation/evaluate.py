"""``evaluate``: metrics of adapters beside those of their base, from one pass over the data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lora.config import EVAL_BATCH_SIZE, LATENCY_ROWS, MAX_NEW_TOKENS, RESAMPLES, DataConfig
from lora.core.routing import BASE
from lora.errors import ConfigError, DataError, ModelError
from lora.evaluation.answers import has_answers, write_answers
from lora.evaluation.beside import FEWEST, Beside
from lora.evaluation.forgetting import Forgetting, measure_forgetting
from lora.evaluation.inputs import Inputs, chosen_adapters, prepare
from lora.evaluation.probe import probe_texts
from lora.evaluation.reference import constant_answer
from lora.evaluation.result import Evaluation
from lora.evaluation.speed import PeakMemory, measure_speed
from lora.evaluation.speed_grid import speed_grid
from lora.evaluation.speed_plan import SpeedPlan
from lora.evaluation.uncertainty import figures_of
from lora.model.heads import newly_initialised, task_heads
from lora.tasks import Encoded, Row, Task
from lora.tasks.inference import collated, evaluating, infer, misfit, to_device
from lora.tasks.inputs import check_arguments, length_for, tokenizer_of
from lora.tasks.mixture import forward

if TYPE_CHECKING:
    from lora.model.lora import LoRA

__all__ = ["Evaluation", "evaluate"]


def evaluate(
    model: LoRA,
    data: str | Path | Iterable[Row] | Encoded | Inputs,
    *,
    tokenizer: Any = None,
    task: Task | None = None,
    adapters: list[str] | str | None = None,
    baseline: bool = True,
    batch_size: int = EVAL_BATCH_SIZE,
    max_length: int | None = None,
    resamples: int = RESAMPLES,
    slices: Sequence[str] = (),
    robustness: bool | Sequence[str] = False,
    seed: int = 0,
    latency: bool = True,
    latency_rows: int = LATENCY_ROWS,
    speed: bool | SpeedPlan = False,
    data_config: DataConfig | None = None,
    generate: int | bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    probe: bool | str | Path | Sequence[str] = False,
) -> Evaluation:
    """Measure adapters on labelled data, the base beside them in the same pass.

    >>> evaluation = evaluate(model, "test.jsonl")
    >>> evaluation["default"]["accuracy"], evaluation["base"]["accuracy"]

    Args:
        data: a file, folder (its test split, else validation) or hub id; rows as dicts (a list, a
            ``datasets.Dataset``); or tokenised rows, with or without the rows that they are of.
        tokenizer: default: that of the base model's folder.
        task: default: the one stored with the adapter, else read from the rows.
        adapters: default: all of the model's.
        baseline: run ``"base"`` too.
        batch_size: rows of one forward pass.
        max_length: tokens kept of a row; default: as in training, else what the model takes.
        resamples: of the rows, for intervals and tests; 0: no intervals, tests and slices.
        seed: of the resamples and the noise: the same gives the same.
        slices: columns by whose values the rows are parted too, beside labels and length.
        robustness: measure the same rows with noise in their texts too: names of `lora.statistics.noise`, or True.
        latency: measure speed and peak memory too (on CUDA this resets torch's peak counter).
        latency_rows: single rows that latency is measured on.
        speed: measure latency by batch size and length, of adapters merged into the base too, and how fast texts are
            written; True: as `SpeedPlan` says, in a minute.
        data_config: column names where they differ from those in training, and how to read rows without a stored task.
        generate: let base and adapters write answers, greedily, to so many of the different prompts, evenly over the
            data (True: to all), and score them; see docs/evaluation.md for the metrics.
        max_new_tokens: most tokens of such an answer.
        probe: what the adapters have forgotten, on general text: a file or hub id, texts, or True for the built-in
            ones; see `lora.evaluation.forgetting`.

    Raises:
        ConfigError, RoutingError: no task, several tasks, an unknown adapter, a task without answers to be written.
        DataError: no rows, rows at fault, labels that training has not seen.
        ModelError: the model's outputs do not fit the task.
    """
    check_arguments(model=model, task=task, data=data_config, tokenizer=tokenizer)
    _check(adapters, generate, batch_size=batch_size, latency_rows=latency_rows, max_new_tokens=max_new_tokens)
    if resamples and resamples < FEWEST:
        raise ConfigError(f"resamples is {resamples}; intervals need at least {FEWEST}, and 0 leaves them out")
    if not isinstance(speed, (bool, SpeedPlan)):
        raise ConfigError(f"speed is {speed!r}; it must be True, False or a SpeedPlan")
    started = time.perf_counter()
    names = chosen_adapters(model, adapters, baseline)
    inputs = prepare(model, data, names, tokenizer, task, max_length, data_config)
    task, encoded = inputs.task, inputs.encoded
    if generate and not has_answers(task, encoded):
        raise ConfigError(f"generate: rows of the task {task.name} hold no answers to be written, so leave it out")
    beside = Beside(slices, robustness, resamples, seed)
    beside.check(inputs)
    names = _fitting(model, inputs, names)
    # Without measuring, the peak counter of a surrounding training run is left alone.
    with PeakMemory(model) if latency else nullcontext() as peak:
        outcomes = infer(model, task, encoded, names, pad_token_id=inputs.pad_token_id, batch_size=batch_size)
        speeds = {}
        if latency:
            speeds = measure_speed(
                model, task, encoded, names, pad_token_id=inputs.pad_token_id, batch_size=batch_size, rows=latency_rows
            )
    measured = None
    if speed:
        plan = speed if isinstance(speed, SpeedPlan) else None
        measured = speed_grid(model, task, encoded, names, plan, pad_token_id=inputs.pad_token_id)
    targets = task.targets(encoded.examples)
    metrics = {name: task.metrics(out.predictions, targets, out.loss_sum, out.count) for name, out in outcomes.items()}
    counted, notes = figures_of(task, outcomes, encoded)
    inputs.notes += notes
    generation = None
    if generate:
        generation, scores, written = write_answers(
            model, task, encoded, names, tokenizer or tokenizer_of(model), max_new_tokens=max_new_tokens,
            wanted=None if generate is True else generate, batch_size=batch_size,
        )  # fmt: skip
        counted = {name: its | written[name] for name, its in counted.items()}
        metrics = {name: its | scores[name] for name, its in metrics.items()}
    forgetting = None
    if probe is not False:
        found = _forgotten(model, names, tokenizer or tokenizer_of(model), probe, max_length, batch_size)
        if isinstance(found, str):
            inputs.notes.append(f"Forgetting was not measured: {found}.")
        else:
            forgetting = found
    untrained = BASE in names and has_untrained_head(model)
    more = beside.measure(model, inputs, outcomes, counted, untrained, _tokenizer_if_any(model, tokenizer), batch_size)
    for name, its in more.pop("metrics").items():
        metrics[name] |= its
    return Evaluation(
        metrics=metrics,
        rows=encoded.rows,
        truncated=encoded.truncated,
        notes=inputs.notes,
        task=task.name,
        best_metric=task.best_metric,
        greater_is_better=task.greater_is_better,
        untrained_head=untrained,
        reference=constant_answer(task, outcomes[names[0]].predictions, targets),
        speed=speeds,
        speed_grid=measured,
        peak_memory_bytes=peak.bytes if peak else None,
        peak_memory_kind=peak.kind if peak else None,
        generation=generation,
        forgetting=forgetting,
        seconds=time.perf_counter() - started,
        source=inputs.source,
        dtype=dtype_of(model),
        **more,
    )


def _check(adapters: list[str] | str | None, generate: int | bool, **least_one: int) -> None:
    """Raise ConfigError for arguments that ask for nothing."""
    if adapters is not None and not adapters:
        raise ConfigError("adapters: names none; leave it out to measure all")
    for name, value in least_one.items():
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    if not isinstance(generate, int) or generate < 0:
        raise ConfigError(f"generate is {generate!r}; it must be a number of prompts, or True for all")


def _forgotten(
    model: LoRA, names: list[str], tokenizer: Any, probe: Any, max_length: int | None, batch_size: int
) -> Forgetting | str:
    source = str(probe) if isinstance(probe, (str, Path)) else None
    texts = probe_texts(source) if source is not None else None if probe is True else list(probe)
    if texts is not None and not all(isinstance(text, str) and text.strip() for text in texts or [None]):
        raise DataError("probe: texts are needed, none of them empty; or the name of a file, or True")
    tuned = [name for name in names if name != BASE]
    if not tuned:
        return "no adapter was evaluated"
    length = length_for(model, tuned, tokenizer, max_length)
    return measure_forgetting(model, tuned, tokenizer, length, texts, source, batch_size)


def _tokenizer_if_any(model: LoRA, tokenizer: Any) -> Any:
    """For texts to be read; rows that came tokenised may have none."""
    try:
        return tokenizer or tokenizer_of(model)
    except (ConfigError, ModelError):
        return None


def dtype_of(model: LoRA) -> str:
    """The type of the base's weights, such as ``bfloat16``: of the first that are floating-point numbers."""
    first = next((its.dtype for its in model.base.parameters() if its.is_floating_point()), None)
    return str(first).removeprefix("torch.") if first is not None else ""


def has_untrained_head(model: LoRA) -> bool:
    """Whether the base's task head was made up when it was loaded, so that its answers are guesses."""
    heads = task_heads(model.base)
    return any(name == head or name.startswith(head + ".") for name in newly_initialised(model.base) for head in heads)


@torch.no_grad()
def _fitting(model: LoRA, inputs: Inputs, names: list[str]) -> list[str]:
    """Those of ``names`` whose outputs fit the task, found with one row. A base that does not is left out and noted.

    Raises ModelError where an adapter does not fit, or nothing is left: an index error inside a loss tells no one why.
    """
    shortest = min(range(len(inputs.encoded)), key=inputs.encoded.lengths.__getitem__)
    batch = collated(model, inputs.task, [inputs.encoded.examples[shortest]], inputs.pad_token_id)
    batch = to_device(batch, model)
    kept = []
    with evaluating(model):
        for name in names:
            problem = misfit(model, inputs.task, forward(model, batch, name))
            if problem is None:
                kept.append(name)
            elif name != BASE or len(names) == 1:
                raise ModelError(f"{name}: {problem}")
            else:
                inputs.notes.append(f"The base was left out of the comparison: {problem}.")
    return kept

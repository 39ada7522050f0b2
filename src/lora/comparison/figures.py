"""Figures of trained adapters on the test rows, and of several runs of the same settings together."""

from __future__ import annotations

from collections.abc import Sequence

from lora.config import RunConfig
from lora.evaluation.uncertainty import estimates_of
from lora.model.lora import LoRA
from lora.statistics.estimate import Estimate
from lora.statistics.resampling import affordable
from lora.statistics.rows import Rows as FigureRows
from lora.statistics.rows import pooled
from lora.tasks.figures import Figures, figures
from lora.tasks.inference import Outcome, infer
from lora.training.prepare import Prepared


def measured(model: LoRA, prepared: Prepared, config: RunConfig, names: Sequence[str]) -> dict[str, Figures]:
    """Figures of the test rows of each of ``names``."""
    assert prepared.test is not None, "there are test rows"
    found = outcomes(model, prepared, config, names)
    return {name: figures(prepared.task, outcome, prepared.test.examples) for name, outcome in found.items()}


def outcomes(model: LoRA, prepared: Prepared, config: RunConfig, names: Sequence[str]) -> dict[str, Outcome]:
    """What each of ``names`` makes of the test rows."""
    assert prepared.test is not None, "there are test rows"
    return infer(
        model, prepared.task, prepared.test, list(names), pad_token_id=prepared.pad_token_id,
        batch_size=config.training.evaluation_rows, padding_side=prepared.padding_side,
    )  # fmt: skip


def estimated(runs: Sequence[Figures], key: str, seed: int) -> tuple[dict[str, Estimate], FigureRows]:
    """Every metric of all runs together with its interval, and the rows of the metric ``key``."""
    first, alike = runs[0], dict[int, list[str]]()
    for name, (_, rows) in first.items():
        alike.setdefault(id(rows), []).append(name)  # read from the same rows, they share resamples
    out, of_key = dict[str, Estimate](), first[key][1]
    for names in alike.values():
        together = pooled([run[names[0]][1] for run in runs])
        metrics = [first[name][0] for name in names]
        found = estimates_of(metrics, together, affordable(together.units), seed)
        out.update(zip(names, found, strict=True))
        if key in names:
            of_key = together
    return {name: out[name] for name in first}, of_key

"""What is verified before training: that there is something to learn, that it can be learned, and that it will be kept.

Every check is cheap beside a run; together they take seconds for small models. None changes the adapter, its gradients
or a random stream, so a run with them is the run without them to the bit.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lora.checks import rows, saving, steps
from lora.checks.finding import Finding
from lora.checks.heap import trim
from lora.core.layer import AdaptedLayer
from lora.errors import TrainingError
from lora.model.tree import summary
from lora.training.checks import refuse_misfit
from lora.training.schedule import default_learning_rate

if TYPE_CHECKING:
    from lora.config import TrainingConfig
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared


def check_training(
    model: LoRA, name: str, prepared: Prepared, settings: TrainingConfig, output: Path | None = None,
    memory_gib: float | None = None,
) -> list[Finding]:  # fmt: skip
    """Verify that adapter ``name`` can be trained on ``prepared``.

    Args:
        settings: of the training; without a learning rate the model's default is meant.
        output: where the run will write.
        memory_gib: what training may use, as of `lora.fit`.

    Raises:
        ConfigError, ModelError: what `fit` refuses as well.
    """
    if settings.learning_rate is None:
        settings = settings.model_copy(
            update={
                "learning_rate": default_learning_rate(getattr(model.base, "config", None), model.adapters[name].full)
            }
        )
    assert settings.learning_rate is not None
    vocabulary = rows.vocabulary(model, prepared)
    if vocabulary.status == "failed":  # no row can be tried
        return [vocabulary]
    refuse_misfit(model, name, prepared)
    found = [
        vocabulary,
        rows.supervised(prepared.train, prepared.task),
        rows.stops(model, prepared),
        rows.beginnings(prepared),
        rows.cut(prepared),
        rows.template_tokens(model, name, prepared),
        rows.rate(model, name, settings.learning_rate),
        _targets(model, name),
    ]
    try:
        return found + _computed(steps.Trial(model, name, prepared, settings), output, memory_gib)
    except (MemoryError, RuntimeError) as error:
        return [*found, steps.too_large("training fits", "not even a short batch does", error)]


def _computed(trial: steps.Trial, output: Path | None, memory_gib: float | None) -> list[Finding]:
    found, recompute = list[Finding](), trial.recomputes(memory_gib)
    with trial.nothing_counts():
        for check in computed(trial, recompute):
            found.append(check())
            trial.trainee.begin_step()
            # What is freed is not to lie beside the next, nor beside training: that asks how much memory is free.
            trim()
            if found[0].status == "failed":
                break  # the others have nothing to go by
        out = found + saving.save(trial, output)
    trim()
    return out


def computed(trial: steps.Trial, recompute: bool) -> list[Callable[[], Finding]]:
    """The checks that run passes, in order; see `lora.checks.rehearsed_checks`, where they run for the plan."""
    return [
        lambda: steps.gradients(trial, recompute),
        lambda: steps.accumulation(trial, recompute),
        lambda: steps.longest(trial, recompute),
        lambda: steps.evaluation(trial),
    ]


def _targets(model: LoRA, name: str) -> Finding:
    paths = [
        module.path
        for module in model.base.modules()
        if isinstance(module, AdaptedLayer) and module.slot(name) is not None
    ]
    return Finding("targets are matched", "passed", f"{len(paths)} modules: {summary(paths, most=3)}")


def refuse_failed(found: list[Finding]) -> None:
    """Raise TrainingError with all of ``found`` that failed."""
    failed = [str(finding) for finding in found if finding.status == "failed"]
    if failed:
        raise TrainingError(
            "checks before training failed:\n  " + "\n  ".join(failed)
            + "\n`lora check` tells all of it; to train nevertheless, leave the checks out with --no-check"
        )  # fmt: skip

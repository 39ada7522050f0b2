"""``lora plan``: what a training run will need, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from lora.checks.plan import Planner
from lora.checks.run_plan import RunPlan
from lora.config import RunConfig
from lora.errors import ConfigError
from lora.overrides import load_config
from lora.workflow.loading import refuse_other_settings, task_to_go_on_with
from lora.workflow.tuned import adapter_folder, base_of, vocabulary_of


def plan(
    config: RunConfig | str | Path, *, length: int | None = None, device_gib: float | None = None, search: bool = True
) -> RunPlan:
    """What the run of ``config`` will need. Nothing is loaded: of the base its configuration is read.

    >>> lora.plan("run.yaml").peak
    >>> lora.plan(RunConfig(model="BASE"), length=1024, device_gib=24).largest_batch

    Args:
        config: as for ``lora train``, or its YAML file; data may be left out.
        length: tokens of a row, as ``max_length`` counts them, in place of those of the data.
        device_gib: memory of a device that one does not have here; None: what is free here.
        search: look for the largest batch and length, and for what makes it fit.

    Raises:
        ConfigError, DataError, ModelError, AdapterFileError: as training would.
    """
    config = load_config(config) if isinstance(config, (str, Path)) else config.model_copy(deep=True)
    if config.start and config.adapters:
        raise ConfigError("start: several adapters begin anew; plan one further by itself")
    start = adapter_folder(config.start) if config.start else None
    if start and not config.model:
        config.model = base_of(start)
    if not config.model:
        raise ConfigError("model: is needed")
    task, size = (task_to_go_on_with(config, start), vocabulary_of(start)) if start else (None, 0)
    asked = config.adapter
    planner = Planner(config, length, device_gib, start, task, size)
    if start:
        refuse_other_settings(config.start or "", asked, planner.config.adapter)
    return planner.plan(search)

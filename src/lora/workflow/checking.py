"""All that `lora train` would do up to the first step, and the checks before training. Only token ids are kept."""

from __future__ import annotations

from pathlib import Path

from lora.checks.finding import Finding
from lora.config import RunConfig
from lora.errors import ConfigError
from lora.io.places import folder_to_write
from lora.model.base import load_base_config
from lora.overrides import each_adapter
from lora.workflow.loading import load, task_to_go_on_with
from lora.workflow.many import load as load_set
from lora.workflow.measuring import Say
from lora.workflow.tuned import adapter_folder, base_of


def check(config: RunConfig, say: Say | None = None) -> dict[str, list[Finding]]:
    """The checks before training for each adapter of ``config``; without a name of its own it is ``default``.

    Args:
        config: as for `train`; ``output`` may be left out.
        say: called with each thing a user should know of the data and the model, a line at a time.

    Raises:
        ConfigError, DataError, ModelError, AdapterFileError: what training would refuse.
    """
    from lora.checks.before import check_training
    from lora.training.device import best_device
    from lora.training.prepare import prepare, read_rows

    config = config.model_copy(deep=True)
    start = adapter_folder(config.start) if config.start else None
    if start and not config.model:
        config.model = base_of(start)
    configs = each_adapter(config) or {"default": config}
    missing = ["model: is needed"] if not config.model else []
    for name, each in configs.items():
        if not each.data.train:
            missing.append("data.train: is needed" if not config.adapters else f"adapters.{name}.data.train: is needed")
    if missing:
        raise ConfigError("\n".join(missing))
    if config.output:
        folder_to_write(config.output, "output")  # complains as training would
    task = task_to_go_on_with(config, start)
    kind = None if task or not config.model else load_base_config(config.model, config.trust_remote_code)
    rows = {
        name: read_rows(each.data.train or "", each.data.validation, each.data, each.training.seed, task, kind)
        for name, each in configs.items()
    }
    if config.adapters:
        model, tokenizer = load_set(config, configs, rows)
    else:
        model, tokenizer = load(config, rows["default"].task, start)
    model.to(best_device())
    found = {}
    for name, each in configs.items():
        prepared = prepare(model, rows[name], tokenizer, each.data.max_length)
        for line in [*model.summary(name).splitlines(), *prepared.notes]:
            if say:
                say(line)
        output = Path(config.output) if config.output else None
        found[name] = check_training(model, name, prepared, each.training, output, config.memory_gib)
    return found

"""What a run trains: the base with its adapter, and what machine, model and an earlier adapter decide."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lora.config import AdapterConfig, RunConfig
from lora.errors import ConfigError
from lora.io.describe import files_sha256
from lora.model.base import load_base
from lora.model.heads import draw_new
from lora.model.lora import LoRA
from lora.model.vocabulary import add_tokens, enlarge, tokenizer_for, train_rows
from lora.tasks import Task, task_class
from lora.training.device import choose_dtype
from lora.workflow.tuned import task_of, vocabulary_of


def load(config: RunConfig, task: Task, start: Path | None) -> tuple[LoRA, Any]:
    """Base with its adapter, and tokenizer. What is chosen for this machine and model is written into ``config``.

    Raises:
        ConfigError: ``adapter`` says otherwise than the adapter that training starts from.
    """
    assert config.model
    # Seeds before anything random is made: the head that from_pretrained makes up, and the adapter's A.
    torch.manual_seed(config.training.seed)
    dtype = choose_dtype(config.training.dtype)
    base = load_base(config.model, task.auto_class, dtype, task.model_options(), config.trust_remote_code)
    tokenizer = tokenizer_for(config.model, config.new_tokens, start, config.trust_remote_code)
    if start is None:
        train_new_tokens(base, tokenizer, config)
    else:
        enlarge(base, vocabulary_of(start))
    model = LoRA(base, name=None)
    if start is None:
        model.add_adapter("default", config.adapter, seed=config.training.seed)
        draw_new(base, model.owned("default"), config.training.seed)
        config.adapter = model.adapters["default"]  # ranks that were brought down to small layers stand in it
    else:
        model.load_adapter(start, "default")
        # Of a run that is gone on with it is a checkpoint, which has it from its run.
        if not config.output or not start.resolve().is_relative_to(Path(config.output).resolve()):
            _begun_with(model.notes.setdefault("default", {}), start)
        found = model.adapters["default"]
        refuse_other_settings(str(config.start), config.adapter, found)
        config.adapter = found
    settle(config, base, dtype)
    return model, tokenizer


def _begun_with(notes: dict[str, Any], start: Path) -> None:
    """Put the adapter that training starts from before those that it was itself begun with; newest first."""
    own = {"folder": str(start.absolute()), "sha256": files_sha256(start)}
    if "trained_on" in notes:
        own["trained_on"] = notes["trained_on"]
    notes["begun_with"] = [own, *notes.get("begun_with", [])]


def refuse_other_settings(start: str, asked: AdapterConfig, found: AdapterConfig) -> None:
    """Raise ConfigError where ``asked`` says otherwise than ``found`` of the adapter that training starts from."""
    other = [key for key in asked.model_fields_set if getattr(asked, key) != getattr(found, key)]
    if other:
        raise ConfigError(
            "\n".join(f"adapter.{key}: is {getattr(found, key)!r} in {start}, which training starts from; leave it out"
                      for key in sorted(other))
        )  # fmt: skip


def train_new_tokens(base: Any, tokenizer: Any, *configs: RunConfig) -> None:
    """Add ``new_tokens`` to base and tokenizer, and their ids to the rows that each adapter trains.

    Raises ConfigError where those are given as a table.
    """
    for config in configs:
        train_rows(config.adapter, add_tokens(base, tokenizer, config.new_tokens))


def task_to_go_on_with(config: RunConfig, start: Path | None) -> Task | None:
    """The task of the adapter that training starts from; None: the rows say, as where the settings name another one.

    Raises:
        ConfigError: the other one needs another head than the adapter has.
    """
    if start is None:
        return None
    task, asked = task_of(start), config.data.task
    if asked in ("auto", task.name):
        return task
    # From answers that were shown to answers that are preferred, say: the same model, another loss.
    if task_class(asked).auto_class != task.auto_class or not task.generates:
        raise ConfigError(
            f"data.task: {asked!r} needs another model than the task {task.name}, which {config.start} was trained "
            "for; begin a new run without start"
        )
    return None


def settle(config: RunConfig, base: Any, dtype: torch.dtype) -> None:
    """Write what this machine and model call for into ``config``: a run resumed elsewhere must not choose anew."""
    from lora.training.schedule import default_learning_rate

    config.training.dtype = str(dtype).removeprefix("torch.")  # type: ignore[assignment]
    if config.training.learning_rate is None:
        config.training.learning_rate = default_learning_rate(base.config, config.adapter.full)

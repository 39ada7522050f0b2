"""An adapter folder on its base, ready to be used: what predicting, measuring and merging begin with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lora.errors import AdapterFileError, ConfigError
from lora.io.peft import CONFIG, SIDECAR, read_sidecar, resolve_folder
from lora.io.run import holds_a_set
from lora.model.base import load_base, load_tokenizer
from lora.model.lora import LoRA
from lora.model.vocabulary import enlarge
from lora.overrides import load_config
from lora.tasks import Task, from_state
from lora.training.device import best_device, choose_dtype


def adapter_folder(adapter: str | Path, with_task: bool = True) -> Path:
    """The folder with the files of an adapter that lora made: itself, a run's result, or a hub id's download.

    Raises:
        AdapterFileError: nothing there, or (``with_task``) it does not say its task.
    """
    folder = Path(adapter).expanduser()
    if holds_a_set(folder):
        names = ", ".join(load_config(folder / "config.yaml").adapters)
        raise AdapterFileError(
            f"{folder}: holds a set of adapters; name one of their folders, as in {folder}/NAME ({names})"
        )
    folder = resolve_folder(folder if folder.exists() else str(adapter))
    if not (folder / CONFIG).is_file():
        raise AdapterFileError(f"{folder}: holds no adapter ({CONFIG} is missing); name an adapter's or a run's folder")
    if with_task and "task" not in read_sidecar(folder):
        raise AdapterFileError(
            f"{folder}: it was not made by lora and does not say its task and labels; "
            "use LoRA(...).load_adapter from Python"
        )
    return folder


def base_of(folder: Path) -> str:
    """The base model that the adapter in ``folder`` names. Raises AdapterFileError where it names none."""
    named = _peft_config(folder).get("base_model_name_or_path")
    name = (read_sidecar(folder).get("base") or {}).get("name") or named
    if not name:
        raise AdapterFileError(f"{folder}: does not say its base model; name it with --model")
    return str(name)


def vocabulary_of(folder: Path) -> int:
    """The size of vocabulary that the adapter in ``folder`` needs for its own tokens; 0: it has none."""
    rows = _peft_config(folder).get("trainable_token_indices") or []
    ids = [number for its in rows.values() for number in its] if isinstance(rows, dict) else rows
    return 1 + max(ids, default=-1)


def _peft_config(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise AdapterFileError(f"{folder / CONFIG}: cannot be read ({error})") from None


def task_of(folder: Path) -> Task:
    """The task stored with the adapter in ``folder``. Raises AdapterFileError where it cannot be read."""
    try:
        return from_state(read_sidecar(folder)["task"])
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise AdapterFileError(
            f"{folder / SIDECAR}: the task in it cannot be read ({type(error).__name__}: {error}); the file is "
            "damaged, or of another version of lora"
        ) from None


def load_tuned(
    adapter: str | Path,
    model: str | None = None,
    *,
    dtype: str = "auto",
    trust_remote_code: bool = False,
    allow_other_base: bool = False,
) -> tuple[LoRA, str, Any, Task]:
    """Base model, adapter, tokenizer and task of an adapter folder (or of a run's folder, whose result it takes).

    Args:
        model: the base; default: the one that the adapter names.
        dtype: of the base; auto: float32 where the adapter was trained on that, else what the machine is good at.

    Returns:
        the model, the adapter's name in it, the tokenizer, the task.
    """
    folder = adapter_folder(adapter)
    sidecar = read_sidecar(folder)
    name = model or base_of(folder)
    task = task_of(folder)
    if dtype == "auto" and (sidecar.get("training") or {}).get("dtype") == "float32":
        dtype = "float32"  # as in training: the numbers of its report come again
    # The base's own head is made up anew: always the same one, so that a comparison can be repeated.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        base = load_base(name, task.auto_class, choose_dtype(dtype), task.model_options(), trust_remote_code)
    enlarge(base, vocabulary_of(folder))
    tuned = LoRA(base, name=None)
    loaded = tuned.load_adapter(folder, "tuned", allow_other_base=allow_other_base)
    tuned.to(best_device()).eval()
    return tuned, loaded, load_tokenizer(name, trust_remote_code, folder), task


def own_tokenizer(folders: Mapping[str, Path]) -> Path | None:
    """The folder whose tokenizer all use: that of an adapter with tokens of its own; None: the base's will do.

    Raises:
        ConfigError: several have other tokens of their own, which share ids.
    """
    own = {name: folder for name, folder in folders.items() if (folder / "tokenizer.json").is_file()}
    first = next(iter(own), None)
    for name in own:
        if first and (own[name] / "tokenizer.json").read_bytes() != (own[first] / "tokenizer.json").read_bytes():
            raise ConfigError(
                f"{first} and {name} brought new tokens of their own, which stand at the same places of one "
                "vocabulary; use one of them at a time"
            )
    return own[first] if first else None

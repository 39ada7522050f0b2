"""Several adapters on one base, ready to be used: what generating, chatting and measuring begin with."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lora.core.configs import is_encoder_decoder
from lora.core.routing import BASE
from lora.errors import AdapterFileError, ConfigError, ModelError
from lora.evaluation.inputs import different
from lora.evaluation.voices import base_task
from lora.io.peft import CONFIG, read_sidecar
from lora.io.run import holds_a_set
from lora.model.base import load_base, load_base_config, load_tokenizer
from lora.model.lora import LoRA
from lora.model.vocabulary import enlarge
from lora.overrides import load_config
from lora.tasks import Task
from lora.training.device import best_device, choose_dtype
from lora.workflow.tuned import adapter_folder, base_of, own_tokenizer, task_of, vocabulary_of


@dataclass
class Chosen:
    """What the command line names.

    Attributes:
        adapters: folder or hub id of each adapter, by name.
        model: the base, where it is named.
        base: whether the base itself is to answer too.
    """

    adapters: dict[str, str] = field(default_factory=dict)
    model: str | None = None
    base: bool = False


@dataclass
class Loaded:
    """A base with its adapters.

    Attributes:
        names: who can answer: the adapters, and ``base`` where it is wanted or alone.
        tasks: by adapter; without one for the base, which is asked as the first adapter is.
        folders: of the adapters.
        notes: what a user should know, in full sentences.
    """

    model: LoRA
    tokenizer: Any
    names: list[str]
    tasks: dict[str, Task]
    folders: dict[str, Path]
    notes: list[str]


def choose(places: Sequence[str], named: Sequence[str], model: str | None) -> Chosen:
    """Sort out what is an adapter, what a set of them and what a base model.

    Args:
        places: folders and hub ids, or the word ``base``; a folder that holds a model is the base.
        named: adapters as ``name=folder``.

    Raises:
        ConfigError: two of one name, two bases, or nothing.
    """
    chosen = Chosen(model=model)
    for place in places:
        folder = Path(place).expanduser()
        if place == BASE:
            chosen.base = True
        elif (folder / "config.json").is_file() and not (folder / CONFIG).is_file():
            if chosen.model is not None:
                raise ConfigError(f"{place} is a base model, and {chosen.model} is one too; all adapters sit on one")
            chosen.model = place
        elif holds_a_set(folder):
            for name in load_config(folder / "config.yaml").adapters:
                _add(chosen, name, str(folder / name))
        else:
            _add(chosen, name_of(place), place)
    for given in named:
        name, equals, place = given.partition("=")
        if not equals or not name or not place:
            raise ConfigError(f"--adapter {given}: a name and a folder are needed, as in --adapter short=runs/short")
        _add(chosen, name, place)
    if not chosen.adapters and chosen.model is None:
        raise ConfigError("name an adapter's or a run's folder, or a base model (--model)")
    return chosen


def _add(chosen: Chosen, name: str, place: str) -> None:
    if name == BASE:
        raise ConfigError(f"{place}: {BASE!r} is the base model's own name; call it otherwise: --adapter NAME={place}")
    if name in chosen.adapters:
        raise ConfigError(
            f"{chosen.adapters[name]} and {place} would both be called {name!r}; name one of them: "
            f"--adapter NAME={place}"
        )
    chosen.adapters[name] = place


def name_of(place: str) -> str:
    """What an adapter is called by its folder: the run's name, where the folder is a part of a run."""
    parts = [part for part in Path(place).expanduser().absolute().parts if part != Path(place).anchor]
    while len(parts) > 1 and re.fullmatch(r"adapter|checkpoints|best|step-\d+", parts[-1]):
        parts.pop()
    return (parts[-1].lstrip(".") or place) if parts else place  # no adapter's name begins with a dot


def load_several(
    chosen: Chosen, *, dtype: str = "auto", trust_remote_code: bool = False, allow_other_base: bool = False,
    chat: bool = False, writes: bool = False,
) -> Loaded:  # fmt: skip
    """The base with all adapters on it, of whatever tasks, so far as they need the same head of it.

    Args:
        dtype: of the base; auto: float32 where one of the adapters was trained on that, else what suits the machine.
        chat: whether a base without a chat template is talked to all the same.
        writes: whether text is to be written, so that an adapter that gives labels or numbers is an error.

    Raises:
        AdapterFileError, ModelError: something cannot be loaded, or an adapter is for another base.
        ConfigError: with ``writes`` an adapter that writes no text; adapters that need different heads of the base.
    """
    folders = {name: adapter_folder(place, with_task=False) for name, place in chosen.adapters.items()}
    stored = {name: _task_of(folder, chosen.adapters[name], writes) for name, folder in folders.items()}
    model_name = chosen.model or base_of(next(iter(folders.values())))
    trained = [(read_sidecar(folder).get("training") or {}).get("dtype") for folder in folders.values()]
    if dtype == "auto" and "float32" in trained:
        dtype = "float32"  # as in training
    notes = list[str]()
    kind, options = _head_of(stored)
    try:
        config = load_base_config(model_name, trust_remote_code)
        kind = kind or base_task(None, config).auto_class  # the same for all that such a base can be asked by
        # The base's own head is made up anew: always the same one, so that a comparison can be repeated.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            base = load_base(model_name, kind, choose_dtype(dtype), options, trust_remote_code)
    except ModelError as error:
        where = "" if chosen.model else f" (named by {next(iter(folders.values()))}; --model names another place)"
        raise ModelError(f"{error}{where}") from None
    own = own_tokenizer(folders)
    enlarge(base, max((vocabulary_of(folder) for folder in folders.values()), default=0))
    model = LoRA(base, name=None)
    for name, folder in folders.items():
        model.load_adapter(folder, name, allow_other_base=allow_other_base)
    model.to(best_device()).eval()
    tokenizer = load_tokenizer(model_name, trust_remote_code, own)
    how = "with a bare text" if is_encoder_decoder(config) else "in the chat template of its base"
    notes += [
        f"{name}: it was not made by lora and does not say how it is asked; it is asked {how}."
        for name, task in stored.items()
        if task is None
    ]
    tasks = {name: task or base_task(tokenizer, config, chat=True) for name, task in stored.items()}
    if not folders and chat:
        tasks[BASE] = base_task(tokenizer, config, chat=True)
        if not getattr(tokenizer, "chat_template", None) and not is_encoder_decoder(config):
            notes.append(f"{model_name}: its tokenizer has no chat template; the one called 'plain' is used.")
    names = [*folders, *([BASE] if chosen.base or not folders else [])]
    return Loaded(model, tokenizer, names, tasks, folders, notes)


def _head_of(stored: Mapping[str, Task | None]) -> tuple[str, dict[str, Any]]:
    """transformers' class and options of a base whose head fits all tasks; an empty name: that of a language model.

    Raises:
        ConfigError: they need different ones, so they cannot sit on one base.
    """
    # A task that writes, and an adapter that does not say its task, need the language head that the base has.
    heads: dict[str, tuple[str, dict[str, Any]]] = {
        name: ("", {}) if task is None or task.generates else (task.auto_class, task.model_options())
        for name, task in stored.items()
    }
    first = next(iter(heads), None)
    for name in heads:
        if first is not None and heads[name] != heads[first]:
            raise ConfigError(
                f"{first} and {name} cannot sit on one base: {different(first, stored[first], name, stored[name])}; "
                "use one of them at a time"
            )
    return heads[first] if first is not None else ("", {})


def _task_of(folder: Path, place: str, writes: bool) -> Task | None:
    """The task of an adapter; None: it does not say and is a language model's. Raises AdapterFileError, ConfigError."""
    if "task" not in read_sidecar(folder):
        kind = json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("task_type")
        if kind not in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"):
            if writes:
                raise AdapterFileError(f"{place}: is for {kind} and writes no text")
            adapter_folder(place)  # says what is missing, and the remedy
        return None
    task = task_of(folder)
    if writes and not task.generates:
        raise ConfigError(
            f"{place}: was trained for the task {task.name}, which gives labels or numbers and writes no text; use "
            f"`lora predict {place}`"
        )
    return task

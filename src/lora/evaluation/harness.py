"""``benchmark``: standard benchmarks by lm-eval, the base beside its adapters, from one pass over each request."""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import logging
import os
import random
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lora.config import EVAL_BATCH_SIZE
from lora.core.configs import is_encoder_decoder
from lora.core.routing import BASE
from lora.errors import ConfigError, DataError, LoraError, ModelError
from lora.evaluation.benchmarks import Benchmarks, collected
from lora.evaluation.generation import ends_of
from lora.evaluation.inputs import chosen_adapters, stored_task
from lora.evaluation.shared import Shared
from lora.hub import offline_unless_reachable
from lora.model.base import pad_token_id, positions_of
from lora.model.heads import output_heads
from lora.tasks import Task
from lora.tasks.inputs import tokenizer_of

if TYPE_CHECKING:
    from lora.evaluation.shared import Progress
    from lora.model.lora import LoRA

SEEDS = 0, 1234  # of Python's and of numpy's random numbers, and of the examples in a prompt: lm-eval's own
BOOTSTRAP = 1000  # samples for the standard error of a metric that is no mean; lm-eval's 100,000 take minutes


@dataclass
class Tasks:
    """Tasks of lm-eval as it holds them, and what a user should know of them."""

    loaded: Any
    notes: list[str]


def check_harness() -> None:
    """Raise ConfigError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "benchmarks are measured by lm-eval, which is not installed: pip install 'lora-many[harness]'"
        )


def benchmark(
    model: LoRA,
    tasks: Sequence[str] | str | Tasks,
    *,
    tokenizer: Any = None,
    adapters: Sequence[str] | str | None = None,
    baseline: bool = True,
    include: str | Path | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    chat_template: bool = False,
    own_tasks: Mapping[str, Task] | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    progress: Progress | None = None,
) -> Benchmarks:
    """Measure adapters, and the base beside them, on tasks of lm-eval (the extra ``harness``).

    Each request, of which an answer or its probability is asked, is one row per adapter of the same batch.

    >>> benchmark(model, "arc_easy", limit=100)["arc_easy"]["acc"]["default"]["value"]

    Args:
        tasks: names of lm-eval's tasks or groups, whose data come from the hub unless they are local; or what
            `load_tasks` gave (``include`` and ``fewshot`` then are as they were there).
        adapters: default: all of the model's.
        baseline: run ``"base"`` too.
        include: folder with tasks of one's own, YAML files as lm-eval reads them. What these name they may also run.
        limit: documents of each task; default: all.
        fewshot: examples in each prompt; default: as the task says. A task that says 0 stays at that, as in lm-eval.
        chat_template: put the prompts in the tokenizer's chat template, examples as turns.
        own_tasks: what adapters were trained for, where they do not store it: it says what else ends their texts.
        batch_size: rows of one forward pass, adapters together.
        progress: told how many requests there are, and how many were computed.

    Raises:
        ConfigError, RoutingError: lm-eval is missing, unknown task or adapter, something a task asks for is not done.
        DataError: a task's data cannot be loaded; the message says so where the hub cannot be reached.
        ModelError: the base has no language head, or is an encoder-decoder.
    """
    check_harness()
    for what, value, least in (("limit", limit, 1), ("fewshot", fewshot, 0), ("batch_size", batch_size, 1)):
        if value is not None and value < least:
            raise ConfigError(f"{what} is {value}; it must be at least {least}")
    if not output_heads(model.base) or is_encoder_decoder(getattr(model.base, "config", None)):
        raise ModelError(
            f"{type(model.base).__name__} is no language model that goes on behind its prompt, which lm-eval's tasks "
            "need; load the base with AutoModelForCausalLM, or measure it on labelled rows (evaluate)"
        )
    started = time.perf_counter()
    chosen = chosen_adapters(model, adapters, baseline)
    tokenizer = tokenizer or tokenizer_of(model)
    if chat_template and not getattr(tokenizer, "chat_template", None):
        raise ConfigError("chat_template: the tokenizer has none; leave it out")
    from lora.evaluation.harness_lm import ROOM, AdapterLM

    shared = Shared(
        model, tokenizer, chosen, _ends(model, chosen, tokenizer, own_tasks or {}),
        pad_token_id=pad_token_id(tokenizer, model.base), batch_size=batch_size,
        positions=positions_of(model.base) or _told(tokenizer) or ROOM, progress=progress,
    )  # fmt: skip
    if not isinstance(tasks, Tasks):
        tasks = load_tasks(tasks, include, fewshot)
    with _quiet():
        found = {name: _run(AdapterLM(shared, name), tasks.loaded, limit, chat_template) for name in chosen}
    return collected(found, tasks.notes, chat_template, time.perf_counter() - started)


def _told(tokenizer: Any) -> int | None:
    found = getattr(tokenizer, "model_max_length", None)
    return int(found) if found and found < 10**7 else None


def _ends(
    model: LoRA, names: Sequence[str], tokenizer: Any, tasks: Mapping[str, Task]
) -> dict[str, frozenset[int]]:  # fmt: skip
    """What ends a text of each of ``names``: the end tokens, and what else an adapter was trained to end with."""
    out = {}
    for name in names:
        task = tasks.get(name) or (stored_task(model, [name]) if name != BASE else None)
        writes = task is not None and task.generates
        out[name] = ends_of(model, tokenizer, task.with_tokenizer(tokenizer) if task and writes else None)
    if BASE in out:  # it is asked as its adapters are
        out[BASE] = frozenset().union(*out.values())
    return out


def load_tasks(names: Sequence[str] | str, include: str | Path | None = None, fewshot: int | None = None) -> Tasks:
    """lm-eval's tasks of these names, with their data; arguments and errors as of `benchmark`."""
    check_harness()
    with _quiet():
        return _load([names] if isinstance(names, str) else list(names), include, fewshot)


def _load(names: list[str], include: str | Path | None, fewshot: int | None) -> Tasks:
    from lm_eval.tasks import TaskManager

    if include is not None and not Path(include).expanduser().is_dir():
        raise ConfigError(f"{include}: there is no such folder with tasks of your own")
    place = None if include is None else str(Path(include).expanduser())
    manager = TaskManager(include_path=place, include_defaults=False) if place else None
    if manager is None or any(name not in manager.all_tasks for name in names):
        manager = TaskManager(include_path=place)  # reads all of lm-eval's own, which takes seconds
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=3, cutoff=0.5)
            hint = f"; the nearest: {', '.join(near)}" if near else ""
            unread = f" (a file of {include} that is no proper YAML counts as none)" if include else ""
            raise ConfigError(f"there is no task {name!r}{unread}{hint}. `lm-eval ls tasks` lists lm-eval's own")
    with offline_unless_reachable(_remote(manager, names)) as reachable:
        try:
            loaded: Any = manager.load(list(names))
        except LoraError:
            raise
        except Exception as error:  # of datasets, the hub, or the task's own code: whatever these raise
            why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            hub = "" if reachable else "the hub cannot be reached, and what was loaded before does not hold them; "
            raise DataError(f"{', '.join(names)}: the task or its data cannot be loaded ({hub}{why})") from None
    notes = []
    for name, task in loaded["tasks"].items():
        said = task.get_config("num_fewshot")
        if fewshot and said == 0:
            notes.append(f"{name}: says that it takes no examples in the prompt, so it got none.")
        elif fewshot is not None or said is None:
            task.set_config(key="num_fewshot", value=fewshot or 0)
    return Tasks(loaded, notes)


LOCAL = ("json", "csv", "parquet", "arrow", "text", "pandas", "generator")  # readers of datasets, not names of the hub


def _remote(manager: Any, names: Sequence[str]) -> str:
    """Something that the tasks need of the hub; this folder where all their data are here."""
    for name in names:
        data = (manager.task_index[name].cfg or {}).get("dataset_path") or name
        if data not in LOCAL and not Path(data).exists():
            return str(data)
    return "."


def _run(lm: Any, loaded: Any, limit: int | None, chat_template: bool) -> dict[str, Any]:
    from lm_eval import evaluator

    for task in loaded["tasks"].values():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(f"{task.task_name}: it runs code that the model writes, which is not done here")
        task.set_fewshot_seed(seed=SEEDS[1])
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    out: dict[str, Any] = evaluator.evaluate(
        lm, loaded, limit=limit, bootstrap_iters=BOOTSTRAP, apply_chat_template=chat_template,
        fewshot_as_multiturn=chat_template,
    )  # fmt: skip
    return out


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """lm-eval's log is left at warnings and its prints go to standard error; global random numbers stay as they are."""
    log, states = logging.getLogger("lm_eval"), (random.getstate(), np.random.get_state())
    level, processes = log.level, os.environ.get("DISABLE_MULTIPROC")
    log.setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # its bootstrap forks a process per core, each with the model's memory
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        log.setLevel(level)
        random.setstate(states[0])
        np.random.set_state(states[1])
        if processes is None:
            del os.environ["DISABLE_MULTIPROC"]
        else:
            os.environ["DISABLE_MULTIPROC"] = processes

"""Memory and time of one candidate by itself: some steps of its training in a process of its own.

Trained at once, candidates share passes, and a process keeps what it once took: there neither can be told apart. Run as
a module, ``python -m lora.comparison.alone SPEC`` imports all that training needs and forks a process for each
candidate, so that none pays for the imports and all begin with the same memory.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora.config import AdapterConfig, RunConfig, TrainingConfig
    from lora.training.prepare import Prepared

STEPS = 10  # taken; the first is left out of the time, since kernels are chosen in it
HELD = 64  # validation rows evaluated half-way, as training does: the best parameters are kept from then on
SECONDS = 1800  # beyond, something hangs
MARK = "MEASURED "  # before a result: what libraries print is none


def measure(
    config: RunConfig, prepared: Prepared, candidates: Mapping[str, tuple[AdapterConfig, TrainingConfig]], folder: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Take `STEPS` steps of each of ``candidates``, one after the other, each in a fresh process.

    Yields:
        its name, and ``memory`` (bytes at the peak of training), ``kind`` (of what), ``tokens_per_second``, ``steps``;
        or ``error``.
    """
    import torch

    held = list(range(min(HELD, len(prepared.held or ()))))
    common = {
        "model": config.model, "trust": config.trust_remote_code, "auto_class": prepared.task.auto_class,
        "options": prepared.task.model_options(), "dtype": config.training.dtype, "task": prepared.task.state(),
        "new_tokens": config.new_tokens, "threads": torch.get_num_threads(), "memory_gib": config.memory_gib,
        "compile": config.compile, "liger": config.liger, "max_length": prepared.max_length,
        "held": _some(prepared.held, held) if prepared.held is not None and held else None,
    }  # fmt: skip
    each = {
        name: {
            "adapter": adapter.model_dump(mode="json", exclude_unset=True),
            "training": training.model_dump(mode="json"),
            "train": _some(prepared.train, sample(prepared, training)),
        }
        for name, (adapter, training) in candidates.items()
    }  # fmt: skip
    groups = [each] if hasattr(os, "fork") else [{name: its} for name, its in each.items()]
    for group in groups:
        if group:
            yield from _started({"common": common, "candidates": group}, folder / ".alone.json")


def _started(spec: dict[str, Any], file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Run this module on ``spec``, and yield what it prints as it comes."""
    import lora

    file.write_text(json.dumps(spec), encoding="utf-8")
    paths = [str(Path(lora.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    left = list(spec["candidates"])
    try:
        with subprocess.Popen(
            [sys.executable, "-m", "lora.comparison.alone", str(file)], stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        ) as process:  # fmt: skip
            try:
                for line in process.stdout or ():
                    if line.startswith(MARK):
                        name, found = json.loads(line.removeprefix(MARK))
                        left.remove(name)
                        yield name, found
            finally:
                process.terminate()
    finally:
        file.unlink(missing_ok=True)
    for name in left:
        yield name, {"error": f"the process ended with code {process.returncode}"}


def sample(prepared: Prepared, training: TrainingConfig) -> list[int]:
    """Rows for `STEPS` steps: the largest batch of the first epoch, which sets the peak, and others as they come."""
    from lora.data.batches import BatchPlan

    data = prepared.train
    batches = BatchPlan(data.lengths, training.batch_size, training.seed, training.length_grouped, data.shares).epoch(0)
    return [row for batch in batches[: STEPS * training.accumulation] for row in batch]  # the largest comes first


def _some(data: Any, rows: Sequence[int]) -> dict[str, list[Any]]:
    return {key: [getattr(data, key)[row] for row in rows] for key in ("examples", "lengths", "supervised")}


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """What `measure` asks for of one candidate, in this process."""
    import torch

    from lora.config import AdapterConfig, TrainingConfig
    from lora.evaluation.speed import PeakMemory
    from lora.model.base import load_base, load_tokenizer, pad_token_id
    from lora.model.lora import LoRA
    from lora.model.vocabulary import add_tokens
    from lora.tasks import Encoded, from_state
    from lora.training.loop import fit
    from lora.training.prepare import Prepared, digest
    from lora.training.processes import Processes

    torch.set_num_threads(spec["threads"])
    torch.manual_seed(0)
    base = load_base(spec["model"], spec["auto_class"], getattr(torch, spec["dtype"]), spec["options"], spec["trust"])
    tokenizer = load_tokenizer(spec["model"], spec["trust"])
    add_tokens(base, tokenizer, spec["new_tokens"])
    task = from_state(spec["task"]).with_tokenizer(tokenizer)
    train = Encoded(**spec["train"])
    held = Encoded(**spec["held"]) if spec["held"] else None
    pad = pad_token_id(tokenizer, base)
    prepared = Prepared(task, tokenizer, train, held, None, spec["max_length"], pad, "right", [], digest(train))
    model = LoRA(base, name=None)
    model.add_adapter("alone", AdapterConfig.make(spec["adapter"]), seed=0)
    model.to(Processes().device)
    settings = TrainingConfig.make({**spec["training"], "max_steps": STEPS, "eval_every": STEPS // 2, "patience": None})
    with PeakMemory(model) as peak:
        result = fit(
            model, [], adapter="alone", prepared=prepared, config=settings, memory_gib=spec["memory_gib"],
            compile=spec["compile"], liger=spec["liger"], progress=False,
        )  # fmt: skip
    steps = [line for line in result.history if "loss" in line][1:]
    # The median: a step that another program fell upon says nothing of the candidate.
    speed = statistics.median(line["tokens_per_second"] for line in steps)
    return {"memory": peak.bytes, "kind": peak.kind, "tokens_per_second": speed, "steps": len(steps)}


def _answer(name: str, spec: dict[str, Any]) -> None:
    try:
        found = main(spec)
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {str(error).strip()[:300] or 'no reason given'}"}
    _tell(name, found)


def _tell(name: str, found: dict[str, Any]) -> None:
    print(f"\n{MARK}{json.dumps([name, found])}", flush=True)


def _import_all(common: dict[str, Any]) -> None:
    """What each process would import by itself. Nothing is computed: threads made before a fork are missing after it.

    On torch's meta device the model's own module is imported and no weight made.
    """
    import sklearn.metrics  # noqa: F401
    import torch

    import lora.evaluation.speed
    import lora.tasks.figures
    import lora.training.loop  # noqa: F401
    from lora.errors import ModelError
    from lora.model.base import load_base_config, shape_of_base

    try:
        config = load_base_config(common["model"], common["trust"])
        shape_of_base(common["model"], config, common["auto_class"], torch.float32, common["trust"])
    except ModelError:  # which the first candidate will say
        return


def _serve(spec: dict[str, Any]) -> None:
    """Measure all candidates of ``spec``."""
    _import_all(spec["common"])
    for name, own in spec["candidates"].items():
        if not hasattr(os, "fork"):
            _answer(name, {**spec["common"], **own})
            continue
        child = os.fork()
        if not child:
            signal.alarm(SECONDS)
            _answer(name, {**spec["common"], **own})
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            _tell(name, {"error": "out of memory, it seems: it was killed" if code == -9 else f"it ended with {code}"})


if __name__ == "__main__":
    _serve(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))

"""Memory and time of one candidate by itself: some steps of its training in a process of its own.

Trained at once, candidates share passes, and a process keeps what it once took: there neither can be told apart. As a
module, ``python -m lora.comparison.alone SPEC`` takes the steps and prints what they took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora.config import AdapterConfig, RunConfig, TrainingConfig
    from lora.training.prepare import Prepared

STEPS = 10  # taken; the first is left out of the time, since kernels are chosen in it
HELD = 64  # validation rows evaluated half-way, as training does: the best parameters are kept from then on
SECONDS = 1800  # beyond, something hangs


def measure(
    config: RunConfig, prepared: Prepared, adapter: AdapterConfig, training: TrainingConfig, folder: Path
) -> dict[str, Any]:
    """Take `STEPS` steps of one candidate in a fresh process.

    Returns:
        ``memory`` (bytes at the peak of training), ``kind`` (of what), ``tokens_per_second``, ``steps``; or ``error``.
    """
    import torch

    import lora

    rows = sample(prepared, training)
    held = list(range(min(HELD, len(prepared.held or ()))))
    spec = {
        "model": config.model, "trust": config.trust_remote_code, "auto_class": prepared.task.auto_class,
        "options": prepared.task.model_options(), "dtype": config.training.dtype, "task": prepared.task.state(),
        "adapter": adapter.model_dump(mode="json", exclude_unset=True), "new_tokens": config.new_tokens,
        "training": training.model_dump(mode="json"), "threads": torch.get_num_threads(),
        "memory_gib": config.memory_gib, "compile": config.compile, "liger": config.liger,
        "max_length": prepared.max_length, "train": _some(prepared.train, rows),
        "held": _some(prepared.held, held) if prepared.held is not None and held else None,
    }  # fmt: skip
    file = folder / "alone.json"
    file.write_text(json.dumps(spec), encoding="utf-8")
    paths = os.pathsep.join([str(Path(lora.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    try:
        done = subprocess.run(
            [sys.executable, "-m", "lora.comparison.alone", str(file)], capture_output=True, text=True, check=False,
            timeout=SECONDS, env={**os.environ, "PYTHONPATH": paths.rstrip(os.pathsep)},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"error": f"not done after {SECONDS} s"}
    finally:
        file.unlink(missing_ok=True)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2] or f"the process ended with code {done.returncode}"
        return {"error": last[:300]}
    return dict(json.loads(done.stdout.strip().rpartition("\n")[2]))


def sample(prepared: Prepared, training: TrainingConfig) -> list[int]:
    """Rows for `STEPS` steps: the largest batch of the first epoch, which sets the peak, and others as they come."""
    from lora.data.batches import BatchPlan

    data = prepared.train
    batches = BatchPlan(data.lengths, training.batch_size, training.seed, training.length_grouped, data.shares).epoch(0)
    return [row for batch in batches[: STEPS * training.accumulation] for row in batch]  # the largest comes first


def _some(data: Any, rows: Sequence[int]) -> dict[str, list[Any]]:
    return {key: [getattr(data, key)[row] for row in rows] for key in ("examples", "lengths", "supervised")}


def main(spec: dict[str, Any]) -> dict[str, Any]:
    """What `measure` asks for, in this process."""
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
    dtype = getattr(torch, spec["dtype"])
    base = load_base(spec["model"], spec["auto_class"], dtype, spec["options"], spec["trust"])
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
    tokens = sum(line["tokens"] for line in steps)
    seconds = sum(line["tokens"] / line["tokens_per_second"] for line in steps)
    return {"memory": peak.bytes, "kind": peak.kind, "tokens_per_second": tokens / seconds, "steps": len(steps)}


if __name__ == "__main__":
    try:
        print("\n" + json.dumps(main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {str(error).strip() or 'no reason given'}")

"""Named entities: span F1 of ours and of real PEFT on WNUT 17's test rows, under equal settings.

Same base and head, the same A and B to begin with (PEFT loads our untrained adapter), the same batches in the same
order, rate, schedule and clip; PEFT's model in a plain loop with the loss that transformers computes. What is left to
differ is the dropout that the base draws and rounding. Both are scored by the same code (seqeval's default mode).

    python benchmarks/token_classification.py --data DIR [--set wnut17] [--seeds 0 1 2] [--epochs 6] [--max-words 14]

DIR holds a folder per data set with train.jsonl and test.jsonl (rows with tokens and tags). Prints a line per run, then
mean and spread (sample standard deviation) over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from lora import DataConfig, LoRA, TrainingConfig, fit
from lora.cli import quiet_libraries
from lora.cli.demo import demo_base as minilm
from lora.data.sources import load_rows
from lora.model.base import load_base, load_tokenizer
from lora.tasks import Task
from lora.tasks.inference import infer
from lora.training.prepare import Prepared, Rows, prepare, read_rows
from peft_side import collated, train_by_hand

RANK, ALPHA, BATCH = 16, 32, 16
RATE = 3e-4  # at 1e-3 the answer is O for every word, and the loss stays at that of the tags' frequencies


def settings(epochs: float, seed: int) -> TrainingConfig:
    return TrainingConfig(
        learning_rate=RATE, batch_size=BATCH, epochs=epochs, seed=seed, eval_every=None, dtype="float32"
    )


def base_for(task: Task, seed: int, dropout: bool) -> torch.nn.Module:
    torch.manual_seed(seed)
    base = load_base(minilm(), task.auto_class, torch.float32, task.model_options())
    for module in base.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    return base


def ours(prepared: Prepared, model: LoRA, epochs: float, seed: int) -> dict[str, Any]:
    fit(model, [], prepared=prepared, config=settings(epochs, seed), progress=False)
    held = prepared.held
    assert held is not None
    out = infer(model, prepared.task, held, ["default"], pad_token_id=prepared.pad_token_id, batch_size=64)["default"]
    return prepared.task.metrics(out.predictions, prepared.task.targets(held.examples), out.loss_sum, out.count)


def theirs(prepared: Prepared, base: torch.nn.Module, start: Path, epochs: float, seed: int) -> dict[str, Any]:
    """PEFT's model, from our untrained adapter in ``start``."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(base, str(start), is_trainable=True)
    return scored(train_by_hand(model, prepared, settings(epochs, seed)), prepared)


@torch.no_grad()
def scored(model: torch.nn.Module, prepared: Prepared) -> dict[str, Any]:
    held, task = prepared.held, prepared.task
    assert held is not None
    predictions, loss_sum, count = [], 0.0, 0
    for start in range(0, len(held), 64):
        batch = collated(prepared, held.examples, range(start, min(start + 64, len(held))))
        outputs = model(**{key: value for key, value in batch.items() if key != "labels"})
        predictions += task.predictions(outputs, batch)
        words = int((batch["labels"] >= 0).sum())
        sums, _ = task.row_losses(outputs, batch)
        loss_sum, count = loss_sum + float(sums.sum()), count + words
    return task.metrics(predictions, task.targets(held.examples), loss_sum, count)


def run(rows: Rows, seed: int, epochs: float, dropout: bool) -> dict[str, dict[str, Any]]:
    """Metrics of both, trained from one and the same untrained adapter."""
    model = LoRA(base_for(rows.task, seed, dropout), name=None)
    model.add_adapter("default", rank=RANK, alpha=ALPHA, seed=seed)
    prepared = prepare(model, rows, load_tokenizer(minilm()))
    with tempfile.TemporaryDirectory() as start:
        model.save_adapter("default", start)
        found = {"ours": ours(prepared, model, epochs, seed)}
        found["PEFT"] = theirs(prepared, base_for(rows.task, seed, dropout), Path(start), epochs, seed)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", default="wnut17")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--max-words", type=int, help="leave out longer sentences, of both files: less time")
    parser.add_argument(
        "--no-dropout", action="store_true", help="switch the base's own off: nothing is left to chance"
    )
    options = parser.parse_args()
    quiet_libraries()
    folder = options.data / options.set
    most = options.max_words or sys.maxsize
    train, test = (
        [row for row in load_rows(str(folder / f"{part}.jsonl")) if len(row["tokens"]) <= most]
        for part in ("train", "test")
    )
    rows = read_rows(train, test, DataConfig(), 0)
    print(*rows.notes, sep="\n")
    print(
        f"{options.set}: {len(train)} rows to train on, {len(test)} to test\n"
        f"MiniLM, rank {RANK}, alpha {ALPHA}, all-linear, rate {RATE}, batch {BATCH}, "
        f"{options.epochs:g} epochs, fp32"
    )
    results: dict[str, list[float]] = {"ours": [], "PEFT": []}
    for seed in options.seeds:
        for system, metrics in run(rows, seed, options.epochs, not options.no_dropout).items():
            results[system].append(metrics["f1"])
            print(
                f"seed {seed} {system:<5} F1 {metrics['f1']:.4f} strict {metrics['f1_strict']:.4f} "
                f"macro {metrics['f1_macro']:.4f} loss {metrics['loss']:.4f}",
                flush=True,
            )
    for system, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        print(f"{system:<5} F1 mean {statistics.mean(values):.4f} ± {spread:.4f}")
    paired = [mine - other for mine, other in zip(results["ours"], results["PEFT"], strict=True)]
    print("ours less PEFT, by seed:", " ".join(f"{difference:+.4f}" for difference in paired))


if __name__ == "__main__":
    main()

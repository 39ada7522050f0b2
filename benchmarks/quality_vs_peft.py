"""Test accuracy of ours and of real PEFT under equal settings.

Same base, head, rank, alpha, targets, rate, schedule, batch size, epochs and clip. PEFT runs twice: in a loop written
by hand that takes the very batches that ours takes, in their order, which compares the method alone; and under
transformers.Trainer with its own length-grouped sampler, which is how most people run it.

    python benchmarks/quality_vs_peft.py --data DIR [--sets banking77 bitext_support] [--seeds 0 1 2] [--epochs 2]

DIR holds one folder per data set with train.jsonl and test.jsonl (rows with text and label). Both systems are scored on
test.jsonl by the same code. Prints a line per run, then mean and spread (sample standard deviation) over the seeds.
Training times are not compared here; benchmarks of speed run by themselves.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers

from lora import DataConfig, LoRA, TrainingConfig, fit
from lora.cli import quiet_libraries
from lora.cli.demo import demo_base as minilm
from lora.model.base import load_base, load_tokenizer
from lora.tasks.inference import infer
from lora.training.prepare import Prepared, prepare, read_rows
from peft_side import train_by_hand

RANK, ALPHA, RATE, BATCH = 16, 32, 1e-3, 32


def settings(epochs: float, seed: int) -> TrainingConfig:
    return TrainingConfig(
        learning_rate=RATE, batch_size=BATCH, epochs=epochs, seed=seed, eval_every=None, dtype="float32"
    )


def data_and_base(folder: Path, seed: int) -> tuple[Prepared, torch.nn.Module, Any]:
    """The same tokenised data and the same initial base and head for both."""
    rows = read_rows(str(folder / "train.jsonl"), str(folder / "test.jsonl"), DataConfig(), seed)
    torch.manual_seed(seed)
    base = load_base(minilm(), rows.task.auto_class, torch.float32, rows.task.model_options())
    prepared = prepare(LoRA(base, name=None), rows, load_tokenizer(minilm()))
    return prepared, base, rows.task


def score(model: LoRA, prepared: Prepared, name: str) -> float:
    held = prepared.held
    assert held is not None
    outcome = infer(model, prepared.task, held, [name], pad_token_id=prepared.pad_token_id, batch_size=64)[name]
    targets = prepared.task.targets(held.examples)
    return prepared.task.metrics(outcome.predictions, targets, outcome.loss_sum, outcome.count)["accuracy"]


def ours(folder: Path, epochs: float, seed: int) -> float:
    prepared, base, _ = data_and_base(folder, seed)
    model = LoRA(base, rank=RANK, alpha=ALPHA)
    fit(model, [], prepared=prepared, config=settings(epochs, seed))
    return score(model, prepared, "default")


def peft_model(folder: Path, seed: int) -> tuple[Any, Prepared]:
    from peft import LoraConfig, get_peft_model

    prepared, base, _ = data_and_base(folder, seed)
    for parameter in base.parameters():
        parameter.requires_grad_(True)
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="SEQ_CLS")
    return get_peft_model(base, config), prepared


def peft_same_batches(folder: Path, epochs: float, seed: int) -> float:
    model, prepared = peft_model(folder, seed)
    return _score_plain(train_by_hand(model, prepared, settings(epochs, seed)), prepared)


def peft_trainer(folder: Path, epochs: float, seed: int) -> float:
    model, prepared = peft_model(folder, seed)
    examples = [{"input_ids": e["input_ids"], "labels": e["label"]} for e in _with_labels(prepared)]
    ours_ = settings(epochs, seed)
    with tempfile.TemporaryDirectory() as output:
        arguments = transformers.TrainingArguments(
            output_dir=output, num_train_epochs=epochs, per_device_train_batch_size=BATCH, learning_rate=RATE,
            lr_scheduler_type="linear", warmup_steps=ours_.warmup_ratio, weight_decay=ours_.weight_decay,
            max_grad_norm=1.0, seed=seed,
            train_sampling_strategy="group_by_length", save_strategy="no", logging_strategy="no",
            report_to=[],
            disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        collate = transformers.DataCollatorWithPadding(prepared.tokenizer)
        trainer = transformers.Trainer(model=model, args=arguments, train_dataset=examples, data_collator=collate)
        trainer.train()
        model.eval()
        return _score_plain(model, prepared)


def _with_labels(prepared: Prepared) -> list[dict[str, Any]]:
    batch = prepared.task.collate(prepared.train.examples, prepared.pad_token_id)
    labels = batch["labels"].tolist()
    return [
        {"input_ids": e["input_ids"], "label": label} for e, label in zip(prepared.train.examples, labels, strict=True)
    ]


@torch.no_grad()
def _score_plain(model: torch.nn.Module, prepared: Prepared) -> float:
    held = prepared.held
    assert held is not None
    right = 0
    for start in range(0, len(held), 64):
        batch = prepared.task.collate(held.examples[start : start + 64], prepared.pad_token_id)
        labels = batch.pop("labels")
        right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(held)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--sets", nargs="+", default=["banking77", "bitext_support"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--epochs", type=float, default=2)
    options = parser.parse_args()
    quiet_libraries()
    print(
        f"MiniLM, rank {RANK}, alpha {ALPHA}, all-linear, rate {RATE}, batch {BATCH}, {options.epochs:g} epochs, fp32"
    )
    systems = {"ours": ours, "PEFT, same batches": peft_same_batches, "PEFT, Trainer": peft_trainer}
    for name in options.sets:
        results: dict[str, list[float]] = {label: [] for label in systems}
        for seed in options.seeds:
            for label, run in systems.items():
                results[label].append(run(options.data / name, options.epochs, seed))
                print(f"{name:<16} seed {seed} {label:<18} accuracy {results[label][-1]:.4f}", flush=True)
        for label, values in results.items():
            spread = statistics.stdev(values) if len(values) > 1 else float("nan")
            paired = [mine - theirs for mine, theirs in zip(results["ours"], values, strict=True)]
            apart = "" if label == "ours" else f"   ours less it, by seed: {' '.join(f'{d:+.4f}' for d in paired)}"
            print(f"{name:<16} {label:<18} mean {statistics.mean(values):.4f} ± {spread:.4f}{apart}", flush=True)


if __name__ == "__main__":
    main()

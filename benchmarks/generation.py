"""What an adapter writes before and after training, beside PEFT under equal settings.

    python benchmarks/generation.py --data DIR --models DIR [--set e2e_nlg] [--rows 2000] [--epochs 2] [--prompts 100]
        [--seed 0] [--no-peft]

Sets: e2e_nlg (a meaning representation to a sentence), medquad (medical questions, as conversations of two turns),
sgd_dialogues (dialogues of many turns, each answer learned). DIR of data holds a folder of each with train.jsonl and
test.jsonl, DIR of models small3m, a Llama of 3.2 million parameters that knows English words and little else. Training
rows are taken evenly over their file. Measured are the loss and one greedy answer to each of so many prompts, evenly
over the test file. PEFT loads our untrained adapter and takes the same batches in a loop by hand; what it has learned
is loaded as one more adapter, so that one evaluation measures base, ours and PEFT's. One thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from lora import DataConfig, LoRA, TrainingConfig, evaluate, fit
from lora.cli import quiet_libraries
from lora.data.rows import Row
from lora.data.sources import load_rows
from lora.evaluation.speed import spread
from lora.model.base import load_base, load_tokenizer
from lora.training.prepare import Prepared, prepare, read_rows
from peft_side import train_by_hand

SHOWN = ("loss", "perplexity", "token_accuracy", "bleu", "chrf", "rouge_l", "exact_match", "stop_rate", "answer_length")


@dataclass(frozen=True)
class Set:
    """How a data set is read, and how long an answer may be."""

    columns: DataConfig
    new_tokens: int
    asked: str | None = None  # the column of prompts that several rows share; None: every row has its own


SETS = {
    "e2e_nlg": Set(DataConfig(prompt_column="mr", completion_column="ref"), 96, "mr"),
    "medquad": Set(DataConfig(task="chat", max_length=384), 128),
    "sgd_dialogues": Set(DataConfig(task="chat", max_length=384), 48),
}


def test_rows(file: Path, column: str | None, prompts: int) -> list[Row]:
    """All rows of so many prompts, evenly over those of the file."""
    groups: dict[str, list[Row]] = {}
    for place, row in enumerate(load_rows(str(file), None)):
        groups.setdefault(str(place) if column is None else row[column], []).append(row)
    every = list(groups.values())
    return [row for place in spread(len(every), prompts) for row in every[place]]


def theirs(prepared: Prepared, folder: str, start: Path, settings: TrainingConfig, out: Path) -> None:
    """Train PEFT's model from our untrained adapter in ``start``; its adapter is left in ``out``."""
    from peft import PeftModel

    base = load_base(folder, "AutoModelForCausalLM", torch.float32)
    model = PeftModel.from_pretrained(base, str(start), is_trainable=True)
    train_by_hand(model, prepared, settings).save_pretrained(str(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--set", choices=list(SETS), default="e2e_nlg")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-peft", action="store_true", help="ours alone")
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    own = SETS[options.set]
    folder = str(options.models / "small3m")
    settings = TrainingConfig(
        epochs=options.epochs, learning_rate=2e-3, seed=options.seed, eval_every=None, dtype="float32"
    )
    model = LoRA(load_base(folder, "AutoModelForCausalLM", torch.float32), name=None)
    model.add_adapter("ours", rank=16, seed=options.seed)
    tokenizer = load_tokenizer(folder)
    every = load_rows(str(options.data / options.set / "train.jsonl"), None)
    rows = every[:: max(1, len(every) // options.rows)][: options.rows]
    prepared = prepare(model, read_rows(rows, False, own.columns, options.seed), tokenizer, own.columns.max_length)
    print(*prepared.notes, sep="\n")
    with tempfile.TemporaryDirectory() as scratch:
        start, out = Path(scratch, "start"), Path(scratch, "out")
        model.save_adapter("ours", start)
        begun = time.perf_counter()
        result = fit(model, [], adapter="ours", prepared=prepared, config=settings, progress=False)
        seconds = time.perf_counter() - begun
        print(f"{len(rows)} rows, {result.steps} steps, {result.tokens:,} tokens in {seconds:.0f} s")
        if not options.no_peft:
            theirs(prepared, folder, start, settings, out)
            model.load_adapter(out, "PEFT")
    begun = time.perf_counter()
    evaluation = evaluate(
        model, test_rows(options.data / options.set / "test.jsonl", own.asked, options.prompts), tokenizer=tokenizer,
        task=prepared.task, max_length=own.columns.max_length, latency=False, generate=options.prompts,
        max_new_tokens=own.new_tokens,
    )  # fmt: skip
    written = evaluation.generation
    assert written is not None, "it was asked for"
    print(
        f"{evaluation.rows} test rows, {len(written.answers)} prompts, {written.references} references of "
        f"{written.reference_length:.1f} tokens, measured in {time.perf_counter() - begun:.0f} s\n"
    )
    print(f"| | {' | '.join(evaluation.metrics)} |\n|---|{'---|' * len(evaluation.metrics)}")
    for key in SHOWN:
        print(f"| {key} | {' | '.join(f'{its[key]:.4f}' for its in evaluation.metrics.values())} |")
    print("\n" + "\n".join(written.signatures.values()))
    for answer in written.answers[:3]:
        asked = " / ".join(line for line in answer["prompt"].splitlines() if line)
        print(f"\n{asked[-200:]}\n  reference: {answer['references'][0]}")
        for name, text in answer["answers"].items():
            print(f"  {name}: {' '.join(text.split())}")


if __name__ == "__main__":
    main()

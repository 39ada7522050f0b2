"""What an adapter writes before and after training: E2E NLG, from a meaning representation to a text.

    python benchmarks/generation.py --data DIR --models DIR [--rows 2000] [--epochs 2] [--prompts 100] [--seed 0]

DIR of data holds e2e_nlg with train.jsonl and test.jsonl (rows with mr and ref), DIR of models small3m (a Llama of 3.2
million parameters that knows English words and little else). Training rows are taken evenly over their file. Measured
are all rows of so many meaning representations, evenly over the 630 of the test file: the loss, and one greedy answer
to each, scored beside all its references. One thread.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from lora import DataConfig, LoRA, evaluate, fit
from lora.cli import quiet_libraries
from lora.data.rows import Row
from lora.data.sources import load_rows
from lora.evaluation.speed import spread
from lora.model.base import load_base, load_tokenizer

SHOWN = ("loss", "perplexity", "token_accuracy", "bleu", "chrf", "rouge_l", "exact_match", "stop_rate", "answer_length")


def test_rows(file: Path, prompts: int) -> list[Row]:
    """All rows of ``prompts`` meaning representations, evenly over those of the file."""
    groups: dict[str, list[Row]] = {}
    for row in load_rows(str(file), None):
        groups.setdefault(row["mr"], []).append(row)
    every = list(groups.values())
    return [row for place in spread(len(every), prompts) for row in every[place]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=float, default=2)
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    folder = str(options.models / "small3m")
    model = LoRA(load_base(folder, "AutoModelForCausalLM", torch.float32), rank=16, seed=options.seed)
    tokenizer = load_tokenizer(folder)
    columns = DataConfig(prompt_column="mr", completion_column="ref")
    every = load_rows(str(options.data / "e2e_nlg" / "train.jsonl"), None)
    rows = every[:: max(1, len(every) // options.rows)][: options.rows]
    begun = time.perf_counter()
    result = fit(
        model, rows, False, tokenizer=tokenizer, data=columns, epochs=options.epochs, learning_rate=2e-3,
        seed=options.seed, progress=False,
    )  # fmt: skip
    trained = time.perf_counter()
    print(f"{len(rows)} rows, {result.steps} steps, {result.tokens:,} tokens in {trained - begun:.0f} s")
    evaluation = evaluate(
        model, test_rows(options.data / "e2e_nlg" / "test.jsonl", options.prompts), tokenizer=tokenizer, latency=False,
        generate=True, max_new_tokens=96,
    )  # fmt: skip
    written = evaluation.generation
    assert written is not None, "it was asked for"
    print(
        f"{evaluation.rows} test rows, {len(written.answers)} prompts, {written.references} references of "
        f"{written.reference_length:.1f} tokens, measured in {time.perf_counter() - trained:.0f} s\n"
    )
    print(f"| | {' | '.join(evaluation.metrics)} |\n|---|{'---|' * len(evaluation.metrics)}")
    for key in SHOWN:
        print(f"| {key} | {' | '.join(f'{its[key]:.4f}' for its in evaluation.metrics.values())} |")
    print("\n" + "\n".join(written.signatures.values()))
    for answer in written.answers[:3]:
        print(f"\n{answer['prompt']}\n  reference: {answer['references'][0]}")
        for name, text in answer["answers"].items():
            print(f"  {name}: {' '.join(text.split())}")


if __name__ == "__main__":
    main()

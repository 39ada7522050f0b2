"""What an adapter forgets of its base, and what KL to the base and replay do about it.

    python benchmarks/forgetting.py --data DIR --models DIR [--rows 600] [--epochs 1] [--seed 0]

Base: small3m, which has seen English novels; task: medquad, as conversations, rows of at most 256 tokens. Forgetting is
measured on pieces of 1000 characters of three novels and of stories that nobody trains on; replay takes such pieces of
two other novels. All runs begin with the same A; one with replay takes a ninth more steps. Intervals: 95 %, percentile
bootstrap over rows or texts; they hold nothing of the seed.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lora import LoRA, fit
from lora.cli import quiet_libraries
from lora.config import DataConfig
from lora.core.routing import BASE
from lora.evaluation.factors import factor, rate_ratio
from lora.evaluation.forgetting import measure_forgetting
from lora.tasks.inference import infer

LENGTH, RANK, RATE, BATCH, PIECE, TEXTS = 256, 16, 2e-3, 8, 1000, 60
RUNS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "KL 0.3": {"kl": 0.3},
    "KL 1": {"kl": 1.0},
    "replay 10 %": {"replay": True},
    "replay 10 %, KL 1 on all": {"replay": True, "kl": 1.0},
    "replay 10 %, KL 1 on replay": {"replay": True, "kl": 1.0, "kl_on": "replay"},
}


def pieces(files: list[Path], count: int) -> list[str]:
    """So many pieces, evenly over all files, each beginning with a word."""
    out = []
    for number, file in enumerate(files):
        text = " ".join(file.read_text(encoding="utf-8").split())
        share = count // len(files) + (number < count % len(files))
        for place in range(share):
            start = text.index(" ", len(text) * place // share) + 1
            out.append(text[start : start + PIECE])
    return out


def conversations(file: Path, tokenizer: Any, count: int) -> list[dict[str, Any]]:
    """The first rows that fit."""
    out = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        messages = [
            {"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]},
        ]  # fmt: skip
        if len(tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]) <= LENGTH:
            out.append({"messages": messages})
        if len(out) == count:
            break
    return out


def shown(found: dict[str, Any], form: str = ".3f") -> str:
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(given.models / "small3m")
    train = conversations(given.data / "medquad/train.jsonl", tokenizer, given.rows)
    held = conversations(given.data / "medquad/test.jsonl", tokenizer, 150)
    novels = given.data / "english_novels"
    probes = {
        "novels": pieces(sorted((novels / "test").glob("*.txt")), TEXTS),
        "stories": pieces([given.data / "tinystories/test.txt"], TEXTS),
    }
    general = [{"text": text} for text in pieces(sorted((novels / "validation").glob("*.txt")), 400)]
    file = Path("replay.jsonl").absolute()
    file.write_text("".join(json.dumps(row) + "\n" for row in general), encoding="utf-8")
    print(f"{len(train)} rows, {len(held)} held out; texts: { {key: len(value) for key, value in probes.items()} }")
    try:
        for name, settings in RUNS.items():
            base: Any = AutoModelForCausalLM.from_pretrained(given.models / "small3m", dtype=torch.float32)
            model = LoRA(base, name=None)
            model.add_adapter("default", rank=RANK, seed=given.seed)
            rest = dict(settings)
            data = DataConfig(max_length=LENGTH, replay=str(file) if rest.pop("replay", False) else None)
            begun = time.process_time()
            result = fit(
                model, train, held, tokenizer=tokenizer, data=data, epochs=given.epochs, batch_size=BATCH,
                seed=given.seed, learning_rate=RATE, eval_every=None, progress=False, **rest,
            )  # fmt: skip
            seconds = time.process_time() - begun
            prepared = result.data
            assert prepared.held is not None
            names = [BASE, "default"] if name == "nothing" else ["default"]
            found = infer(model, prepared.task, prepared.held, names, pad_token_id=prepared.pad_token_id)
            for each in names:
                rows = found[each].predictions
                losses, tokens = (np.asarray([row[key] for row in rows], dtype=float) for key in ("loss", "tokens"))
                label = "base" if each == BASE else name
                print(f"{label}: task loss {shown(factor(tokens, losses, rate_ratio))}")
            print(f"  {result.steps} steps, {seconds:.0f} s of the processor, {seconds / result.steps:.2f} a step")
            for kind, texts in probes.items():
                measured = measure_forgetting(model, ["default"], tokenizer, 512, texts)
                assert not isinstance(measured, str)
                before, after = measured.adapters[BASE]["loss"], measured.adapters["default"]
                print(
                    f"  {kind} ({measured.tokens:,} tokens): loss {before:.3f} to {after['loss']:.3f}, change "
                    f"{shown(after['loss_change'], '+.3f')}, KL {shown(after['kl'])}, same token "
                    f"{shown(after['same_token'], '.1%')}",
                    flush=True,
                )
    finally:
        file.unlink()


if __name__ == "__main__":
    main()

"""DPO beside TRL's DPOTrainer with PEFT: same base, pairs, rank, rate, beta and number of steps.

    python benchmarks/preference.py --data DIR --models DIR [--steps 30] [--seeds 0 1 2]

Data: pref_dpo_en_300; base: small3m, in float32, its own chat template. Pairs longer than 1024 tokens are left out on
both sides; 60 are kept for measuring. Each side trains in a process of its own; resident memory is the peak above what
it was when model and data were ready. Both adapters are measured by our `evaluate`: the reward is beta·log(π/π_ref).
TRL takes the adapter away for its reference, in a forward of its own, and pads; a row holds prompt and one answer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lora.cli import quiet_libraries
from speed import peak

LENGTH, BATCH, RANK, BETA, RATE = 1024, 4, 16, 0.1, 5e-4
HELD, WARMUP = 60, 2


def pairs(data: Path, models: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and held-out rows, none of which either side would leave out or cut."""
    from transformers import AutoTokenizer

    from lora.tasks import TASKS

    tokenizer = AutoTokenizer.from_pretrained(models / "small3m")
    rows = [json.loads(line) for line in (data / "pref_dpo_en_300/train.jsonl").read_text().splitlines()]
    task: Any = TASKS["preference"].from_rows(rows, {"prompt": "messages", "chosen": "chosen", "rejected": "rejected"})
    task = task.with_tokenizer(tokenizer)
    fit = []
    for row in rows:
        try:
            prompt, chosen, rejected = task.encode([row], tokenizer, LENGTH).examples[0]["branches"]
        except Exception:
            continue
        if prompt + max(chosen, rejected) <= LENGTH and not task.encode([row], tokenizer, LENGTH).truncated:
            fit.append(row)
    return fit[HELD:], fit[:HELD]


def ours(train: list[dict[str, Any]], model: Any, tokenizer: Any, steps: int, seed: int) -> Any:
    from lora import LoRA, fit
    from lora.config import DataConfig

    tuned = LoRA(model, name=None)
    tuned.add_adapter("default", rank=RANK, seed=seed)

    def run() -> Any:
        fit(
            tuned, train, False, tokenizer=tokenizer, max_steps=steps, batch_size=BATCH, learning_rate=RATE, seed=seed,
            warmup_steps=WARMUP, data=DataConfig(max_length=LENGTH, options={"beta": BETA}), progress=False,
        )  # fmt: skip
        return lambda folder: tuned.save_adapter("default", folder)

    return run


def trl(train: list[dict[str, Any]], model: Any, tokenizer: Any, steps: int, seed: int, scratch: Path) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import DPOConfig, DPOTrainer

    def answer(text: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": text}]

    rows = [
        {"prompt": row["messages"], "chosen": answer(row["chosen"]), "rejected": answer(row["rejected"])}
        for row in train
    ]
    settings = DPOConfig(
        output_dir=str(scratch), max_steps=steps, per_device_train_batch_size=BATCH, learning_rate=RATE, beta=BETA,
        max_length=LENGTH, seed=seed, report_to=[], save_strategy="no", logging_strategy="no", warmup_steps=WARMUP,
        lr_scheduler_type="linear", bf16=False, gradient_checkpointing=False, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    trainer = DPOTrainer(
        model=model, args=settings, train_dataset=Dataset.from_list(rows), processing_class=tokenizer,
        peft_config=LoraConfig(r=RANK, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    )  # fmt: skip

    def run() -> Any:
        trainer.train()
        return lambda folder: trainer.model.save_pretrained(str(folder))

    return run


def side(name: str, data: Path, models: Path, steps: int, seed: int, out: Path) -> None:
    """Train one side in this process; print seconds and MiB, and leave its adapter in ``out``."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(models / "small3m")
    model: Any = AutoModelForCausalLM.from_pretrained(models / "small3m", dtype=torch.float32)
    train, _ = pairs(data, models)
    made = (ours if name == "ours" else trl)(
        train, model, tokenizer, steps, seed, *(() if name == "ours" else (out / "scratch",))
    )
    taken: dict[str, Any] = {}

    class Once:
        def run(self, _: int) -> None:
            begun = time.perf_counter()
            taken["save"] = made()
            taken["seconds"] = time.perf_counter() - begun

    mib = peak(Once, steps)
    taken["save"](out / "adapter")
    print(json.dumps({"seconds": taken["seconds"], "mib": mib}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--side", choices=["ours", "TRL"], help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=Path("runs/preference"), help="folder for the adapters")
    options = parser.parse_args()
    quiet_libraries()
    if options.side:
        side(options.side, options.data, options.models, options.steps, options.seeds[0], options.out)
        return
    from transformers import AutoModelForCausalLM

    from lora import LoRA, evaluate
    from lora.tasks import TASKS, from_state

    train, held = pairs(options.data, options.models)
    print(f"{len(train)} pairs to train on, {len(held)} held out; {options.steps} steps of {BATCH}, beta {BETA}")
    columns = {"prompt": "messages", "chosen": "chosen", "rejected": "rejected"}
    task = from_state({**TASKS["preference"].from_rows(held, columns).state(), "beta": BETA})
    model = LoRA(AutoModelForCausalLM.from_pretrained(options.models / "small3m", dtype=torch.float32), name=None)
    cost: dict[str, list[dict[str, float]]] = {"ours": [], "TRL": []}
    for seed in options.seeds:
        for name in cost:
            out = options.out / f"{name}-{seed}"
            command = [sys.executable, __file__, "--data", options.data, "--models", options.models, "--side", name]
            command += ["--steps", options.steps, "--seeds", seed, "--out", out]
            done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(done.stderr)
            cost[name].append(json.loads(done.stdout.splitlines()[-1]))
            model.load_adapter(out / "adapter", f"{name} {seed}")
    result = evaluate(model, held, task=task, max_length=LENGTH)
    print(f"{'':<10}{'accuracy':>10}{'margin':>10}{'loss':>10}{'seconds':>10}{'MiB':>8}")
    rows = {"base": [result["base"]]} | {name: [result[f"{name} {seed}"] for seed in options.seeds] for name in cost}
    for name, found in rows.items():
        line = f"{name:<10}" + "".join(
            f"{statistics.mean(m[key] for m in found):>10.4f}" for key in ("accuracy", "margin", "loss")
        )
        if name in cost:
            line += f"{statistics.median(c['seconds'] for c in cost[name]):>10.1f}"
            line += f"{statistics.median(c['mib'] for c in cost[name]):>8.0f}"
        print(line)
    ratios = [b["seconds"] / a["seconds"] for a, b in zip(cost["ours"], cost["TRL"], strict=True)]
    print(f"ours is faster by {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()

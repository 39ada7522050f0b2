"""Memory and time from a file to the batches of an epoch: rows held in memory, token ids kept on disk, rows in parts.

    python benchmarks/streaming.py [--mib 6 24]

Files of prompts and completions are made. Each way runs in a process of its own: rows are read, recognised, split and
tokenised, and all batches of an epoch are read. Memory is counted above what the process has after the same with a few
rows.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

WAYS = {
    "held in memory": {"streaming": False, "cache": False},
    "held, token ids kept": {"streaming": False},
    "in parts, first run": {"streaming": True},
    "in parts, second run": {"streaming": True},
}
MIB = 1 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, nargs="+", default=[6, 24], help="sizes of the files")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        return child(**json.loads(arguments.child))
    for size in arguments.mib:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            rows = make(path, size * MIB)
            print(f"{rows:,} rows, {path.stat().st_size / MIB:.0f} MiB")
            for way, settings in WAYS.items():
                # Of its own for each of the two who keep something, so that both make it themselves.
                found = run(path, {"cache": f"{folder}/{way.partition(',')[0]}", **settings})
                print(
                    f"  {way:22}{found['seconds']:8.1f} s{found['memory']:8.0f} MiB resident"
                    f"{found['private']:8.0f} MiB without mapped files; {found['tokens']:,} tokens",
                    flush=True,
                )
    return None


def make(path: Path, size: int) -> int:
    """Write rows of together ``size`` bytes; how many they are."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 9))) for _ in range(5000)]
    count, written = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            prompt, completion = (" ".join(draw.choices(words, k=draw.randint(20, 100))) for _ in range(2))
            written += file.write(json.dumps({"prompt": prompt, "completion": completion}) + "\n")
            count += 1
    return count


def run(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    given = json.dumps({"path": str(path), "settings": settings})
    done = subprocess.run([sys.executable, __file__, "--child", given], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def child(path: str, settings: dict[str, Any]) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from lora.config import DataConfig
    from lora.data.batches import BatchPlan
    from lora.tasks.encoding import encode
    from lora.training.prepare import read_rows

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel()
    with open(path, encoding="utf-8") as file:
        sample = [next(file) for _ in range(500)]
    core.train_from_iterator(sample, trainers.BpeTrainer(vocab_size=4000, special_tokens=["</s>"], show_progress=False))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")

    def through(source: str, config: DataConfig) -> int:
        rows = read_rows(source, None, config, 0)
        encoded = encode(rows.task, rows.train, tokenizer, 1024, rows.shares, rows.cache)
        del rows
        tokens = 0
        for batch in BatchPlan(encoded.lengths, 16, 0).epoch(0):
            tokens += sum(len(encoded.examples[index]["input_ids"]) for index in batch)
        return tokens

    with tempfile.TemporaryDirectory() as folder:
        few = Path(folder) / "few.jsonl"
        few.write_text("".join(sample), encoding="utf-8")
        through(str(few), DataConfig(cache=False))  # libraries are loaded, allocators have their pools
        through(str(few), DataConfig(cache=False, streaming=True))
    before = memory()
    peaks, over = dict(before), threading.Event()
    watching = threading.Thread(target=watch, args=(peaks, over), daemon=True)
    watching.start()
    begun = time.perf_counter()
    tokens = through(path, DataConfig.make(settings))
    seconds = time.perf_counter() - begun
    over.set()
    found = {name: (peaks[name] - before[name]) / MIB for name in before}
    print(json.dumps({"seconds": seconds, "tokens": tokens, **found}))


def watch(peaks: dict[str, int], over: threading.Event) -> None:
    while not over.wait(0.005):
        for name, size in memory().items():
            peaks[name] = max(peaks[name], size)


def memory() -> dict[str, int]:
    """Resident bytes: all, and without pages of mapped files, which the system takes back when others need room."""
    return {"memory": int(status("VmRSS").split()[0]) * 1024, "private": int(status("RssAnon").split()[0]) * 1024}


def status(name: str) -> str:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main()

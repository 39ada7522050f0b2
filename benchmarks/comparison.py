"""LoRA against full fine-tuning on banking77 or SNIPS with MiniLM: the worked example of docs/compare.md.

    python benchmarks/comparison.py --data DIR [--set snips] [--rows 2000] [--held 700] [--output runs/compared]

DIR holds a folder per data set with train.jsonl and test.jsonl. Training rows are shuffled with seed 0; the first so
many train, the next validate; all test rows measure. Prints what `lora compare` prints; the page is
OUTPUT/compare.html.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from pathlib import Path

from lora.cli import main as lora
from lora.cli.demo import demo_base as minilm


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", default="snips")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--held", type=int, default=700)
    parser.add_argument("--output", default="runs/compared")
    options = parser.parse_args()
    every, test = (
        [{key: row[key] for key in ("text", "label")} for row in map(json.loads, file.read_text().splitlines())]
        for file in (options.data / options.set / f"{part}.jsonl" for part in ("train", "test"))
    )
    random.Random(0).shuffle(every)
    parts = {
        "train": every[: options.rows], "validation": every[options.rows : options.rows + options.held], "test": test,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in parts.items():
            Path(folder, f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        lora([
            "compare", "-m", minilm(), "-d", folder, "-o", options.output, "--ranks", "1,4,16", "--target-sets",
            "all-linear", "--seeds", "2", "--rate-factors", "0.333,1,3", "--epochs", "3", "--max-length", "48",
            "--batch-size", "32",
        ])  # fmt: skip


if __name__ == "__main__":
    main()

"""Cross-validation of SNIPS with MiniLM, some labels changed: the worked example of docs/cross-validation.md.

    python benchmarks/cross_validation.py --data DIR [--set snips] [--rows 420] [--wrong 12] [--alone]

DIR holds a folder per data set with train.jsonl. The first so many rows after a shuffle with seed 0 are taken, and the
labels of some changed, to see how many of them are found. --alone also trains the plain folds one after another, each
with the base to itself, and says what that takes.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

from lora import RunConfig, cross_validate
from lora.cli import main as lora
from lora.cli import quiet_libraries
from lora.cli.demo import demo_base as minilm

OPTIONS = {"training.epochs": 5, "training.learning_rate": 2e-3, "training.batch_size": 16, "data.max_length": 48}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--set", default="snips")
    parser.add_argument("--rows", type=int, default=420)
    parser.add_argument("--wrong", type=int, default=12)
    parser.add_argument("--output", default="runs/cv")
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    rows = [
        {key: row[key] for key in ("text", "label")}
        for row in map(json.loads, (options.data / options.set / "train.jsonl").read_text().splitlines())
    ]
    draw = random.Random(0)
    draw.shuffle(rows)
    rows, labels = rows[: options.rows], sorted({row["label"] for row in rows})
    wrong = set(draw.sample(range(len(rows)), options.wrong))
    for number in wrong:
        rows[number]["label"] = draw.choice([name for name in labels if name != rows[number]["label"]])
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "rows.jsonl")
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        lora([
            "cv", "-m", minilm(), "-d", str(data), "-o", options.output, "--folds", "5", "--shares", "0.1,0.3,1",
            "--ablate", "adapter.rank=1", "--ablate", "training.learning_rate=2e-4",
            *(part for key, value in OPTIONS.items() for part in (f"--{key.replace('_', '-')}", str(value))),
        ])  # fmt: skip
        lines = Path(options.output, "label_errors.jsonl").read_text().splitlines()
        found = [json.loads(line)["row"] - 1 for line in lines]
        print(f"{len(wrong & set(found))} of {len(wrong)} changed labels are among the {len(found)} in doubt, "
              f"{len(wrong & set(found[: len(wrong)]))} among the first {len(wrong)}.")  # fmt: skip
        if options.alone:
            quiet_libraries()
            for at_once in (None, 1):
                values = {"model": minilm(), "data.train": str(data), "output": str(Path(folder, f"{at_once}"))}
                begun = time.perf_counter()
                cross_validate(_config({**values, **OPTIONS}, at_once), folds=5, progress=False)
                said = "at once" if at_once is None else "one after another"
                print(f"5 folds {said}: {time.perf_counter() - begun:.0f} s")


def _config(values: dict[str, object], at_once: int | None) -> RunConfig:
    from lora.overrides import load_config

    return load_config(None, {**values, **({} if at_once is None else {"at_once": at_once})})


if __name__ == "__main__":
    main()

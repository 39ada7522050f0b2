"""Speed and memory of training beside PEFT, TRL and the bare frozen model: same model, data, tokens and types.

    python benchmarks/speed.py [--part single|encoder|many|all|scaling] [--quick] [--busy] [--output DIR]

single    a Llama of the 135M shape in bf16, instructions of Alpaca-like lengths, one adapter
encoder   MiniLM on short texts in eight classes, fp32 and bf16, one adapter
many      eight adapters at once against one after another, short and long rows
scaling   rank, number of adapters, length and model growing; pictures beside results.json in DIR (wants matplotlib)

All sides of a comparison live in one process and take turns, several times over. A figure is the median over the turns
of the ratio within a turn, with its least and greatest; absolute speeds are those of the machine. Tokens are real ones:
padding counts for nobody. Losses are means over the same steps from the same start, printed so that one sees that the
sides compute the same. Memory is the peak of resident memory above what it was when the side had been built, weights
included, each side in a process of its own (Linux).

--busy is for a machine that other jobs share: one thread, and processor time of this process in place of the wall's.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import functools
import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

import speed_models as models
import speed_sides as sides
from lora.cli import quiet_libraries

Sides = dict[str, Callable[[], Any]]
MANY = 8


def single(quick: bool) -> dict[str, Sides]:
    def base() -> torch.nn.Module:
        return models.llama(torch.bfloat16, quick)

    first = base()
    data = [models.prepared(first, models.instructions(models.alpaca_lengths(400, 0), first.config.vocab_size, 0))]
    built: Sides = {
        "ours": lambda: sides.Ours(base(), data, 8),
        "ours, compiled": lambda: sides.Ours(base(), data, 8, compile=True),
        "PEFT by hand": lambda: sides.Peft(base(), data, 8),
        "PEFT by hand, autocast, head of labelled tokens": lambda: sides.Peft(
            base(), data, 8, autocast=True, labelled=True
        ),
        "frozen model alone": lambda: sides.Floor(base(), data, 8),
    }
    if find_spec("trl"):
        built["TRL, packing"] = lambda: sides.Trl(base(), data, 8)
        built["TRL, packing, autocast"] = lambda: sides.Trl(base(), data, 8, autocast=True)
    else:
        print("TRL cannot be imported here, so it is left out.")
    return {"single": built}


def encoder(quick: bool) -> dict[str, Sides]:
    out: dict[str, Sides] = {}
    rows = models.labelled([5 + number * 7 % 21 for number in range(1280)], 0)  # 5 to 25 tokens
    data = [models.prepared(models.minilm(torch.float32), rows)]
    for label, dtype, dropout in (
        ("fp32", torch.float32, False),
        ("bf16", torch.bfloat16, False),
        ("fp32, with the model's dropout", torch.float32, True),
    ):
        base = functools.partial(models.minilm, dtype, dropout)
        out[f"encoder, {label}"] = {
            "ours": lambda base=base: sides.Ours(base(), data, 32),
            "PEFT by hand": lambda base=base: sides.Peft(base(), data, 32),
            "PEFT under Trainer": lambda base=base: sides.Trainer(base(), data, 32),
        }
    return out


def many(quick: bool) -> dict[str, Sides]:
    out: dict[str, Sides] = {}
    kinds: dict[str, Callable[[], torch.nn.Module]] = {
        "Llama, bf16": lambda: models.llama(torch.bfloat16, quick),
        "MiniLM, fp32": lambda: models.minilm(torch.float32),
    }
    for kind, base in kinds.items():
        for label, span in (("16-64", (16, 64)), ("512", (512, 512))):
            out[f"many, {kind}, rows of {label}"] = _many(base, span)
    return out


def _many(base: Callable[[], torch.nn.Module], span: tuple[int, int]) -> Sides:
    first = base()
    data = []
    for seed in range(MANY):
        lengths = [span[0] + (number * 37 + seed * 11) % (span[1] - span[0] + 1) for number in range(64)]
        rows = (
            models.labelled(lengths, seed)
            if first.config.model_type == "bert"
            else models.instructions(lengths, first.config.vocab_size, seed)
        )
        data.append(models.prepared(first, rows))
    # The speed of one after another is a rate: two adapters show it as well as eight.
    return {
        f"ours, {MANY} at once": lambda: sides.Ours(base(), data, 4),
        "ours, one after another": lambda: sides.Ours(base(), data[:2], 4, at_once=1),
        "PEFT, one after another": lambda: sides.Peft(base(), data[:2], 4),
    }


PARTS: dict[str, Callable[[bool], dict[str, Sides]]] = {"single": single, "encoder": encoder, "many": many}


def compare(title: str, built: Sides, steps: int, turns: int, memory: Callable[[str], float]) -> dict[str, Any]:
    """Run all sides in turn, print a table and return it; ratios are of the first side to each."""
    ready = {name: build() for name, build in built.items()}
    timed: dict[str, list[sides.Timed]] = {name: [] for name in ready}
    for _ in range(turns):
        for name, side in ready.items():
            timed[name].append(side.run(steps))
            print(f"{title}: {name}: {timed[name][-1].speed:.0f} tokens/s", file=sys.stderr, flush=True)
            give_memory_back()
    own = next(iter(timed))
    print(f"\n{title} ({turns} turns of {steps} steps, the first of each not counted)")
    print(f"{'':<50}{'tokens/s':>9}{'ours is faster by':>26}{'loss':>9}{'MiB':>7}")
    table = {}
    for name, runs in timed.items():
        ratios = [mine.speed / other.speed for mine, other in zip(timed[own], runs, strict=True)]
        line = {
            "speed": statistics.median(t.speed for t in runs),
            "ratio": [statistics.median(ratios), min(ratios), max(ratios)],
            "loss": runs[0].loss,
            "mib": memory(name),
        }
        median, least, most = line["ratio"]
        ratio = "" if name == own else f"{median:.2f}  ({least:.2f} to {most:.2f})"
        print(f"{name:<50}{line['speed']:>9.0f}{ratio:>26}{line['loss']:>9.4f}{line['mib']:>7.0f}", flush=True)
        table[name] = line
    for note in getattr(ready[own], "notes", []):
        print(f"  {note}")
    return table


def peak(build: Callable[[], Any], steps: int) -> float:
    """MiB that ``steps`` steps take above what the process had when its side was built; NaN where it is not known."""
    side = build()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except OSError:
        return float("nan")
    before = _resident("VmRSS")
    side.run(steps)
    return (_resident("VmHWM") - before) / 1024


def give_memory_back() -> None:
    """What one side has freed must not stay with the process: all together it would be more than the machine has."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=[*PARTS, "all", "scaling"], default="all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it works, not how fast it is")
    parser.add_argument("--busy", action="store_true", help="one thread, and its processor time")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--only", default="", help="only titles, or axes of scaling, with this in their name")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--output", type=Path, help="folder for results.json, and for the pictures of scaling")
    parser.add_argument("--peak-of", nargs=2, metavar=("TITLE", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.busy:
        torch.set_num_threads(1)
        sides.CLOCK[0] = time.process_time
    steps, turns = (3, 2) if options.quick else (options.steps, options.turns)
    if options.peak_of:
        title, name = options.peak_of
        print(peak(PARTS[options.part](options.quick)[title][name], 3))
        return
    if options.part == "scaling":
        import speed_scaling

        speed_scaling.run(options.quick, options.busy, steps, turns, options.only, options.output)
        return

    results: dict[str, Any] = {}
    for part in PARTS if options.part == "all" else [options.part]:
        for title, built in PARTS[part](options.quick).items():
            if options.only not in title:
                continue

            def memory(name: str, part: str = part, title: str = title) -> float:
                if options.no_memory:
                    return float("nan")
                flags = [flag for flag in ("quick", "busy") if getattr(options, flag)]
                command = [sys.executable, __file__, "--part", part, *(f"--{flag}" for flag in flags)]
                done = subprocess.run([*command, "--peak-of", title, name], capture_output=True, text=True)
                if done.returncode:
                    raise RuntimeError(done.stderr)
                return float(done.stdout.splitlines()[-1])

            results[title] = compare(title, built, steps, turns, memory)
            if options.output:
                options.output.mkdir(parents=True, exist_ok=True)
                (options.output / "results.json").write_text(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()

"""How speed and memory go as rank, adapters, length of rows and model grow; called by speed.py --part scaling.

A 135M Llama in bf16, or others of its kind. Each point is measured in a process of its own (peak memory does not go
down again), and all points of an axis take turns. Rows are of one length, so that nothing but the axis changes.
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

import speed_models as models
import speed_sides as sides
from lora.cli import quiet_libraries

# Axis: its values, those of --quick, and what it is called in a picture.
AXES = {
    "rank": ((4, 16, 64, 256), (4, 32), "rank (of keys and values at most 192, their width)"),
    "adapters": ((1, 2, 4, 8, 16, 32, 64), (1, 4), "adapters, 4 rows of 32 tokens each"),
    "length": ((64, 256, 1024, 4096), (64, 256), "tokens of a row, 4096 tokens in a batch"),
    "size": ((40, 135, 360, 1072), (135,), "millions of parameters"),
}


def point(axis: str, value: int, side: str, steps: int, quick: bool) -> dict[str, float]:
    """Tokens per second and MiB above the weights of one point, in this process."""
    import speed

    base = models.llama(torch.bfloat16, quick, value if axis == "size" else 135)
    rank, length, batch, count = sides.RANK, 128, 8, 1
    if axis == "rank":
        rank = value
    elif axis == "length":
        length, batch = value, max(1, (512 if quick else 4096) // value)
    elif axis == "adapters":
        length, batch, count = 32, 4, value
    data = [
        models.prepared(base, models.instructions([length] * batch * (steps + 2), base.config.vocab_size, seed))
        for seed in range(count)
    ]
    if side == "PEFT":
        built: Any = sides.Peft(base, data, batch, rank=rank)
    else:
        built = sides.Ours(base, data, batch, rank=rank, at_once=1 if side == "one after another" else None)
    timed: list[sides.Timed] = []

    class Once:
        def run(self, steps: int) -> None:
            timed.append(built.run(steps))

    mib = speed.peak(Once, steps)
    return {"speed": timed[0].speed, "mib": mib}


def run(quick: bool, busy: bool, steps: int, turns: int, only: str, output: Path | None) -> None:
    """Measure the axes whose name contains ``only``, print them, and draw them into ``output`` beside those there."""
    saved = None if output is None else output / "scaling.json"
    results: dict[str, Any] = json.loads(saved.read_text()) if saved is not None and saved.exists() else {}
    for axis, (values, few, _) in AXES.items():
        if only not in axis:
            continue
        others = ["ours", "one after another"] if axis == "adapters" else ["ours", "PEFT"]
        points = [(value, side) for value in (few if quick else values) for side in others]
        found: dict[tuple[int, str], list[dict[str, float]]] = {key: [] for key in points}
        for _ in range(turns):
            for value, side in points:
                if axis == "adapters" and side != "ours" and value > 2:
                    continue  # a rate: two adapters show it
                found[value, side].append(_child(axis, value, side, steps, quick, busy))
        results[axis] = [
            {"value": value, "side": side, **{key: statistics.median(f[key] for f in runs) for key in runs[0]}}
            for (value, side), runs in found.items()
            if runs
        ]
        for line in results[axis]:
            print(
                f"{axis:<10}{line['value']:>6}  {line['side']:<20}{line['speed']:>8.0f} tokens/s{line['mib']:>7.0f} MiB"
            )
        if saved is not None:  # after each axis: a run that is cut off has those before
            saved.parent.mkdir(parents=True, exist_ok=True)
            saved.write_text(json.dumps(results, indent=2))
            draw(results, saved.parent)


def _child(axis: str, value: int, side: str, steps: int, quick: bool, busy: bool) -> dict[str, float]:
    command = [sys.executable, __file__, axis, str(value), side, "--steps", str(steps)]
    command += [flag for flag, on in (("--quick", quick), ("--busy", busy)) if on]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def draw(results: dict[str, Any], output: Path) -> None:
    """A PNG for each axis: speed on the left, memory on the right."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("No pictures: matplotlib is not installed.")
        return
    for axis, lines in results.items():
        figure = Figure(figsize=(9, 3.5), layout="constrained")
        panels: Any = figure.subplots(1, 2)
        for panel, key, what in zip(panels, ("speed", "mib"), ("tokens per second", "MiB above the weights")):
            for side in dict.fromkeys(line["side"] for line in lines):
                mine = [line for line in lines if line["side"] == side]
                panel.plot([line["value"] for line in mine], [line[key] for line in mine], marker="o", label=side)
            panel.set_xscale("log", base=2)
            panel.set_ylim(0, 1.08 * max(line[key] for line in lines))
            ticks = sorted({line["value"] for line in lines})
            panel.set_xticks(ticks, [str(tick) for tick in ticks])
            panel.set_xlabel(AXES[axis][2])
            panel.set_ylabel(what)
            panel.grid(alpha=0.3)
        panels[0].legend()
        figure.savefig(output / f"scaling_{axis}.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description="One point; speed.py --part scaling calls it.")
    parser.add_argument("axis", choices=AXES)
    parser.add_argument("value", type=int)
    parser.add_argument("side")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--busy", action="store_true")
    options = parser.parse_args()
    quiet_libraries()
    if options.busy:
        torch.set_num_threads(1)
        sides.CLOCK[0] = time.process_time
    print(json.dumps(point(options.axis, options.value, options.side, options.steps, options.quick)))


if __name__ == "__main__":
    main()

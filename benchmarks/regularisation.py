"""What each kind of regularisation is worth on little data, beside a plain run.

    python benchmarks/regularisation.py --data DIR [--per-class 5 10] [--seeds 0 1 2] [--steps 360]
        [--rate 2e-3] [--test-per-class 20] [--dtype bfloat16] [--configs NAME ...] [--json FILE] [--products]

DIR holds banking77/train.jsonl and test.jsonl (77 intents). Base: all-MiniLM-L6-v2, whose own dropout of 0.1 acts in
every run, the plain one too. A seed draws the training rows, A, the head, the order of rows and all dropout; the runs
of a seed differ by one setting alone, and all of them train at once as adapters of one base. All take as many steps;
R-Drop's have twice the rows. `patience` needs rows that pick the best checkpoint: a fifth of the training rows (one of
five per class), which that run does not learn. The regularisers were not tuned; the common rate and number of steps
were chosen by the plain run of another seed, scored on 385 of the test rows. The same ones score every run.

Two intervals of each difference to the plain run, both 95 %: over test rows, all seeds' answers to a row drawn
together (`lora.statistics.compare_all` of pooled runs, p-values corrected by Holm), which says how far other test rows
would move it; and over seeds (Student's t of the differences by seed), which says how far other training rows, starts
and orders would. A default should change only where both leave out 0.

`--products`: how far the mean of the factors A and B that `average` keeps is from the mean of the products B·A.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student

from lora import LoRA, fit
from lora.cli import quiet_libraries
from lora.cli.demo import demo_base as minilm
from lora.model.base import load_base, load_tokenizer
from lora.statistics import compare_all, estimate
from lora.statistics.classes import ACCURACY, F1_MACRO, label_rows
from lora.statistics.rows import Rows, pooled
from lora.tasks.inference import infer
from lora.training.averaging import Average
from lora.training.job import Job

RANK, ALPHA, RATE, BATCH = 16, 32, 2e-3, 16
PLAIN = "plain"
# name -> (settings of the adapter, settings of training)
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    PLAIN: ({}, {}),
    "dropout 0.1": ({"dropout": 0.1}, {}),
    "dropout 0.3": ({"dropout": 0.3}, {}),
    "weight_decay 0.1": ({}, {"weight_decay": 0.1}),
    "label_smoothing 0.1": ({}, {"label_smoothing": 0.1}),
    "neftune_alpha 5": ({}, {"neftune_alpha": 5.0}),
    "neftune_alpha 15": ({}, {"neftune_alpha": 15.0}),
    "r_drop 1": ({}, {"r_drop": 1.0}),
    "average ema": ({}, {"average": "ema"}),
    "average swa": ({}, {"average": "swa"}),
    "average swa from 0.75": ({}, {"average": "swa", "average_from": 0.75}),
    "schedule constant": ({}, {"schedule": "constant"}),
    "schedule constant, average swa": ({}, {"schedule": "constant", "average": "swa"}),
    "patience 3": ({}, {"patience": 3, "eval_every": 24}),
}
METRICS = {"accuracy": ACCURACY, "macro F1": F1_MACRO}
Label = dict[str, list[dict[str, str]]]


def by_label(file: Path) -> Label:
    out: Label = defaultdict(list)
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        out[row["label"]].append(row)
    return dict(sorted(out.items()))


def draw(rows: Label, count: int, seed: int) -> list[list[dict[str, str]]]:
    """So many rows of each label."""
    generator = random.Random(seed)
    return [generator.sample(its, min(count, len(its))) for its in rows.values()]


class Products:
    """Notes of every adapter that averages the mean of its products B·A beside that of its factors."""

    def __init__(self) -> None:
        self.means: dict[int, tuple[Average, dict[str, torch.Tensor]]] = {}
        take, noted = Average.take, self.means

        @torch.no_grad()
        def noting(average: Average, step: int) -> None:
            take(average, step)
            if average.count == 0:
                return
            _, means = noted.setdefault(id(average), (average, {}))
            share = max(1 / average.count, 1 - average.decay)
            for key in (key.removesuffix(".A") for key in average.parameters if key.endswith(".A")):
                product = average.parameters[f"{key}.B"] @ average.parameters[f"{key}.A"]
                means[key] = product if key not in means else means[key].lerp(product, share)
                self.last[id(average)] = {k: v.clone() for k, v in average.tensors.items()}

        self.last: dict[int, dict[str, torch.Tensor]] = {}
        Average.take = noting  # type: ignore[method-assign]

    def apart(self) -> list[float]:
        """Of each average ‖mean(B)·mean(A) - mean(B·A)‖ / ‖mean(B·A)‖, over all layers together."""
        out = []
        for number, (_, means) in self.means.items():
            factors = self.last[number]
            between = sum(
                float((factors[f"{k}.B"] @ factors[f"{k}.A"] - mean).square().sum()) for k, mean in means.items()
            )
            out.append((between / sum(float(mean.square().sum()) for mean in means.values())) ** 0.5)
        self.means.clear()
        self.last.clear()
        return out


def run(
    names: list[str],
    train: Label,
    test: list[dict[str, str]],
    count: int,
    seed: int,
    steps: int,
    rate: float,
    dtype: torch.dtype,
) -> dict[str, Rows]:
    """The answers of each configuration to ``test``, trained on ``count`` rows of each label of ``train``."""
    chosen = draw(train, count, seed)
    held = max(1, count // 5)
    everything = [row for its in chosen for row in its]
    jobs = {}
    for name in names:
        adapter, training = CONFIGS[name]
        rows, held_rows = everything, None
        if "patience" in training:
            rows = [row for its in chosen for row in its[held:]]
            held_rows = [row for its in chosen for row in its[:held]]
        jobs[name] = Job(rows, held_rows or False, {"rank": RANK, "alpha": ALPHA, **adapter}, training)
    torch.manual_seed(seed)
    tokenizer = load_tokenizer(minilm())
    options = {"num_labels": len(train)}
    model = LoRA(load_base(minilm(), "AutoModelForSequenceClassification", dtype, options), name=None)
    results = fit(
        model, jobs, tokenizer=tokenizer, learning_rate=rate, batch_size=BATCH, max_steps=steps, seed=seed,
        eval_every=None, at_once=len(jobs), progress=False,
    )  # fmt: skip
    for name, result in results.items():
        if result.error:
            raise SystemExit(f"{name}: {result.error}")
    prepared = results[names[0]].data
    encoded = prepared.task.encode(test, tokenizer, prepared.max_length)
    found = infer(model, prepared.task, encoded, names, pad_token_id=prepared.pad_token_id, batch_size=128)
    true, labels = prepared.task.targets(encoded.examples), list(train)
    places = list(range(len(true)))
    return {
        name: label_rows(true, [said["label"] for said in found[name].predictions], labels=labels, groups=places)
        for name in names
    }


def over_seeds(differences: list[float]) -> tuple[float, float] | tuple[None, None]:
    """Student's 95 % interval of their mean; None of fewer than two."""
    if len(differences) < 2:
        return None, None
    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    reach = float(student.ppf(0.975, len(differences) - 1)) * error
    return mean - reach, mean + reach


def value(metric: Any, rows: Rows) -> float:
    return estimate(metric, rows, resamples=100).value


def summary(runs: dict[str, list[Rows]]) -> list[dict[str, Any]]:
    """Of each configuration and metric its mean, and what it differs by from the plain run."""
    out = []
    together = {name: pooled(its) for name, its in runs.items()}
    for key, metric in METRICS.items():
        each = {name: [value(metric, rows) for rows in its] for name, its in runs.items()}
        compared = compare_all(metric, together, PLAIN) if len(together) > 1 else {}
        for name, values in each.items():
            entry: dict[str, Any] = {"config": name, "metric": key, "mean": float(np.mean(values)), "by_seed": values}
            if name != PLAIN:
                apart = [mine - plain for mine, plain in zip(values, each[PLAIN], strict=True)]
                low, high = over_seeds(apart)
                entry |= {
                    "difference": float(np.mean(apart)), "seeds_low": low, "seeds_high": high,
                    "rows": compared[name].to_dict(),
                }  # fmt: skip
            out.append(entry)
    return out


def interval(difference: float, low: float | None, high: float | None) -> str:
    ends = "no interval" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"
    return f"{difference:+.3f} ({ends})"


def markdown(found: list[dict[str, Any]]) -> str:
    lines = ["| | " + " | ".join(f"{key} | less plain: over rows | over seeds" for key in METRICS) + " |"]
    lines.append("|---|" + "---|" * (3 * len(METRICS)))
    for name in dict.fromkeys(entry["config"] for entry in found):
        cells = [name if name == PLAIN else f"`{name}`"]
        for key in METRICS:
            entry = next(e for e in found if (e["config"], e["metric"]) == (name, key))
            cells.append(f"{entry['mean']:.3f}")
            if name == PLAIN:
                cells += ["", ""]
                continue
            rows = entry["rows"]
            cells.append(interval(rows["difference"], rows["low"], rows["high"]))
            cells.append(interval(entry["difference"], entry["seeds_low"], entry["seeds_high"]))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--per-class", nargs="+", type=int, default=[5, 10])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=360)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--test-per-class", type=int, default=20)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the base")
    parser.add_argument("--configs", nargs="+", default=list(CONFIGS), choices=list(CONFIGS))
    parser.add_argument("--json", type=Path, default=Path("regularisation.json"))
    parser.add_argument("--products", action="store_true")
    given = parser.parse_args()
    quiet_libraries()
    names = list(dict.fromkeys([PLAIN, *given.configs]))
    train, tested = (by_label(given.data / "banking77" / f"{part}.jsonl") for part in ("train", "test"))
    test = [row for its in draw(tested, given.test_per_class, 0) for row in its]
    products = Products() if given.products else None
    dtype = getattr(torch, given.dtype)
    out: dict[str, Any] = {}
    print(
        f"banking77, MiniLM, rank {RANK}, alpha {ALPHA}, all-linear, rate {given.rate}, batch {BATCH}, "
        f"{given.steps} steps, {given.dtype}; {len(test)} test rows, seeds {given.seeds}",
        flush=True,
    )
    for count in given.per_class:
        runs: dict[str, list[Rows]] = {name: [] for name in names}
        for seed in given.seeds:
            begun, spent = time.perf_counter(), time.process_time()
            for name, rows in run(names, train, test, count, seed, given.steps, given.rate, dtype).items():
                runs[name].append(rows)
            seconds, own = time.perf_counter() - begun, time.process_time() - spent
            said = " ".join(f"{value(ACCURACY, runs[name][-1]):.3f}" for name in names)
            print(f"{count} per class, seed {seed}: {said} ({seconds:.0f} s, of the processor {own:.0f})", flush=True)
            if products is not None:
                print("  mean of factors from mean of products:", " ".join(f"{x:.4f}" for x in products.apart()))
        out[str(count)] = summary(runs)
        print(f"\n{count} rows per class\n\n{markdown(out[str(count)])}\n", flush=True)
    settings = {key: value for key, value in vars(given).items() if key not in ("data", "json")}
    given.json.write_text(json.dumps({"settings": settings, "found": out}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

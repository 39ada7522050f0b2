"""Made-up comparisons to render: all kinds and statuses, one candidate, nothing defined, many, hostile names."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from reports import HOSTILE
from reports import SAMPLES as REPORTS

from lora.comparison.candidates import BASE, FULL, LOW_RANK, PROBE, Candidate, Outcome, Trial
from lora.comparison.page import render
from lora.comparison.reference import CONSTANT, Reference
from lora.comparison.result import ComparisonResult, Measured
from lora.comparison.spectrum import Spectrum, summed_up
from lora.comparison.trials import Chosen
from lora.comparison.verdict import Entry, judge, put_to_test
from lora.comparison.words import recommendation
from lora.config import AdapterConfig, ComparisonConfig, RunConfig
from lora.evaluation.html import render as render_report
from lora.statistics.estimate import estimate
from lora.statistics.means import EXACT_MATCH, right_rows
from lora.statistics.rows import pooled

ROWS, SEEDS = 1500, 2
MODULES = ("attention.self.query", "attention.self.value", "attention.output.dense", "output.dense")
# By name: kind, rank, targets, share right, trained parameters, bytes of memory, tokens in a second
ALL: dict[str, tuple[str, int | None, str, float, int, float | None, float]] = {
    "base": (BASE, None, "none", 0.31, 0, None, 0),
    "probe": (PROBE, None, "none", 0.72, 2_695, 0.5e9, 9000),
    "r1-attention": (LOW_RANK, 1, "attention", 0.865, 39_559, 0.61e9, 4100),
    "r4-attention": (LOW_RANK, 4, "attention", 0.927, 150_151, 0.62e9, 4000),
    "r16-attention": (LOW_RANK, 16, "attention", 0.932, 592_519, 0.64e9, 3800),
    "r1-all-linear": (LOW_RANK, 1, "all-linear", 0.9, 76_423, 0.63e9, 3300),
    "r4-all-linear": (LOW_RANK, 4, "all-linear", 0.934, 297_607, 0.65e9, 3200),
    "r16-all-linear": (LOW_RANK, 16, "all-linear", 0.935, 1_182_343, 0.7e9, 3000),
    "r64-all-linear": (LOW_RANK, 64, "all-linear", 0.0, 4_721_287, 0.8e9, 2700),
    "full": (FULL, None, "none", 0.937, 22_715_911, 1.1e9, 1100),
}
STOPPED = "r64-all-linear"


def _rows(share: float, seed: int) -> Any:
    """Of rows some are harder than others, for all candidates alike."""
    hard = np.random.default_rng(0).random(ROWS)
    noise = np.random.default_rng(seed).normal(0, 0.02, ROWS) + 0.3 * (
        np.random.default_rng(seed + 50).random(ROWS) < 0.03
    )
    return right_rows(list(hard + noise < share))


def _layers(kind: str, rank: int | None) -> dict[str, Spectrum]:
    random, out = np.random.default_rng(rank or 99), dict[str, Spectrum]()
    most = rank or 40
    for block in range(6):
        for place, module in enumerate(MODULES if kind == FULL or most > 1 else MODULES[:2]):
            values = np.exp(-np.arange(most) / (1 + 0.8 * block + place)) * (1 + 0.05 * random.random(most))
            values = tuple(map(float, np.sort(values)[::-1]))
            out[f"bert.encoder.layer.{block}.{module}"] = Spectrum(values, sum(v * v for v in values), most)
    if kind == FULL:
        out["bert.embeddings.word_embeddings"] = Spectrum((1.0, 0.5), 1.25, 2)
        out["bert.pooler.dense"] = Spectrum((0.0, 0.0), 0.0, 2)  # not changed
    return out


def _measured(name: str) -> Measured:
    kind, rank, targets, share, parameters, memory, speed = ALL[name]
    adapter = None if kind == BASE else AdapterConfig(rank=rank or 8, targets=targets)
    candidate = Candidate(name, kind, adapter)
    if kind == BASE:
        return Measured(Chosen(candidate, {}, None, None, False, {}, {}), _figures(share), parameters=0, stored=0)
    middle = {PROBE: 1e-2, LOW_RANK: 1e-3, FULL: 3e-5}[kind]
    stopped = Outcome(None, None, None, 7, 0.1, 900, "step 7: the loss is nan")
    tried = {
        rate: Outcome(max(0.0, share - 0.02 * abs(place - 2)), 0.3, 40, 120, 3.0, 60_000)
        for place, rate in enumerate((middle / 3, middle, 3 * middle))
    } | {10 * middle: stopped}
    if name == STOPPED:
        dead = Chosen(candidate, dict.fromkeys(tried, stopped), None, None, False, {}, {}, "step 7: the loss is nan")
        return Measured(dead, error="stopped in training: step 7: the loss is nan")
    end = kind == PROBE
    trials = {seed: Trial(candidate, 3 * middle, seed) for seed in range(SEEDS)}
    outcomes = dict.fromkeys(trials, tried[3 * middle])
    chosen = Chosen(candidate, tried, 3 * middle, 30 * middle if end else None, end, trials, outcomes)
    layers = {} if kind == PROBE else _layers(kind, rank)
    alone: dict[str, Any] = {"memory": memory, "kind": "main memory of the process (RSS)", "tokens_per_second": speed}
    if name == "r16-attention":
        alone = {"error": "killed"}
    ranks = [1, 4, 16] if kind == FULL else sorted({1, rank or 1})
    return Measured(chosen, _figures(share), parameters=parameters, stored=4 * parameters + 600, layers=layers,
                    spectrum=summed_up(layers, ranks), alone=alone)  # fmt: skip


def _figures(share: float) -> dict[int, Any]:
    begin = round(1e6 * share)
    return {seed: {"exact_match": (EXACT_MATCH, _rows(share, begin + seed))} for seed in range(SEEDS)}


def result(names: tuple[str, ...] = tuple(ALL), output: Path = Path("runs/compared"), margin: float = 0.011) -> Any:
    """As `lora.comparison.compare` concludes it."""
    found, entries, pools = [_measured(name) for name in names], list[Entry](), dict[str, Any]()
    for its in found:
        if not its.error:
            pools[its.name] = pooled([run["exact_match"][1] for run in its.runs.values()])
            its.estimates = {"exact_match": estimate(EXACT_MATCH, pools[its.name], resamples=300)}
            entries.append(Entry(its.name, its.kind, its.rank, its.said, its.estimates["exact_match"], its.costs()))
    rows = pooled([_rows(0.02, seed) for seed in range(SEEDS)])
    said = "always <b>'x'</b>, the most frequent class (8 of 400 rows)"
    reference = Reference(CONSTANT, said, {"exact_match": estimate(EXACT_MATCH, rows, resamples=300)}, tested=True)
    put_to_test(EXACT_MATCH, {**pools, CONSTANT: rows}, entries, reference=CONSTANT)
    verdict = judge(entries, margin)
    reference.beside(entries, verdict.best)
    ends = {its.name: its.chosen.end for its in found if its.chosen.end}
    words = recommendation(entries, verdict, ROWS, spectra={its.name: its.spectrum for its in found}, ends=ends)
    config = RunConfig(model="models/encoder-small", output=str(output))
    return ComparisonResult(
        output, config, ComparisonConfig(seeds=SEEDS), "exact_match", EXACT_MATCH, found, entries, verdict, words,
        ["4,000 rows train; 500 validation rows choose learning rates.", "Each is trained for 3 epochs."],
        ["Held out 500 of 4,500 rows."], 22_715_911, {"train": 4000, "validation": 500, "test": ROWS}, "classification",
        reference,
    )  # fmt: skip


@cache
def _written(names: tuple[str, ...]) -> str:
    return json.dumps(result(names).to_dict(), allow_nan=False)


def full() -> dict[str, Any]:
    """Every kind; best, enough, cannot tell, worse and stopped; one without memory and time."""
    return dict(json.loads(_written(tuple(ALL))))


def one() -> dict[str, Any]:
    """A single candidate came through."""
    return dict(json.loads(_written(("r4-attention",))))


def _changed(value: Any, number: Any) -> Any:
    if isinstance(value, dict):
        return {key: _changed(item, number) for key, item in value.items()}
    if isinstance(value, list):
        return [_changed(item, number) for item in value]
    return number(value) if isinstance(value, float) else value


def undefined() -> dict[str, Any]:
    """No number is defined, nothing is recommended."""
    told = _changed(full(), lambda value: None)
    told |= {"best": None, "recommended": None, "fronts": {}, "enough": [], "unknown": list(ALL)}
    for its in told["candidates"]:
        its["status"] = None if its["error"] else "unknown"
    return dict(told)


def losses() -> dict[str, Any]:
    """Less is better, and values are large."""
    told = _changed(full(), lambda value: 1e5 * (1.5 - value) if 0.2 < value < 1 else value)
    told["metric"] |= {"name": "perplexity", "higher_is_better": False}
    return dict(told)


def many(count: int = 60) -> dict[str, Any]:
    """More candidates than a chart can name, on deep models with layers of many kinds."""
    told = full()
    model = next(its for its in told["candidates"] if its["name"] == "r4-attention")
    told["candidates"] = []
    for place in range(count):
        its = json.loads(json.dumps(model))
        its |= {"name": f"r{place + 1}-set{place % 7}", "rank": place + 1, "targets": [f"set{place % 7}", "v"]}
        its |= {"parameters": 1000 * (place + 1) ** 3, "stored_bytes": 4000 * (place + 1) ** 3, "status": "undecided"}
        its["metrics"]["exact_match"]["value"] += math.sin(place) / 50
        if place == 1:
            layer = next(iter(its["layers"].values()))
            its["layers"] = {
                f"model.layers.{block}.mlp.experts.{kind}.up": layer for block in range(48) for kind in range(50)
            }
        its["layers"] = its["layers"] if place < 20 else {}
        told["candidates"].append(its)
    told["fronts"] = {"parameters": [its["name"] for its in told["candidates"][::6]]}
    return told


def hostile() -> dict[str, Any]:
    """Names and texts that a careless page would run, hide or break on."""
    told = full()
    names = {its["name"]: HOSTILE[place] for place, its in enumerate(told["candidates"])}
    for its in told["candidates"]:
        its |= {"name": names[its["name"]], "said": HOSTILE[0], "targets": [HOSTILE[1], HOSTILE[3]]}
        its["error"] = HOSTILE[7] if its["error"] else None
        its["memory_kind"] = HOSTILE[0]
        its["layers"] = {HOSTILE[place % 8] + path: own for place, (path, own) in enumerate(its["layers"].items())}
    for key in ("best", "recommended", "smallest"):
        told[key] = names.get(told[key])
    told["fronts"] = {cost: [names[name] for name in own] for cost, own in told["fronts"].items()}
    told |= {
        "recommendation": HOSTILE[0] + HOSTILE[3],
        "protocol": list(HOSTILE),
        "notes": list(HOSTILE),
        "task": HOSTILE[1],
    }
    told["metric"] |= {"name": HOSTILE[0]}
    told["config"] |= {"output": HOSTILE[7], "model": HOSTILE[3]}
    return told


def broken() -> dict[str, Any]:
    """Each part has another shape than it should."""
    told = full()
    shapes: list[Any] = [None, 3, "text", [], {}, [None], {"x": None}, [[1]], {"x": [1]}]
    parts = ("metrics", "rates", "runs", "against_best", "against_full", "spectrum", "layers", "targets", "parameters")
    for place, its in enumerate(told["candidates"]):
        for at, key in enumerate(parts):
            its[key] = shapes[(place + at) % len(shapes)]
    told["candidates"] += [None, 5, {}]
    return told | {"fronts": [1], "rows": None, "versions": "1", "protocol": {"a": 1}, "margin": "x", "config": []}


def beside_zero() -> dict[str, Any]:
    """Nothing but the base has a cost of 0, and costs lie close together."""
    told = full()
    for its in told["candidates"]:
        its["parameters"] = its["parameters"] and its["parameters"] // 1000 + 7
    return told


SAMPLES = {
    "full": full, "one": one, "undefined": undefined, "losses": losses, "many": many, "hostile": hostile,
    "broken": broken, "beside zero": beside_zero, "none": lambda: {"candidates": []},
}  # fmt: skip
# Every page that there is: by name what makes the JSON, and what renders it.
PAGES = {name: (make, render_report) for name, make in REPORTS.items()}
PAGES |= {f"comparison: {name}": (make, render) for name, make in SAMPLES.items()}


def alone(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """The evaluation of a report with the facts beside it, as `lora eval` writes it."""

    def made() -> dict[str, Any]:
        report = make()
        facts = {key: report[key] for key in ("base", "data", "versions", "config") if key in report}
        learned = {"rows": 90, "digest": "d1"}
        its = {"folder": "runs/support", "sha256": "5" * 64, "trained_on": learned, "begun_with": [{"folder": "x"}]}
        return {**report["evaluation"], **facts, "adapters": {"support": its}}

    return made


PAGES |= {f"evaluation alone: {name}": (alone(make), render_report) for name, make in REPORTS.items()
          if dict(make().get("evaluation") or {}).get("metrics")}  # fmt: skip

"""Reports to render: one with everything there can be, an old one, and those that would break a careless page."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np

from lora.evaluation.facts import course
from lora.evaluation.forgetting import Forgetting
from lora.evaluation.result import Evaluation, Generation, plain
from lora.evaluation.speed_plan import SpeedGrid
from lora.statistics.calibration import BRIER, brier_rows, confidence_and_right, ece, reliability
from lora.statistics.classes import ACCURACY, F1_MACRO, by_class, label_rows
from lora.statistics.compare import compare, correct
from lora.statistics.estimate import estimate
from lora.statistics.selective import risk_coverage, sure_rows
from lora.statistics.slices import by_slice
from lora.statistics.temperature import calibration_table, probabilities_at

INTENTS = ["cancel order", "delivery status", "payment problem", "praise", "product question", "refund", "change"]
HOSTILE = [
    "<script>document.title = 'taken over'</script>",
    '"><img src=https://example.org/x.png onerror="document.title = 1">',
    "&lt;b&gt; &amp; ' \" `",
    "אבג ‮ right to left ‬ مرحبا بالعالم",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u200b\u2028\u2029",
    "nul \x00 escape \x1b[31m bell \x07 c1 \x85 \x9f",
    "half a pair \ud83d and the other \ude00",
    "]]></style></script><!-- {{ 7 * 7 }} {% raw %} </title>",
    "w" * 100_000,
    "a | table | \\ cell *bold*\n# heading\n```fence```",
    "",
]


def history(steps: int = 900, every: int = 90) -> list[dict[str, Any]]:
    """Lines of ``metrics.jsonl``: a loss that falls, with noise."""
    random, out = np.random.default_rng(1), list[dict[str, Any]]()
    for step in range(1, steps + 1):
        loss = 0.25 + 2.1 * math.exp(-step / 150) + 0.09 * random.standard_normal()
        rate = 3e-4 * min(step / 45, (steps - step) / (steps - 45))
        out.append({"step": step, "loss": max(loss, 0.02), "learning_rate": rate, "grad_norm": 1 + random.random()})
        if step % every == 0:
            value = 0.88 * (1 - math.exp(-step / 170)) - 0.00004 * max(0, step - 600)
            measured = {"loss": 0.35 + 1.6 * math.exp(-step / 160) + max(0, step - 540) / 4500, "f1_macro": value}
            out.append({"step": step, "eval": measured, "best": step <= 630})
    return out


@cache
def _full() -> dict[str, Any]:
    random = np.random.default_rng(7)
    rows, many = 260, len(INTENTS)
    true = random.integers(0, many, rows)
    logits = {
        name: _logits(random, true, many, strength)
        for name, strength in (("base", 0.2), ("support", 3.1), ("support-small", 2.7))
    }
    said = {name: its.argmax(axis=1) for name, its in logits.items()}
    systems = {name: label_rows(list(true), list(its)) for name, its in said.items()}
    names = list(systems)
    compared: dict[str, dict[str, Any]] = {}
    for name in names[1:]:
        compared[name] = {
            "accuracy": compare(ACCURACY, systems[name], systems["base"]),
            "f1_macro": compare(F1_MACRO, systems[name], systems["base"], resamples=200),
        }
    pair = compare(ACCURACY, systems["support"], systems["support-small"]).to_dict()
    texts = [f"Message {place}: where is my parcel, order {place * 37}?" for place in range(rows)]
    lengths = [len(text) + int(random.integers(0, 300)) for text in texts]
    columns = {"label": [INTENTS[each] for each in true], "characters": lengths}
    evaluation = Evaluation(
        {name: _metrics(true, said[name], logits[name]) for name in names},
        rows,
        truncated=3,
        notes=["The held-out rows measured here also picked the best checkpoint; rows kept for a test alone say more."],
        task="classification",
        best_metric="f1_macro",
        greater_is_better=True,
        untrained_head=True,
        reference={"name": "always 'refund', the most frequent class", "metrics": {"accuracy": 45 / 260}},
        speed={
            **{name: _speed(factor) for name, factor in (("base", 1.0), ("support", 1.35), ("support-small", 1.2))},
        },
        speed_grid=SpeedGrid(
            [_passes(batch, length) for batch in (1, 8, 32) for length in (64, 256)],
            [_writing(batch) for batch in (1, 8)],
            "main memory of the whole process (RSS)",
            ["batches of 32 to write: left out, the 60 seconds were over."],
            61.2,
        ),
        peak_memory_bytes=867_934_208,
        peak_memory_kind="main memory of the whole process (RSS)",
        generation=_written(names),
        seconds=12.5,
        source="held-out.jsonl",
        intervals={
            name: {
                "accuracy": estimate(ACCURACY, its).to_dict(),
                "f1_macro": estimate(F1_MACRO, its, resamples=300).to_dict(),
            }
            for name, its in systems.items()
        },
        class_intervals={
            name: {
                INTENTS[its.labels[place]]: estimate(metric, its, resamples=200).to_dict()
                for place, metric in enumerate(by_class("F1", its))
            }
            for name, its in systems.items()
        },
        comparisons={name: {key: its.to_dict() for key, its in correct(own).items()} for name, own in compared.items()},
        pairs=[{**pair, "metric": "accuracy", "a": "support", "b": "support-small"}],
        calibration={name: _calibration(logits[name], true) for name in names},
        slices={name: by_slice(ACCURACY, systems[name], columns).to_dict() for name in names[1:]},
        robustness={"support": {"typos": {**pair, "difference": -0.0412}, "lower_case": pair}},
        errors={name: _errors(texts, true, said[name], logits[name]) for name in names[1:]},
        forgetting=_forgetting(names),
    )
    measured = plain(_forgetting(["base", "support"]))
    told = {"evaluation": evaluation.to_dict(), "forgetting": measured, "history": plain(course(history()))}
    return {"format": 1, **told, **_facts()}


def full() -> dict[str, Any]:
    """A report with everything: two adapters beside their base. Read back, as a program would."""
    return json.loads(json.dumps(_full()))


def _logits(random: np.random.Generator, true: Any, many: int, strength: float) -> Any:
    confused = np.eye(many)[(true + 1) % many] * (random.random(len(true)) < 0.35)[:, None]
    return random.standard_normal((len(true), many)) + strength * (np.eye(many)[true] + 0.7 * confused)


def _metrics(true: Any, said: Any, logits: Any) -> dict[str, Any]:
    matrix = np.zeros((len(INTENTS), len(INTENTS)), dtype=int)
    np.add.at(matrix, (true, said), 1)
    each = {}
    for place, name in enumerate(INTENTS):
        right, support, given = int(matrix[place, place]), int(matrix[place].sum()), int(matrix[:, place].sum())
        each[name] = {
            "precision": right / max(given, 1),
            "recall": right / max(support, 1),
            "f1": 2 * right / max(support + given, 1),
            "support": support,
        }
    f1 = float(np.mean([its["f1"] for its in each.values()]))
    loss = float(-np.log(probabilities_at(logits)[np.arange(len(true)), true]).mean())
    return {
        "accuracy": float((true == said).mean()),
        "f1_macro": f1,
        "f1_weighted": f1,
        "loss": loss,
        "per_class": each,
        "confusion": {"labels": INTENTS, "matrix": matrix.tolist()},
    }


def _calibration(logits: Any, true: Any) -> dict[str, Any]:
    probabilities = probabilities_at(logits)
    said, right = confidence_and_right(probabilities, true)
    coverage, risk = risk_coverage(sure_rows(said, right))
    return {
        "bins": [its.to_dict() for its in reliability(said, right, bins=10)],
        "ece": ece(said, right),
        "brier": BRIER.value(brier_rows(probabilities, true)),
        "temperature": calibration_table(logits, true),
        "selective": {"coverage": coverage.tolist(), "risk": risk.tolist()},
    }


def _errors(texts: list[str], true: Any, said: Any, logits: Any) -> list[dict[str, Any]]:
    sure = probabilities_at(logits).max(axis=1)
    wrong = sorted(np.flatnonzero(true != said), key=lambda place: -sure[place])
    return [
        {
            "row": int(place),
            "text": texts[place],
            "expected": INTENTS[true[place]],
            "answer": INTENTS[said[place]],
            "score": float(sure[place]),
        }
        for place in wrong[:60]
    ]


def _speed(factor: float) -> dict[str, Any]:
    own = {
        "latency_p50_ms": 8.74 * factor,
        "latency_p95_ms": 24.12 * factor,
        "latency_rows": 64,
        "rows_per_second": 255.7 / factor,
        "tokens_per_second": 3024.0 / factor,
    }
    if factor == 1:
        return own
    ends = {"value": factor, "low": factor - 0.05, "high": factor + 0.06}
    slower = {"value": 1 / factor, "low": 1 / factor - 0.05, "high": 1 / factor + 0.05}
    return {
        **own,
        "to_base": {
            "latency_p50_ms": ends,
            "latency_p95_ms": ends,
            "rows_per_second": slower,
            "tokens_per_second": slower,
        },
    }


def _passes(batch: int, length: int) -> dict[str, Any]:
    runs = {}
    for name, factor in (("base", 1.0), ("support", 1.2), ("support, merged", 1.01)):
        time = factor * batch**0.7 * length / 40
        own = {"p50_ms": time, "p95_ms": time * 1.2, "p99_ms": None, "rows_per_second": 1000 * batch / time}
        runs[name] = own | {"tokens_per_second": 1000 * batch * length / time, "peak_memory_bytes": 500 * 2**20 + batch}
        if name != "base":
            runs[name]["to_base"] = {"p50_ms": {"value": factor, "low": factor - 0.02, "high": factor + 0.03}}
    return {"batch_size": batch, "length": length, "repetitions": 64, "none": {"p99_ms": "100 times"}, "runs": runs}


def _writing(batch: int) -> dict[str, Any]:
    runs = {}
    for name, factor in (("base", 1.0), ("support", 1.3)):
        first = {f"first_token_p{share}_ms": 20 * factor * share / 50 for share in (50, 95, 99)}
        runs[name] = first | {"tokens_per_second": 40 * batch / factor, "peak_memory_bytes": 600 * 2**20}
        if name != "base":
            ends = {"value": factor, "low": None, "high": None}
            runs[name]["to_base"] = {"first_token_p50_ms": ends, "tokens_per_second": ends}
    return {"batch_size": batch, "prompt_tokens": 24, "new_tokens": 32, "repetitions": 12, "none": {}, "runs": runs}


def _forgetting(names: list[str]) -> Forgetting:
    adapters: dict[str, dict[str, Any]] = {}
    for place, name in enumerate(names):
        loss = 3.2104 + 0.0311 * place
        adapters[name] = {"loss": loss, "perplexity": math.exp(loss)}
        if place:
            adapters[name]["loss_change"] = {"value": loss - 3.2104, "low": 0.0171, "high": 0.0732}
            adapters[name]["kl"] = {"value": 0.0312 * place, "low": 0.0287 * place, "high": 0.0341 * place}
            adapters[name]["same_token"] = {"value": 0.9124, "low": 0.9011, "high": 0.9203}
    return Forgetting("next tokens", None, 60, 4096, adapters, {"tokens": [64] * 60}, [])


def _written(names: list[str]) -> Generation:
    answers = [
        {
            "prompt": f"A customer writes: my order {place} has not come. Answer in one sentence.",
            "references": [f"I am sorry: order {place} is on its way and comes tomorrow."],
            "answers": {
                name: f"{name} says that order {place} {'is, is, is' if name == 'base' else 'comes tomorrow.'}"
                for name in names
            },
        }
        for place in range(12)
    ]
    return Generation(answers, 12, 14.2, 64, {"bleu": "nrefs:1|case:mixed|tok:13a|version:2.6.0"})


def _facts() -> dict[str, Any]:
    return {
        "notes": [
            "Task classification: text from column 'text', label from column 'label'.",
            "Held out 260 of 2,600 rows.",
        ],
        "base": {
            "name": "models/encoder-small",
            "class": "BertForSequenceClassification",
            "fingerprint": "814b2b38377b4c4c",
        },
        "adapter": "support: 294,912 parameters, 1.28 % of the base's 22,715,911; rank 16, alpha 32\n  on 12 modules",
        "data": {
            "sources": [
                {"name": "data/train.jsonl", "split": "train", "sha256": "0fc3d3ba16d2983d" * 4, "weight": 1.0},
                {"name": "data/more.jsonl", "split": "train", "sha256": "9a41f00be2c3d4e5" * 4, "weight": 0.5},
            ],
            "train_rows": 2340,
            "held_out_rows": 260,
            "test_rows": 0,
        },
        "training": {
            "steps": 900,
            "epochs": 3.0,
            "seconds": 341.9,
            "tokens": 1_204_551,
            "tokens_per_second": 3523.1,
            "learning_rate": 3e-4,
            "best_step": 630,
            "best_metric": "f1_macro",
            "best_value": 0.8585,
            "stopped_early": False,
            "dtype": "bfloat16",
        },
        "checks_after_training": {"reloaded equals trained": "passed: outputs differ by 0e+00 of the largest"},
        "versions": {
            "lora": "0.1.0",
            "python": "3.11.7",
            "torch": "2.13.0",
            "transformers": "5.23.0",
            "sacrebleu": None,
        },
        "config": {
            "model": "models/encoder-small",
            "output": "runs/support-triage",
            "start": "runs/first/adapter",
            "adapter": {"rank": 16, "alpha": 32.0, "targets": "attention"},
            "training": {"learning_rate": 3e-4, "seed": 0},
        },
    }


def old() -> dict[str, Any]:
    """As an older version wrote it: one adapter, no series, nothing of statistics; and a key that nobody knows."""
    report = full()
    evaluation = report["evaluation"]
    kept = ("metrics", "rows", "notes", "task", "best_metric", "greater_is_better", "speed", "peak_memory_bytes")
    report["evaluation"] = {key: evaluation[key] for key in kept} | {"unknown": {"deep": [1]}, "generation": None}
    for table in ("metrics", "speed"):
        report["evaluation"][table].pop("support-small")
    del report["history"]["series"], report["forgetting"]
    return report


def hostile() -> dict[str, Any]:
    """Every text and name is one that a careless page would run, hide or break on."""
    report = full()
    evaluation = report["evaluation"]
    names = dict(zip(("support", "support-small"), (HOSTILE[0], HOSTILE[1])))
    for key in ("metrics", "speed", "intervals", "class_intervals", "comparisons", "calibration", "slices", "errors"):
        evaluation[key] = {names.get(name, name): value for name, value in evaluation[key].items()}
    evaluation["robustness"] = {HOSTILE[0]: {HOSTILE[3]: evaluation["robustness"]["support"]["typos"]}}
    labels = [HOSTILE[place % len(HOSTILE)][:200] + f" {place}" for place in range(len(INTENTS))]
    for own in evaluation["metrics"].values():
        own["confusion"]["labels"] = labels
        own["per_class"] = dict(zip(labels, own["per_class"].values()))
    for name, own in evaluation["class_intervals"].items():
        evaluation["class_intervals"][name] = dict(zip(labels, own.values()))
    for own in evaluation["errors"].values():
        for its, text in zip(own, HOSTILE * 9):
            its.update(text=text, expected=text[:500], answer=[text[:300], None, {"a": text[:10]}])
    for place, its in enumerate(evaluation["generation"]["answers"]):
        text = HOSTILE[place % len(HOSTILE)]
        its.update(prompt=text, references=[text, text[:90]], answers={HOSTILE[0]: text, "base": None})
    evaluation["notes"], report["notes"] = list(HOSTILE), [text[:2000] for text in HOSTILE]
    report["base"] = {text[:40]: text for text in HOSTILE}
    report["data"]["sources"][0] = {"name": HOSTILE[0], "split": HOSTILE[3], "sha256": "f" * 640}
    report["config"] = {"output": HOSTILE[7], "text": HOSTILE[1], "rtl": HOSTILE[3]}
    report[HOSTILE[4]], report["forgetting"] = HOSTILE[5], HOSTILE[0]
    evaluation["forgetting"]["adapters"] = {HOSTILE[1]: evaluation["forgetting"]["adapters"]["support"]}
    evaluation["forgetting"] |= {"source": HOSTILE[0], "notes": HOSTILE[:6]}
    evaluation["speed_grid"]["passes"][0]["runs"] = {
        HOSTILE[0]: evaluation["speed_grid"]["passes"][0]["runs"]["support"]
    }
    return report


def undefined() -> dict[str, Any]:
    """Every number is undefined."""

    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(item) for key, item in value.items()}
        if isinstance(value, list):
            return [without(item) for item in value]
        return None if isinstance(value, float) else value

    return without(full())


def broken() -> dict[str, Any]:
    """Each part has another shape than it should."""
    report = full()
    shapes: list[Any] = [
        None,
        3,
        "text",
        [],
        {},
        [None],
        {"support": None},
        {"support": []},
        {"support": {"x": [1]}},
        [[1]],
    ]
    parts = (
        "speed",
        "intervals",
        "class_intervals",
        "comparisons",
        "pairs",
        "calibration",
        "slices",
        "robustness",
        "errors",
        "forgetting",
        "speed_grid",
    )
    for place, key in enumerate(parts):
        report["evaluation"][key] = shapes[place % len(shapes)]
    report |= {"history": [1], "data": 5, "base": ["a"], "notes": {"a": 1}, "versions": "1", "config": []}
    return report


def many_classes(count: int = 150) -> dict[str, Any]:
    """A matrix wider than any page; ``count`` 1: of one class alone."""
    report, random = full(), np.random.default_rng(3)
    labels = [f"class {place:03d}" for place in range(count)]
    matrix = np.diag(random.integers(3, 20, count))
    for _ in range(count * 2 if count > 1 else 0):
        matrix[random.integers(0, count), random.integers(0, count)] += 1
    each = {
        name: {"precision": 0.9, "recall": 0.8, "f1": float(random.random()), "support": int(matrix[place].sum())}
        for place, name in enumerate(labels)
    }
    for own in report["evaluation"]["metrics"].values():
        own.update(confusion={"labels": labels, "matrix": matrix.tolist()}, per_class=each)
    return report


def empty() -> dict[str, Any]:
    """Nothing was held out, nothing was trained."""
    return {"format": 1, "evaluation": None, "history": course([])}


SAMPLES = {
    "full": full,
    "old": old,
    "hostile": hostile,
    "undefined": undefined,
    "broken": broken,
    "many classes": many_classes,
    "one class": lambda: many_classes(1),
    "no history": lambda: {**full(), "history": {}},
    "empty": empty,
    "none": dict,
}

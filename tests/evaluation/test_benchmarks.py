"""What is said of lm-eval's results: paired tests of each adapter against the base, corrected for their number."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from lora.evaluation import benchmarks as module
from lora.evaluation.benchmarks import FEW_DOCUMENTS, Benchmarks, collected
from lora.statistics import compare, corrected
from lora.statistics.means import EXACT_MATCH, right_rows


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "version", lambda name: "0.0")


def found_of(documents: int = 200, **means: Any) -> dict[str, dict[str, Any]]:
    """As lm-eval gives it: each of ``means`` a number, or the values of documents; by adapter and metric."""
    out: dict[str, dict[str, Any]] = {}
    for name, metrics in means.items():
        samples: list[dict[str, Any]] = [{"filter": "none"} for _ in range(documents)]
        numbers: dict[str, Any] = {"sample_len": documents}
        for metric, values in metrics.items():
            if isinstance(values, float):
                numbers[f"{metric},none"] = values
                continue
            numbers[f"{metric},none"] = float(np.mean(values))
            for sample, value in zip(samples, values, strict=True):
                sample[metric] = value
        out[name] = {
            "results": {"t": numbers}, "samples": {"t": samples}, "versions": {"t": 1}, "n-shot": {"t": 0},
            "higher_is_better": {"t": {"acc": True, "wrong": False, "f": True, "ppl": False}},
        }  # fmt: skip
    return out


def told(documents: int = 200, **means: Any) -> Benchmarks:
    return collected(found_of(documents, **means), [], False, 1.0)


def right(share: float, documents: int = 200, seed: int = 0) -> list[float]:
    return np.random.default_rng(seed).permutation(np.arange(documents) < share * documents).astype(float).tolist()


def test_each_adapter_and_metric_has_a_test_and_all_are_one_family() -> None:
    base, good, same = right(0.4), right(0.7, seed=1), right(0.4, seed=2)
    both = {"base": base, "good": good, "same": same}
    found = told(**{name: {"acc": its, "wrong": [1 - value for value in its]} for name, its in both.items()})
    alone = [compare(EXACT_MATCH, right_rows(its), right_rows(base)).p_value for its in (good, same)]
    family = corrected([alone[0], alone[0], alone[1], alone[1]])
    for metric in ("acc", "wrong"):
        own = {name: found["t"][metric][name]["to_base"] for name in ("good", "same")}
        assert own["good"]["p_value"] == alone[0] and own["good"]["p_corrected"] == family[0] > alone[0]
        assert own["same"]["p_corrected"] == family[2] and own["good"]["comparisons"] == 4
        assert (own["good"]["verdict"], own["same"]["verdict"]) == ("better", "no difference seen")
        assert own["good"]["test"] == "mcnemar" and own["good"]["n"] == 200
    assert found["t"]["acc"]["good"]["to_base"]["low"] > 0 > found["t"]["wrong"]["good"]["to_base"]["high"]
    assert "to_base" not in found["t"]["acc"]["base"] and found.notes == []
    json.dumps(found.to_dict(), allow_nan=False)


def test_the_words_stand_in_a_table() -> None:
    found = told(base={"acc": right(0.7)}, a={"acc": right(0.4, seed=1)})
    grid = found.tests()
    assert grid is not None
    own, text = found["t"]["acc"]["a"]["to_base"], grid.markdown()
    assert f"| a | t: acc | {own['value']:+.3f} ({own['low']:+.3f} to {own['high']:+.3f}) |" in text
    assert f"| {own['p_corrected']:.2g} | worse | {own['detectable']:.3f} |" in text
    assert "Not known" not in text and "corrected (Holm)" in text
    assert ("red" in str(found.grid().rows[0])) and told(a={"acc": right(0.4)}).tests() is None


def test_what_has_no_value_by_document_is_not_known() -> None:
    found = told(base={"ppl": 7.0, "f": [0.5, 0.25] * 100}, a={"ppl": 5.0, "f": [0.5, 0.75] * 100})
    assert found["t"]["ppl"]["a"]["to_base"]["verdict"] == "not known"
    own = found["t"]["f"]["a"]["to_base"]
    assert (own["test"], own["verdict"], own["comparisons"]) == ("bootstrap", "better", 1)
    grid = found.tests()
    assert grid is not None and "Not known" in grid.markdown()
    # A mean over documents that is not what lm-eval made of them is none of it.
    odd = found_of(base={"acc": right(0.4)}, a={"acc": right(0.7)})
    odd["a"]["results"]["t"]["acc,none"] = 0.9
    assert collected(odd, [], False, 1.0)["t"]["acc"]["a"]["to_base"]["p_value"] is None


def test_few_documents_are_said() -> None:
    few = FEW_DOCUMENTS - 1
    found = told(few, base={"acc": right(0.4, few)}, a={"acc": right(0.7, few)})
    assert found.notes[0].startswith(f"Few documents: t ({few}).") and found.notes[0] in found.grid().below
    enough = FEW_DOCUMENTS
    assert told(enough, base={"acc": right(0.4, enough)}, a={"acc": right(0.7, enough)}).notes == []

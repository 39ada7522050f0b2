"""The report: what it holds, that programs can read it, and that a half-written one is never seen."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from figures import Page, wrong
from tiny_rows import labelled

from lora.errors import SaveError
from lora.evaluation.curves import draw, running_mean, series
from lora.evaluation.evaluate import evaluate
from lora.evaluation.report import write_report
from lora.evaluation.result import Evaluation
from lora.model.lora import LoRA

FACTS = {
    "config": {"model": "base", "training": {"learning_rate": 3e-4, "clip": None}, "data": {"text_column": "ä|b"}},
    "adapter": "default: plain, rank 4\n  on 12 modules: ```query```",
    "data": {"sources": {"train.jsonl": "abc123"}, "train_rows": 30},
    "notes": ["3 rows were longer than <s> | 40 tokens."],
    "training": {"steps": 4, "stopped_early": False, "best_value": math.nan, "folder": Path("run")},
    "base": {"fingerprint": "0123456789abcdef"},
    "anything_else": {"more": 1},
    "empty": {},
}
HISTORY: list[dict[str, Any]] = [
    {"step": 1, "loss": 2.0, "learning_rate": 1e-4, "grad_norm": 1.0},
    {"step": 2, "loss": 1.5, "learning_rate": 2e-4, "grad_norm": math.inf},
    {"step": 2, "eval": {"loss": 1.25, "f1_macro": 0.625, "accuracy": None}, "best": True},
    {"step": 3, "loss": 1.0, "learning_rate": 1e-4},
    {"step": 3, "eval": {"loss": math.nan, "f1_macro": 0.5}, "best": False},
]


def strict(text: str) -> Any:
    """JSON without the words NaN and Infinity, which Python's reader lets pass."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


def flat(loss: float, accuracy: float, **others: Any) -> dict[str, Any]:
    return {"loss": loss, "accuracy": accuracy, "f1_macro": accuracy / 2, **others}


def classes(count: int, spoiled: int = 0) -> Evaluation:
    """An evaluation of ``count`` classes with four rows each; the first ``spoiled`` lose rows to the next class."""
    names = [f"class {place}" for place in range(count)]
    matrix = [[4 if row == column else 0 for column in range(count)] for row in range(count)]
    for row in range(spoiled):
        matrix[row][row], matrix[row][row + 1] = 4 - (1 + row % 3), 1 + row % 3
    each = {
        name: {"precision": 1.0, "recall": 1.0, "f1": place / count, "support": 4} for place, name in enumerate(names)
    }
    detail = {"per_class": each, "confusion": {"labels": names, "matrix": matrix}}
    return Evaluation(
        {"base": flat(2, 0.1, **detail), "tuned": flat(1, 0.9, **detail)}, 4 * count, best_metric="f1_macro"
    )


def test_report_of_a_real_evaluation(classifier: LoRA, tokenizer: Any, tmp_path: Path) -> None:
    evaluation = evaluate(classifier, labelled(30), tokenizer=tokenizer, max_length=8, latency_rows=3)
    path = write_report(tmp_path / "run", FACTS, HISTORY, evaluation)
    assert path == tmp_path / "run" / "report.md"
    told = strict((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert told["evaluation"]["metrics"] == evaluation.metrics
    assert told["evaluation"]["speed"] == evaluation.speed
    assert told["evaluation"]["truncated"] == evaluation.truncated > 0
    assert told["training"] == {"steps": 4, "stopped_early": False, "best_value": None, "folder": "run"}
    assert told["history"]["evaluations"][1]["eval"] == {"loss": None, "f1_macro": 0.5}
    assert told["history"]["last"] == HISTORY[3]
    assert set(told["versions"]) >= {"python", "torch", "transformers", "lora"}
    page = Page((tmp_path / "run" / "report.html").read_text(encoding="utf-8"))
    figures = [element for element in page.elements if "data-path" in element.attributes]
    assert len(figures) > 100 and not [found for each in figures if (found := wrong(told, each.attributes, each.said))]
    text = path.read_text(encoding="utf-8")
    for name in ("base", "tuned"):
        for key in ("accuracy", "f1_macro", "f1_micro", "f1_weighted", "loss"):
            assert f"| {evaluation[name][key]:.4f} |" in text
        assert f"| {evaluation.speed[name]['latency_p50_ms']:,.2f} |" in text
    assert f"{evaluation['tuned']['accuracy'] - evaluation['base']['accuracy']:+.4f}" in text
    bill, before = evaluation["tuned"]["per_class"]["bill"], evaluation["base"]["per_class"]["bill"]["f1"]
    row = [f"{bill[key]:.4f}" for key in ("precision", "recall", "f1")]
    its = evaluation.class_intervals["tuned"]["bill"]
    ends = f" ({its['low']:.4f}–{its['high']:.4f})"
    assert f"| bill | {bill['support']} | {' | '.join(row)}{ends} | {before:.4f} |" in text
    counts = evaluation["tuned"]["confusion"]["matrix"][0]
    assert f"| bill | {' | '.join(map(str, counts))} |" in text
    assert all(note in text for note in evaluation.notes) and evaluation.notes


def test_headline_comes_first_and_config_last(tmp_path: Path) -> None:
    evaluation = Evaluation(
        {"base": flat(2, 0.125), "tuned": flat(1, 0.875)}, 40, best_metric="accuracy", untrained_head=True,
        reference={"name": "always 'x', the most frequent class (10 of 40 rows)", "metrics": {"accuracy": 0.25}},
    )  # fmt: skip
    text = write_report(tmp_path, FACTS, HISTORY, evaluation).read_text(encoding="utf-8")
    assert text.splitlines()[2] == (
        "**accuracy 0.8750 with tuned (+0.7500), 0.1250 with base (untrained head), on 40 rows**"
    )
    assert "always 'x', the most frequent class (10 of 40 rows): accuracy 0.2500." in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == [
        "## Evaluation on 40 rows", "## Course of training", "## Lineage", "## Notes", "## Base", "## Adapter",
        "## Data", "## Training", "## Anything else", "## Versions", "## Config",
    ]  # fmt: skip
    config = text.rpartition("```yaml\n")[2].rpartition("\n```")[0]
    assert yaml.safe_load(config) == FACTS["config"]
    assert "3 rows were longer than &lt;s> \\| 40 tokens." in text  # neither a tag nor the end of a cell
    assert f"````\n{FACTS['adapter']}\n````" in text  # a fence inside does not end the block
    assert "| 2 | 1.2500 | 0.6250 | best |" in text and "| 3 | nan | 0.5000 |  |" in text


def test_without_evaluation_or_history(tmp_path: Path) -> None:
    text = write_report(tmp_path, {"notes": []}, [], None).read_text(encoding="utf-8")
    assert "Nothing was held out" in text and "Course" not in text and "## Notes" not in text
    told = strict((tmp_path / "report.json").read_text())
    assert told["evaluation"] is None and told["history"]["evaluations"] == []
    assert not (tmp_path / "curves.png").exists()


def test_numbers_that_are_none_nan_or_infinite(tmp_path: Path) -> None:
    metrics = {"base": {"loss": math.inf, "r2": None}, "tuned": {"loss": math.nan, "r2": 0.5}}
    evaluation = Evaluation(metrics, 3, best_metric="loss")
    text = write_report(tmp_path, {}, [], evaluation).read_text(encoding="utf-8")
    assert "| R² | – | 0.5000 | – |" in text
    assert "| loss | inf | nan | – |" in text
    assert strict((tmp_path / "report.json").read_text())["evaluation"]["metrics"]["base"] == {"loss": None, "r2": None}


def test_several_adapters_have_their_differences_in_brackets() -> None:
    evaluation = Evaluation({"base": flat(2, 0.5), "a": flat(1, 0.75), "b": flat(3, 0.25)}, 8)
    assert "| accuracy | 0.5000 | 0.7500 (+0.2500) | 0.2500 (-0.2500) |" in evaluation.to_markdown()


def test_a_difference_that_rounds_to_zero_has_no_direction() -> None:
    evaluation = Evaluation({"base": flat(2, 0.5), "tuned": flat(2, 0.499999)}, 8)
    assert "| accuracy | 0.5000 | 0.5000 | +0.0000 |" in evaluation.to_markdown()


def test_many_classes_show_the_most_confused_pairs() -> None:
    text = classes(20, spoiled=18).to_markdown()
    _, _, confused = text.rpartition("## Most confused: tuned\n\n")
    lines = confused.splitlines()
    assert len([line for line in lines if line.startswith("| class")]) == 15
    assert lines[2] == "| class 2 | class 3 | 3 | 75% |"
    assert "3 more pairs, each with 1 row or fewer." in confused
    assert text.index("| class 0 | 4 |") < text.index("| class 19 | 4 |")  # the worst first
    assert "No row was taken for another class." in classes(20).to_markdown()
    assert "| true ↓ predicted → | class 0 | class 1 | class 2 |" in classes(3, spoiled=1).to_markdown()


def test_table_for_a_terminal() -> None:
    from rich.console import Console

    evaluation = classes(3)
    evaluation.metrics = {"base": flat(1, 0.5), "[red]tuned": flat(2, 0.75)}
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(evaluation.table())
    shown = console.export_text(clear=False)
    row = next(line for line in shown.splitlines() if "accuracy" in line)
    assert [cell.strip() for cell in row.strip("│┃ ").split("│")] == ["accuracy", "0.5000", "0.7500", "+0.2500"]
    assert "[red]tuned" in shown  # a name is no markup
    styles = {str(cell): cell.style for column in evaluation.table().columns for cell in column.cells}
    assert styles["+0.2500"] == "green" and styles["+1.0000"] == "red"  # accuracy up is good, loss up is not


def test_to_dict_is_plain(classifier: LoRA, tokenizer: Any) -> None:
    evaluation = evaluate(classifier, labelled(6), tokenizer=tokenizer, latency=False)
    assert json.loads(json.dumps(evaluation.to_dict(), allow_nan=False)) == evaluation.to_dict()


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report(tmp_path, {"notes": ["first"]}, [], None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(SaveError, match="no space left"):
        write_report(tmp_path, {"notes": ["second"]}, [], None)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_curves() -> None:
    found = series(HISTORY)
    assert found["loss"] == ([1, 2, 3], [2.0, 1.5, 1.0])
    assert found["eval.loss"] == ([2], [1.25])  # what is not finite is left out
    assert found["grad_norm"] == ([1], [1.0])
    assert running_mean([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]


def test_curves_are_drawn_where_matplotlib_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    text = write_report(tmp_path, {}, HISTORY, None).read_text(encoding="utf-8")
    assert "(curves.png)" in text
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert draw(HISTORY) is None
    text = write_report(tmp_path / "other", {}, HISTORY, None).read_text(encoding="utf-8")
    assert "curves.png" not in text and not (tmp_path / "other" / "curves.png").exists()


def test_counts_have_no_difference() -> None:
    metrics = {"loss": 1.0, "tokens": 9}
    evaluation = Evaluation({"base": metrics, "a": metrics}, 3)
    assert "| supervised tokens | 9 | 9 |  |" in evaluation.to_markdown()
    evaluation.metrics["b"] = metrics
    assert "| supervised tokens | 9 | 9 | 9 |" in evaluation.to_markdown()

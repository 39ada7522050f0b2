"""``lora report``: any report.json rendered again; Markdown has the same sections."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from reports import SAMPLES, full, history, old

from lora.cli import main
from lora.errors import ConfigError
from lora.evaluation.curves import POINTS, thinned
from lora.evaluation.facts import course
from lora.evaluation.forgetting import Forgetting
from lora.evaluation.html import render
from lora.evaluation.report import write_report
from lora.evaluation.result import Evaluation, rebuilt
from lora.evaluation.saved import read_report


def written(folder: Path, report: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder


def test_the_command_writes_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path / "run", full())
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"{run / 'report.html'}\n"
    assert (run / "report.html").read_text(encoding="utf-8") == render(full())
    assert main(["report", str(run)]) == 0  # the page beside report.json is made from it alone
    other = tmp_path / "page.html"
    assert main(["report", str(run / "report.json"), "--output", str(other)]) == 0
    assert other.read_bytes() == (run / "report.html").read_bytes()


def test_nothing_that_is_there_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path / "run", full())
    page = tmp_path / "page.html"
    page.write_text("mine")
    assert main(["report", str(run), "--output", str(page)]) == 2 and page.read_text() == "mine"
    assert "--overwrite" in capsys.readouterr().err
    assert main(["report", str(run), "--output", str(page), "--overwrite"]) == 0 and page.read_text() != "mine"
    assert main(["report", str(run), "--output", str(run / "report.json"), "--overwrite"]) == 2
    assert json.loads((run / "report.json").read_text()) == full()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "holds no report.json"),
        ("{", "cannot be read as JSON"),
        ("[1]", "is no report"),
        ('{"a": 1}', "is no report"),
        ("\udcff", "cannot be read as JSON"),
    ],
)
def test_what_is_no_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "report.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said and not (tmp_path / "report.html").exists()


def test_a_set_of_runs_names_them(tmp_path: Path) -> None:
    written(tmp_path / "one", full())
    written(tmp_path / "two", full())
    with pytest.raises(ConfigError, match=r"name one of them: .*one, .*two"):
        read_report(tmp_path)
    with pytest.raises(ConfigError, match="is not there"):
        read_report(tmp_path / "three")


def test_an_evaluation_alone(tmp_path: Path) -> None:
    file = tmp_path / "measured.json"
    file.write_text(json.dumps(full()["evaluation"]))
    assert main(["report", str(file)]) == 0
    page = (tmp_path / "measured.html").read_text(encoding="utf-8")
    assert 'id="calibration"' in page and 'id="course"' not in page
    places = set(re.findall(r'data-(?:path|minus)="/([^"]*)"', page))
    held = json.loads(file.read_text())
    assert "rows" in places and len(places) > 50
    for place in places:  # a JSON pointer (RFC 6901) into the file itself
        found: Any = held
        for key in html.unescape(place).split("/"):
            key = key.replace("~1", "/").replace("~0", "~")
            found = found[int(key) if isinstance(found, list) else key]
    assert "Made from measured.json" in page and "/evaluation/" not in page


def test_words_that_are_no_json(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"evaluation": {"metrics": {"tuned": {"loss": NaN}}, "rows": 2}}')
    assert read_report(tmp_path)[1]["evaluation"]["metrics"] == {"tuned": {"loss": None}}


def test_an_old_report_gets_its_curves_from_the_steps_beside_it(tmp_path: Path) -> None:
    run, lines = written(tmp_path / "run", old()), history()
    assert "series" not in read_report(run)[1]["history"]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = read_report(run)[1]["history"]
    assert told["series"] == course(lines)["series"] and told["evaluations"] == old()["history"]["evaluations"]


def test_long_series_are_means() -> None:
    found = thinned([*range(1, 1002)], [float(value % 2) for value in range(1001)])
    assert found["each"] == 3 and len(found["steps"]) == len(found["values"]) == 334 <= POINTS
    assert found["steps"][:2] == [3, 6] and found["steps"][-1] == 1001
    assert found["values"][:2] == pytest.approx([1 / 3, 2 / 3]) and found["values"][-1] == pytest.approx(0.5)
    assert thinned([1, 2], [0.5, 0.25]) == {"steps": [1, 2], "values": [0.5, 0.25], "each": 1}
    assert thinned([], []) == {"steps": [], "values": [], "each": 0}


def test_a_run_writes_all_three(tmp_path: Path) -> None:
    report = full()
    evaluation = Evaluation.from_dict(report["evaluation"])
    facts = {
        key: value for key, value in report.items() if key not in ("format", "evaluation", "forgetting", "history")
    }
    write_report(tmp_path, facts, history(), evaluation, rebuilt(Forgetting, report["forgetting"]))
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(report)


def test_markdown_has_the_sections_of_the_page(tmp_path: Path) -> None:
    evaluation = Evaluation.from_dict(full()["evaluation"])
    text = write_report(tmp_path, {}, history(), evaluation).read_text(encoding="utf-8")
    for heading in (
        "Intervals",
        "Against base",
        "Adapters against one another",
        "Calibration",
        "Temperature scaling",
        "Reliability: support",
        "Answering where sure: support",
        "Parts of the rows: support-small",
        "Noise in the texts",
        "Worst errors: support",
        "Forgetting: 60 general texts",
        "Speed: one forward pass",
        "Speed: writing 32 tokens",
        "Written answers, 5 of 12",
        "Confusions: support",
        "Per class: support",
        "Course of training",
    ):
        assert f"\n## {heading}\n" in text, heading
    own, pair = evaluation.intervals["support"]["accuracy"], evaluation.pairs[0]
    assert f"{own['value']:.4f} ({own['low']:.4f}–{own['high']:.4f})" in text
    assert (
        f"| {pair['difference']:+.4f} ({pair['low']:+.4f} to {pair['high']:+.4f}) | {pair['p_corrected']:.2g} |" in text
    )
    part = evaluation.slices["support"]["slices"][0]
    assert f"| {part['column']}: {part['name']} | {part['n']} |" in text
    worst = evaluation.errors["support"][0]
    assert (
        f"| {worst['row']} | {worst['text']} | {worst['expected']} | {worst['answer']} | {worst['score']:.4g} |" in text
    )
    assert "| KL(base ‖ adapter) per token |  | 0.0312 (0.0287–0.0341) | 0.0624 (0.0574–0.0682) |" in text


@pytest.mark.parametrize("name", SAMPLES)
def test_markdown_of_every_sample(name: str) -> None:
    found = SAMPLES[name]().get("evaluation")
    if found:
        text = Evaluation.from_dict(found).to_markdown()
        assert "<script>" not in text
        for table in text.split("\n\n"):  # every line of a table has as many cells as its head
            lines = [line.replace("\\|", "") for line in table.splitlines() if line.startswith("|")]
            assert len({line.count("|") for line in lines}) <= 1


def test_half_a_pair_of_surrogates_costs_no_report(tmp_path: Path) -> None:
    write_report(tmp_path, {"notes": ["half \ud83d", "whole \ud83d\ude42"], "\udc00": 1}, [], None)
    for name in ("report.json", "report.md", "report.html"):
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert "half \ufffd" in text and "whole 🙂" in text

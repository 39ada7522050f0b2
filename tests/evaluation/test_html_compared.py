"""The page of a comparison: nothing of ``compare.json`` is left out, charts say what tables say, hostile names."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from comparisons import SAMPLES, full, many, result
from figures import Element, Page

from lora.cli import main
from lora.comparison.charts import COLUMNS, MAPS, _lines_and_columns
from lora.comparison.page import render
from lora.comparison.result import write
from lora.evaluation.saved import read_report


@cache
def page(name: str) -> tuple[dict[str, Any], Page]:
    told = SAMPLES[name]()
    return told, Page(render(told))


def paths(parsed: Page) -> set[str]:
    return {str(each.attributes["data-path"]) for each in parsed.elements if "data-path" in each.attributes}


def row(parsed: Page, name: str, number: int = 0) -> list[str]:
    """The cells of a candidate in the table of that number."""
    table = parsed.all("tbody")[number]
    found = next(each for each in table.children if each.children[0].said.strip() == name)
    return [each.said.strip() for each in found.children]


def svgs(parsed: Page, title: str) -> list[Element]:
    return [each for each in parsed.all("svg") if title in parsed_title(parsed, each)]


def parsed_title(parsed: Page, svg: Element) -> str:
    figure = svg.parent
    assert figure is not None
    return next(each.said for each in figure.children if each.tag == "figcaption")


def test_the_page_leaves_nothing_out() -> None:
    told, parsed = page("full")
    wanted = set[str]()
    for at, its in enumerate(told["candidates"]):
        own = f"/candidates/{at}"
        if its["error"]:
            continue
        wanted |= {f"{own}/metrics/exact_match/{key}" for key in ("value", "low", "high", "spread")}
        wanted |= {f"{own}/parameters", f"{own}/parameters_share", f"{own}/stored_bytes"}
        wanted |= {f"{own}/{key}" for key in ("memory_bytes", "seconds") if its[key] is not None}
        wanted |= {f"{own}/rates/{place}/learning_rate" for place in range(len(its["rates"]))}
        wanted |= {f"{own}/{key}/difference" for key in ("against_best", "against_full") if its[key]}
        if its["spectrum"]:
            wanted |= {f"{own}/spectrum/{key}" for key in ("effective_rank", "rank_90/median", "rank_99/largest")}
        if its["rank"] != 1:
            wanted |= {f"{own}/layers/{path}/effective_rank" for path in its["layers"]}
    wanted |= {f"/reference/metrics/exact_match/{key}" for key in ("value", "low", "high")}
    wanted |= {f"/reference/{key}/difference" for key in ("against_best", "against_full")}
    assert wanted - paths(parsed) == set()
    text = parsed.all("main")[0].said
    assert told["recommendation"] in text
    assert row(parsed, "constant answer")[1] == "reference" and told["reference"]["said"] in text
    for said in (*told["protocol"], *told["notes"], "the loss is nan", "could not be measured (killed)", "RSS"):
        assert said in text


def test_statuses_are_words() -> None:
    told, parsed = page("full")
    words = {its["name"]: row(parsed, its["name"])[1] for its in told["candidates"]}
    assert {"best", "recommended", "worse", "cannot tell", "stopped"} <= set(words.values())
    assert words[told["best"]] == "best" and words[told["recommended"]] == "recommended"
    enough = {name for name, word in words.items() if word in ("best", "recommended", "enough")}
    assert enough == set(told["enough"]) and {n for n, w in words.items() if w == "cannot tell"} == set(
        told["undecided"]
    )
    assert row(parsed, "r64-all-linear")[2:] == ["–", "", "", ""]
    assert row(page("one")[1], "r4-attention")[1] == "best, recommended"
    assert {row(page("undefined")[1], its)[1] for its in words} == {"not known", "stopped"}


def test_the_head_is_the_recommended_candidate() -> None:
    told, parsed = page("full")
    tiles = next(each for each in parsed.elements if each.attributes.get("class") == "tiles").said
    own = next(its for its in told["candidates"] if its["name"] == told["recommended"])
    assert f"{own['metrics']['exact_match']['value']:.4g}" in tiles and f"{own['parameters']:,}" in tiles
    assert "full: 22,715,911" in " ".join(tiles.split()) and f"best: {told['best']}" in tiles
    assert not [each for each in page("undefined")[1].elements if each.attributes.get("class") == "tiles"]


def test_fronts_are_ringed() -> None:
    told, parsed = page("full")
    names = {
        "parameters": "trained parameters",
        "memory": "peak memory",
        "seconds": "training time",
        "stored": "stored",
    }
    for cost, title in names.items():
        (svg,) = svgs(parsed, f"against {title}")
        groups = [each for each in svg.children if each.tag == "g" and "data-path" in each.attributes]
        ringed = [each for each in groups if any("ring" in str(part.attributes.get("class")) for part in each.children)]
        at = [int(str(each.attributes["data-path"]).split("/")[2]) for each in ringed]
        assert {told["candidates"][place]["name"] for place in at} == set(told["fronts"][cost])
    assert not svgs(page("undefined")[1], "against")


def test_who_is_far_behind_does_not_press_the_others_into_a_line() -> None:
    (svg,) = svgs(page("full")[1], "against trained parameters")
    said = [each.said for each in svg.children if each.tag == "text"]
    assert any(each.startswith("probe 0.6") and each.endswith("↓") for each in said), said
    ticks = [float(each.said) for each in svg.children if each.attributes.get("class") == "tick" and "." in each.said]
    assert min(ticks) > 0.8
    (svg,) = svgs(page("losses")[1], "against trained parameters")
    assert any(each.said.endswith("↑") for each in svg.children if each.tag == "text"), "less is better"


def test_what_says_nothing_is_left_out() -> None:
    _, parsed = page("one")
    assert not svgs(parsed, "against") and svgs(parsed, "with 95 % intervals")
    ids = [each.attributes["id"] for each in parsed.all("section")]
    assert ids == ["candidates", "costs", "rates", "updates", "notes", "protocol", "configuration"]
    assert page("none")[1].all("section") == []


def test_maps_of_layers() -> None:
    _, parsed = page("full")
    assert not svgs(parsed, "Effective rank: r1-"), "an update of rank 1 has the effective rank 1"
    (svg,) = svgs(parsed, "Effective rank, of 16: r16-all-linear")
    assert "attention.self.query" in svg.said and "bert" not in svg.said
    assert _lines_and_columns(["m.layers.3.mlp.up", "m.layers.11.mlp.up", "m.embed", "head.0"]) == [
        ("3", "mlp.up"), ("11", "mlp.up"), ("embed", "itself"), ("head.0", "itself"),
    ]  # fmt: skip
    assert _lines_and_columns(["encoder.block.0.q", "decoder.block.0.q", "a.norm", "b.norm"]) == [
        ("encoder.block.0", "q"), ("decoder.block.0", "q"), ("a.norm", "itself"), ("b.norm", "itself"),
    ]  # fmt: skip


def test_many_candidates_are_all_in_the_tables() -> None:
    told, parsed = page("many")
    text = parsed.all("main")[0].said
    for number in (0, 1):
        names = [each.children[0].said.strip() for each in parsed.all("tbody")[number].children]
        below = ["constant answer"] if number == 0 else []
        assert names == [*(its["name"] for its in told["candidates"]), *below]
    assert (
        len(svgs(parsed, "Effective rank")) == MAPS
        and f"{50 - COLUMNS} more kinds of layers are in compare.json" in text
    )
    assert "more are in the table" in text


def test_hostile_names_are_there_to_be_read() -> None:
    _, parsed = page("hostile")
    text = parsed.all("main")[0].said
    for said in ("<script>document.title", "onerror=", "&lt;b&gt; &amp;", "{{ 7 * 7 }}", "nul ␀ escape ␛[31m"):
        assert said in text
    assert "more characters are in compare.json" in text and len(parsed.all("script")) == 1


def test_a_broken_part_leaves_the_others() -> None:
    told = full()
    told["candidates"][2]["spectrum"] = {"used_most": 5}
    parsed = Page(render(told))
    text = parsed.all("main")[0].said
    assert "the JSON has it" in text and told["recommendation"] in text and svgs(parsed, "against peak memory")


def test_files_and_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "compared"
    found = result(("r4-attention", "full"), folder)
    write(found)
    written = (folder / "compare.html").read_text(encoding="utf-8")
    assert written == render(json.loads((folder / "compare.json").read_text())), "as `lora report` renders it"
    assert "2 candidates on 1,500 test rows" in (folder / "compare.md").read_text()
    (folder / "compare.html").unlink()
    for place in (folder, folder / "compare.json"):
        assert main(["report", str(place)]) == 0
        assert capsys.readouterr().out == f"{folder / 'compare.html'}\n"
        assert (folder / "compare.html").read_text(encoding="utf-8") == written
    assert main(["report", str(folder), "--output", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == written
    (folder / "compare.json").unlink()
    (folder / "compare.yaml").write_text("run: {}")
    capsys.readouterr()
    assert main(["report", str(folder)]) == 2
    assert f"`lora compare --resume {folder}` goes on with it" in capsys.readouterr().err


def test_a_file_of_any_name(tmp_path: Path) -> None:
    file = tmp_path / "kept.json"
    file.write_text(json.dumps(many(3)))
    assert read_report(file)[1]["candidates"] and main(["report", str(file)]) == 0
    assert (tmp_path / "kept.html").read_text(encoding="utf-8") == render(many(3), "kept.json")

"""The page: every figure equals the JSON, hostile texts stay texts, old reports are read, all can see it."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
from functools import cache
from typing import Any

import pytest
import yaml
from comparisons import PAGES
from figures import Page, at, wrong
from reports import HOSTILE, SAMPLES, full

from lora.evaluation.html import render
from lora.evaluation.html.blocks import FAILED
from lora.evaluation.html.page import _file

CSS = _file("style.css")


@cache
def page(name: str) -> tuple[dict[str, Any], str, Page]:
    make, write = PAGES[name]
    report = make()
    source = write(report)
    return report, source, Page(source)


@pytest.fixture(params=PAGES)
def sample(request: pytest.FixtureRequest) -> tuple[dict[str, Any], str, Page]:
    return page(request.param)


def test_every_figure_equals_the_json(sample: tuple[dict[str, Any], str, Page]) -> None:
    report, _, parsed = sample
    figures = [element for element in parsed.elements if "data-path" in element.attributes]
    assert [found for each in figures if (found := wrong(report, each.attributes, each.said))] == []
    for code in parsed.all("pre"):
        if path := code.attributes.get("data-yaml"):
            assert yaml.safe_load(code.said) == at(report, path)


@pytest.mark.parametrize(
    ("value", "said", "right"),
    [
        (0.882, "0.8820", True),
        (0.882, "0.8821", False),
        (0.8820499, "0.8820", True),
        (-0.5, "-0.5000", True),
        (0.5, "-0.5000", False),
        (3024.4, "3,024", True),
        (3024.6, "3,024", False),
        (1.35, "×1.35", True),
        (1.2e-5, "1.2e-05", True),
        (1.3e-5, "1.2e-05", False),
        (0.912, "91.2%", True),
        (0.912, "91.3%", False),
        (None, "–", True),
        (None, "0", False),
        (0.5, "–", False),
        (1, "", True),
    ],
)
def test_the_comparison_sees_what_differs(value: float | None, said: str, right: bool) -> None:
    figure: dict[str, str | None] = {"data-value": json.dumps(value), "data-path": "/a"}
    assert (wrong({"a": value}, figure, said) == "") is right
    assert wrong({"a": 7}, figure, said) and wrong({}, figure, said)


def test_the_full_page_leaves_nothing_out() -> None:
    report, _, parsed = page("full")
    shown = {element.attributes["data-path"] for element in parsed.elements if "data-path" in element.attributes}
    evaluation = report["evaluation"]
    wanted = {
        f"/evaluation/metrics/{name}/{key}"
        for name, own in evaluation["metrics"].items()
        for key, value in own.items()
        if isinstance(value, float)
    }
    for part, keys in (
        ("intervals", ("value", "low", "high")),
        ("comparisons", ("difference", "low", "high", "p_corrected")),
    ):
        for name, own in evaluation[part].items():
            wanted |= {f"/evaluation/{part}/{name}/{key}/{each}" for key in own for each in keys}
    for name, own in evaluation["calibration"].items():
        wanted |= {f"/evaluation/calibration/{name}/{key}" for key in ("ece", "brier", "temperature/temperature")}
        wanted |= {
            f"/evaluation/calibration/{name}/bins/{place}/{key}"
            for place, its in enumerate(own["bins"])
            if its["n"]
            for key in ("n", "right", "low", "high", "confidence")
        }
    for name in evaluation["slices"]:
        parts = range(len(evaluation["slices"][name]["slices"]))
        wanted |= {
            f"/evaluation/slices/{name}/slices/{place}/{key}" for place in parts for key in ("estimate/value", "rest")
        }
        wanted |= {
            f"/evaluation/errors/{name}/{place}/score" for place in range(min(50, len(evaluation["errors"][name])))
        }
        keys = ("loss", "kl/value", "kl/low", "kl/high", "same_token/value", "loss_change/value")
        wanted |= {f"/evaluation/forgetting/adapters/{name}/{key}" for key in keys}
        wanted |= {f"/evaluation/metrics/{name}/confusion/matrix/{i}/{j}" for i in range(7) for j in range(7)}
    for name in ("base", "support", "support, merged"):
        run = f"/evaluation/speed_grid/passes/5/runs/{name}"
        wanted |= {f"{run}/{key}" for key in ("p50_ms", "p99_ms", "tokens_per_second", "peak_memory_bytes")}
    wanted |= {"/evaluation/speed_grid/generation/1/runs/support/first_token_p95_ms"}
    wanted |= {"/forgetting/adapters/base/perplexity", "/forgetting/adapters/support/kl/high"}
    wanted |= {"/evaluation/peak_memory_bytes", "/history/first/loss", "/data/train_rows", "/data/sources/1/weight"}
    assert wanted - shown == set()
    text = parsed.elements[0].said
    for said in (
        "0fc3d3ba16d2983d" * 4,
        "814b2b38377b4c4c",
        "runs/first/adapter",
        "2.13.0",
        "Message",
        "I am sorry: order 0",
    ):
        assert said in text


def test_sections_come_in_order_and_only_where_there_is_something() -> None:
    order = [
        "notes",
        "results",
        "course",
        "classes",
        "calibration",
        "slices",
        "robustness",
        "errors",
        "answers",
        "forgetting",
        "speed",
        "lineage",
        "run",
        "configuration",
    ]
    found = {name: [each.attributes["id"] for each in page(name)[2].all("section")] for name in SAMPLES}
    assert found["full"] == order
    assert found["old"] == [
        key for key in order if key in {"notes", "results", "course", "classes", "speed", *order[-3:]}
    ]
    assert found["no history"] == [key for key in order if key != "course"]
    assert found["empty"] == found["none"] == []
    assert "Nothing was held out" in page("none")[1]


def test_no_sample_has_a_part_that_is_not_shown(sample: tuple[dict[str, Any], str, Page]) -> None:
    assert FAILED not in sample[1]


def test_a_part_of_an_unknown_shape_does_not_take_the_others_with_it() -> None:
    report = full()
    report["evaluation"]["metrics"]["support"]["confusion"] = {"labels": 3, "matrix": "none"}
    source = render(report)
    assert FAILED in source and "Worst errors" in source and 'id="calibration"' in source


def test_the_page_is_whole_and_names_are_its_own(sample: tuple[dict[str, Any], str, Page]) -> None:
    _, source, parsed = sample
    assert parsed.stray == [] and [element.tag for element in parsed.open] == []
    ids = [element.attributes["id"] for element in parsed.elements if "id" in element.attributes]
    assert len(ids) == len(set(ids))
    links = [str(element.attributes["href"]) for element in parsed.all("a")]
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    headings = [int(element.tag[1]) for element in parsed.elements if re.fullmatch("h[1-6]", element.tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(after - before <= 1 or after == 4 for before, after in itertools.pairwise(headings))
    source.encode("utf-8")


def test_nothing_of_a_report_becomes_markup(sample: tuple[dict[str, Any], str, Page]) -> None:
    _, source, parsed = sample
    assert len(parsed.all("script")) == 1 and len(parsed.all("style")) == 1
    tags = {element.tag for element in parsed.elements}
    assert tags.isdisjoint({"img", "link", "iframe", "object", "b", "base", "form", "image", "use"})
    assert not [name for element in parsed.elements for name in element.attributes if name.startswith("on")]
    assert {str(each.attributes.get("href", "#"))[0] for each in parsed.elements} == {"#"}
    assert not [each for each in parsed.elements if "src" in each.attributes]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", source)


def test_hostile_texts_are_there_to_be_read() -> None:
    text = page("hostile")[2].elements[0].said
    for said in (*HOSTILE[:2], "&lt;b&gt; &amp;", "{{ 7 * 7 }}", "nul ␀ escape ␛[31m", "half a pair � and", "e\u0301"):
        assert said in text
    assert "characters are in report.json" in text and len(page("hostile")[1]) < 1_000_000  # of 100,000 letters not all


def test_the_policy_lets_the_page_s_own_script_run_and_nothing_else(sample: tuple[dict[str, Any], str, Page]) -> None:
    _, _, parsed = sample
    policy = next(each.attributes["content"] for each in parsed.all("meta") if "http-equiv" in each.attributes)
    assert policy is not None and policy.startswith("default-src 'none';") and "unsafe" not in policy
    for tag in ("script", "style"):
        own = base64.b64encode(hashlib.sha256(parsed.all(tag)[0].said.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{own}'" in policy
    assert not [element for element in parsed.elements if "style" in element.attributes]  # the policy would drop it


def test_every_chart_can_be_heard(sample: tuple[dict[str, Any], str, Page]) -> None:
    _, _, parsed = sample
    for chart in parsed.all("svg"):
        assert chart.attributes["role"] == "img"
        named = dict(zip(str(chart.attributes["aria-labelledby"]).split(), ("title", "desc"), strict=True))
        found = {each.attributes["id"]: each.tag for each in chart.children if "id" in each.attributes}
        assert found == named
    assert all(element.attributes.get("scope") for element in parsed.all("th"))


def test_undefined_numbers_are_dashes() -> None:
    _, _, parsed = page("undefined")
    figures = [each for each in parsed.elements if each.attributes.get("data-value") == "null"]
    assert len(figures) > 50 and {each.said for each in figures} == {"–"}
    assert not re.search(r"\b(nan|None|inf)\b", parsed.all("main")[0].said)


def test_large_matrices_show_pairs_and_fold_the_rest() -> None:
    report, _, parsed = page("many classes")
    folds = [each.said for each in parsed.all("summary")]
    assert folds.count("The whole matrix of 150 classes") == 2
    cells = {each.attributes["data-path"] for each in parsed.all("rect") if "data-path" in each.attributes}
    matrix = report["evaluation"]["metrics"]["support"]["confusion"]["matrix"]
    filled = {
        f"/evaluation/metrics/support/confusion/matrix/{i}/{j}" for i in range(150) for j in range(150) if matrix[i][j]
    }
    assert filled <= cells


def test_a_report_is_rendered_the_same_after_its_json_was_read_again() -> None:
    report = full()
    assert render(json.loads(json.dumps(report))) == render(report)


# Colours


def variables(dark: bool) -> dict[str, str]:
    parts = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    found = dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", parts[0]))
    return found | (dict(re.findall(r"(--[\w-]+): (#[0-9a-f]{6})", parts[1])) if dark else {})


def rgb(colour: str) -> list[float]:
    return [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]


def luminance(colour: list[float]) -> float:
    """WCAG 2.2, relative luminance."""
    red, green, blue = (value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: list[float], other: list[float]) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True])
def test_contrast_of_all_texts(dark: bool) -> None:
    colours = {name: rgb(value) for name, value in variables(dark).items()}
    assert len(variables(True)) == len(variables(False))
    texts = ["--text", "--muted", "--link", "--good", "--bad", *(f"--tone{place}" for place in range(7))]
    pairs = [(text, ground) for text in texts for ground in ("--surface", "--page", "--track")]
    pairs += [("--good", "--good-back"), ("--bad", "--bad-back")]
    low = {pair: ratio for pair in pairs if (ratio := contrast(colours[pair[0]], colours[pair[1]])) < 4.5}
    assert low == {}
    shades = [float(share) for share in re.findall(r"\.shade\d+ \{ fill-opacity: ([\d.]+); \}", CSS)]
    assert len(shades) == 10
    for shade, fill in itertools.product(shades, ("--shade-right", "--shade-wrong")):
        ground = [shade * a + (1 - shade) * b for a, b in zip(colours[fill], colours["--track"], strict=True)]
        assert contrast(colours["--text"], ground) >= 4.5


# Machado, Oliveira and Fernandes (2009), table 1, severity 1.0
BLIND = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("blind", BLIND)
def test_base_and_the_first_adapters_are_told_apart_by_all_eyes(blind: str, dark: bool) -> None:
    def seen(colour: str) -> list[float]:
        linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in rgb(colour)]
        return [sum(factor * value for factor, value in zip(row, linear, strict=True)) for row in BLIND[blind]]

    def lab(linear: list[float]) -> list[float]:
        rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
        xyz = [
            sum(a * max(b, 0) for a, b in zip(row, linear, strict=True)) / white
            for row, white in zip(rows, (0.9505, 1.0, 1.089), strict=True)
        ]
        x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in xyz)
        return [116 * y - 16, 500 * (x - y), 200 * (y - z)]

    tones = [lab(seen(variables(dark)[f"--tone{place}"])) for place in range(4)]
    distances = [
        sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) ** 0.5 for pair in itertools.combinations(tones, 2)
    ]
    assert min(distances) > 12  # CIE 1976; about 2.3 is just seen

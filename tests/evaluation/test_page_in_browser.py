"""The page in a real browser: no error, no request, every figure on the screen equals the JSON, no phone overflows."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, chromium
from comparisons import PAGES
from figures import wrong

FIGURES = """[...document.querySelectorAll("[data-path]")].map(e => ({
  "data-value": e.dataset.value, "data-path": e.dataset.path, "data-minus": e.dataset.minus ?? null,
  "data-scale": e.dataset.scale ?? null,
  said: [...e.childNodes].filter(n => n.nodeType === 3).map(n => n.data).join("")}))"""
DARK = {"name": "prefers-color-scheme", "value": "dark"}
# What stands out beyond a phone of 360, outside of a box that scrolls.
WIDER = """[...document.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > 361
  && !e.closest(".scroll, pre, nav, svg, .skip")).map(e => e.outerHTML.slice(0, 200))"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = chromium()
    if executable is None:
        pytest.skip("no Chromium here (Debian, Ubuntu: apt install chromium)")
    try:
        browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    except (OSError, RuntimeError) as error:  # such as a container that gives it no sandbox
        pytest.skip(f"{executable} does not start here: {error}")
    with browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], Path]]:
    folder, out = tmp_path_factory.mktemp("pages"), {}
    for name, (make, render) in PAGES.items():
        report, path = make(), folder / f"{name.replace(': ', '-')}.html"
        path.write_text(render(report), encoding="utf-8")
        out[name] = (report, path)
    return out


Pages = dict[str, tuple[dict[str, Any], Path]]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_shows_what_the_json_holds(browser: Browser, pages: Pages, name: str) -> None:
    report, path = pages[name]
    browser.open(path)
    assert browser.problems() == []
    assert browser.requests() == [path.as_uri()]
    assert [found for each in browser.value(FIGURES) if (found := wrong(report, each, each.pop("said").strip()))] == []
    assert browser.value("document.querySelectorAll('main h1').length") == 1
    assert "taken over" not in browser.value("document.title")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_a_phone_in_both_schemes(browser: Browser, pages: Pages, name: str, dark: bool) -> None:
    browser.open(pages[name][1], width=360, dark=dark)
    assert browser.value("innerWidth") == 360 and browser.value("document.documentElement.scrollWidth") <= 360
    assert browser.value(WIDER) == []
    assert browser.problems() == []
    ground, text = browser.value("(s => [s.backgroundColor, s.color])(getComputedStyle(document.body))")
    brightness = [sum(map(int, colour.removeprefix("rgb(").rstrip(")").split(","))) for colour in (ground, text)]
    assert (brightness[0] < 100 < 600 < brightness[1]) if dark else (brightness[0] > 600 > 150 > brightness[1])


def test_everything_unfolded_still_fits(browser: Browser, pages: Pages) -> None:
    for name in ("full", "hostile", "many classes", "comparison: full", "comparison: hostile", "comparison: many"):
        browser.open(pages[name][1], width=360)
        browser.value("document.querySelectorAll('details').forEach(e => e.open = true)")
        assert browser.value("document.documentElement.scrollWidth") <= 360
        assert browser.value(WIDER) == []


def test_columns_are_sorted_by_their_numbers(browser: Browser, pages: Pages) -> None:
    browser.open(pages["many classes"][1])
    column = """(i => {
      const t = document.querySelector("#classes table[data-sortable] th:nth-child(5)").closest("table");
      if (i) t.tHead.rows[0].cells[4].querySelector("button").click();
      return [...t.tBodies[0].rows].map(r => JSON.parse(r.cells[4].querySelector("[data-value]").dataset.value)) })"""
    for sign in (1, -1):
        found = browser.value(f"{column}(1)")
        assert found == sorted(found, reverse=sign < 0) and len(set(found)) > 100


def test_a_page_reads_without_its_script(browser: Browser, pages: Pages) -> None:
    try:
        browser.call("Emulation.setScriptExecutionDisabled", value=True)
        browser.open(pages["full"][1])
        text = browser.value("document.querySelector('main').innerText")
        assert "Worst errors" in text and "Lineage" in text and not browser.value("document.querySelector('th button')")
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("name", ["full", "comparison: full"])
def test_a_page_prints(browser: Browser, pages: Pages, name: str) -> None:
    browser.open(pages[name][1], dark=True)
    printed = base64.b64decode(browser.call("Page.printToPDF", printBackground=False)["data"])
    assert printed.startswith(b"%PDF") and 5 <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= 25
    browser.call("Emulation.setEmulatedMedia", media="print", features=[DARK])
    try:
        assert browser.value("getComputedStyle(document.body).color") == "rgb(27, 31, 36)"  # dark on paper, not light
        hidden = "e => getComputedStyle(e).display === 'none'"
        assert browser.value(f"[...document.querySelectorAll('nav, details.data')].every({hidden})")
    finally:
        browser.call("Emulation.setEmulatedMedia", media="", features=[])


def test_the_tests_see_what_they_look_for(browser: Browser, tmp_path: Path) -> None:
    """A page that has all the faults."""
    path = tmp_path / "bad.html"
    path.write_text(
        "<meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<body style='margin:0'><img src='https://example.invalid/x.png'>"
        "<div style='width:900px'>wide</div><span data-path='/a' data-value='1'>2</span>"
        "<script>console.log('said'); undefinedName()</script>", encoding="utf-8",
    )  # fmt: skip
    browser.open(path, width=360)
    problems = " ".join(browser.problems())
    assert "undefinedName" in problems and "said" in problems
    assert "https://example.invalid/x.png" in browser.requests()
    assert browser.value("document.documentElement.scrollWidth") > 360 and browser.value(WIDER)
    figure = browser.value(FIGURES)[0]
    assert wrong({"a": 1}, figure, figure["said"]) and wrong({"a": 2}, figure, "1") and not wrong({"a": 1}, figure, "1")

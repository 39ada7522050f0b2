"""Reading a page as a test does: its elements, and its figures beside the JSON that they come from."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote

VOID = {"meta", "br", "img", "link", "input", "hr"}


@dataclass
class Element:
    tag: str
    attributes: dict[str, str | None]
    parent: Element | None = None
    children: list[Element] = field(default_factory=list)
    said: str = ""  # all text inside, tooltips left out


class Page(HTMLParser):
    """Elements in order; ``stray`` holds end tags that close nothing."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[Element] = []
        self.open: list[Element] = []
        self.stray: list[str] = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), self.open[-1] if self.open else None)
        assert len(element.attributes) == len(attrs), f"an attribute twice: {attrs}"
        self.elements.append(element)
        if element.parent:
            element.parent.children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        if self.open and self.open[-1].tag == tag:
            self.open.pop()
        else:
            self.stray.append(tag)

    def handle_data(self, data: str) -> None:
        if not any(element.tag == "title" for element in self.open[1:]):
            for element in self.open:
                element.said += data

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]


def at(report: Any, path: str) -> Any:
    """What a JSON pointer leads to."""
    for key in unquote(path, errors="surrogatepass").split("/")[1:]:
        key = key.replace("~1", "/").replace("~0", "~")
        report = report[int(key)] if isinstance(report, list) else report[key]
    return report


def wrong(report: Any, figure: dict[str, str | None], said: str) -> str:
    """What is wrong with a figure (its ``data-`` attributes, and what it says); empty: nothing."""
    value, path = json.loads(figure["data-value"] or ""), figure["data-path"] or ""
    try:
        there = at(report, path)
        if minus := figure.get("data-minus"):
            there = None if there is None or at(report, minus) is None else there - at(report, minus)
    except (KeyError, IndexError, ValueError, TypeError) as error:
        return f"{path}: leads nowhere ({error!r})"
    if value != there:
        return f"{path}: the page holds {value!r}, the report {there!r}"
    if value is None:
        return "" if said == "–" else f"{path}: is undefined, and the page says {said!r}"
    if not isinstance(value, (int, float)):
        return "" if said == str(value) else f"{path}: {value!r} is written {said!r}"
    if not said:
        return ""  # a mark of a chart; its place is tested where charts are
    share = said.endswith("%")
    number = re.fullmatch(r"[×+]?(-?[\d,]+(?:\.(\d+))?(?:e[-+]?\d+)?)", said.removesuffix("%"))
    if not number:
        return f"{path}: {said!r} is no number"
    written, exact = (
        float(number[1].replace(",", "")),
        value / float(figure.get("data-scale") or 1) * (100 if share else 1),
    )
    mantissa, _, power = said.removesuffix("%").partition("e")
    room = 0.5 * 10.0 ** (-len(mantissa.partition(".")[2]) + int(power or 0))
    if abs(written - exact) > room * (1 + 1e-9) + 1e-12 * abs(exact):
        return f"{path}: {exact!r} is written {said!r}"
    return ""

"""A table shaded by shares: how much of its rank each layer used."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from lora.evaluation.grid import Number
from lora.evaluation.html.charts.svg import LETTER, WIDTH, Attribute, drawing, element, figure_label, label, located

ROW, LEAST, MOST = 20.0, 33.0, 64.0  # height of a line; width of a column with its number, least and most
LONGEST, LINE = 26, 18  # letters of a column's name and of a line's
NUMBERED = 12  # columns up to which cells have their numbers whatever room there is
SHADES = 10  # the style sheet has so many
Cells = Mapping[tuple[str, str], tuple[Number, float]]  # by line and column the number and its share


def heat_map(
    key: str, title: str, lines: Sequence[str], columns: Sequence[str], cells: Cells, *, line_title: str = ""
) -> Markup | None:
    """A number in each cell, shaded by its share of 1; None where no cell has one.

    Cells too narrow for a number have it in their tooltip.
    """
    cells = {at: its for at, its in cells.items() if its[0].value is not None and math.isfinite(its[1])}
    if not cells:
        return None
    longest = min(LONGEST, max(map(len, columns)))
    left = 12 + LETTER * min(LINE, max(max(map(len, lines)), len(line_title)))
    top = 10 + longest * LETTER * 0.72
    beyond = longest * LETTER * 0.75
    wide = min(MOST, max((WIDTH - left - beyond) / len(columns), LEAST if len(columns) <= NUMBERED else 3.0))
    numbered = wide >= LEAST
    parts = [label(left - 6, top - 4, line_title, anchor="end", class_="axis")] if line_title else []
    for place, name in enumerate(columns):
        # Of narrow columns not all names have room.
        if place % math.ceil(14 / wide) == 0:
            turned = f"translate({left + (place + 0.5) * wide:.1f} {top - 6:.1f}) rotate(-40)"
            parts.append(element("g", label(0, 0, name, most=LONGEST, class_="key"), transform=turned))
    parts.append(element("rect", x=left, y=top, width=wide * len(columns), height=ROW * len(lines), class_="empty"))
    for down, line in enumerate(lines):
        y = top + down * ROW
        parts.append(label(left - 6, y + 14, line, anchor="end", class_="key", most=LINE))
        for across, column in enumerate(columns):
            if (line, column) in cells:
                number, share = cells[line, column]
                told = element("title", f"{line}, {column}: {number.text} ({share:.0%})")
                shade = f"right shade{max(1, min(SHADES, round(share * SHADES)))}"
                x = left + across * wide
                box: dict[str, Attribute] = {"x": x, "y": y, "width": wide, "height": ROW, "class_": shade}
                if numbered:
                    text = figure_label(x + wide / 2, y + 14, number, anchor="middle")
                    parts.append(element("g", told, element("rect", **box), text))
                else:
                    parts.append(element("rect", told, **box, **located(number)))
    least, most = (pick(cells, key=lambda at: cells[at][1]) for pick in (min, max))
    description = (
        f"{len(cells)} cells; most: {', '.join(most)} {cells[most][0].text}; least: {', '.join(least)} "
        f"{cells[least][0].text}."
    )
    whole = left + wide * len(columns) + beyond
    return drawing(key, title, description, top + ROW * len(lines) + 6, *parts, width=max(WIDTH, whole))

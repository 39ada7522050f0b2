"""The confusion matrix as a heat map."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from lora.evaluation.grid import Number
from lora.evaluation.html.charts.svg import LETTER, drawing, element, figure_label, label, located

CELL, WIDE = 40.0, 560.0  # side of a cell with its count; of the whole matrix, where cells have none
FAINTEST = 4  # shade of a wrong cell without a count: a single row would hardly be seen
NUMBERED = 15  # classes up to which counts are written
LONGEST = 22  # letters of a class's name
SHADES = 10  # the style sheet has so many of each colour


def matrix_chart(key: str, title: str, labels: Sequence[str], cells: Sequence[Sequence[Number]]) -> Markup | None:
    """A line per true class, shaded by its share of the line: right ones in one colour, wrong ones in another.

    Args:
        labels: names of the classes; of more than 15 they stand in the tooltips alone.
        cells: counts, true classes as lines.
    """
    if not labels:
        return None
    numbered = len(labels) <= NUMBERED
    side = CELL if numbered else WIDE / len(labels)
    longest = min(LONGEST, max(map(len, labels)))
    left = 16 + (longest + 1) * LETTER if numbered else 1.0
    top = 24 + longest * LETTER * 0.72 if numbered else 1.0
    parts = []
    if numbered:
        parts += [label(left, 12, "predicted →", class_="axis"), label(0, 12, "true ↓", class_="axis")]
    for place, name in enumerate(labels) if numbered else ():
        middle = left + (place + 0.5) * side
        parts.append(element("g", label(0, 0, name, most=LONGEST, class_="key"),
                             transform=f"translate({middle:.1f} {top - 6:.1f}) rotate(-40)"))  # fmt: skip
        parts.append(label(left - 6, top + (place + 0.5) * side + 4, name, anchor="end", class_="key", most=LONGEST))
    wide = side * len(labels)
    parts.append(element("rect", x=left, y=top, width=wide, height=wide, class_="empty"))
    right = whole = 0.0
    for i, row in enumerate(cells):
        counts = [float(cell.value or 0) for cell in row]
        total = sum(counts)
        for j, (cell, count) in enumerate(zip(row, counts, strict=True)):
            right, whole = right + count * (i == j), whole + count
            if count > 0:
                parts.append(_cell(labels, i, j, cell, count / total, left + j * side, top + i * side, side))
            elif numbered:
                x, y = left + (j + 0.5) * side, top + (i + 0.5) * side + 4
                parts.append(figure_label(x, y, cell, anchor="middle", class_="zero"))
    description = (
        f"{len(labels)} classes; {right:,.0f} of {whole:,.0f} rows stand on the diagonal, where the answer is right."
    )
    # Slanted names of the last column reach beyond the matrix.
    beyond = 8 + (min(LONGEST, len(labels[-1])) * LETTER * 0.8 if numbered else 0)
    return drawing(key, title, description, top + wide + 4, *parts, width=left + wide + beyond)


def _cell(labels: Sequence[str], i: int, j: int, cell: Number, share: float, x: float, y: float, side: float) -> Markup:
    shade = max(FAINTEST if side < CELL and i != j else 1, min(SHADES, round(share * SHADES)))
    told = f"{labels[i]} → {labels[j]}: {cell.text} ({share:.0%})"
    colour = f"{'right' if i == j else 'wrong'} shade{shade}"
    if side < CELL:
        return element(
            "rect", element("title", told), x=x, y=y, width=side, height=side, class_=colour, **located(cell)
        )
    return element(
        "g", element("title", told), element("rect", x=x, y=y, width=side, height=side, class_=colour),
        figure_label(x + side / 2, y + side / 2 + 4, cell, anchor="middle"),
    )  # fmt: skip

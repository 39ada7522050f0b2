"""What all charts are drawn with: elements, scales with round ticks, the frame around a chart.

Lengths are in the units of the view box. A chart is about as wide as a phone, so that its letters stay readable there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from lora.evaluation.grid import Number
from lora.evaluation.html.texts import clean, data_path, data_value

WIDTH = 420.0
LARGER = 1.08  # where there is room: letters of 12 are then as large as those of tables
TONES = 7  # tone0 is the base's; adapters take the others in turn
LETTER = 6.4  # mean width of a letter at the charts' size
Attribute = str | float | None


def element(name: str, *children: str | Markup, **attributes: Attribute) -> Markup:
    """An element; text among the children is escaped. Of attributes ``_`` is ``-``, ``class_`` is ``class``."""
    written = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _length(value))
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(escape(clean(child)) if not isinstance(child, Markup) else child for child in children)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), written, inside)


def _length(value: Attribute) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, (int, float)) else clean(str(value))


def label(x: float, y: float, said: str, *, anchor: str = "start", class_: str = "", most: int = 0) -> Markup:
    """A text; cut after ``most`` letters, and then whole in its tooltip."""
    if most and len(said) > most:
        return element("text", element("title", said), said[: most - 1] + "…", x=x, y=y, text_anchor=anchor,
                       class_=class_ or None)  # fmt: skip
    return element("text", said, x=x, y=y, text_anchor=anchor, class_=class_ or None)


def figure_label(x: float, y: float, number: Number, *, anchor: str = "start", class_: str = "") -> Markup:
    """A number as a text that says where it stands in the report."""
    return element(
        "text", number.text, x=x, y=y, text_anchor=anchor, class_=f"n {class_}".strip(), **located(number)
    )  # fmt: skip


def located(number: Number) -> dict[str, Attribute]:
    """The attributes that say a number's value and place."""
    return {
        "data_value": data_value(number.value), "data_path": data_path(number.path),
        "data_minus": data_path(number.minus) or None, "data_scale": None if number.scale == 1 else number.scale,
    }  # fmt: skip


def tone(place: int) -> str:
    """The class of a system's colour: 0 the base's, those of adapters from 1 on, over again when they run out."""
    return "tone0" if place == 0 else f"tone{(place - 1) % (TONES - 1) + 1}"


@dataclass(frozen=True)
class Scale:
    """From values between ``low`` and ``high`` to places between ``start`` and ``end``, on a logarithmic axis if so."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high, at = (self.low, self.high, value)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(max(value, self.low))
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)

    def ticks(self, most: int = 5) -> list[float]:
        """Round values inside, at most about ``most``."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5)):
                found = [step * 10.0**power for power in powers for step in steps]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) >= 3:
                    break
            return found[:: -(-len(found) // (most + 1))] if found else [self.low, self.high]
        return round_ticks(self.low, self.high, most)


def scale(values: Sequence[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Scale:
    """A scale that holds all ``values`` (finite ones; at least one), with a little room at its ends.

    Args:
        zero: the scale begins at 0.
    """
    low, high = min(values), max(values)
    if log:
        return Scale(low / 1.1, high * 1.1, start, end, True)
    low = min(low, 0.0) if zero else low
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    return Scale(low if zero and low == 0 else low - room, high + room, start, end)


def spans_decades(values: Sequence[float], factor: float = 50) -> bool:
    """Whether a logarithmic axis shows more: all above 0 and some ``factor`` times others."""
    return bool(values) and min(values) > 0 and max(values) / min(values) > factor


def round_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between ``low`` and ``high``."""
    width = high - low
    if not (width > 0 and math.isfinite(width)):
        return [low]
    power = 10.0 ** math.floor(math.log10(width / most))
    step = next((factor * power for factor in (1, 2, 5, 10) if width / (factor * power) <= most), 10 * power)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [count * step for count in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick as short as it can be: 0.2, 1,500, 20k, 5M, 3e-5."""
    if value and not 1e-3 <= abs(value) < 1e9:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1e4:
        return f"{value / 1000:g}k"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def horizontal_axis(to: Scale, y: float, title: str = "", *, above: float | None = None, most: int = 5) -> Markup:
    """Ticks and their texts below ``y``; thin lines up to ``above``."""
    parts = []
    for value in to.ticks(most):
        x = to(value)
        if above is not None:
            parts.append(element("line", x1=x, x2=x, y1=above, y2=y, class_="rule"))
        parts.append(label(x, y + 15, tick_text(value), anchor="middle", class_="tick"))
    if title:
        parts.append(label((to.start + to.end) / 2, y + 31, title, anchor="middle", class_="axis"))
    return Markup("").join(parts)


def vertical_axis(to: Scale, x: float, right: float, *, most: int = 5) -> Markup:
    """Ticks and their texts left of ``x``; thin lines to ``right``."""
    parts = []
    for value in to.ticks(most):
        y = to(value)
        parts.append(element("line", x1=x, x2=right, y1=y, y2=y, class_="rule"))
        parts.append(label(x - 6, y + 4, tick_text(value), anchor="end", class_="tick"))
    return Markup("").join(parts)


def legend(names: Sequence[str], tones: Sequence[int], y: float = 12, left: float = 4) -> tuple[Markup, float]:
    """Names beside their colours from ``y`` on, as many lines as it takes; and where the last line stands."""
    parts, x = [], left
    for name, place in zip(names, tones, strict=True):
        said = name if len(name) <= 40 else name[:39] + "…"
        wide = 22 + LETTER * len(said) + 12
        if x > left and x + wide > WIDTH:
            x, y = left, y + 18
        style = f"line {tone(place)} {dash(place)}" if len(names) > 1 else f"line {tone(place)}"
        parts.append(element("line", x1=x, x2=x + 16, y1=y - 4, y2=y - 4, class_=style))
        parts.append(label(x + 22, y, said, class_="key"))
        x += wide
    return Markup("").join(parts), y


def dash(place: int) -> str:
    """The class of a system's line, so that colour is not all that tells lines apart."""
    return f"dash{place % 4}"


def drawing(key: str, title: str, description: str, height: float, *children: Markup, width: float = WIDTH) -> Markup:
    """The chart as a whole; ``key`` is its own on the page, for its title and description are referred to."""
    return element(
        "svg", element("title", title, id=f"{key}-title"), element("desc", description, id=f"{key}-desc"), *children,
        viewBox=f"0 0 {width:.0f} {height:.0f}", width=width * LARGER, class_="chart", role="img",
        aria_labelledby=f"{key}-title {key}-desc",
    )  # fmt: skip

"""The page as a whole: its head, its sections in order, and the template that writes them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import jinja2
from markupsafe import Markup

from lora.evaluation.grid import Cell, Number, Piece, pieces, pointer, style, text
from lora.evaluation.html.blocks import Head, Keys, Section, Tile
from lora.evaluation.html.charts.svg import tone
from lora.evaluation.html.colours import place_of
from lora.evaluation.html.evaluated import sections
from lora.evaluation.html.forgotten import forgotten
from lora.evaluation.html.running import course, notes, origin
from lora.evaluation.html.texts import clean, data_path, data_value, excerpt
from lora.evaluation.lenient import dicts, mapping
from lora.evaluation.result import Evaluation
from lora.evaluation.saved import JSON
from lora.evaluation.shown import COUNT, change, ends, metric_of, number, times
from lora.evaluation.tables import headline, peak_memory

LONGEST = 3000  # characters of a text in a sentence or a table
NAME = 120  # and of the name at the head of the page
TILES = 6  # adapters at the head of the page; the table has all
STYLES = {"green": "good", "red": "bad"}


def render(report: Mapping[str, Any]) -> str:
    """The page of a report, as ``report.json`` holds it: one document that loads nothing.

    Args:
        report: of this version of lora or another; what is not there, or not of the shape that is known, is left out.
    """
    evaluation = _evaluation(report.get("evaluation"))
    keys = Keys()
    measured = sections(evaluation, keys) if evaluation else []
    # The evaluation's sections, speed last; what a run measured beside it stands before that.
    parts = [notes(report, evaluation), *measured[:1], course(report, evaluation, keys), *measured[1:-1]]
    parts += [forgotten(report, evaluation, keys), *measured[-1:], *origin(report)]
    said = headline(evaluation) if evaluation else "Nothing was held out, so there is no evaluation."
    head = Head("Report", _name(report, evaluation), evaluation.task if evaluation else "", said,
                _tiles(evaluation) if evaluation else [])  # fmt: skip
    written = document(head, parts, JSON, mapping(report.get("versions")).get("lora"))
    if set(report) == {"evaluation"}:  # from a file of the evaluation alone, of which it is the root
        for attribute in ("data-path", "data-minus"):
            written = written.replace(f'{attribute}="/evaluation/', f'{attribute}="/')
    return written


def document(head: Head, sections: Sequence[Section], file: str, version: Any = None) -> str:
    """A page of ``head`` and of those ``sections`` that have blocks: one document that loads nothing.

    Args:
        file: the name of the JSON that its numbers are from. ``version``: of lora, that wrote it.
    """
    style, script = _file("style.css"), _file("script.js")
    written = _template().render(
        head=head, name=excerpt(head.name, NAME)[0], sections=[part for part in sections if part.blocks], file=file,
        version=version, style=Markup(style), script=Markup(script), style_hash=_hash(style), script_hash=_hash(script),
    )  # fmt: skip
    return written.lstrip()


def _evaluation(found: Any) -> Evaluation | None:
    """The evaluation of a report; None where it has no metrics of any system."""
    if not isinstance(found, Mapping) or not dicts(found.get("metrics")):
        return None
    return Evaluation.from_dict({**found, "metrics": dicts(found["metrics"])})


def _name(report: Mapping[str, Any], evaluation: Evaluation | None) -> str:
    output = mapping(report.get("config")).get("output")
    if output:
        return PurePath(str(output)).name or str(output)
    return ", ".join(evaluation.tuned[:3]) if evaluation else "Report"


def _tiles(evaluation: Evaluation) -> list[Tile]:
    key = evaluation.best_metric
    metric, out = metric_of(evaluation, key), []
    for name in evaluation.tuned[:TILES]:
        path = pointer("evaluation", "metrics", name, key)
        value = evaluation[name].get(key)
        own = dicts(dicts(evaluation.intervals).get(name)).get(key, {})
        interval: Cell = ""
        if (both := ends(own, metric, pointer("evaluation", "intervals", name, key))) is not None:
            interval = [f"{own.get('level') or 0.95:.0%} interval ".replace("%", " %"), both[0], "–", both[1]]
        beside: Cell = ""
        verdict, colour = "", ""
        if evaluation.base:
            base, at = evaluation[evaluation.base].get(key), pointer("evaluation", "metrics", evaluation.base, key)
            delta = change(value, base, metric, path, at)
            beside = [f"{evaluation.label(evaluation.base)} ", number(base, metric, at), " (", *(delta or ["–"]), ")"]
            verdict = str(dicts(dicts(evaluation.comparisons).get(name)).get(key, {}).get("verdict") or "")
            colour = {"better": "good", "worse": "bad"}.get(verdict, "")
        out.append(Tile(f"{metric.title}, {name}", number(value, metric, path), "", interval, beside, verdict, colour,
                        place_of(evaluation, name)))  # fmt: skip
    cut: Cell = [number(evaluation.truncated, COUNT, "/evaluation/truncated"), " of them cut short"]
    out.append(Tile("rows measured", number(evaluation.rows, COUNT, "/evaluation/rows"),
                    beside=cut if evaluation.truncated else "", place=-1))  # fmt: skip
    return out + _costs(evaluation)


def _costs(evaluation: Evaluation) -> list[Tile]:
    """What it costs, where one adapter stands beside the base."""
    out = []
    if len(evaluation.tuned) == 1:
        name = evaluation.tuned[0]
        own = dicts(dicts(dicts(evaluation.speed).get(name)).get("to_base")).get("latency_p50_ms")
        if own and own.get("value") is not None:
            first, *rest = times(
                own, metric_of(evaluation, "loss"), pointer("evaluation", "speed", name, "to_base", "latency_p50_ms")
            )  # type: ignore[arg-type]
            assert isinstance(first, Number)
            interval: Cell = ["95 % interval ", *[_plain(piece) for piece in rest[1:-1]]] if rest else ""
            out.append(Tile("time of a row, to the base's", first, interval=interval, place=-1))
    if (memory := peak_memory(evaluation)) is not None:
        out.append(Tile("peak memory", memory, "MiB", beside=str(evaluation.peak_memory_kind or ""), place=-1))
    return out


def _plain(piece: Any) -> Any:
    return text(piece) if isinstance(piece, tuple) else piece


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=lambda value: clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    environment.filters |= {
        "pieces": pieces, "text": _written, "json": data_value, "place": data_path,
        "look": _look, "tone": _tone,
    }  # fmt: skip
    environment.tests["figure"] = lambda piece: isinstance(piece, Number)
    return environment.get_template("page.html")


@jinja2.pass_context
def _written(context: jinja2.runtime.Context, piece: Piece) -> str:
    said, left = excerpt(text(piece), LONGEST)
    return f"{said} … ({left:,} more characters are in {context['file']})" if left else said


def _look(piece: Piece) -> str:
    return STYLES.get(style(piece), "")


def _tone(place: int) -> str:
    return tone(place) if place >= 0 else "plain"


@cache
def _file(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(source: str) -> str:
    """What the page's own security policy knows its style and script by: no other runs, whatever a text may hold."""
    return base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()

"""A `DataReport` for the eye. Where there is no colour, marks say what colours would."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from lora.checks.answers import Answers
from lora.checks.data import DataReport
from lora.checks.drawing_examples import draw_examples
from lora.checks.findings import Finding, counted, share
from lora.checks.lengths import Lengths, Spread

BAR = 22  # characters of the longest bar
EIGHTHS = " ▏▎▍▌▋▊▉█"
ALL_LABELS = 12  # of more labels the ends of the table are shown
FIRST, LAST = 6, 4
SCRIPTS = 5
MARKS = {"mend": ("✗", "bold red"), "look": ("!", "bold yellow"), "note": ("·", "dim")}


def draw(report: DataReport, console: Console, full: bool = False) -> None:
    """Print ``report``. ``full``: examples are not shortened."""
    _head(report, console)
    if report.examples:
        draw_examples(report.examples, console, full)
    _lengths(report.lengths, console)
    _answers(report, console)
    _findings(report, console)


def _rule(console: Console, title: str) -> None:
    console.print()
    console.print(Rule(Text(title, style="bold"), align="left", style="dim"))


def _head(report: DataReport, console: Console) -> None:
    rows = ", ".join(f"{name} {count:,}" for name, count in report.rows.items())
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in (("data", ", ".join(report.sources)), ("base", report.model), ("rows", rows)):
        if value:
            grid.add_row(name, Text(value))
    columns = ", ".join(f"{role} from column {name!r}" for role, name in report.columns.items())
    told = any(note.startswith("Task ") for note in report.notes)
    grid.add_row("task", Text("\n".join([*([] if told else [f"Task {report.task}: {columns}."]), *report.notes])))
    console.print(grid)


def _lengths(lengths: Lengths, console: Console) -> None:
    _rule(console, "Lengths")
    both = Table.grid(padding=(0, 4))
    spreads = {"tokens of an example": lengths.tokens}
    if lengths.learned is not None:
        spreads["of these learned"] = lengths.learned
    both.add_row(*(_histogram(title, of) for title, of in spreads.items()))
    console.print(both)
    console.print()
    console.print(_quantiles({"tokens": lengths.tokens, **({"learned": lengths.learned} if lengths.learned else {})}))
    console.print()
    for line in _said(lengths):
        console.print(Text(line))


def _said(lengths: Lengths) -> list[str]:
    """What is to be said of lengths in sentences."""
    limit = f"max_length {lengths.max_length:,}"
    out = [f"{limit}: no training row is longer."]
    if lengths.cut:
        out = [*lengths.notes, *(f"{name.capitalize()}: {place}." for name, place in lengths.cut_places.items())]
        lost = f"; {lengths.lost:,} tokens are not seen" if lengths.lost else ""
        out.append(f"{limit}: the longest row has {lengths.longest:,} tokens{lost}.")
    if lengths.learned is not None:
        out.append(f"Learned: {share(lengths.learned.total, lengths.tokens.total)} of the tokens.")
    out.append(
        f"An epoch: {counted(lengths.examples, 'example')}, {lengths.tokens.total:,.0f} tokens, "
        f"{counted(lengths.batches, 'batch', 'batches')}, {counted(lengths.steps, 'step')}; the run: "
        f"{counted(lengths.total_steps, 'step')}."
    )
    if lengths.padding is not None:
        packed = "" if lengths.padded else "; none where the base allows documents to be packed in a row"
        out.append(f"Padding: {share(lengths.padding, 1)} of padded batches{packed}.")
    return out


def _histogram(title: str, of: Spread) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", style="dim")
    table.add_column(min_width=BAR)
    table.add_column(justify="right")
    table.add_row(Text(title, style="italic"), "", "")
    most = max(count for _, _, count in of.histogram)
    whole = all(float(low).is_integer() for low, _, _ in of.histogram)
    for place, (low, high, count) in enumerate(of.histogram):
        if whole:
            last = high - (place < len(of.histogram) - 1)
            ends = f"{low:,.0f}–{last:,.0f}" if last > low else f"{low:,.0f}"
        else:
            ends = f"{low:g}–{high:g}"
        table.add_row(ends, Text(bar(count, most), style="cyan"), f"{count:,}")
    return table


def bar(count: float, most: float, width: int = BAR) -> str:
    """A bar of ``width`` characters for ``most``; anything at all is seen."""
    eighths = round(8 * width * count / most) if most else 0
    eighths = max(eighths, 1) if count else 0
    return "█" * (eighths // 8) + EIGHTHS[eighths % 8].strip()


def _quantiles(spreads: dict[str, Spread], form: str = ",.0f") -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    table.add_column("")
    first = next(iter(spreads.values()))
    names = {0: "min", 50: "median", 100: "max"}
    for key in first.quantiles:
        table.add_column(names.get(key, f"{key} %"), justify="right")
    table.add_column("mean", justify="right")
    for name, of in spreads.items():
        values = [*of.quantiles.values(), of.total / of.count]
        table.add_row(Text(name, style="dim"), *(format(value, form) for value in values))
    return table


def _answers(report: DataReport, console: Console) -> None:
    answers = report.answers
    if answers.classes:
        _rule(console, "Labels")
        console.print(_labels(answers))
        if answers.unlabelled:
            console.print(f"{counted(answers.unlabelled, 'training row')} without a label.")
    if answers.values is not None:
        _rule(console, "Labels")
        console.print(_histogram("value", answers.values))
        console.print(_quantiles({"value": answers.values}, ".4g"))
    if answers.chosen is not None and answers.rejected is not None:
        _rule(console, "Preferences")
        console.print(_quantiles({"chosen": answers.chosen, "rejected": answers.rejected}))
        console.print(
            f"The chosen answer is the longer one in {share(answers.longer or 0, 1)} of the pairs (tokens; ties half)."
        )
    if answers.turns is not None:
        _rule(console, "Conversations")
        console.print(_quantiles({"messages": answers.turns}))
        roles = ", ".join(f"{role} {count:,}" for role, count in answers.roles.items())
        systems = f"; {counted(answers.systems, 'system message')} in use" if answers.systems else "; no system message"
        console.print(f"Messages: {roles}{systems}.")


def _labels(answers: Answers) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="dim", pad_edge=False)
    parts = list(next(iter(answers.classes.values())))
    table.add_column("label", overflow="ellipsis", max_width=40, no_wrap=True)
    for name in parts:
        table.add_column(name, justify="right")
        if name == "training":
            table.add_column("")
    names = list(answers.classes)
    most = max(answers.classes[name][parts[0]] for name in names)
    shown: Sequence[Any] = names if len(names) <= ALL_LABELS else [*names[:FIRST], None, *names[-LAST:]]
    for name in shown:
        if name is None:
            table.add_row(Text(f"… {len(names) - FIRST - LAST} more", style="dim"))
            continue
        counts = answers.classes[name]
        cells: list[Any] = [f"{counts[part]:,}" for part in parts]
        table.add_row(Text(name), cells[0], Text(bar(counts[parts[0]], most), style="cyan"), *cells[1:])
    return table


def _findings(report: DataReport, console: Console) -> None:
    _rule(console, "Findings")
    names = list(report.scripts.items())
    shown = ", ".join(f"{name} {share(part, 1)}" for name, part in names[:SCRIPTS])
    more = f" and {len(names) - SCRIPTS} more" if len(names) > SCRIPTS else ""
    unknown = "" if report.unknown is None else f" Unknown tokens: {share(report.unknown, 1)}."
    console.print(Text(f"Scripts: {shown or 'none'}{more}.{unknown}", style="dim"))
    for finding in report.findings:
        _finding(finding, console)
    console.print()
    level = "mend" if report.at("mend") else "look" if report.at("look") else ""
    mark, style = MARKS.get(level, ("✓", "bold green"))
    console.print(Text.assemble((f"{mark} ", style), (report.verdict, style)))


def _finding(finding: Finding, console: Console) -> None:
    mark, style = MARKS[finding.level]
    line = Text.assemble(
        (finding.what[:1].upper() + finding.what[1:], "" if finding.level == "note" else "bold"), ": ", finding.why
    )
    grid = Table.grid(padding=(0, 1))
    grid.add_row(Text(mark, style=style), line)
    console.print(grid)
    for text in [finding.places, *finding.quotes]:
        if text:
            console.print(Padding(Text(text, style="dim"), (0, 0, 0, 4)))

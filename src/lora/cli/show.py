"""What several commands print: notes, result tables, where things are."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from lora.errors import TrainingError
from lora.plural import number_of

if TYPE_CHECKING:
    from lora.evaluation.evaluate import Evaluation
    from lora.workflow import TrainResult


COLUMN = 24  # characters that a value with its difference takes


def say(line: str) -> None:
    """A note, on standard error: standard output is for results."""
    print(line, file=sys.stderr)


def console(least: int = 0) -> Any:
    """Standard output; a fixed width (at least ``least``) where it is no terminal: tables are not squeezed."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else max(100, least))


def show_evaluation(evaluation: Evaluation) -> None:
    """The table of base beside tuned, what tests say of differences, and some of the answers that were written."""
    from lora.evaluation import certainty
    from lora.evaluation.grid import text
    from lora.evaluation.speed_tables import speed_tables
    from lora.evaluation.tables import answers, headline

    several = len(evaluation.tuned) > 1
    console(COLUMN * (len(evaluation.metrics) + 1)).print(evaluation.table())
    print(text(headline(evaluation)))
    keys = (evaluation.best_metric, "loss")  # the files have all
    for grid in (certainty.comparisons(evaluation, keys), certainty.pairs(evaluation)) if several else ():
        if grid is not None:
            console().print(grid.rich())
    if (written := answers(evaluation)) is not None:
        console().print(written.rich())
    for grid in speed_tables(evaluation.speed_grid) if evaluation.speed_grid is not None else []:
        console().print(grid.rich())
    if evaluation.forgetting is not None:
        console().print(evaluation.forgetting.grid().rich())


def show_result(result: TrainResult) -> None:
    """The end of a training run: table, where things are."""
    from lora.evaluation.saved import HTML

    fit = result.fit
    if result.evaluation is not None:
        show_evaluation(result.evaluation)
    best = (
        f"; best {fit.best_metric} {fit.best_value:.4f} at step {fit.best_step}" if fit.best_value is not None else ""
    )
    early = " (stopped early)" if fit.stopped_early else ""
    print(f"{number_of(fit.steps, 'step')}{early}, {fit.epochs:.1f} epochs in {fit.seconds:.0f} s{best}")
    print(f"adapter: {fit.output}/adapter")
    if result.report is not None:
        print(f"report:  {result.report.with_name(HTML)}")


def show_results(results: dict[str, TrainResult]) -> None:
    """The end of a run of several adapters: a row for each, and where they are.

    Raises:
        TrainingError: some were stopped; the message says which, and why.
    """
    from rich.table import Table
    from rich.text import Text

    if not all(result.main for result in results.values()):
        return
    table = Table(title=f"{len(results)} adapters")
    for header in ("adapter", "steps", "last loss", "metric", "value", "at step"):
        table.add_column(header, justify="left" if header in ("adapter", "metric") else "right", overflow="fold")
    for name, result in results.items():
        fit = result.fit
        losses = [entry["loss"] for entry in fit.history if "loss" in entry]
        metrics = result.evaluation.metrics[name] if result.evaluation is not None else {}
        value = metrics.get(fit.best_metric)
        table.add_row(
            Text(name), f"{fit.steps}", f"{losses[-1]:.4f}" if losses else "",
            "stopped" if fit.error else fit.best_metric,
            f"{value:.4f}" if isinstance(value, float) else "", "" if fit.best_step is None else f"{fit.best_step}",
        )  # fmt: skip
    console().print(table)
    stopped = {name: result.fit.error for name, result in results.items() if result.fit.error}
    for name, result in results.items():
        if name not in stopped:
            print(f"{name}: {result.fit.output}/adapter")
    if stopped:
        raise TrainingError("\n".join(f"{name} was stopped: {why}" for name, why in stopped.items()))

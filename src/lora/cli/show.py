"""What several commands print: notes, result tables, where things are."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lora.evaluation.evaluate import Evaluation
    from lora.workflow import TrainResult


def say(line: str) -> None:
    """A note, on standard error: standard output is for results."""
    print(line, file=sys.stderr)


def console() -> Any:
    """Standard output; a fixed width where it is no terminal, so that tables are not squeezed."""
    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else 100)


def show_evaluation(evaluation: Evaluation) -> None:
    """The table of base beside tuned."""
    console().print(evaluation.table())


def show_result(result: TrainResult) -> None:
    """The end of a training run: table, where things are."""
    fit = result.fit
    if result.evaluation is not None:
        show_evaluation(result.evaluation)
    best = (
        f"; best {fit.best_metric} {fit.best_value:.4f} at step {fit.best_step}" if fit.best_value is not None else ""
    )
    early = " (stopped early)" if fit.stopped_early else ""
    print(f"{fit.steps} steps{early}, {fit.epochs:.1f} epochs in {fit.seconds:.0f} s{best}")
    print(f"adapter: {fit.output}/adapter")
    print(f"report:  {result.report}")

"""What an evaluation says beside its metrics: how sure they are, calibration, parts of the rows, noise, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora.core.routing import BASE
from lora.errors import ConfigError
from lora.evaluation.calibrating import calibration
from lora.evaluation.inputs import Inputs
from lora.evaluation.parts import columns_of, slices_of, worst_of
from lora.evaluation.robustness import noises_of, robustness
from lora.evaluation.text_bytes import byte_sizes
from lora.evaluation.uncertainty import against_base, between, class_intervals, intervals
from lora.statistics.means import BITS_PER_BYTE, token_rows
from lora.tasks import Encoded, Task
from lora.tasks.figures import Figures, groups_of, values
from lora.tasks.inference import Outcome

if TYPE_CHECKING:
    from lora.model.lora import LoRA

FEWEST = 100  # resamples that intervals need


@dataclass(frozen=True)
class Beside:
    """Which of it is wanted. Arguments: as of `lora.evaluate`."""

    slices: Sequence[str] = ()
    robustness: bool | Sequence[str] = False
    resamples: int = 0
    seed: int = 0

    def check(self, inputs: Inputs) -> None:
        """Raise ConfigError for what these rows cannot give, before anything is measured."""
        if isinstance(self.slices, str) or isinstance(self.robustness, str):
            raise ConfigError("slices and robustness: a list of names is needed, as in slices=['source']")
        columns_of(inputs.task, inputs.encoded, inputs.rows, self.slices)
        if self.robustness:
            if inputs.encode is None:
                raise ConfigError("robustness: noise is put into rows, and these are tokenised already")
            if not self.resamples:
                raise ConfigError("robustness: what noise costs is a test of resamples, and there are none")
            noises_of(inputs.task, self.robustness)

    def measure(
        self, model: LoRA, inputs: Inputs, outcomes: Mapping[str, Outcome], found: Mapping[str, Figures],
        untrained: bool, tokenizer: Any, batch_size: int,
    ) -> dict[str, Any]:  # fmt: skip
        """Fields of an `Evaluation`, and ``metrics``, which come to the others; notes go to those of ``inputs``.

        Args:
            found: figures by adapter; those that have none have no intervals either.
            untrained: whether the base's head is.
        """
        task, encoded, examples = inputs.task, inputs.encoded, inputs.encoded.examples
        tuned = [name for name in outcomes if name != BASE] or list(outcomes)
        sized = {name: _by_bytes(encoded, outcome, tokenizer) for name, outcome in outcomes.items()} if found else {}
        out: dict[str, Any] = {"metrics": {name: values(its) for name, its in sized.items()}}
        found = {name: {**its, **sized[name]} for name, its in found.items()}
        kept = {name: model.notes.get(name, {}) for name in outcomes}
        out["calibration"] = {
            name: its
            for name, outcome in outcomes.items()
            if name in found and (its := _calibrated(task, outcome, examples, kept[name], self)) is not None
        }
        rows = inputs.stream if inputs.rows is None else inputs.rows
        out["errors"] = {name: worst_of(task, outcomes[name], encoded, rows, tokenizer) for name in tuned}
        if not self.resamples:
            return out
        out["intervals"] = intervals(found, self.resamples, self.seed)
        out["class_intervals"] = class_intervals(found, self.resamples, self.seed)
        out["comparisons"] = against_base(found, self.resamples, self.seed, untrained)
        out["pairs"], notes = between(found, (task.best_metric, "loss"), self.resamples, self.seed)
        columns = columns_of(task, encoded, inputs.rows, self.slices)
        parted = {name: found[name] for name in tuned if name in found and task.best_metric in found[name]}
        out["slices"] = {
            name: slices_of(task, its, examples, columns, self.resamples, self.seed).to_dict()
            for name, its in parted.items()
        }
        if self.robustness and inputs.encode is not None and inputs.rows is not None:
            out["robustness"], more = robustness(
                model, task, inputs.rows, encoded, parted, noises_of(task, self.robustness), inputs.encode,
                pad_token_id=inputs.pad_token_id, batch_size=batch_size, resamples=self.resamples, seed=self.seed,
            )  # fmt: skip
            notes += more
        inputs.notes += notes
        return out


def _calibrated(
    task: Task, outcome: Outcome, examples: Sequence[dict[str, Any]], kept: Mapping[str, Any], wanted: Beside
) -> dict[str, Any] | None:
    """`calibration` at the temperature that is ``kept`` with the adapter, where one is."""
    picked = bool(kept.get("temperature_rows_picked"))
    return calibration(task, outcome, examples, kept.get("temperature"), wanted.seed, picked, wanted.resamples)


def _by_bytes(encoded: Encoded, outcome: Outcome, tokenizer: Any) -> Figures:
    """Bits per byte, where bytes can be counted exactly: unlike a loss per token, comparable between tokenizers."""
    sizes = byte_sizes(encoded, tokenizer) if outcome.predictions and tokenizer is not None else None
    if sizes is None or not sum(sizes):
        return {}
    rows = token_rows(outcome.losses, outcome.counts, sizes, groups=groups_of(encoded.examples))
    return {"bits_per_byte": (BITS_PER_BYTE, rows)}

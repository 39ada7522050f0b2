"""The checks before training, rehearsed on tensors without contents as training is: their own code runs.

What they share with training, the probe of packed rows and the measurement, is rehearsed there. The findings are not
looked at: there are no numbers to find anything by.
"""

from __future__ import annotations

from collections.abc import Mapping

from lora.checks.before import computed
from lora.checks.ledger import Phase
from lora.checks.outputs import AGAIN
from lora.checks.saving import compare
from lora.checks.shells import Shells
from lora.checks.steps import Trial
from lora.io.peft import adapter_tensors
from lora.training.packing import Packing
from lora.training.participant import Participant
from lora.training.passes import Passes

CHECKS = "checks"  # the phase; while rehearsed there is one for each check, whose peaks grow otherwise with the depth


class _Rehearsed(Trial):
    """A trial of what is known already to go packed or padded."""

    def __init__(self, participant: Participant) -> None:
        self.model, self.name, self.prepared = participant.model, participant.name, participant.prepared
        self.trainee, self.packed, self.settings = participant.trainee, participant.packed, participant.settings
        self.passes = Passes(self.model)
        if self.packed:
            self.passes._packing = Packing(self.model)


def rehearse_checks(participant: Participant, shells: Shells, recompute: bool) -> None:
    """Run them for ``participant``, while ``shells`` are in force."""
    trial, model, ledger = _Rehearsed(participant), participant.model, shells.ledger

    def read() -> None:
        kept = adapter_tensors(model, trial.name)  # as they come from the file
        with shells.making():
            model.add_adapter(AGAIN, model.adapters[trial.name].model_copy(deep=True), seed=0)
        del kept

    last = [lambda: compare(trial, lambda: len(adapter_tensors(model, trial.name)), read)]
    for number, check in enumerate([*computed(trial, recompute), *last]):
        with ledger.phase(f"{CHECKS} {number}"):
            check()
            trial.trainee.begin_step()
        ledger.trim()


def with_checks(phases: Mapping[str, Phase]) -> dict[str, Phase]:
    """``phases`` with one for all checks: the one that takes most."""
    out = {name: phase for name, phase in phases.items() if not name.startswith(CHECKS)}
    own = [phase for name, phase in phases.items() if name.startswith(CHECKS)]
    if own:
        out[CHECKS] = max(own, key=lambda phase: (phase.held, phase.peak))
    return out

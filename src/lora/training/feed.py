"""Where `fit` takes its adapters from: from a list, or from somebody who makes the next one when a place is free.

A list is read and checked as a whole before the first adapter trains. A `Feed` makes its jobs while others train, hears
each evaluation and may have an adapter leave; its place is filled at once. Both come to the same loop.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

from lora.errors import LoraError
from lora.training.begin import Entrance
from lora.training.job import Job
from lora.training.memory import Plan
from lora.training.participant import FitResult, Participant
from lora.training.passes import Passes


class Feed(ABC):
    """Adapters that are not known when `fit` begins, given to it in place of training data.

    No method is called while a pass runs. An adapter that has left stays on the model until `left` takes it off.

    Attributes:
        at_most: adapters that may come in all.
        places: of them at the same time, where `fit` measures how many keep a pass busy.
    """

    at_most: int = sys.maxsize
    places: int = sys.maxsize

    @abstractmethod
    def largest(self) -> Mapping[str, Job]:
        """Jobs that need as much memory as any that may come. Their adapters are made, measured and taken off again.

        What is wrong with them is an error before anything is trained.
        """

    @abstractmethod
    def next(self) -> tuple[str, Job] | None:
        """The next adapter, asked for while a place is free; None: nobody waits now.

        Training ends when nobody waits and nobody trains.
        """

    def refused(self, name: str, error: LoraError) -> None:
        """The adapter just given cannot be trained: its settings do not fit model or data."""
        raise error

    def evaluated(self, participant: Participant, metrics: Mapping[str, Any]) -> str | None:
        """An adapter has been evaluated; the answer is why it must leave, None: it goes on."""
        return None

    @abstractmethod
    def left(self, result: FitResult) -> None:
        """An adapter is done, has diverged or was dismissed; the model holds its best parameters."""


class Given:
    """Adapters all of which were there, and found good, before the first one trains."""

    def __init__(self, participants: Sequence[Participant], plan: Plan, resume: bool) -> None:
        self._waiting = deque(participants)
        self.total = self.places = len(participants)
        for participant in participants:  # nobody has complained
            participant.open(resume)
            _note(participant, plan)

    def next(self) -> Participant | None:
        return self._waiting.popleft() if self._waiting else None

    @property
    def waiting(self) -> bool:
        return bool(self._waiting)

    def left(self, result: FitResult) -> None:
        pass


class OnCall:
    """Adapters that a `Feed` makes when there is a place for them."""

    def __init__(self, feed: Feed, entrance: Entrance, passes: Passes, plan: Plan) -> None:
        self._feed, self._entrance, self._passes, self._plan = feed, entrance, passes, plan
        self.total, self.places = feed.at_most, min(feed.at_most, feed.places)
        self.waiting = True

    def next(self) -> Participant | None:
        while (given := self._feed.next()) is not None:
            name, job = given
            model = self._entrance.model
            before = set(model.adapters)
            try:
                participant = self._entrance.make(name, job)
                model.to(self._entrance.processes.device)
                self._passes.look_again()
                self._entrance.ready(participant, self._passes)
            except LoraError as error:
                for made in [made for made in model.adapters if made not in before]:
                    model.remove_adapter(made)
                self._feed.refused(name, error)
                continue
            participant.heard = self._feed.evaluated
            participant.open(self._entrance.resume)
            _note(participant, self._plan)
            self.waiting = True
            return participant
        self.waiting = False
        return None

    def left(self, result: FitResult) -> None:
        self._feed.left(result)


def _note(participant: Participant, plan: Plan) -> None:
    """What a user should know of how memory was planned for all."""
    participant.notes += [plan.note] if plan.note else []
    if participant.settings.gradient_checkpointing not in (None, plan.recompute):
        participant.notes.append(
            "training.gradient_checkpointing: another adapter's setting holds, since they share passes."
        )

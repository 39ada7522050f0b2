"""The study: where trials are stored, who has which, and how one that was cut off is taken up again."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from lora.config.tuning import TuningConfig
from lora.errors import ConfigError
from lora.tuning.sampling import Seeded, drawn, pruner_of
from lora.tuning.space import Space, encoded

FILE = "study.db"
BEAT, GRACE = 10, 60  # seconds between signs of life of a shared study's worker, and until it is taken for dead
RETRIES = 5  # of a trial whose workers died: after so many it is the trial that kills them
RUNNING, DONE = (TrialState.RUNNING,), (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
SETTINGS, READY = "lora", "lora:ready"


class Ledger:
    """A study, as one worker sees it.

    Args:
        folder: of the worker's output, by which its own trials are known again.
        facts: what all workers must agree on, such as a digest of the data.
    """

    def __init__(
        self, folder: Path, tuning: TuningConfig, space: Space, directions: Sequence[str], names: Sequence[str],
        seed: int, facts: dict[str, Any],
    ) -> None:  # fmt: skip
        self.space, self.tuning, self.seed = space, tuning, seed
        self.shared = tuning.storage is not None
        self.worker = f"{socket.gethostname()}:{folder}" if self.shared else "own"
        self.stopped = False  # whether no more trials are wanted
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        logging.getLogger("optuna").propagate = False
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
        warnings.filterwarnings("ignore", message="Heartbeat of storage is supposed")
        self._open(folder, directions, names)
        self._agree({"space": space.to_dict(), "objectives": list(names), "seed": seed, **facts})
        self._beating: Heartbeat | None = None
        if self.shared:
            self._beating = Heartbeat(self._storage)
            self._beating.start()

    def _open(self, folder: Path, directions: Sequence[str], names: Sequence[str]) -> None:
        url = self.tuning.storage or f"sqlite:///{folder / FILE}"
        beats: dict[str, Any] = {}
        if self.shared:
            retry = RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)
            beats = {"heartbeat_interval": BEAT, "grace_period": GRACE, "heartbeat_stale_trial_callback": retry}
        how: dict[str, Any] = {
            "sampler": Seeded(self.tuning.sampler, self.seed), "pruner": pruner_of(self.tuning),
            "study_name": self.tuning.study,
        }  # fmt: skip
        try:
            self._storage = _storage(url, beats)
            try:
                self.study = optuna.create_study(storage=self._storage, directions=list(directions), **how)  # type: ignore[arg-type]
                self.study.set_metric_names(list(names))
                self.created = True
            except optuna.exceptions.DuplicatedStudyError:
                self.study = optuna.load_study(storage=self._storage, **how)
                self.created = False
        except optuna.exceptions.OptunaError as error:
            raise ConfigError(f"tune.storage: {_shown(url)}: {error}") from None
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) or "its driver"
            raise ConfigError(
                f"tune.storage: {_shown(url)}: the package {missing!r} for this kind of database is not installed"
                + ("; pip install 'lora-many[postgresql]' brings it" if missing == "psycopg" else "")
            ) from None
        except ValueError as error:
            raise ConfigError(f"tune.storage: {_shown(url)}: {_first(error)}") from None
        except Exception as error:  # whatever a driver of whichever database raises
            if type(error).__module__.partition(".")[0] != "sqlalchemy":
                raise
            raise ConfigError(f"tune.storage: {_shown(url)} cannot be used: {_first(error)}") from None
        if not self.created and [its.name.lower() for its in self.study.directions] != list(directions):
            raise ConfigError(
                f"tune.study: {self.tuning.study!r} in that storage searches for something else; name another study"
            )

    def _agree(self, facts: dict[str, Any]) -> None:
        """All workers, and all sessions, must search the same. Raises ConfigError."""
        attributes = self.study.user_attrs
        if not self.created:
            for _ in range(100):  # the one that made it may be about to say what it is
                if READY in attributes:
                    break
                time.sleep(0.1)
                attributes = self.study.user_attrs
        before = attributes.get(SETTINGS)
        if before is not None:
            other = [key for key, value in facts.items() if before.get(key) != value]
            if other:
                raise ConfigError(
                    f"tune: the study {self.tuning.study!r} was begun with other {', '.join(other)}; bring them back, "
                    "or begin another study (another output folder, or another name with --study)"
                )
        else:
            self.study.set_user_attr(SETTINGS, facts)
        if READY not in attributes:
            self._enqueue()
            self.study.set_user_attr(READY, True)

    def _enqueue(self) -> None:
        """Write down the trials to come, where their number is known: whoever takes one has it alone.

        The first is the configuration itself, so that a search cannot end below it for want of having tried it.
        """
        there = len(self.study.get_trials(deepcopy=False))
        if self.tuning.sampler == "grid":
            planned = [dict(chosen) for chosen in self.space.grid()]
            random.Random(self.seed).shuffle(planned)  # a budget that ends before the grid does has seen all of it
            planned = planned[: self.tuning.trials]
        elif self.tuning.trials is not None:
            planned = [self.space.default(), *({} for _ in range(self.tuning.trials - 1))]
        else:
            planned = [self.space.default()]
        for chosen in planned[there:]:
            self.study.enqueue_trial({name: encoded(value) for name, value in chosen.items()})

    # -- taking trials ------------------------------------------------------------------------------------------------

    def cut_off(self) -> list[Trial]:
        """This worker's own trials that ran when it was killed."""
        found = [its for its in self.study.get_trials(deepcopy=False, states=RUNNING) if self._is_mine(its)]
        return [self._taken(Trial(self.study, its._trial_id)) for its in found]

    def _is_mine(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get("worker")
        return worker == self.worker or (worker is None and not self.shared)

    def next(self) -> Trial | None:
        """The next trial; None: the budget is used up, or nobody waits now."""
        if self.stopped:
            return None
        if self.shared:
            self._rescue()
        bounded = self.tuning.trials is not None or self.tuning.sampler == "grid"
        if bounded and not self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return None
        trial = self.study.ask()
        marks = self._storage.get_trial(trial._trial_id).system_attrs
        if bounded and "fixed_params" not in marks and "failed_trial" not in marks:
            # Another worker took the last one in between, so that a new one was made.
            self.study.tell(trial, state=TrialState.FAIL)
            return None
        return self._taken(trial)

    def _taken(self, trial: Trial) -> Trial:
        if self._beating is not None:
            self._beating.add(trial._trial_id)
        trial.set_user_attr("worker", self.worker)
        return trial

    def _rescue(self) -> None:
        """Put trials of workers that are dead back into the line, with the same parameters."""
        fail_stale_trials(self.study)

    @property
    def others_run(self) -> bool:
        """Whether other workers of the study have trials in training, which might be left to this one."""
        if not self.shared or self.stopped:
            return False
        running = self.study.get_trials(deepcopy=False, states=RUNNING)
        return any(not self._is_mine(its) for its in running)

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """The values of ``trial``, drawn now or as stored."""
        return self.space.choose(lambda its: drawn(trial, its.name, its.domain))

    # -- telling ------------------------------------------------------------------------------------------------------

    def report(self, trial: Trial, clock: int, value: float) -> bool:
        """Note an evaluation of the only objective; True: ``trial`` is to be stopped."""
        if clock not in trial.storage.get_trial(trial._trial_id).intermediate_values:
            trial.report(value, clock)
        return trial.should_prune()

    def tell(
        self, trial: Trial, state: TrialState, values: Sequence[float] | None = None, **attributes: Any
    ) -> FrozenTrial | None:
        """The end of ``trial``; None: another worker had taken this one for dead, and has it now."""
        try:
            for key, value in attributes.items():
                trial.set_user_attr(key, value)
            return self.study.tell(trial, values, state)
        except (optuna.exceptions.UpdateFinishedTrialError, ValueError):
            if self.study.get_trials(deepcopy=False)[trial.number].state not in DONE:
                raise
            return None
        finally:
            if self._beating is not None:
                self._beating.remove(trial._trial_id)

    def trials(self) -> list[FrozenTrial]:
        """All that count: not those that were cut off and taken up again under another number."""
        every = self.study.get_trials(deepcopy=False)
        again = {number for its in every for number in its.system_attrs.get("retry_history", [])}
        surplus = [its.number for its in every if its.state == TrialState.FAIL and "settings" not in its.user_attrs]
        return [its for its in every if its.number not in again and its.number not in surplus]

    def front(self) -> list[int]:
        """Numbers of the trials that no other beats in all objectives; of a single one the best, the first of equals.

        Undone, pruned and failed ones are left out.
        """
        done = [its for its in self.trials() if its.state == TrialState.COMPLETE]
        signs = [1 if its == optuna.study.StudyDirection.MAXIMIZE else -1 for its in self.study.directions]
        worth = {its.number: [s * value for s, value in zip(signs, its.values, strict=True)] for its in done}
        if len(signs) == 1:
            return [max(worth, key=lambda number: (worth[number], -number))] if worth else []
        return [
            number for number, own in worth.items()
            if not any(other != own and all(o >= v for o, v in zip(other, own, strict=True))
                       for other in worth.values())
        ]  # fmt: skip

    def close(self) -> None:
        if self._beating is not None:
            self._beating.stop()
        self._storage.remove_session()
        self._storage.engine.dispose()


class Heartbeat(threading.Thread):
    """Signs of life for all trials that this worker has in training."""

    def __init__(self, storage: RDBStorage) -> None:
        super().__init__(daemon=True, name="lora-heartbeat")
        self._storage, self._trials = storage, set[int]()
        self._lock, self._end = threading.Lock(), threading.Event()

    def add(self, trial: int) -> None:
        with self._lock:
            self._trials.add(trial)
        self._storage.record_heartbeat(trial)

    def remove(self, trial: int) -> None:
        with self._lock:
            self._trials.discard(trial)

    def run(self) -> None:
        while not self._end.wait(BEAT):
            with self._lock:
                trials = list(self._trials)
            for trial in trials:
                try:
                    self._storage.record_heartbeat(trial)
                except Exception:  # the database is away for a moment: the next beat tells
                    break
        self._storage.remove_session()

    def stop(self) -> None:
        self._end.set()
        self.join()


def _storage(url: str, beats: dict[str, Any]) -> RDBStorage:
    """The database; its tables are made by the first to come, and two may come at once."""
    for wait in (0.2, 1.0, 3.0, None):
        try:
            return RDBStorage(url, **beats)
        except Exception as error:  # each driver has its own
            race = any(word in str(error).lower() for word in ("already exists", "duplicate key", "locked"))
            if wait is None or not race:
                raise
            time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def _first(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]


def _shown(url: str) -> str:
    """``url`` without its password."""
    scheme, mark, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}{mark}{user.partition(':')[0]}{at}{place}" if at else url

"""Who proposes the next trial, and who stops one: Optuna's samplers and pruners, drawn from a seed of the trial."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from lora.config.tuning import Domain, TuningConfig
from lora.core.randomness import seed_of
from lora.tuning.space import encoded

# Of three trials one goes on: half would keep losers, Li et al.'s four (arXiv:1810.05934) needs more trials than most
# searches have.
REDUCTION = 3
HUNDREDTHS = 100  # of an epoch: the clock that trials of every batch size are compared by
BEFORE_MEDIAN = 4  # trials that must be done before the median of them means anything


class Seeded(BaseSampler):
    """A sampler that draws for trial k from a seed made of the search's and k.

    So what is drawn does not depend on how often the search was stopped and gone on with.
    """

    def __init__(self, kind: str, seed: int) -> None:
        self._kind, self._seed = kind, seed
        self._own: BaseSampler = self._make(0)

    def _make(self, number: int) -> BaseSampler:
        seed = seed_of("trial", self._seed, number) % 2**32
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if self._kind == "tpe":
                return TPESampler(seed=seed)
            if self._kind == "cmaes":
                return CmaEsSampler(seed=seed, warn_independent_sampling=False)
        return RandomSampler(seed=seed)  # a grid's trials bring their values along

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._own = self._make(trial.number)
        self._own.before_trial(study, trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._own.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._own.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._own.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        self._own.after_trial(study, trial, state, values)


def pruner_of(tuning: TuningConfig) -> BasePruner:
    """Steps are hundredths of an epoch."""
    kind = tuning.pruner or ("none" if len(tuning.objectives) > 1 else "halving")
    if kind == "halving":
        return SuccessiveHalvingPruner(min_resource=1, reduction_factor=REDUCTION)
    if kind == "median":
        return MedianPruner(n_startup_trials=BEFORE_MEDIAN)
    return NopPruner()


def drawn(trial: Trial, name: str, domain: Domain) -> Any:
    """The value of ``trial`` for the setting ``name``: what it has already, else what its sampler proposes."""
    if domain.choices is not None:
        found = trial.suggest_categorical(name, [encoded(choice) for choice in domain.choices])
        return next(choice for choice in domain.choices if encoded(choice) == found)
    assert domain.low is not None and domain.high is not None, "checked"
    if domain.whole:
        return trial.suggest_int(name, int(domain.low), int(domain.high), log=domain.log, step=int(domain.step or 1))
    value = trial.suggest_float(name, domain.low, domain.high, log=domain.log, step=domain.step)
    return value if domain.step is None else round(value, 10)  # 3 times 0.05 is 0.15

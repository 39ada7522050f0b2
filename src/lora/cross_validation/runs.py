"""What is trained: each fold with each seed, as the configuration stands, on less data, and with one thing changed."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora.config import CrossValidationConfig, RunConfig, TrainingConfig
from lora.data.folds import Fold
from lora.overrides import ADAPTER_SECTIONS, apply_overrides

AS_IT_STANDS = "as it stands"


@dataclass(frozen=True, eq=False)
class Setup:
    """What is cross-validated: the configuration, on a share of the training rows, or with a setting changed.

    Attributes:
        name: as tables have it.
        folder: what the names of its runs begin with.
        changes: dotted settings over the configuration's.
    """

    name: str = AS_IT_STANDS
    folder: str = ""
    share: float = 1.0
    changes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """``configuration``, ``share`` or ``ablation``."""
        return "ablation" if self.changes else "share" if self.share < 1 else "configuration"


@dataclass(frozen=True)
class Run:
    """One training run."""

    setup: Setup
    fold: Fold
    seed: int

    @property
    def name(self) -> str:
        return f"{self.setup.folder}{self.fold.name}-seed{self.seed}"

    def settings(self, config: RunConfig, chosen: Mapping[str, Any], inner: bool) -> RunConfig:
        """The configuration of this run: ``chosen`` for the fold over ``config``, its own changes over both."""
        changed = apply_overrides(apply_overrides(_values(config), dict(chosen)), dict(self.setup.changes))
        out = RunConfig.make(changed)
        own: dict[str, Any] = {"seed": self.seed, "tensorboard": False, "keep_checkpoints": 1, "generate_rows": 0}
        own |= {} if inner else {"eval_every": None, "best_metric": None, "patience": None}
        out.training = TrainingConfig.make({**out.training.model_dump(), **own})
        return out


def setups(config: RunConfig, asked: CrossValidationConfig) -> tuple[list[Setup], list[str]]:
    """All that are cross-validated, the configuration as it stands first, and sentences about values left out.

    Raises ConfigError, naming the value: a setting that does not exist, or a value that it cannot have.
    """
    out, notes, names = [Setup()], list[str](), set[str]()
    out += [Setup(f"{share:g} of the rows", f"share{share:g}-", share) for share in asked.shares if share < 1]
    for key, values in asked.ablate.items():
        for value in values:
            changed = RunConfig.make(apply_overrides(_values(config), {key: value}))
            if (changed.adapter, changed.training) == (config.adapter, config.training):
                notes.append(f"{key} {_shown(value)} is the configuration as it stands.")
                continue
            name = f"{key}={_shown(value)}"
            folder = re.sub(r"[^\w.+-]+", "_", name)[:60].strip("_.")
            while folder in names:
                folder += "_"
            names.add(folder)
            out.append(Setup(name, f"{folder}-", changes={key: value}))
    return out, notes


def runs_of(setup: Setup, folds: Sequence[Fold], seeds: Sequence[int]) -> list[Run]:
    return [Run(setup, fold, seed) for fold in folds for seed in seeds]


def _values(config: RunConfig) -> dict[str, Any]:
    """What was set, be it afterwards and in a section that nobody gave."""
    values = config.model_dump(exclude_unset=True)
    return values | {key: getattr(config, key).model_dump(exclude_unset=True) for key in ADAPTER_SECTIONS}


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

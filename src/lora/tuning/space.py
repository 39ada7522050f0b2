"""What is searched: settings, the values each may take, and when; and a configuration for each choice of them."""

from __future__ import annotations

import difflib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lora.config import AdapterConfig, RunConfig, TrainingConfig
from lora.config.tuning import Domain
from lora.errors import ConfigError
from lora.registry import VARIANTS
from lora.settings import Settings

SECTIONS: dict[str, type[Settings]] = {"adapter": AdapterConfig, "training": TrainingConfig}
# What decides most first (REFERENCE in docs/tuning.md); alpha stays at 32, which makes the best rate nearly the same
# for all ranks ("LoRA Without Regret", 2025), and variants stay off: nine of them came within 1–2 % of plain LoRA once
# the rate was tuned (arXiv:2602.04998).
USUALLY = ("learning_rate", "rank", "batch_size", "dropout")
USUAL: dict[str, dict[str, Any]] = {
    "rank": {"choices": [4, 8, 16, 32, 64]},
    "alpha": {"choices": [16.0, 32.0, 64.0]},
    "dropout": {"low": 0.0, "high": 0.2, "step": 0.05},
    "targets": {"choices": ["all-linear", "attention", "mlp"]},
    "variant": {"choices": list(VARIANTS)},
    "batch_size": {"choices": [8, 16, 32]},
    "epochs": {"low": 1, "high": 5},
    "weight_decay": {"choices": [0.0, 0.01, 0.1]},
    "schedule": {"choices": ["linear", "cosine", "constant"]},
    "label_smoothing": {"low": 0.0, "high": 0.2, "step": 0.05},
}
# The best rate lies within a factor of 10 of the default: of 35 models all were best between 1e-4 and 3e-3 (see
# training/schedule.py), and divergence is one more thing to learn.
RATES = 10
FIXED = {
    "seed": "a seed that wins was lucky; the winner is run with several anyway (tune.seeds)",
    "dtype": "is the base's, which all trials share",
    "best_metric": "is what trials are compared by; name it in tune.objectives",
    "greater_is_better": "belongs to the metric that trials are compared by",
    "eval_every": "trials are compared at their evaluations; set it for all",
    "gradient_checkpointing": "changes no result",
    "eval_batch_size": "changes no result",
    "save_every": "changes no result",
    "keep_checkpoints": "changes no result",
    "log_every": "changes no result",
    "tensorboard": "changes no result",
    "generate_rows": "changes no result",
}  # fmt: skip


@dataclass(frozen=True)
class Searched:
    """One setting of a space.

    Attributes:
        section, name: as in ``training`` and ``learning_rate``; names are unique over the sections.
        domain: its values; conditions by the names of other searched settings, each with a list of values.
    """

    section: str
    name: str
    domain: Domain

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}"

    def is_active(self, chosen: Mapping[str, Any]) -> bool:
        """Whether its conditions hold for what was chosen before."""
        return all(name in chosen and chosen[name] in values for name, values in self.domain.when.items())


@dataclass
class Space:
    """All searched settings, conditions first.

    Attributes:
        config: the configuration that trials differ from in these settings; rate resolved.
    """

    config: RunConfig
    searched: list[Searched] = field(default_factory=list)

    @classmethod
    def of(cls, config: RunConfig, asked: Sequence[str] | Mapping[str, Any], rate: float, most: int = 10**6) -> Space:
        """Read what was asked for.

        Args:
            rate: the learning rate that the usual range is centred on.
            most: the largest rank that the model's layers take, where the usual range ends.

        Raises:
            ConfigError: all that is wrong with it.
        """
        out, problems, found = cls(config), list[str](), dict[str, Searched]()
        entries = dict.fromkeys(asked or USUALLY, "default") if not isinstance(asked, Mapping) else asked
        for key, value in entries.items():
            try:
                section, name = _resolve(key)
                if name in found:
                    raise ConfigError(f"tune.space.{key}: {name} is named twice")
                domain = _domain(key, name, value, rate, most)
                if domain is None:  # a single value for all trials
                    _change(config, section, name, value)
                else:
                    found[name] = Searched(section, name, domain)
            except ConfigError as error:
                problems.append(str(error))
        if not problems:
            problems += _conditions(found)
        if not problems:
            out.searched = _ordered(found)
            problems += out._unfit()
        if not problems and not out.searched:
            problems.append("tune.space: no setting with a range or choices is left to search")
        if problems:
            raise ConfigError("\n".join(problems))
        return out

    def _unfit(self) -> list[str]:
        """Values that the configuration refuses."""
        problems = []
        for its in self.searched:
            domain = its.domain
            for value in domain.choices if domain.choices is not None else (domain.low, domain.high):
                try:
                    self.settings({its.name: value})
                except ConfigError as error:
                    problems.append(f"tune.space.{its.name}: {error}")
        return problems

    def choose(self, pick: Callable[[Searched], Any]) -> dict[str, Any]:
        """A value for each setting whose conditions hold; ``pick`` names it."""
        chosen: dict[str, Any] = {}
        for its in self.searched:
            if its.is_active(chosen):
                chosen[its.name] = pick(its)
        return chosen

    def settings(self, chosen: Mapping[str, Any]) -> tuple[AdapterConfig, TrainingConfig]:
        """Those of a trial: the configuration's own with what was ``chosen``. Raises ConfigError."""
        sections = {its.name: its.section for its in self.searched}
        made = {}
        for section, model in SECTIONS.items():
            # What was not set is left so: a rank by default is brought down to small layers, one that is named is not.
            own = getattr(self.config, section).model_dump(exclude_unset=True)
            own |= {name: value for name, value in chosen.items() if sections[name] == section}
            made[section] = model.make(own, section)
        adapter, training = made["adapter"], made["training"]
        assert isinstance(adapter, AdapterConfig) and isinstance(training, TrainingConfig)
        return adapter, training

    def default(self) -> dict[str, Any]:
        """What the configuration itself is, in the settings searched; without those whose value is not among theirs."""
        chosen: dict[str, Any] = {}
        for its in self.searched:
            value = getattr(getattr(self.config, its.section), its.name)
            if its.is_active(chosen) and its.domain.holds(value):
                chosen[its.name] = value
        return chosen

    def grid(self) -> Iterator[dict[str, Any]]:
        """Every choice of values, each once."""

        def below(chosen: dict[str, Any], rest: list[Searched]) -> Iterator[dict[str, Any]]:
            if not rest:
                yield chosen
                return
            first, *others = rest
            if not first.is_active(chosen):
                yield from below(chosen, others)
                return
            for value in first.domain.values():
                yield from below({**chosen, first.name: value}, others)

        return below({}, self.searched)

    def largest(self) -> list[tuple[AdapterConfig, TrainingConfig]]:
        """Settings that take the most memory: the largest rank and batch with each variant, and with the targets that
        hold all others, or else with each."""
        by_name = {its.name: its.domain.values() for its in self.searched}
        most: dict[str, Any] = {name: max(by_name[name]) for name in ("rank", "batch_size") if name in by_name}
        targets = by_name.get("targets", [self.config.adapter.targets])
        if "all-linear" in targets:
            targets = ["all-linear"]
        variants = by_name.get("variant", [self.config.adapter.variant])
        # What is not plain keeps more for its backward, and the first of equal batches is measured.
        ordered = sorted(variants, key=lambda variant: variant == "plain")
        out = []
        for variant, where in itertools.product(ordered, targets):
            both = {"variant": variant, "targets": where}
            out.append(self.settings({**most, **{name: both[name] for name in both if name in by_name}}))
        return out

    def to_dict(self) -> dict[str, Any]:
        """For files: each setting's values."""
        return {its.key: its.domain.model_dump(mode="json", exclude_defaults=True) for its in self.searched}


def _resolve(key: str) -> tuple[str, str]:
    """Section and name of the setting that is called ``key``. Raises ConfigError naming the nearest one."""
    section, dot, last = str(key).rpartition(".")
    if dot and section not in SECTIONS:
        why = "trials share their data and base" if section in ("data", "") else f"known: {', '.join(SECTIONS)}"
        raise ConfigError(f"tune.space.{key}: {section!r} is no section that can be searched; {why}")
    for home, model in SECTIONS.items():
        name = model.canonical(last)
        if name in model.model_fields and section in ("", home):
            if name in FIXED:
                raise ConfigError(f"tune.space.{key}: cannot be searched: {FIXED[name]}")
            return home, name
    known = [name for model in SECTIONS.values() for name in (*model.model_fields, *model.aliases)]
    near = difflib.get_close_matches(last, [name for name in known if name not in FIXED], n=1, cutoff=0.6)
    hint = f"did you mean {near[0]!r}?" if near else "any setting of adapter or training can be searched"
    raise ConfigError(f"tune.space.{key}: unknown setting; {hint}")


def _domain(key: str, name: str, value: Any, rate: float, most: int) -> Domain | None:
    """What ``value`` says; None: it is a single value."""
    where = f"tune.space.{key}"
    if value is None or value == "default":
        if name == "learning_rate":
            low, high = (float(f"{end:.3g}") for end in (rate / RATES, rate * RATES))
            return Domain.make({"low": low, "high": high, "log": True}, where)
        if name not in USUAL:
            raise ConfigError(f"{where}: has no usual range; give it {{low, high}} or {{choices}}")
        if name == "rank":
            return Domain.make(
                {"choices": [rank for rank in USUAL["rank"]["choices"] if rank <= most] or [most]}, where
            )
        return Domain.make(USUAL[name], where)
    if isinstance(value, Domain):
        return value
    if isinstance(value, Mapping):
        if set(value) == {"when"}:  # the usual range under a condition
            usual = _domain(key, name, None, rate, most)
            assert usual is not None, "a range"
            return Domain.make({**usual.model_dump(exclude_unset=True), **value}, where)
        return Domain.make(dict(value), where)
    if isinstance(value, (list, tuple)):
        return Domain.make({"choices": list(value)}, where)
    return None


def _change(config: RunConfig, section: str, name: str, value: Any) -> None:
    own = getattr(config, section)
    made = SECTIONS[section].make({**own.model_dump(), name: value}, f"tune.space: {section}")
    setattr(config, section, made)


def _conditions(found: dict[str, Searched]) -> list[str]:
    """Bring conditions into one form; what is wrong with them."""
    problems = []
    for name, its in list(found.items()):
        when = {}
        for key, values in its.domain.when.items():
            where = f"tune.space.{name}.when.{key}"
            try:
                other = _resolve(key)[1]
            except ConfigError as error:
                problems.append(str(error).replace(f"tune.space.{key}", where))
                continue
            wanted = list(values) if isinstance(values, (list, tuple)) else [values]
            if other not in found or other == name:
                problems.append(f"{where}: is not searched itself, so it decides nothing; add it to the space")
                continue
            none = [value for value in wanted if not found[other].domain.holds(value)]
            if none:
                problems.append(f"{where}: {other} is never {none[0]!r}")
            when[other] = wanted
        found[name] = Searched(its.section, name, its.domain.model_copy(update={"when": when}))
    return problems


def _ordered(found: Mapping[str, Searched]) -> list[Searched]:
    """Each after those it depends on. Raises ConfigError: they depend on each other."""
    out, left = list[Searched](), dict(found)
    while left:
        free = [name for name, its in left.items() if not set(its.domain.when) & set(left)]
        if not free:
            raise ConfigError(f"tune.space: the conditions of {' and '.join(left)} depend on each other")
        out += [left.pop(name) for name in free]
    return out


def encoded(value: Any) -> Any:
    """A choice as a study can store it: names in a list become one text."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else json.dumps(value)

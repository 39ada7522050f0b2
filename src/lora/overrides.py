"""Settings laid over settings: options over a file, one adapter's over those for all."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lora.config import AdapterConfig, RunConfig
from lora.errors import ConfigError
from lora.settings import Settings
from lora.yaml_text import read_yaml, write_yaml

# They stand in settings of one adapter: what it learns from, what it is, how it is trained.
ADAPTER_SECTIONS = ("data", "adapter", "training")
# Names of folders and files of a run, which an adapter's own folder beside them must not be.
TAKEN = ("adapter", "checkpoints", "tensorboard", "base", "config.yaml")


def _section(section: str, values: Any) -> dict[str, Any]:
    if section not in ADAPTER_SECTIONS:
        near = difflib.get_close_matches(section, ADAPTER_SECTIONS, n=1)
        homes = [home for home in ADAPTER_SECTIONS if _group(home).canonical(section) in _group(home).model_fields]
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ADAPTER_SECTIONS)}"
        raise ConfigError(f"{section}: unknown section; " + (f"did you mean {homes[0]}.{section}?" if homes else hint))
    if not isinstance(values, dict):
        raise ConfigError(f"{section}: expected settings as 'key: value' lines (given: {values!r})")
    return values


def _check_name(name: str) -> None:
    if name in TAKEN or name.startswith(".") or set(name) & set('/\\:*?"<>|') or name != name.strip() or not name:
        raise ConfigError(
            f"name: {name!r} cannot be an adapter's name here: it names a folder of the run, where "
            f"{', '.join(TAKEN)} and marks like / are taken"
        )


def each_adapter(config: RunConfig) -> dict[str, RunConfig]:
    """The configuration of each of ``config.adapters`` by itself: its own settings over those for all.

    Raises:
        ConfigError: unknown or bad settings, all of them, with the adapter's name.
    """
    out, problems = {}, []
    for name, own in config.adapters.items():
        common = config.model_dump(include=config.model_fields_set - {"adapters", "at_once"}, exclude_unset=True)
        # Of each section what was set, be it afterwards and on a section that nobody gave.
        common |= {key: getattr(config, key).model_dump(exclude_unset=True) for key in ADAPTER_SECTIONS}
        try:
            _check_name(name)
            flat = {
                f"{section}.{key}": value
                for section, values in own.items()
                for key, value in _section(section, values).items()
            }
            own_keys = [AdapterConfig.canonical(key) for key in own.get("adapter", {})]
            if any(key.startswith("use_") for key in own_keys):
                # PEFT's way to name a variant (use_dora): it stands in for the common one.
                common.get("adapter", {}).pop("variant", None)
            each = RunConfig.make(apply_overrides(common, flat))
            each.output = config.output and str(Path(config.output) / name)
            out[name] = each
        except ConfigError as error:
            problems += [f"adapters.{name}.{line}" for line in str(error).splitlines()]
    if problems:
        raise ConfigError("\n".join(problems))
    return out


def apply_overrides(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Return ``values`` with dotted ``overrides`` (``{"training.learning_rate": 1e-3}``) written over them.

    An override replaces its setting however either of them is spelled. Unknown names are left to the validation.
    """
    out: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for dotted, value in overrides.items():
        section, _, key = dotted.rpartition(".")
        if not section:
            _replace(RunConfig, out, key, value)
            continue
        if not isinstance(out.get(section), dict):
            # `data: file.jsonl` is short for `data: {train: file.jsonl}`
            out[section] = {"train": out[section]} if section == "data" and out.get(section) else {}
        _replace(_group(section), out[section], key, value)
    return out


def _group(section: str) -> type[Settings]:
    field = RunConfig.model_fields.get(section)
    group = field.annotation if field else None
    return group if isinstance(group, type) and issubclass(group, Settings) else Settings


def _replace(group: type[Settings], values: dict[str, Any], key: str, value: Any) -> None:
    name = group.canonical(key)
    for spelling in [other for other in values if group.canonical(other) == name]:
        del values[spelling]
    values[name] = value


def load_config(
    path: str | Path | None, overrides: dict[str, Any] | None = None, beside: Collection[str] = ()
) -> RunConfig:
    """Read a YAML file (or none), write ``overrides`` over it and validate.

    ``beside``: sections that may stand in the file and are no part of a run's configuration, see `section_beside`.

    Raises ConfigError naming the file, the key and the nearest known name; also where an override names data that no
    adapter of the set would read.
    """
    values = {} if path is None else {key: its for key, its in read_yaml(path).items() if key not in beside}
    try:
        config = RunConfig.make(apply_overrides(values, overrides or {}))
        _check_read(config, overrides or {})
        return config
    except ConfigError as error:
        problems = str(error).splitlines()
        if path is not None and overrides and _valid(values):
            raise  # what is wrong came with the options
        if path is None or len(problems) == 1:
            raise ConfigError(f"{path}: {error}" if path else str(error)) from None
        raise ConfigError(f"{path}: {len(problems)} problems\n  " + "\n  ".join(problems)) from None


def section_beside(path: str | Path | None, name: str) -> dict[str, Any]:
    """A section of a YAML file that is no part of a run's configuration. Raises ConfigError: it is no table."""
    found = {} if path is None else read_yaml(path).get(name)
    if not isinstance(found or {}, dict):
        raise ConfigError(f"{path}: {name}: expected settings as 'key: value' lines (given: {found!r})")
    return found or {}


def _check_read(config: RunConfig, overrides: dict[str, Any]) -> None:
    """Raise ConfigError where data are named for all adapters of a set and each has its own: nobody would read them."""
    problems = []
    for key in ("train", "validation", "replay"):
        if (
            f"data.{key}" in overrides
            and config.adapters
            and all(key in map(_group("data").canonical, own.get("data") or {}) for own in config.adapters.values())
        ):
            problems.append(
                f"data.{key}: is given for all, but each adapter names its own, which would be read instead; change "
                + ", ".join(f"adapters.{name}.data.{key}" for name in config.adapters)
                + " in the set's file"
            )
    if problems:
        raise ConfigError("\n".join(problems))


def _valid(values: dict[str, Any]) -> bool:
    try:
        RunConfig.make(values)
    except ConfigError:
        return False
    return True


def save_config(config: RunConfig) -> str:
    """The resolved configuration as YAML text, every default written out."""
    return write_yaml(config.model_dump(mode="json"))

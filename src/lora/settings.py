"""The base of every group of settings: aliases, unknown keys with the nearest known name, all problems at once."""

from __future__ import annotations

import difflib
import types
import typing
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator, model_validator

from lora.errors import ConfigError


class Settings(BaseModel):
    """A group of settings: unknown keys and bad values are reported all at once, each with its remedy."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, protected_namespaces=(), allow_inf_nan=False)

    aliases: ClassVar[dict[str, str]] = {}

    @model_validator(mode="before")
    @classmethod
    def _accept_aliases(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        out, spelled = dict[str, Any](), dict[str, str]()
        for key, value in values.items():
            name = cls.canonical(key)
            if name in out:
                raise ValueError(f"{name!r} is given twice (as {spelled[name]!r} and as {key!r}); keep one of them")
            out[name], spelled[name] = value, key
        return out

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        # YAML reads yes, no, on and off as truth values, which pydantic would count as 1 and 0.
        if isinstance(value, bool) and bool not in members(cls.model_fields[info.field_name or ""].annotation):
            raise ValueError("a truth value (yes, no, true, false) is not accepted here")
        return value

    @classmethod
    def canonical(cls, key: Any) -> str:
        """Our name of the setting that is spelled ``key``: an alias, with dashes or as it is."""
        name = str(key).replace("-", "_")
        return cls.aliases.get(name, name)

    @classmethod
    def make(cls, values: dict[str, Any] | None = None, where: str = "") -> Self:
        """Validate ``values``; raises ConfigError naming every problem. ``where`` prefixes the reported keys."""
        try:
            return cls.model_validate(values or {})
        except ValidationError as error:
            raise ConfigError(explain(cls, error, where)) from None


def explain(cls: type[BaseModel], error: ValidationError, where: str = "") -> str:
    """Turn a pydantic error into lines of the form ``key: what is wrong (what was given)``, one per key."""
    found: dict[str, tuple[list[str], Any]] = {}
    for item in error.errors():
        path = _setting_path(cls, [str(part) for part in item["loc"]])
        key = ".".join(([where] if where else []) + path) or "settings"
        if item["type"] == "extra_forbidden":
            near = _nearest(cls, path)
            hint = f"did you mean {near!r}?" if near else f"known: {', '.join(_known(cls, path[:-1]))}"
            message = f"unknown setting; {hint}"
        elif item["type"] == "model_type":
            message = "expected settings as 'key: value' lines"
        else:
            message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        # A key that accepts several types has one message for each of them.
        messages, _ = found.setdefault(key, ([], item["input"]))
        if message not in messages:
            messages.append(message)
    lines = []
    for key, (messages, given) in found.items():
        first, *others = messages
        bare = first.startswith("unknown setting") or isinstance(given, dict)
        text = ", or ".join([first, *(other.removeprefix("must be ") for other in others)])
        lines.append(f"{key}: {text}" + ("" if bare else f" (given: {given!r})"))
    return "\n".join(lines)


def _setting_path(cls: type[BaseModel], loc: list[str]) -> list[str]:
    """The part of an error's location that names a setting: pydantic appends the accepted types and list positions."""
    for depth, part in enumerate(loc, start=1):
        field = _submodel(cls, loc[: depth - 1]).model_fields.get(part)
        if field is None or not _is_settings(field.annotation):
            return loc[:depth]
    return loc


def members(annotation: Any) -> list[Any]:
    """The types that an annotation accepts."""
    args = typing.get_args(annotation) if typing.get_origin(annotation) in (typing.Union, types.UnionType) else ()
    return [member for item in args for member in members(item)] or [annotation]


def _is_settings(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _submodel(cls: type[BaseModel], path: list[str]) -> type[BaseModel]:
    for part in path:
        field = cls.model_fields.get(part)
        if field is None or not _is_settings(field.annotation):
            break
        cls = typing.cast("type[BaseModel]", field.annotation)
    return cls


def _known(cls: type[BaseModel], path: list[str]) -> list[str]:
    return sorted(_submodel(cls, path).model_fields)


def _nearest(cls: type[BaseModel], path: list[str]) -> str | None:
    """The known name that an unknown one was probably meant to be: the same in another section, or one like it."""
    model = _submodel(cls, path[:-1])
    for section, field in cls.model_fields.items():
        group = field.annotation
        if isinstance(group, type) and issubclass(group, Settings) and group is not model:
            name = group.canonical(path[-1])
            if name in group.model_fields:
                return f"{section}.{name}"
    names = [*model.model_fields, *getattr(model, "aliases", {})]
    found = difflib.get_close_matches(path[-1], names, n=1, cutoff=0.6)
    return found[0] if found else None

"""Every key of the configuration as an option of a command, built from the configuration itself.

``training.learning_rate`` is ``--training.learning-rate``, ``--learning-rate`` (its name is unique over the sections),
``--lr`` and whatever else the configuration accepts for it. Only what was given counts: a command receives
``overrides``, ready for ``lora.overrides.load_config(path, overrides)``, and everything else keeps the file's value or
the default. Values are checked by the configuration, not here, so that all problems are reported together.
"""

from __future__ import annotations

import re
import typing
from collections import Counter
from collections.abc import Callable, Iterator
from os.path import exists
from typing import Any, Literal, TypeVar

import click
from click.core import ParameterSource
from pydantic.fields import FieldInfo

from lora.config import RunConfig
from lora.settings import Settings, members

F = TypeVar("F", bound=Callable[..., Any])

# Short names beside those that follow from the keys and their aliases.
SHORTCUTS: dict[str, tuple[str, ...]] = {
    "model": ("-m",),
    "output": ("-o",),
    "data.train": ("-d", "--data"),
    "training.learning_rate": ("--lr",),
}

TITLES = {"": "Model and output", "data": "Data", "adapter": "Adapter", "training": "Training"}

# Names in a row, as in `--targets q_proj,v_proj`. A regular expression that holds a comma has other characters too.
_ITEMS = re.compile(r"[\w.*-]+(\s*,\s*[\w.*-]+)+")


class ConfigOption(click.Option):
    """An option for one key. Its aliases are accepted; help shows only the names worth knowing."""

    def __init__(self, *args: Any, key: str, shown: list[str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.key = key
        self.shown = shown

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        names = ", ".join(self.shown)
        return (names if self.is_flag else f"{names} {self.metavar}"), self.help or ""


class ConfigCommand(click.Command):
    """A command whose help lists the configuration's options by section, after its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # `--learning_rate` is as good as `--learning-rate`.
        self.context_settings.setdefault("token_normalize_func", lambda token: token.replace("_", "-"))
        self.context_settings.setdefault("max_content_width", 100)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            # An argument without a help text stands in the usage line already.
            if record and record[1]:
                groups.setdefault(_title(param), []).append(record)
        for title in sorted(groups, key=["Arguments", "Options", *TITLES.values()].index):
            with formatter.section(title):
                formatter.write_dl(groups[title], col_max=34)
        if set(groups) & set(TITLES.values()):
            formatter.write_paragraph()
            formatter.write_text(
                "Each of these is a key of the YAML file too, and may be written in full: --adapter.rank, "
                "--training.learning-rate. An option wins over the file. Lists and tables are written as in YAML: "
                "--targets '[q_proj, v_proj]', --rank-pattern '{q_proj: 8}'; null takes a value away."
            )


def _title(param: click.Parameter) -> str:
    if isinstance(param, ConfigOption):
        return TITLES[param.key.rpartition(".")[0]]
    return "Arguments" if isinstance(param, click.Argument) else "Options"


def config_options(*parts: str) -> Callable[[F], F]:
    """Decorator: add an option for each key in ``parts`` (sections or dotted keys; none: all of them).

    The function gets one more argument, ``overrides``: ``{"training.learning_rate": 3e-4}`` for what was given.
    """
    chosen = [(key, field) for key, field in _keys() if not parts or key in parts or key.partition(".")[0] in parts]
    names = _option_names()

    def decorate(function: F) -> F:
        def collect(*args: Any, **kwargs: Any) -> Any:
            ctx = click.get_current_context()
            overrides: dict[str, Any] = {}
            for key, field in chosen:
                value = kwargs.pop(_identifier(key))
                if ctx.get_parameter_source(_identifier(key)) is ParameterSource.COMMANDLINE:
                    overrides[key] = value if isinstance(value, bool) else _given(field, value, key)
            return function(*args, overrides=overrides, **kwargs)

        collect.__doc__ = function.__doc__
        collect.__name__ = function.__name__
        # Options that were put on the function by decorators below this one.
        inner = getattr(function, "__click_params__", [])
        options = [_make_option(key, field, names[key]) for key, field in chosen]
        collect.__click_params__ = [*inner, *reversed(options)]  # type: ignore[attr-defined]
        return typing.cast(F, collect)

    return decorate


def _given(field: FieldInfo, value: str | tuple[str, ...], key: str) -> Any:
    """What an option's text, or of one that was repeated all its texts, stand for."""
    if isinstance(value, str):
        return parse_value(field.annotation, value, key)
    # Names of files: only a list or a table is YAML, and a comma may be part of a name.
    read = [_read_yaml(text, key) if text.lstrip()[:1] in ("[", "{") and not exists(text) else text for text in value]
    if len(read) == 1:
        return None if read[0] in ("null", "~", "") else read[0]
    return [entry for part in read for entry in (part if isinstance(part, list) else [part])]


def parse_value(annotation: Any, text: str, key: str = "value") -> Any:
    """Read an option's text as the configuration file would, by what the key accepts.

    Texts stay as they are written (``--data 2024`` is a file's name, ``--targets '[qkv]_proj'`` an expression); lists,
    tables and numbers follow YAML; ``null`` is None where the key may be empty.
    """
    accepted = members(annotation)
    stripped = text.strip()
    if type(None) in accepted and stripped in {"null", "~", ""}:
        return None
    group = any(isinstance(item, type) and issubclass(item, Settings) for item in accepted)
    if group and stripped.startswith("{") and not exists(text):  # the name of a file, or a table
        return _read_yaml(stripped, key)
    has_list = any(typing.get_origin(item) is list for item in accepted)
    has_table = any(typing.get_origin(item) is dict for item in accepted)
    if has_list and _ITEMS.fullmatch(stripped):
        return _read_yaml(f"[{stripped}]", key)
    if has_list and str in accepted and not _is_yaml_list(stripped):
        return _number(stripped) if int in accepted else text
    if has_list and not has_table and not stripped.startswith("["):  # of tokens, as in `<|a|>,<|b|>`
        return [_read_yaml(part, key) for part in stripped.split(",")]
    if has_list or has_table:
        if has_table and not has_list and not stripped.startswith("{"):
            stripped = f"{{{stripped}}}"  # `--options 'learn: last'` without the braces
        value = _read_yaml(stripped, key)
        return [value] if has_list and isinstance(value, str | int | float) else value
    return text if str in accepted else _number(stripped)


def _read_yaml(text: str, key: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or str(error)
        raise click.BadParameter(f"{text!r} is not valid YAML ({problem})", param_hint=f"--{_dashed(key)}") from None


def _is_yaml_list(text: str) -> bool:
    """Whether ``text`` is a flow list and not an expression that merely starts with a bracket."""
    import yaml

    if not text.startswith("["):
        return False
    try:
        return isinstance(yaml.safe_load(text), list)
    except yaml.YAMLError:
        return not re.match(r"\[[^\]\s,]+\]\S", text)


def _number(text: str) -> int | str:
    """Whole numbers as such, so that ``100`` is told from ``epoch``; the configuration converts everything else."""
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def _sections() -> dict[str, type[Settings]]:
    out: dict[str, type[Settings]] = {}
    for name, field in RunConfig.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            out[name] = field.annotation
    return out


def _keys() -> Iterator[tuple[str, FieldInfo]]:
    """Every key that holds a value, dotted, in the order of the configuration."""
    sections = _sections()
    for name, field in RunConfig.model_fields.items():
        if name not in sections:
            yield name, field
    for section, model in sections.items():
        for name, field in model.model_fields.items():
            yield f"{section}.{name}", field


def _option_names() -> dict[str, list[str]]:
    """All spellings of each key: in full, then short, then aliases. What would mean two keys means neither."""
    fields = [key for key, _ in _keys()]
    short = Counter(key.rpartition(".")[2] for key in fields)
    taken = {*short, *_sections(), *(name.removeprefix("--") for names in SHORTCUTS.values() for name in names)}
    models: dict[str, type[Settings]] = {"": RunConfig, **_sections()}
    aliases = Counter(alias for model in models.values() for alias in model.aliases)
    out: dict[str, list[str]] = {}
    for key in fields:
        section, _, name = key.rpartition(".")
        names = [key] if section else []
        names += [name] if short[name] == 1 else []
        for alias, target in models[section].aliases.items():
            if target == name:
                names += [f"{section}.{alias}"] if section else []
                names += [alias] if alias not in taken and aliases[alias] == 1 else []
        out[key] = [*SHORTCUTS.get(key, ()), *(f"--{_dashed(name)}" for name in names)]
    return out


def _make_option(key: str, field: FieldInfo, names: list[str]) -> ConfigOption:
    flag = bool in members(field.annotation)
    short = f"--{_dashed(key.rpartition('.')[2])}"
    shown = [name for name in dict.fromkeys([*SHORTCUTS.get(key, ()), short]) if name in names]
    shown = sorted(shown or [f"--{_dashed(key)}"], key=lambda name: name.startswith("--"))
    declared = [f"{name}/{_negated(name)}" if flag else name for name in names]
    return ConfigOption(
        [_identifier(key), *declared],
        key=key,
        shown=[f"{name}/{_negated(name)}" for name in shown] if flag else shown,
        default=None,
        multiple=_repeatable(field),
        help=_help_text(field, flag),
        metavar=None if flag else _metavar(field.annotation),
        type=None if flag else str,
    )


def _repeatable(field: FieldInfo) -> bool:
    return isinstance(field.json_schema_extra, dict) and bool(field.json_schema_extra.get("repeatable"))


def _help_text(field: FieldInfo, flag: bool) -> str:
    default = field.get_default(call_default_factory=True)  # type: ignore[call-arg]
    text = field.description or ""
    if default is None or default == [] or default == {}:
        return text
    shown = ("yes" if default else "no") if flag else f"{default:g}" if isinstance(default, float) else str(default)
    return f"{text}  [default: {shown}]"


def _metavar(annotation: Any) -> str:
    words: list[str] = []
    for member in members(annotation):
        origin = typing.get_origin(member)
        if origin is Literal:
            words += [str(item) for item in typing.get_args(member)]
        elif member is not type(None):
            words.append({list: "LIST", dict: "TABLE", int: "INT", float: "NUMBER"}.get(origin or member, "TEXT"))
    return "|".join(dict.fromkeys(words))


def _identifier(key: str) -> str:
    return key.replace(".", "__")


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _negated(name: str) -> str:
    """``--adapter.rslora`` → ``--adapter.no-rslora``."""
    section, dot, last = name.removeprefix("--").rpartition(".")
    return f"--{section}{dot}no-{last}"


def listed(text: str | None) -> list[str]:
    """The items of a list that is given as ``a,b``; none of nothing."""
    return [item.strip() for item in (text or "").split(",") if item.strip()]

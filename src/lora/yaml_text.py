"""Settings as YAML text: read with every slip named, written so that they read back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora.errors import ConfigError


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file, by key. Raises ConfigError naming the file and the line."""
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        _refuse_repeated_keys(yaml.compose(text, Loader=yaml.SafeLoader), str(path))
        values = yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings as 'key: value' lines, found {type(values).__name__}")
    return values


def _refuse_repeated_keys(root: Any, path: str) -> None:
    # PyYAML lets the last of two equal keys win: half a section would be lost without a word.
    waiting, visited = [root] if root is not None else [], set()
    while waiting:
        node = waiting.pop()
        if id(node) in visited or isinstance(node.value, str):
            continue
        visited.add(id(node))  # an anchor may lead back to a node above it
        lines: dict[str, int] = {}
        for item in node.value:
            key, child = item if isinstance(item, tuple) else (None, item)
            waiting.append(child)
            if key is None:
                continue
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines:
                raise ConfigError(f"{path}: {name!r} stands in line {lines[name]} and again in line {line}; keep one")
            lines[name] = line


def write_yaml(values: dict[str, Any]) -> str:
    """``values`` as YAML text that `read_yaml` reads as they are."""
    import yaml

    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    # PyYAML writes U+0085 and its like as they are and reads them as line ends; escaped, they survive.
    return text if yaml.safe_load(text) == values else yaml.safe_dump(values, sort_keys=False)

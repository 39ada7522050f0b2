"""The base model's modules by their own paths, whatever adapters wrap them, and how paths are named."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn

from lora.core.layer import AdaptedLayer
from lora.core.owned import OwnedModule

_LAYER = re.compile(r"(?:^|[._])(?:layers?|h|blocks?|encoder|decoder)\.(\d+)(?:\.|$)")


def inner(module: nn.Module) -> nn.Module:
    """The base model's own module inside of whatever wraps it."""
    while isinstance(module, (AdaptedLayer, OwnedModule)):
        module = module.base_layer if isinstance(module, AdaptedLayer) else module.original
    return module


def unwrapped_modules(model: nn.Module) -> dict[str, nn.Module]:
    """The base model's modules by their own paths, whatever adapters wrap them; a module in two places once."""
    out: dict[str, nn.Module] = {}
    seen: set[int] = set()

    def walk(module: nn.Module, path: str) -> None:
        module = inner(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        if path:
            out[path] = module
        for name, child in module.named_children():
            walk(child, f"{path}.{name}" if path else name)

    walk(model, "")
    return out


def split_at_layer(path: str) -> tuple[int, str] | None:
    """The number of the transformer layer that ``path`` lies in and the path inside it; None outside of layers."""
    found = _LAYER.search(path)
    return (int(found.group(1)), path[found.end() :]) if found else None


def inside(path: str, parents: Iterable[str]) -> bool:
    """Whether ``path`` is one of ``parents`` or lies in one."""
    return any(path == parent or path.startswith(parent + ".") for parent in parents)


def outermost(paths: Iterable[str]) -> list[str]:
    """``paths`` without duplicates and without those that lie inside another."""
    unique = list(dict.fromkeys(paths))
    return [path for path in unique if not any(path.startswith(other + ".") for other in unique)]


def matches(path: str, patterns: str | Iterable[str]) -> bool:
    """Whether ``path`` is named by ``patterns``: one string is a regular expression for the whole path; a list holds
    names, each the path itself or its last parts (``q_proj``, ``self_attn.q_proj``), as in PEFT."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, path) is not None
    return any(path == name or path.endswith("." + name) for name in patterns)


def match_pattern(path: str, table: Mapping[str, float]) -> float | None:
    """The entry of a rank or alpha pattern that fits ``path``: a name or expression for its last parts, as in PEFT."""
    for pattern, value in table.items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            return value
    return None


def summary(paths: Iterable[str], most: int = 12) -> str:
    """Module paths with their layer numbers folded: ``layers.*.self_attn.q_proj ×12, ...``."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path) for path in paths)
    shown = [f"{path} ×{n}" if n > 1 else path for path, n in list(counts.items())[:most]]
    return ", ".join(shown) + (f", and {len(counts) - most} more kinds" if len(counts) > most else "")

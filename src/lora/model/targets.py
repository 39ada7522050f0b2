"""Which modules are adapted: presets, names, patterns, layer ranges, exclusions; and what came of them."""

from __future__ import annotations

import difflib
import functools
import inspect
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from torch import nn

from lora.config import AdapterConfig
from lora.core.geometry import Geometry, geometry_of
from lora.errors import ConfigError, TargetError
from lora.model.heads import input_embedding, output_heads, task_heads
from lora.model.tree import inside, match_pattern, matches, split_at_layer, summary, unwrapped_modules

NO_TARGETS = "none"  # no updates: only modules trained in full, or single rows of embeddings
PRESETS = ("all-linear", "attention", "mlp", "embedding")

# Inside a transformer layer a linear layer belongs to the attention if a module it lies in says so by its name or its
# class's name, or if it bears a projection's own name in a layer without an attention module; the rest is the MLP.
_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_PROJECTION = re.compile(r"(q|k|v|o|qkv|out)_(proj|lin)|query|key|value|query_key_value", re.IGNORECASE)


@dataclass
class Target:
    """One module to adapt, with the rank it gets and the factor of its update."""

    path: str
    geometry: Geometry
    rank: int
    scaling: float


@dataclass
class TargetReport:
    """What the targets came to.

    Attributes:
        adapted: the targets, in the model's order.
        skipped: module path -> why a matching module was left alone.
        available: every module that could be adapted, by path.
    """

    adapted: list[Target]
    skipped: dict[str, str] = field(default_factory=dict)
    available: list[str] = field(default_factory=list)


def parse_layers(layers: str | int | list[int] | None, count: int) -> set[int] | None:
    """``3``, ``[0, 1]``, ``"4-7"``, ``"8-"``, ``"-3"`` (up to 3), ``"0-2,9"`` to a set of numbers below ``count``."""
    if layers is None:
        return None
    if isinstance(layers, int):
        wanted = {layers}
    elif isinstance(layers, list):
        wanted = set(layers)
    else:
        wanted = set()
        for part in layers.replace(" ", "").split(","):
            found = re.fullmatch(r"(\d*)(-?)(\d*)", part)
            if not found or part in ("", "-"):
                raise ConfigError(f"layers: cannot read {layers!r}; write 3, [0, 1], '4-7', '8-' or '0-2,9'")
            first, dash, last = found.groups()
            if dash:
                wanted |= set(range(int(first or 0), int(last or count - 1) + 1))
            else:
                wanted.add(int(first))
    beyond = sorted(number for number in wanted if not 0 <= number < count)
    if beyond or not wanted:
        raise ConfigError(f"layers: {beyond or layers!r} not in this model, which has layers 0 to {count - 1}")
    return wanted


def find_targets(
    model: nn.Module, config: AdapterConfig, owned: Iterable[str] = (), exact: Iterable[str] | None = None
) -> TargetReport:
    """Resolve ``config.targets`` on ``model``.

    Args:
        model: the base model, adapted or not (a wrapped layer counts as the layer it wraps).
        config: targets, exclude, layers, patterns, rank, alpha.
        owned: paths of modules trained in full; nothing inside them is adapted.
        exact: if given, adapt just these paths (an adapter being loaded says where it sits).

    Raises:
        TargetError: a pattern matches nothing, or names a module of a kind that cannot be adapted.
        ConfigError: a rank above the size of a layer; layers the model does not have.
    """
    modules = unwrapped_modules(model)
    owned = tuple(owned)
    available = {
        path: g for path, m in modules.items() if (g := geometry_of(m)) is not None and not inside(path, owned)
    }
    skipped = passed_by(model, modules, available if exact is None else ())
    in_layers = {path: found[0] for path in available if (found := split_at_layer(path)) is not None}
    layers = parse_layers(config.layers, max(in_layers.values(), default=-1) + 1)
    exclude = config.exclude
    if isinstance(exclude, str) and any(matches(path, [exclude]) for path in modules):
        exclude = [exclude]  # one name, as targets may be
    _check_exclude(exclude, modules, available)
    for key, table in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in table:
            _check_expression(key, pattern)
    chosen = _choose(model, config.targets, modules, available) if exact is None else list(exact)
    adapted = []
    for path in chosen:
        if path in skipped:
            continue
        if matches(path, exclude):
            skipped[path] = "excluded"
        elif layers is not None and in_layers.get(path) not in layers:
            skipped[path] = "outside the chosen layers"
        else:
            rank = int(match_pattern(path, config.rank_pattern) or config.rank)
            alpha = float(match_pattern(path, config.alpha_pattern) or config.alpha)
            scaling = alpha / (rank**0.5 if config.rslora else rank)
            adapted.append(Target(path, available[path], rank, scaling))
    trained = bool(owned or config.token_rows)  # else the adapter would have nothing
    if not adapted and not (trained and (config.targets in (NO_TARGETS, []) or exact is not None)):
        why = f"; all matches were left out: {_first(skipped)}" if skipped else ""
        raise TargetError(f"targets: {config.targets!r} matches nothing to adapt{why}. There are: {summary(available)}")
    _check_patterns(config, adapted)
    if exact is None:  # an adapter being loaded is what it is
        if "rank" not in config.model_fields_set:
            _cap_ranks(adapted, config)
        _check_ranks(adapted)
    relevant = {path: why for path, why in skipped.items() if path in chosen}
    return TargetReport(adapted, relevant, list(available))


def _choose(
    model: nn.Module, targets: str | list[str], modules: dict[str, nn.Module], available: dict[str, Geometry]
) -> list[str]:
    """Paths that ``targets`` names, in the model's order."""
    names = [targets] if isinstance(targets, str) else list(targets)
    chosen: set[str] = set()
    for name in names:
        if name == NO_TARGETS:
            continue
        if name.replace("_", "-") in PRESETS:
            found = _preset(model, name.replace("_", "-"), modules, available)
        else:
            found = _by_name(name, isinstance(targets, str), modules, available)
        if not found:
            known = {path.rsplit(".", 1)[-1] for path in available} | {*PRESETS, NO_TARGETS}
            near = difflib.get_close_matches(name, known - {name}, n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise TargetError(
                f"targets: {name!r} matches no module{hint}. Presets: {', '.join((*PRESETS, NO_TARGETS))}. "
                f"There are: {summary(available)}"
            )
        chosen.update(found)
    return [path for path in available if path in chosen]


def _preset(model: nn.Module, name: str, modules: dict[str, nn.Module], available: dict[str, Geometry]) -> list[str]:
    if name == "embedding":
        return _token_embeddings(model, modules, available)
    heads = [*output_heads(model), *task_heads(model)]
    linear = [path for path, g in available.items() if g.kind in ("linear", "conv1d_hf") and not inside(path, heads)]
    # A gate of one output (Qwen2-MoE's shared expert) is a vector: a low-rank update of it is a second vector.
    linear = [path for path in linear if min(available[path].size()) > 1]
    if name == "all-linear":
        return linear
    return [path for path in linear if block_part(path, modules) == name]


def block_part(path: str, modules: dict[str, nn.Module]) -> str | None:
    """``attention`` or ``mlp``: what part of a transformer layer ``path`` belongs to; None outside of layers."""
    found = split_at_layer(path)
    if found is None:
        return None
    within = found[1].split(".")
    prefix = path.removesuffix(found[1])
    parents = [prefix + ".".join(within[:size]) for size in range(1, len(within) + 1)]
    named = any(_ATTENTION.search(part) for part in within)
    typed = any(_ATTENTION.search(type(modules[parent]).__name__) for parent in parents if parent in modules)
    return "attention" if named or typed or _PROJECTION.fullmatch(within[-1]) else "mlp"


def _token_embeddings(model: nn.Module, modules: dict[str, nn.Module], available: dict[str, Geometry]) -> list[str]:
    """The model's input embedding and those that share its tensor; where it does not say which that is, the largest."""
    embeddings = [path for path, geometry in available.items() if geometry.kind == "embedding"]
    entrance = input_embedding(model)
    if entrance is None:
        sizes = {path: available[path].weight().shape[0] for path in embeddings}
        return [path for path in embeddings if sizes[path] == max(sizes.values())]
    tensor = modules[entrance]._parameters.get("weight")
    return [path for path in embeddings if modules[path]._parameters.get("weight") is tensor]


def _by_name(name: str, single: bool, modules: dict[str, nn.Module], available: dict[str, Geometry]) -> list[str]:
    """Modules called ``name``; a single string that names none is tried as a regular expression."""
    hits = [path for path in modules if matches(path, [name])]
    if not hits and single:
        _check_expression("targets", name)
        # An expression may sweep over containers; only what can be adapted is meant.
        return [path for path in available if matches(path, name)]
    if hits and not any(path in available for path in hits):
        kind = type(modules[hits[0]]).__name__
        raise TargetError(
            f"targets: {hits[0]!r} is a {kind}, which cannot be adapted (Linear, Conv1D, Embedding and ungrouped "
            f"Conv2d outside the modules trained in full can). There are: {summary(available)}"
        )
    return [path for path in hits if path in available]


def _check_expression(key: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise TargetError(f"{key}: {pattern!r} is neither a module's name nor a regular expression ({error})") from None


def _unreachable(model: nn.Module, modules: dict[str, nn.Module]) -> dict[str, str]:
    """Modules whose weights are read directly instead of being called: an adapter there would have no effect."""
    attention = [path for path, m in {"": model, **modules}.items() if isinstance(m, nn.MultiheadAttention)]
    why = "inside torch's MultiheadAttention, which reads its weight without calling it"
    return {
        path: why for path in modules if path not in attention and any(not a or inside(path, [a]) for a in attention)
    }


READ = "its weight is read without the layer being called"


def passed_by(model: nn.Module, modules: dict[str, nn.Module], asked: Iterable[str]) -> dict[str, str]:
    """Modules that an adapter on them would have no effect on, and why; of those ``asked`` the code around is read.

    An adapter being loaded asks nothing: PEFT adapts what is read directly too, in vain, and what it stored is kept.
    """
    skipped = _unreachable(model, modules)
    return skipped | {path: READ for path in asked if path not in skipped and _read_directly(path, modules, model)}


def _read_directly(path: str, modules: dict[str, nn.Module], model: nn.Module) -> bool:
    """Whether the code of the module around the layer at ``path`` computes with its weight (Mamba's ``dt_proj``)."""
    above, _, name = path.rpartition(".")
    around = modules.get(above, model)
    return name.isidentifier() and name in _weights_read(type(around))  # type: ignore[arg-type]  # classes can be hashed


@functools.cache
def _weights_read(kind: type[nn.Module]) -> frozenset[str]:
    """Names of the layers whose weights the forward methods of ``kind`` use or hand on; not for their type or shape."""
    found: set[str] = set()
    if kind.__module__.startswith("torch."):  # its shortcuts are left alone where adapters sit (`leave_shortcuts`)
        return frozenset()
    for name, method in vars(kind).items():
        if "forward" not in name or not callable(method):
            continue
        with suppress(OSError, TypeError):  # no source at hand
            found |= set(re.findall(r"(?<!isinstance\()self\.(\w+)\.weight(?=\s*[,@)\n])", inspect.getsource(method)))
    return frozenset(found)


def _check_exclude(exclude: str | list[str], modules: dict[str, nn.Module], available: dict[str, Geometry]) -> None:
    if isinstance(exclude, str):
        _check_expression("exclude", exclude)
        missed = [] if not exclude or any(matches(path, exclude) for path in modules) else [exclude]
    else:
        missed = [name for name in exclude if not any(matches(path, [name]) for path in modules)]
    if missed:
        raise TargetError(f"exclude: {', '.join(map(repr, missed))} matches no module; there are: {summary(available)}")


def _check_patterns(config: AdapterConfig, adapted: list[Target]) -> None:
    for key, table in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in table:
            if not any(match_pattern(target.path, {pattern: 1.0}) for target in adapted):
                raise TargetError(
                    f"{key}: {pattern!r} matches none of the adapted modules: {summary(t.path for t in adapted)}"
                )


def _cap_ranks(adapted: list[Target], config: AdapterConfig) -> None:
    """Bring a rank that nobody chose down to the size of small layers; ``config.rank_pattern`` says so from then on."""
    for target in adapted:
        most = min(target.geometry.size())
        if target.rank > most and match_pattern(target.path, config.rank_pattern) is None:
            target.scaling *= (target.rank / most) ** (0.5 if config.rslora else 1)  # alpha over the rank it gets
            target.rank = most
            config.rank_pattern[re.escape(target.path)] = most


def _check_ranks(adapted: list[Target]) -> None:
    over = [(t, min(t.geometry.size())) for t in adapted if t.rank > min(t.geometry.size())]
    if over:
        most = min(limit for _, limit in over)
        shown = ", ".join(f"{t.path} (rank {t.rank}, size {limit})" for t, limit in over[:3])
        more = f" and {len(over) - 3} more" if len(over) > 3 else ""
        raise ConfigError(
            f"rank: above the size of {shown}{more}; a rank beyond a layer's smaller side adds parameters and no "
            f"freedom. Use rank {most} or less, set rank_pattern for these modules, or exclude them"
        )


def _first(skipped: dict[str, str]) -> str:
    path, why = next(iter(skipped.items()))
    return f"{path} ({why})" + (f" and {len(skipped) - 1} more" if len(skipped) > 1 else "")

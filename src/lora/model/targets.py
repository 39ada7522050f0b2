"""Which modules are adapted: presets, names, patterns, layer ranges, exclusions; and what came of them."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import nn

from lora.config import AdapterConfig
from lora.core.geometry import Geometry, geometry_of
from lora.core.layer import AdaptedLayer, OwnedModule
from lora.core.variant import get_variant
from lora.errors import ConfigError, TargetError

PRESETS = ("all-linear", "attention", "mlp", "embedding")

# Name parts of the linear layers of attention and MLP blocks over the model families of transformers. A preset that
# finds nothing by these names is an error that lists the modules there are, so a new family cannot fail in silence.
_ATTENTION = re.compile(
    r"(^|[._])(attn|attention|self_attn|cross_attn|self_attention|selfattention|encdecattention|encoder_attn|mha|mixer_attn)"
    r"($|[._])|(^|\.)(q|k|v|o|qkv|q_lin|k_lin|v_lin|out_lin|query|key|value|query_key_value|c_attn|[qkvo]_proj|out_proj|qkv_proj|wqkv|wo_attn)$",
    re.IGNORECASE,
)
_MLP = re.compile(
    r"(^|[._])(mlp|ffn|feed_forward|feedforward|densereludense|intermediate|experts?|shared_expert|moe)($|[._])"
    r"|(^|\.)(fc1|fc2|lin1|lin2|linear1|linear2|wi|wi_0|wi_1|gate_proj|up_proj|down_proj|gate_up_proj|c_fc|dense_h_to_4h|dense_4h_to_h)$"
    r"|(^|\.)layers?\.\d+\.output\.dense$",
    re.IGNORECASE,
)
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?|block|encoder|decoder)\.(\d+)(?:\.|$)")


@dataclass
class Target:
    """One module to adapt, with the rank and alpha it gets."""

    path: str
    geometry: Geometry
    rank: int
    alpha: float


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


def layer_index(path: str) -> int | None:
    """The number of the transformer layer that ``path`` lies in, or None outside of layers."""
    found = _LAYER.search(path)
    return int(found.group(1)) if found else None


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


def matches(path: str, patterns: str | Iterable[str]) -> bool:
    """Whether ``path`` is named by ``patterns``: one string is a regular expression for the whole path; a list holds
    names, each the path itself or its last parts (``q_proj``, ``self_attn.q_proj``), as in PEFT."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, path) is not None
    return any(path == name or path.endswith("." + name) for name in patterns)


def match_pattern(path: str, table: dict[str, float]) -> float | None:
    """The entry of a rank or alpha pattern that fits ``path``: a name or expression for its last parts, as in PEFT."""
    for pattern, value in table.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return value
    return None


def output_heads(model: nn.Module) -> set[str]:
    """Paths of the output embedding (``lm_head``), which ``all-linear`` leaves alone."""
    get = getattr(model, "get_output_embeddings", None)
    try:
        head = get() if callable(get) else None
    except (AttributeError, NotImplementedError):
        head = None
    if head is None:
        return set()
    head = inner(head)
    return {path for path, module in unwrapped_modules(model).items() if module is head}


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
    available = {path: g for path, m in modules.items() if (g := geometry_of(m)) is not None and not _inside(path, owned)}
    skipped = _unreachable(modules)
    heads = output_heads(model)
    layer_numbers = [n for path in available if (n := layer_index(path)) is not None]
    layers = parse_layers(config.layers, max(layer_numbers, default=-1) + 1)
    exclude_missed = _unmatched(config.exclude, modules)
    if exclude_missed:
        raise TargetError(f"exclude: {exclude_missed} matches no module; there are: {summary(available)}")

    chosen = list(exact) if exact is not None else _choose(config.targets, modules, available, heads)
    adapted = []
    for path in chosen:
        if path in skipped:
            continue
        if matches(path, config.exclude):
            skipped[path] = "excluded"
        elif layers is not None and layer_index(path) not in layers:
            skipped[path] = "outside the chosen layers"
        else:
            rank = match_pattern(path, config.rank_pattern) or config.rank
            alpha = match_pattern(path, config.alpha_pattern) or config.alpha
            adapted.append(Target(path, available[path], int(rank), float(alpha)))
    if not adapted:
        why = f"; all matches were left out: {_first(skipped)}" if skipped else ""
        raise TargetError(f"targets: {config.targets!r} matches nothing to adapt{why}. There are: {summary(available)}")
    _check_patterns(config, adapted)
    if exact is None:  # an adapter being loaded is what it is
        _check_ranks(adapted)
    relevant = {path: why for path, why in skipped.items() if path in chosen}
    return TargetReport(adapted, relevant, list(available))


def share_tied(model: nn.Module, config: AdapterConfig, report: TargetReport) -> list[tuple[str, str]]:
    """Places that share one tensor with an adapted embedding and are to share its update: (source, place) pairs.

    Places that stand in ``report`` as targets of their own are taken out of it. Input and output embeddings that are
    one tensor would drift apart if each had an update of its own, and merging one would corrupt the other.

    Raises:
        TargetError: the variant has no update that both places can share, or ``tie_embeddings`` asks for what is not.
    """
    modules = unwrapped_modules(model)
    sources: dict[int, str] = {}
    pairs: list[tuple[str, str]] = []
    for target in report.adapted:
        if target.geometry.kind == "embedding":
            weight = id(target.geometry.weight())
            if weight in sources:
                pairs.append((sources[weight], target.path))
            else:
                sources[weight] = target.path
    for path in output_heads(model):
        weight = id(getattr(modules[path], "weight", None))
        if weight in sources and sources[weight] != path:
            pairs.append((sources[weight], path))
    if config.tie_embeddings and not pairs:
        raise TargetError("tie_embeddings: no adapted embedding shares its tensor with another place in this model")
    if config.tie_embeddings is False or not pairs:
        return []
    if get_variant(config.variant).peft_suffixes:
        raise TargetError(
            f"{pairs[0][0]} and {pairs[0][1]} are one tensor, and variant {config.variant!r} has no update that both can "
            "share: use variant 'plain', leave the embedding out, or set tie_embeddings to false to adapt each by itself"
        )
    places = {place for _, place in pairs}
    report.adapted = [target for target in report.adapted if target.path not in places]
    for source, place in pairs:
        report.skipped[place] = f"shares the update of {source}: the two are one tensor"
    return pairs


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


def _choose(
    targets: str | list[str], modules: dict[str, nn.Module], available: dict[str, Geometry], heads: set[str]
) -> list[str]:
    linear = [path for path, geometry in available.items() if geometry.kind in ("linear", "conv1d_hf")]
    names = [targets] if isinstance(targets, str) else list(targets)
    chosen: set[str] = set()
    for name in names:
        if name in ("all-linear", "all_linear"):
            found = [path for path in linear if path not in heads]
        elif name == "attention":
            found = [p for p in linear if _ATTENTION.search(p) and not _MLP.search(p) and p not in heads]
        elif name == "mlp":
            found = [path for path in linear if _MLP.search(path) and not _ATTENTION.search(path) and path not in heads]
        elif name == "embedding":
            found = [p for p, g in available.items() if g.kind == "embedding" and "position" not in p and _is_vocabulary(p, modules)]
        else:
            found = _by_name(name, isinstance(targets, str), modules, available)
        if not found:
            near = difflib.get_close_matches(name, {p.rsplit(".", 1)[-1] for p in available} | set(PRESETS), n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise TargetError(
                f"targets: {name!r} matches no module{hint}. Presets: {', '.join(PRESETS)}. There are: {summary(available)}"
            )
        chosen.update(found)
    return [path for path in available if path in chosen]


def _by_name(name: str, single: bool, modules: dict[str, nn.Module], available: dict[str, Geometry]) -> list[str]:
    """Modules called ``name``; a single string that names none is tried as a regular expression."""
    hits = [path for path in modules if matches(path, [name])]
    if not hits and single:
        try:
            hits = [path for path in modules if matches(path, name)]
        except re.error as error:
            raise TargetError(f"targets: {name!r} is neither a module's name nor a regular expression ({error})") from None
        # An expression may sweep over containers; only what can be adapted is meant.
        return [path for path in hits if path in available]
    wrong = [path for path in hits if path not in available]
    if wrong and len(wrong) == len(hits):
        kind = type(modules[wrong[0]]).__name__
        raise TargetError(
            f"targets: {wrong[0]!r} is a {kind}, which cannot be adapted (Linear, Conv1D, Embedding and ungrouped "
            f"Conv2d outside the modules trained in full can). There are: {summary(available)}"
        )
    return [path for path in hits if path in available]


def _is_vocabulary(path: str, modules: dict[str, nn.Module]) -> bool:
    """Whether an embedding is the largest one: token embeddings, not positions or token types."""
    sizes = [m.num_embeddings for m in modules.values() if isinstance(m, nn.Embedding)]
    module = modules[path]
    return isinstance(module, nn.Embedding) and module.num_embeddings == max(sizes)


def _unreachable(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Modules whose weights are read directly instead of being called: an adapter there would have no effect."""
    out = {}
    for path, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            for name, _ in module.named_modules():
                if name:
                    out[f"{path}.{name}"] = "inside torch's MultiheadAttention, which reads its weight without calling it"
    return out


def _inside(path: str, parents: Iterable[str]) -> bool:
    return any(path == parent or path.startswith(parent + ".") for parent in parents)


def _unmatched(patterns: str | list[str], modules: dict[str, nn.Module]) -> str | None:
    if isinstance(patterns, str):
        return None if not patterns or any(matches(path, patterns) for path in modules) else repr(patterns)
    missed = [name for name in patterns if not any(matches(path, [name]) for path in modules)]
    return ", ".join(map(repr, missed)) or None


def _check_patterns(config: AdapterConfig, adapted: list[Target]) -> None:
    for key, table in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for pattern in table:
            if not any(match_pattern(target.path, {pattern: 1.0}) for target in adapted):
                raise TargetError(
                    f"{key}: {pattern!r} matches none of the adapted modules: {summary(t.path for t in adapted)}"
                )


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


def summary(paths: Iterable[str], most: int = 12) -> str:
    """Module paths with their layer numbers folded: ``layers.*.self_attn.q_proj ×12, ...``."""
    counts = Counter(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path) for path in paths)
    shown = [f"{path} ×{n}" if n > 1 else path for path, n in list(counts.items())[:most]]
    return ", ".join(shown) + (f", and {len(counts) - most} more kinds" if len(counts) > most else "")


def _first(skipped: dict[str, str]) -> str:
    path, why = next(iter(skipped.items()))
    return f"{path} ({why})" + (f" and {len(skipped) - 1} more" if len(skipped) > 1 else "")

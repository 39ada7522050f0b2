"""Tensors that stand in two places of the base: one update for both, or an explained refusal."""

from __future__ import annotations

import torch
from torch import nn

from lora.config import AdapterConfig
from lora.core.variant import Variant, get_variant, variants
from lora.errors import TargetError
from lora.model.heads import output_heads
from lora.model.targets import TargetReport
from lora.model.tree import inside, unwrapped_modules


def share_tied(model: nn.Module, config: AdapterConfig, report: TargetReport) -> list[tuple[str, str]]:
    """Places that share one tensor with an adapted embedding and are to share its update: (source, place) pairs.

    Places that stand in ``report`` as targets of their own are taken out of it. Input and output embeddings that are
    one tensor would drift apart if each had an update of its own, and merging one would corrupt the other.

    Raises:
        TargetError: the variant has no update that both places can share, or ``tie_embeddings`` asks for what is not.
    """
    pairs = tied_places(model, [target.path for target in report.adapted])
    if config.tie_embeddings and not pairs:
        raise TargetError("tie_embeddings: no adapted embedding shares its tensor with another place in this model")
    if config.tie_embeddings is False or not pairs:
        return []
    if not _shareable(get_variant(config.variant)):
        fitting = " or ".join(repr(variant.name) for variant in variants().values() if _shareable(variant))
        raise TargetError(
            f"{pairs[0][0]} and {pairs[0][1]} are one tensor, and variant {config.variant!r} has no update that "
            f"both can share: use variant {fitting}, leave the embedding out, or set tie_embeddings to false"
        )
    places = {place for _, place in pairs}
    report.adapted = [target for target in report.adapted if target.path not in places]
    for source, place in pairs:
        report.skipped[place] = f"shares the update of {source}: the two are one tensor"
    return pairs


def _shareable(variant: Variant) -> bool:
    """Parameters beside A and B (DoRA's magnitudes) belong to one layer's own weight."""
    return not variant.peft_suffixes


def tied_places(model: nn.Module, adapted: list[str]) -> list[tuple[str, str]]:
    """(source, place) for each embedding of ``adapted`` and each other place of its tensor; the first leads."""
    modules = unwrapped_modules(model)
    sources: dict[int, str] = {}
    for path in adapted:
        if isinstance(modules[path], nn.Embedding):
            sources.setdefault(id(modules[path].weight), path)
    heads = output_heads(model)
    pairs = []
    for path, module in modules.items():
        source = sources.get(id(module._parameters.get("weight")))
        # Places beside the source share it whether they were named or not: half of a tied pair adapted is drift.
        if source is not None and source != path and (isinstance(module, nn.Embedding) or path in heads):
            pairs.append((source, path))
    return pairs


def refuse_half_of_a_tie(model: nn.Module, owned: list[str]) -> None:
    """Raise TargetError where a module to be trained in full shares a tensor with a place that is not."""
    for places in _homes(model):
        mine = [path for path, _ in places if inside(path, owned)]
        if mine and len(mine) < len(places):
            other = next(path for path, _ in places if path != mine[0])
            raise TargetError(
                f"modules_to_save: {mine[0]} and {other} are one tensor, and a full copy of one would leave the other "
                "behind. Adapt it instead (targets: 'embedding'), or set tie_embeddings to false if that is meant"
            )


def tie_copies(model: nn.Module, copies: dict[str, nn.Module]) -> None:
    """Let ``copies`` (path -> copy) share a tensor where what they are copies of does in ``model`` and they are equal.

    Those of an adapter that was trained with ``tie_embeddings: false`` have drifted apart.
    """
    for places in _homes(model):
        tensors = [copies[path]._parameters[name] for path, name in places if path in copies]
        first = tensors[0] if len(tensors) == len(places) else None
        if first is not None and all(torch.equal(first, other) for other in tensors if other is not None):
            for path, name in places:
                copies[path]._parameters[name] = first


def _homes(model: nn.Module) -> list[list[tuple[str, str]]]:
    """Of each tensor that stands in several places these: paths of modules, and its name in each."""
    homes: dict[int, list[tuple[str, str]]] = {}
    for path, module in unwrapped_modules(model).items():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                homes.setdefault(id(parameter), []).append((path, name))
    return [places for places in homes.values() if len(places) > 1]

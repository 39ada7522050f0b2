"""Which tensor of a PEFT file belongs where in the base. Each function takes its own out of ``left``.

``left`` maps tensor names (without PEFT's prefix) to tensors, ``modules`` the base's paths to its modules; what does
not fit is appended to ``problems`` in words, so that all of it is reported at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lora.config import AdapterConfig
from lora.core.geometry import Geometry, geometry_of
from lora.core.variant import Variant
from lora.errors import TargetError
from lora.model.heads import input_embedding
from lora.model.targets import TargetReport
from lora.model.ties import refuse_half_of_a_tie, tied_places
from lora.model.token_rows import places_of_rows
from lora.model.tree import inside, matches, outermost, unwrapped_modules

Tensors = dict[str, Tensor]


def modules_in_full(
    left: Tensors, config: dict[str, Any], modules: dict[str, nn.Module], problems: list[str]
) -> dict[str, Tensors]:
    """Modules stored whole: path -> the module's state. PEFT takes every module whose path ends in a listed name."""
    names = tuple(config.get("modules_to_save") or ())
    paths = outermost(path for path in modules if names and path.endswith(names))
    out = {}
    for path in paths:
        mine = {key.removeprefix(path + "."): left.pop(key) for key in list(left) if key.startswith(path + ".")}
        expected = modules[path].state_dict()
        problems += [f"tensor {path}.{key} is missing" for key in expected if key not in mine]
        problems += [
            f"no place for tensor {path}.{key} {tuple(mine[key].shape)}" for key in mine if key not in expected
        ]
        for key in expected.keys() & mine.keys():
            if not _fits_but_for_width(modules[path], key, expected[key], mine[key]):
                problems.append(
                    f"{path}.{key}: shape {tuple(mine[key].shape)}, the base has {tuple(expected[key].shape)}"
                )
        if mine:
            out[path] = mine
    return out


def _fits_but_for_width(module: nn.Module, key: str, expected: Tensor, found: Tensor) -> bool:
    """A head may have another number of labels than the base's: it is the adapter's own."""
    if expected.shape == found.shape:
        return True
    owner = module.get_submodule(key.rpartition(".")[0])
    return isinstance(owner, nn.Linear) and expected.shape[1:] == found.shape[1:]


def layers(
    left: Tensors, owned: tuple[str, ...], modules: dict[str, nn.Module], variant: Variant, problems: list[str]
) -> dict[str, Tensors]:
    """Adapted layers: path -> the variant's parameters by name."""
    found: dict[str, Tensors] = {}
    for key in list(left):
        for path, module in _owners(key, modules):
            geometry = geometry_of(module)
            if geometry is None or inside(path, owned):
                continue
            suffixes = dict(zip(geometry.peft_names, "AB", strict=True))
            for parameter, suffix in variant.peft_suffixes.items():
                suffixes |= {suffix: parameter, f"{suffix}.weight": parameter}  # before PEFT 0.12 it was a module
            parameter = suffixes.get(key.removeprefix(path + "."), "")
            if parameter:
                found.setdefault(path, {})[parameter] = left.pop(key)
                break
    found = {path: found[path] for path in modules if path in found}
    for path, tensors in found.items():
        problems += _shape_problems(path, tensors, modules[path], variant)
    return found


def token_rows(
    left: Tensors, config: dict[str, Any], base: nn.Module, suffix: str, problems: list[str]
) -> tuple[list[int], Tensors]:
    """Single rows: the token ids in rising order, and by the path of an embedding or output head its rows (n, d).

    PEFT names the input embedding by a list of ids, others by a table; what is tied to it needs no tensor of its own.
    """
    table = config.get("trainable_token_indices") or {}
    entrance = input_embedding(base)
    if not table or entrance is None:
        return [], {}  # tensors that are there nevertheless are left over
    try:
        wanted = AdapterConfig(token_rows=table, head_rows=None if isinstance(table, dict) else False)
        places = places_of_rows(base, wanted, TargetReport([]), [], loading=True)
    except (ValueError, TargetError) as error:
        problems.append(f"trainable_token_indices: {error}")
        return [], {}
    given = table if isinstance(table, list) else next(iter(table.values()))
    order = sorted(range(len(given)), key=lambda place: given[place])
    modules, out = unwrapped_modules(base), {}
    for path, shared in places:
        weight: Any = modules[path].weight
        found, width = left.pop(f"{path}.{suffix}", None), weight.shape[1]
        if found is None:
            problems.append(f"tensor {path}.{suffix} is missing")
        elif tuple(found.shape) != (len(given), width):
            problems.append(f"{path}.{suffix}: shape {tuple(found.shape)}, not {(len(given), width)}")
        else:
            out[path] = found[order]
            for place in shared:  # where the whole embedding is stored along, PEFT stores these twice
                if (again := left.get(f"{place}.{suffix}")) is not None and torch.equal(again, found):
                    del left[f"{place}.{suffix}"]
    return sorted(given), out


def _owners(key: str, modules: dict[str, nn.Module]) -> list[tuple[str, nn.Module]]:
    """Modules that ``key`` may belong to, the innermost first."""
    parts = key.split(".")
    paths = [".".join(parts[:size]) for size in range(len(parts) - 1, 0, -1)]
    return [(path, modules[path]) for path in paths if path in modules]


def _shape_problems(path: str, tensors: Tensors, module: nn.Module, variant: Variant) -> list[str]:
    geometry = geometry_of(module)
    assert geometry is not None
    needed = ["A", "B", *variant.peft_suffixes]
    problems = [f"{path}: tensor {key} is missing" for key in needed if key not in tensors]
    if geometry.kind not in variant.kinds:
        problems.append(f"{path}: variant {variant.name!r} cannot sit on a {geometry.kind} layer")
    if problems:
        return problems
    expected = _expected_shapes(geometry, tensors["A"].shape[0], variant)
    for key, shape in expected.items():
        numel = int(torch.tensor(shape).prod())
        if tensors[key].numel() != numel or (key in "AB" and tuple(tensors[key].shape) != shape):
            problems.append(f"{path}.{key}: shape {tuple(tensors[key].shape)}, the base needs {shape}")
    return problems


def _expected_shapes(geometry: Geometry, rank: int, variant: Variant) -> dict[str, tuple[int, ...]]:
    shape_a, shape_b = geometry.shapes(rank)
    out: dict[str, tuple[int, ...]] = {"A": shape_a, "B": shape_b}
    if variant.peft_suffixes:
        made = variant.create(geometry, 1, torch.Generator())
        out |= {key: tuple(made[key].shape) for key in variant.peft_suffixes}
    return out


def embeddings(
    left: Tensors, modules: dict[str, nn.Module], heads: set[str], rows: dict[str, list[int]], problems: list[str]
) -> tuple[dict[str, Tensors], list[str]]:
    """Base weights of embeddings stored along: equal ones need nothing, others become the adapter's own copy.

    Single ``rows`` that the adapter has itself, by path, may be any in the base.

    Returns:
        the copies, and the paths of adapted embeddings whose frozen weights are others than the base's.
    """
    own: dict[str, Tensors] = {}
    foreign = []
    for key in list(left):
        place, _, name = key.rpartition(".")
        path = _bare(place)
        if path not in modules or not (isinstance(modules[path], nn.Embedding) or path in heads):
            continue
        weight = modules[path].state_dict().get(name)
        if weight is None:
            continue
        stored = left.pop(key)
        if stored.shape != weight.shape:
            problems.append(
                f"{path}: the adapter was trained with a vocabulary of {stored.shape[0]}, this base has "
                f"{weight.shape[0]}; call resize_token_embeddings({stored.shape[0]}) on the base first"
            )
        elif not _same(stored, weight, rows.get(path, [])):
            if path == place:
                own.setdefault(path, {})[name] = stored
            else:
                foreign.append(path)
    for path, tensors in own.items():  # a copy is whole or not at all
        own[path] = {**modules[path].state_dict(), **tensors}
    return own, foreign


def stored_embeddings(keys: Iterable[str], modules: dict[str, nn.Module], heads: set[str]) -> set[str]:
    """Paths of the embeddings whose whole weights stand in an adapter's file with these ``keys``."""
    places = {_bare(key.removesuffix(".weight")) for key in keys if key.endswith(".weight")}
    return {path for path in places if path in heads or isinstance(modules.get(path), nn.Embedding)}


def _bare(path: str) -> str:
    """The module's own path, where PEFT has wrapped it."""
    return path.removesuffix(".base_layer").removesuffix(".token_adapter")


def _same(stored: Tensor, weight: Tensor, but_for: list[int]) -> bool:
    """Equality at the precision of the coarser of the two: a bf16 base has the same weights as the fp32 one."""
    dtype = stored.dtype if stored.element_size() < weight.element_size() else weight.dtype
    one, other = stored.to(dtype), weight.to("cpu", dtype)
    if not but_for:
        return torch.equal(one, other)
    equal = (one == other).view(len(one), -1).all(1)
    equal[but_for] = True
    return bool(equal.all())


def left_over(left: Tensors, modules: dict[str, nn.Module]) -> list[str]:
    """Tensors that have no place, in words."""
    out = []
    for key, tensor in left.items():
        inside_of = [
            p for p, module in modules.items() if isinstance(module, nn.MultiheadAttention) and inside(key, [p])
        ]
        if inside_of:
            why = f"{inside_of[0]} is torch's MultiheadAttention, which reads its weights without calling a layer"
            out.append(f"no place for tensor {key} {tuple(tensor.shape)}: {why}, so that no adapter can sit on it here")
        else:
            out.append(f"no place for tensor {key} {tuple(tensor.shape)}")
    return out


def absent(
    config: dict[str, Any], modules: dict[str, nn.Module], found: dict[str, Tensors], owned: dict[str, Tensors]
) -> list[str]:
    """Modules that the configuration targets and the file has nothing for, in words."""
    names = config.get("target_modules") or []
    in_full = tuple(config.get("modules_to_save") or ()) or ("\0",)
    out = []
    for path in modules if names != "all-linear" else ():  # PEFT itself never writes the preset
        if not matches(path, names) or geometry_of(modules[path]) is None or path in found:
            continue
        if inside(path, [*owned, *(other for other in modules if other.endswith(in_full))]):
            continue
        if matches(path, config.get("exclude_modules") or []) or not _in_layers(path, config):
            continue
        out.append(f"{path}: targeted by the configuration, but there is no tensor for it")
    return out


def _in_layers(path: str, config: dict[str, Any]) -> bool:
    """PEFT's reading of ``layers_to_transform``, which it applies to lists of names only."""
    wanted = config.get("layers_to_transform")
    if wanted in (None, []) or isinstance(config.get("target_modules"), str):
        return True
    patterns = config.get("layers_pattern") or [r"[^.]*"]
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        number = re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", path)
        if number:
            return int(number.group(1)) in (wanted if isinstance(wanted, list) else [wanted])
    return False


def shared_update(base: nn.Module, config: dict[str, Any], found: dict[str, Tensors], variant: Variant) -> bool:
    """Whether places that are one tensor in the base hold one update in the file, as ``ensure_weight_tying`` says.

    Believed only where every place is stored and all agree; otherwise each is loaded as an update of its own.
    """
    if not config.get("ensure_weight_tying") or variant.peft_suffixes:
        return False
    pairs = tied_places(base, list(found))
    return bool(pairs) and all(
        place in found
        and all(torch.equal(found[place][key], tensor) for key, tensor in _tied(found, source, place).items())
        for source, place in pairs
    )


def _tied(found: dict[str, Tensors], source: str, place: str) -> Tensors:
    """A and B that ``place`` must have if it shares the update of ``source``."""
    tensors = found[source]
    same_kind = found[place]["A"].shape == tensors["A"].shape
    return tensors if same_kind else {"A": tensors["B"].T, "B": tensors["A"].T}


def half_of_a_tie(base: nn.Module, owned: dict[str, Tensors]) -> list[str]:
    """Modules in full that PEFT would tie to another place (``ensure_weight_tying``), in words."""
    try:
        refuse_half_of_a_tie(base, list(owned))
    except TargetError as error:
        return [f"{error} (one copy shared by both places cannot be expressed here)"]
    return []

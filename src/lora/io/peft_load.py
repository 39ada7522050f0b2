"""Reading an adapter folder: parse, check everything against the base, then place it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lora.config import AdapterConfig
from lora.core.layer import TiedSlot
from lora.core.variant import Variant, variants
from lora.errors import AdapterFileError, ConfigError
from lora.io import peft_tensors as tensors_of
from lora.io.atomic import is_there
from lora.io.fingerprint import fingerprint
from lora.io.peft import CONFIG, PREFIX, ROWS, WEIGHTS, read_sidecar
from lora.io.peft_kinds import check_kind, other_ranks, ranks_of
from lora.model.heads import fit_width, name_labels, output_heads
from lora.model.targets import find_targets
from lora.model.ties import tie_copies, tied_places
from lora.model.tree import match_pattern, unwrapped_modules

if TYPE_CHECKING:
    from lora.model.lora import LoRA

NOT_NOTES = ("format", "lora_version", "variant", "base")  # what `save_adapter` writes anew


@dataclass
class Stored:
    """An adapter folder as read: nothing checked against a base yet."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]
    sidecar: dict[str, Any]


@dataclass
class Planned:
    """An adapter checked against a base: what goes where."""

    config: AdapterConfig
    layers: dict[str, dict[str, Tensor]]
    owned: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)  # single ones, by the path of an embedding or output head
    notes: dict[str, Any] = field(default_factory=dict)
    warning: str | None = None  # of what was put right on the way


def read_folder(folder: Path) -> Stored:
    """Read the three files; raises AdapterFileError saying which is missing or broken.

    A folder that is replaced meanwhile is read anew: its files belong together.
    """
    while True:
        before = _identity(folder)
        try:
            stored = _read(folder)
        except AdapterFileError:
            # None: between the renames of someone who saves there, or not there at all.
            if _identity(folder) == before and not (before is None and is_there(folder)):
                raise
        else:
            if _identity(folder) == before:
                return stored


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        found = folder.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _read(folder: Path) -> Stored:
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterFileError(f"{folder}: no {CONFIG} here; an adapter folder holds {CONFIG} and {WEIGHTS}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterFileError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(config, dict):
        raise AdapterFileError(f"{path}: expected a JSON object, found {type(config).__name__}")
    weights = folder / WEIGHTS
    if not weights.is_file():
        pickled = sorted(p.name for p in folder.glob("*.bin"))
        hint = f"; {pickled[0]} is a pickle, which is never read: convert it to safetensors" if pickled else ""
        raise AdapterFileError(f"{folder}: no {WEIGHTS} here{hint}")
    tensors = {}
    try:
        with safe_open(weights, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict)
                tensors[key] = file.get_tensor(key)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:  # RuntimeError: torch could not map the file
        raise AdapterFileError(
            f"{weights}: not a readable safetensors file ({error}); copy or download it again"
        ) from None
    return Stored(folder, config, tensors, read_sidecar(folder))


def plan(model: LoRA, stored: Stored, allow_other_base: bool) -> Planned:
    """Check ``stored`` against ``model``'s base and say what goes where; the model is not touched."""
    check_kind(stored.config, stored.folder / CONFIG)
    modules = unwrapped_modules(model.base)
    variant = variant_of(stored)
    left = {_local(key, stored): tensor for key, tensor in stored.tensors.items()}
    broken = [key for key, tensor in stored.tensors.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise AdapterFileError(
            f"{stored.folder}: {broken[0]} holds NaN or infinity ({len(broken)} such): training went wrong before "
            "it was saved. Take an earlier checkpoint"
        )
    problems: list[str] = []
    numbers, rows = tensors_of.token_rows(left, stored.config, model.base, ROWS, problems)
    owned = tensors_of.modules_in_full(left, stored.config, modules, problems)
    layers = tensors_of.layers(left, tuple(owned), modules, variant, problems)
    embeddings, foreign = tensors_of.embeddings(left, modules, output_heads(model.base), _rows(model, stored), problems)
    owned |= embeddings
    problems += tensors_of.left_over(left, modules)
    problems += tensors_of.absent(stored.config, modules, layers, owned)
    if stored.config.get("ensure_weight_tying"):
        problems += tensors_of.half_of_a_tie(model.base, owned)
    if not (layers or owned or rows or problems):
        problems.append("it holds no tensors of an adapter at all")
    # What does not fit comes before whose weights they are: no permission makes it fit.
    if problems:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise AdapterFileError(
            f"{stored.folder}: does not fit the base {_name(model)}:\n  "
            + "\n  ".join(problems[:5])
            + more
            + _made_for(model, stored)
        )
    if not allow_other_base:
        _check_weights(model, stored, foreign)
    tied = tensors_of.shared_update(model.base, stored.config, layers, variant)
    config = _config(stored, variant, layers, owned, tied)
    if numbers:
        config.token_rows, config.head_rows = numbers, len(rows) > 1
    warning = other_ranks(stored.folder / CONFIG, stored.config, layers)
    return Planned(config, layers, owned, rows, _notes(stored), warning)


def config_on(model: LoRA, stored: Stored) -> AdapterConfig:
    """The adapter's configuration on ``model``'s base, whose weights are not looked at.

    Raises AdapterFileError: it does not fit.
    """
    return plan(model, stored, allow_other_base=True).config


def place(model: LoRA, name: str, planned: Planned, trainable: bool) -> None:
    """Make the adapter and fill in its tensors. Only a name that is taken can still fail."""
    model._place(name, planned.config, exact=list(planned.layers), owned=list(planned.owned), seed=0)
    for path, module in model.owned(name).items():
        fit_width(module, planned.owned[path])
    _fill(model, name, planned)
    tie_copies(model.base, model.owned(name))
    for parameter in model.adapter_parameters(name).values():
        parameter.requires_grad_(trainable)
    if len(model.adapters) == 1:  # several may have labels of their own each
        name_labels(model.base, (planned.notes.get("task") or {}).get("labels"))


def refill(model: LoRA, name: str, planned: Planned) -> None:
    """Give adapter ``name`` the planned values, in its own tensors: an optimizer may hold them.

    Raises:
        ConfigError: the two are not of one making; the first difference is named.
    """
    difference = next(_differences(model, name, planned), None)
    if difference:
        raise ConfigError(
            f"there is already an adapter {name!r}, which cannot take the folder's values: {difference}; "
            f"remove_adapter({name!r}) first, or take another name"
        )
    _fill(model, name, planned)


def _differences(model: LoRA, name: str, planned: Planned) -> Iterator[str]:
    """What adapter ``name`` and the planned one do not have in common beside values, in words."""
    here, there = model.adapters[name], planned.config
    if here.variant != there.variant:
        yield f"variant {here.variant!r} here, {there.variant!r} there"
    slots, owned = model.slots(name, tied=True), model.owned(name)
    for mine, theirs, what in ((slots, planned.layers, "adapted"), (owned, planned.owned, "trained in full")):
        for path in [path for path in [*mine, *theirs] if (path in mine) != (path in theirs)]:
            yield f"{path} is {what} {'here' if path in mine else 'there'} alone"
    if here.token_rows != there.token_rows or here.head_rows != there.head_rows:
        yield f"token_rows {here.token_rows} here, {there.token_rows} there, or of other modules"
    if any(isinstance(slot, TiedSlot) for slot in slots.values()) != bool(there.tie_embeddings):
        yield "tied embeddings share one update in one of the two only"
    for target in find_targets(model.base, there, list(planned.owned), list(planned.layers)).adapted:
        slot = slots[target.path]
        if (slot.rank, slot.scaling) != (target.rank, target.scaling):
            yield (
                f"{target.path} has rank {slot.rank} and scaling {slot.scaling:g} here, "
                f"rank {target.rank} and {target.scaling:g} there"
            )
    for path, tensors in planned.owned.items():
        for key, tensor in owned[path].state_dict().items():
            if tensor.shape != tensors[key].shape:
                yield f"{path}.{key} is {tuple(tensor.shape)} here, {tuple(tensors[key].shape)} there"


@torch.no_grad()
def _fill(model: LoRA, name: str, planned: Planned) -> None:
    for path, slot in model.slots(name).items():
        for key, tensor in planned.layers[path].items():
            parameter = getattr(slot, key)
            parameter.copy_(tensor.view(parameter.shape))
    for path, its in model.token_rows(name).items():
        its.rows.copy_(planned.rows[path])
    for path, module in model.owned(name).items():
        module.load_state_dict(planned.owned[path])
    model.notes[name] = planned.notes


# -- checks -----------------------------------------------------------------------------------------------------------


def _check_weights(model: LoRA, stored: Stored, foreign: list[str]) -> None:
    """Refuse a base of the right shape whose weights are others than the adapter was trained on."""
    remedy = "Load the base it was trained on, or pass allow_other_base=True (--allow-other-base) if you know better"
    base, rows = _lineage(stored), _rows(model, stored)
    expected, found = base.get("fingerprint"), _fingerprint(model, stored)
    if expected == fingerprint(model.base, rows=rows):  # the embeddings are the base's own
        found = expected
    half = any(parameter.dtype == torch.float16 for parameter in model.base.parameters())
    if expected and found != expected:
        raise AdapterFileError(
            f"{stored.folder}: trained on other base weights: {base.get('name') or 'unnamed'} "
            f"({base.get('class')}, fingerprint {expected}); this base is {_name(model)} "
            f"({type(model.base).__name__}, fingerprint {found}). {remedy}"
            + (". (Values in float16 are rounded otherwise: load it in float32 or bfloat16)" if half else "")
        )
    if foreign:
        raise AdapterFileError(
            f"{stored.folder}: trained on other embedding weights than {_name(model)} has ({', '.join(foreign)}). "
            + remedy
        )


def _made_for(model: LoRA, stored: Stored) -> str:
    """A line on the base that the adapter was made for, unless all that is known is that it bears this one's name."""
    base, rule = _lineage(stored), "only weights, not shapes, may be those of another base"
    name = base.get("name") or stored.config.get("base_model_name_or_path")
    if base.get("fingerprint"):
        if base["fingerprint"] in (_fingerprint(model, stored), fingerprint(model.base, rows=_rows(model, stored))):
            return "\nIt was made for this base, so its files are damaged: copy or download them again"
        return f"\nIt was made for {name or 'another base'} ({base.get('class')}): load it on that; {rule}"
    if not name:
        return f"\nIf it was made for another base, load it on that; {rule}"
    return "" if name == _name(model) else f"\nIt was made for {name}: load it on that; {rule}"


def _fingerprint(model: LoRA, stored: Stored) -> str:
    """That of ``model``'s base as the folder knows it: without the embeddings that it brings along."""
    keys = [_local(key, stored) for key in stored.tensors]
    brought = tensors_of.stored_embeddings(keys, unwrapped_modules(model.base), output_heads(model.base))
    return fingerprint(model.base, brought, _rows(model, stored))


def _rows(model: LoRA, stored: Stored) -> dict[str, list[int]]:
    """The single rows that the folder brings along, at each place that they have in ``model``'s base."""
    ending = f".{ROWS}"
    paths = [_local(key, stored).removesuffix(ending) for key in stored.tensors if key.endswith(ending)]
    table = stored.config.get("trainable_token_indices") or []
    ids = next(iter(table.values()), []) if isinstance(table, dict) else table
    ids = [number for number in ids if isinstance(number, int) and number >= 0]  # what else there is, is refused
    return {path: ids for path in (*paths, *(place for _, place in tied_places(model.base, paths)))}


def _lineage(stored: Stored) -> dict[str, Any]:
    base = stored.sidecar.get("base")
    return base if isinstance(base, dict) else {}


def variant_of(stored: Stored) -> Variant:
    """The variant whose PEFT keys the configuration sets; else the one that ``lora.json`` names, else plain.

    A variant that PEFT does not know sets no key of its own there, and would be taken for the plain one.
    """
    named, known = stored.sidecar.get("variant"), variants()
    if named is not None and named not in known:
        raise AdapterFileError(
            f"{stored.folder}: made with variant {named!r}, which is not known here; known: {', '.join(sorted(known))}"
        )
    fitting = [
        variant
        for variant in known.values()
        if all(stored.config.get(key) == value for key, value in variant.peft_keys.items())
    ]
    best = max(fitting, key=lambda variant: len(variant.peft_keys))
    return best if best.peft_keys or named is None else known[named]


def _local(key: str, stored: Stored) -> str:
    if not key.startswith(PREFIX):
        raise AdapterFileError(f"{stored.folder / WEIGHTS}: tensor {key!r} does not begin with {PREFIX!r}")
    return key.removeprefix(PREFIX)


def _config(
    stored: Stored, variant: Variant, layers: dict[str, dict[str, Tensor]], owned: dict[str, Any], tied: bool
) -> AdapterConfig:
    config = stored.config
    ranks = ranks_of(layers)
    for key in ("rank_pattern", "alpha_pattern"):
        if not isinstance(config.get(key) or {}, dict):
            raise AdapterFileError(f"{stored.folder / CONFIG}: {key}: expected values by pattern, not {config[key]!r}")
    pattern = dict(config.get("rank_pattern") or {})
    # The tensors are the truth about ranks; a pattern that they contradict is replaced by what they say.
    if any(int(match_pattern(path, pattern) or config["r"]) != rank for path, rank in ranks.items()):
        pattern = {path: rank for path, rank in ranks.items() if rank != config["r"]}
    alphas = {
        k: v for k, v in (config.get("alpha_pattern") or {}).items() if any(match_pattern(p, {k: 1.0}) for p in layers)
    }
    pattern = {k: v for k, v in pattern.items() if any(match_pattern(p, {k: 1.0}) for p in layers)}
    try:
        return AdapterConfig(
            rank=int(config["r"]), alpha=float(config["lora_alpha"]), rslora=bool(config.get("use_rslora")),
            variant=variant.name, targets=list(layers), dropout=float(config.get("lora_dropout") or 0.0),
            rank_pattern=pattern, alpha_pattern=alphas, modules_to_save=list(owned), tie_embeddings=tied,
        )  # fmt: skip
    except (ConfigError, ValueError) as error:
        raise AdapterFileError(f"{stored.folder / CONFIG}: {error}") from None


def _notes(stored: Stored) -> dict[str, Any]:
    return {key: value for key, value in stored.sidecar.items() if key not in NOT_NOTES}


def _name(model: LoRA) -> str:
    return getattr(getattr(model.base, "config", None), "_name_or_path", "") or type(model.base).__name__

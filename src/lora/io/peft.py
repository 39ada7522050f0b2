"""An adapter folder in PEFT's format, both ways.

The folder holds ``adapter_config.json`` and ``adapter_model.safetensors``, as PEFT writes them, and beside them
``lora.json``: what PEFT has no place for (the base's fingerprint, the task with its labels, versions). PEFT ignores it,
and a folder without it loads as well. An adapter with tokens of its own has its tokenizer's files there too.
safetensors only: no pickle is ever read.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn

from lora.core.geometry import geometry_of
from lora.core.layer import TiedSlot
from lora.core.variant import variants
from lora.errors import AdapterFileError
from lora.hub import offline_unless_reachable
from lora.io.atomic import atomic_files, atomic_folder, is_there, recover, write_text
from lora.io.fingerprint import fingerprint
from lora.io.peft_tensors import stored_embeddings
from lora.model.heads import input_embedding, output_heads
from lora.model.tree import inside, matches, unwrapped_modules

if TYPE_CHECKING:
    from lora.model.lora import LoRA

log = logging.getLogger(__name__)

CONFIG, WEIGHTS, SIDECAR = "adapter_config.json", "adapter_model.safetensors", "lora.json"
PREFIX = "base_model.model."
EMBEDDING_NAMES = ("embed_tokens", "lm_head")  # PEFT stores the base weight along when one of these is targeted
# Modules that PEFT trains in full for a task whatever the configuration says; a folder must hold them.
ROWS = "token_adapter.trainable_tokens_delta"  # the tensor of single rows of an embedding
# Files of a tokenizer, as it saves itself.
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab*",
    "merges.txt",
)
PEFT_HEADS = {"SEQ_CLS": ("classifier", "score"), "TOKEN_CLS": ("classifier", "score"), "QUESTION_ANS": ("qa_outputs",)}

TASK_TYPES = {
    "SequenceClassification": "SEQ_CLS", "CausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM",
    "ConditionalGeneration": "SEQ_2_SEQ_LM", "MTModel": "SEQ_2_SEQ_LM",
    "TokenClassification": "TOKEN_CLS", "QuestionAnswering": "QUESTION_ANS",
}  # fmt: skip


# -- saving -----------------------------------------------------------------------------------------------------------


def save_adapter(model: LoRA, name: str, folder: str | Path, *, in_place: bool = False, tokenizer: Any = None) -> Path:
    """Write adapter ``name`` to ``folder``, atomically: a failure leaves what was there before; other files stay.

    Args:
        in_place: put the files into the folder one by one instead of replacing it; for a folder that others write to
            at the same time.
        tokenizer: whose files go along, now and later: of an adapter with tokens of its own.

    Raises:
        RoutingError: no adapter of that name.
        SaveError: disk full or no permission.
    """
    folder = Path(folder)
    model.slots(name)  # a name that is not there leaves no folder behind
    if tokenizer is not None:
        model.tokenizers[name] = tokenizer
    with atomic_files(folder) if in_place else atomic_folder(folder, keep_others=True) as stage:
        write_adapter(model, name, stage)
    return folder


def write_adapter(model: LoRA, name: str, folder: Path) -> None:
    """The files of adapter ``name``, into a folder that is there and that nobody reads yet."""
    tensors = adapter_tensors(model, name)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    for file, content in ((CONFIG, adapter_config(model, name)), (SIDECAR, _sidecar(model, name, tensors))):
        text = json.dumps(content, indent=2, sort_keys=file == CONFIG, ensure_ascii=file == CONFIG)
        (folder / file).write_text(text + "\n", encoding="utf-8")
    if name in model.tokenizers:
        model.tokenizers[name].save_pretrained(folder)


def adapter_tensors(model: LoRA, name: str) -> dict[str, Tensor]:
    """Adapter ``name`` as PEFT's state dict: contiguous copies on the CPU, none sharing storage."""
    modules = unwrapped_modules(model.base)
    out: dict[str, Tensor] = {}
    slots = model.slots(name, tied=True)
    for path, slot in slots.items():
        geometry = geometry_of(modules[path])
        assert geometry is not None
        suffixes = {**dict(zip("AB", geometry.peft_names, strict=True)), **slot.variant.peft_suffixes}
        for key, tensor in slot.factors(geometry).items():
            tensor = tensor if key in "AB" else slot.variant.peft_shape(geometry, tensor)
            out[f"{PREFIX}{path}.{suffixes[key]}"] = tensor
    rows = model.token_rows(name, tied=True)
    out |= {f"{PREFIX}{path}.{ROWS}": rows[path].rows for path in model.token_rows(name)}
    for path, module in model.owned(name).items():
        out |= {f"{PREFIX}{path}.{key}": tensor for key, tensor in module.state_dict().items()}
    for path in _stored_along(model, name):
        infix = ".base_layer" if path in slots else ".token_adapter.base_layer" if path in rows else ""
        out |= {f"{PREFIX}{path}{infix}.{key}": tensor for key, tensor in modules[path].state_dict().items()}
    return {key: tensor.detach().to("cpu", copy=True).contiguous() for key, tensor in out.items()}


def _stored_along(model: LoRA, name: str) -> list[str]:
    """Embeddings whose frozen weight PEFT stores along: the targeted ones, or both after the vocabulary was resized.

    None where the checkpoint has all rows but those that the adapter has itself.
    """
    slots, owned = set(model.slots(name, tied=True)), set(model.owned(name))
    entrance = input_embedding(model.base)
    paths = [*([entrance] if entrance else []), *sorted(output_heads(model.base))]
    rows, (then, now) = model.token_rows(name, tied=True), _vocabulary(model.base)
    new = set(range(then, now))
    if rows and then <= now and all(path in owned or (path in rows and new <= {*rows[path].numbers}) for path in paths):
        return []
    if any(path.rsplit(".", 1)[-1] in EMBEDDING_NAMES for path in slots):
        return [path for path in paths if path in slots]
    return [path for path in paths if path not in owned] if then != now else []


def _vocabulary(base: nn.Module) -> tuple[int, int]:
    """Size of the vocabulary in the checkpoint and now, asked of local files: saving makes no network call."""
    config = getattr(base, "config", None)
    source = getattr(config, "_name_or_path", "")
    size = getattr(config, "vocab_size", None)
    if config is None or not source or size is None:
        return 0, 0
    try:
        stored = type(config).from_pretrained(source, local_files_only=True)
    except Exception:  # not cached, moved away: nothing to compare with
        return size, size
    return getattr(stored, "vocab_size", size), size


def adapter_config(model: LoRA, name: str) -> dict[str, Any]:
    """PEFT's configuration of adapter ``name``; only the keys that are needed, since older readers warn of others."""
    config, slots = model.adapters[name], model.slots(name, tied=True)
    modules = unwrapped_modules(model.base)
    out: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": _task_type(model.base, list(model.owned(name))),
        "base_model_name_or_path": getattr(getattr(model.base, "config", None), "_name_or_path", None) or None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if float(config.alpha).is_integer() else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": target_names(list(slots), list(modules)),
        "bias": "none",
    }
    if any((geometry := geometry_of(modules[path])) and geometry.kind == "conv1d_hf" for path in slots):
        out["fan_in_fan_out"] = True
    if config.rslora:
        out["use_rslora"] = True
    for key in ("rank_pattern", "alpha_pattern"):
        if getattr(config, key):
            out[key] = getattr(config, key)
    if model.owned(name):
        out["modules_to_save"] = list(model.owned(name))
    rows = {path: list(its.numbers) for path, its in model.token_rows(name).items()}
    if rows:  # PEFT's list is of the input embedding and what is tied to it
        out["trainable_token_indices"] = rows if len(rows) > 1 else next(iter(rows.values()))
    if any(isinstance(slot, TiedSlot) for slot in slots.values()):
        out["ensure_weight_tying"] = True
    return out | variants()[config.variant].peft_keys


def target_names(targets: list[str], modules: list[str]) -> list[str]:
    """The shortest names that PEFT matches to exactly ``targets`` among ``modules`` (by path or trailing parts)."""
    wanted, names = set(targets), set()
    for path in targets:
        parts = path.split(".")
        for size in range(1, len(parts) + 1):
            name = ".".join(parts[-size:])
            if name in names or all(other in wanted for other in modules if matches(other, [name])):
                names.add(name)
                break
        else:
            names.add(path)
    return sorted(names)


def _task_type(base: nn.Module, owned: list[str]) -> str | None:
    """PEFT's word for the task; none where PEFT would then look for a head that this adapter does not hold."""
    if getattr(base, "main_input_name", "input_ids") != "input_ids":
        return None  # PEFT's classes for a task pass token ids
    class_name = type(base).__name__
    task = next((task for ending, task in TASK_TYPES.items() if class_name.endswith(ending)), None)
    heads = [path for path in unwrapped_modules(base) if path.endswith(PEFT_HEADS.get(str(task), ("\0",)))]
    return task if all(inside(path, owned) for path in heads) else None


def _sidecar(model: LoRA, name: str, tensors: Iterable[str]) -> dict[str, Any]:
    import lora

    keys = [key.removeprefix(PREFIX) for key in tensors]
    brought = stored_embeddings(keys, unwrapped_modules(model.base), output_heads(model.base))
    rows = {path: its.numbers for path, its in model.token_rows(name, tied=True).items()}

    return {
        "format": 1,
        "lora_version": lora.__version__,
        "variant": model.adapters[name].variant,
        "base": {
            "name": getattr(getattr(model.base, "config", None), "_name_or_path", "") or None,
            "class": type(model.base).__name__,
            "fingerprint": fingerprint(model.base, brought, rows),
        },
        **model.notes.get(name, {}),
    }


# -- loading ----------------------------------------------------------------------------------------------------------


def load_adapter(
    model: LoRA, folder: str | Path, name: str | None = None, *, trainable: bool = True, allow_other_base: bool = False
) -> str:
    """Load an adapter folder written by `save_adapter` or by PEFT; returns its name in the model.

    Everything is checked before the model is touched: every tensor must have its place and every place its tensor.
    Ranks that the configuration gives otherwise than the tensors have them are those of the tensors, with a warning.

    Args:
        folder: the folder, or that of a run, or a hub id.
        name: what rows call it; default: the folder's own name. An adapter that has this name already takes the
            folder's values, if it sits on the same layers with the same ranks; as in PEFT.
        trainable: of a new adapter: False freezes its parameters. One that was there keeps what it has.
        allow_other_base: load even where ``lora.json`` says that it was trained on other base weights.

    Raises:
        AdapterFileError: files missing or broken, tensors missing, left over or of the wrong shape (the first named), a
            kind of adapter that this version cannot express, or another base.
        ConfigError: the name cannot be, or is that of an adapter that the folder's cannot take the place of.
    """
    from lora.io.peft_load import place, plan, read_folder, refill

    known = name is not None and name in model.adapters
    if name is None:
        name = Path(folder).expanduser().resolve().name  # of a hub id its last part, not the snapshot's hash
    planned = plan(model, read_folder(resolve_folder(folder)), allow_other_base)
    if known:
        refill(model, name, planned)
    else:
        place(model, name, planned, trainable)
    if planned.warning:
        log.warning(planned.warning)
    return name


def resolve_folder(folder: str | Path) -> Path:
    """A local folder, of a run the one with its result, or a hub id's download (configuration and safetensors only)."""
    path = Path(folder).expanduser()
    if is_there(path):
        recover(path)
        if not (path / CONFIG).exists():
            recover(path / "adapter")
            return path / "adapter" if (path / "adapter" / CONFIG).is_file() else path
        return path
    text = str(folder)
    if path.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise AdapterFileError(f"{folder}: there is no such adapter folder")
    from huggingface_hub import snapshot_download

    with offline_unless_reachable(text) as reachable:
        try:
            return Path(snapshot_download(text, allow_patterns=[CONFIG, WEIGHTS, SIDECAR, *TOKENIZER]))
        except Exception as error:
            reason = f"did not give it ({type(error).__name__})" if reachable else "cannot be reached"
            raise AdapterFileError(f"{folder}: no such folder here, and the hub {reason}") from None


def add_to_sidecar(folder: str | Path, values: dict[str, Any]) -> None:
    """Put ``values`` into ``lora.json`` of an adapter folder that lora wrote. Raises AdapterFileError, SaveError."""
    content = json.dumps({**read_sidecar(folder), **values}, indent=2, ensure_ascii=False)
    write_text(Path(folder) / SIDECAR, content + "\n")


def read_sidecar(folder: str | Path) -> dict[str, Any]:
    """``lora.json`` of an adapter folder; empty for one that PEFT wrote."""
    path = Path(folder) / SIDECAR
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise AdapterFileError(f"{path}: cannot be read ({error})") from None
    if not isinstance(value, dict):
        raise AdapterFileError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value

"""Facts about an adapter folder or a base model, for people: modules, parameters, what each preset would adapt."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

from lora.config import AdapterConfig
from lora.errors import ConfigError
from lora.io.peft import CONFIG, PREFIX, SIDECAR, WEIGHTS
from lora.io.peft_load import read_folder, variant_of
from lora.model.base import check_folder, load_base_config, shape_of_base
from lora.model.heads import task_heads
from lora.model.targets import PRESETS, find_targets
from lora.model.ties import share_tied
from lora.model.tree import summary


def describe_adapter(folder: Path) -> dict[str, Any]:
    """Settings, tensors and lineage of an adapter folder; the base is not needed."""
    stored = read_folder(folder)
    paths = {key.removeprefix(PREFIX) for key in stored.tensors}
    adapted = sorted({p.rpartition(".lora_")[0] for p in paths if ".lora_" in p})
    others = sorted(p for p in paths if ".lora_" not in p)
    config = stored.config
    out: dict[str, Any] = {
        "adapter": str(folder),
        "base": (stored.sidecar.get("base") or {}).get("name") or config.get("base_model_name_or_path"),
        "fingerprint of the base": (stored.sidecar.get("base") or {}).get("fingerprint", "not recorded"),
        "variant": variant_of(stored).name,
        "rank": config.get("r"),
        "alpha": config.get("lora_alpha"),
        "scaling": "alpha / sqrt(rank)" if config.get("use_rslora") else "alpha / rank",
        "parameters": sum(tensor.numel() for tensor in stored.tensors.values()),
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in stored.tensors.values()),
        "adapted modules": summary(adapted, most=30).split(", ") if adapted else [],
        "stored in full": others,
    }
    for key in ("task", "max_length", "trained_on", "training"):
        if key in stored.sidecar:
            out[key] = stored.sidecar[key]
    return out


def files_sha256(folder: Path) -> str:
    """SHA-256 over all that an adapter folder says of its adapter."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS, SIDECAR):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def describe_base(name: str, rank: int | None = None, trust_remote_code: bool = False) -> dict[str, Any]:
    """Parameters of a base model and what each preset would adapt; weights are not loaded, only shapes are made.

    Raises:
        ModelError: no model of that name.
    """
    config = load_base_config(name, trust_remote_code)
    model: Any = shape_of_base(name, config, auto_class_of(config), trust_remote_code=trust_remote_code)
    rank = rank or AdapterConfig().rank
    presets: dict[str, Any] = {}
    total = sum(p.numel() for p in model.parameters())
    for preset in PRESETS:
        adapter = AdapterConfig(rank=rank, targets=preset)
        try:
            report = find_targets(model, adapter, task_heads(model))
            share_tied(model, adapter, report)  # tied places have one update between them
        except ConfigError as error:
            presets[preset] = str(error).split(". ")[0]
            continue
        count = sum(math.prod(shape) for t in report.adapted for shape in t.geometry.shapes(t.rank))
        modules = f"{len(report.adapted)} module{'s' * (len(report.adapted) != 1)}"
        presets[preset] = (
            f"{modules}, {count:,} parameters at rank {rank} ({100 * count / total:.2f} %): "
            f"{summary(t.path for t in report.adapted)}"
        )
    return {
        "base": check_folder(name),
        "class": type(model).__name__,
        "parameters": total,
        "layers": getattr(config.get_text_config(), "num_hidden_layers", "unknown"),
        "hidden size": getattr(config.get_text_config(), "hidden_size", "unknown"),
        "positions": getattr(config.get_text_config(), "max_position_embeddings", "unknown"),
        "vocabulary": getattr(config.get_text_config(), "vocab_size", "unknown"),
        "modules that can be adapted": summary(find_targets(model, AdapterConfig(rank=1)).available, most=40).split(
            ", "
        ),
        "presets": presets,
    }


def auto_class_of(config: Any) -> str:
    """The class the checkpoint was saved as decides; a body without a head is shown as such."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    for ending, auto in {
        "ForCausalLM": "AutoModelForCausalLM",
        "LMHeadModel": "AutoModelForCausalLM",
        "ForSequenceClassification": "AutoModelForSequenceClassification",
        "ForTokenClassification": "AutoModelForTokenClassification",
        "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
        "ForImageClassification": "AutoModelForImageClassification",
    }.items():
        if architecture.endswith(ending):
            return auto
    # A model with code of its own says which of these classes its code gives.
    return next((auto for auto in getattr(config, "auto_map", None) or {} if auto.startswith("AutoModel")), "AutoModel")

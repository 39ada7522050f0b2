"""Which adapters of PEFT's format can be computed exactly here, by their configuration; why not the others.

And where a configuration says otherwise about ranks than the tensors beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lora.core.variant import variants
from lora.errors import AdapterFileError
from lora.model.tree import match_pattern, summary

# Keys of PEFT's configuration that say nothing about the function computed, or that are understood on loading.
UNDERSTOOD = {
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules",
    "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "lora_alpha",
    "lora_dropout", "modules_to_save", "peft_type", "peft_version", "r", "rank_pattern", "revision", "target_modules",
    "task_type", "use_dora", "use_rslora", "runtime_config", "loftq_config", "eva_config", "megatron_core",
    "modules_to_tie", "target_modules_to_tie", "qalora_group_size", "lora_ga_config", "corda_config",
    "trainable_token_indices",
}  # fmt: skip
# Starts that leave the base as it is: how A and B came to be does not matter afterwards.
NEUTRAL_STARTS = ("gaussian", "eva", "orthogonal", "mica")
# Starts that change the base weights: the adapter means nothing on the original base.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
# What PEFT can do and this cannot: the key that asks for it -> what it does.
OTHER = {
    "lora_bias": "adds a bias to B",
    "target_parameters": "adapts bare parameters (experts' weights) instead of layers",
    "layer_replication": "stacks the base's layers anew",
    "alora_invocation_tokens": "acts only on the tokens after a phrase (aLoRA), so that it cannot be merged either",
    "megatron_config": "sits on Megatron's own parallel layers",
    "use_qalora": "pools the inputs of quantised layers (QA-LoRA)",
    "use_bdlora": "has block-diagonal factors (BD-LoRA)",
    "kasa_config": "cuts the base's smallest singular values off and puts a diagonal between A and B (KaSA)",
    "arrow_config": "routes every token among several adapters (Arrow)",
}
UNMERGEABLE = ("alora_invocation_tokens", "arrow_config")


def check_kind(config: dict[str, Any], where: Path) -> None:
    """Refuse what this version cannot compute exactly; all reasons at once.

    Args:
        config: PEFT's configuration, read from ``where``.

    Raises:
        AdapterFileError: with the reasons and what to do.
    """
    if "peft_type" not in config:
        hint = " (it looks like one of mlx-lm, whose layout is transposed)" if "lora_parameters" in config else ""
        raise AdapterFileError(f"{where}: no peft_type; this is not an adapter of PEFT's format{hint}")
    if config["peft_type"] != "LORA":
        raise AdapterFileError(f"{where}: peft_type {config['peft_type']!r}; only LORA adapters can be loaded")
    problems = [*_starts(config.get("init_lora_weights")), *_other(config)]
    for key in ("r", "lora_alpha"):
        if isinstance(config.get(key), bool) or not isinstance(config.get(key), (int, float)) or config[key] <= 0:
            problems.append(f"{key} must be a positive number, found {config.get(key)!r}")
    if problems:
        raise AdapterFileError("\n  ".join([f"{where}: cannot be loaded:", *problems]))


def _starts(start: Any) -> list[str]:
    if not isinstance(start, str) or start.lower() in NEUTRAL_STARTS:
        return []
    if start.lower().startswith(CHANGES_BASE):
        return [
            f"init_lora_weights={start!r}, which changes the base weights, so the adapter means nothing on the "
            "original base. Save it with PEFT's path_initial_model_for_weight_conversion to turn it into plain LoRA"
        ]
    return [f"init_lora_weights={start!r}, a start that is not known here; it may change the base weights"]


def _other(config: dict[str, Any]) -> list[str]:
    """What the configuration asks for beside plain LoRA and the variants known here."""
    known = UNDERSTOOD | {key for variant in variants().values() for key in variant.peft_keys}
    asked = {key: value for key, value in config.items() if value and key not in known}
    if config.get("bias", "none") != "none":
        asked["bias"] = config["bias"]
    out = []
    for key, value in asked.items():
        shown = f"{key}={value!r}" if len(repr(value)) < 60 else key
        if key == "bias":
            what = "trains the base's own biases, which all adapters share here"
        elif key in OTHER:
            what = OTHER[key]
        else:
            out.append(f"{shown} is not known here, and leaving it out would change the results")
            continue
        remedy = (
            "Use it with PEFT"
            if key in UNMERGEABLE
            else "Merge it with PEFT (merge_and_unload) and take the result as base"
        )
        out.append(f"{shown}, which {what}. {remedy}")
    return out


def ranks_of(layers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, int]:
    """The rank of each layer's update, by its A (r, i)."""
    return {path: tensors["A"].shape[0] for path, tensors in layers.items()}


def other_ranks(path: Path, config: dict[str, Any], layers: Mapping[str, Mapping[str, Tensor]]) -> str | None:
    """What to say where tensors have other ranks than the configuration from ``path`` says; None: they have not."""
    pattern = config.get("rank_pattern") or {}
    found: dict[tuple[int, int], list[str]] = {}
    for place, rank in ranks_of(layers).items():
        said = int(match_pattern(place, pattern) or config["r"])
        if said != rank:
            found.setdefault((said, rank), []).append(place)
    if not found:
        return None
    told = "; ".join(
        f"rank {said} for {summary(places, most=2)}, whose tensors have rank {rank}"
        for (said, rank), places in found.items()
    )
    return (
        f"{path}: says {told}. The tensors are believed, and the scaling (alpha by rank) goes by them too. See whether "
        "the two files belong together; saving the adapter anew makes them agree"
    )

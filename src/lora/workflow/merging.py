"""An adapter folder and its base become a plain model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lora.errors import AdapterFileError, ConfigError
from lora.io.atomic import atomic_folder
from lora.training.device import best_device
from lora.workflow.tuned import load_tuned


def merge_folder(
    adapter: str | Path,
    output: Path,
    model: str | None = None,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    allow_other_base: bool = False,
) -> float:
    """Merge an adapter folder into its base and write a plain model folder, tokenizer included, atomically.

    Returns:
        the largest absolute difference between merged and unmerged outputs on a probe, relative to the largest output.

    Raises:
        ConfigError, ModelError, AdapterFileError: before anything is written.
        SaveError: disk full or no permission; nothing half-written is left.
    """
    output = output.expanduser()
    sources = [Path(adapter).expanduser().resolve(), *([Path(model).expanduser().resolve()] if model else [])]
    if any(output.resolve() == source or output.resolve() in source.parents for source in sources):
        raise ConfigError(f"output: {output} holds what is being merged; name another folder")
    tuned, name, tokenizer, _ = load_tuned(
        # Values of a base rounded to float16 are others than those that the adapter knows its base by.
        adapter,
        model,
        dtype="float32" if dtype == "float16" else dtype,
        trust_remote_code=trust_remote_code,
        allow_other_base=allow_other_base,
    )
    if output.resolve() == Path(getattr(tuned.base.config, "_name_or_path", "") or ".").resolve():
        raise ConfigError(f"output: {output} is the base model's own folder; name another")
    merged: Any = tuned.merge(name).eval()
    config: Any = tuned.base.config
    ids = torch.arange(16).unsqueeze(0) % config.get_text_config().vocab_size
    ids = ids.to(best_device())
    with torch.no_grad(), tuned.using(name):
        expected, found = tuned(input_ids=ids).logits.float(), merged(input_ids=ids).logits.float()
    difference = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-9))
    if not difference <= (1e-4 if dtype == "float32" else 0.1):  # NaN is refused too
        raise AdapterFileError(
            f"merged and unmerged outputs differ by {difference:.1e} of the largest; nothing was written"
        )
    if dtype == "float16":
        merged = merged.half()
    with atomic_folder(output) as stage:
        merged.save_pretrained(stage)
        tokenizer.save_pretrained(stage)
    return difference

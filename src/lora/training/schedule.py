"""The learning rate: its default from the base model, and its course over the steps."""

from __future__ import annotations

import math
from typing import Any

from lora.core.configs import text_config

# Exponents of the model width by family, from the cookbook of Thinking Machines' Tinker (2025), hyperparam_utils:
# rate = 5e-5 · 10 · (2000 / hidden)^p. The factor 10 is LoRA's over full fine-tuning.
FACTOR = 10
WIDTH_EXPONENT = {"llama": 0.781, "qwen": 0.0775}
# Best rate of 22 of the 35 models in the same sweep; 1e-3 was best for 10, divergence began mostly at 3e-3.
OTHERWISE = 3e-4


def default_learning_rate(config: Any, full: bool = False) -> float:
    """The rate for a base model of transformers configuration ``config``; ``full``: for full fine-tuning, a tenth.

    5e-4·(2000/hidden)^p for the families whose p is known, else 3e-4; kept within 1e-4 and 2e-3, the range that the
    sweep behind the formula covers.
    """
    family = str(getattr(config, "model_type", ""))
    hidden = getattr(text_config(config), "hidden_size", None)
    for name, exponent in WIDTH_EXPONENT.items():
        if family.startswith(name) and hidden:
            return min(2e-3, max(1e-4, 5e-4 * (2000 / hidden) ** exponent)) / (FACTOR if full else 1)
    return OTHERWISE / (FACTOR if full else 1)


def rate_at(step: int, total: int, peak: float, shape: str, warmup: int) -> float:
    """Learning rate of step ``step`` (from 0) of ``total``: a linear rise over ``warmup`` steps, then ``shape``.

    ``linear`` and ``cosine`` fall to 0 at ``total``; ``constant`` stays at ``peak``.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    if shape == "constant":
        return peak
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    if shape == "cosine":
        return peak * 0.5 * (1 + math.cos(math.pi * progress))
    return peak * (1 - progress)


def warmup_steps(total: int, ratio: float, steps: int | None) -> int:
    """Number of warm-up steps: ``steps`` if given, else ``ratio`` of ``total``; never all of them."""
    wanted = steps if steps is not None else round(ratio * total)
    return min(wanted, max(0, total - 1))

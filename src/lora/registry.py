"""What settings choose by name, and where it lives: one line for each variant and each task.

Text alone stands here, so that `lora train --help` lists the names, and a misspelt one is refused, before torch is
loaded. A class is imported when it is first needed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from importlib import import_module
from typing import Any

# None: one's own, registered while running (`lora.core.variant.register`).
VARIANTS: dict[str, str | None] = {
    "plain": "lora.variants.plain:Plain",
    "dora": "lora.variants.dora:Dora",
}

# Where the columns speak for several tasks equally, the first of them is taken.
TASKS = {
    "classification": "lora.tasks.classification:ClassificationTask",
    "token-classification": "lora.tasks.token_classification:TokenClassificationTask",
    "multi-label": "lora.tasks.multilabel:MultiLabelTask",
    "regression": "lora.tasks.regression:RegressionTask",
    "causal": "lora.tasks.causal:CausalTask",
    "chat": "lora.tasks.chat:ChatTask",
    "preference": "lora.tasks.preference:PreferenceTask",
    "reward": "lora.tasks.reward:RewardTask",
    "seq2seq": "lora.tasks.seq2seq:Seq2SeqTask",
}


def load(place: str) -> Any:
    """The class at ``place`` (``module:class``)."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def unknown(name: str, known: Iterable[str]) -> str:
    """What to say of a ``name`` that is none of ``known``: the nearest of them, and all."""
    known = list(known)
    near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return "unknown; " + (f"did you mean {near[0]!r}? " if near else "") + f"known: {', '.join(known)}"

"""What is verified after training: the saved adapter is the trained one, merging keeps its outputs, and what the base
could do before it can still do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lora.checks.finding import Finding
from lora.checks.outputs import AGAIN, apart, compared, inputs_of, logits_of
from lora.core.routing import BASE
from lora.errors import LoraError
from lora.evaluation.forgetting import Forgetting
from lora.training.memory import free_memory, gib

if TYPE_CHECKING:
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared

# Of the largest output. Read again, an adapter is the same to the bit; a merged weight is rounded to the base's type.
SAME, MERGED, ROUGH = 1e-6, 1e-3, 5e-2
# Share by which the probe's loss may grow: above, what the base could do has suffered.
FORGOTTEN = 0.05


def check_trained(
    model: LoRA, name: str, folder: Path, prepared: Prepared, forgetting: Forgetting | str
) -> list[Finding]:
    """Verify adapter ``name``, saved in ``folder``. The model is left as it is.

    Args:
        forgetting: what base and adapter were found to give on general text; or why nothing was measured.
    """
    row = min(range(len(prepared.train)), key=lambda i: prepared.train.lengths[i])
    own = logits_of(model, name, prepared, row)
    return [
        _reloaded(model, folder, prepared, row, own),
        _merged(model, name, prepared, row, own),
        _probed(name, forgetting),
    ]


def _reloaded(model: LoRA, folder: Path, prepared: Prepared, row: int, own: Tensor) -> Finding:
    check = "reloaded equals trained"
    why = "What you serve would not be what you trained."
    remedy = "Train again from the newest checkpoint (--resume), and report it with the model's name."
    try:
        model.load_adapter(folder, AGAIN, trainable=False)
        off = apart(own, logits_of(model, AGAIN, prepared, row))
    except LoraError as error:
        return Finding(check, "failed", f"{folder} cannot be read ({error})", why, remedy)
    finally:
        if AGAIN in model.adapters:
            model.remove_adapter(AGAIN)
    status: Any = "passed" if off <= SAME else "failed"
    return Finding(check, status, f"outputs differ by {off:.0e} of the largest", *_if_not(status, why, remedy))


def _merged(model: LoRA, name: str, prepared: Prepared, row: int, own: Tensor) -> Finding:
    check = "merged equals unmerged"
    size = sum(p.numel() * p.element_size() for p in model.base.parameters())
    if size > free_memory(model) / 2:
        return Finding(check, "skipped", f"a merged copy takes {gib(size)}, more than half of what is free")
    try:
        merged = model.merge(name).eval()
    except (LoraError, NotImplementedError) as error:
        return Finding(check, "skipped", f"this adapter is not merged ({error})")
    inputs = {key: value for key, value in inputs_of(model, prepared, row).items() if key != "labels"}
    with torch.no_grad():
        off = apart(own, compared(merged(**inputs).logits))
    limit = MERGED if next(model.base.parameters()).dtype in (torch.float32, torch.float64) else ROUGH
    status: Any = "passed" if off <= limit else "note"
    return Finding(
        check, status, f"outputs differ by {off:.0e} of the largest",
        *_if_not(status, "The merged weights are rounded to the base's type, and small updates are lost in that.",
                 "Serve the adapter unmerged, or merge in float32 (lora merge --dtype float32)."),
    )  # fmt: skip


def _probed(name: str, forgetting: Forgetting | str) -> Finding:
    check = "general ability"
    if isinstance(forgetting, str):
        return Finding(check, "skipped", forgetting)
    if "loss" not in forgetting.adapters[BASE]:
        return Finding(check, "skipped", "the base predicts no next tokens")
    before, after = (forgetting.adapters[each]["loss"] for each in (BASE, name))
    kl = forgetting.adapters[name]["kl"]["value"]
    said = (
        f"loss per token on general text {before:.3f} before, {after:.3f} after ({after / before - 1:+.1%}); "
        f"KL to the base {kl:.3f} per token"
    )
    status: Any = "note" if after > (1 + FORGOTTEN) * before else "passed"
    return Finding(
        check, status, said,
        *_if_not(status, "The adapter has unlearned some of what the base could do.",
                 "Where that matters: general text beside the data (data.replay), KL to the base (training.kl), fewer "
                 "steps, a lower rate."),
    )  # fmt: skip


def _if_not(status: str, why: str, remedy: str) -> tuple[str, str]:
    return ("", "") if status == "passed" else (why, remedy)

"""What the tasks share that predict next tokens: padding, cross-entropy of supervised tokens, perplexity.

Shapes: b row, t token, v vocabulary, n supervised token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lora.core.configs import is_encoder_decoder
from lora.core.divergence import disagreements, divergences
from lora.statistics.means import PERPLEXITY, token_rows
from lora.tasks.base import ExamplePart, Task
from lora.tasks.figures import TOKEN_SHARE, Figures, Groups
from lora.tasks.sequence import pad, padded_ids
from lora.tasks.tokens import IGNORED, per_row


class NextTokenTask(Task):
    """A task whose examples hold ``input_ids`` and ``labels`` of the same length, -100 where nothing is learned."""

    auto_class = "AutoModelForCausalLM"
    best_metric = "loss"
    measures: ClassVar[Mapping[str, bool]] = {"loss": False, "perplexity": False, "token_accuracy": True}
    next_token = True
    generates = True
    holds_to_base = True
    agrees = True

    @classmethod
    def suits(cls, base: Any) -> bool:
        return not is_encoder_decoder(base)

    def of_length(self, example: dict[str, Any], length: int) -> dict[str, Any]:
        made = super().of_length(example, length)
        # What stands first has nothing before it to be predicted from.
        return {**made, "labels": [IGNORED, *made["labels"][1:]]}

    def parts(self, example: dict[str, Any]) -> list[ExamplePart]:
        ((name, ids, labels),) = super().parts(example)
        return [(name if labels is None or self.inputs()[0].divisible else "", ids, labels)]

    def collate(
        self, examples: list[dict[str, Any]], pad_token_id: int, padding_side: str = "right"
    ) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``labels``: (b, t) long. Padding is masked by length: it may be eos."""
        ids = [example["input_ids"] for example in examples]
        labels = [example.get("labels", [IGNORED] * len(example["input_ids"])) for example in examples]
        return {**padded_ids(ids, pad_token_id, padding_side), "labels": pad(labels, IGNORED, padding_side)}

    def row_losses(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over a row's supervised tokens (b,) fp32, and their number (b,).

        ``outputs.logits``: (b, t, v); position t predicts token t+1. Only supervised positions are copied to fp32:
        the whole of (b, t, v) would be the largest tensor of the run. Smoothing as in
        ``torch.nn.functional.cross_entropy``.
        """
        chosen, labels, mask = self._supervised(outputs, batch)
        scores = chosen.float()  # (n, v)
        normaliser = scores.logsumexp(dim=-1)
        losses = normaliser - scores.gather(1, labels.unsqueeze(1)).squeeze(1)
        if label_smoothing:
            losses = (1 - label_smoothing) * losses + label_smoothing * (normaliser - scores.mean(dim=-1))
        return per_row(losses, mask), mask.sum(dim=1).float()

    def row_divergences(self, outputs: Any, batch: dict[str, Tensor], reference: Any) -> Tensor:
        chosen, _, mask = self._supervised(outputs, batch)
        base, _, _ = self._supervised(reference, batch)
        return per_row(divergences(chosen, base), mask)

    def row_disagreements(self, one: Any, other: Any, batch: dict[str, Tensor]) -> Tensor:
        (first, _, mask), (second, _, _) = (self._supervised(outputs, batch) for outputs in (one, other))
        return per_row(disagreements(first, second), mask)

    @torch.no_grad()
    def predictions(self, outputs: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """``{"loss": sum, "tokens": supervised ones, "correct": those whose most likely token is right}`` per row."""
        chosen, labels, mask = self._supervised(outputs, batch)
        losses, counts = self.row_losses(outputs, batch)
        correct = per_row((chosen.argmax(dim=-1) == labels).float(), mask)
        return [
            {"loss": loss, "tokens": int(tokens), "correct": int(right)}
            for loss, tokens, right in zip(losses.tolist(), counts.tolist(), correct.tolist(), strict=True)
        ]

    def targets(self, examples: Sequence[dict[str, Any]]) -> list[Any]:
        """Numbers of supervised tokens."""
        return [sum(label != IGNORED for label in example["labels"]) for example in examples]

    def figures(self, predictions: Sequence[Any], targets: Sequence[Any], groups: Groups = None) -> Figures:
        tokens = [row["tokens"] for row in predictions]
        losses = token_rows([row["loss"] for row in predictions], tokens, groups=groups)
        right = token_rows([row["correct"] for row in predictions], tokens, groups=groups)
        return {"perplexity": (PERPLEXITY, losses), "token_accuracy": (TOKEN_SHARE, right)}

    def metrics(self, predictions: list[Any], targets: list[Any], loss_sum: float, count: int) -> dict[str, Any]:
        """Loss per token, its exponential (perplexity), share of tokens predicted right, number of tokens."""
        loss = loss_sum / count
        tokens = sum(row["tokens"] for row in predictions)
        return {
            "loss": loss,
            # exp(709.8) is the largest that fp64 holds; above it Python raises. NaN stays NaN.
            "perplexity": math.inf if loss > 709 else math.exp(loss),
            "token_accuracy": sum(row["correct"] for row in predictions) / tokens if tokens else 0.0,
            "tokens": tokens,
        }

    @staticmethod
    def _supervised(outputs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, v) in their own dtype, labels (n,), and which positions they come from (b, t-1)."""
        following = batch["labels"][:, 1:]
        mask = following != IGNORED
        return outputs.logits[:, :-1][mask], following[mask], mask

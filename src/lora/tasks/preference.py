"""Preference training: the answer that was chosen is made more likely than the one that was rejected.

The reference of the losses that have one is the base in the same batch: no second model, nothing computed beforehand.
Packed, the prompt that both answers follow is there once, for the adapter and for the base.

Shapes: b pair, t token; a padded batch has 2·b rows, chosen and rejected of each pair in turn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from lora.data.rendering import IGNORED
from lora.errors import ConfigError
from lora.statistics.means import PREFERENCE_ACCURACY, preference_rows
from lora.tasks.base import Encoded, ExamplePart, Row, Task, resized
from lora.tasks.figures import Figures, Groups
from lora.tasks.next_token import NextTokenTask
from lora.tasks.pairs import PairTask, pair_figures, pair_values
from lora.tasks.templated import TemplateOptions

Loss = Literal["sigmoid", "robust", "hinge", "ipo", "orpo", "simpo"]
ALONE = ("orpo", "simpo")  # losses without a reference
BETA = {"sigmoid": 0.1, "robust": 0.1, "hinge": 0.1, "ipo": 0.1, "orpo": 0.1, "simpo": 2.0}
GAMMA = 1.0
MEANS = {
    "reward_chosen": "reward, chosen", "reward_rejected": "reward, rejected",
    "loss_chosen": "loss per token, chosen", "loss_rejected": "loss per token, rejected",
}  # fmt: skip
SMOOTHED = ("sigmoid", "robust")  # losses whose formula has an ε


class PreferenceOptions(TemplateOptions):
    """Settings of the task preference."""

    loss: Loss = Field(
        default="sigmoid",
        description="sigmoid (DPO), robust, hinge (SLiC), ipo; or without a reference: orpo, simpo",
    )
    beta: float | None = Field(
        default=None, gt=0, description="how far from the reference; of orpo the weight of the odds; default by loss"
    )
    gamma: float | None = Field(default=None, ge=0, description=f"margin that simpo asks for; default {GAMMA:g}")
    sft: float = Field(default=0.0, ge=0, description="weight of the chosen answer's cross-entropy per token beside it")

    @model_validator(mode="after")
    def _gamma_is_of_simpo(self) -> Self:
        # Adapters of earlier versions keep the default beside every loss.
        if self.gamma not in (None, GAMMA) and self.loss != "simpo":
            raise ValueError(f"gamma {self.gamma:g} is the margin of simpo, and the loss is {self.loss}; leave it out")
        return self


class PreferenceTask(PairTask, NextTokenTask):
    """DPO and its kin.

    Arguments: as of `PairTask`, and those of `PreferenceOptions`.

    With h = β·[(log π(c) - log π_ref(c)) - (log π(r) - log π_ref(r))], of the chosen and the rejected answer, and ε the
    label smoothing:

    - sigmoid: -(1-ε)·log σ(h) - ε·log σ(-h) (Rafailov et al. 2023, arXiv:2305.18290, eq. 7; with ε the conservative
      form of their reference code);
    - robust: (-(1-ε)·log σ(h) + ε·log σ(-h)) / (1-2ε) (Chowdhury et al. 2024, arXiv:2403.00409);
    - hinge: max(0, 1 - h) (Zhao et al. 2023, arXiv:2305.10425, on the ratios);
    - ipo: (h/β - 1/(2β))² (Azar et al. 2023, arXiv:2310.12036, eq. 17), with log-probabilities per token, without which
      long answers weigh too much.

    Without a reference, with p the geometric mean of the probabilities of an answer's tokens:

    - orpo: -log p(c) - β·log σ(log odds(c) - log odds(r)), odds = p/(1-p) (Hong et al. 2024, arXiv:2403.07691, eq. 6);
    - simpo: -log σ(β·(log p(c) - log p(r)) - γ) (Meng et al. 2024, arXiv:2405.14734, eq. 6).

    To all of them ``sft`` adds that many times -log p(c) (Pang et al. 2024, arXiv:2404.19733, eq. 1).
    """

    name = "preference"
    options = PreferenceOptions
    settings: PreferenceOptions
    measures = {
        "loss": False, "accuracy": True, "margin": True, "reward_chosen": True, "reward_rejected": False,
        "likelihood_accuracy": True,
    }  # fmt: skip
    smooths_tokens = False
    agrees = False  # it learns a difference of two answers, and no distribution
    holds_to_base = False  # its loss does so already, by beta
    rows = 2

    @property
    def reference(self) -> bool:
        return self.settings.loss not in ALONE

    def check_smoothing(self, label_smoothing: float) -> None:
        loss, given = self.settings.loss, f"training.label_smoothing {label_smoothing:g}"
        if label_smoothing and loss not in SMOOTHED:
            raise ConfigError(
                f"{given}: the loss {loss} has none; leave it out, or choose one of the losses {' and '.join(SMOOTHED)}"
            )
        if loss == "robust" and label_smoothing >= 0.5:
            raise ConfigError(
                f"{given}: to the loss robust it is the share of pairs that are labelled the wrong way round, and of "
                "pairs half wrong or more nothing can be learned; it must be below 0.5"
            )

    def encode(self, rows: list[Row], tokenizer: Any, max_length: int, supervised: bool = True) -> Encoded:
        """``input_ids``: prompt, chosen answer, rejected answer; ``labels``: of both answers; ``branches``: their
        lengths. Without ``supervised``: the prompt alone.

        A prompt that is too long loses its beginning (its oldest exchanges, of a conversation); a pair with an answer
        that does not fit is left out and counted. Raises DataError: rows at fault, or no row left.
        """
        if not supervised:
            return self._asked(rows, tokenizer, max_length)
        pairs, cut, notes = self._tokens(rows, self._pairs(rows), tokenizer, max_length)
        examples: list[dict[str, Any]] = [
            {
                "input_ids": [*prompt, *chosen, *rejected],
                "labels": [IGNORED] * len(prompt) + [*chosen, *rejected],
                "branches": [len(prompt), len(chosen), len(rejected)],
                "row": row,
            }
            for row, prompt, (chosen, rejected) in pairs
        ]
        return Encoded(examples, [len(one["input_ids"]) for one in examples], [1] * len(examples), cut, notes)

    @classmethod
    def made_up(cls, labels: int = 2, token: int = 1) -> tuple[Task, dict[str, Any]]:
        example = {"input_ids": [token] * 3, "labels": [IGNORED, token, token], "branches": [1, 1, 1], "row": 0}
        return cls(prompt="prompt"), example

    def size(self, example: dict[str, Any]) -> tuple[int, int, int]:
        prompt, *answers = example["branches"]
        return len(example["input_ids"]), 1, prompt + max(answers)

    def of_length(self, example: dict[str, Any], length: int) -> dict[str, Any]:
        """The prompt with its longer answer has ``length`` tokens, and the other answer its share of that."""
        prompt, *answers = example["branches"]
        room = min(max(1, round(length * max(answers) / (prompt + max(answers)))), length - 1)
        branches = [length - room, *(max(1, round(room * answer / max(answers))) for answer in answers)]
        ids = resized(example["input_ids"], sum(branches))
        labels = [IGNORED] * branches[0] + resized(example["labels"][prompt:], sum(branches[1:]))
        return {**example, "input_ids": ids, "labels": labels, "branches": branches}

    def parts(self, example: dict[str, Any]) -> list[ExamplePart]:
        if "branches" not in example:
            return super().parts(example)
        prompt, chosen, _ = example["branches"]
        ends = (0, prompt, prompt + chosen, None)
        return [
            (name, example["input_ids"][start:stop], example["labels"][start:stop])
            for name, (start, stop) in zip(("prompt", "chosen", "rejected"), pairwise(ends), strict=True)
        ]

    def last_tokens(self, example: dict[str, Any]) -> list[int]:
        prompt, chosen, _ = example["branches"]
        return [example["labels"][place] for place in (prompt + chosen - 1, -1)]

    def answer_lengths(self, example: dict[str, Any]) -> tuple[int, int]:
        _, chosen, rejected = example["branches"]
        return chosen, rejected

    def asked(self, example: dict[str, Any]) -> list[tuple[dict[str, Any], list[int]]]:
        """The prompt, and the chosen answer."""
        prompt, chosen, _ = example["branches"]
        ids = example["input_ids"]
        return [({"input_ids": ids[:prompt], "row": example["row"]}, ids[prompt : prompt + chosen])]

    def collate(
        self, examples: list[dict[str, Any]], pad_token_id: int, padding_side: str = "right"
    ) -> dict[str, Tensor]:
        """Of each pair two rows of ``input_ids``, ``attention_mask`` and ``labels``: (2·b, t) long."""
        rows = [row for example in examples for row in _unfolded(example)]
        return super().collate(rows, pad_token_id, padding_side)

    def token_losses(self, outputs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        return NextTokenTask.row_losses(self, outputs, batch)

    def row_losses(
        self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0, reference: Any = None
    ) -> tuple[Tensor, Tensor]:
        """The loss of each pair (b,) in fp32, and ones (b,)."""
        own, counts, base = self._sums(outputs, batch, reference)
        losses = self.pair_losses(own, counts, base, label_smoothing)
        return losses, torch.ones_like(losses)

    def packed_loss(
        self, losses: Tensor, examples: list[dict[str, Any]], reference: Tensor | None, label_smoothing: float
    ) -> Tensor:
        lengths = [length for example in examples for length in example["branches"][1:]]
        own = torch.stack([part.sum() for part in losses.split(lengths)]).view(-1, 2)
        base = None
        if reference is not None:
            base = torch.stack([part.sum() for part in reference.split(lengths)]).view(-1, 2)
        counts = torch.tensor(lengths, dtype=own.dtype, device=own.device).view(-1, 2)
        return self.pair_losses(own, counts, base, label_smoothing).sum()

    def pair_losses(self, own: Tensor, counts: Tensor, base: Tensor | None, label_smoothing: float = 0.0) -> Tensor:
        """(b,) from cross-entropy sums ``own`` and ``base`` (b, 2) of chosen and rejected, of ``counts`` tokens."""
        h, eps, loss = self._h(own, counts, base), label_smoothing, self.settings.loss
        self.check_smoothing(eps)
        if loss == "sigmoid":
            out = -(1 - eps) * F.logsigmoid(h) - eps * F.logsigmoid(-h)
        elif loss == "robust":
            out = (-(1 - eps) * F.logsigmoid(h) + eps * F.logsigmoid(-h)) / (1 - 2 * eps)
        elif loss == "hinge":
            out = torch.relu(1 - h)
        elif loss == "ipo":
            out = (h / self._beta - 1 / (2 * self._beta)).square()
        elif loss == "orpo":
            out = own[:, 0] / counts[:, 0] - self._beta * F.logsigmoid(h)
        else:
            out = -F.logsigmoid(h - (GAMMA if self.settings.gamma is None else self.settings.gamma))
        sft = self.settings.sft
        return out + sft * own[:, 0] / counts[:, 0] if sft else out

    def _h(self, own: Tensor, counts: Tensor, base: Tensor | None) -> Tensor:
        """(b,) what is to grow: see the class."""
        rewards = self._rewards(own, counts, base)
        return rewards[:, 0] - rewards[:, 1]

    def _rewards(self, own: Tensor, counts: Tensor, base: Tensor | None) -> Tensor:
        """(b, 2) of chosen and rejected, whose difference is h: β·log(π/π_ref), or what stands for it."""
        if base is not None:
            ratio = base - own
            return self._beta * (ratio / counts if self.settings.loss == "ipo" else ratio)
        mean = -own / counts  # log p
        if self.settings.loss == "orpo":
            return mean - _log1m_exp(mean)
        return self._beta * mean

    @property
    def _beta(self) -> float:
        return self.settings.beta or BETA[self.settings.loss]

    def _sums(self, outputs: Any, batch: dict[str, Tensor], reference: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        own, counts = self.token_losses(outputs, batch)
        base = None if not self.reference else self.token_losses(reference, batch)[0].view(-1, 2)
        return own.view(-1, 2), counts.view(-1, 2), base

    @torch.no_grad()
    def predictions(self, outputs: Any, batch: dict[str, Tensor], reference: Any = None) -> list[dict[str, Any]]:
        """Rewards of both answers, and their cross-entropy per token, for each pair."""
        own, counts, base = self._sums(outputs, batch, reference)
        rewards, means = self._rewards(own, counts, base).tolist(), (own / counts).tolist()
        return [
            {"reward_chosen": reward[0], "reward_rejected": reward[1], "margin": reward[0] - reward[1],
             "loss_chosen": mean[0], "loss_rejected": mean[1]}
            for reward, mean in zip(rewards, means, strict=True)
        ]  # fmt: skip

    def targets(self, examples: Sequence[dict[str, Any]]) -> list[Any]:
        return [True] * len(examples)

    def figures(self, predictions: Sequence[Any], targets: Sequence[Any], groups: Groups = None) -> Figures:
        ahead = [row["loss_rejected"] - row["loss_chosen"] for row in predictions]
        return {
            **pair_figures(predictions, MEANS, groups),
            "likelihood_accuracy": (PREFERENCE_ACCURACY, preference_rows(ahead, groups=groups)),
        }

    def metrics(self, predictions: list[Any], targets: list[Any], loss_sum: float, count: int) -> dict[str, Any]:
        """Loss; share of pairs whose chosen answer has the higher reward, ties counting half; mean margin and rewards;
        share whose chosen answer is the more likely one per token; cross-entropy per token of both."""
        keys = (*list(self.measures)[1:], "loss_chosen", "loss_rejected")
        found = pair_values(lambda: self.figures(predictions, targets), keys)
        return {"loss": loss_sum / count, **{key: found[key] for key in keys}}


def _unfolded(example: dict[str, Any]) -> list[dict[str, Any]]:
    """The prompt with each of its answers; an example without answers as it is."""
    if "branches" not in example:
        return [example]
    prompt, chosen, _ = example["branches"]
    ids, labels = example["input_ids"], example["labels"]
    first, second = prompt + chosen, slice(prompt + chosen, None)
    return [
        {"input_ids": ids[:first], "labels": labels[:first]},
        {"input_ids": ids[:prompt] + ids[second], "labels": labels[:prompt] + labels[second]},
    ]


def _log1m_exp(x: Tensor) -> Tensor:
    """log(1 - eˣ) of x < 0, without cancellation (Mächler 2012, "Accurately computing log(1 - exp(-|a|))", eq. 7)."""
    x = x.clamp(max=-1e-7)
    near: Tensor = torch.log(-torch.expm1(x))
    return torch.where(x > -math.log(2), near, torch.log1p(-torch.exp(x)))

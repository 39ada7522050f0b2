"""Reward modelling: a number for a prompt with its answer, higher for the answer that people chose.

Shapes: b pair, t token; a padded batch has 2·b rows, chosen and rejected of each pair in turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from lora.data.conversations import Message
from lora.data.problems import Problems
from lora.data.rows import named
from lora.errors import DataError
from lora.tasks.base import Encoded, ExamplePart, Input, Row, Task, resized
from lora.tasks.figures import Figures, Groups
from lora.tasks.pairs import PairTask, pair_figures, pair_values
from lora.tasks.sequence import REMEDY, padded_ids
from lora.tasks.templated import MessagesInput, TemplateOptions, named_error, to_messages


class RewardOptions(TemplateOptions):
    """Settings of the task reward."""

    centre: float = Field(
        default=0.0, ge=0, description="pulls the sum of both rewards to zero, which comparisons leave open (0.01)"
    )


class RewardTask(PairTask):
    """A reward model (Ouyang et al. 2022, arXiv:2203.02155, eq. 1): -log σ(r(c) - r(r)) of the chosen and the rejected
    answer; ``centre`` adds that many times (r(c) + r(r))² (Eisenstein et al. 2023, arXiv:2312.09244, eq. 2).

    Arguments: as of `PairTask`; and
        completion: column of the answer that is to be scored, in prediction.
    """

    name = "reward"
    roles = (*PairTask.roles, "completion")
    optional = ("completion",)
    options = RewardOptions
    settings: RewardOptions
    sign = None  # the same columns are more often meant for preference training
    auto_class = "AutoModelForSequenceClassification"
    best_metric = "loss"
    measures = {"loss": False, "accuracy": True, "margin": True}
    rows = 2

    def __init__(self, *args: Any, completion: str = "completion", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.completion = completion

    def state(self) -> dict[str, Any]:
        return {**super().state(), "completion": self.completion}

    def inputs(self) -> list[Input]:
        """What is scored: a prompt and an answer to it, or a whole conversation."""
        # Rows to be learned have none.
        answer = [MessagesInput(self.completion, optional=True, role="assistant")] if self.prompt else []
        return [*super().inputs(), *answer]

    def model_options(self) -> dict[str, Any]:
        return {"num_labels": 1}

    def encode(self, rows: list[Row], tokenizer: Any, max_length: int, supervised: bool = True) -> Encoded:
        """``chosen`` and ``rejected``: prompt and answer as token ids, as `PairTask` makes and cuts them. Without
        ``supervised``: ``input_ids`` of the prompt with the one answer that is to be scored."""
        between, end = _pair_frame(tokenizer)
        # The tokenizer's end token, which stands behind answers otherwise, may be the same as an encoder's last one.
        twice = bool(end) and end[0] == tokenizer.eos_token_id
        asked = self._pairs(rows) if supervised else self._scored(rows)
        pairs, cut, notes = self._tokens(
            rows, asked, tokenizer, max_length - len(between) - len(end) + (twice and not self.chat)
        )
        if not supervised and len(pairs) < len(rows):
            raise DataError(f"{named(rows)}{notes[-1]} A score needs the whole answer; raise max_length")
        examples: list[dict[str, Any]] = []
        for row, prompt, answers in pairs:
            bare = [answer[:-1] if twice and answer[-1:] == end[:1] else answer for answer in answers]
            whole = [[*prompt, *between, *answer, *end] for answer in bare]
            scored = {"chosen": whole[0], "rejected": whole[1]} if supervised else {"input_ids": whole[0]}
            examples.append({**scored, "row": row})
        lengths = [max(len(ids) for key, ids in example.items() if key != "row") for example in examples]
        return Encoded(examples, lengths, [int(supervised)] * len(examples), cut, notes)

    @classmethod
    def made_up(cls, labels: int = 2, token: int = 1) -> tuple[Task, dict[str, Any]]:
        return cls(prompt="prompt"), {"chosen": [token, token], "rejected": [token, token], "row": 0}

    def size(self, example: dict[str, Any]) -> tuple[int, int, int]:
        tokens = max(len(example["chosen"]), len(example["rejected"]))
        return tokens, 1, tokens

    def of_length(self, example: dict[str, Any], length: int) -> dict[str, Any]:
        """The longer of prompt and answer has ``length`` tokens, and the other its share of that."""
        longest, _, _ = self.size(example)
        made = {key: max(2, round(len(example[key]) * length / longest)) for key in ("chosen", "rejected")}
        return {**example, **{key: resized(example[key], tokens) for key, tokens in made.items()}}

    def parts(self, example: dict[str, Any]) -> list[ExamplePart]:
        """What both answers share before them is there once."""
        if "chosen" not in example:
            return super().parts(example)
        chosen, rejected = example["chosen"], example["rejected"]
        shared = next((i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), len(chosen))
        parts = {"prompt": chosen[:shared], "chosen": chosen[shared:], "rejected": rejected[shared:]}
        return [(name, ids, None) for name, ids in parts.items()]

    def answer_lengths(self, example: dict[str, Any]) -> tuple[int, int]:
        return len(example["chosen"]), len(example["rejected"])

    def _scored(self, rows: list[Row]) -> list[tuple[list[Message], list[Message]]]:
        """What is to be scored: messages, and the one answer to them. Raises DataError."""
        problems, out = Problems(rows), []
        for index, row in enumerate(rows):
            try:
                if self.prompt is None:
                    *messages, answer = named_error(self.chosen, to_messages, row)
                    messages = self._with_system(messages) if messages else []
                else:
                    messages = self._prompt(row) or []
                    said = named_error(self.completion, lambda value: to_messages(value, "assistant"), row)
                    if len(said) != 1:
                        raise ValueError(f"{self.completion} holds {len(said)} messages where one answer is needed")
                    (answer,) = said
                if not messages or answer["role"] != "assistant":
                    raise ValueError("an answer of the assistant's is needed, and something that it answers")
                out.append((messages, [answer]))
            except ValueError as error:
                problems.add(str(error), index)
        problems.raise_if_any(REMEDY)
        return out

    def collate(
        self, examples: list[dict[str, Any]], pad_token_id: int, padding_side: str = "right"
    ) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask`` (2·b, t) long, chosen and rejected in turn, and ``labels`` (b,); of what
        is scored (b, t), without labels."""
        pairs = "chosen" in examples[0]
        rows = [ids for one in examples for ids in ((one["chosen"], one["rejected"]) if pairs else (one["input_ids"],))]
        batch = padded_ids(rows, pad_token_id, padding_side)
        return {**batch, "labels": torch.zeros(len(examples), dtype=torch.long)} if pairs else batch

    def row_losses(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """The loss of each pair (b,) in fp32, and ones (b,). With smoothing ε, -(1-ε)·log σ(d) - ε·log σ(-d)."""
        rewards = outputs.logits[:, 0].float().view(-1, 2)
        difference = rewards[:, 0] - rewards[:, 1]
        losses = -(1 - label_smoothing) * F.logsigmoid(difference) - label_smoothing * F.logsigmoid(-difference)
        if self.settings.centre:
            losses = losses + self.settings.centre * rewards.sum(dim=1).square()
        return losses, torch.ones_like(losses)

    @torch.no_grad()
    def predictions(self, outputs: Any, batch: dict[str, Tensor]) -> list[Any]:
        """``{"reward"}`` of each row that is scored; of pairs ``{"reward_chosen", "reward_rejected", "margin"}``."""
        rewards = outputs.logits[:, 0].float()
        if "labels" not in batch:
            return [{"reward": reward} for reward in rewards.tolist()]
        return [
            {"reward_chosen": chosen, "reward_rejected": rejected, "margin": chosen - rejected}
            for chosen, rejected in rewards.view(-1, 2).tolist()
        ]

    def targets(self, examples: Sequence[dict[str, Any]]) -> list[Any]:
        return [True] * len(examples)

    def figures(self, predictions: Sequence[Any], targets: Sequence[Any], groups: Groups = None) -> Figures:
        return pair_figures(predictions, {}, groups)

    def metrics(self, predictions: list[Any], targets: list[Any], loss_sum: float, count: int) -> dict[str, Any]:
        """Loss; share of pairs whose chosen answer has the higher reward, ties counting half; mean margin."""
        found = pair_values(lambda: self.figures(predictions, targets), list(self.measures)[1:])
        return {"loss": loss_sum / count, **found}


def _pair_frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What an encoder's tokenizer puts between two texts and behind them (one ``[SEP]`` each, in RoBERTa two between);
    nothing for one without a separating token, a decoder's."""
    if tokenizer.sep_token_id is None:
        return [], []
    ids, specials = tokenizer("a", "a", verbose=False)["input_ids"], set(tokenizer.all_special_ids)
    texts = [place for place, token in enumerate(ids) if token not in specials] or [0]
    gap = next((i for i in range(texts[0], texts[-1]) if ids[i] in specials), None)
    if gap is None:  # it puts no pairs together itself
        return [tokenizer.sep_token_id], [tokenizer.sep_token_id]
    second = next(place for place in texts if place > gap)
    return list(ids[gap:second]), list(ids[texts[-1] + 1 :])

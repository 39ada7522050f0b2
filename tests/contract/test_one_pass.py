"""Evaluated in one pass or each alone: the same predictions and losses, to the last bit."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from lora.core.routing import BASE
from lora.model.lora import LoRA
from lora.tasks import Encoded
from lora.tasks.causal import CausalTask
from lora.tasks.classification import ClassificationTask
from lora.tasks.inference import infer
from lora.tasks.preference import PreferenceTask
from tiny_models import randomise, tiny

NAMES = ["a", "b", "c", "d", "e"]
ROWS = 43  # more than a batch, and no multiple of anything


def with_adapters(arch: str) -> LoRA:
    model = LoRA(tiny(arch), name=None)
    for place, name in enumerate(NAMES):
        model.add_adapter(name, rank=2 + place, alpha=16, seed=place)
        randomise(model.adapter_parameters(name).values(), 7 + place)
    return model.eval()


def encoded(kind: str) -> tuple[Any, Encoded]:
    draw = random.Random(5)
    ids = [[draw.randrange(4, 30) for _ in range(draw.randint(3, 17))] for _ in range(ROWS)]
    if kind == "classification":
        task: Any = ClassificationTask(["x", "y", "z"])
        examples: list[dict[str, Any]] = [{"input_ids": own, "label": draw.choice("xyz")} for own in ids]
    elif kind == "causal":
        task = CausalTask(text="text")
        examples = [{"input_ids": own, "labels": [-100, *own[1:]], "row": row} for row, own in enumerate(ids)]
    else:
        task = PreferenceTask(prompt="p", chosen="c", rejected="r")
        examples = []
        for row, own in enumerate(ids):
            prompt = own[:2]
            answers = [own[2:], [draw.randrange(4, 30) for _ in range(4)]]
            examples.append(
                {
                    "input_ids": prompt + answers[0] + answers[1],
                    "labels": [-100, -100, *answers[0], *answers[1]],
                    "branches": [2, len(answers[0]), len(answers[1])],
                    "row": row,
                }
            )
    lengths = [len(one["input_ids"]) for one in examples]
    return task, Encoded(examples, lengths, [1] * ROWS)


@pytest.mark.parametrize(("arch", "kind"), [("bert", "classification"), ("llama", "causal"), ("llama", "preference")])
def test_one_pass_gives_the_bits_of_each_alone(arch: str, kind: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = with_adapters(arch)
    task, rows = encoded(kind)
    options: dict[str, Any] = {"pad_token_id": 0, "batch_size": 16}
    try:
        alone = {name: infer(model, task, rows, [name], **options)[name] for name in [BASE, *NAMES]}
        for count in (1, 2, 5):
            names = [BASE, *NAMES[-count:]]
            together = infer(model, task, rows, names, **options)
            assert list(together) == names
            for name in names:
                assert together[name] == alone[name], f"{name} of {count}"  # all fields, every float
    finally:
        torch.set_num_threads(threads)
    assert alone["a"].losses != alone["b"].losses != alone[BASE].losses
    assert all(outcome.count and outcome.loss_sum for outcome in alone.values())

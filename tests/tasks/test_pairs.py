"""Preference and reward tasks: pairs to tokens, losses by their formulas, packed and padded alike."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from chat_tokenizer import byte_tokenizer
from lora.data.rendering import IGNORED
from lora.errors import DataError
from lora.tasks import TASKS, from_state

TOKENIZER = byte_tokenizer()
TURNS = [{"role": "user", "content": "Hi"}]
ROWS = [
    {"prompt": "Say it:", "chosen": " good", "rejected": " bad!"},
    {"prompt": "And this:", "chosen": " fine", "rejected": " no"},
]
COLUMNS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
Preference, Reward = TASKS["preference"], TASKS["reward"]


def text(ids: list[int]) -> str:
    return TOKENIZER.decode(ids)


def parts(example: dict[str, Any]) -> list[str]:
    prompt, chosen, _ = example["branches"]
    ids = example["input_ids"]
    return [text(ids[:prompt]), text(ids[prompt : prompt + chosen]), text(ids[prompt + chosen :])]


def test_prompt_once_and_both_answers_behind_it() -> None:
    task = Preference.from_rows(ROWS, COLUMNS)
    encoded = task.encode(ROWS, TOKENIZER, 100)
    assert parts(encoded.examples[0]) == ["Say it:", " good</s>", " bad!</s>"]
    assert encoded.supervised == [1, 1] and encoded.lengths[0] == len(encoded.examples[0]["input_ids"])
    batch = task.collate(encoded.examples, 0)
    rows = [text([i for i in row if i]) for row in batch["input_ids"].tolist()]
    assert rows == ["Say it: good</s>", "Say it: bad!</s>", "And this: fine</s>", "And this: no</s>"]
    learned = [text([i for i in row if i != IGNORED]) for row in batch["labels"].tolist()]
    assert learned == [" good</s>", " bad!</s>", " fine</s>", " no</s>"]
    asked = task.encode(ROWS, TOKENIZER, 100, supervised=False)
    assert [text(example["input_ids"]) for example in asked.examples] == ["Say it:", "And this:"]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TURNS, "chosen": "Hello", "rejected": "What?"},
        {"prompt": TURNS, "chosen": [{"role": "assistant", "content": "Hello"}], "rejected": "What?"},
        {"chosen": [*TURNS, {"role": "assistant", "content": "Hello"}],
         "rejected": [*TURNS, {"role": "assistant", "content": "What?"}]},
        {"prompt": "Hi", "chosen": [*TURNS, {"role": "assistant", "content": "Hello"}],
         "rejected": [*TURNS, {"role": "assistant", "content": "What?"}]},
    ],
)  # fmt: skip
def test_conversations_go_through_the_template(row: dict[str, Any]) -> None:
    columns = {role: name for role, name in COLUMNS.items() if name in row}
    task = Preference.from_rows([row], columns)
    task = from_state({**task.state(), "template": "chatml"}).with_tokenizer(TOKENIZER)
    (example,) = task.encode([row], TOKENIZER, 1000).examples
    assert parts(example) == [
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Hello<|im_end|>", "What?<|im_end|>",
    ]  # fmt: skip
    assert task.ends() == [TOKENIZER.convert_tokens_to_ids("<|im_end|>")]
    assert from_state(json.loads(json.dumps(task.state()))).state() == task.state()


@pytest.mark.parametrize(
    "row, message",
    [
        ({**ROWS[0], "chosen": None}, "chosen is missing: row 1"),
        ({**ROWS[0], "chosen": " bad!"}, "chosen and rejected are the same: nothing is preferred"),
        ({**ROWS[0], "chosen": [*TURNS, *TURNS]}, "chosen holds 2 messages where one answer is needed"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "prompt is missing"),
        ({"prompt": TURNS, "chosen": TURNS, "rejected": "b"}, "chosen holds 1 message where one answer"),
    ],
)
def test_rows_at_fault(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Preference.from_rows([row], COLUMNS)


def test_answers_are_never_cut_and_prompts_are_from_the_left() -> None:
    long = {"prompt": "x" * 50 + "Say:", "chosen": " a", "rejected": " b"}
    task = Preference.from_rows(ROWS, COLUMNS)
    encoded = task.encode([long, {"prompt": "p", "chosen": "y" * 40, "rejected": "z"}], TOKENIZER, 12)
    assert parts(encoded.examples[0]) == ["xxxxxSay:", " a</s>", " b</s>"] and len(encoded) == 1
    assert "1 of 2 rows was longer than 12 tokens with an answer alone" in encoded.notes[0]
    with pytest.raises(DataError, match="None is left; raise data.max_length"):
        task.encode([{"prompt": "p", "chosen": "y" * 40, "rejected": "z"}], TOKENIZER, 12)


def test_a_shortened_prompt_that_fills_the_room_to_the_last_token_is_kept() -> None:
    turns = [{"role": role, "content": "x" * 20} for role in ("user", "assistant")] + TURNS
    row = {"prompt": turns, "chosen": "Hello", "rejected": "What?"}
    task = from_state({**Preference.from_rows([row], COLUMNS).state(), "template": "chatml"}).with_tokenizer(TOKENIZER)
    (short,) = task.encode([{**row, "prompt": TURNS}], TOKENIZER, 1000).examples
    room = short["branches"][0] + max(short["branches"][1:])
    encoded = task.encode([row], TOKENIZER, room)
    assert encoded.examples == [short] and "lost the beginning" in encoded.notes[0]
    with pytest.raises(DataError, match="None is left"):
        task.encode([row], TOKENIZER, room - 1)


def test_what_a_template_refuses_of_a_prompt_is_said_of_the_messages() -> None:
    row = {"prompt": TURNS, "chosen": "Hello", "rejected": "What?"}
    refusing = "{% for m in messages %}{% if m.content == 'No' %}{{ raise_exception('no') }}{% endif %}{{ m.role + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}assistant{% endif %}"  # noqa: E501
    task = from_state({**Preference.from_rows([row], COLUMNS).state(), "template": refusing}).with_tokenizer(TOKENIZER)
    with pytest.raises(DataError, match="its messages are refused by the chat template: no: row 1"):
        task.encode([{"prompt": "No"}], TOKENIZER, 1000, supervised=False)


OWN, BASE = torch.tensor([[3.0, 5.0], [4.0, 2.5]]), torch.tensor([[3.5, 4.0], [4.0, 4.0]])
COUNTS = torch.tensor([[2.0, 4.0], [3.0, 5.0]])


def by_formula(loss: str, beta: float, eps: float) -> list[float]:
    """Pair by pair, in plain floats."""
    out = []
    for own, base, counts in zip(OWN.tolist(), BASE.tolist(), COUNTS.tolist(), strict=True):
        ratio = [b - o for o, b in zip(own, base, strict=True)]
        h = beta * (ratio[0] - ratio[1])
        sig = 1 / (1 + math.exp(-h))
        p = [math.exp(-o / n) for o, n in zip(own, counts, strict=True)]
        odds = math.log(p[0] / (1 - p[0])) - math.log(p[1] / (1 - p[1]))
        out.append({
            "sigmoid": -(1 - eps) * math.log(sig) - eps * math.log(1 - sig),
            "robust": (-(1 - eps) * math.log(sig) + eps * math.log(1 - sig)) / (1 - 2 * eps),
            "hinge": max(0.0, 1 - h),
            "ipo": (ratio[0] / counts[0] - ratio[1] / counts[1] - 1 / (2 * beta)) ** 2,
            "orpo": -math.log(p[0]) - beta * math.log(1 / (1 + math.exp(-odds))),
            "simpo": -math.log(1 / (1 + math.exp(-(beta * math.log(p[0]) - beta * math.log(p[1]) - 0.3)))),
        }[loss])  # fmt: skip
    return out


@pytest.mark.parametrize("loss", ["sigmoid", "robust", "hinge", "ipo", "orpo", "simpo"])
@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_losses_by_their_formulas(loss: str, eps: float) -> None:
    task = Preference(prompt="prompt", loss=loss, beta=0.5, gamma=0.3)
    found = task.pair_losses(OWN, COUNTS, BASE if task.reference else None, eps)
    torch.testing.assert_close(found, torch.tensor(by_formula(loss, 0.5, eps)))
    with_sft = Preference(prompt="prompt", loss=loss, beta=0.5, gamma=0.3, sft=2.0)
    more = with_sft.pair_losses(OWN, COUNTS, BASE if task.reference else None, eps) - found
    torch.testing.assert_close(more, 2 * OWN[:, 0] / COUNTS[:, 0])


def test_the_start_of_dpo_is_log_2_and_metrics_of_ties() -> None:
    task = Preference.from_rows(ROWS, COLUMNS)
    batch = task.collate(task.encode(ROWS, TOKENIZER, 100).examples, 0)
    logits = torch.randn(4, batch["input_ids"].shape[1], len(TOKENIZER), generator=torch.Generator().manual_seed(0))
    same = SimpleNamespace(logits=logits)
    losses, counts = task.row_losses(same, batch, reference=same)
    torch.testing.assert_close(losses, torch.full((2,), math.log(2)))
    metrics = task.metrics(task.predictions(same, batch, reference=same), [True] * 2, float(losses.sum()), 2)
    assert metrics["accuracy"] == 0.5 and metrics["margin"] == 0.0 and counts.tolist() == [1, 1]


def test_rewards() -> None:
    task = Reward.from_rows(ROWS, COLUMNS)
    encoded = task.encode(ROWS, TOKENIZER, 100)
    assert [text(encoded.examples[0][key]) for key in ("chosen", "rejected")] == [
        "Say it: good</s>",
        "Say it: bad!</s>",
    ]
    batch = task.collate(encoded.examples, 0)
    assert batch["input_ids"].shape[0] == 4 and task.model_options() == {"num_labels": 1}
    outputs = SimpleNamespace(logits=torch.tensor([[2.0], [1.0], [0.5], [3.0]]))
    losses, _ = task.row_losses(outputs, batch)
    torch.testing.assert_close(losses, -F.logsigmoid(torch.tensor([1.0, -2.5])))
    metrics = task.metrics(task.predictions(outputs, batch), [True] * 2, float(losses.sum()), 2)
    assert metrics["accuracy"] == 0.5 and metrics["margin"] == -0.75
    centred = from_state({**task.state(), "centre": 0.1}).row_losses(outputs, batch)[0] - losses
    torch.testing.assert_close(centred, 0.1 * torch.tensor([9.0, 12.25]))
    scored = task.encode([{"prompt": "Say it:", "completion": " good"}], TOKENIZER, 100, supervised=False)
    assert text(scored.examples[0]["input_ids"]) == "Say it: good</s>"
    batch = task.collate(scored.examples, 0)
    assert task.predictions(SimpleNamespace(logits=torch.tensor([[7.0]])), batch) == [{"reward": 7.0}]
    with pytest.raises(DataError, match="A score needs the whole answer"):
        task.encode([{"prompt": "p", "completion": "long" * 9}, ROWS[0] | {"completion": "a"}], TOKENIZER, 20, False)

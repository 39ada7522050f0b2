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
from lora.config import DataConfig
from lora.data.rendering import IGNORED
from lora.data.sources import Part
from lora.errors import ConfigError, DataError
from lora.tasks import TASKS, from_state
from lora.tasks.agree import agree
from lora.tasks.inputs import task_for

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


def sums_by_hand(logits: torch.Tensor, batch: dict[str, torch.Tensor]) -> tuple[list[list[float]], list[list[int]]]:
    """Of each pair log π of chosen and rejected, and their numbers of tokens: token by token, in float64."""
    sums, counts = [], []
    for row, labels in zip(logits.double(), batch["labels"].tolist(), strict=True):
        learned = [place for place, label in enumerate(labels) if label != IGNORED]
        sums.append(
            math.fsum(
                float(row[place - 1, labels[place]]) - math.log(math.fsum(row[place - 1].exp().tolist()))
                for place in learned
            )
        )
        counts.append(len(learned))
    return [list(pair) for pair in zip(sums[::2], sums[1::2], strict=True)], [
        list(pair) for pair in zip(counts[::2], counts[1::2], strict=True)
    ]


def by_formula(loss: str, own: list[float], base: list[float], counts: list[int], beta: float, eps: float) -> float:
    """The papers' own equations, with probabilities and odds as they stand there."""

    def log_sigmoid(x: float) -> float:
        return -math.log1p(math.exp(-x))

    h = beta * ((own[0] - base[0]) - (own[1] - base[1]))
    mean = [sum_ / count for sum_, count in zip(own, counts, strict=True)]
    odds = [math.exp(p) / (1 - math.exp(p)) for p in mean]
    return {
        "sigmoid": lambda: -(1 - eps) * log_sigmoid(h) - eps * log_sigmoid(-h),
        "robust": lambda: (-(1 - eps) * log_sigmoid(h) + eps * log_sigmoid(-h)) / (1 - 2 * eps),
        "hinge": lambda: max(0.0, 1 - h),
        "ipo": lambda: ((mean[0] - base[0] / counts[0]) - (mean[1] - base[1] / counts[1]) - 1 / (2 * beta)) ** 2,
        "orpo": lambda: -mean[0] - beta * log_sigmoid(math.log(odds[0] / odds[1])),
        "simpo": lambda: -log_sigmoid(beta * mean[0] - beta * mean[1] - 0.3),
    }[loss]()


@pytest.mark.parametrize(
    "loss, eps",
    [("sigmoid", 0.0), ("sigmoid", 0.2), ("sigmoid", 0.7), ("robust", 0.0), ("robust", 0.2), ("robust", 0.49),
     ("hinge", 0.0), ("ipo", 0.0), ("orpo", 0.0), ("simpo", 0.0)],
)  # fmt: skip
def test_losses_by_their_formulas(loss: str, eps: float) -> None:
    """From logits on: which tokens count, what is divided by their number, and the formula."""
    rows = [*ROWS, {"prompt": "Long:", "chosen": " a very good answer", "rejected": " x"}]
    options: dict[str, Any] = {"loss": loss, "beta": 0.5, **({"gamma": 0.3} if loss == "simpo" else {})}
    task = Preference(prompt="prompt", **options)
    batch = task.collate(task.encode(rows, TOKENIZER, 100).examples, 0)
    draw = torch.Generator().manual_seed(3)
    own, base = (torch.randn(6, batch["input_ids"].shape[1], len(TOKENIZER), generator=draw) for _ in range(2))
    compared = {"reference": SimpleNamespace(logits=base)} if task.reference else {}
    assert task.reference == (loss not in ("orpo", "simpo"))
    found, _ = task.row_losses(SimpleNamespace(logits=own), batch, eps, **compared)
    (mine, counts), (theirs, _) = sums_by_hand(own, batch), sums_by_hand(base, batch)
    wanted = [by_formula(loss, *its, 0.5, eps) for its in zip(mine, theirs, counts, strict=True)]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=2e-5, atol=2e-5)
    with_sft = Preference(prompt="prompt", **options, sft=2.0)
    more = with_sft.row_losses(SimpleNamespace(logits=own), batch, eps, **compared)[0] - found
    wanted = [-2 * sums[0] / count[0] for sums, count in zip(mine, counts, strict=True)]
    torch.testing.assert_close(more, torch.tensor(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss, eps", [("robust", 0.5), ("robust", 0.9), ("hinge", 0.1), ("ipo", 0.1), ("simpo", 0.1)])
def test_smoothing_that_a_loss_has_not(loss: str, eps: float) -> None:
    task = Preference(prompt="prompt", loss=loss)
    with pytest.raises(ConfigError, match="label_smoothing"):
        task.pair_losses(torch.ones(1, 2), torch.ones(1, 2), torch.ones(1, 2), eps)
    task.check_smoothing(0.0)


def test_options_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="gamma 0.5 is the margin of simpo, and the loss is ipo"):
        Preference(prompt="prompt", loss="ipo", gamma=0.5)
    with pytest.raises(ConfigError, match="betta: unknown setting; did you mean 'beta'"):
        Preference(prompt="prompt", betta=1)
    assert Preference(prompt="prompt", loss="ipo", gamma=1.0).settings.gamma == 1.0, "what older adapters state"


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


def bert_like(kind: str) -> Any:
    """Letters, with what BERT and RoBERTa put around one text and around two."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    first, last = {"bert": ("[CLS]", "[SEP]"), "roberta": ("<s>", "</s>"), "none": ("<s>", "</s>")}[kind]
    vocabulary = {token: place for place, token in enumerate(["<pad>", first, last, *"abcdefgh"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="a"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    between = "" if kind == "bert" else f"{last}:1 "
    if kind != "none":
        core.post_processor = processors.TemplateProcessing(
            single=f"{first} $A {last}", pair=f"{first} $A:0 {last}:0 {between}$B:1 {last}:1",
            special_tokens=[(first, 1), (last, 2)],
        )  # fmt: skip
    ends = {} if kind == "bert" else {"bos_token": first, "eos_token": last}
    return PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>", cls_token=first, sep_token=last, **ends)


@pytest.mark.parametrize(
    "kind, frame",
    [("bert", "[CLS]ab[SEP]{}[SEP]"), ("roberta", "<s>ab</s></s>{}</s>"), ("none", "ab</s>{}</s>")],
)
def test_rewards_of_encoders_see_prompt_and_answer_as_a_pair(kind: str, frame: str) -> None:
    known, row = bert_like(kind), {"prompt": "ab", "chosen": "cd", "rejected": "efg"}
    task = Reward.from_rows([row], COLUMNS)
    (example,) = task.encode([row], known, 30).examples
    for name in ("chosen", "rejected"):
        said = "".join(known.convert_ids_to_tokens(example[name]))
        assert said == frame.format(row[name])
        assert kind == "none" or example[name] == known(row["prompt"], row[name])["input_ids"]
    scored = task.encode([{"prompt": "ab", "completion": "cd"}], known, 30, supervised=False)
    assert scored.examples[0]["input_ids"] == example["chosen"]
    exact = len(example["rejected"])
    assert task.encode([row], known, exact).examples == [example] and not task.encode([row], known, exact).notes
    assert len(task.encode([row], known, exact - 1).examples[0]["rejected"]) == exact - 1


def test_the_scored_answer_is_a_column_that_rows_to_learn_may_lack() -> None:
    config = DataConfig.make({"task": "reward", "columns": {"completion": "answer"}})
    rows = [{**row, "answer": "x"} for row in ROWS]
    task, _ = task_for(rows, config)
    assert [given.column for given in task.inputs()] == ["prompt", "answer"]
    scored = task.encode([{"prompt": "Say it:", "answer": " good"}], TOKENIZER, 100, supervised=False)
    assert text(scored.examples[0]["input_ids"]) == "Say it: good</s>"
    task, _ = task_for(ROWS, DataConfig.make({"task": "reward"}))
    again, _ = agree([Part("data", list(ROWS))], DataConfig(), task)
    assert again.state() == task.state(), "an adapter goes on with rows that have nothing to be scored"
    with pytest.raises(DataError, match="completion is missing"):
        task.encode([{"prompt": "Say it:"}], TOKENIZER, 100, supervised=False)
    with pytest.raises(DataError, match="completion holds 2 messages where one answer is needed"):
        task.encode([{"prompt": "Say it:", "completion": [*TURNS, *TURNS]}], TOKENIZER, 100, supervised=False)
    with pytest.raises(DataError, match="completion is empty"):
        task.encode([{"prompt": "Say it:", "completion": " "}], TOKENIZER, 100, supervised=False)

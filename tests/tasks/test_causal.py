"""The causal task: what is learned and what is not, losses, metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from lora.errors import DataError
from lora.tasks import TASKS, from_state
from lora.tasks.recognise import recognise

SHARED = Path(__file__).parents[2].parent / "shared"
QUICK = settings(max_examples=60, deadline=None)
HABITS = [{}, {"begin": True}, {"begin": True, "end": True}, {"end": True}, {"eos": False, "pad_is_eos": False}]
TEXTS = st.text(alphabet="abc de.?\n", min_size=1, max_size=60).filter(str.strip)

Causal = TASKS["causal"]
PAIRED = Causal(prompt="prompt", completion="completion")
PLAIN = Causal(text="text")


def refusal(call: Any, *args: Any, **named: Any) -> str:
    with pytest.raises(DataError) as caught:
        call(*args, **named)
    return str(caught.value)


def bare(tokenizer: Any, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("habit", HABITS)
def test_prompt_and_completion_whatever_the_tokenizer_adds(
    habit: dict[str, bool], make_tokenizer: Callable[..., Any]
) -> None:
    tokenizer = make_tokenizer(**habit)
    encoded = PAIRED.encode([{"prompt": "Where is it?", "completion": " Here."}], tokenizer, 64)
    begin = [tokenizer.bos_token_id] if habit.get("begin") else []
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    prompt, answer = begin + bare(tokenizer, "Where is it?"), bare(tokenizer, " Here.") + end
    assert encoded.examples == [{"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer, "row": 0}]
    assert encoded.supervised == [len(answer)] and encoded.lengths == [len(prompt + answer)]
    assert bool(end) != any("no end token" in note for note in encoded.notes)
    asked = PAIRED.encode([{"prompt": "Where is it?"}], tokenizer, 64, supervised=False)
    assert asked.examples == [{"input_ids": prompt, "row": 0}] and asked.supervised == [0]


@pytest.mark.parametrize("habit", HABITS)
def test_plain_text_learns_all_but_the_first(habit: dict[str, bool], make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(**habit)
    example = PLAIN.encode([{"text": "The answer is"}], tokenizer, 64).examples[0]
    begin = [tokenizer.bos_token_id] if habit.get("begin") else []
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    assert example["input_ids"] == begin + bare(tokenizer, "The answer is") + end
    assert example["labels"] == [-100, *example["input_ids"][1:]]


def test_marks_already_in_the_text_are_not_doubled(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(begin=True)
    marked = PAIRED.encode([{"prompt": "<s>Where?", "completion": "Here.</s>"}], tokenizer, 64).examples
    assert marked == PAIRED.encode([{"prompt": "Where?", "completion": "Here."}], tokenizer, 64).examples
    assert (
        PLAIN.encode([{"text": "<s>x y</s>"}], tokenizer, 64).examples
        == PLAIN.encode([{"text": "x y"}], tokenizer, 64).examples
    )


@pytest.fixture(scope="session")
def by_habit(make_tokenizer: Callable[..., Any]) -> list[Any]:
    return [make_tokenizer(**habit) for habit in HABITS]


@QUICK
@given(
    pairs=st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5),
    habit=st.integers(0, len(HABITS) - 1),
    limit=st.integers(2, 40),
)
def test_an_answer_is_whole_or_absent(
    by_habit: list[Any], pairs: list[tuple[str, str]], habit: int, limit: int
) -> None:
    tokenizer = by_habit[habit]
    rows = [{"prompt": prompt, "completion": completion} for prompt, completion in pairs]
    try:
        encoded = PAIRED.encode(rows, tokenizer, limit)
    except DataError as error:
        assert "None is left; raise data.max_length" in str(error)
        return
    for example in encoded.examples:
        row = rows[example["row"]]
        end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
        answer = bare(tokenizer, row["completion"]) + end
        ids, labels = example["input_ids"], example["labels"]
        assert len(ids) == len(labels) <= limit
        assert labels == [-100] * (len(ids) - len(answer)) + answer and ids[-len(answer) :] == answer
        begin = [tokenizer.bos_token_id] if HABITS[habit].get("begin") else []
        kept = ids[len(begin) : len(ids) - len(answer)]
        assert ids[: len(begin)] == begin and kept and bare(tokenizer, row["prompt"])[-len(kept) :] == kept
    dropped = len(rows) - len(encoded)
    assert (dropped > 0) == any("left out: an answer is never cut" in note for note in encoded.notes)


@QUICK
@given(text=TEXTS, habit=st.integers(0, len(HABITS) - 1), limit=st.integers(2, 20))
def test_blocks_learn_every_token_once(by_habit: list[Any], text: str, habit: int, limit: int) -> None:
    tokenizer = by_habit[habit]
    whole = PLAIN.encode([{"text": text + " x"}], tokenizer, 10_000).examples[0]["input_ids"]
    encoded = PLAIN.encode([{"text": text + " x"}], tokenizer, limit)
    learned = [label for example in encoded.examples for label in example["labels"] if label != -100]
    assert learned == whole[1:] and max(encoded.lengths) <= limit
    assert all(example["labels"] == [-100, *example["input_ids"][1:]] for example in encoded.examples)
    assert encoded.truncated == int(len(whole) > limit)
    if encoded.truncated:
        assert f"1 of 1 row was longer than {limit} tokens and became {len(encoded)} examples." in encoded.notes


def test_long_prompts_and_long_completions(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(begin=True)
    rows = [
        {"prompt": "a b c d e f g h i j", "completion": "yes"},
        {"prompt": "why", "completion": "x y z " * 10},
        {"prompt": "a", "completion": "b"},
    ]
    encoded = PAIRED.encode(rows, tokenizer, 10)
    assert [example["row"] for example in encoded.examples] == [0, 2] and encoded.truncated == 2
    assert encoded.lengths[0] == 10 and tokenizer.decode(encoded.examples[0]["input_ids"]).startswith("<s>")
    assert encoded.notes == [
        "1 of 3 rows was longer than 10 tokens with the completion alone and was left out: an answer is never cut.",
        "1 of 3 rows was longer than 10 tokens and lost the beginning of their prompts.",
    ]
    assert "raise data.max_length" in refusal(PAIRED.encode, rows[1:2], tokenizer, 10)
    assert PAIRED.encode(rows[:1], tokenizer, 4, supervised=False).lengths == [4]


def test_alpaca_input_goes_below_the_instruction(make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer()
    task = Causal(prompt="instruction", completion="output", context="input")
    rows = [{"instruction": "Say", "input": "it", "output": "it"}] + [
        {"instruction": "Say", "input": blank, "output": "it"} for blank in ("", "  ", None)
    ]
    texts = [tokenizer.decode(example["input_ids"]) for example in task.encode(rows, tokenizer, 64).examples]
    assert texts == ["Say\n\nitit</s>"] + ["Sayit</s>"] * 3


def test_an_empty_prompt_is_allowed_and_its_first_token_not_learned_without_a_beginning(
    make_tokenizer: Callable[..., Any],
) -> None:
    row = {"prompt": "", "completion": "Here it is"}
    with_begin = PAIRED.encode([row], make_tokenizer(begin=True), 64)
    without = PAIRED.encode([row], make_tokenizer(), 64)
    assert with_begin.supervised[0] == without.supervised[0] + 1
    lonely = make_tokenizer(eos=False, pad_is_eos=False)
    assert "no token to learn" in refusal(PAIRED.encode, [{"prompt": "", "completion": "a"}], lonely, 64)
    assert "no token to learn" in refusal(PLAIN.encode, [{"text": "ok there"}, {"text": "a"}], lonely, 64)


def test_bad_rows_are_refused_together(make_tokenizer: Callable[..., Any]) -> None:
    columns = {"prompt": "prompt", "completion": "completion", "context": "input"}
    rows = [
        {"prompt": "a", "completion": "b"},
        {"prompt": None, "completion": " "},
        {"prompt": "a", "completion": 42},
        {"prompt": "a", "completion": "b", "input": 3},
    ]
    message = refusal(Causal.from_rows, rows, columns)
    for part in (
        "3 of 4 rows",
        "prompt is missing: row 2",
        "completion is empty: row 2",
        "of the type int, not text: row 3",
        "input is of the type int",
    ):
        assert part in message
    assert "no row has the column 'completion'" in refusal(Causal.from_rows, [{"prompt": "a"}], columns)
    assert "text is empty: row 1" in refusal(Causal.from_rows, [{"text": ""}], {"text": "text"})
    with pytest.raises(ValueError, match="either a text column or"):
        Causal(prompt="prompt")
    with pytest.raises(ValueError, match="at least 2"):
        PLAIN.encode([{"text": "a"}], make_tokenizer(), 1)


def test_state() -> None:
    task = Causal.from_rows([{"p": "a", "c": "b", "i": ""}], {"prompt": "p", "completion": "c", "context": "i"})
    assert task.state() == {"task": "causal", "text": None, "prompt": "p", "completion": "c", "context": "i"}
    assert from_state(json.loads(json.dumps(task.state()))).state() == task.state()
    assert task.model_options() == {} and (task.best_metric, task.greater_is_better) == ("loss", False)


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_with_the_end_token_hides_padding_only(side: str, make_tokenizer: Callable[..., Any]) -> None:
    tokenizer = make_tokenizer(begin=True, pad_is_eos=True)
    rows = [{"prompt": "Why", "completion": "so"}, {"prompt": "Where is my card", "completion": "on the way, please"}]
    encoded = PAIRED.encode(rows, tokenizer, 64)
    batch = PAIRED.collate(encoded.examples, tokenizer.pad_token_id, side)
    for place, example in enumerate(encoded.examples):
        mask = batch["attention_mask"][place].bool()
        assert batch["input_ids"][place][mask].tolist() == example["input_ids"]
        assert batch["labels"][place][mask].tolist() == example["labels"]
        assert (batch["labels"][place][~mask] == -100).all()
        assert (batch["labels"][place] == tokenizer.eos_token_id).sum() == 1
    losses, counts = PAIRED.row_losses(
        SimpleNamespace(logits=torch.randn(*batch["labels"].shape, 9 + len(tokenizer))), batch
    )
    assert counts.tolist() == encoded.supervised and losses.isfinite().all()


@QUICK
@given(
    b=st.integers(1, 4), t=st.integers(2, 9), v=st.integers(2, 12), smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), seed=st.integers(0, 99),
)  # fmt: skip
def test_losses_are_torchs(b: int, t: int, v: int, smoothing: float, dtype: torch.dtype, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    mine = (torch.randn(b, t, v, generator=random) * 4).to(dtype).requires_grad_()
    theirs = mine.detach().float().requires_grad_()
    labels = torch.where(torch.rand(b, t, generator=random) < 0.5, torch.randint(v, (b, t), generator=random), -100)
    losses, counts = PLAIN.row_losses(SimpleNamespace(logits=mine), {"labels": labels}, smoothing)
    expected = torch.nn.functional.cross_entropy(
        theirs[:, :-1].transpose(1, 2), labels[:, 1:], label_smoothing=smoothing, reduction="none", ignore_index=-100
    ).sum(1)
    torch.testing.assert_close(losses, expected)
    assert losses.dtype == torch.float32 and counts.tolist() == (labels[:, 1:] != -100).sum(1).tolist()
    losses.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad.to(dtype))  # to a last bit of the type: sums are in another order
    rows = PLAIN.predictions(SimpleNamespace(logits=mine), {"labels": labels})
    right = ((theirs[:, :-1].argmax(-1) == labels[:, 1:]) & (labels[:, 1:] != -100)).sum(1)
    assert [row["correct"] for row in rows] == right.tolist()
    assert [row["tokens"] for row in rows] == counts.tolist()


def test_metrics() -> None:
    rows = [{"loss": 2.0, "tokens": 3, "correct": 1}, {"loss": 4.0, "tokens": 1, "correct": 1}]
    metrics = PLAIN.metrics(rows, [3, 1], 6.0, 4)
    assert metrics == {"loss": 1.5, "perplexity": math.exp(1.5), "token_accuracy": 0.5, "tokens": 4}
    assert PLAIN.metrics(rows, [3, 1], 1e6, 4)["perplexity"] == math.inf
    assert math.isnan(PLAIN.metrics(rows, [3, 1], math.nan, 4)["perplexity"])


@pytest.mark.skipif(not (SHARED / "models" / "small3m").is_dir(), reason="the shared models are not on this machine")
def test_loss_agrees_with_a_real_models_own() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lora.config import DataConfig
    from lora.data.sources import load_rows

    folder = SHARED / "models" / "small3m"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for source in ("gsm8k#6", "medquad#6", "tinystories/test.txt#6"):
        rows = load_rows(str(SHARED / "data" / source))
        columns = recognise(rows, DataConfig())
        task = Causal.from_rows(rows, columns.roles)
        batch = task.collate(task.encode(rows, tokenizer, 512).examples, tokenizer.pad_token_id)
        with torch.no_grad():
            out = model(**batch)
        sums, counts = task.row_losses(out, batch)
        torch.testing.assert_close(sums.sum() / counts.sum(), out.loss)
        assert task.targets(task.encode(rows, tokenizer, 512).examples) == [int(count) for count in counts]

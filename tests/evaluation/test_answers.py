"""Written answers: which prompts, beside which references, what is counted, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_rows import LABELS, labelled, texts, with_adapters, word_tokenizer

from chat_base import CHAT, loaded_model, save_adapters, save_chat_base
from chat_tokenizer import byte_tokenizer
from lora.core.routing import BASE
from lora.errors import ConfigError
from lora.evaluation.answers import questions
from lora.evaluation.evaluate import Evaluation, evaluate
from lora.evaluation.generation import ends_of
from lora.evaluation.report import write_report
from lora.evaluation.text_metrics import signatures_of, text_figures
from lora.model.lora import LoRA
from lora.tasks import TASKS, Encoded
from lora.tasks.causal import CausalTask
from lora.tasks.chat import ChatTask
from lora.tasks.classification import ClassificationTask
from lora.tasks.figures import values
from tiny_models import randomise, tiny

TASK = CausalTask(prompt="prompt", completion="completion")
PLAIN = CausalTask(text="text")
ENDS = [2]
# w0 w1 and w2 w3 come several times
ROWS = [
    {"prompt": "w0 w1", "completion": "w5"}, {"prompt": "w2 w3", "completion": "w6 w7"},
    {"prompt": "w0 w1", "completion": "w8 w9 w10"}, {"prompt": "w4", "completion": "w5"},
    {"prompt": "w0 w1", "completion": "w5"}, {"prompt": "w2 w3", "completion": "w9"},
]  # fmt: skip


@pytest.fixture
def words() -> Any:
    return word_tokenizer("$A")


def test_rows_of_one_prompt_are_references_of_one_answer(words: Any) -> None:
    encoded = TASK.encode(ROWS, words, 30)
    found = questions(TASK, encoded, words, ENDS)
    assert [q.references for q in found] == [["w5", "w8 w9 w10"], ["w6 w7", "w9"], ["w5"]]
    assert [q.lengths for q in found] == [[1, 3], [2, 1], [1]], "the end token is not counted"
    prompts = TASK.encode([{"prompt": prompt} for prompt in ("w0 w1", "w2 w3", "w4")], words, 30, supervised=False)
    assert [q.example["input_ids"] for q in found] == [example["input_ids"] for example in prompts.examples]
    # Where the rows' texts are not at hand, the tokens say the same.
    bare = Encoded(encoded.examples, encoded.lengths, encoded.supervised)
    assert [q.references for q in questions(TASK, bare, words, ENDS)] == [q.references for q in found]


def test_prompts_are_taken_evenly(words: Any) -> None:
    rows = [{"prompt": f"w{number}", "completion": "w1"} for number in range(21)]
    found = questions(TASK, TASK.encode(rows, words, 30), words, ENDS, wanted=5)
    assert [words.decode(q.example["input_ids"], skip_special_tokens=True) for q in found] == [
        "w0", "w5", "w10", "w15", "w20"
    ]  # fmt: skip


def test_every_turn_is_an_answer() -> None:
    example = {"input_ids": [1, 5, 6, 7, 8, 9, 2], "labels": [-100, -100, 6, 7, -100, 9, 2], "row": 3}
    assert super(CausalTask, TASK).asked(example) == [
        ({"input_ids": [1, 5], "row": 3}, [6, 7]), ({"input_ids": [1, 5, 6, 7, 8], "row": 3}, [9, 2])
    ]  # fmt: skip
    trailing = {"input_ids": [1, 5, 6, 7], "labels": [-100, 5, 6, -100]}
    assert super(CausalTask, TASK).asked(trailing) == [({"input_ids": [1]}, [5, 6])]
    unasked = {"input_ids": [5, 6], "labels": [5, 6]}
    assert super(CausalTask, TASK).asked(unasked) == [], "nothing to begin with"


def test_of_dialogues_any_turn_is_scored() -> None:
    known = byte_tokenizer()
    task = ChatTask(messages="messages", template="chatml").with_tokenizer(known)
    talks = [
        [{"role": role, "content": f"{role[0]}{row}{turn}"} for turn in range(4) for role in ("user", "assistant")]
        for row in range(12)
    ]
    encoded = task.encode([{"messages": messages} for messages in talks], known, 1000)
    (end,) = task.ends()

    def asked(wanted: int | None) -> list[str]:
        found = questions(task, encoded, known, [end], wanted)
        assert all(known.decode(q.example["input_ids"]).endswith("<|im_start|>assistant\n") for q in found)
        return [q.references[0] for q in found]

    assert asked(None) == [m["content"] for messages in talks for m in messages if m["role"] == "assistant"]
    for wanted in (6, 12):
        some = asked(wanted)
        assert some == asked(wanted) and len({answer[1:-1] for answer in some}) == wanted, "one of each conversation"
        assert len({answer[-1] for answer in some}) > 2, "any of its turns"
    assert set(asked(12)) < set(asked(20)) and len(asked(20)) == 20 and asked(99) == asked(None)


def test_tasks_that_write_say_so() -> None:
    """Evaluation and prediction ask for it; loaded with a class for writing, a task must not have forgotten it."""
    for task in TASKS.values():
        assert task.generates == task.auto_class.endswith(("ForCausalLM", "ForSeq2SeqLM")), task.name


def by_hand(model: LoRA, name: str, prompts: list[str], words: Any, new: int) -> tuple[list[str], list[int]]:
    said, counts = [], []
    for prompt in prompts:
        ids = words(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad(), model.using(name):
            out = model.generate(input_ids=ids, max_new_tokens=new, do_sample=False)[0, ids.shape[1] :]
        said.append(words.decode(out, skip_special_tokens=True))
        counts.append(out.tolist().index(2) if 2 in out else new)
    return said, counts


def test_answers_and_metrics_are_those_of_each_alone(words: Any) -> None:
    model = with_adapters(tiny("llama"), "a", "b")
    with torch.no_grad():  # an end token that comes now and then
        model.base.lm_head.weight[2] *= 3
    prompts = texts(12)
    rows = [{"prompt": prompt, "completion": "w1 w2"} for prompt in prompts]
    evaluation = evaluate(
        model, rows, task=TASK, tokenizer=words, latency=False, generate=True, max_new_tokens=7, batch_size=5
    )
    assert evaluation.generation is not None and list(evaluation.metrics) == [BASE, "a", "b"]
    rates = set()
    for name in evaluation.metrics:
        said, counts = by_hand(model, name, prompts, words, 7)
        assert [answer["answers"][name] for answer in evaluation.generation.answers] == said
        wanted = values(text_figures(said, [["w1 w2"]] * 12))
        found = evaluation[name]
        assert {key: found[key] for key in wanted} == wanted and evaluation.generation.signatures == signatures_of(
            [["w1 w2"]] * 12
        )
        assert found["stop_rate"] == pytest.approx(sum(count < 7 for count in counts) / 12)
        assert found["answer_length"] == pytest.approx(sum(counts) / 12)
        rates.add(found["stop_rate"])
    assert len(rates) > 1, "nothing was told apart"
    without = evaluate(model, rows, task=TASK, tokenizer=words, latency=False)
    assert without.generation is None and "bleu" not in without["a"]


def notes(evaluation: Evaluation) -> list[str]:
    assert evaluation.generation is not None
    return evaluation.generation.notes


def test_an_end_that_was_never_learned_is_told(words: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora.evaluation import answers as module
    from lora.evaluation.generation import Completion

    model = with_adapters(tiny("llama"), "tuned")
    ends = {BASE: 0, "tuned": 1}
    monkeypatch.setattr(
        module, "complete",
        lambda model, task, prompts, name, *_, **__: [
            Completion("w5 w6", 2, place < ends[name]) for place in range(len(prompts))
        ],
    )  # fmt: skip
    options: dict[str, Any] = {"task": TASK, "tokenizer": words, "latency": False, "generate": True}
    found = evaluate(model, ROWS, max_new_tokens=9, **options)
    (note,) = notes(found)
    assert note in found.to_markdown() and note.startswith(
        "Only 33% of the answers of tuned ended with an end token; the others ran on to 9 tokens."
    )
    ends["tuned"] = 2
    assert not notes(evaluate(model, ROWS, max_new_tokens=9, **options))
    # Answers that are longer than what may be written are no fault of the adapter's.
    long = [{"prompt": row["prompt"], "completion": "w5 w6 w7 w8"} for row in ROWS]
    ends["tuned"] = 0
    (note,) = notes(evaluate(model, long, max_new_tokens=3, **options))
    assert note.startswith("Of 3 of 3 prompts no answer in the data fits into 3 new tokens")


def test_room_for_an_answer_ends_with_the_positions(words: Any) -> None:
    model = with_adapters(tiny("gpt2"), "tuned")  # 40 positions
    rows = [{"prompt": " ".join(["w7"] * n), "completion": "w1"} for n in (2, 36)]
    evaluation = evaluate(
        model, rows, task=TASK, tokenizer=words, latency=False, generate=True, max_new_tokens=30, batch_size=1
    )
    assert evaluation.generation is not None
    for answer, room in zip(evaluation.generation.answers, (30, 3), strict=True):
        assert len(answer["answers"]["tuned"].split()) <= room


@pytest.mark.parametrize("given", [-1, 2.5, "all"])
def test_what_is_refused(given: Any, classifier: LoRA, writer: LoRA, words: Any) -> None:
    with pytest.raises(ConfigError, match="generate is"):
        evaluate(writer, ROWS, tokenizer=words, generate=given)
    with pytest.raises(ConfigError, match="max_new_tokens is 0"):
        evaluate(writer, ROWS, tokenizer=words, generate=2, max_new_tokens=0)
    with pytest.raises(ConfigError, match="rows of the task classification hold no answers to be written"):
        evaluate(classifier, labelled(6), tokenizer=words, generate=2)
    with pytest.raises(ConfigError, match="rows of the task causal hold no answers"):
        evaluate(writer, [{"text": "w1 w2"}], task=PLAIN, tokenizer=words, generate=2)


def test_the_report_shows_answers_side_by_side(writer: LoRA, words: Any, tmp_path: Path) -> None:
    rows = [*ROWS, *({"prompt": f"w1{n} | w2", "completion": "w3 " * 200} for n in range(20))]
    evaluation = evaluate(writer, rows, tokenizer=words, latency=False, generate=12, max_new_tokens=4, max_length=30)
    write_report(tmp_path, {}, [], evaluation)
    told = json.loads((tmp_path / "report.json").read_text())["evaluation"]
    assert told["generation"]["answers"] == evaluation.generation.answers  # type: ignore[union-attr]
    assert told["metrics"]["tuned"]["bleu"] == evaluation["tuned"]["bleu"]
    text = (tmp_path / "report.md").read_text()
    shown = [line for line in text.partition("## Written answers")[2].splitlines() if line.startswith("| ")]
    assert shown[0] == "| prompt | reference | base | tuned |"
    first = evaluation.generation.answers[0]  # type: ignore[union-attr]
    assert shown[2] == f"| w0 w1 | w5 (and 1 more) | {first['answers']['base']} | {first['answers']['tuned']} |"
    assert f"| BLEU | {evaluation['base']['bleu']:.2f} | {evaluation['tuned']['bleu']:.2f} |" in text
    assert "BLEU: nrefs:var\\|case:mixed" in text and "to 3 different prompts, at most 4 tokens; beside 5 ref" in text


def test_labels_hold_no_answers() -> None:
    assert ClassificationTask(LABELS).asked({"input_ids": [1], "label": 0}) == []
    assert PLAIN.asked({"input_ids": [1, 2], "labels": [-100, 2]}) == []


def test_no_weights_are_touched(writer: LoRA, words: Any) -> None:
    randomise(writer.adapter_parameters("tuned").values())
    before = [p.clone() for p in writer.parameters()]
    writer.train()
    evaluate(writer, ROWS, tokenizer=words, latency=False, generate=True, max_new_tokens=3)
    assert writer.training and all(torch.equal(a, b) for a, b in zip(before, writer.parameters(), strict=True))


def test_the_end_of_a_template_ends_answers_and_references(tmp_path: Path) -> None:
    base = save_chat_base(tmp_path / "base")
    model, known = loaded_model(base, save_adapters(base, tmp_path / "adapters", {"a": CHAT}))
    end = known.convert_tokens_to_ids("<|im_end|>")
    task = CHAT.with_tokenizer(known)
    assert end in ends_of(model, known, task) and end not in ends_of(model, known, TASK)
    talk = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "sun moon"}]
    found = evaluate(
        model, [{"messages": [*talk, *talk]}], tokenizer=known, latency=False, generate=True, max_new_tokens=3
    )
    assert found.generation is not None and found.generation.reference_length == 2
    assert [answer["references"] for answer in found.generation.answers] == [["sun moon"]] * 2

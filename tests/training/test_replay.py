"""Replay: general text, or rows like the others, beside the training rows, in its share of every epoch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from chat_base import save_chat_base, sentences
from lora import DataConfig, LoRA, RunConfig, fit, workflow
from lora.data.batches import BatchPlan
from lora.errors import ConfigError, DataError
from lora.model.base import load_base, load_tokenizer
from lora.tasks import encoding
from lora.tasks.tokens import IGNORED
from lora.training.prepare import Prepared, prepare, read_rows
from lora.workflow.look import describe_data
from small_base import labelled, save_base, stories, tokenizer

CAUSAL = "AutoModelForCausalLM"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_chat_base(tmp_path_factory.mktemp("base")))


def put(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def talks(count: int, seed: int = 0) -> list[dict[str, Any]]:
    asked, told = sentences(count, seed), sentences(count, seed + 100)
    return [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in zip(asked, told, strict=True)
    ]


def prepared(base: str, rows: list[dict[str, Any]], replay: Any, **settings: Any) -> Prepared:
    model = LoRA(load_base(base, CAUSAL, torch.float32), rank=2)
    found = read_rows(rows, False, DataConfig(replay=replay, **settings), 0)
    return prepare(model, found, load_tokenizer(base), 64)


def test_plain_text_beside_conversations_is_learned_whole(base: str, tmp_path: Path) -> None:
    file = put(tmp_path / "general.jsonl", [{"text": text} for text in sentences(40, 7, 20)])
    found = prepared(base, talks(45), file)
    train, count = found.train, found.train.replay
    assert found.task.name == "chat" and count == 40 and len(train) == 85
    for example in train.examples[45:]:
        assert example["labels"] == [IGNORED, *example["input_ids"][1:]]
    assert all(IGNORED in example["labels"][1:] for example in train.examples[:45])
    plan = BatchPlan(train.lengths, 5, 0, shares=train.shares)
    for epoch in range(3):
        taken = [i for batch in plan.epoch(epoch) for i in batch]
        assert sum(i >= 45 for i in taken) == 5 and len(taken) == 50  # a tenth
    assert any("an epoch takes 5 examples of the 40" in note for note in found.notes)


def test_a_small_source_is_taken_several_times(base: str, tmp_path: Path) -> None:
    file = put(tmp_path / "few.jsonl", [{"text": text} for text in sentences(5, 1, 9)])
    found = prepared(base, talks(20), {"path": file, "share": 0.5})
    assert found.train.shares == [(20, 1.0), (5, 4.0)]
    assert any("each 4.0 times: 50% of all examples" in note for note in found.notes)


def test_rows_like_the_others_have_the_runs_template(base: str, tmp_path: Path) -> None:
    """In columns of their own; what the run's task has beside columns holds for them too."""
    rows = [{"q": text, "a": "red sun"} for text in sentences(8, 3)]
    columns = {"prompt": "q", "completion": "a"}
    options = {"system_prompt": "now then"}
    found = prepared(
        base, talks(12), {"path": put(tmp_path / "r.jsonl", rows), "columns": columns}, options=options, task="chat"
    )
    own = prepared(base, rows, None, options=options, task="chat", columns=columns)
    assert found.train.replay == 8
    for one, other in zip(found.train.examples[12:], own.train.examples, strict=True):
        assert one["input_ids"] == other["input_ids"] and one["labels"] == other["labels"]


def test_what_is_held_out_is_not_replayed(base: str, tmp_path: Path) -> None:
    rows = stories(40)
    model = LoRA(load_base(base, CAUSAL, torch.float32), rank=2)
    same = put(tmp_path / "same.jsonl", rows)
    read = read_rows(rows, None, DataConfig(replay=same, held_out=0.25), 0)
    found = prepare(model, read, load_tokenizer(base), 64)
    assert found.held is not None
    held = {tuple(example["input_ids"]) for example in found.held.examples}
    assert held and not held & {tuple(example["input_ids"]) for example in found.train.examples}
    assert any("left out of replay" in note for note in found.notes)


def asked(count: int, answer: str, **more: str) -> list[dict[str, Any]]:
    return [{"instruction": text, "output": answer, **more} for text in sentences(count, 3)]


@pytest.mark.parametrize("rows, replayed", [
    (talks(30), [{"messages": [row["messages"][0], {"role": "assistant", "content": "no"}]} for row in talks(30)]),
    (asked(30, "yes", input=""), asked(30, "no")),
    (asked(30, "yes"), asked(30, "no", input="")),
])  # fmt: skip
def test_a_question_held_out_is_not_replayed_with_another_answer(
    base: str, tmp_path: Path, rows: list[dict[str, Any]], replayed: list[dict[str, Any]]
) -> None:
    found = read_rows(rows, None, DataConfig(replay=put(tmp_path / "r.jsonl", replayed), held_out=0.2), 0)
    assert found.held and found.replay
    held = {found.task.key(row) for row in found.held}
    assert len(found.replay.rows) == 30 - len(held) and not held & {found.replay.task.key(r) for r in found.replay.rows}


def test_test_rows_are_not_replayed(base: str, tmp_path: Path) -> None:
    rows = asked(30, "yes")
    for name, part in (("train", rows[:20]), ("test", rows[20:])):
        put(tmp_path / f"{name}.jsonl", part)
    file = put(tmp_path.parent / f"{tmp_path.name}-r.jsonl", rows)
    found = read_rows(str(tmp_path), False, DataConfig(replay=file), 0)
    assert found.replay and found.test and len(found.replay.rows) == 20


def test_other_replay_is_other_data_and_more_weight_too(base: str, tmp_path: Path) -> None:
    first, second = (put(tmp_path / f"{n}.jsonl", [{"text": t} for t in sentences(9, n)]) for n in (1, 2))
    digests = {
        prepared(base, talks(9), replay).digest
        for replay in (None, first, second, {"path": first, "share": 0.3})
    }  # fmt: skip
    assert len(digests) == 4


def test_the_same_rows_are_the_same_data_streamed_or_cached_or_not(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These settings may change when a run is resumed."""
    monkeypatch.setattr(encoding, "FEWEST", 5)
    replay = put(tmp_path / "general.jsonl", [{"text": text} for text in sentences(9, 1)])
    rows: Any = put(tmp_path / "rows.jsonl", talks(9))
    cache = str(tmp_path / "cache")
    ways = ({"cache": False}, {"cache": cache}, {"cache": cache}, {"cache": False, "streaming": True})
    assert len({prepared(base, rows, replay, **way).digest for way in ways}) == 1


def test_tokens_of_replay_are_kept_for_another_time(base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "FEWEST", 15)
    replay = put(tmp_path / "general.jsonl", [{"text": text} for text in sentences(20, 1)])
    first, second = (prepared(base, talks(9), replay, cache=str(tmp_path / "cache")) for _ in range(2))
    assert not any("were read from" in note for note in first.notes)
    assert any(note.startswith("Replay: Token ids were read from") for note in second.notes)
    assert list(first.train.examples) == list(second.train.examples)


def test_answers_stay_beside_their_examples(base: str, tmp_path: Path) -> None:
    general = put(tmp_path / "general.jsonl", [{"text": text} for text in sentences(4, 1)])
    alike = put(tmp_path / "alike.jsonl", asked(4, "blue moon"))
    rows = asked(9, "red sun")
    assert list(prepared(base, rows, alike).train.answers) == ["red sun"] * 9 + ["blue moon"] * 4
    assert list(prepared(base, rows, general, columns={}).train.answers) == ["red sun"] * 9 + [""] * 4


def test_only_training_rows_of_a_source_are_read(base: str, tmp_path: Path) -> None:
    put(tmp_path / "train.jsonl", [{"text": text} for text in sentences(4, 1)])
    (tmp_path / "validation.jsonl").write_text("{")
    assert prepared(base, talks(9), str(tmp_path)).train.replay == 4


@pytest.mark.parametrize("given, said", [
    ({"path": "x", "share": 1.0}, "replay.share"), ({"path": "x", "part": 0.1}, "unknown setting"),
    (3, "replay"),
])  # fmt: skip
def test_a_wrong_setting_is_named(given: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DataConfig.make({"replay": given})


def test_what_cannot_be_replayed_is_refused(base: str, tmp_path: Path) -> None:
    texts = put(tmp_path / "t.jsonl", [{"text": text} for text in sentences(9)])
    with pytest.raises(ConfigError, match="data.replay: is for tasks that learn to write, and this is classification"):
        read_rows(labelled(12), False, DataConfig(replay=texts), 0)
    with pytest.raises(DataError, match="rows of the run's own kind .chat. or a column of plain text"):
        prepared(base, talks(9), put(tmp_path / "n.jsonl", [{"number": 1}]))
    with pytest.raises(ConfigError, match="its share, not a weight"):
        prepared(base, talks(9), f"{texts}#x2")
    with pytest.raises(DataError, match="no such file"):
        prepared(base, talks(9), str(tmp_path / "none.txt"))


def test_an_encoder_decoder_replays_halves(tmp_path: Path) -> None:
    from transformers import T5Config

    texts = [*sentences(8, 5, 12), "red " * 400, "sun"]
    replay = put(tmp_path / "t.jsonl", [{"text": text} for text in texts])
    found = read_rows(stories(9), False, DataConfig(replay=replay, streaming=True), 0, base=T5Config())
    assert found.replay is not None and found.replay.task.name == "seq2seq"
    rows = [(row["prompt"], row["completion"]) for row in found.replay.rows]
    words = texts[0].split()
    assert rows[0] == (" ".join(words[: len(words) // 2]), " ".join(words[len(words) // 2 :]))
    assert rows[8] == (" ".join(["red"] * 150),) * 2 and rows[9] == ("sun", "sun")
    assert any("second half of each text" in note for note in found.notes)
    base = LoRA(load_base(str(save_base(tmp_path / "t5", "t5")), "AutoModelForSeq2SeqLM", torch.float32), rank=2)
    train = prepare(base, found, tokenizer("t5"), 64).train
    assert train.replay == 9 and len(train) == 18  # what is longer than the length is left out
    with pytest.raises(DataError, match="rows of the run's own kind .seq2seq. or a column of plain text"):
        bad = put(tmp_path / "n.jsonl", [{"number": 1}])
        read_rows(stories(9), False, DataConfig(replay=bad), 0, base=T5Config())


@pytest.mark.parametrize("packing", [None, False])
def test_the_loss_is_held_to_the_base_on_replay_alone(base: str, tmp_path: Path, packing: bool | None) -> None:
    """Learned beside it, an adapter that is held to the base there stays closer to it there than one that is not."""
    file = put(tmp_path / "t.jsonl", [{"text": text} for text in sentences(30, 5, 12)])

    def trained(**settings: Any) -> dict[str, torch.Tensor]:
        model = LoRA(load_base(base, CAUSAL, torch.float32), rank=4)
        fit(model, talks(30), False, data=DataConfig(replay={"path": file, "share": 0.3}), max_steps=3,
            learning_rate=1e-2, batch_size=8, packing=packing, progress=False, **settings)  # fmt: skip
        return {key: p.detach().clone() for key, p in model.adapter_parameters("default").items()}

    plain, held, all_held = trained(), trained(kl=1.0, kl_on="replay"), trained(kl=1.0)
    for one, other in ((plain, held), (held, all_held), (plain, all_held)):
        assert any(not torch.equal(one[key], other[key]) for key in one)


def test_checks_and_a_look_at_the_data_know_of_it(base: str, tmp_path: Path) -> None:
    replay = put(tmp_path / "t.jsonl", [{"text": text} for text in sentences(12, 5, 12)])
    data = {"train": put(tmp_path / "talks.jsonl", talks(24)), "replay": replay, "held_out": 0.2}
    config = RunConfig.make({
        "model": base, "data": data, "output": str(tmp_path / "run"),
        "training": {"kl": 0.5, "kl_on": "replay", "batch_size": 8},
    })  # fmt: skip
    said = list[str]()
    found = workflow.check(config, said.append)["default"]
    assert not [one for one in found if one.status == "failed"]
    assert any("plain text of column 'text', all of it learned" in line for line in said)
    seen = describe_data(data["train"], base, config=config.data)
    assert any("Replay is left out of this look" in note for note in seen.notes)
    assert not any("An epoch takes" in note or "an epoch takes" in note for note in seen.notes)


def test_a_run_with_both_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama")
    replay = tmp_path / "general.txt"
    replay.write_text(" ".join(sentences(60, 7, 20)))
    data = {"train": put(tmp_path / "rows.jsonl", stories(24)), "held_out": 0, "max_length": 32,
            "replay": {"path": str(replay), "share": 0.25}}  # fmt: skip
    training = {"batch_size": 6, "save_every": 2, "epochs": 2, "kl": 0.5, "kl_on": "replay", "generate_rows": 0,
                "tensorboard": False}  # fmt: skip
    whole, cut, said = tmp_path / "whole", tmp_path / "cut", list[str]()
    config = {"model": str(base), "output": str(whole), "data": data, "training": training, "adapter": {"rank": 4}}
    workflow.train(RunConfig.make({**config, "check": False}), say=said.append, latency=False, progress=False)
    assert any("of the learned tokens" in line for line in said)
    last = sorted((whole / "checkpoints").glob("step-*"))[-1]
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / last.name)
    shutil.rmtree(cut / "adapter")
    workflow.resume(cut, progress=False)
    one, other = ((folder / "adapter" / "adapter_model.safetensors").read_bytes() for folder in (whole, cut))
    assert one == other
    report = json.loads((whole / "report.json").read_text())
    assert report["data"]["replay_examples"] > 5
    assert [source["split"] for source in report["data"]["sources"]] == ["train", "replay"]
    for other in ({"path": "moved.txt", "share": 0.5}, None):
        with pytest.raises(ConfigError, match="data.replay .all but its path.: a run goes on with"):
            workflow.resume(cut, progress=False, overrides={"data.replay": other})
    moved, probe = Path(shutil.move(replay, tmp_path / "moved.txt")), tmp_path / "probe.txt"
    probe.write_text("red sun here\n\nblue moon there\n")
    there: list[dict[str, Any]] = [
        {"data.replay": str(moved)}, {"data.replay": {"path": str(moved), "share": 0.25}, "probe": str(probe)}
    ]  # fmt: skip
    for overrides in there:
        shutil.rmtree(cut / "checkpoints" / last.name)
        workflow.resume(cut, progress=False, overrides=overrides)
        assert (cut / "adapter" / "adapter_model.safetensors").read_bytes() == one
    assert json.loads((cut / "report.json").read_text())["forgetting"]["texts"] == 2
    moved.write_text(" ".join(sentences(60, 8, 20)))
    with pytest.raises(ConfigError, match="training data"):
        workflow.resume(cut, progress=False)

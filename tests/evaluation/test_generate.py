"""Texts of several adapters in one batch: each as it is alone, whatever stands beside it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from chat_base import CHAT, SINGLE, loaded_model, save_adapters, save_chat_base, sentences
from lora import generate, predict
from lora.config import SamplingConfig
from lora.errors import ConfigError, DataError, RoutingError
from lora.evaluation import decoding
from lora.evaluation.decoding import decode
from lora.evaluation.generate import generate_iter
from lora.evaluation.voices import voices_of
from lora.model.lora import LoRA
from lora.tasks.chat import ChatTask

NAMES = ["a", "b", "single", "base"]
DRAWN: dict[str, Any] = {"temperature": 1.5, "top_p": 0.95, "top_k": 20, "min_p": 0.01, "repetition_penalty": 1.3}


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoRA, Any]:
    base = save_chat_base(tmp_path_factory.mktemp("base"))
    adapters = save_adapters(base, tmp_path_factory.mktemp("adapters"), {"a": CHAT, "b": CHAT, "single": SINGLE})
    return loaded_model(base, adapters)


def test_each_is_greedy_generation_of_its_own(several: tuple[LoRA, Any]) -> None:
    model, tokenizer = several
    given = sentences(7)
    found = generate(model, given, adapters=NAMES, tokenizer=tokenizer, batch_size=6, max_new_tokens=9)
    assert [(text["prompt"], text["adapter"]) for text in found] == [(row, name) for row in given for name in NAMES]
    for text in found:
        if text["adapter"] == "single":
            asked = text["prompt"]
        else:
            messages = [{"role": "user", "content": text["prompt"]}]
            asked = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(asked, return_tensors="pt", add_special_tokens=False)["input_ids"]
        ends = [4] if text["adapter"] == "single" else [4, tokenizer.convert_tokens_to_ids("<|im_end|>")]
        with torch.no_grad(), model.using(text["adapter"]):
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, do_sample=False, eos_token_id=ends
            )[0, ids.shape[1] :].tolist()
        ended = out[-1] in ends
        assert text["completion"] == tokenizer.decode(out, skip_special_tokens=True)
        assert (text["stop"], text["tokens"]) == ("end" if ended else "length", len(out) - ended)
    assert {text["stop"] for text in found} == {"end", "length"}, "the example shows both"


TOOL = {"type": "function", "function": {"name": "red", "description": "sun moon", "parameters": {}}}


def test_tools_that_an_adapter_does_not_read_are_counted_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = save_chat_base(tmp_path / "base")
    reads = ChatTask(messages="messages", tools="functions")
    folders = save_adapters(base, tmp_path / "adapters", {"a": CHAT, "single": SINGLE, "reads": reads})
    model, tokenizer = loaded_model(base, folders)
    cells = [[TOOL], "", None, [], "[]", float("nan"), [TOOL]]
    rows: list[Any] = [*({"messages": "red sun", "tools": cell} for cell in cells), {"messages": "red"}, "blue"]
    options: dict[str, Any] = {"tokenizer": tokenizer, "max_new_tokens": 2, "batch_size": 2}
    found = generate(model, rows, adapters=["a", "single", "reads", "base"], **options)
    (said,) = caplog.messages
    assert said.startswith("a, single, base: 2 of 9 rows have tools and are answered without them")
    assert len(found) == 36
    caplog.clear()
    generate(model, rows[:1], adapters=["reads"], **options)
    assert not caplog.messages
    options["max_new_tokens"] = 9
    texts = [
        generate(model, [{"messages": "red", **more}], adapters=["reads"], **options)[0]["completion"]
        for more in ({"functions": [TOOL]}, {"tools": [TOOL]}, {})
    ]
    assert texts[0] == texts[1] != texts[2], "what it calls otherwise is read all the same"


def test_what_is_drawn_does_not_depend_on_the_batch(several: tuple[LoRA, Any]) -> None:
    """Nor on the neighbours, the padding, or where one went on."""
    model, tokenizer = several
    given = sentences(6, longest=12)
    options: dict[str, Any] = {"tokenizer": tokenizer, "n": 2, "max_new_tokens": 8, **DRAWN}
    whole = generate(model, given, adapters=NAMES, batch_size=16, **options)
    for name in NAMES:
        alone = generate(model, given, adapters=name, batch_size=1, **options)
        assert alone == [text for text in whole if text["adapter"] == name]
    later = list(generate_iter(model, given[4:], adapters=NAMES, first=4, **options))
    assert later == whole[4 * len(NAMES) * 2 :]
    assert len({text["completion"] for text in whole}) > len(whole) * 0.8
    assert generate(model, given, adapters=NAMES, batch_size=16, **options, seed=1) != whole


def test_other_adapters_end_is_no_end_here(several: tuple[LoRA, Any]) -> None:
    """``<|im_end|>`` ends what adapters write that were trained in ChatML, and is a token like others for the rest."""
    model, tokenizer = several
    voices = voices_of(model, ["a", "single"], tokenizer)
    own = voices["a"].ends - voices["single"].ends
    assert own == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    prompts, names = [[5, 6, 7]] * 40, ["a", "single"] * 20
    settings = SamplingConfig(temperature=3.0, max_new_tokens=12)
    found = decode(
        model, prompts, names, [voices[name].ends for name in names], settings, list(range(40)), pad_token_id=0
    )
    assert any(own & set(written.ids) for written in found[1::2])
    assert not any(own & set(written.ids) for written in found[::2])


def test_draws_follow_the_probabilities() -> None:
    scores = torch.tensor([[0.1, 0.2, 0.3, 0.4, 0.0]]).log().repeat(4000, 1)
    drawn = decoding._Draw(list(range(4000)), 3, 2)(torch.zeros(4000, 3), scores).argmax(dim=1)
    shares = torch.bincount(drawn, minlength=5) / 4000
    assert shares[4] == 0 and torch.allclose(shares[:4], torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.03)


def test_limits_of_what_is_drawn(several: tuple[LoRA, Any]) -> None:
    model, tokenizer = several
    options: dict[str, Any] = {"adapters": ["a"], "tokenizer": tokenizer, "max_new_tokens": 8}
    greedy = generate(model, sentences(4), **options)
    for narrow in ({"top_k": 1}, {"top_p": 1e-9}, {"min_p": 1.0}, {"temperature": 1e-6}):
        assert generate(model, sentences(4), **options, **{"temperature": 2.0, **narrow}) == greedy
    heavy = generate(model, sentences(4), **options, repetition_penalty=1e6)
    words = [word for text in heavy for word in [text["completion"].split()] if text["tokens"] == len(word)]
    assert words and all(len(set(its)) == len(its) for its in words)


def test_rows_as_they_come(several: tuple[LoRA, Any], tmp_path: Path) -> None:
    model, tokenizer = several
    options: dict[str, Any] = {"tokenizer": tokenizer, "max_new_tokens": 4}
    talk = [{"role": "user", "content": "red sun"}, {"role": "assistant", "content": "the data's own answer"}]
    plain = generate(model, ["red sun"], adapters=["a"], **options)[0]
    for row in ({"prompt": "red sun"}, {"messages": "red sun"}, {"messages": talk}):
        found = generate(model, [row], adapters=["a"], **options)[0]
        assert found["completion"] == plain["completion"]
    assert found["messages"] == talk[:1]
    (tmp_path / "rows.jsonl").write_text('{"prompt": "red sun"}\n')
    assert generate(model, tmp_path / "rows.jsonl", adapters=["a"], **options)[0]["completion"] == plain["completion"]
    with pytest.raises(DataError, match="no column 'messages'"):
        generate(model, [{"other": "x"}], adapters=["a"], **options)
    with pytest.raises(RoutingError, match="unknown adapter 'c'"):
        generate(model, ["x"], adapters=["c"], **options)
    for wrong, words in (({"n": 2}, "all are alike"), ({"n": 0}, "at least 1"), ({"top_p": 2}, "top_p: must be less")):
        with pytest.raises(ConfigError, match=words):
            generate(model, ["x"], adapters=["a"], **{**options, **wrong})


def test_a_base_whose_rows_cannot_be_told_apart(several: tuple[LoRA, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = several
    options: dict[str, Any] = {"adapters": NAMES, "tokenizer": tokenizer, "max_new_tokens": 5}
    together = generate(model, sentences(3), **options)
    # What `routing_of` refuses for models that put time first.
    monkeypatch.setattr("lora.model.rows.TIME_MAJOR", ("llama",))
    assert generate(model, sentences(3), **options) == together


def test_an_adapter_that_writes_nothing(classifier: LoRA, tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="'tuned' was trained for the task classification, which writes no text"):
        generate(classifier, ["w1"], tokenizer=tokenizer)


@pytest.mark.parametrize(
    "setting",
    [
        {"repetition_penalty": 50.0}, {"no_repeat_ngram_size": 1}, {"suppress_tokens": list(range(5, 30))},
        {"min_new_tokens": 9}, {"do_sample": True, "temperature": 9.0}, {"num_beams": 3, "length_penalty": 9.0},
        {"num_return_sequences": 2, "do_sample": True}, {"max_length": 3}, {"stop_strings": ["a"]},
    ],
)  # fmt: skip
def test_a_checkpoints_own_settings_change_no_text(
    several: tuple[LoRA, Any], setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever command writes it: what is compared differs by the adapter alone."""
    model, tokenizer = several
    prompts = sentences(5)

    def written() -> list[str]:
        texts = generate(model, prompts, adapters="single", tokenizer=tokenizer, max_new_tokens=9, batch_size=2)
        others = predict(model, prompts, adapter="single", tokenizer=tokenizer, max_new_tokens=9, batch_size=3)
        assert [text["completion"] for text in texts] == [other["completion"] for other in others]
        return [text["completion"] for text in texts]

    plain = written()
    config: Any = copy.deepcopy(model.base.generation_config)
    config.update(**setting)
    monkeypatch.setattr(model.base, "generation_config", config)
    assert written() == plain

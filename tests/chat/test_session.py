"""Conversations: what is asked, what is kept from turn to turn, and that nothing of it changes an answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chat_base import POSITIONS, sentences
from chat_tokenizer import byte_tokenizer
from lora.chat.kept import Kept
from lora.chat.stream import Stream
from lora.config import SamplingConfig
from lora.errors import ConfigError, DataError
from lora.evaluation.decoding import decode
from lora.evaluation.voices import Voice
from lora.model.lora import LoRA
from lora.tasks.chat import ChatTask
from lora.tasks.preference import PreferenceTask
from tiny_models import randomise, tiny


def with_adapter(arch: str) -> LoRA:
    model = LoRA(tiny(arch), name="a", rank=4, alpha=16)
    randomise(model.adapter_parameters("a").values())
    return model.eval()


def nothing(_: str) -> None:
    pass


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.2, "seed": 3}])
def test_kept_keys_and_values_change_nothing(session: Any, sampling: dict[str, Any]) -> None:
    """With turns taken back, answered again, another adapter between, and a conversation that grows too long."""

    def talk(reuse: bool) -> tuple[list[str], int]:
        one, said, kept = session(system="be small", length=70, reuse=reuse, **sampling), [], 0
        for turn, text in enumerate(sentences(14, longest=5)):
            if turn == 3:
                one.undo()
            if turn == 5:
                one.use("b")
            if turn == 6:
                one.use("a")
            answer = one.ask(text, nothing)
            if turn == 4 and one.messages:
                one.take_answer_back()
                answer = one.answer(nothing)
            said.append(answer.text)
            kept += answer.kept
        assert one._start > 0, "the example is too short"
        return said, kept

    with_, without = talk(True), talk(False)
    assert with_[0] == without[0] and len(set(with_[0])) > 8
    assert with_[1] > 200 and without[1] == 0


def test_pieces_are_the_answer(session: Any) -> None:
    one, pieces = session(temperature=1.0), list[str]()
    for text in sentences(5):
        pieces.clear()
        answer = one.ask(text, pieces.append)
        assert "".join(pieces) == answer.text and len(pieces) <= answer.tokens
    assert one.messages[0] == {"role": "user", "content": sentences(5)[0]}


def test_half_characters_wait_for_their_other_half() -> None:
    tokenizer, pieces = byte_tokenizer(), list[str]()
    stream = Stream(tokenizer, frozenset([2]), pieces.append)
    ids = tokenizer("naïve 🙂!", add_special_tokens=False)["input_ids"]
    for token in [*ids, 2]:
        stream.put(token)
    assert pieces == ["n", "a", "ï", "v", "e", " ", "🙂", "!"] and stream.close() == "naïve 🙂!"
    cut = Stream(tokenizer, frozenset(), pieces.append)
    for token in ids[:-2]:
        cut.put(token)
    assert cut.close() == "naïve \ufffd" and pieces[-1] == "\ufffd"


def test_what_is_asked_is_what_training_saw(session: Any) -> None:
    one = session(system="be small")
    one.messages = [
        {"role": "user", "content": "red"}, {"role": "assistant", "content": "sun"}, {"role": "user", "content": "moon"}
    ]  # fmt: skip
    wanted = one.tokenizer.apply_chat_template(one.whole(), add_generation_prompt=True, tokenize=False)
    ids, notes = one._prompt(one.voice)
    assert ids == one.tokenizer(wanted, add_special_tokens=False)["input_ids"] and notes == []
    one.use("single")
    assert one._prompt(one.voice)[0] == one.tokenizer("moon")["input_ids"]


@pytest.mark.parametrize("task", [PreferenceTask(prompt="prompt", chat=True), PreferenceTask(chat=True)])
def test_adapters_of_preferences_are_asked_in_their_format(session: Any, task: PreferenceTask) -> None:
    one = session(system="be small")
    one.messages = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "sun"}]
    one.messages += [{"role": "user", "content": "moon"}]
    wanted = one._prompt(one.voice)
    one.voices["a"] = Voice("a", task.with_tokenizer(one.tokenizer), one.voice.ends)
    assert one.voice.chats and one._prompt(one.voice) == wanted


def test_tools_are_told_to_those_that_know_of_them(session: Any) -> None:
    template = (
        "{% for tool in tools or [] %}{{ tool.name }} {% endfor %}{% for m in messages %}{{ m.content }} "
        "{% if m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
    )
    one, tools = session(), [{"name": "bird"}, {"name": "runs"}]
    knows = ChatTask(messages="messages", tools="tools", template=template).with_tokenizer(one.tokenizer)
    one.voices["b"] = Voice("b", knows, one.voice.ends)
    one.replace([{"role": "user", "content": "red"}], tools)
    ids, notes = one._prompt(one.voices["b"])
    assert one.tokenizer.decode(ids).split() == ["bird", "runs", "red"] and not notes
    one.use("a")
    assert one._prompt(one.voice)[1] == ["a was trained without tools: it is not told which there are."]
    one.clear()
    assert one.tools is None


def test_long_conversations_lose_whole_exchanges_and_say_so_once(session: Any) -> None:
    one, told, asked = session(system="be small"), [], []
    prompt = one._ids
    one._ids = lambda voice, messages: asked.append(messages) or prompt(voice, messages)
    for text in sentences(20, longest=9):
        answer = one.ask(text, nothing)
        assert answer.prompt <= one.room == POSITIONS - 6
        assert asked[-1][0] == {"role": "system", "content": "be small"} and asked[-1][1]["role"] == "user"
        assert asked[-1][-1]["content"] == text
        told += answer.notes
    assert len([note for note in told if "oldest exchanges" in note]) == 1
    assert len(one.messages) > len(asked[-1]), "what is no longer read is still there to be saved"
    before, start = list(one.messages), one._start
    with pytest.raises(DataError, match=r"makes a prompt of \d+ tokens and there is room for 122"):
        one.ask("red " * 200, nothing)
    assert (one.messages, one._start) == (before, start), "a message that was refused has cost no exchange"


def test_what_is_taken_back_never_leaves_an_answer_at_the_beginning(session: Any, monkeypatch: Any) -> None:
    one, asked = session(), []
    prompt = one._ids
    monkeypatch.setattr(one, "_ids", lambda voice, messages: asked.append(list(messages)) or prompt(voice, messages))
    one.messages = [
        {"role": role, "content": "red sun moon"} for _ in range(6) for role in ("user", "assistant")
    ]  # fmt: skip
    one.ask("red " * 80, nothing)
    assert one._start == 12, "the example is too short"
    one.undo()
    one.ask("sun", nothing)
    assert asked[-1][0]["role"] == "user" and asked[-1][-1]["content"] == "sun"


def test_a_failed_answer_costs_the_conversation_nothing(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = session()
    one.messages = [
        {"role": role, "content": "red sun moon"} for _ in range(6) for role in ("user", "assistant")
    ]  # fmt: skip
    one._start = start = 2  # as after a longer message before
    before = list(one.messages)

    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lora.chat.session.decode", broken)
        with pytest.raises(KeyboardInterrupt):
            one.ask("red " * 80, nothing)
    assert (one.messages, one._start) == (before, start)


def test_single_prompts(session: Any) -> None:
    one = session()
    one.use("single")
    first = one.ask("red sun", nothing)
    one.ask("moon", nothing)
    again = one.ask("red sun", nothing)
    assert again.text == first.text and again.prompt == first.prompt
    with pytest.raises(ConfigError, match="single is asked with a bare text and knows no system message"):
        one.system = "x"
    with pytest.raises(DataError, match="there is room for"):
        one.ask("red " * 200, nothing)


def test_compare_is_each_alone(session: Any) -> None:
    one = session(temperature=1.0)
    one.ask("red sun", nothing)
    before = list(one.messages)
    turn = one._turn
    pieces: list[list[str | None]] = [[], [], [], []]
    found = one.compare(["a", "b", "single", "base"], "green moon", lambda place, piece: pieces[place].append(piece))
    for its, answer in zip(pieces, found, strict=True):
        assert its.pop() is None and "".join(map(str, its)) == answer.text, "as it comes, and then that it is whole"
    assert one.messages == before and [answer.name for answer in found] == ["a", "b", "single", "base"]
    for answer in found:
        one.use(answer.name)
        one._turn = turn
        alone = one.ask("green moon", nothing)
        assert (alone.text, alone.tokens, alone.stop) == (answer.text, answer.tokens, answer.stop)
        one.messages = list(before)
    assert len({answer.text for answer in found}) > 1


def test_a_long_comparison_costs_the_conversation_nothing(session: Any) -> None:
    one = session()
    one.messages = [
        {"role": role, "content": "red sun moon"} for _ in range(6) for role in ("user", "assistant")
    ]  # fmt: skip
    assert "oldest exchanges" in one.compare(["a", "b"], "red " * 80)[0].notes[0] and one._start == 0
    one.ask("sun", nothing)
    assert one._start == 0


def test_stopped_and_broken_answers(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = session(max_new_tokens=60)
    one.voices["a"] = Voice("a", one.voice.task, frozenset())

    def stop(piece: str) -> None:
        one.stopping = True

    answer = one.ask("red", stop)
    assert answer.stop == "stopped" and answer.tokens < 9, "special tokens are no piece of text"
    one.stopping = False
    assert one.ask("red", nothing).stop == "length"
    before = list(one.messages)

    def broken(piece: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        one.ask("sun", broken)
    assert one.messages == before
    assert one.ask("sun", nothing).kept == 0, "what an interrupted pass left is not used"


def test_an_empty_answer_is_not_kept(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    one = session()
    monkeypatch.setattr(one, "voices", {**one.voices, "a": Voice("a", one.voice.task, frozenset(range(30)))})
    answer = one.ask("red", nothing)
    assert (answer.text, answer.tokens, one.messages) == ("", 0, [])
    assert answer.notes == ["The answer is empty; this exchange is not kept."]
    before = [{"role": "user", "content": "red"}, {"role": "assistant", "content": "sun"}]
    one.messages = list(before)
    assert one.retry(nothing).notes == ["The answer is empty; the one before it stays."] and one.messages == before
    one.messages.pop()  # as of a file that ends with a question
    assert one.retry(nothing).notes == ["The answer is empty; it is not kept."] and one.messages == before[:1]
    monkeypatch.setattr(one, "answer", lambda _: 1 / 0)
    one.messages = list(before)
    with pytest.raises(ZeroDivisionError):
        one.retry(nothing)
    assert one.messages == before


def test_settings(session: Any) -> None:
    with pytest.raises(ConfigError, match="leave no room for a prompt in 128 tokens"):
        session(max_new_tokens=127)
    assert session(length=64).room == 58
    with pytest.raises(ConfigError, match="'aa' is unknown; did you mean 'a'"):
        session().use("aa")


@pytest.mark.parametrize("arch", ["gpt2", "opt", "bloom", "qwen3", "mistral", "gemma2", "gemma3", "phi3"])
def test_every_family_goes_on_from_kept_ones(arch: str) -> None:
    """Through transformers' generation, which works out positions and masks."""
    model = with_adapter(arch)
    draw = torch.Generator().manual_seed(3)
    settings, kept, prompt = SamplingConfig(max_new_tokens=5), Kept(model.base), list[int]()
    for turn in range(3):
        prompt = prompt + torch.randint(3, 80, (4,), generator=draw).tolist()
        plain, cached = (
            decode(model, [prompt], ["a"], [frozenset()], settings, [0], pad_token_id=0, cache=cache)[0].ids
            for cache in (None, kept.begin("a", prompt)[0])
        )
        assert plain == cached
        kept.end("a", [*prompt, *cached])
        assert kept.begin("a", [*prompt, *cached, 3])[1] == len(prompt) + 4
        prompt += cached
        if turn == 1:  # the answer is taken back
            prompt = prompt[:-5]


@pytest.mark.parametrize("arch", ["mistral", "gemma3", "gpt2"])
def test_caches_that_cannot_be_shortened_begin_anew(arch: str) -> None:
    """Where a sliding window (here of 16) is full, what was before is lost; shorter ones, and whole ones, go on."""
    model = tiny(arch)
    ids = torch.randint(3, 80, (1, 30), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = model(input_ids=ids).logits[0, -1]
        for first, common in ((25, 20), (12, 8), (25, 25)):
            kept = Kept(model)
            begun = torch.cat([ids[:, :common], ids[:, :1].expand(1, first - common)], dim=1)
            cache, _ = kept.begin("a", begun[0].tolist())
            model(input_ids=begun, past_key_values=cache, use_cache=True)
            kept.end("a", begun[0].tolist())
            assert kept.begin("b", ids[0].tolist())[1] == 0, "keys and values are an adapter's own"
            kept = Kept(model)
            cache, _ = kept.begin("a", begun[0].tolist())
            model(input_ids=begun, past_key_values=cache, use_cache=True)
            kept.end("a", begun[0].tolist())
            cache, length = kept.begin("a", ids[0].tolist())
            sliding = arch != "gpt2" and first > 16 and common < first
            assert length == (0 if sliding else common)
            found = model(input_ids=ids[:, length:], past_key_values=cache, use_cache=True).logits[0, -1]
            assert torch.allclose(found, whole, atol=1e-5)

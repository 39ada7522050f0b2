"""Templates to token ids: what is learned is what the assistant says, its end included, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_tokenizer import byte_tokenizer
from lora.data.rendering import IGNORED, Learned, Renderer
from lora.data.templates import NAMED, find_template
from lora.errors import ConfigError

TOKENIZER = byte_tokenizer()
ENDS = {
    "plain": "</s>", "chatml": "<|im_end|>", "llama3": "<|eot_id|>", "gemma": "<end_of_turn>", "mistral": "</s>",
    "zephyr": "</s>",
}  # fmt: skip
QUICK = settings(max_examples=40, deadline=None)


def renderer(name: str, tokenizer: Any = TOKENIZER, **options: Any) -> Renderer:
    return Renderer(tokenizer, find_template(name, tokenizer)[0], options)


def said(example: Learned, tokenizer: Any = TOKENIZER) -> list[str]:
    """The learned stretches as text."""
    runs: list[list[int]] = []
    for place, label in enumerate(example.labels):
        if label != IGNORED and place and example.labels[place - 1] != IGNORED:
            runs[-1].append(label)
        elif label != IGNORED:
            runs.append([label])
    assert all(label in (IGNORED, token) for token, label in zip(example.ids, example.labels, strict=True))
    return [tokenizer.decode(run) for run in runs]


def talk(*contents: str, system: str | None = None) -> list[dict[str, Any]]:
    roles = ("user", "assistant")
    out = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *out] if system else out


@pytest.mark.parametrize("name", NAMED)
def test_answers_with_their_end_and_nothing_else(name: str) -> None:
    chat, space = renderer(name), " " if name in ("plain", "mistral") else ""
    (example,) = chat.learned(talk("Hi", "Hello you", "And?", "Bye", system="Be kind"), [2, 4], None)
    assert said(example) == [f"{space}Hello you{ENDS[name]}", f"{space}Bye{ENDS[name]}"]
    (last,) = chat.learned(talk("Hi", "Hello you", "And?", "Bye"), [3], None)
    assert said(last) == [f"{space}Bye{ENDS[name]}"]
    assert chat.ends == {TOKENIZER.convert_tokens_to_ids(ENDS[name])}


@given(
    name=st.sampled_from(sorted(NAMED)),
    contents=st.lists(st.text("aé \n:U<s>[]", min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=6),
)
@QUICK
def test_what_is_learned_follows_a_servers_prompt(name: str, contents: list[str]) -> None:
    """Up to the first learned token the ids are those of the prompt that a server would send, whatever is said: words
    of the format inside a message too."""
    chat, messages = renderer(name), talk(*contents)
    for place in range(1, len(messages), 2):
        (example,) = chat.learned(messages[: place + 1], [place], None)
        start = next(i for i, label in enumerate(example.labels) if label != IGNORED)
        assert example.ids[:start] == chat.prompt(messages[:place])
        end = max(i for i, label in enumerate(example.labels) if label != IGNORED)
        assert example.labels[end] in chat.ends and example.labels[start : end + 1] == example.ids[start : end + 1]
    together = chat.learned(messages, range(1, len(messages), 2), None)
    assert sum(one.answers for one in together) == len(messages) // 2


def test_an_answer_that_quotes_the_prompt_is_found_by_its_place() -> None:
    quoting = "assistant\nuser: Hi"
    (example,) = renderer("chatml").learned(talk(quoting, quoting, quoting, "No"), [1], None)
    assert said(example) == [f"{quoting}<|im_end|>"]


def test_a_token_that_would_reach_over_the_beginning_of_an_answer() -> None:
    # "\n\n" is one token: a prompt that ends in a line break, and an answer that begins with one, have two.
    newline = "Ċ"
    tokenizer = byte_tokenizer([(newline, newline)])
    template = "{% for m in messages %}{{ m.role + ':\n' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:\n' }}{% endif %}"  # noqa: E501
    chat = Renderer(tokenizer, template)
    messages = talk("Hi", "\nHello")
    assert tokenizer.convert_tokens_to_ids(newline * 2) in tokenizer(chat.render(messages))["input_ids"]
    (example,) = chat.learned(messages, [1], None)
    start = next(i for i, label in enumerate(example.labels) if label != IGNORED)
    assert example.ids[:start] == chat.prompt(messages[:1]) and said(example, tokenizer) == ["\nHello</s>"]


FORGETFUL = """\
{%- for m in messages -%}
{{- '<|im_start|>' + m.role + '\\n' }}
{%- if m.reasoning_content is defined and loop.last -%}{{ '<think>' + m.reasoning_content + '</think>' }}{%- endif -%}
{{- m.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def test_a_template_that_leaves_out_earlier_reasoning() -> None:
    """Each answer is learned as it is rendered when it is the last: in an example of its own."""
    messages = talk("Hi", "Hello", "And?", "Bye")
    for message, thought in ((messages[1], "first"), (messages[3], "second")):
        message["reasoning_content"] = thought
    found = Renderer(TOKENIZER, FORGETFUL).learned(messages, [1, 3], None)
    assert sorted(text for example in found for text in said(example)) == [
        "<think>first</think>Hello<|im_end|>", "<think>second</think>Bye<|im_end|>",
    ]  # fmt: skip
    assert "first" not in TOKENIZER.decode(found[0].ids), "history as the template shows it"


def test_a_template_without_an_end_gets_the_tokenizers_own() -> None:
    chat = Renderer(TOKENIZER, "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
                               "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}")  # fmt: skip
    assert chat.end is None
    (example,) = chat.learned(talk("Hi", "Hello", "And?", "Bye"), [3], None)
    assert said(example) == ["Bye\n</s>"] and chat.ends == {TOKENIZER.eos_token_id}


def test_a_template_that_prompts_otherwise_than_it_answers() -> None:
    template = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:<think>' }}{% endif %}"  # noqa: E501
    with pytest.raises(ValueError, match=r"message 2 does not begin as .*'<think>' in the prompt, 'Hello"):
        Renderer(TOKENIZER, template).learned(talk("Hi", "Hello"), [1], None)


def test_refusals_of_a_template_are_told() -> None:
    template = "{% if messages|length > 1 %}{{ raise_exception('Roles must alternate') }}{% endif %}{{ messages[0].nosuch.thing }}"  # noqa: E501
    with pytest.raises(ValueError, match="refused by the chat template: Roles must alternate"):
        Renderer(TOKENIZER, template).render(talk("a", "b"))
    with pytest.raises(ValueError, match="refused by the chat template: .*no attribute 'nosuch'"):
        Renderer(TOKENIZER, template).render(talk("a"))


def test_no_beginning_is_doubled() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_bos_token = True
    ids = renderer("llama3", tokenizer).prompt(talk("Hi"))
    assert ids.count(tokenizer.bos_token_id) == 1


def test_a_date_in_the_template_changes_nothing() -> None:
    template = "{% if not date_string is defined %}{% set date_string = strftime_now('%c %f') %}{% endif %}{{ date_string }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"  # noqa: E501
    assert Renderer(TOKENIZER, template).golden() == Renderer(TOKENIZER, template).golden()
    assert "2024" in Renderer(TOKENIZER, template).render(talk("a"))


def test_tools_and_variables_reach_the_template() -> None:
    template = "{{ tools[0].name + mood }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
    assert Renderer(TOKENIZER, template, {"mood": "!"}).render(talk("a"), [{"name": "add"}]) == "add!a</s>"


def test_which_template(tmp_path: Any) -> None:
    tokenizer = byte_tokenizer(extra=[])
    assert find_template(None, tokenizer) == (NAMED["plain"][0], "'plain', since the tokenizer has none")
    with pytest.raises(ConfigError, match=r"'chatml' writes <\|im_start\|>, .*, which the tokenizer does not"):
        find_template("chatml", tokenizer)
    with pytest.raises(ConfigError, match="no file, and as a name unknown; did you mean 'chatml'"):
        find_template("chatlm", tokenizer)
    (tmp_path / "own.jinja").write_text("{{ messages }}", encoding="utf-8")
    assert find_template(str(tmp_path / "own.jinja"), tokenizer)[0] == "{{ messages }}"
    assert find_template("{{ x }}", tokenizer)[0] == "{{ x }}"
    tokenizer.chat_template = "{{ own }}"
    assert find_template(None, tokenizer) == ("{{ own }}", "the tokenizer's own")

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


TRIMMED = ("llama3", "gemma", "mistral")


@given(
    name=st.sampled_from(sorted(NAMED)),
    contents=st.lists(st.text("aé \n:U<s>[]😀\t", min_size=1, max_size=12).filter(str.strip), min_size=2, max_size=7),
    system=st.none() | st.just("Be kind"),
)
@QUICK
def test_what_is_learned_of_a_turn_is_what_it_says_and_its_end(name: str, contents: list[str], system: Any) -> None:
    messages = talk(*contents, system=system)
    (example,) = renderer(name).learned(messages, [i for i, m in enumerate(messages) if m["role"] == "assistant"], None)
    space = " " if name in ("plain", "mistral") else ""
    trimmed = str.strip if name in TRIMMED else str
    assert said(example) == [f"{space}{trimmed(text)}{ENDS[name]}" for text in contents[1::2]]


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


def test_a_date_in_the_template_is_fixed_and_kept() -> None:
    template = "{% if not date_string is defined %}{% set date_string = strftime_now('%c %f') %}{% endif %}{{ date_string }}{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"  # noqa: E501
    chat = Renderer(TOKENIZER, template)
    assert chat.render(talk("a")) == "Fri Jul 26 00:00:00 2024 000000a</s>"
    assert "strftime_now" not in chat.template, "what is kept with the adapter says the same on any day, on any server"
    assert Renderer(TOKENIZER, chat.template).golden() == chat.golden()
    assert Renderer(TOKENIZER, template, {"date_string": "today"}).render(talk("a")) == "todaya</s>"
    with pytest.raises(ConfigError, match="today's date in a form that it makes up itself"):
        Renderer(TOKENIZER, "{{ strftime_now(form) }}")


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


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "é"}}}
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALLING = [
    {"role": "user", "content": "1 + é?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "2"},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "It is 2."},
]  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"chatml"}))
@pytest.mark.parametrize("tools", [None, [TOOL]])
def test_calls_that_a_template_does_not_write_are_refused(name: str, tools: Any) -> None:
    """Else the end of the turn would be all that is learned of it."""
    with pytest.raises(
        ValueError, match="call tools, which the chat template does not write" if not tools else "tools"
    ):
        renderer(name).learned(CALLING, [1, 4], tools)
    with pytest.raises(ValueError, match="call tools, which the chat template does not write"):
        renderer(name).prompt(CALLING[:4])


@pytest.mark.parametrize("name", sorted(set(NAMED) - {"chatml"}))
def test_tools_that_a_template_does_not_write_are_refused(name: str) -> None:
    for render in (lambda: renderer(name).learned(talk("Hi", "Bye"), [1], [TOOL]),
                   lambda: renderer(name).prompt(talk("Hi"), [TOOL])):  # fmt: skip
        with pytest.raises(ValueError, match="have tools, which the chat template does not write; take a template"):
            render()


def test_a_name_among_the_tools_is_no_call() -> None:
    template = "{{ tools | tojson }}" + NAMED["zephyr"][0]
    with pytest.raises(ValueError, match="call tools, which the chat template does not write"):
        Renderer(TOKENIZER, template).learned(CALLING, [1], [TOOL])
    nameless = "{% for m in messages %}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{{ m.content + eos_token }}{% endfor %}"  # noqa: E501
    with pytest.raises(ValueError, match="call tools with arguments, which"):
        Renderer(TOKENIZER, nameless).learned(CALLING, [1], None)


def test_tools_as_qwen_has_them() -> None:
    chat, call = renderer("chatml"), '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "é"}}\n</tool_call>'
    (example,) = chat.learned([{"role": "system", "content": "Be kind"}, *CALLING], [2, 5], [TOOL])
    assert said(example) == [f"{call}\n{call}<|im_end|>", "It is 2.<|im_end|>"]
    assert TOKENIZER.decode(example.ids) == (
        "<|im_start|>system\nBe kind\n\n# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
        '{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}\n</tools>\n\n'
        "For each function call, return a json object with function name and arguments within <tool_call></tool_call> "
        'XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call><|im_end|>\n'
        f"<|im_start|>user\n1 + é?<|im_end|>\n<|im_start|>assistant\n{call}\n{call}<|im_end|>\n"
        "<|im_start|>user\n<tool_response>\n2\n</tool_response>\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\nIt is 2.<|im_end|>\n"
    )
    words = [{**CALLING[1], "content": "I add."}]
    assert chat.render([*CALLING[:1], *words]).endswith(f"assistant\nI add.\n{call}\n{call}<|im_end|>\n")


def test_messages_that_a_template_leaves_out_are_refused() -> None:
    turns = "{% for m in messages if m.role != 'system' %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"  # noqa: E501
    chat = Renderer(TOKENIZER, turns)
    assert chat.learned(talk("Hi", "Bye"), [1], None)
    for render in (lambda: chat.learned(talk("Hi", "Bye", system="Be kind"), [2], None),
                   lambda: chat.prompt(talk("Hi", system="Be kind"))):  # fmt: skip
        with pytest.raises(ValueError, match="have a system message where the chat template does not write it"):
            render()
    assert Renderer(TOKENIZER, turns.replace("m.content", "m.content | upper")).learned(talk("Hi", "BYE"), [1], None)


def test_thoughts_that_a_template_leaves_out_of_an_answer_are_refused() -> None:
    cutting = "{% for m in messages %}{{ m.role + ':' + m.content.split('</think>')[-1] + eos_token }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"  # noqa: E501
    chat, thinking = Renderer(TOKENIZER, cutting), talk("Hi", "<think>hm</think>Bye", "And?", "Nothing")
    with pytest.raises(ValueError, match="have an answer of which the chat template leaves something out"):
        chat.learned(thinking, [1], None)
    (example,) = chat.learned(thinking, [3], None)
    assert said(example) == ["Nothing</s>"], "of earlier answers they may be left out"
    apart = [*talk("Hi"), {"role": "assistant", "content": "Bye", "reasoning_content": "hm"}]
    with pytest.raises(ValueError, match="have answers with reasoning_content, which"):
        renderer("chatml").learned(apart, [1], None)
    assert said(Renderer(TOKENIZER, FORGETFUL).learned(apart, [1], None)[0]) == ["<think>hm</think>Bye<|im_end|>"]

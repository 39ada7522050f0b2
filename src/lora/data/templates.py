"""Chat templates: the tokenizer's own, one of a few known formats by name, or a file.

The named ones write formats that models in use were trained with, for tokenizers that know the format's tokens but
bring no template; ``plain`` needs no tokens but the tokenizer's own end and is what a base without any template gets.
"""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

from lora.errors import ConfigError
from lora.registry import unknown

PLAIN = "plain"
# The day that it is for templates that write today's: the one that Llama's fall back to.
DATE = datetime.datetime(2024, 7, 26)
_TODAY = re.compile(r"""strftime_now\s*\(\s*(?:'([^'\\]*)'|"([^"\\]*)")\s*\)""")

_PLAIN = """\
{{- bos_token | default('', true) -}}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content + '\\n\\n' }}
{%- elif message.role == 'assistant' -%}{{ 'Assistant: ' + message.content + eos_token | default('', true) + '\\n' }}
{%- else -%}{{ message.role | capitalize + ': ' + message.content + '\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ 'Assistant:' }}{%- endif -%}
"""

# Tools as Qwen 2.5 and 3 have them, after Hermes: what is called is JSON within <tool_call>, results are the user's.
_CHATML = """\
{%- if tools -%}
{{- '<|im_start|>system\\n' }}
{%- if messages[0].role == 'system' -%}{{ messages[0].content + '\\n\\n' }}{%- endif -%}
{{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\nYou are provided with ' }}
{{- 'function signatures within <tools></tools> XML tags:\\n<tools>' }}
{%- for tool in tools -%}{{ '\\n' }}{{ tool | tojson }}{%- endfor -%}
{{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments within ' }}
{{- '<tool_call></tool_call> XML tags:\\n<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n' }}
{{- '</tool_call><|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
{%- if loop.first or loop.previtem.role != 'tool' -%}{{ '<|im_start|>user' }}{%- endif -%}
{{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
{%- if loop.last or loop.nextitem.role != 'tool' -%}{{ '<|im_end|>\\n' }}{%- endif -%}
{%- elif not (tools and loop.first and message.role == 'system') -%}
{{- '<|im_start|>' + message.role }}
{%- if message.content or not message.tool_calls -%}{{ '\\n' + message.content }}{%- endif -%}
{%- for call in message.tool_calls or [] -%}
{{- '\\n<tool_call>\\n{"name": "' + call.function.name + '", "arguments": ' }}{{ call.function.arguments | tojson }}
{{- '}\\n</tool_call>' }}
{%- endfor -%}
{{- '<|im_end|>\\n' }}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""

_LLAMA3 = """\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""

# Gemma and Mistral have no system role: its text stands before that of the first user.
_GEMMA = """\
{{- bos_token -}}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{%- set ns.system = message.content + '\\n\\n' -%}
{%- else -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{{- (ns.system if message.role == 'user' else '') + message.content | trim + '<end_of_turn>\\n' }}
{%- if message.role == 'user' -%}{%- set ns.system = '' -%}{%- endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\\n' }}{%- endif -%}
"""

_MISTRAL = """\
{{- bos_token -}}
{%- set ns = namespace(system='') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{%- set ns.system = message.content + '\\n\\n' -%}
{%- elif message.role == 'assistant' -%}{{ ' ' + message.content | trim + eos_token }}
{%- else -%}{{ '[INST] ' + ns.system + message.content + ' [/INST]' }}{%- set ns.system = '' -%}
{%- endif -%}
{%- endfor -%}
"""

_ZEPHYR = """\
{%- for message in messages -%}
{{ '<|' + message.role + '|>\\n' + message.content + eos_token + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}{%- endif -%}
"""

# Name: the template, and the tokens it writes that the tokenizer must know.
NAMED: dict[str, tuple[str, tuple[str, ...]]] = {
    PLAIN: (_PLAIN, ()),
    "chatml": (_CHATML, ("<|im_start|>", "<|im_end|>")),
    "llama3": (_LLAMA3, ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")),
    "gemma": (_GEMMA, ("<start_of_turn>", "<end_of_turn>")),
    "mistral": (_MISTRAL, ("[INST]", "[/INST]")),
    "zephyr": (_ZEPHYR, ()),
}


def find_template(wanted: str | None, tokenizer: Any) -> tuple[str, str]:
    """The text of a template, and where it comes from in a few words.

    Args:
        wanted: a name, a ``.jinja`` file or the text itself; None: the tokenizer's own, or `PLAIN` where it has none.

    Raises:
        ConfigError: there is no such template, or the tokenizer does not know the tokens that it writes.
    """
    own = getattr(tokenizer, "chat_template", None)
    if isinstance(own, dict):  # several of them, by name
        if wanted in own:
            return own[wanted], f"the tokenizer's template {wanted!r}"
        own = own.get("default")
    if wanted is None:
        return (own, "the tokenizer's own") if own else (_PLAIN, f"{PLAIN!r}, since the tokenizer has none")
    if wanted in NAMED:
        text, tokens = NAMED[wanted]
        missing = [token for token in tokens if not is_token(tokenizer, token)]
        if missing:
            raise ConfigError(
                f"data.options.template: {wanted!r} writes {', '.join(missing)}, which the tokenizer does not know as "
                f"one token; add them (new_tokens: {missing}), take {PLAIN!r}, which needs none, or a base whose "
                "tokenizer has them"
            )
        return text, repr(wanted)
    if "{{" in wanted or "{%" in wanted:
        return wanted, "that of the settings"
    path = Path(wanted).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    raise ConfigError(f"data.options.template: {wanted!r} is no file, and as a name {unknown(wanted, NAMED)}")


def dated(template: str) -> str:
    """``template`` with a fixed day in place of today's, of which it would make other tokens tomorrow.

    Raises:
        ConfigError: it writes the date in a form that cannot be told before it is rendered.
    """
    made = _TODAY.sub(lambda found: json.dumps(DATE.strftime(found[1] or found[2] or ""), ensure_ascii=False), template)
    if re.search(r"strftime_now\s*\(", made):
        raise ConfigError(
            "the chat template writes today's date in a form that it makes up itself: its tokens would be others "
            "tomorrow; put a date in place of strftime_now(...) in a copy of it (data.options.template: FILE.jinja)"
        )
    return made


def is_token(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer knows ``text`` as one token."""
    number = tokenizer.convert_tokens_to_ids(text)
    return number is not None and number != tokenizer.unk_token_id

"""Chat templates: the tokenizer's own, one of a few known formats by name, or a file.

The named ones write formats that models in use were trained with, for tokenizers that know the format's tokens but
bring no template; ``plain`` needs no tokens but the tokenizer's own end and is what a base without any template gets.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lora.errors import ConfigError
from lora.registry import unknown

PLAIN = "plain"

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

_CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
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
                f"one token; take {PLAIN!r}, which needs none, or a base whose tokenizer has them"
            )
        return text, repr(wanted)
    if "{{" in wanted or "{%" in wanted:
        return wanted, "that of the settings"
    path = Path(wanted).expanduser()
    if path.is_file():
        return path.read_text(encoding="utf-8"), str(path)
    raise ConfigError(f"data.options.template: {wanted!r} is no file, and as a name {unknown(wanted, NAMED)}")


def is_token(tokenizer: Any, text: str) -> bool:
    """Whether the tokenizer knows ``text`` as one token."""
    number = tokenizer.convert_tokens_to_ids(text)
    return number is not None and number != tokenizer.unk_token_id

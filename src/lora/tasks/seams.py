"""Where prompts and their completions meet: tokenised one behind the other, they may be glued into one word."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lora.plural import number_of
from lora.tasks.tokens import bare_ids

MOST = 0.9  # a share of rows that are glued from which on it is not the odd row
SHOWN = 16  # characters of a word that is quoted
# Beside those of East Asia, whose characters are wide: scripts that write sentences without spaces between words.
UNSPACED = ("THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")


@dataclass
class Seams:
    """What was seen of the rows so far.

    Attributes:
        rows: those whose prompt is not blank.
        glued: those of them in which nothing parts two words.
        ends: last word of a prompt and first of its completion, of the first such row.
        marked: whether all prompts end, or all completions begin, with one sign of the format ("Answer:", "->").
        remark: what `with_tokenizer` found.
    """

    rows: int = 0
    glued: int = 0
    ends: tuple[str, str] | None = None
    marked: list[bool] = field(default_factory=lambda: [True, True])
    remark: str | None = None

    def __repr__(self) -> str:
        # Token ids do not depend on it, and what they depend on is named by a task's attributes (`cache_key`).
        return "Seams"

    def add(self, prompts: Sequence[str], answers: Sequence[str]) -> None:
        """Look at rows; completions are not blank."""
        for prompt, answer in zip(prompts, answers, strict=True):
            if not prompt.strip():
                continue
            self.rows += 1
            if prompt[-1].isspace() or answer[0].isspace() or _unspaced(prompt[-1]) or _unspaced(answer[0]):
                continue
            self.glued += 1
            # Of a long text the words at the seam alone, without splitting all of it.
            ends = (prompt[-100:].split()[-1], answer[:100].split()[0])
            if self.ends is None:
                self.ends = ends
                self.marked = [_sign(ends[0][-1]), _sign(ends[1][0])]
            else:
                self.marked = [was and a == b for was, a, b in zip(self.marked, ends, self.ends, strict=True)]

    def with_tokenizer(self, tokenizer: Any) -> Seams:
        """With the remark that there is to be made, by what ``tokenizer`` makes of a seam: some part words anyway."""
        if self.ends is None or self.glued < MOST * self.rows or any(self.marked):
            return self
        before, after = bare_ids(tokenizer, list(self.ends))
        special = set(tokenizer.all_special_ids)
        if not before or not after or before[-1] in special or after[0] in special:
            return self
        text = tokenizer.decode([*before, *after], clean_up_tokenization_spaces=False)
        if "".join(self.ends) not in text:
            return self
        chat = ""
        if getattr(tokenizer, "chat_template", None):
            chat = ", or learn them as conversations, whose template sets them apart: --task chat (data.task: chat)"
        last, first = self.ends[0][-SHOWN:], self.ends[1][:SHOWN]
        seam = repr(last + first)
        remark = (
            f"In {self.glued:,} of {number_of(self.rows, 'row')} the prompt does not end and the completion does not "
            f"begin with white space, so the answer is glued to the prompt ({seam}). End each prompt with a line break "
            f"or begin each completion with a space, and ask the model in the same form{chat}."
        )
        return replace(self, remark=remark)


def _unspaced(character: str) -> bool:
    name = unicodedata.name(character, "")
    # Wide ones are those of Chinese and Japanese, their marks, and Korean, which has spaces.
    wide = unicodedata.east_asian_width(character) in "WF" and not name.startswith("HANGUL")
    return wide or name.startswith(UNSPACED)


def _sign(character: str) -> bool:
    """Whether a mark belongs to a format rather than to a sentence or a word."""
    return not (character.isalnum() or character in ".,;?!\"'()")

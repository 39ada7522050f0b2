"""Damage and oddities in the characters of texts, which a tokenizer swallows without a word.

Each check is a pattern. What a tokenizer does with it differs; that it was not meant is what they have in common.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lora.checks.findings import Finding, Level, counted, found, share
from lora.data.rows import Row

QUOTES = 2  # places quoted of each finding
AROUND = 18  # characters before and behind
ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}

Places = Callable[[str], Iterator[tuple[int, int]]]


@dataclass(frozen=True)
class Check:
    """``what`` is counted; ``ascii``: whether it can be in a text of ASCII alone."""

    kind: str
    level: Level
    what: str
    why: str
    places: Places
    ascii: bool = False


def _pattern(pattern: str) -> Places:
    compiled = re.compile(pattern)
    return lambda text: (match.span() for match in compiled.finditer(text))


# What cp1252 makes of the second and further bytes of UTF-8 (0x80 to 0xBF).
_TAIL = "\u0080-\u00bf" + re.escape(bytes(range(0x80, 0xA0)).decode("cp1252", "ignore"))
_LEAD = re.compile(rf"[\u00c2-\u00f4][{_TAIL}]+")


def _mojibake(text: str) -> Iterator[tuple[int, int]]:
    """UTF-8 that was read as Windows-1252 or Latin-1 (``Ã¼`` for ``ü``): what becomes valid UTF-8 on the way back."""
    for match in _LEAD.finditer(text):
        if len(match[0]) == 2 and match[0][1] in "“”‘’…–—«»" and match[0][0] not in "ÂÃ":
            continue  # a word that ends in ß before a mark is one, and a sign of NKo by accident
        for encoding in ("cp1252", "latin-1"):
            try:
                match[0].encode(encoding).decode("utf-8")
            except UnicodeError:
                continue
            yield match.span()
            break


def _not_nfc(text: str) -> Iterator[tuple[int, int]]:
    if not unicodedata.is_normalized("NFC", text):
        marks = (place for place, char in enumerate(text) if place and unicodedata.combining(char))
        place = next(marks, 0)
        yield max(place - 1, 0), place + 1


CHECKS = [
    Check("replacement", "look", "U+FFFD, which stands for a character that was lost",
          "read the source anew in its own encoding", _pattern("\ufffd")),
    Check("mojibake", "look", "UTF-8 that was read as Windows-1252 (Ã¼ for ü)",
          "the model learns to write it so; mend it with .encode('cp1252').decode('utf-8')", _mojibake),
    Check("control", "look", "control characters",
          "no text holds them (NUL, escapes); remove them",
          _pattern("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]+"), ascii=True),
    Check("bidi", "look", "characters that turn the direction of writing",
          "what is read is not what is there; they can hide text", _pattern("[\u202a-\u202e\u2066-\u2069]")),
    Check("invisible", "look", "invisible characters (zero width, soft hyphens)",
          "they split words into other tokens, unseen",
          _pattern("[\u00ad\u180e\u200b\u2060\ufeff]|(?<=[a-zA-Z])[\u200c\u200d](?=[a-zA-Z])")),
    Check("tags", "look", "invisible tag characters, which spell out hidden text",
          "a way to smuggle in prompts; remove them",
          _pattern("(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f]+")),
    Check("private", "look", "private-use characters", "their meaning was that of a font (icons, as a rule)",
          _pattern("[\ue000-\uf8ff\U000f0000-\U0010fffd]+")),
    Check("look_alikes", "look", "words of Latin and Cyrillic letters mixed",
          "letters that look the same are other tokens",
          _pattern("[a-zA-Z][\u0400-\u04ff]|[\u0400-\u04ff][a-zA-Z]")),
    Check("html", "look", "HTML tags",
          "left over from a page? they are learned too",
          _pattern(r"</?(?:a|abbr|b|blockquote|body|br|code|div|em|font|h[1-6]|head|hr|html|i|img|input|li|link|meta|ol|p"
                   r"|pre|script|span|strong|style|sub|sup|table|tbody|td|th|tr|u|ul)\b(?:\s[^<>]*)?/?>"), ascii=True),
    Check("entities", "look", "HTML entities", "html.unescape() turns them into characters",
          _pattern(r"&(?:amp|lt|gt|quot|apos|nbsp|ndash|mdash|hellip|[lr][sd]quo|#\d{1,6}|#[xX][0-9a-fA-F]{1,5});"),
          ascii=True),
    Check("windows_lines", "look", "Windows or old Mac line ends", "other tokens than \\n; most data hold \\n alone",
          _pattern("\r\n?"), ascii=True),
    Check("not_nfc", "note", "texts that are not in Unicode's form NFC",
          "letters and their accents apart: other tokens than usual", _not_nfc),
    Check("email", "note", "e-mail addresses", "personal data can be learned by heart",
          _pattern(r"[\w.+-]+@[\w-]+\.[a-zA-Z]{2,}"), ascii=True),
    Check("digits", "note", "numbers of nine digits and more",
          "of telephones, accounts, cards? personal data can be learned by heart",
          _pattern(r"(?<![\d.])\+?\d(?:[ -]?\d){8,}(?!\d)"), ascii=True),
]  # fmt: skip


def special_check(specials: Iterable[str]) -> Check | None:
    """Of special tokens of the tokenizer that stand in a text; None: there are none."""
    texts = sorted({text for text in specials if len(text) > 1}, key=len, reverse=True)
    if not texts:
        return None
    return Check(
        "special", "look", "special tokens written in the texts", "the model takes them for the format itself: whoever "
        "writes the texts can end an answer or speak as another; remove or break them",
        _pattern("|".join(map(re.escape, texts))), ascii=True,
    )  # fmt: skip


def look_at_characters(rows: Sequence[Row], texts: Sequence[Sequence[str]], specials: Iterable[str]) -> list[Finding]:
    """What is odd in ``texts``, those of each of the ``rows``."""
    special = special_check(specials)
    checks = [*([special] if special else []), *CHECKS]
    out = []
    plain = [[text for text in of_row if text.isascii()] for of_row in texts]
    other = [[text for text in of_row if not text.isascii()] for of_row in texts]
    for check in checks:
        indices, quotes, total = list[int](), list[str](), 0
        for index, (simple, rich) in enumerate(zip(plain, other, strict=True)):
            here = 0
            for text in [*simple, *rich] if check.ascii else rich:
                for start, stop in check.places(text):
                    here += 1
                    if here == 1 and len(quotes) < QUOTES:
                        quotes.append(excerpt(text, start, stop))
            if here:
                total += here
                indices.append(index)
        if indices:
            what = f"{check.what}: {total:,} in {counted(len(indices), 'row')} ({share(len(indices), len(rows))})"
            out.append(found(check.kind, check.level, what, check.why, rows, indices, quotes))
    return out


def excerpt(text: str, start: int, stop: int) -> str:
    """``text`` around ``start:stop``, invisible characters by their numbers."""
    first, last = max(start - AROUND, 0), min(stop + AROUND, len(text))
    cut = text[first : min(last, start + 3 * AROUND)]
    return ("…" if first else "") + visible(cut) + ("…" if last < len(text) else "")


def visible(text: str) -> str:
    """``text`` in one line, with what cannot be seen as ``<U+200B>``."""
    return "".join(
        char if char.isprintable() and char != "\ufffd" else ESCAPES.get(char, f"<U+{ord(char):04X}>") for char in text
    )


def scripts(texts: Iterable[str]) -> dict[str, float]:
    """The share of each script among the letters of ``texts``, the most frequent first."""
    letters: Counter[str] = Counter()
    latin = 0
    for text in texts:
        if text.isascii():
            latin += sum(map(str.isalpha, text))
        else:
            letters.update(text)
    counts: Counter[str] = Counter({"Latin": latin} if latin else {})
    for char, count in letters.items():
        if char.isalpha():
            counts[_script(char)] += count
    total = sum(counts.values())
    return {name: count / total for name, count in counts.most_common()} if total else {}


def _script(char: str) -> str:
    """The script of a letter, by the first word of its Unicode name: Python's tables hold no scripts."""
    word = unicodedata.name(char, "OTHER").split()[0]
    return {"CJK": "Han", "FEMININE": "Latin", "MASCULINE": "Latin", "MICRO": "Greek"}.get(word, word.capitalize())

"""Small changes to texts that should not change what is made of them, to measure how robust a model is.

Every function is pure: text, seed and row number give the same result on every machine and in any order of rows.
Numbers, addresses and whatever is no word are left alone, as changing them may change the answer. Letters keep the
marks that combine with them, so no text in any script is torn apart.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from random import Random
from typing import TypeVar

from lora.errors import ConfigError
from lora.statistics.noise_tables import CONTRACTIONS, FILLERS, NEIGHBOURS, OPENERS, SYNONYMS

_APOSTROPHE = re.compile("['\u2019](?=[^\\W\\d_])")
RATE = 0.1  # share of the words that could be changed; at least one is
_SHORT = 4  # letters a word needs for a typo: of shorter ones little is left to be known by
_CONTRACTED = re.compile(rf"\b(?:{'|'.join(CONTRACTIONS)})\b".replace("'", "['\u2019]"), re.IGNORECASE)

Span = tuple[int, int]
Place = TypeVar("Place")


class _Stream(Random):
    """Python's generator through ``random()`` alone, the one method whose values are promised for all versions."""

    def below(self, count: int) -> int:
        return int(self.random() * count)


Change = Callable[[str, _Stream], str]  # a word -> what stands in its place


def words(text: str) -> list[Span]:
    """Start and end of runs of letters with the marks that combine with them, outside of numbers and addresses."""
    out, start = list[Span](), None
    for place, char in enumerate([*text, " "]):
        kind = unicodedata.category(char)[0]
        inside = kind == "L" or (start is not None and (kind == "M" or _APOSTROPHE.match(text, place) is not None))
        if inside and start is None:
            start = place
        elif not inside and start is not None:
            out.append((start, place))
            start = None
    return [span for span in out if _is_word(text, span)]


def _is_word(text: str, span: Span) -> bool:
    """Whether what stands around the letters, up to white space, is no number, address or path."""
    start, end = span
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    while end < len(text) and not text[end].isspace():
        end += 1
    return not re.search(r"[\d@_/\\#<>{}]|\w\.\w", text[start:end])


def letters(word: str) -> list[str]:
    """A word as letters, each with the marks that combine with it."""
    out: list[str] = []
    for char in word:
        if out and unicodedata.category(char)[0] == "M":
            out[-1] += char
        else:
            out.append(char)
    return out


def _neighbour(word: str, stream: _Stream) -> str:
    parts = letters(word)
    fitting = [place for place, letter in enumerate(parts) if letter.lower() in NEIGHBOURS]
    if not fitting:
        return _swapped(word, stream)  # no letter of this keyboard
    place = fitting[stream.below(len(fitting))]
    near = NEIGHBOURS[parts[place].lower()]
    parts[place] = _cased(near[stream.below(len(near))], parts[place])
    return "".join(parts)


def _swapped(word: str, stream: _Stream) -> str:
    parts = letters(word)
    fitting = [place for place in range(len(parts) - 1) if parts[place] != parts[place + 1]]
    if not fitting:
        return word
    place = fitting[stream.below(len(fitting))]
    parts[place : place + 2] = parts[place + 1], parts[place]
    return "".join(parts)


def _dropped(word: str, stream: _Stream) -> str:
    parts = letters(word)
    del parts[stream.below(len(parts))]
    return "".join(parts) or word


def _doubled(word: str, stream: _Stream) -> str:
    parts = letters(word)
    place = stream.below(len(parts))
    return "".join([*parts[: place + 1], *parts[place:]])


def _typo(word: str, stream: _Stream) -> str:
    return (_neighbour, _swapped, _dropped, _doubled)[stream.below(4)](word, stream)


def _case(word: str, stream: _Stream) -> str:
    """Another case, if the script has any: all small, all capital, or the first letter turned."""
    forms = [word.lower(), word.upper(), word[:1].swapcase() + word[1:]]
    others = [form for form in dict.fromkeys(forms) if form != word]
    return others[stream.below(len(others))] if others else word


def _synonym(word: str, stream: _Stream) -> str:
    others = SYNONYMS[word.lower()]
    return _cased(others[stream.below(len(others))], word)


def _cased(new: str, old: str) -> str:
    """``new`` in the case of ``old``."""
    if len(old) > 1 and old.isupper():
        return new.upper()
    return new[:1].upper() + new[1:] if old[:1].isupper() else new


# Within words: what there are words for is also safe for lists of words with a label each.
_WITHIN: dict[str, tuple[Change, Callable[[str], bool]]] = {
    "typos": (_typo, lambda word: len(letters(word)) >= _SHORT),
    "case": (_case, lambda word: word.lower() != word.upper()),
    "synonyms": (_synonym, lambda word: word.lower() in SYNONYMS),
}


def _whitespace(text: str, stream: _Stream, rate: float) -> str:
    gaps = [match.end() for match in re.finditer(r"\S(?= \S)", text)]
    out = text
    for place in sorted(_chosen(gaps, stream, rate), reverse=True):
        out = out[:place] + " " + out[place:]
    return " " + out if stream.random() < 0.5 or not gaps else out + " "


def _punctuation(text: str, stream: _Stream, rate: float) -> str:
    """The last mark dropped, doubled or (where there is none) added; some commas between words dropped."""
    commas = [match.start() for match in re.finditer(r"(?<=[^\W\d]),(?=\s)", text)]
    for place in sorted(_chosen(commas, stream, rate), reverse=True):
        text = text[:place] + text[place + 1 :]
    body = text.rstrip()
    if not body:
        return text
    tail, last = text[len(body) :], body[-1]
    if last in ".!?":
        return (body[:-1] if stream.random() < 0.5 and len(body) > 1 else body + last) + tail
    return body + (".", "!", " .")[stream.below(3)] + tail if last.isalnum() else text


def _contractions(text: str, stream: _Stream, rate: float) -> str:
    """All written out."""
    return _CONTRACTED.sub(lambda m: _cased(CONTRACTIONS[m[0].lower().replace("\u2019", "'")], m[0]), text)


def _fillers(text: str, stream: _Stream, rate: float) -> str:
    spans = words(text)
    if not spans:
        return text
    gaps = [start for start, _ in spans[1:] if text[start - 1] == " "]
    for place in sorted(_chosen(gaps, stream, rate) if gaps else [], reverse=True):
        text = f"{text[:place]}{FILLERS[stream.below(len(FILLERS))]} {text[place:]}"
    return f"{OPENERS[stream.below(len(OPENERS))]}, {text}" if stream.random() < 0.5 or not gaps else text


_AROUND: dict[str, Callable[[str, _Stream, float], str]] = {
    "lower": lambda text, stream, rate: text.lower(),
    "upper": lambda text, stream, rate: text.upper(),
    "whitespace": _whitespace,
    "punctuation": _punctuation,
    "contractions": _contractions,
    "fillers": _fillers,
}
NOISES = (*_WITHIN, *_AROUND)
TOKEN_NOISES = (*_WITHIN, "lower", "upper")


def perturb(text: str, noise: str, *, seed: int, row: int, rate: float = RATE) -> str:
    """``text`` with ``noise``, always the same for one seed and row number.

    Args:
        noise: one of `NOISES`. ``typos`` (a neighbour on the keyboard, two letters swapped, one dropped or doubled),
            ``case``, ``lower``, ``upper``, ``whitespace``, ``punctuation`` are for any script that has such;
            ``contractions``, ``synonyms`` and ``fillers`` are English; the first two leave other texts as they are.
        rate: share of the places that could be changed; at least one of them is.

    Raises:
        ConfigError: an unknown noise, a rate outside 0 to 1.
    """
    stream = _stream(noise, NOISES, seed, row, rate)
    if noise in _AROUND:
        return _AROUND[noise](text, stream, rate)
    change, fits = _WITHIN[noise]
    for start, end in sorted(_chosen([s for s in words(text) if fits(text[slice(*s)])], stream, rate), reverse=True):
        text = text[:start] + change(text[start:end], stream) + text[end:]
    return text


def perturb_tokens(tokens: Sequence[str], noise: str, *, seed: int, row: int, rate: float = RATE) -> list[str]:
    """As `perturb`, of words that have a label each: as many come out, none of them empty, each in its place.

    ``noise``: one of `TOKEN_NOISES`.
    """
    stream = _stream(noise, TOKEN_NOISES, seed, row, rate)
    out = list(tokens)
    if noise in _AROUND:
        return [_AROUND[noise](token, stream, rate) for token in out]
    change, fits = _WITHIN[noise]
    spans = [(place, span) for place, token in enumerate(out) for span in words(token) if fits(token[slice(*span)])]
    for place, (start, end) in sorted(_chosen(spans, stream, rate), reverse=True):
        token = out[place]
        out[place] = token[:start] + change(token[start:end], stream) + token[end:]
    return out


def perturb_all(texts: Sequence[str], noise: str, *, seed: int, rate: float = RATE) -> list[str]:
    """`perturb` of each text, its place being the row number."""
    return [perturb(text, noise, seed=seed, row=row, rate=rate) for row, text in enumerate(texts)]


def _stream(noise: str, known: Sequence[str], seed: int, row: int, rate: float) -> _Stream:
    if noise not in known:
        raise ConfigError(f"noise is {noise!r}; there are {', '.join(known)}")
    if not 0 < rate <= 1:
        raise ConfigError(f"rate is {rate}; it must be above 0 and at most 1")
    return _Stream(f"{noise}:{seed}:{row}")


def _chosen(places: Sequence[Place], stream: _Stream, rate: float) -> list[Place]:
    """``rate`` of the places, at least one where there are any."""
    left, out = list(places), list[Place]()
    for _ in range(max(1, round(rate * len(left))) if left else 0):
        out.append(left.pop(stream.below(len(left))))
    return out

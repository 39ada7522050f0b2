"""Oddities in characters: each check finds what it is for, and leaves good text alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora.checks.characters import excerpt, look_at_characters, scripts, visible

GOOD = [
    "Plain words, a <name> & 3 < 4 > 2; f(a) = b!\nA second line\twith a tab.",
    "„Großer Spaß“ – für Ärzte…, c’est “ÉTÉ”, «où», señor 50 °C, 2 µm, naïve façade",
    "Привет, как дела? 你好，世界。 こんにちは 안녕 مرحبا हिन्दी 👩‍💻 🏴󠁧󠁢󠁥󠁮󠁧󠁿 ❤️",
    "In 2024, 12 345 678 people (12.5 %) paid 1,234.50; see 1.2.3.4.5.6.7.8.9.10",
]


def kinds(*texts: str, specials: tuple[str, ...] = ("<|user|>", "</s>")) -> dict[str, int]:
    rows = [{"text": text} for text in texts]
    return {found.kind: found.rows for found in look_at_characters(rows, [[text] for text in texts], specials)}


@pytest.mark.parametrize("text", GOOD)
def test_good_text_is_left_alone(text: str) -> None:
    assert kinds(text) == {}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("replacement", "caf\ufffd"),
        ("mojibake", "Ã¼ber"),
        ("mojibake", "itâ€™s"),
        ("mojibake", "fiancÃ©"),
        ("mojibake", "10Â°C"),
        ("mojibake", "ÐŸÑ€Ð¸Ð²ÐµÑ‚"),
        ("control", "a\x00b"),
        ("control", "a\x0cb"),
        ("control", "that\u0092s"),
        ("bidi", "a\u202eb"),
        ("invisible", "a\u200bb"),
        ("invisible", "\ufefftext"),
        ("invisible", "soft\u00adhyphen"),
        ("tags", "hello\U000e0068\U000e0069"),
        ("private", "icon \ue001"),
        ("look_alikes", "p\u0430ypal"),
        ("html", "one<br/>two"),
        ("html", '<a href="x">y</a>'),
        ("entities", "R&amp;B"),
        ("entities", "a &#x200B; b"),
        ("windows_lines", "a\r\nb"),
        ("windows_lines", "a\rb"),
        ("not_nfc", "e\u0301t\u00e9"),
        ("email", "write to a.b@example.com"),
        ("digits", "call 0160-555 1234"),
        ("digits", "4111 1111 1111 1111"),
        ("special", "and then <|user|> said"),
    ],
)
def test_what_is_odd_is_found(kind: str, text: str) -> None:
    assert kinds(text, *GOOD) == {kind: 1}


@given(st.text(st.characters(min_codepoint=0xC0, max_codepoint=0xFF), min_size=1, max_size=20))
def test_accented_letters_read_as_windows_1252_are_always_seen(text: str) -> None:
    try:
        broken = text.encode("utf-8").decode("cp1252")
    except UnicodeDecodeError:
        return  # cp1252 has five gaps
    assert "mojibake" in kinds(broken)


def test_counts_rows_and_quotes() -> None:
    rows = [{"text": "fine"}, {"text": "a<br>b<br>"}, {"text": "x" * 60 + "<b>" + "y" * 60}]
    (found,) = look_at_characters(rows, [[row["text"]] for row in rows], [])
    assert found.what == "HTML tags: 3 in 2 rows (66.7 %)" and found.places == "rows 2, 3"
    assert found.quotes == ["a<br>b<br>", "…" + "x" * 18 + "<b>" + "y" * 18 + "…"]


def test_what_cannot_be_seen_is_written_out() -> None:
    assert visible("a\u200b\x00\n\ufffd") == "a<U+200B><U+0000>\\n<U+FFFD>"
    assert excerpt("0123456789" * 5, 25, 26) == "…" + ("0123456789" * 5)[7:44] + "…"


def test_scripts_are_shares_of_letters() -> None:
    found = scripts(["abcd 12!?", "ab да 漢"])
    assert found == pytest.approx({"Latin": 6 / 9, "Cyrillic": 2 / 9, "Han": 1 / 9})
    assert scripts(["123"]) == {} == scripts([])

"""Noise: the same on every machine, small, and never destructive."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora.errors import ConfigError
from lora.statistics.noise import NOISES, TOKEN_NOISES, letters, perturb, perturb_all, perturb_tokens, words
from lora.statistics.noise_tables import CONTRACTIONS, NEIGHBOURS, SYNONYMS

TEXT = "I can't find my parcel, maybe someone at the shop (see shop@example.org, order 4711) has kept it."


def test_the_same_everywhere() -> None:
    # Written out, so that another version of Python or of this code is found out.
    assert (
        perturb("The parcel arrived late and was damaged.", "typos", seed=0, row=0, rate=0.5)
        == "The parel arrived late and was damagedd."
    )
    assert perturb(TEXT, "typos", seed=1, row=2) == perturb(TEXT, "typos", seed=1, row=2)
    assert len({perturb(TEXT, "typos", seed=seed, row=row) for seed in range(5) for row in range(5)}) > 15
    assert perturb_all([TEXT, TEXT], "typos", seed=3) == [perturb(TEXT, "typos", seed=3, row=row) for row in (0, 1)]


@pytest.mark.parametrize("noise", NOISES)
def test_every_noise_changes_a_text_that_it_can(noise: str) -> None:
    changed = [perturb(TEXT, noise, seed=0, row=row) != TEXT for row in range(20)]
    assert sum(changed) >= 19


@pytest.mark.parametrize("noise", ["typos", "case", "synonyms", "contractions"])
def test_numbers_and_addresses_stay(noise: str) -> None:
    for row in range(30):
        said = perturb(TEXT, noise, seed=0, row=row, rate=1.0)
        assert "shop@example.org" in said and "4711" in said


def test_typos_change_about_as_many_words_as_asked() -> None:
    text = " ".join(["message"] * 100)
    for rate in (0.05, 0.2, 1.0):
        said = perturb(text, "typos", seed=0, row=0, rate=rate).split(" ")
        assert sum(word != "message" for word in said) == pytest.approx(100 * rate, abs=3) and len(said) == 100
    short = perturb("late parcel", "typos", seed=0, row=0, rate=0.01)
    assert short != "late parcel", "at least one"


def test_each_noise_does_its_own_thing() -> None:
    assert (
        perturb("I CAN'T, it isn\u2019t and Don't", "contractions", seed=0, row=0) == "I CANNOT, it is not and Do not"
    )
    assert perturb("my parcel", "synonyms", seed=0, row=0) == "my package"
    assert (
        perturb("Parcel", "synonyms", seed=0, row=0) == "Package"
        and perturb("PARCEL", "synonyms", seed=0, row=0) == "PACKAGE"
    )
    for row in range(10):
        assert perturb("one two three", "whitespace", seed=0, row=row).split() == ["one", "two", "three"]
        assert perturb("One, two three.", "case", seed=0, row=row).lower() == "one, two three."
        filled = perturb("where is it", "fillers", seed=0, row=row)
        assert all(word in filled for word in ("where", "is", "it")) and len(filled) > len("where is it")
        assert perturb("where is it?", "punctuation", seed=0, row=row) in ("where is it", "where is it??")


ANY = st.text(max_size=60)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(ANY, st.sampled_from(NOISES), st.integers(0, 3))
def test_any_text_comes_out_whole(text: str, noise: str, row: int) -> None:
    said = perturb(text, noise, seed=0, row=row, rate=0.5)
    assert bool(said.strip()) == bool(text.strip())
    if noise in TOKEN_NOISES:
        assert len(said.split()) == len(text.split()) or noise in ("lower", "upper")


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.text(min_size=1, max_size=12).filter(str.strip), max_size=8), st.sampled_from(TOKEN_NOISES))
def test_words_with_labels_keep_their_places(tokens: list[str], noise: str) -> None:
    said = perturb_tokens(tokens, noise, seed=0, row=0, rate=1.0)
    assert len(said) == len(tokens) and all(token.strip() for token in said)


def test_marks_stay_with_their_letters() -> None:
    decomposed = unicodedata.normalize("NFD", "événement")
    for row in range(40):
        said = perturb(decomposed, "typos", seed=0, row=row)
        assert unicodedata.category(said[0]) != "Mn"
        assert all(unicodedata.category(part[0]) != "Mn" for part in letters(said))
    assert letters("नमस्ते") == ["न", "म", "स्", "ते"]
    family = "👩‍👩‍👧 hello"
    assert all(perturb(family, "typos", seed=0, row=row).startswith("👩‍👩‍👧 ") for row in range(10))


def test_words_leave_out_what_is_none() -> None:
    text = "Mail a@b.de or see http://x.org/y, 12kg of snake_case isn't it"
    assert [text[start:end] for start, end in words(text)] == ["Mail", "or", "see", "of", "isn't", "it"]


def test_tables() -> None:
    assert all(letter in NEIGHBOURS[near] for letter, own in NEIGHBOURS.items() for near in own)
    assert set(NEIGHBOURS["s"]) == set("adwezx")
    assert all(word in SYNONYMS[other] for word, others in SYNONYMS.items() for other in others)
    assert all(word == word.lower() for word in (*SYNONYMS, *CONTRACTIONS))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="noise is 'loud'"):
        perturb("a", "loud", seed=0, row=0)
    with pytest.raises(ConfigError, match="rate"):
        perturb("a", "typos", seed=0, row=0, rate=0)
    with pytest.raises(ConfigError, match="noise is 'fillers'"):
        perturb_tokens(["a"], "fillers", seed=0, row=0)

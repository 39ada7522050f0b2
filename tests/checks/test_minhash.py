"""MinHash against the Jaccard index itself, and what is found by it against comparing all with all."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora.checks.minhash import ORDERS, Shingles, band_rows, jaccard, mix, nearest, signatures

WORDS = [f"word{number}" for number in range(400)]
sentences = st.lists(st.sampled_from(WORDS[:40]), max_size=40).map(" ".join)


def triples(text: str) -> set[tuple[str, ...]]:
    """The runs of three words, the plain way."""
    words = text.split() or [text]
    return {tuple(words[i : i + 3]) for i in range(max(len(words) - 2, 1))}


def true_index(first: str, second: str) -> float:
    a, b = triples(first), triples(second)
    return len(a & b) / len(a | b)


def edited(text: str, changes: int, random_: random.Random) -> str:
    words = text.split()
    for _ in range(changes):
        words[random_.randrange(len(words))] = random_.choice(WORDS)
    return " ".join(words)


def texts(count: int, seed: int, words: int = 60) -> list[str]:
    random_ = random.Random(seed)
    return [" ".join(random_.choices(WORDS, k=random_.randint(words // 2, words))) for _ in range(count)]


@given(st.lists(sentences, min_size=2, max_size=5))
@settings(max_examples=150, deadline=None)
def test_the_index_is_that_of_the_sets_of_word_triples(given: list[str]) -> None:
    shingles = Shingles(given)
    for place in range(len(given)):
        assert len(shingles.of(place)) == len(triples(given[place]))
        assert jaccard(shingles.of(0), shingles.of(place)) == pytest.approx(true_index(given[0], given[place]))


@given(sentences.filter(str.strip), st.integers(0, 30), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_equal_minima_estimate_the_index(text: str, changes: int, seed: int) -> None:
    other = edited(text, changes, random.Random(seed))
    minima = signatures(Shingles([text, other]))
    true = true_index(text, other)
    deviation = math.sqrt(true * (1 - true) / ORDERS)
    assert abs((minima[0] == minima[1]).mean() - true) <= 5.5 * deviation + 1 / ORDERS


def test_the_estimate_has_no_bias_and_the_deviation_that_it_should_have() -> None:
    random_ = random.Random(1)
    first = texts(600, seed=0)
    second = [edited(text, random_.randint(0, 20), random_) for text in first]
    minima = signatures(Shingles([*first, *second]))
    true = np.array([true_index(a, b) for a, b in zip(first, second, strict=True)])
    error = (minima[:600] == minima[600:]).mean(axis=1) - true
    assert abs(error.mean()) < 0.006
    assert error.std() == pytest.approx(np.sqrt((true * (1 - true)).mean() / ORDERS), rel=0.2)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_what_is_found_is_what_comparing_all_with_all_finds(threshold: float) -> None:
    random_ = random.Random(2)
    first = texts(300, seed=3)
    second = [edited(text, random_.randint(0, 8), random_) for text in first[:150]] + texts(50, seed=4)
    best = {
        place: max(true_index(one, other) for one in first) for place, other in enumerate(second)
    }  # fmt: skip
    wanted = {place for place, index in best.items() if index >= threshold}
    pairs = nearest(first, second, threshold)
    found = {pair.second: pair for pair in pairs}
    assert set(found) <= wanted and len(found) >= 0.98 * len(wanted) > 10
    for place, pair in found.items():
        assert pair.jaccard == pytest.approx(best[place])
        assert pair.jaccard == pytest.approx(true_index(first[pair.first], second[place]))
    assert [pair.jaccard for pair in pairs] == sorted((pair.jaccard for pair in pairs), reverse=True)


def test_many_texts_of_one_bucket_do_not_hide_each_other() -> None:
    same = [f"{' '.join(WORDS[:50])} number {place}" for place in range(300)]
    assert len(nearest(same[:150], same[150:], 0.8)) == 150


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("How do I top up?", "how do I, top-up"),
        ("Yes", "yes!"),
        ("これは長い文です", "これは長い文です。"),
        ("...", "..."),
        ("", ""),
    ],
)
def test_case_and_marks_are_no_difference(first: str, second: str) -> None:
    assert [pair.jaccard for pair in nearest([first], [second], 1.0)] == [1.0]


@pytest.mark.parametrize(
    ("first", "second"),
    [("...", "???"), ("yes please", "please yes"), ("a b", "a b c"), ("猫が好きです", "犬が嫌いです")],
)
def test_other_texts_are(first: str, second: str) -> None:
    assert nearest([first], [second], 0.9) == []


def test_nothing_among_nothing() -> None:
    assert nearest([], ["a"], 0.5) == nearest(["a"], [], 0.5) == []


def test_a_pair_at_the_threshold_shares_a_band_almost_always() -> None:
    for threshold in (0.3, 0.5, 0.8, 0.95):
        rows = band_rows(threshold)
        assert 1 - (1 - threshold**rows) ** (ORDERS // rows) >= 0.99
        more = rows + 1
        assert 1 - (1 - threshold**more) ** (ORDERS // more) < 0.99


def test_mixing_is_splitmix64() -> None:
    """The first numbers of the generator seeded with 1234567, as its reference implementation gives them."""
    state, got = 1234567, []
    for _ in range(3):
        got.append(int(mix(np.array([state], dtype=np.uint64))[0]))
        state = (state + 0x9E3779B97F4A7C15) % 2**64
    assert got == [6457827717110365317, 3203168211198807973, 9817491932198370423]

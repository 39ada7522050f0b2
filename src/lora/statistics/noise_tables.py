"""What noise puts in place of what: neighbours on a keyboard, contractions, words of like meaning, fillers.

All but the keyboard is English. Words are small letters; `lora.statistics.noise` keeps the case they were written in.
"""

from __future__ import annotations

_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")


def _neighbours() -> dict[str, str]:
    """Letters left, right, above and below on a QWERTY keyboard, whose rows are offset by about half a key."""
    places = {letter: (row, column) for row, letters in enumerate(_ROWS) for column, letter in enumerate(letters)}
    steps = ((0, -1), (0, 1), (-1, 0), (-1, 1), (1, -1), (1, 0))
    at = {place: letter for letter, place in places.items()}
    return {
        letter: "".join(at[row + down, column + right] for down, right in steps if (row + down, column + right) in at)
        for letter, (row, column) in places.items()
    }


NEIGHBOURS = _neighbours()

# Only those with one reading: "he's" is "he is" or "he has", "I'd" is "I had" or "I would".
CONTRACTIONS = {
    "can't": "cannot",
    "won't": "will not",
    "don't": "do not",
    "doesn't": "does not",
    "didn't": "did not",
    "isn't": "is not",
    "aren't": "are not",
    "wasn't": "was not",
    "weren't": "were not",
    "haven't": "have not",
    "hasn't": "has not",
    "hadn't": "had not",
    "couldn't": "could not",
    "wouldn't": "would not",
    "shouldn't": "should not",
    "i'm": "I am",
    "you're": "you are",
    "we're": "we are",
    "they're": "they are",
    "i've": "I have",
    "you've": "you have",
    "we've": "we have",
    "they've": "they have",
    "i'll": "I will",
    "you'll": "you will",
    "we'll": "we will",
    "they'll": "they will",
}

# Of like meaning and the same part of speech in nearly every sentence; each for each.
ALIKE = (
    ("begin", "start"),
    ("begins", "starts"),
    ("big", "large"),
    ("buy", "purchase"),
    ("bought", "purchased"),
    ("help", "assist"),
    ("mistake", "error"),
    ("answer", "reply"),
    ("answers", "replies"),
    ("show", "display"),
    ("shows", "displays"),
    ("maybe", "perhaps"),
    ("nearly", "almost"),
    ("often", "frequently"),
    ("rarely", "seldom"),
    ("glad", "happy"),
    ("terrible", "awful"),
    ("simple", "easy"),
    ("important", "essential"),
    ("parcel", "package"),
    ("photo", "picture"),
    ("movie", "film"),
    ("shop", "store"),
    ("whole", "entire"),
    ("immediately", "instantly"),
    ("everyone", "everybody"),
    ("someone", "somebody"),
)
_SECOND: dict[str, list[str]] = {}
for _one, _other in ALIKE:
    _SECOND.setdefault(_one, []).append(_other)
    _SECOND.setdefault(_other, []).append(_one)
SYNONYMS = {word: tuple(others) for word, others in _SECOND.items()}

OPENERS = ("well", "so", "ok", "hi", "hello", "just wondering", "quick one", "honestly")
FILLERS = ("actually", "basically", "you know", "I think", "like", "really")

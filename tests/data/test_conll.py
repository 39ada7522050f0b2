"""Files in CoNLL's columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from lora.data.readers import read_file
from lora.data.rows import SourceRow
from lora.errors import DataError

FILE = """-DOCSTART- -X- O O

EU NNP B-ORG
rejects VBZ O

# text = a comment
# NN O
\u00a0 NN O


Peter NNP B-PER
"""


def put(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", [".conll", ".iob"])
def test_sentences_and_their_place(tmp_path: Path, ending: str) -> None:
    found = read_file(put(tmp_path / f"a{ending}", FILE.replace("\u00a0", "x").replace("\n", "\r\n")))
    assert found == [
        {"tokens": ["EU", "rejects"], "column_2": ["NNP", "VBZ"], "tags": ["B-ORG", "O"]},
        {"tokens": ["#", "x"], "column_2": ["NN", "NN"], "tags": ["O", "O"]},
        {"tokens": ["Peter"], "column_2": ["NNP"], "tags": ["B-PER"]},
    ]
    assert [row.number for row in found if isinstance(row, SourceRow)] == [3, 7, 11]
    assert found[0].origin.unit == "line"  # type: ignore[union-attr]


def test_tabs_limit_and_words_alone(tmp_path: Path) -> None:
    file = put(tmp_path / "a.conll", "New York\tB-loc\n\nb\tO\n\nc\tO")
    assert read_file(file, 2) == [{"tokens": ["New York"], "tags": ["B-loc"]}, {"tokens": ["b"], "tags": ["O"]}]
    assert read_file(put(tmp_path / "b.conll", "a\nb\n\nc\n")) == [{"tokens": ["a", "b"]}, {"tokens": ["c"]}]


def test_broken_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_file(put(tmp_path / "a.conll", "a O\nb\n\nc x O\n"))
    message = str(caught.value)
    for part in ("a.conll: 2 rows cannot be read", "line 2: 1 column where the first has 2: b", "line 4: 3 columns"):
        assert part in message
    with pytest.raises(DataError, match="holds nothing"):
        read_file(put(tmp_path / "b.conll", "-DOCSTART- O\n\n"))

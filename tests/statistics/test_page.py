"""The examples of docs/statistics.md run, and print what the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "statistics.md"


def test_examples_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```(python)?\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    space: dict[str, object] = {}
    code = [text for language, text in blocks if language]
    printed = []
    for text in code:
        exec(compile(text, str(PAGE), "exec"), space)
        printed.append(capsys.readouterr().out)
    shown = [text for language, text in blocks if not language]
    assert len(code) == 4 and len(shown) == 1
    # Another version of numpy may draw other resamples: words as they are, numbers about so.
    number = re.compile(r"\d+\.\d+")
    assert number.sub("#", shown[0]) == number.sub("#", printed[0])
    assert [float(x) for x in number.findall(shown[0])] == pytest.approx(
        [float(x) for x in number.findall(printed[0])], abs=0.02
    )
    assert printed[1].startswith("0.804 (0.76") and printed[1].endswith("[(3, 1)]\n")
    assert "None" in printed[3]

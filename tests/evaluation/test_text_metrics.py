"""Metrics of texts: beside sacrebleu's and rouge-score's own calls, and by hand."""

from __future__ import annotations

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from lora.evaluation.text_metrics import signatures_of, text_figures
from lora.tasks.figures import values

ANSWERS = ["The cat sat on the mat near the door.", " a dog barked at the moon all night ", ""]
REFERENCES = [
    ["A cat sat on the mat by the door.", "The cat sat on a mat near the door."],
    ["A dog  Barked at the moon all night"],
    ["Nothing was said at all here.", "Silence.", "Nobody said a word to anyone."],
]


def test_bleu_and_chrf_with_unlike_numbers_of_references() -> None:
    found, signatures = values(text_figures(ANSWERS, REFERENCES)), signatures_of(REFERENCES)
    turned = [[own[k].strip() if k < len(own) else None for own in REFERENCES] for k in range(3)]
    answers = [answer.strip() for answer in ANSWERS]
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, turned).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(answers, turned).score)
    assert 0 < found["bleu"] < 100 and 0 < found["chrf"] < 100
    assert signatures["bleu"].startswith("nrefs:var|case:mixed|") and "tok:13a" in signatures["bleu"]
    assert "nc:6|nw:0" in signatures["chrf"] and sacrebleu.__version__ in signatures["chrf"]
    one = values(text_figures(ANSWERS, [own[-1:] for own in REFERENCES]))
    assert one["bleu"] < found["bleu"], "a second reference can only help"


def test_rouge_l_is_of_the_nearest_reference() -> None:
    found = values(text_figures(ANSWERS, REFERENCES))
    scorer = RougeScorer(["rougeL"])
    best = [
        max(scorer.score(text, answer)["rougeL"].fmeasure for text in own)
        for answer, own in zip(ANSWERS, REFERENCES, strict=True)
    ]
    assert found["rouge_l"] == pytest.approx(sum(best) / 3) and best[2] == 0
    by_hand = values(text_figures(["one two three"], [["one three four five"]]))
    assert by_hand["rouge_l"] == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))


def test_words_of_any_script() -> None:
    found = values(text_figures(["кошка сидит дома"], [["кошка спит дома"]]))
    assert found["rouge_l"] == pytest.approx(2 / 3)


def test_exact_but_for_case_and_white_space() -> None:
    found = values(text_figures(["a  B\nc", "a b c.", "x"], [["A b C"], ["a b c"], ["y", " X "]]))
    assert found["exact_match"] == pytest.approx(2 / 3)
    same = values(text_figures(["one two three four five"], [["one two three four five"]]))
    assert same["bleu"] == pytest.approx(100) and same["chrf"] == pytest.approx(100) and same["rouge_l"] == 1

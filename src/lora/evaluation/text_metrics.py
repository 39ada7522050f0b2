"""How near written answers come to those of the data: BLEU, chrF, ROUGE-L, exact match."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from typing import Any

from lora.statistics.means import EXACT_MATCH, ROUGE_L, right_rows, value_rows
from lora.statistics.texts import BLEU as CORPUS_BLEU
from lora.statistics.texts import CHRF as CORPUS_CHRF
from lora.statistics.texts import bleu_rows, chrf_rows
from lora.tasks.figures import Figures


class _Words:
    """Words for ROUGE-L: those of rouge-score's own tokenizer on English, which has none in any script but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def text_figures(
    answers: Sequence[str], references: Sequence[Sequence[str]], groups: Sequence[Hashable] | None = None
) -> Figures:
    """Metrics of ``answers``, one for each prompt, with the counts and scores of each that they are figures of.

    Args:
        references: of each answer one text or several, any of which would be right.

    Returns:
        ``bleu`` (Papineni et al., 2002) and ``chrf`` (Popović, 2015), of the whole, 0 to 100, as sacrebleu has them;
        ``rouge_l`` (Lin, 2004), F1 of the longest common subsequence of words with the nearest reference, and
        ``exact_match``, the share of answers that equal a reference but for case and white space: means over the
        answers, 0 to 1.
    """
    answers, references = _stripped(answers, references)
    nearest, exact = _each(answers, references)
    return {
        "bleu": (CORPUS_BLEU, bleu_rows(answers, references, groups=groups)),
        "chrf": (CORPUS_CHRF, chrf_rows(answers, references, groups=groups)),
        "rouge_l": (ROUGE_L, value_rows(nearest, groups=groups)),
        "exact_match": (EXACT_MATCH, right_rows(exact, groups=groups)),
    }


def signatures_of(references: Sequence[Sequence[str]]) -> dict[str, str]:
    """How sacrebleu computes ``bleu`` and ``chrf`` beside ``references``, in its own words."""
    from sacrebleu.metrics import BLEU, CHRF

    # sacrebleu wants a first reference of every answer, a second of every answer, ...; None where there is none.
    most = max(map(len, references))
    turned: list[Any] = [[own[place] if place < len(own) else None for own in references] for place in range(most)]
    out = {}
    for key, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        metric.corpus_score([""] * len(references), turned)  # it knows its references once it has been asked
        out[key] = str(metric.get_signature())
    return out


def _stripped(answers: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    return [answer.strip() for answer in answers], [[text.strip() for text in own] for own in references]


def _each(answers: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[list[float], list[bool]]:
    """ROUGE-L of each answer, and whether it is one of its references."""
    from rouge_score.rouge_scorer import RougeScorer

    rouge = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = list(zip(answers, references, strict=True))
    nearest = [float(rouge.score_multi(own, answer)["rougeL"].fmeasure) for answer, own in pairs]
    return nearest, [_normal(answer) in map(_normal, own) for answer, own in pairs]


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()

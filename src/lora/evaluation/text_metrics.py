"""How near written answers come to those of the data: BLEU, chrF, ROUGE-L, exact match."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


class _Words:
    """Words for ROUGE-L: those of rouge-score's own tokenizer on English, which has none in any script but a to z."""

    def tokenize(self, text: str) -> list[str]:
        return re.findall(r"[^\W_]+", text.lower())


def text_metrics(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[str, float], dict[str, str]]:
    """Metrics of ``answers``, one for each prompt, and the signatures of those that have one.

    Args:
        references: of each answer one text or several, any of which would be right.

    Returns:
        ``bleu`` (Papineni et al., 2002) and ``chrf`` (Popović, 2015), of the whole, 0 to 100, by sacrebleu, whose
        signatures say how; ``rouge_l`` (Lin, 2004), F1 of the longest common subsequence of words with the nearest
        reference, and ``exact_match``, the share of answers that equal a reference but for case and white space: means
        over the answers, 0 to 1.
    """
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics import BLEU, CHRF

    answers = [answer.strip() for answer in answers]
    references = [[text.strip() for text in own] for own in references]
    # sacrebleu wants a first reference of every answer, a second of every answer, ...; None where there is none.
    most = max(map(len, references))
    turned: list[Any] = [[own[place] if place < len(own) else None for own in references] for place in range(most)]
    out, signatures = {}, {}
    for key, metric in (("bleu", BLEU()), ("chrf", CHRF())):
        out[key] = float(metric.corpus_score(answers, turned).score)
        signatures[key] = str(metric.get_signature())
    rouge = RougeScorer(["rougeL"], tokenizer=_Words())
    pairs = list(zip(answers, references, strict=True))
    nearest = [float(rouge.score_multi(own, answer)["rougeL"].fmeasure) for answer, own in pairs]
    exact = [_normal(answer) in map(_normal, own) for answer, own in pairs]
    return out | {"rouge_l": sum(nearest) / len(pairs), "exact_match": sum(exact) / len(pairs)}, signatures


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()

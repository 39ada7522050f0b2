"""What was found of forgetting, and its table. How it is measured: `lora.evaluation.forgetting`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from lora.core.routing import BASE
from lora.evaluation.grid import Cell, Grid, pointer
from lora.evaluation.shown import Metric, number, with_ends

STATES = "hidden states"  # the kind of a base without a language head


@dataclass
class Forgetting:
    """Base and adapters on a probe of general text.

    Attributes:
        kind: ``hidden states`` (no language head), or what the base writes: ``next tokens``, say (`Task.running_kind`).
        source: file or hub id of the texts; None: the built-in ones.
        texts, tokens: how many were measured; of hidden states the tokens that the mean is of.
        adapters: name -> figures, ``base`` first. Of tokens ``loss`` and ``perplexity``; of an adapter also
            ``loss_change`` (to the base), ``kl`` and ``same_token``, each a dict of ``value``, ``low`` and ``high``,
            the ends of its 95 % interval over texts, by `lora.statistics.estimate` (None: fewer than six texts).
            Of hidden states ``cosine``, alike.
        per_text: the sums that they come from, text by text: ``tokens``, and by adapter ``loss``, ``kl``, ``same``
            (tokens), or ``cosine``.
        notes: what a user should know, in full sentences.
    """

    kind: str
    source: str | None
    texts: int
    tokens: int
    adapters: dict[str, dict[str, Any]]
    per_text: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def of(self, name: str) -> Forgetting:
        """Base and ``name`` alone."""
        per_text = {key: its for key, its in self.per_text.items() if key in ("tokens", BASE, name)}
        return replace(self, adapters={key: self.adapters[key] for key in (BASE, name)}, per_text=per_text)

    def grid(self, path: str = "/forgetting") -> Grid:
        """The figures as a table; ``path``: where they stand in a report."""
        names = list(self.adapters)
        what = "general texts" if self.source is None else f"texts of {self.source}"
        grid = Grid(f"Forgetting: {self.texts} {what}", ["", *names], [])
        for key, metric in FIGURES.items():
            cells = [self.cell(name, key, path) for name in names]
            if any(cell != "" for cell in cells):
                grid.rows.append([metric.title, *cells])
        grid.below = [(OF_STATES if self.kind == STATES else OF_TOKENS).format(tokens=self.tokens), *self.notes]
        return grid

    def cell(self, name: str, key: str, path: str = "/forgetting") -> Cell:
        """One figure with its interval; an empty text where it was not measured."""
        value, at, metric = self.adapters[name].get(key), path + pointer("adapters", name, key), FIGURES[key]
        if value is None:
            return ""
        if not isinstance(value, dict):
            return number(value, metric, at)
        return with_ends(value, "value", metric, at)


FIGURES = {
    "loss": Metric("loss per token", ".4f", -1),
    "loss_change": Metric("change of it", "+.4f", -1),
    "perplexity": Metric("perplexity", ",.2f", -1),
    "kl": Metric("KL(base ‖ adapter) per token", ".4f", -1),
    "same_token": Metric("the same most likely token", ".1%"),
    "cosine": Metric("cosine of the hidden state", ".4f"),
}
OF_TOKENS = "On {tokens:,} tokens; in brackets 95 % intervals over the texts."
OF_STATES = (
    "The base has no language head, so this is how far the last hidden state (mean over a text's tokens, {tokens:,} in "
    "all) has moved: 1 is not at all. It does not say whether that is for the worse."
)

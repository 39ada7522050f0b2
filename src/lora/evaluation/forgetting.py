"""What an adapter has changed of what its base could do: both on general text that is none of the training data's.

Where the base predicts tokens: the loss per token of each, KL(base ‖ adapter) per token (`lora.core.divergence`), and
the share of tokens at which both find the same one most likely. KL is the finer measure: it grows as soon as the
distribution moves, whichever way, while the loss moves only as far as the text's own tokens are concerned.

How a text is read, the first task says that reads running text with such a base (`Task.for_running_text`). A base
without a language head is looked at by what its layers make of the text: the cosine between base and adapter of the
last hidden state, mean over tokens. It says how far the representation has moved, not whether it has become worse.

Shapes: b row, t token, v vocabulary, h hidden, m position of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lora.config import EVAL_BATCH_SIZE
from lora.core.divergence import cross_sums, probabilities, rows_of_block
from lora.core.routing import BASE
from lora.data.batches import in_order
from lora.errors import DataError
from lora.evaluation.grid import Cell, Grid, pointer
from lora.evaluation.probe import TEXTS
from lora.evaluation.tables import Metric, number
from lora.model.base import pad_token_id
from lora.model.heads import output_heads
from lora.statistics import Rows, SumMetric, estimates
from lora.statistics.metric import ratio
from lora.tasks import Encoded, Task, running_text
from lora.tasks.inference import collated, evaluating, in_batches, to_device, without_cache
from lora.tasks.mixture import Mixture
from lora.tasks.sequence import pad
from lora.tasks.tokens import IGNORED

if TYPE_CHECKING:
    from lora.model.lora import LoRA

LONGEST = 512  # tokens that see each other; a longer text is measured in pieces
MOST = 512  # texts measured; of more so many, evenly over all of them
STATES = "hidden states"  # the kind of a base without a language head
FEWEST_TEXTS = 6  # below this an interval is the range of the texts and looks surer than it is
TEXT_SUMS = "texts of the probe"  # rows of the statistics: sums over a text's tokens, and behind them their number


def _per_token(name: str, place: int, lowest: float, highest: float) -> SumMetric:
    """A sum over another: a text weighs as much as it has tokens."""
    return SumMetric(
        name, (TEXT_SUMS,), "There are no tokens.", None, lowest, highest,
        function=lambda sums: ratio(sums[..., place], sums[..., -1]),
    )  # fmt: skip


OF_TEXTS = [
    _per_token("loss_change", 0, -math.inf, math.inf),
    _per_token("kl", 1, 0.0, math.inf),
    _per_token("same_token", 2, 0.0, 1.0),
]
COSINE = _per_token("cosine", 0, -1.0, 1.0)


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
        ends = [number(value.get(end), metric, f"{at}/{end}") for end in ("low", "high")]
        first = number(value.get("value"), metric, f"{at}/value")
        return first if value.get("low") is None else [first, " (", ends[0], " to ", ends[1], ")"]


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


def measure_forgetting(
    model: LoRA,
    names: Sequence[str],
    tokenizer: Any,
    max_length: int,
    texts: Sequence[str] | None = None,
    source: str | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
) -> Forgetting | str:
    """Base and the adapters ``names`` on general text; a sentence where nothing of the kind can be measured.

    Args:
        max_length: tokens that the model takes; of these `LONGEST` at the most are used.
        texts: of the probe; None: the built-in ones. ``source``: where they are from.
        batch_size: rows of one forward pass, adapters together.

    Raises:
        DataError: a text has no token to predict.
    """
    chosen = _spread(TEXTS if texts is None else texts)
    notes = []
    if texts is not None and len(chosen) < len(texts):
        notes.append(f"{MOST} of the {len(texts):,} texts were measured, evenly over all of them.")
    runs = [BASE, *(name for name in names if name != BASE)]
    length = _length(max_length)
    if not output_heads(model.base):
        return _of_hidden_states(model, runs, tokenizer, length, chosen, source, batch_size, notes)
    try:
        task, encoded = _encoded(model, tokenizer, length, chosen)
    except DataError as error:
        if texts is None:  # a tokenizer of a few words does not know the built-in texts
            return f"the tokenizer makes no tokens of the built-in texts ({error})"
        raise
    per_text = _sums(model, task, encoded, runs, pad_token_id(tokenizer, model.base), batch_size, len(chosen))
    kept = per_text["tokens"] > 0
    tokens = per_text["tokens"][kept]
    adapters: dict[str, dict[str, Any]] = {}
    said = list[str]()
    for name in runs:
        loss = per_text[name]["loss"][kept]
        mean = float(loss.sum() / tokens.sum())
        adapters[name] = {"loss": mean, "perplexity": math.exp(mean) if mean < 709 else math.inf}
        if name != BASE:
            its = per_text[name]
            columns = [loss - per_text[BASE]["loss"][kept], its["kl"][kept], its["same"][kept], tokens]
            figures, about = _estimated(OF_TEXTS, columns)
            adapters[name] |= figures
            said += about
    return Forgetting(
        task.running_kind, source, int(kept.sum()), int(tokens.sum()), adapters,
        {"tokens": tokens.astype(int).tolist(),
         **{name: {key: values[kept].tolist() for key, values in per_text[name].items()} for name in runs}},
        [*([task.running_note] if task.running_note else []), *notes, *dict.fromkeys(said), *encoded.notes],
    )  # fmt: skip


def check_probe(model: LoRA, tokenizer: Any, max_length: int, texts: Sequence[str]) -> None:
    """Raise the DataError that `measure_forgetting` would, before anything is trained."""
    if output_heads(model.base):
        _encoded(model, tokenizer, _length(max_length), _spread(texts))


def _spread(texts: Sequence[str]) -> list[str]:
    """The texts that are measured: `MOST` at the most, evenly over all of them."""
    if len(texts) <= MOST:
        return list(texts)
    return [texts[round(place * (len(texts) - 1) / (MOST - 1))] for place in range(MOST)]


def _length(max_length: int) -> int:
    """Tokens that see each other."""
    return max(2, min(max_length, LONGEST))


def _estimated(
    metrics: Sequence[SumMetric], columns: Sequence[NDArray[np.float64]]
) -> tuple[dict[str, dict[str, float | None]], list[str]]:
    """Each of ``metrics`` of texts whose sums are ``columns`` (texts,), with its interval; and sentences about them."""
    cells = np.column_stack(columns)
    if not np.isfinite(cells).all():  # an adapter that has diverged: nothing can be drawn of it
        with np.errstate(all="ignore"):
            values = [float(metric.function(cells.sum(axis=0))) for metric in metrics]
        return {m.name: {"value": v, "low": None, "high": None} for m, v in zip(metrics, values, strict=True)}, []
    out, said = dict[str, dict[str, float | None]](), list[str]()
    for found in estimates(metrics, Rows.of(TEXT_SUMS, cells)):
        ends = [None if found.units < FEWEST_TEXTS or math.isnan(end) else end for end in (found.low, found.high)]
        out[found.metric] = {"value": found.value, "low": ends[0], "high": ends[1]}
        if found.note and ends[0] is not None:
            said.append(found.note.replace(" rows ", " texts "))  # a row of the statistics is a text
    return out, said


def _encoded(model: LoRA, tokenizer: Any, length: int, texts: list[str]) -> tuple[Task, Encoded]:
    """The task that reads the texts, and the texts as tokens; ``row`` of an example is its text."""
    task = running_text(getattr(model.base, "config", None))
    assert task is not None, "the base has a language head"
    return task, task.encode(list(task.running_rows({"text": text} for text in texts)), tokenizer, length)


@torch.no_grad()
def _sums(
    model: LoRA, task: Task, encoded: Encoded, runs: list[str], pad_id: int, batch_size: int, texts: int
) -> dict[str, Any]:
    """Of each text its tokens, and of each of ``runs`` its loss and, but for the base, its KL and the tokens that both
    find most likely: (texts,) in fp64."""
    out: dict[str, Any] = {"tokens": np.zeros(texts)}
    for name in runs:
        out[name] = {key: np.zeros(texts) for key in (("loss",) if name == BASE else ("loss", "kl", "same"))}
    run = Mixture.of(model, task)
    with evaluating(model), without_cache(model):
        for indices in in_batches(model, task, encoded, max(1, batch_size // len(runs)), len(runs)):
            batch = to_device(collated(model, task, [encoded.examples[i] for i in indices], pad_id), model)
            # A decoder's input is shifted already; else a position predicts the token behind it.
            labels = batch["labels"][:, 1:] if task.next_token else batch["labels"]
            places = (labels != IGNORED).nonzero()
            rows = np.asarray([encoded.examples[i]["row"] for i in indices])[places[:, 0].cpu().numpy()]
            np.add.at(out["tokens"], rows, 1)
            logits = [outputs.logits for _, outputs in run(batch, runs)]
            for name, key, part, values in _of_positions(logits, labels, places, runs):
                np.add.at(out[name][key], rows[part], values.double().cpu().numpy())
    return out


def _of_positions(
    logits: list[Tensor], labels: Tensor, places: Tensor, runs: list[str]
) -> Iterator[tuple[str, str, slice, Tensor]]:
    """(adapter, figure, which of ``places``, its values (m,)), a block of positions at a time: never all in fp32."""
    step = rows_of_block(logits[0][0])
    for start in range(0, len(places), step):
        part = slice(start, start + step)
        row, token = places[part, 0], places[part, 1]
        label = labels[row, token].unsqueeze(1)
        of_base = logits[0][row, token].float()
        likeliest = of_base.argmax(1)
        for name, its in zip(runs, logits, strict=True):
            own = its[row, token].to(torch.float32, copy=True)
            chosen, found = own.gather(1, label), own.argmax(1)
            cross = None if name == BASE else cross_sums(own, of_base.clone())
            normaliser = probabilities(own)
            yield name, "loss", part, (normaliser - chosen).squeeze(1)
            if cross is not None:
                yield name, "kl", part, (cross + normaliser).squeeze(1)
                yield name, "same", part, (found == likeliest).float()


# -- without a language head -------------------------------------------------------------------------------------------


@torch.no_grad()
def _of_hidden_states(
    model: LoRA, runs: list[str], tokenizer: Any, length: int, texts: list[str], source: str | None, batch_size: int,
    notes: list[str],
) -> Forgetting | str:  # fmt: skip
    """The cosine between base and adapter of each text's mean hidden state."""
    if tokenizer is None or not hasattr(getattr(model.base, "config", None), "to_dict"):
        return f"{type(model.base).__name__} has neither a language head nor hidden states that it tells of"
    ids = [list(row) for row in tokenizer(texts, truncation=True, max_length=length, verbose=False)["input_ids"]]
    cosines: dict[str, NDArray[np.float64]] = {name: np.zeros(len(texts)) for name in runs[1:]}
    fill = pad_token_id(tokenizer, model.base)
    with evaluating(model), without_cache(model):
        for indices in in_order([len(row) for row in ids], max(1, batch_size)):
            batch = {
                "input_ids": pad([ids[i] for i in indices], fill, "right"),
                "attention_mask": pad([[1] * len(ids[i]) for i in indices], 0, "right"),
            }
            batch = to_device(batch, model)
            states = []
            for name in runs:
                state = _last_state(model(**batch, adapters=[name] * len(indices), output_hidden_states=True))
                if state is None:
                    return f"{type(model.base).__name__} has neither a language head nor hidden states that it tells of"
                weights = batch["attention_mask"].unsqueeze(2).float()
                states.append((state.float() * weights).sum(1) / weights.sum(1))
            for name, own in zip(runs[1:], states[1:], strict=True):
                cosines[name][indices] = torch.cosine_similarity(own, states[0]).double().cpu().numpy()
    adapters: dict[str, dict[str, Any]] = {BASE: {}}
    said = list[str]()
    for name, own_cosines in cosines.items():
        adapters[name], about = _estimated([COSINE], [own_cosines, np.ones(len(texts))])
        said += about
    per_text: dict[str, Any] = {name: {"cosine": its.tolist()} for name, its in cosines.items()}
    per_text["tokens"] = [len(row) for row in ids]
    return Forgetting(
        STATES, source, len(texts), sum(map(len, ids)), adapters, per_text, [*notes, *dict.fromkeys(said)]
    )


def _last_state(outputs: Any) -> Tensor | None:
    """The last hidden state (b, t, h), of an encoder-decoder its encoder's."""
    state: Tensor | None = getattr(outputs, "encoder_last_hidden_state", None)
    if state is None and (states := getattr(outputs, "hidden_states", None)):
        state = states[-1]
    return state if state is not None and state.dim() == 3 else None

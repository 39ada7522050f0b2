"""A tag for each word: named entities, parts of speech. Shapes: b row, t token, c tag."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lora.core.divergence import disagreements
from lora.data.columns import LABEL, TEXT, Claim, Sign, Table
from lora.data.rows import named
from lora.errors import DataError
from lora.statistics.classes import averaged
from lora.statistics.means import token_rows
from lora.statistics.rows import Rows
from lora.tasks.base import Encoded, Input, Row, Task
from lora.tasks.figures import TOKEN_SHARE, Figures, Groups, by_label, values
from lora.tasks.labels import kind_of, look_alikes, name_of, refuse_unseen, sort_names, typed
from lora.tasks.sequence import pad, padded_ids
from lora.tasks.spans import (
    OUTSIDE,
    Span,
    broken,
    complete,
    pairs,
    scheme_of,
    span_counts,
    spans,
    strict_spans,
    type_of,
)
from lora.tasks.tagged import encode_tagged, read_tagged, words_note
from lora.tasks.tokens import IGNORED, per_row
from lora.tasks.words import Pieces, Words, aligned, listed, split, tags_of, words_of

TOKENS = ("tokens", "words")
TAGS = (
    "tags", "ner_tags", "ner", "labels", "label", "slots", "word_labels", "pos_tags", "pos", "upos",
    "chunk_tags",
)  # fmt: skip


class TokenClassificationTask(Task):
    """Words and a tag for each. The first piece of a word carries its tag.

    Arguments:
        labels: the tags, in the order of the model's outputs.
        label_kind: what tags were in the training data (str, int, …); predictions are given back as that.
        scheme: how tags mark spans, a name of `spans.SCHEMES`; None: each tag stands for itself.
        tokens, tags: names of the columns.
    """

    name = "token-classification"
    roles = ("tokens", "tags")
    to_name = "data.columns {tokens: …, tags: …} to tag words"
    auto_class = "AutoModelForTokenClassification"
    best_metric = "f1"
    measures = {
        "loss": False, "accuracy": True, "precision": True, "recall": True, "f1": True, "f1_strict": True,
        "precision_macro": True, "recall_macro": True, "f1_macro": True,
    }  # fmt: skip
    per_token = True
    agrees = True
    learns = "labels"

    def __init__(
        self,
        labels: list[str],
        label_kind: str = "str",
        scheme: str | None = None,
        tokens: str = "tokens",
        tags: str = "tags",
    ) -> None:
        self.labels: list[str] = list(labels)
        self.label_kind = label_kind
        self.scheme = scheme
        self.tokens = tokens
        self.tags = tags
        self._index = {name: place for place, name in enumerate(self.labels)}
        self.added = list[str]()

    @classmethod
    def recognise(cls, table: Table, asked: bool) -> Claim | None:
        given = table.named
        meant = asked or "tokens" in given or "tags" in given
        tokens = given.get("tokens") or table.get(*TOKENS, *(TEXT if meant else ()))
        found = [name for name in table.every(TAGS) if name != tokens]
        if tokens:  # a column may be called so and be the label of the whole text
            found = [name for name in found if aligned(table, tokens, name)] or (found if meant else [])
        tags = given.get("tags") or next(iter(found), None)
        if tokens and tags:
            roles = {"tokens": tokens, "tags": tags}
            # Beside words, lists of labels are of the words and not of the text.
            sign = Sign.CLEAR if tags.lower() in LABEL else Sign.USUAL
            others = [repr(name) for name in found if name != tags]
            return Claim(Sign.NAMED if meant else sign, roles, "a tag for each word", others)
        if not meant:
            return None
        missing = [role for role, name in (("tokens", tokens), ("tags", tags)) if not name]
        settings = " and ".join(f"data.columns.{role}" for role in missing)
        what = f"no {' and no '.join(missing)} column is recognised; name it with {settings}"
        return Claim(Sign.NAMED, problem=table.error(what))

    @classmethod
    def from_rows(cls, rows: list[Row], columns: Mapping[str, str]) -> TokenClassificationTask:
        """Learn the tags and their scheme. Raises DataError: rows at fault, or a single tag."""
        return cls.from_chunks([rows], columns)

    @classmethod
    def from_chunks(cls, chunks: Iterable[list[Row]], columns: Mapping[str, str]) -> TokenClassificationTask:
        task, first = cls([], **columns), list[Row]()
        # What tags are called depends on the types of all of them; to a dict 1, 1.0 and True would be the same.
        follows = Counter[tuple[Any, Any]]()
        for chunk in chunks:
            first = first or chunk
            task._read(chunk)
            follows.update(pairs([[(type(tag), tag) for tag in tags_of(row.get(task.tags))] for row in chunk], None))
        kind = kind_of([value for _, value in {tag for _, tag in follows}])
        found = Counter[tuple[str, str]]()
        for (before, (_, tag)), count in follows.items():
            found[OUTSIDE if before is None else name_of(before[1], kind), name_of(tag, kind)] += count
        seen = {tag for _, tag in found}
        if len(seen) < 2:
            raise DataError(
                f"{named(first)}column {task.tags!r}: every word has the tag {next(iter(seen))!r}; there is nothing to "
                "tell apart"
            )
        scheme = scheme_of(found)
        task = cls(sort_names(complete(seen, scheme) if scheme else seen), kind, scheme, **columns)
        task.added = [name for name in task.labels if name not in seen]
        return task

    @classmethod
    def made_up(cls, labels: int = 2, token: int = 1) -> tuple[Task, dict[str, Any]]:
        return cls([f"{number}" for number in range(labels)]), {"input_ids": [token, token], "labels": [0, 0], "row": 0}

    def inputs(self) -> list[Input]:
        return [Words(self.tokens)]

    def remarks(self) -> list[str]:
        if self.scheme:
            types = ", ".join(self.types)
            said = [f"The tags mark spans by {self.scheme}, of the types {types}: F1 is that of whole spans."]
        else:
            said = ["The tags mark no spans (there is no scheme such as B-, I-): F1 is that of single tags."]
            if self.label_kind == "int":
                said[0] += " They are numbers; with names, as strings or class names, spans could be told."
        if self.added:
            said.append(f"No row has these tags, which the scheme allows: {', '.join(self.added)}.")
        return [*said, *look_alikes(self.labels)]

    def state(self) -> dict[str, Any]:
        return {
            "task": self.name, "labels": self.labels, "label_kind": self.label_kind, "scheme": self.scheme,
            "tokens": self.tokens, "tags": self.tags,
        }  # fmt: skip

    def model_options(self) -> dict[str, Any]:
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": dict(self._index),
        }

    @property
    def types(self) -> list[str]:
        """The types of spans; of plain tags all but ``O``."""
        return list(dict.fromkeys(type_ for tag in self.labels if (type_ := type_of(tag, self.scheme)) is not None))

    # -- rows to tokens -----------------------------------------------------------------------------------------------

    def _read(self, rows: list[Row], supervised: bool = True) -> tuple[list[list[str]], list[list[str]]]:
        return read_tagged(rows, self.tokens, self.tags if supervised else None, self.label_kind)

    def encode(self, rows: list[Row], tokenizer: Any, max_length: int, supervised: bool = True) -> Encoded:
        """Tokenise word by word, special tokens as the tokenizer sets them; long sentences become several examples.

        Examples hold ``input_ids``, ``labels`` of the same length and ``row`` (index in ``rows``). A label stands at
        the first piece of each word that the example answers for, -100 elsewhere; without ``supervised`` it is 0. Each
        word of a row is answered for by one example, in order, see `words.windows`. A word that gives no piece stands
        as the unknown token. Raises DataError naming every row at fault, ModelError where the tokenizer is a slow one.
        """
        words, tags = self._read(rows, supervised)
        if supervised:
            refuse_unseen([sorted(set(sentence)) for sentence in tags], rows, self.labels)
        marks = [[self._index[tag] for tag in sentence] for sentence in tags] if supervised else None
        made = encode_tagged(rows, words, marks, Pieces.of(tokenizer), max_length)
        faults = [index for index, sentence in enumerate(tags) for _ in range(broken(sentence, self.scheme))]
        what = (
            f"whose tag belongs to no span by {self.scheme} (an I- after O, say), which begin or continue one all the "
            "same, as in seqeval"
        )
        made.notes += words_note(rows, faults, what)
        return made

    def collate(
        self, examples: list[dict[str, Any]], pad_token_id: int, padding_side: str = "right"
    ) -> dict[str, Tensor]:
        """``input_ids``, ``attention_mask``, ``labels``: (b, t) long."""
        return {
            **padded_ids([example["input_ids"] for example in examples], pad_token_id, padding_side),
            "labels": pad([example["labels"] for example in examples], IGNORED, padding_side),
        }

    # -- outputs to answers -------------------------------------------------------------------------------------------

    def row_losses(self, outputs: Any, batch: dict[str, Tensor], label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
        """Cross-entropy summed over a row's words (b,) fp32, and their number (b,).

        Smoothing as in ``torch.nn.functional.cross_entropy``. ``outputs.logits``: (b, t, ≥c); columns beyond this
        task's own are another adapter's and not looked at.
        """
        mask = batch["labels"] != IGNORED
        logs = self._logits(outputs).log_softmax(dim=-1)
        losses = -logs.gather(-1, batch["labels"].clamp(min=0).unsqueeze(-1)).squeeze(-1)
        if label_smoothing:
            losses = (1 - label_smoothing) * losses - label_smoothing * logs.mean(dim=-1)
        return losses.masked_fill(~mask, 0.0).sum(dim=1), mask.sum(dim=1).float()

    def row_disagreements(self, one: Any, other: Any, batch: dict[str, Tensor]) -> Tensor:
        mask = batch["labels"] != IGNORED
        found = disagreements(*(self._logits(outputs)[mask] for outputs in (one, other)))
        return per_row(found, mask)

    @torch.no_grad()
    def predictions(self, outputs: Any, batch: dict[str, Tensor]) -> list[dict[str, Any]]:
        """``{"tags": names, "scores": their probabilities}`` of the words that each row answers for."""
        best = self._logits(outputs).softmax(dim=-1).max(dim=-1)
        found = zip(best.values.cpu(), best.indices.cpu(), (batch["labels"] != IGNORED).cpu(), strict=True)
        return [
            {"tags": [self.labels[place] for place in indices[mask].tolist()], "scores": values[mask].tolist()}
            for values, indices, mask in found
        ]

    def _logits(self, outputs: Any) -> Tensor:
        return outputs.logits[..., : len(self.labels)].float()

    def targets(self, examples: Sequence[dict[str, Any]]) -> list[Any]:
        """``{"row": index, "tags": names}`` of each example: sentences in several windows are put together by row."""
        return [
            {"row": example["row"], "tags": [self.labels[place] for place in example["labels"] if place != IGNORED]}
            for example in examples
        ]

    def labels_in(self, target: Any) -> list[Any]:
        return list(target["tags"])

    def figures(self, predictions: Sequence[Any], targets: Sequence[Any], groups: Groups = None) -> Figures:
        """A row is a sentence, whose windows are put together again; ``groups`` say no more than that."""
        sentences: dict[int, tuple[list[str], list[str]]] = {}
        for prediction, target in zip(predictions, targets, strict=True):
            true, said = sentences.setdefault(target["row"], ([], []))
            true += target["tags"]
            said += prediction["tags"]
        both = list(sentences.values())

        def found(which: Callable[..., list[Span]]) -> Rows:
            of_true, of_said = ([which(sides[side], self.scheme) for sides in both] for side in (0, 1))
            return span_counts(of_true, of_said, self.types)

        loose, strict = found(spans), found(strict_spans)
        right = [sum(a == b for a, b in zip(true, said, strict=True)) for true, said in both]
        words = token_rows(right, [len(true) for true, _ in both])
        out: Figures = {"accuracy": (replace(TOKEN_SHARE, name="accuracy"), words)}
        for rate in ("precision", "recall", "F1"):
            out[rate.lower()] = (averaged(rate, "micro"), loose)
            out[f"{rate.lower()}_macro"] = (averaged(rate, "macro"), loose)
        return {**out, "f1_strict": (averaged("F1", "micro"), strict)}

    def told(self, prediction: Any, target: Any) -> tuple[Any, Any]:
        return target["tags"], prediction["tags"]

    def metrics(self, predictions: list[Any], targets: list[Any], loss_sum: float, count: int) -> dict[str, Any]:
        """Share of words tagged right; precision, recall and F1 of spans, over all and as a mean of the types.

        Spans of a sentence are found in all of its words, as seqeval's default mode does; ``f1_strict`` is that of its
        strict mode. Of plain tags a span is a word whose tag is not ``O``. Where there are none, rates are 0.
        """
        found = self.figures(predictions, targets)
        _, loose = found["f1"]
        each = {key: value or 0.0 for key, value in values(found).items()}
        return {"loss": loss_sum / count, **each, "per_class": by_label(loose)}

    def answers(self, rows: list[Row], encoded: Encoded, predictions: list[Any]) -> list[dict[str, Any]]:
        """Of each row its ``words``, their ``tags`` and ``scores``, and the ``spans`` where tags mark such.

        A span has its ``type``, its ``words``, the place of the ``first`` and ``last`` of them, and as ``score`` the
        mean of theirs; of a text also ``start`` and ``end`` in characters, and ``text``.
        """
        out: list[dict[str, Any]] = [{"words": words_of(row[self.tokens]), "tags": [], "scores": []} for row in rows]
        for example, said in zip(encoded.examples, predictions, strict=True):
            out[example["row"]]["tags"] += said["tags"]
            out[example["row"]]["scores"] += said["scores"]
        for row, answer in zip(rows, out, strict=True):
            if self.scheme:
                cell = row[self.tokens]
                ends = split(cell)[1] if isinstance(listed(cell), str) else None
                answer["spans"] = [_told(span, answer, cell, ends) for span in spans(answer["tags"], self.scheme)]
            answer["tags"] = [typed(tag, self.label_kind) for tag in answer["tags"]]
        return out


def _told(span: Span, answer: dict[str, Any], cell: Any, ends: list[tuple[int, int]] | None) -> dict[str, Any]:
    """A span as it is answered. ``cell``: the row's words, or its text, in which ``ends`` says where each word is."""
    inside = slice(span.start, span.end)
    told = {"type": span.type, "words": answer["words"][inside], "first": span.start, "last": span.end - 1}
    if ends is not None:
        start, end = ends[span.start][0], ends[span.end - 1][1]
        told |= {"start": start, "end": end, "text": cell[start:end]}
    return {**told, "score": sum(answer["scores"][inside]) / (span.end - span.start)}

"""Next-token training without padding: documents in one row, attention per document, the head where it is supervised.

Lengths of text vary so much that a padded batch can be two thirds padding, and of an instruction's tokens only the
answer's have a label. Here neither is computed. Which models can be run so, `lora.training.packable` finds out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lora.core.attention import Document, Row
from lora.core.configs import text_config
from lora.core.divergence import disagreements, divergences
from lora.core.functions import FEWEST_ROWS
from lora.core.head import Reference, chunk_rows, even
from lora.core.layer import AdaptedLayer, is_plain
from lora.core.loss import head_cross_entropy
from lora.core.owned import CastAround, OwnedModule
from lora.core.randomness import seed_of
from lora.core.routing import BASE, Routing
from lora.core.segments import Segment
from lora.model.tree import inner
from lora.tasks.tokens import IGNORED

if TYPE_CHECKING:
    from lora.model.lora import LoRA


class Text:
    """One example's tokens and documents and, for each position that is supervised, the token that should follow.

    An example with ``branches`` (p, c, r, ...) holds a prompt of p tokens and several answers to it, one after another:
    each answer follows the prompt alone, and the prompt is there once.

    Attributes:
        documents: (own tokens, tokens of the prompt that it begins with) of each.
        positions: of each token in what it sees.
        places, labels: where a token is supervised, and which.
    """

    def __init__(self, example: dict[str, Any]) -> None:
        self.ids: list[int] = example["input_ids"]
        prompt, *answers = example.get("branches") or (len(self.ids), 0)
        self.documents = [(prompt + answers[0], 0), *((length, prompt) for length in answers[1:])]
        self.positions = [place for own, before in self.documents for place in range(before, before + own)]
        before = list(range(-1, len(self.ids) - 1))  # of each token the one that predicts it
        start = 0
        for own, shared in self.documents:
            if shared:
                before[start] = shared - 1
            start += own
        labels = example["labels"]
        supervised = [place for place, label in enumerate(labels) if label != IGNORED and place]
        self.places = [before[place] for place in supervised]
        self.labels = [labels[place] for place in supervised]


class Lot(NamedTuple):
    """What goes through one adapter in a pass."""

    name: str  # of the adapter
    owner: str  # whose it is: the base's part for one adapter has nothing to do with that for another
    texts: list[Text]
    seed: int | None
    smoothing: float = 0.0
    r_drop: float = 0.0  # weight of what the first half of its texts and the second, which are the same, differ by

    @property
    def tokens(self) -> int:
        return sum(len(text.ids) for text in self.texts)


class Held(NamedTuple):
    """The base's hidden states (m, h) at those ``places`` of a lot's supervised ones that are held to it by ``kl``;
    ``total`` grows by the KL there."""

    hidden: Tensor
    places: list[int]
    kl: float
    total: Tensor


class Packing:
    """Runs packed passes on one model."""

    def __init__(self, model: LoRA) -> None:
        self.model = model
        config: Any = model.base.config
        text = text_config(config)
        # Gemma caps its logits, Granite divides and Cohere multiplies them.
        self.softcap: float | None = getattr(text, "final_logit_softcapping", None)
        self.scale = float(getattr(text, "logit_scale", None) or 1) / float(getattr(text, "logits_scaling", None) or 1)

    def losses(
        self, examples: Sequence[Sequence[dict[str, Any]]], names: Sequence[str], seeds: dict[str, int] | None,
        smoothing: Sequence[float], reference: Sequence[bool] = (),
        held: Sequence[tuple[float, list[int], Tensor]] = (), r_drop: Sequence[float] = (),
    ) -> list[Tensor]:  # fmt: skip
        """Losses (n,) in fp32 of the supervised positions, for each adapter of ``names`` those of its ``examples``.

        To be called, and its backward too, under `per_document`: blocks recomputed for the backward attend again.

        Args:
            seeds: of what each adapter draws in this pass; None: torch's global generator.
            smoothing: label smoothing of each.
            reference: of which adapters the base computes the same examples too, in the same pass. Its losses, to which
                no gradient goes and in which nothing is dropped, come after all others, in the order of the names.
            held: of each adapter a weight, and the numbers of the examples to whose losses it adds that many times
                KL(base ‖ adapter); the base computes these in the same pass. And a tensor () that grows by this KL.
            r_drop: of each adapter a weight; where it is not 0, its examples are there twice, those of the second half
                as in the first. The loss of a position is then the mean of both, and half that weight times KL from
                one to the other, both ways; the positions are those of the first half.
        """
        lots = [
            Lot(name, name, [Text(example) for example in its], None if seeds is None else seeds[name], smooth, twice)
            for name, its, smooth, twice in zip(names, examples, smoothing, r_drop or [0.0] * len(names), strict=True)
        ]
        if reference:
            chosen = [lot for lot, wanted in zip(lots, reference, strict=True) if wanted]
            lots += [Lot(BASE, f"{BASE} for {lot.name}", lot.texts, None) for lot in chosen]
        count = len(lots)
        compared = {
            place: Lot(BASE, f"{BASE} for {names[place]}", [lots[place].texts[number] for number in numbers], None)
            for place, (_, numbers, _) in enumerate(held)
            if numbers
        }
        lots += compared.values()
        filling = FEWEST_ROWS - sum(lot.tokens for lot in lots)
        if filling > 0 and BASE not in names:  # with fewer, bits would not be those of a row that is shared
            lots.append(Lot(BASE, BASE, [Text({"input_ids": [0] * filling, "labels": [IGNORED] * filling})], None))
        hidden = self._hidden(lots, seeds)
        parts = hidden.split([sum(len(text.places) for text in lot.texts) for lot in lots])
        of_base = dict(zip(compared, parts[count : count + len(compared)], strict=True))
        out = []
        for place, (lot, rows) in enumerate(zip(lots[:count], parts, strict=False)):
            base = None
            if place in of_base:
                kl, numbers, total = held[place]
                base = Held(of_base[place].detach(), _places(lot.texts, numbers), kl, total)
            out.append(self._head(rows if lot.owner == lot.name else rows.detach(), lot, base))
        return out

    def _hidden(self, lots: Sequence[Lot], seeds: dict[str, int] | None) -> Tensor:
        """What the output head is given at the supervised positions of ``lots``: (n, h)."""
        device = next(self.model.parameters()).device
        documents, ids, positions, chosen = list[Document](), list[int](), list[int](), list[int]()
        for lot in lots:
            for number, text in enumerate(lot.texts):
                seed = None if lot.seed is None else seed_of(lot.seed, "document", number)
                start = len(ids)
                drops = lot.name != BASE
                documents += [Document(own, seed, lot.owner, (start, before), drops) for own, before in text.documents]
                ids += text.ids
                positions += text.positions
                chosen += [start + place for place in text.places]
        routing = self._routing(lots, seeds)
        routing.documents = Row(documents)
        with self.model.router.activate(routing), self._tap() as tap:
            self.model.base(
                input_ids=torch.tensor([ids], device=device), position_ids=torch.tensor([positions], device=device),
                use_cache=False,
            )  # fmt: skip
        return tap[0][0].index_select(0, torch.tensor(chosen, device=device))

    def _routing(self, lots: Sequence[Lot], seeds: dict[str, int] | None) -> Routing:
        sizes: dict[str, int] = {}
        for lot in lots:  # those of the base come last and lie together
            sizes[lot.name] = sizes.get(lot.name, 0) + lot.tokens
        if len(sizes) == 1:
            (name,) = sizes
            return Routing.uniform(name, None if seeds is None else seeds.get(name))
        return Routing.of_runs(list(sizes.items()), seeds)

    @property
    def head(self) -> Any:
        return self.model.base.get_output_embeddings()  # type: ignore[operator]

    @contextmanager
    def _tap(self) -> Iterator[list[Tensor]]:
        """For the block the output head computes nothing and notes what it was given."""
        head, seen = self.head, list[Tensor]()

        def note(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen.append(hidden)
            return hidden.new_zeros(1, 1, 1)  # whatever the model does to its logits is quickly done

        before = dict(vars(head))  # accelerate may have put a forward of its own there
        head.__dict__["forward"] = note
        try:
            yield seen
        finally:
            del head.__dict__["forward"]
            if "forward" in before:
                head.__dict__["forward"] = before["forward"]

    def _head(self, hidden: Tensor, lot: Lot, held: Held | None) -> Tensor:
        """Cross-entropy of each of a lot's supervised positions ``hidden`` (n, h)."""
        labels = torch.tensor([label for text in lot.texts for label in text.labels], device=hidden.device)
        if lot.r_drop:
            return self._twice(hidden, labels[: len(labels) // 2], lot)
        # One lot after another: a row's exponentials may be computed in another way at another place in memory.
        with self.model.router.activate(Routing.uniform(lot.name, lot.seed)):
            return self._loss(hidden, labels, lot.name, lot.smoothing, held)

    def _twice(self, hidden: Tensor, labels: Tensor, lot: Lot) -> Tensor:
        """The losses (m,) of a lot whose texts are there twice: of positions ``hidden`` (2·m, h), the second half those
        of the first.

        Chunk by chunk, each with the logits of both, which are made again for the backward: 2·h·v operations more than
        a loss that needs no others.
        """
        one, other = hidden.chunk(2)
        head: Any = inner(self.head)
        width = head.weight.shape[0] if hasattr(head, "weight") else text_config(self.model.base.config).vocab_size
        most = max(1, chunk_rows(hidden.float(), width, None) // 2)

        def chunk(number: int, one: Tensor, other: Tensor, labels: Tensor) -> Tensor:
            # Both in one product: what an adapted head drops is then drawn for each by itself, and for each chunk.
            routing = Routing.uniform(lot.name, None if lot.seed is None else seed_of(lot.seed, "chunk", number))
            with self.model.router.activate(routing):
                head, both = self._head_of(lot.name, torch.cat([one, other]))
                first, second = self._logits(head, both).chunk(2)
            losses = [
                F.cross_entropy(logits, labels, reduction="none", label_smoothing=lot.smoothing)
                for logits in (first, second)
            ]
            return (losses[0] + losses[1]) / 2 + lot.r_drop / 2 * disagreements(first, second)

        parts = [
            checkpoint(
                chunk, number, one[rows], other[rows], labels[rows], use_reentrant=False, preserve_rng_state=False
            )
            for number, rows in enumerate(even(0, len(labels), most))
        ]
        return torch.cat(parts)

    def _loss(self, hidden: Tensor, labels: Tensor, name: str, smoothing: float, held: Held | None) -> Tensor:
        """The cross-entropy of each of one adapter's supervised positions ``hidden`` (n, h), and what is ``held``."""
        # By the adapter's own head: what its neighbours own decides nothing for it.
        head, hidden = self._head_of(name, hidden)
        segments: list[Segment] | None = None
        if isinstance(head, AdaptedLayer):
            segments = head.low_rank_segments(hidden, name)
        elif is_plain(head, hidden, frozen=False):
            segments = []
        if segments is not None:
            layer: Any = inner(head)
            reference = None
            if held is not None:
                its_head, its_hidden = self._head_of(BASE, held.hidden)
                its: Any = inner(its_head)
                reference = Reference(its_hidden, held.places, its.weight, its.bias, held.kl, held.total)
            losses, _ = head_cross_entropy(
                hidden, layer.weight, labels, layer.bias, segments, self.softcap, self.scale, smoothing,
                reference=reference,
            )  # fmt: skip
            return losses
        # A head of which no more is known than that it can be called.
        logits = self._logits(head, hidden)
        losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        if held is None:
            return losses
        with torch.no_grad(), self.model.router.activate(Routing.uniform(BASE)):
            base = self._logits(*self._head_of(BASE, held.hidden))
        places = torch.tensor(held.places, device=hidden.device)
        apart = divergences(logits[places], base)
        held.total.add_(apart.detach().sum())
        return losses.index_add(0, places, held.kl * apart)

    def _head_of(self, name: str, hidden: Tensor) -> tuple[Any, Tensor]:
        """The output head that adapter ``name`` has, and ``hidden`` in the type that it takes."""
        head = self.head
        while isinstance(head, OwnedModule):
            head = head.module(name)
        return (head.inner, hidden.float()) if isinstance(head, CastAround) else (head, hidden)

    def _logits(self, head: Any, hidden: Tensor) -> Tensor:
        """All logits (n, v) in fp32, of a head that can only be called."""
        logits: Tensor = head(hidden.unsqueeze(0))[0].float() * self.scale
        return torch.tanh(logits / self.softcap) * self.softcap if self.softcap else logits


def _places(texts: Sequence[Text], numbers: Sequence[int]) -> list[int]:
    """Where the supervised positions of ``texts[number]`` stand among those of all."""
    starts = list(itertools.accumulate((len(text.places) for text in texts), initial=0))
    return [place for number in numbers for place in range(starts[number], starts[number + 1])]

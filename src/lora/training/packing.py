"""Next-token training without padding: documents in one row, attention per document, the head where it is supervised.

Lengths of text vary so much that a padded batch can be two thirds padding, and of an instruction's tokens only the
answer's have a label. Here neither is computed. Which models can be run so is not looked up in a list: a probe compares
losses with those of the model's own forward, and what does not agree is trained with padded rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lora.core.attention import Document, Row, per_document
from lora.core.configs import text_config
from lora.core.functions import FEWEST_ROWS
from lora.core.layer import AdaptedLayer, is_plain
from lora.core.loss import head_cross_entropy
from lora.core.owned import CastAround, OwnedModule
from lora.core.randomness import seed_of
from lora.core.routing import BASE, Routing
from lora.core.segments import Segment
from lora.model.tree import inner
from lora.tasks.causal import IGNORED
from lora.tasks.inference import collated, evaluating, forward, to_device

if TYPE_CHECKING:
    from lora.model.lora import LoRA
    from lora.training.prepare import Prepared
    from lora.training.trainee import Trainee

# Of the loss of a probe: rounding differs with the order of additions, a wrong mask or scale differs by far more.
AGREEMENT = {torch.float32: 1e-4, torch.float64: 1e-6}
ROUGH = 2e-2  # the same in half precision


class Text:
    """One example's tokens and, for each position that is supervised, the token that should follow."""

    def __init__(self, example: dict[str, Any]) -> None:
        self.ids: list[int] = example["input_ids"]
        following = example["labels"][1:]
        self.places = [place for place, label in enumerate(following) if label != IGNORED]
        self.labels = [following[place] for place in self.places]


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
        self, documents: Sequence[Sequence[dict[str, Any]]], names: Sequence[str], seeds: dict[str, int] | None,
        smoothing: Sequence[float],
    ) -> list[Tensor]:  # fmt: skip
        """Losses (n,) in fp32 of the supervised positions, for each adapter of ``names`` those of its ``documents``.

        To be called, and its backward too, under `per_document`: blocks recomputed for the backward attend again.

        Args:
            seeds: of what each adapter draws in this pass; None: torch's global generator.
            smoothing: label smoothing of each.
        """
        device = next(self.model.parameters()).device
        groups = [[Text(example) for example in examples] for examples in documents]
        owners, filling = list(names), FEWEST_ROWS - sum(len(d.ids) for group in groups for d in group)
        if filling > 0 and BASE not in owners:  # with fewer, bits would not be those of a row that is shared
            owners.append(BASE)
            groups.append([Text({"input_ids": [0] * filling, "labels": [IGNORED] * filling})])
            seeds = seeds and {**seeds, BASE: 0}
        every = [document for group in groups for document in group]
        lengths = [len(document.ids) for document in every]
        routing = self._routing(owners, [sum(len(d.ids) for d in group) for group in groups], seeds)
        routing.documents = Row(
            [
                Document(len(document.ids), None if seeds is None else seed_of(seeds[name], "document", number), name)
                for name, group in zip(owners, groups, strict=True)
                for number, document in enumerate(group)
            ]
        )
        ids = torch.tensor([[token for document in every for token in document.ids]], device=device)
        places = torch.cat([torch.arange(length) for length in lengths]).unsqueeze(0).to(device)
        with self.model.router.activate(routing), self._tap() as tap:
            self.model.base(input_ids=ids, position_ids=places, use_cache=False)
        hidden = tap[0][0]  # (n, h)

        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0).tolist()
        chosen = [start + place for start, d in zip(starts, every, strict=True) for place in d.places]
        labels = torch.tensor([label for document in every for label in document.labels], device=device)
        counts = [sum(len(d.labels) for d in group) for group in groups[: len(names)]]
        supervised = hidden.index_select(0, torch.tensor(chosen, device=device))
        return self._head(supervised, labels, names, counts, seeds, smoothing)

    def _routing(self, names: Sequence[str], sizes: Sequence[int], seeds: dict[str, int] | None) -> Routing:
        if len(names) == 1:
            return Routing.uniform(names[0], None if seeds is None else seeds[names[0]])
        return Routing.of_runs(list(zip(names, sizes, strict=True)), seeds)

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

    def _head(
        self, hidden: Tensor, labels: Tensor, names: Sequence[str], counts: Sequence[int],
        seeds: dict[str, int] | None, smoothing: Sequence[float],
    ) -> list[Tensor]:  # fmt: skip
        """Cross-entropy of the supervised positions ``hidden`` (n, h), which lie adapter by adapter."""
        out, start = [], 0
        for name, count, smooth in zip(names, counts, smoothing, strict=True):
            # One after another: a row's exponentials may be computed in another way at another place in memory.
            rows, its_labels = hidden[start : start + count], labels[start : start + count]
            with self.model.router.activate(Routing.uniform(name, None if seeds is None else seeds[name])):
                out.append(self._loss(rows, its_labels, name, smooth))
            start += count
        return out

    def _loss(self, hidden: Tensor, labels: Tensor, name: str, smoothing: float) -> Tensor:
        """The cross-entropy of each of one adapter's supervised positions ``hidden`` (n, h)."""
        # By the adapter's own head: what its neighbours own decides nothing for it.
        head = self.head
        while isinstance(head, OwnedModule):
            head = head.module(name)
        if isinstance(head, CastAround):
            hidden, head = hidden.float(), head.inner
        segments: list[Segment] | None = None
        if isinstance(head, AdaptedLayer):
            segments = head.low_rank_segments(hidden, name)
        elif is_plain(head, hidden, frozen=False):
            segments = []
        if segments is not None:
            layer: Any = inner(head)
            losses, _ = head_cross_entropy(
                hidden, layer.weight, labels, layer.bias, segments, self.softcap, self.scale, smoothing
            )
            return losses
        # A head of which no more is known than that it can be called.
        logits = head(hidden.unsqueeze(0))[0].float() * self.scale
        if self.softcap:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


@torch.no_grad()
def find_packing(model: LoRA, trainee: Trainee, prepared: Prepared) -> Packing | str:
    """`Packing` where the model computes the same losses so as by its own forward; else why not, in a sentence."""
    if not trainee.task.next_token:
        return f"the task {trainee.task.name} is not next-token prediction"
    base: Any = model.base
    head = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    if head is None or not hasattr(getattr(base, "config", None), "_attn_implementation"):
        return f"{type(base).__name__} has no output head, or no attention that can be told where documents end"
    packing, examples = Packing(model), _some(trainee)
    with evaluating(model):
        try:
            losses = _of_each(packing, trainee.name, examples)
            leaks = _leaks(packing, trainee.name, examples, losses)
            # A row at a time: the full logits of long ones are what packing is there to avoid.
            expected = torch.stack([_own_loss(model, trainee, prepared, example) for example in examples])
        except torch.OutOfMemoryError:
            raise  # padded rows would need more
        except Exception as error:  # whatever a model of unknown make objects to
            return f"{type(base).__name__} does not run on packed rows ({type(error).__name__}: {str(error)[:100]})"
    if leaks:
        return f"documents of a packed row see each other in {type(base).__name__}"
    found = torch.stack([of_one.sum() for of_one in losses])
    difference = float(((found - expected).abs() / expected.abs().clamp(min=1e-6)).max())
    if not difference <= AGREEMENT.get(next(base.parameters()).dtype, ROUGH):
        return f"{type(base).__name__} computes other losses on packed rows (they differ by {difference:.1e})"
    return packing


def _of_each(packing: Packing, name: str, examples: list[dict[str, Any]]) -> list[Tensor]:
    """Losses of the supervised positions of each example, all of them in one row."""
    with per_document(packing.model.base):
        losses = packing.losses([examples], [name], None, [0.0])[0]
    return list(losses.split([len(Text(example).labels) for example in examples]))


def _leaks(packing: Packing, name: str, examples: list[dict[str, Any]], losses: list[Tensor]) -> bool:
    """Whether a document's losses change with the words of its neighbours.

    With their words and nothing else: shapes, and so kernels and their rounding, stay as they are, on every device.
    """
    for other in {0, len(examples) - 1}:
        changed = list(examples)
        changed[other] = {**examples[other], "input_ids": examples[other]["input_ids"][::-1]}
        again = _of_each(packing, name, changed)
        if any(not torch.equal(again[i], losses[i]) for i in range(len(examples)) if i != other):
            return True
    return False


def _own_loss(model: LoRA, trainee: Trainee, prepared: Prepared, example: dict[str, Any]) -> Tensor:
    """The loss sum of one example by the model's own forward and the task's own loss."""
    batch = to_device(collated(model, trainee.task, [example], prepared.pad_token_id, prepared.padding_side), model)
    sums, _ = trainee.task.row_losses(forward(model, batch, [trainee.name]), batch)
    return sums.sum()


def _some(trainee: Trainee) -> list[dict[str, Any]]:
    """Up to four examples of different lengths, the longest first: what a leak between documents shows in."""
    lengths = trainee.data.lengths
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    picked = order[:: max(1, len(order) // 4)][:4]
    return [trainee.data.examples[i] for i in picked]

"""What training takes of memory, measured before it begins, and what a budget makes of it.

A pass of n tokens keeps about a·n bytes for its backward; each adapter in training has gradients and moments beside it.
From a and the budget follow whether layers are recomputed in the backward, how large a pass may be and how many
adapters train at once. None of that changes a result.

a is measured by a forward alone whose kept tensors are counted and dropped, so that it needs no more memory than an
evaluation. It is that of the longest rows of the largest batch: what grows faster than the tokens (attention scores,
where they are kept) is counted at its largest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from lora.core.free import free_bytes, gib
from lora.core.head import chunk_bytes_of
from lora.errors import ConfigError
from lora.model.tree import inner
from lora.training.passes import Passes, Share
from lora.training.processes import Processes

if TYPE_CHECKING:
    from lora.model.lora import LoRA
    from lora.training.participant import Participant

MEMORY_SHARE = 0.7  # of the memory that is free when training begins: the rest is for evaluations and what is not known
SAMPLE = 512  # tokens of the measurement, where one row has no more
# Copies of the largest tensor that come and go beside what is kept. Padded, the model makes all logits: they, their
# gradient and two copies in fp32 are there together. Packed, a chunk of them is counted by itself.
COPIES = {True: 1, False: 4}


@dataclass(frozen=True)
class Memory:
    """What training may use and what it takes, in bytes; the weights are left out on both sides.

    Attributes:
        budget: what training may use.
        per_token: of a pass, kept for its backward.
        beside: of a pass, whatever its size.
        state: of an adapter in training: gradients, moments, mean over steps, the best parameters so far. The largest
            of all adapters.
        largest: tokens of the largest batch of any adapter.
    """

    budget: float
    per_token: float
    beside: float
    state: float
    largest: int

    def needed(self, tokens: int, adapters: int) -> float:
        """Bytes that a pass of ``tokens`` takes while ``adapters`` are in training."""
        return self.beside + self.per_token * tokens + self.state * adapters

    def most_tokens(self, adapters: int) -> int:
        """Tokens of a pass that fits while ``adapters`` are in training; 0: none does."""
        return max(0, int((self.budget - self.needed(0, adapters)) / self.per_token))

    def most_adapters(self, tokens: int) -> int:
        """How many fit that have batches of ``tokens`` each in one pass, where the largest batch must fit too; at
        least 1."""
        room = self.budget - self.beside
        sharing = room / (self.state + self.per_token * tokens)
        beside_the_largest = (room - self.per_token * self.largest) / self.state
        return max(1, int(min(sharing, beside_the_largest)))


@dataclass(frozen=True)
class Plan:
    """What was decided before training.

    Attributes:
        recompute: whether layers are recomputed in the backward.
        memory: what a pass and an adapter take of the budget; None: not measured, since nothing depended on it.
        note: what a user should know.
    """

    recompute: bool
    memory: Memory | None = None
    note: str | None = None


@dataclass(frozen=True)
class Kept:
    """Bytes that autograd keeps of a pass for its backward, the model's own tensors left out.

    Attributes:
        tokens: of the pass.
        whole: all of them.
        recomputed: what would be kept if layers were recomputed, the largest layer counted in full; None: not known of
            this model.
        largest: the largest tensor.
    """

    tokens: int
    whole: int
    recomputed: int | None
    largest: int


def plan(
    passes: Passes, participants: Sequence[Participant], processes: Processes, memory_gib: float | None,
    at_once: int | None, total: int | None = None,
) -> Plan:  # fmt: skip
    """Decide for all ``participants``, alike on all processes. The model must be in training mode.

    Args:
        participants: all, or where more are to come those that need the most.
        memory_gib: the budget of each process; None: `MEMORY_SHARE` of what is free.
        at_once: how many adapters train at the same time; None: that is decided later, within the budget.
        total: how many there will be in all; None: ``participants`` are all.
    """
    total = total or len(participants)
    asked = [p.settings.gradient_checkpointing for p in participants]
    chosen = True if True in asked else False if False in asked else None
    if chosen and not (can_recompute(passes.model) or _is_recomputing(passes.model)):
        raise ConfigError(
            f"training.gradient_checkpointing: {type(passes.model.base).__name__} does not support it; leave it out"
        )
    ahead = [p for p in participants if not p.done]
    # As the first process sees it: others may not see its disk.
    if (chosen is not None and total == 1) or processes.agree(not ahead):
        return Plan(bool(chosen))
    if memory_gib is None:
        budget = MEMORY_SHARE * min(processes.gather(free_memory(passes.model)))
        if processes.device.type == "cpu":
            budget /= processes.count  # they share the machine's memory
    else:
        budget = min(memory_gib, 2**30) * 2**30  # more is not to be had, and would not be a number any more
    adapters = min(at_once or 1, total)
    found = None
    if processes.main:
        kind, can = type(passes.model.base).__name__, can_recompute(passes.model)
        found = decide(
            needs(passes, ahead), budget, adapters, chosen, kind, can, len(ahead) > 1 or total > len(participants)
        )
    agreed: Plan = processes.agree(found)  # the first process has the first batch of every step
    return agreed


@dataclass(frozen=True)
class Needs:
    """What the largest batch of any adapter and an adapter in training take, as measured.

    Attributes:
        kept: of a part of that batch.
        packed: whether its rows go into one.
        head: bytes of the logits that a packed pass holds at a time.
        state: see `Memory`.
        tokens: of the whole batch.
    """

    kept: Kept
    packed: bool
    head: int
    state: int
    tokens: int

    def memory(self, budget: float, recompute: bool) -> Memory:
        """With layers recomputed or not, where it is known what that takes."""
        kept, again = self.kept.whole, self.kept.recomputed
        if recompute and again is not None:
            kept = again
        per_token = (kept + COPIES[self.packed] * self.kept.largest) / self.kept.tokens
        return Memory(budget, per_token, self.head, self.state, self.tokens)


def needs(passes: Passes, participants: Sequence[Participant]) -> Needs:
    """Measure for all ``participants``; the model must be in training mode."""
    tokens, rows, largest = max(((*largest_batch(p), p) for p in participants), key=lambda found: found[0])
    kept = measure(passes, _sample(passes, largest, rows))
    # Of rows held to the base its logits are there too; two passes that are compared have logits, their logarithms and
    # gradients of both, in fp32.
    settings = [p.settings for p in participants]
    buffers = 5 if any(s.r_drop for s in settings) else 2 if any(s.kl for s in settings) else 1
    head = buffers * _head_bytes(passes.model) if largest.packed else 0
    return Needs(kept, largest.packed, head, max(state_bytes(p) for p in participants), tokens)


def decide(
    measured: Needs, budget: float, adapters: int, chosen: bool | None, kind: str, can: bool, several: bool
) -> Plan:
    """What a ``budget`` in bytes makes of what was measured.

    Args:
        adapters: in training at the same time.
        chosen: what the settings say of recomputing layers; None: nothing.
        kind: name of the base's class; whether it ``can`` recompute layers.
        several: whether the run has several adapters.
    """
    tokens = measured.tokens
    whole, again = measured.memory(budget, False).needed(tokens, adapters), None
    recompute = chosen if chosen is not None else whole > budget and can
    memory = measured.memory(budget, recompute)
    if recompute and measured.kept.recomputed is not None:
        again = memory.needed(tokens, adapters)
    if (again if chosen and again is not None else whole) <= budget:
        return Plan(recompute, memory)

    said = f"The largest batch ({tokens:,} tokens) would take {gib(whole)} of the {gib(budget)} that training may use"
    if recompute:
        said += ": layers are recomputed in the backward" + (f", which takes {gib(again)}" if again else "")
    elif chosen is None:
        said += f", and {kind} cannot recompute layers in the backward"
    else:
        said += ", and training.gradient_checkpointing is off"
    if not recompute or (again or 0) > budget:
        fewer = ", or fewer adapters at once (at_once)" if several else ""
        said += (
            ". It may run out of memory: a smaller batch_size with more accumulation or a shorter max_length takes "
            f"less{fewer}; `lora plan` says how much"
        )
    return Plan(recompute, memory, f"{said}.")


def largest_batch(participant: Participant) -> tuple[int, list[int]]:
    """Tokens and rows of the largest batch of the first epoch, padding included; later epochs are drawn alike."""
    trainee = participant.trainee
    steps = range(min(trainee.steps_per_epoch, trainee.total_steps))
    rows = max(
        (batch for step in steps for batch in trainee.batches(step)), key=lambda batch: tokens_of(participant, batch)
    )
    return tokens_of(participant, rows), rows


def tokens_of(participant: Participant, batch: Sequence[int]) -> int:
    """Tokens of a pass with the rows of ``batch``, padding and what the base computes beside them included."""
    trainee = participant.trainee
    lengths = trainee.data.lengths
    held = batch if trainee.task.reference else [i for i in batch if trainee.holds(i)]
    if participant.packed:
        return trainee.times * sum(lengths[i] for i in batch) + sum(lengths[i] for i in held)
    return (trainee.times * len(batch) + len(held)) * max(lengths[i] for i in batch)


def _sample(passes: Passes, participant: Participant, rows: list[int]) -> Share:
    """The longest of ``rows``: as many as have `SAMPLE` tokens together, one at least."""
    trainee = participant.trainee
    longest = sorted(rows, key=lambda i: -trainee.data.lengths[i])
    chosen = longest[: max(1, SAMPLE // trainee.data.lengths[longest[0]])]
    share = passes.next_share(trainee, participant.prepared, participant.packed)
    assert share is not None, "nobody has begun"
    return replace(share, indices=chosen)


def state_bytes(participant: Participant) -> int:
    """Bytes that an adapter takes in training beside its parameters."""
    # Gradient, first and second moment, the average, and a copy of the best where something picks it.
    copies = 3 + participant.trainee.average.asked + (participant.evaluate is not None)
    return sum(copies * p.numel() * p.element_size() for p in participant.trainee.parameters.values())


def _head_bytes(model: LoRA) -> int:
    """Of the logits that a packed pass holds at a time; what another kind of head keeps is counted in the pass."""
    head: Any = inner(model.base.get_output_embeddings())  # type: ignore[operator]
    return chunk_bytes_of(head.weight) if hasattr(head, "weight") else 0


def measure(passes: Passes, share: Share) -> Kept:
    """Count what autograd would keep of a pass with ``share``; nothing is computed beyond the forward."""
    model = passes.model
    # By weak references: while one is held, no other storage can be taken for the one that it was made of.
    own = {StorageWeakRef(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers())}
    outside, inputs = dict[StorageWeakRef, int](), dict[StorageWeakRef, int]()
    layers: list[dict[StorageWeakRef, int]] = []  # of each layer computed what it keeps
    depth = 0  # of layers within layers: the outermost is recomputed

    def note(tensor: Tensor, where: dict[StorageWeakRef, int]) -> None:
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)
        if reference not in own:
            where[reference] = storage.nbytes()

    def enter(_: Any, args: Any, kwargs: Any) -> None:
        nonlocal depth
        depth += 1
        if depth == 1:
            layers.append({})
            for value in (*args, *kwargs.values()):
                if isinstance(value, Tensor):
                    note(value, inputs)

    def leave(*_: Any) -> None:
        nonlocal depth
        depth -= 1

    def pack(tensor: Tensor) -> None:
        note(tensor, layers[-1] if depth else outside)

    with ExitStack() as hooks:
        for module in recomputed_layers(model):
            hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            hooks.callback(module.register_forward_hook(leave).remove)
        hooks.enter_context(torch.autograd.graph.saved_tensors_hooks(pack, lambda nothing: nothing))
        passes.forward([share])
    whole = outside | {ref: size for kept in layers for ref, size in kept.items()}
    recomputed = None
    if layers:
        recomputed = sum((outside | inputs).values()) + max(sum(kept.values()) for kept in layers)
    return Kept(share.tokens, sum(whole.values()), recomputed, max(whole.values(), default=0))


def recomputed_layers(model: LoRA) -> list[torch.nn.Module]:
    """The modules of the base that transformers recomputes one by one."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.base.modules() if isinstance(module, GradientCheckpointingLayer)]


def _kind(model: LoRA) -> str:
    """By which name the base model has the switch: transformers before 5.20 called it another."""
    return "activation" if hasattr(model.base, "activation_checkpointing_disable") else "gradient"


def can_recompute(model: LoRA) -> bool:
    """Whether layers of the base can be recomputed in the backward."""
    switch = hasattr(model.base, f"{_kind(model)}_checkpointing_enable")
    return switch and bool(getattr(model.base, "supports_gradient_checkpointing", True))


def _is_recomputing(model: LoRA) -> bool:
    return bool(getattr(model.base, f"is_{_kind(model)}_checkpointing", False))


@contextmanager
def recomputing(model: LoRA, on: bool) -> Iterator[None]:
    """Gradient checkpointing for the block, on a model that can; what the user has switched on stays on."""
    if not on or _is_recomputing(model):
        yield
        return
    kind = _kind(model)
    getattr(model, f"{kind}_checkpointing_enable")()
    try:
        yield
    finally:
        getattr(model, f"{kind}_checkpointing_disable")()


@contextmanager
def training_mode(model: LoRA) -> Iterator[None]:
    """Training mode for the block, then the mode there was before."""
    before = model.training
    model.train()
    try:
        yield
    finally:
        model.train(before)


def free_memory(model: LoRA) -> float:
    """Bytes that are free on the model's device, what torch holds in reserve included."""
    return free_bytes(next(model.parameters()).device)

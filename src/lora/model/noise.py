"""Noise on embedded tokens while an adapter trains: NEFTune (Jain et al. 2023, arXiv:2310.05914, algorithm 1).

To the embedding of each token of a row, (L, d), is added α/√(L·d) times noise uniform in [-1, 1]. L is the row's own
length: padding has no part in it and gets none, and of documents in one packed row each has its own. The noise is drawn
from the seed of the adapter's batch and the row's number in it, so that neither the layout nor a neighbour changes it,
and whoever computes the embeddings again finds the same.

It is put where Hugging Face puts it: behind the table of tokens, before positions and norms. Of an encoder-decoder it
is the encoder's input that gets it; what the decoder is given is what it is to learn.

Shapes: b row, t token, n tokens of a packed row, d width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lora.core.configs import is_encoder_decoder
from lora.core.randomness import seed_of
from lora.core.routing import Router
from lora.errors import ConfigError
from lora.model.rows import TIME_MAJOR


class Noise(NamedTuple):
    """What one adapter's rows of a pass get.

    Attributes:
        alpha: α.
        seed: of the adapter's batch.
        tokens: (b, t) bool, which places are tokens; None: all.
        lengths: of the documents of a packed row; of padded rows ``tokens`` tells them.
    """

    alpha: float
    seed: int
    tokens: Tensor | None = None
    lengths: Sequence[int] = ()


def embedding_of(base: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The module that embeds tokens, and the one within which it must be called to get noise: the encoder of two.

    Raises:
        ConfigError: there is none, or it is not known which rows it computes.
    """
    kind, config = type(base).__name__, getattr(base, "config", None)
    if getattr(config, "model_type", "") in TIME_MAJOR:
        raise ConfigError(
            f"training.neftune_alpha: {kind} works on tokens first and rows second, so that rows cannot be told apart; "
            "leave it out"
        )
    whole: Any = base
    around: Any = whole.get_encoder() if is_encoder_decoder(config) and hasattr(base, "get_encoder") else base
    for own in (around, whole):
        try:
            found = own.get_input_embeddings()
        except (AttributeError, NotImplementedError):
            continue
        if isinstance(found, nn.Module):
            return found, around
    raise ConfigError(f"training.neftune_alpha: {kind} has no embeddings of tokens to add noise to; leave it out")


class EmbeddingNoise:
    """Adds it to what ``base`` embeds, to each adapter's rows by the routing in force."""

    def __init__(self, base: nn.Module, router: Router) -> None:
        self.base, self.router = base, router

    @contextmanager
    def adding(self, noises: Mapping[str, Noise]) -> Iterator[None]:
        """For the block, while the base is in training mode; ``noises`` by adapter, none for those that get none.

        Raises:
            ConfigError: nothing was embedded.
        """
        if not noises or not self.base.training:
            yield
            return
        embedding, around = embedding_of(self.base)
        inside, calls = 0, 0

        def enter(*_: Any) -> None:
            nonlocal inside
            inside += 1

        def leave(*_: Any) -> None:
            nonlocal inside
            inside -= 1

        def add(_: Any, __: Any, embedded: Tensor) -> Tensor | None:
            nonlocal calls
            if not inside:
                return None
            calls += 1
            return self._with(embedded, noises)

        handles = [
            around.register_forward_pre_hook(enter), around.register_forward_hook(leave, always_call=True),
            embedding.register_forward_hook(add),
        ]  # fmt: skip
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if not calls:
            raise ConfigError(
                f"training.neftune_alpha: {type(self.base).__name__} does not call its {type(embedding).__name__}, so "
                "that no noise reaches it; leave it out"
            )

    def _with(self, embedded: Tensor, noises: Mapping[str, Noise]) -> Tensor:
        routing = self.router.resolve()
        if routing.single is not None:
            return noisy(embedded, noises.get(routing.single))
        parts = routing.split(embedded, "embeddings")
        return routing.join(
            [noisy(rows, noises.get(group.name)) for group, rows in zip(routing.groups, parts, strict=True)], embedded
        )


def noisy(embedded: Tensor, noise: Noise | None) -> Tensor:
    """``embedded`` (b, t, d), or (1, n, d) of a packed row, with its noise."""
    if noise is None:
        return embedded
    width, device = embedded.shape[-1], embedded.device
    lengths = noise.lengths if noise.tokens is None else noise.tokens.sum(1).tolist()
    drawn = []
    for number, length in enumerate(lengths):
        generator = torch.Generator(device).manual_seed(seed_of(noise.seed, "noise", number))
        values = torch.empty(length, width, device=device).uniform_(-1, 1, generator=generator)
        drawn.append(values.mul_(noise.alpha / math.sqrt(max(1, length * width))))
    values = torch.cat(drawn).to(embedded.dtype)
    if noise.tokens is None:
        return embedded + values.view_as(embedded)
    added = torch.zeros_like(embedded)
    added[noise.tokens] = values
    return embedded + added

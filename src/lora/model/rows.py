"""From the names in a call to the routing of its batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lora.core.routing import Router, Routing
from lora.errors import RoutingError

# Models that turn (b, t) around inside: where b equals t no shape tells the two apart.
TIME_MAJOR = ("xlnet", "transfo-xl", "fsmt")


def routing_of(
    base: nn.Module, router: Router, adapters: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]
) -> Routing:
    """The routing of a batch whose rows name ``adapters``.

    Args:
        args, kwargs: of the call; the batch is the first axis of ``input_ids``, else of the first tensor.

    Raises:
        RoutingError: an unknown name, another number of names than rows, or a base that has no rows to tell apart.
    """
    if isinstance(adapters, str):
        raise RoutingError(f"adapters: one name per row is needed; for all rows: with model.using({adapters!r})")
    router.check(adapters)
    if getattr(getattr(base, "config", None), "model_type", "") in TIME_MAJOR and len(set(adapters)) > 1:
        raise RoutingError(f"{type(base).__name__} works on tokens first and rows second: one adapter per batch only")
    values = [kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args, *kwargs.values()]
    first = next((value for value in values if isinstance(value, Tensor) and value.dim() > 0), None)
    if first is not None and first.shape[0] != len(adapters):
        raise RoutingError(
            f"adapters: {len(adapters)} names for a batch of {first.shape[0]} rows; one per row is needed"
        )
    if len(set(adapters)) == 1:
        return Routing.uniform(adapters[0])
    return Routing(adapters, first.shape[1] if first is not None and first.dim() > 1 else None)


def copies_per_prompt(base: nn.Module, kwargs: dict[str, Any]) -> int:
    """How many rows ``generate`` makes of each prompt: beams, or sequences to return."""
    config = kwargs.get("generation_config") or getattr(base, "generation_config", None)

    def option(key: str) -> int:
        value = kwargs.get(key)
        return int(value if value is not None else getattr(config, key, None) or 1)

    return max(option("num_beams"), option("num_return_sequences"))

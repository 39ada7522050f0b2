"""Where the single rows that an adapter trains sit: the input embedding, what shares its tensor, the output head."""

from __future__ import annotations

from torch import nn

from lora.config import AdapterConfig
from lora.core.geometry import geometry_of
from lora.errors import TargetError
from lora.model.heads import input_embedding, output_heads
from lora.model.targets import TargetReport, passed_by
from lora.model.ties import tied_places
from lora.model.tree import inside, matches, unwrapped_modules


def places_of_rows(
    base: nn.Module, config: AdapterConfig, report: TargetReport, owned: list[str], loading: bool = False
) -> list[tuple[str, list[str]]]:
    """The embeddings and heads that ``config.token_rows`` has rows of, each with the places that share them.

    ``config`` is settled by this: ``token_rows`` becomes a list, ``head_rows`` a yes or no.

    Args:
        report, owned: what the adapter adapts and trains in full otherwise.
        loading: take an embedding whatever the code around it does with its weight.

    Raises:
        TargetError: the base has no such rows, or what they belong to is adapted as a whole as well.
    """
    if not config.token_rows:
        return []
    modules, entrance = unwrapped_modules(base), input_embedding(base)
    embedding = modules[entrance] if entrance else None
    if entrance is None or not isinstance(embedding, nn.Embedding):
        raise TargetError(f"token_rows: {type(base).__name__} does not say which module embeds its tokens")
    shared = [place for _, place in tied_places(base, [entrance])]
    heads = sorted(output_heads(base) - set(shared))
    numbers = _numbers(config, [entrance, *shared], heads)
    size = embedding.weight.shape[0]
    if numbers[-1] >= size:
        raise TargetError(
            f"token_rows: there is no token {numbers[-1]}, {entrance} has {size} rows. Make it larger before adapters "
            "sit on it (new_tokens, or lora.add_tokens)"
        )
    taken = {target.path for target in report.adapted}
    taken |= {place for _, place in tied_places(base, list(taken))} if config.tie_embeddings is not False else set()
    for path in (entrance, *shared):
        if path in taken or inside(path, owned):
            how = "adapted as a whole (targets)" if path in taken else "trained in full (modules_to_save)"
            raise TargetError(
                f"token_rows: {path} is {how} by the same adapter, which its rows are part of; leave one out"
            )
    unseen = {} if loading else passed_by(base, modules, (entrance, *shared))
    if entrance in unseen:
        raise TargetError(f"token_rows: {entrance}: {unseen[entrance]}, so its rows would have no effect")
    free = [path for path in heads if not (path in taken or inside(path, owned)) and _has_rows(modules[path], numbers)]
    if config.head_rows and not free and not shared:
        why = f"{heads[0]} is adapted as a whole, or is no linear layer" if heads else "this model has none"
        raise TargetError(f"head_rows: no output head whose rows could be trained: {why}")
    config.token_rows, config.head_rows = numbers, config.head_rows is not False and bool(free)
    return [(entrance, shared), *((path, []) for path in free if config.head_rows)]


def _has_rows(head: nn.Module, numbers: list[int]) -> bool:
    geometry = geometry_of(head)
    return geometry is not None and geometry.kind == "linear" and numbers[-1] < geometry.size()[0]


def _numbers(config: AdapterConfig, embeddings: list[str], heads: list[str]) -> list[int]:
    """The token ids, also where they stand in a table as PEFT has it, by the names of modules."""
    table = config.token_rows
    if isinstance(table, list):
        return table
    for name in table:
        if not any(matches(path, [name]) for path in (*embeddings, *heads)):
            raise TargetError(f"token_rows: {name!r} names neither {embeddings[0]} nor an output head")
    if not any(matches(embeddings[0], [name]) for name in table):
        raise TargetError(f"token_rows: the input embedding ({embeddings[0]}) must be among {', '.join(table)}")
    ids = list(table.values())
    if any(other != ids[0] for other in ids):
        raise TargetError("token_rows: the same ids are needed for all of " + ", ".join(table))
    named = any(matches(path, [name]) for path in heads for name in table)
    config.head_rows = named if config.head_rows is None else config.head_rows
    return ids[0]

"""What is trained in full beside an adapter: the task head, and whatever the checkpoint did not contain."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lora.core.randomness import seed_of
from lora.errors import TargetError
from lora.model.tree import inner, inside, outermost, summary, unwrapped_modules

ALL_MODULES = "all"  # of ``modules_to_save``: every module that has parameters of its own, which is full fine-tuning


def output_heads(model: nn.Module) -> set[str]:
    """Paths of the output embedding (``lm_head``), which belongs to the pretrained model."""
    get = getattr(model, "get_output_embeddings", None)
    try:
        head = get() if callable(get) else None
    except (AttributeError, NotImplementedError):
        head = None
    if head is None:
        return set()
    head = inner(head)
    return {path for path, module in unwrapped_modules(model).items() if module is head}


def input_embedding(model: nn.Module) -> str | None:
    """Path of the token embedding, or None where the model has none or does not say."""
    get = getattr(model, "get_input_embeddings", None)
    try:
        entrance = get() if callable(get) else None
    except (AttributeError, NotImplementedError):
        entrance = None
    if entrance is None:
        return None
    entrance = inner(entrance)
    return next((path for path, module in unwrapped_modules(model).items() if module is entrance), None)


def newly_initialised(model: nn.Module) -> list[str]:
    """Parameters that ``from_pretrained`` did not find in the checkpoint and made up.

    transformers 5 marks each parameter it has loaded; an unmarked one in a marked model is new. A model built from a
    config alone carries no mark at all: nothing is known then, and the list is empty.
    """
    new, loaded = [], 0
    for path, module in unwrapped_modules(model).items():
        for name, parameter in module.named_parameters(recurse=False):
            if getattr(parameter, "_is_hf_initialized", False):
                loaded += 1
            else:
                new.append(f"{path}.{name}")
    return new if loaded else []


def task_heads(model: nn.Module) -> list[str]:
    """Top-level modules with parameters outside a transformers model's body: classifier, score, qa_outputs.

    The output embedding (``lm_head``), and any head that contains it, is part of the pretrained model.
    """
    prefix = getattr(model, "base_model_prefix", "")
    if not prefix or not hasattr(model, prefix):
        return []
    embeddings = output_heads(model)
    heads = []
    for name, module in model.named_children():
        holds_embedding = any(inside(path, [name]) for path in embeddings)
        if name != prefix and not holds_embedding and any(True for _ in module.parameters()):
            heads.append(name)
    return heads


def modules_to_own(model: nn.Module, requested: list[str] | None) -> list[str]:
    """Paths of the modules an adapter gets its own full copy of.

    ``requested`` names modules by how their paths end; ``["all"]`` means every module that has parameters of its own
    (full fine-tuning); None means the task heads and the modules of newly initialised
    parameters; an empty list means none, any other takes what is new along: nobody else could bring it back. Raises
    TargetError for a name that matches nothing.
    """
    if requested == []:
        return []
    if requested == [ALL_MODULES]:
        modules = unwrapped_modules(model).items()
        return outermost(path for path, its in modules if any(own is not None for own in its._parameters.values()))
    for name in requested or []:
        if not ending_in(model, [name]):
            raise TargetError(
                f"modules_to_save: {name!r} matches no module; there are: {summary(unwrapped_modules(model))}"
            )
    return ending_in(model, [*(task_heads(model) if requested is None else requested), *_new_modules(model)])


def _new_modules(model: nn.Module) -> list[str]:
    """Paths of the modules that hold newly initialised parameters, but for output embeddings."""
    modules = unwrapped_modules(model)
    new = [path.rpartition(".")[0] for path in newly_initialised(model)]
    # An output embedding tied to the input's has at most a new bias; a copy of one would leave the other behind.
    entrance = {id(module.weight) for module in modules.values() if isinstance(module, nn.Embedding)}
    new = [path for path in new if path and id(getattr(modules[path], "weight", None)) not in entrance]
    # Nor a copy of what holds the output embedding (BERT's cls.predictions, which has a new bias of its own).
    return [path for path in new if not any(inside(head, [path]) for head in output_heads(model))]


def ending_in(model: nn.Module, names: list[str]) -> list[str]:
    """Modules with parameters whose path ends in one of ``names``, as PEFT reads ``modules_to_save``.

    Letter by letter, not part by part: PEFT takes DistilBERT's ``pre_classifier`` for ``classifier`` too. A folder that
    it is to read must hold what it will look for, so the same is taken here.
    """
    modules = unwrapped_modules(model)
    hits = [path for path in modules if path.endswith(tuple(names))]
    return outermost(path for path in hits if any(True for _ in modules[path].parameters()))


@torch.no_grad()
def draw_new(base: nn.Module, owned: dict[str, nn.Module], seed: int, labels: int | None = None) -> None:
    """Give an adapter's own modules a start of their own where the checkpoint has none: by ``seed``, for ``labels``.

    A head comes as a copy of the one that was made up when the base was loaded. Adapters trained together have one base
    and seeds and labels of their own: drawn here, a head is the same whoever else is trained on that base.

    Args:
        owned: path -> the adapter's copy, changed in place.
        labels: outputs of the layer that has as many as the base has labels; None: as they are.
    """
    config = getattr(base, "config", None)
    std, width = getattr(config, "initializer_range", 0.02), getattr(config, "num_labels", None)
    new = set(newly_initialised(base))
    generator = torch.Generator().manual_seed(seed_of("head", seed))
    for path, module in owned.items():
        for name, layer in module.named_modules():
            inside_path = f"{path}.{name}" if name else path
            if not isinstance(layer, nn.Linear) or f"{inside_path}.weight" not in new:
                continue
            if labels is not None and layer.out_features == width:
                state = {"weight": layer.weight.new_empty(labels, layer.in_features)}
                state |= {} if layer.bias is None else {"bias": layer.bias.new_empty(labels)}
                fit_width(layer, state)
            layer.weight.copy_(torch.empty(layer.weight.shape).normal_(0, std, generator=generator))
            if layer.bias is not None:
                layer.bias.zero_()


def name_labels(base: nn.Module, labels: list[str] | None) -> None:
    """Let ``pipeline`` and a merged model call the outputs by ``labels`` where they have no names yet."""
    config: Any = getattr(base, "config", None)
    known = getattr(config, "id2label", None)
    if labels and known and len(known) == len(labels) and all(str(v) == f"LABEL_{k}" for k, v in known.items()):
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: place for place, label in enumerate(labels)}


def fit_width(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give linear layers of a head the number of outputs that ``tensors`` have."""
    for key, tensor in tensors.items():
        path, _, name = key.rpartition(".")
        owner = module.get_submodule(path)
        if isinstance(owner, nn.Linear) and name in ("weight", "bias") and getattr(owner, name).shape != tensor.shape:
            like = getattr(owner, name)
            setattr(owner, name, nn.Parameter(torch.empty(tensor.shape, dtype=like.dtype, device=like.device)))
            owner.out_features = tensor.shape[0]

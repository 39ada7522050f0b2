"""``LoRA``: a frozen base model that carries any number of adapters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lora.config import AdapterConfig
from lora.core.layer import AdaptedLayer, Slot, TiedSlot
from lora.core.owned import CastAround, OwnedModule
from lora.core.routing import BASE, Router, Routing
from lora.core.token_rows import TiedTokenRows, TokenRows
from lora.core.variant import get_variant
from lora.errors import ConfigError, RoutingError, TargetError
from lora.model.facade import Facade, class_for, keep_state_to_adapters
from lora.model.heads import modules_to_own, task_heads
from lora.model.inject import forget_adapters, leave_shortcuts, route_checkpoints, unwrap, wrap_layer, wrap_owned
from lora.model.merge import merge, plain_copy
from lora.model.rows import copies_per_prompt, routing_of
from lora.model.targets import Target, TargetReport, find_targets
from lora.model.ties import refuse_half_of_a_tie, share_tied, tie_copies
from lora.model.token_rows import places_of_rows
from lora.model.tree import inner, summary


class LoRA(Facade):
    """A frozen base model and its adapters; every row of a batch names its adapter.

    >>> model = LoRA(base_model, rank=4)                        # one adapter, called "default"
    >>> model.add_adapter("b", rank=16, targets="attention")    # another, on the same weights
    >>> model(**batch, adapters=["default", "b", "base"])       # one name per row; "base" means none
    >>> with model.using("b"): model.generate(**inputs)         # one for all rows

    Args:
        base_model: any torch module, any transformers model. It is used in place: adapted layers are wrapped, weights
            are frozen and never written to. `unload` gives it back as it was.
        name: name of the first adapter; None makes none.
        settings: fields of `AdapterConfig` (``rank=4, targets="attention"``), PEFT's spellings included.

    Attributes that ``LoRA`` does not have are the base model's (``model.config``, ``model.generate``).

    Raises:
        ConfigError, TargetError: see `AdapterConfig` and `find_targets`.
    """

    def __new__(cls, base_model: nn.Module | None = None, *args: Any, **kwargs: Any) -> LoRA:
        # transformers' Trainer and pipelines read the class name and forward's signature to learn what a model takes.
        if not isinstance(base_model, nn.Module):
            return super().__new__(cls)
        return super().__new__(class_for(cls, type(base_model)))  # type: ignore[arg-type]

    def __init__(self, base_model: nn.Module, name: str | None = "default", **settings: Any) -> None:
        super().__init__()
        if isinstance(base_model, LoRA):
            raise ConfigError("this model already carries adapters; use add_adapter to put another on it")
        if not isinstance(base_model, nn.Module):
            raise ConfigError(f"base_model must be a torch module, not {type(base_model).__name__}")
        if any(isinstance(module, (AdaptedLayer, OwnedModule)) for module in base_model.modules()):
            raise ConfigError(
                "this base model is in use by another LoRA; add_adapter there, or unload() that one first"
            )
        if name is None and settings:
            raise ConfigError(f"settings {sorted(settings)} are for an adapter, but name=None makes none")
        self.base = base_model
        self.adapters = {}
        self.reports: dict[str, TargetReport] = {}
        self.notes: dict[str, dict[str, Any]] = {}  # per adapter: what is stored beside it (task, labels, lineage)
        self.tokenizers: dict[str, Any] = {}  # per adapter: one to store beside it, which knows its own tokens
        self.__dict__["router"] = Router(self.adapters)
        keep_state_to_adapters(self)
        route_checkpoints(base_model, self.router)
        self._frozen = {path for path, parameter in base_model.named_parameters() if parameter.requires_grad}
        base_model.requires_grad_(False)
        self.train(base_model.training)
        if name is not None:
            try:
                self.add_adapter(name, **settings)
            except Exception:
                self.unload()
                raise

    # -- adapters -----------------------------------------------------------------------------------------------

    def add_adapter(
        self, name: str, config: AdapterConfig | None = None, *, seed: int | None = None, **settings: Any
    ) -> TargetReport:
        """Put a new adapter on the base. It starts without effect (B is zero) and trainable.

        Args:
            name: what rows call it; not ``"base"``.
            config: its settings, or give them as keywords.
            seed: of its initial values; default: drawn from torch's global generator.

        Returns:
            what was adapted, and what matched but was left alone.
        """
        if config is not None and settings:
            raise ConfigError("give either a config or keyword settings, not both")
        config = config.model_copy(deep=True) if config is not None else AdapterConfig.make(settings)
        return self._place(name, config, exact=None, owned=None, seed=seed)

    def _place(
        self, name: str, config: AdapterConfig, exact: list[str] | None, owned: list[str] | None, seed: int | None
    ) -> TargetReport:
        """Everything is resolved and checked before the first module is touched."""
        self._check_new_name(name)
        variant = get_variant(config.variant)
        owned = modules_to_own(self.base, config.modules_to_save) if owned is None else owned
        report = find_targets(self.base, config, owned, exact)
        unfit = [t.path for t in report.adapted if t.geometry.kind not in variant.kinds]
        if unfit:
            raise TargetError(f"variant {config.variant!r} cannot sit on {unfit[0]} ({len(unfit)} such); exclude it")
        tied = share_tied(self.base, config, report)
        if exact is None and config.tie_embeddings is not False:
            refuse_half_of_a_tie(self.base, owned)
        rows = places_of_rows(self.base, config, report, owned, loading=exact is not None)
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())) if seed is None else seed)

        self.adapters[name] = config
        self.reports[name] = report
        for target in report.adapted:
            self._add_slot(name, target, config, generator)
        for source, path in tied:
            slot = wrap_layer(self.base, source, self.router).slots[name]
            wrap_layer(self.base, path, self.router).slots[name] = TiedSlot(slot)  # type: ignore[arg-type]
        for path, places in rows:
            self._add_rows(name, path, places)
        heads = task_heads(self.base)
        for path in owned:
            # Where all heads are the adapter's own, nothing of the base's follows them.
            self._add_copy(name, path, last=path in heads and set(heads) <= set(owned))
        if config.tie_embeddings is not False:
            tie_copies(self.base, self.owned(name))
        leave_shortcuts(self.base)
        self.train(self.training)
        return report

    def _check_new_name(self, name: str) -> None:
        if name == BASE:
            raise ConfigError(f"{BASE!r} is the base model's own name; call the adapter something else")
        if not isinstance(name, str) or not name or "/" in name or "\\" in name or name.startswith("."):
            raise ConfigError(f"adapter name {name!r}: a non-empty string without slashes or a leading dot is needed")
        if name in self.adapters:
            raise ConfigError(
                f"there is already an adapter {name!r}; remove_adapter({name!r}) first, or take another name"
            )

    def _add_slot(self, name: str, target: Target, config: AdapterConfig, generator: torch.Generator) -> None:
        layer = wrap_layer(self.base, target.path, self.router)
        variant = get_variant(config.variant)
        parameters = variant.create(layer.geometry, target.rank, generator)
        # fp32 on any base: half-precision adapters lose small updates and fp16 ones overflow.
        device = layer.geometry.weight().device
        placed = {key: tensor.to(device=device, dtype=torch.float32) for key, tensor in parameters.items()}
        layer.slots[name] = Slot(variant, placed, target.rank, target.scaling, config.dropout)

    def _add_rows(self, name: str, path: str, places: list[str]) -> None:
        numbers = self.adapters[name].token_rows
        assert isinstance(numbers, list), "settled with the places"
        layer = wrap_layer(self.base, path, self.router)
        rows = TokenRows(numbers, layer.geometry.weight())
        layer.slots[name] = rows
        for place in places:
            wrap_layer(self.base, place, self.router).slots[name] = TiedTokenRows(rows)

    def _add_copy(self, name: str, path: str, last: bool) -> None:
        wrapper = wrap_owned(self.base, path, self.router)
        own = plain_copy(wrapper.original).float().requires_grad_(True)
        wrapper.copies[name] = CastAround(own, torch.float32 if last else _dtype_of(inner(wrapper.original)))

    def remove_adapter(self, name: str) -> None:
        """Take an adapter off the base; layers without any adapter are put back as they were."""
        self._known(name)
        for module in self._wrapped():
            entries = module.slots if isinstance(module, AdaptedLayer) else module.copies
            if name in entries:
                del entries[name]
            if not len(entries):
                unwrap(self.base, module)
        del self.adapters[name], self.reports[name]
        self.notes.pop(name, None)
        self.tokenizers.pop(name, None)

    def unload(self) -> nn.Module:
        """Take all adapters off and return the base model as it came, trainable parameters included."""
        for module in self._wrapped():
            unwrap(self.base, module)
        forget_adapters(self.base)
        self.adapters.clear()
        self.reports.clear()
        self.notes.clear()
        self.tokenizers.clear()
        for path, parameter in self.base.named_parameters():
            parameter.requires_grad_(path in self._frozen)
        return self.base

    def _known(self, name: str) -> None:
        if name not in self.adapters:
            raise RoutingError(
                f"there is no adapter {name!r}; this model carries: {', '.join(self.adapters) or 'none'}"
            )

    def _wrapped(self) -> list[AdaptedLayer | OwnedModule]:
        """Wrapped modules, innermost first."""
        return [m for m in reversed(list(self.base.modules())) if isinstance(m, (AdaptedLayer, OwnedModule))]

    def slots(self, name: str, tied: bool = False) -> dict[str, Slot]:
        """Adapter ``name``'s updates of whole layers by path, in the model's order; ``tied``: shared ones at each
        place."""
        found = self._placed(name)
        return {
            path: slot
            for path, slot in found.items()
            if isinstance(slot, Slot) and (tied or not isinstance(slot, TiedSlot))
        }

    def token_rows(self, name: str, tied: bool = False) -> dict[str, TokenRows]:
        """Adapter ``name``'s single rows by the path of the embedding or head; ``tied``: shared ones at each place."""
        found = self._placed(name)
        return {
            path: rows
            for path, rows in found.items()
            if isinstance(rows, TokenRows) and (tied or not isinstance(rows, TiedTokenRows))
        }

    def _placed(self, name: str) -> dict[str, nn.Module]:
        self._known(name)
        layers = [m for m in self.base.modules() if isinstance(m, AdaptedLayer) and name in m.slots]
        return {m.path: m.slots[name] for m in layers}

    def owned(self, name: str) -> dict[str, nn.Module]:
        """Adapter ``name``'s own copies of whole modules, by path."""
        self._known(name)
        modules = [m for m in self.base.modules() if isinstance(m, OwnedModule) and name in m.copies]
        return {m.path: m.copies[name].inner for m in modules}  # type: ignore[misc]

    def adapter_parameters(self, name: str) -> dict[str, nn.Parameter]:
        """Everything that trains for adapter ``name``: ``path.A``, ``path.B``, ..., ``path.rows``, and its own modules'
        parameters."""
        out: dict[str, nn.Parameter] = {}
        for path, slot in (self.slots(name) | self.token_rows(name)).items():
            out |= {f"{path}.{key}": parameter for key, parameter in slot.named_parameters()}
        for path, module in self.owned(name).items():
            out |= {f"{path}.{key}": parameter for key, parameter in module.named_parameters()}
        # Copies of tied modules share a tensor, which is counted and stepped once.
        first = {id(parameter): key for key, parameter in reversed(out.items())}
        return {key: parameter for key, parameter in out.items() if first[id(parameter)] == key}

    # -- running ------------------------------------------------------------------------------------------------

    def _forward(self, *args: Any, adapters: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The base model's forward, each row through the adapter it names.

        Args:
            adapters: one name per row of the batch, ``"base"`` for none. Default: the one in force through `using`,
                else the only adapter there is. RoutingError where that is not clear, or a name is unknown.
        """
        if adapters is None:
            return self.base(*args, **kwargs)
        with self.router.activate(routing_of(self.base, self.router, adapters, args, kwargs)):
            return self.base(*args, **kwargs)

    def generate(self, *args: Any, adapters: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """The base model's ``generate``; ``adapters`` names one adapter per prompt."""
        if adapters is None:
            return self.base.generate(*args, **kwargs)  # type: ignore[operator]
        routing = routing_of(self.base, self.router, adapters, args, kwargs)
        with self.router.activate(routing.repeated(copies_per_prompt(self.base, kwargs))):
            return self.base.generate(*args, **kwargs)  # type: ignore[operator]

    @contextmanager
    def using(self, name: str) -> Iterator[LoRA]:
        """Send all rows through adapter ``name`` (``"base"``: none) for the block."""
        self.router.check([name])
        with self.router.activate(Routing.uniform(name)):
            yield self

    # -- files and merging (io and merge do the work) -------------------------------------------------------------

    def save_adapter(self, name: str, folder: str | Path, **options: Any) -> Path:
        """Write adapter ``name`` to ``folder`` in PEFT's format, atomically. See `lora.io.peft.save_adapter`."""
        from lora.io.peft import save_adapter

        return save_adapter(self, name, folder, **options)

    def load_adapter(self, folder: str | Path, name: str | None = None, **options: Any) -> str:
        """Load an adapter folder (ours or PEFT's) as ``name``. See `lora.io.peft.load_adapter`.

        ``is_trainable`` is PEFT's word for ``trainable``.
        """
        from lora.io.peft import load_adapter

        if "is_trainable" in options:
            options["trainable"] = options.pop("is_trainable")
        return load_adapter(self, folder, name, **options)

    def merge(self, name: str | None = None) -> nn.Module:
        """A plain model of the base's own class with adapter ``name`` worked in; this one is unchanged."""
        if name is None:
            name = self._only("merge")
        return merge(self, name)

    def _only(self, verb: str) -> str:
        if len(self.adapters) != 1:
            raise RoutingError(f"{verb}: name one of the adapters: {', '.join(self.adapters) or 'there is none'}")
        return next(iter(self.adapters))

    # -- what it is -----------------------------------------------------------------------------------------------

    def summary(self, name: str | None = None) -> str:
        """What adapter ``name`` (default: each) adapts, how many parameters it has and which share that is."""
        total = self.base_parameter_count()
        lines = []
        for each in [name] if name else list(self.adapters):
            config, report = self.adapters[each], self.reports[each]
            count = sum(parameter.numel() for parameter in self.adapter_parameters(each).values())
            own = self.owned(each)
            owned = f"; trained in full: {summary(own)}" if own else ""
            rows = "".join(f"; {len(its.numbers)} rows of {path}" for path, its in self.token_rows(each).items())
            skipped = "".join(f"\n  left alone: {path} ({why})" for path, why in report.skipped.items())
            size = f"{count:,} parameters, {100 * count / max(total, 1):.2f} % of the base's {total:,}{owned}{rows}"
            if report.adapted:
                places = f"\n  on {len(report.adapted)} modules: {summary(t.path for t in report.adapted)}"
                size = f"{config.variant}, rank {config.rank}, alpha {config.alpha:g}, {size}{places}"
            lines.append(f"{each}: {size}{skipped}")
        return "\n".join(lines)

    def base_parameter_count(self) -> int:
        """Parameters of the base model, a tied tensor counted once."""
        own = {id(p) for name in self.adapters for p in self.adapter_parameters(name).values()}
        return sum(p.numel() for p in self.base.parameters() if id(p) not in own)

    def __deepcopy__(self, memo: dict[int, Any]) -> LoRA:
        clone = type(self).__new__(type(self))
        memo[id(self)] = clone
        nn.Module.__init__(clone)
        # The router first: layers deep-copied below find it in the memo and share it.
        clone.__dict__["router"] = copy.deepcopy(self.router, memo)
        clone.adapters = clone.router.known
        for key in ("reports", "notes", "_frozen"):
            setattr(clone, key, copy.deepcopy(self.__dict__[key], memo))
        clone.tokenizers = dict(self.tokenizers)
        clone.base = copy.deepcopy(self.base, memo)
        keep_state_to_adapters(clone)
        return clone.train(self.training)


def _dtype_of(module: nn.Module) -> torch.dtype:
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.float32)

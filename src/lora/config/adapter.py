"""Section ``adapter``."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from lora.registry import VARIANTS, unknown
from lora.settings import Settings


class AdapterConfig(Settings):
    """What an adapter is: its size, its formula and where it sits."""

    aliases = {
        "r": "rank", "lora_r": "rank", "lora_rank": "rank", "lora_alpha": "alpha", "target_modules": "targets",
        "lora_target": "targets", "lora_dropout": "dropout", "use_rslora": "rslora", "exclude_modules": "exclude",
        "layers_to_transform": "layers", "modules_to_train": "modules_to_save", "ensure_weight_tying": "tie_embeddings",
        "trainable_token_indices": "token_rows",
    }  # fmt: skip

    rank: int = Field(default=32, ge=1, description="rank r of the update B·A")
    # 32: enough for most data sets, raised when capacity-bound (REFERENCE: tinker-cookbook's default).
    alpha: float = Field(default=32.0, gt=0, description="the update is scaled by alpha/rank (alpha/√rank with rslora)")
    # Constant over ranks: with scale alpha/r the best learning rate is then roughly independent of the rank
    # ("LoRA Without Regret", 2025).
    rslora: bool = Field(default=False, description="scale by alpha/√rank (arXiv:2312.03732, eq. 7)")
    variant: str = Field(default="plain", description=f"formula of the update: {', '.join(VARIANTS)}")
    targets: str | list[str] = Field(
        default="all-linear",
        description="all-linear, attention, mlp, embedding, module names, one regular expression; none: no updates",
    )
    # All linear layers: attention-only loses even at equal parameter count ("LoRA Without Regret", 2025).
    exclude: str | list[str] = Field(
        default_factory=list, description="modules never adapted: names or one regular expression"
    )
    layers: str | int | list[int] | None = Field(
        default=None, description="only these layers: 3, [0, 1, 2], '4-7' or '8-'"
    )
    rank_pattern: dict[str, int] = Field(default_factory=dict, description="rank per module pattern")
    alpha_pattern: dict[str, float] = Field(default_factory=dict, description="alpha per module pattern")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    modules_to_save: list[str] | None = Field(
        default=None,
        description="modules trained in full beside the adapter; default: task head and whatever is newly initialised; "
        "all (with targets: none): full fine-tuning",
    )
    tie_embeddings: bool | None = Field(
        default=None,
        description="tied input and output embeddings share one update; default: yes where both are one tensor",
    )
    token_rows: list[int] | dict[str, list[int]] = Field(
        default_factory=list, description="token ids whose embeddings are trained: theirs alone, nothing of the others"
    )
    head_rows: bool | None = Field(
        default=None,
        description="train their rows of an untied output head too; default: yes, unless all of it is adapted",
    )
    # A new row that is the mean of the old ones can never have the highest logit of all, so a model that is to write
    # the token must train it. PEFT's list leaves an untied head alone, its table names both.

    @property
    def full(self) -> bool:
        """Whether this is full fine-tuning."""
        return self.targets in ("none", []) and self.modules_to_save == ["all"]

    @model_validator(mode="before")
    @classmethod
    def _variant_by_key(cls, values: Any) -> Any:
        # PEFT spells a variant as a key of its own (use_…: true). Which, only the variants know, and asking them loads
        # torch: no other unknown key does.
        if isinstance(values, dict) and any(cls.canonical(key).startswith("use_") for key in values):
            return _with_variant({cls.canonical(key): value for key, value in values.items()}, values)
        return values

    @field_validator("variant")
    @classmethod
    def _known_variant(cls, value: str) -> str:
        if value not in VARIANTS:
            raise ValueError(unknown(value, VARIANTS))
        return value

    @field_validator("token_rows")
    @classmethod
    def _each_row_once(cls, value: list[int] | dict[str, list[int]]) -> list[int] | dict[str, list[int]]:
        for ids in value.values() if isinstance(value, dict) else [value]:
            if isinstance(value, dict) and not ids:
                raise ValueError("a module is named with no token ids")
            twice = next((token for token in ids if ids.count(token) > 1), None)
            if twice is not None or min(ids, default=0) < 0:
                raise ValueError(f"token id {twice} is named twice" if twice is not None else "a token id is below 0")
        return {name: sorted(ids) for name, ids in value.items()} if isinstance(value, dict) else sorted(value)

    @field_validator("rank_pattern")
    @classmethod
    def _positive_ranks(cls, value: dict[str, int]) -> dict[str, int]:
        for pattern, rank in value.items():
            if rank < 1:
                raise ValueError(f"rank of {pattern!r} must be at least 1; exclude the module to leave it alone")
        return value

    @field_validator("alpha_pattern")
    @classmethod
    def _positive_alphas(cls, value: dict[str, float]) -> dict[str, float]:
        for pattern, alpha in value.items():
            if not alpha > 0:
                raise ValueError(f"alpha of {pattern!r} must be above 0")
        return value


def _with_variant(keys: dict[str, Any], values: dict[Any, Any]) -> dict[Any, Any]:
    """``values`` with ``variant`` in place of keys that PEFT knows variants by. ``keys``: the same, by our names."""
    from lora.core.variant import variants

    known = {key for variant in variants().values() for key in variant.peft_keys}
    rest = {key: value for key, value in values.items() if AdapterConfig.canonical(key) not in known}
    on = {key: value for key, value in keys.items() if key in known and value}
    if not on:
        return rest
    fitting = [item for item in variants().values() if item.peft_keys and item.peft_keys.items() <= on.items()]
    chosen = max(fitting, key=lambda item: len(item.peft_keys), default=None)
    if chosen is None or len(chosen.peft_keys) < len(on):
        given = ", ".join(f"{key}: {value!r}" for key, value in on.items())
        raise ValueError(f"{given} selects no variant; name it instead, as variant: {', '.join(VARIANTS)}")
    if rest.get("variant", chosen.name) != chosen.name:
        raise ValueError(f"{', '.join(on)} contradicts variant: {rest['variant']!r}; keep one of them")
    return {**rest, "variant": chosen.name}

"""Fine-tune large language models with low-rank adapters: one frozen base model, many adapters at once.

The public names are resolved when they are first used, so ``import lora`` itself loads neither torch nor transformers.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lora.arithmetic import ask_for_strict_sums

if TYPE_CHECKING:
    from lora.comparison.compare import compare
    from lora.config import (
        AdapterConfig,
        ComparisonConfig,
        CrossValidationConfig,
        DataConfig,
        RunConfig,
        Source,
        TrainingConfig,
    )
    from lora.cross_validation.cross_validate import cross_validate
    from lora.errors import LoraError
    from lora.evaluation.evaluate import evaluate
    from lora.evaluation.generate import generate
    from lora.evaluation.predict import predict
    from lora.model.lora import LoRA
    from lora.model.vocabulary import add_tokens
    from lora.overrides import load_config
    from lora.training.job import Job
    from lora.training.loop import fit
    from lora.workflow.look import describe_data
    from lora.workflow.planning import plan

__version__ = "0.1.0"

__all__ = [
    "AdapterConfig",
    "ComparisonConfig",
    "CrossValidationConfig",
    "DataConfig",
    "Job",
    "LoRA",
    "LoraError",
    "RunConfig",
    "Source",
    "TrainingConfig",
    "add_tokens",
    "compare",
    "cross_validate",
    "describe_data",
    "evaluate",
    "fit",
    "generate",
    "load_config",
    "plan",
    "predict",
]

_HOMES = {
    "AdapterConfig": "lora.config",
    "ComparisonConfig": "lora.config",
    "CrossValidationConfig": "lora.config",
    "DataConfig": "lora.config",
    "Job": "lora.training.job",
    "LoRA": "lora.model.lora",
    "LoraError": "lora.errors",
    "RunConfig": "lora.config",
    "Source": "lora.config",
    "TrainingConfig": "lora.config",
    "add_tokens": "lora.model.vocabulary",
    "compare": "lora.comparison.compare",
    "cross_validate": "lora.cross_validation.cross_validate",
    "describe_data": "lora.workflow.look",
    "evaluate": "lora.evaluation.evaluate",
    "fit": "lora.training.loop",
    "generate": "lora.evaluation.generate",
    "load_config": "lora.overrides",
    "plan": "lora.workflow.planning",
    "predict": "lora.evaluation.predict",
}


ask_for_strict_sums()  # before torch, whose MKL asks but once


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'lora' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value  # the next use finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

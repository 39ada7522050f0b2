"""Typed configuration: the only home of a default.

A configuration is written in YAML, given as options or passed from Python; all three end here. Field names are ours;
PEFT's spellings (``r``, ``lora_alpha``) and Hugging Face's (``per_device_train_batch_size``) are accepted as aliases.
An unknown key is an error that names the nearest known one.
"""

from __future__ import annotations

from lora.config.adapter import AdapterConfig
from lora.config.comparison import RANKS, ComparisonConfig
from lora.config.cross_validation import CrossValidationConfig
from lora.config.data import DataConfig, Replay, Source
from lora.config.defaults import (
    CHAT_LENGTH,
    EVAL_BATCH_SIZE,
    LATENCY_ROWS,
    MAX_NEW_TOKENS,
    NEARLY_THE_SAME,
    RESAMPLES,
    SPEED_SECONDS,
)
from lora.config.run import RunConfig
from lora.config.sampling import SamplingConfig
from lora.config.training import Schedule, TrainingConfig

__all__ = [
    "CHAT_LENGTH",
    "EVAL_BATCH_SIZE",
    "LATENCY_ROWS",
    "MAX_NEW_TOKENS",
    "NEARLY_THE_SAME",
    "RANKS",
    "RESAMPLES",
    "SPEED_SECONDS",
    "AdapterConfig",
    "ComparisonConfig",
    "CrossValidationConfig",
    "DataConfig",
    "Replay",
    "RunConfig",
    "SamplingConfig",
    "Schedule",
    "Source",
    "TrainingConfig",
]

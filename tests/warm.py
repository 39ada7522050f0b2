"""What a command imports, for the server that `command.lora` forks its processes from."""

import datasets
import torch
import transformers
from transformers import (  # noqa: F401 (imported when they are first named)
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForSequenceClassification,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)

import lora.checks.after
import lora.checks.before
import lora.checks.plan
import lora.evaluation.evaluate
import lora.evaluation.generate
import lora.evaluation.predict
import lora.evaluation.report
import lora.workflow

_ = (torch, transformers, datasets, lora)

"""Randomly initialised models of a few thousand parameters, one per architecture family, and inputs for them."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn

VOCABULARY, HIDDEN, LAYERS, LABELS = 80, 32, 2, 3

_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4,
    "intermediate_size": 48, "max_position_embeddings": 40, "num_labels": LABELS,
}  # fmt: skip
_DECODER: dict[str, Any] = {
    **_ENCODER, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GEMMA: dict[str, Any] = {**_DECODER, "sliding_window": 16, "query_pre_attn_scalar": 8}
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 40, "num_labels": LABELS,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_T5: dict[str, Any] = {
    "vocab_size": VOCABULARY, "d_model": HIDDEN, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": 4,
    "num_labels": LABELS, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}  # fmt: skip

# name -> (model class, config class, its arguments). Every architecture that the adapter format is proved on.
MODELS: dict[str, tuple[type, type, dict[str, Any]]] = {
    "bert": (hf.BertForSequenceClassification, hf.BertConfig, _ENCODER),
    "bert-tokens": (hf.BertForTokenClassification, hf.BertConfig, _ENCODER),
    "roberta": (hf.RobertaForSequenceClassification, hf.RobertaConfig, {**_ENCODER, "pad_token_id": 1}),
    "distilbert": (
        hf.DistilBertForSequenceClassification, hf.DistilBertConfig,
        {"vocab_size": VOCABULARY, "dim": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 48,
         "max_position_embeddings": 40, "num_labels": LABELS},
    ),
    "modernbert": (
        hf.ModernBertForSequenceClassification, hf.ModernBertConfig,
        {**_ENCODER, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
         "global_attn_every_n_layers": 2, "local_attention": 8},
    ),
    "gpt2": (hf.GPT2LMHeadModel, hf.GPT2Config, _GPT2),
    "gpt2-cls": (hf.GPT2ForSequenceClassification, hf.GPT2Config, _GPT2),
    "opt": (
        hf.OPTForCausalLM, hf.OPTConfig,
        {**_ENCODER, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "pad_token_id": 0, "bos_token_id": 1,
         "eos_token_id": 2},
    ),
    "bloom": (
        hf.BloomForCausalLM, hf.BloomConfig,
        {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2},
    ),
    "llama": (hf.LlamaForCausalLM, hf.LlamaConfig, _DECODER),
    "llama-tied": (hf.LlamaForCausalLM, hf.LlamaConfig, {**_DECODER, "tie_word_embeddings": True}),
    "llama-cls": (hf.LlamaForSequenceClassification, hf.LlamaConfig, _DECODER),
    "llama-tokens": (hf.LlamaForTokenClassification, hf.LlamaConfig, _DECODER),
    "qwen2": (hf.Qwen2ForCausalLM, hf.Qwen2Config, _DECODER),
    "qwen3": (hf.Qwen3ForCausalLM, hf.Qwen3Config, _DECODER),
    "mistral": (hf.MistralForCausalLM, hf.MistralConfig, {**_DECODER, "sliding_window": 16}),
    "gemma2": (hf.Gemma2ForCausalLM, hf.Gemma2Config, _GEMMA),
    "gemma3": (hf.Gemma3ForCausalLM, hf.Gemma3TextConfig, _GEMMA),
    "phi3": (hf.Phi3ForCausalLM, hf.Phi3Config, _DECODER),
    "t5": (hf.T5ForConditionalGeneration, hf.T5Config, _T5),
    "t5-cls": (hf.T5ForSequenceClassification, hf.T5Config, _T5),
    "vit": (
        hf.ViTForImageClassification, hf.ViTConfig,
        {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 48,
         "image_size": 16, "patch_size": 8, "num_labels": LABELS},
    ),
}  # fmt: skip
CLASSIFIERS = (
    "bert", "bert-tokens", "roberta", "distilbert", "modernbert", "gpt2-cls", "llama-cls", "llama-tokens", "t5-cls",
    "vit",
)  # fmt: skip


def tiny(arch: str, seed: int = 0, **overrides: Any) -> Any:
    """A model of ``arch`` in eval mode; the same seed gives the same weights to the bit."""
    model_class, config_class, arguments = MODELS[arch]
    model = model_class(config_class(**{**arguments, **overrides}))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # By name: a head of another width leaves the body's weights alone. Biases and norms too get noise, since
            # exact zeros and ones would hide a missing term.
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.1 * noise if parameter.dim() > 1 else parameter + 0.02 * noise)
    return model.eval()


def batch(arch: str, rows: int = 4, tokens: int = 7, seed: int = 1) -> dict[str, Tensor]:
    """Inputs for ``arch``: token ids with some padding at the end, or images."""
    generator = torch.Generator().manual_seed(seed)
    if arch == "vit":
        return {"pixel_values": torch.randn(rows, 3, 16, 16, generator=generator)}
    ids = torch.randint(3, VOCABULARY, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1::3, tokens - 2 :] = 0
    pad = 1 if arch == "roberta" else 0
    inputs = {"input_ids": ids.masked_fill(mask == 0, pad), "attention_mask": mask}
    if arch == "t5":
        inputs["decoder_input_ids"] = torch.randint(3, VOCABULARY, (rows, 5), generator=generator)
    if arch == "t5-cls":  # its sentence vector is read at the last end token, of which every row needs equally many
        inputs["input_ids"][:, tokens - 3] = 1
    return inputs


def randomise(parameters: Any, seed: int = 2) -> None:
    """Random values large enough that a wrong factor shows, small enough that no softmax saturates."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            noise = torch.randn(parameter.shape, generator=generator)
            # DoRA's magnitudes are divided by norms: they stay near where they began. PEFT's of a convolution are
            # (1, o, 1, 1); any other tensor of four axes is a factor, and a B left at zero would compare nothing.
            magnitude = parameter.dim() == 1 or (parameter.dim() == 4 and parameter.shape[0] == 1)
            parameter.copy_(parameter * (1 + 0.2 * noise) if magnitude else 0.15 * noise)


def logits(model: Callable[..., Any], inputs: dict[str, Tensor], **options: Any) -> Tensor:
    """The model's logits without gradients."""
    with torch.no_grad():
        return model(**inputs, **options).logits


def bits(model: nn.Module) -> dict[str, bytes]:
    """Every parameter and buffer of ``model`` as bytes."""
    return {name: tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
            for name, tensor in model.state_dict().items()}  # fmt: skip

"""A small base model on disk with its tokenizer, and small data: what the training tests run on."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

WORDS = [
    "red",
    "green",
    "blue",
    "sun",
    "moon",
    "star",
    "cat",
    "dog",
    "bird",
    "runs",
    "sleeps",
    "sings",
    "here",
    "there",
]
WORDS += ["now", "then", "big", "small", "old", "new"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[EOS]"]


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind == "bert":
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    elif kind == "t5":
        core.post_processor = processors.TemplateProcessing(single="$A [EOS]", special_tokens=[("[EOS]", 4)])
    ends = {"eos_token": "[EOS]"} if kind != "bert" else {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64, **ends
    )


def save_base(folder: Path, kind: str = "bert", **settings: float) -> Path:
    """Write a base with random weights. ``settings``: of its config, over those here."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, **settings}
    size = len(WORDS) + len(SPECIAL)
    if kind == "bert":
        model = BertModel(BertConfig(vocab_size=size, max_position_embeddings=64, pad_token_id=0, **shape))
    elif kind == "t5":
        model = T5ForConditionalGeneration(
            T5Config(
                vocab_size=size, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, pad_token_id=0,
                eos_token_id=4, decoder_start_token_id=0, **settings,
            )
        )  # fmt: skip
    else:
        of_kind = {"llama": (LlamaForCausalLM, LlamaConfig), "mistral": (MistralForCausalLM, MistralConfig)}
        model_class, config_class = of_kind[kind]
        model = model_class(
            config_class(
                vocab_size=size,
                max_position_embeddings=64,
                num_key_value_heads=2,
                pad_token_id=0,
                eos_token_id=4,
                bos_token_id=None,
                **shape,
            )
        )
    model.save_pretrained(folder)
    tokenizer(kind).save_pretrained(folder)
    return folder


def labelled(count: int = 48, seed: int = 0, longest: int = 14) -> list[dict]:
    """Rows whose label is told by one word among others of varying number."""
    random_ = random.Random(seed)
    others = [word for word in WORDS if word not in ("cat", "dog", "bird")]
    rows = []
    for i in range(count):
        label = ("cat", "dog", "bird")[i % 3]
        words = [label, *random_.choices(others, k=random_.randint(2, longest))]
        random_.shuffle(words)
        rows.append({"text": " ".join(words), "label": label})
    return rows


def tagged(count: int = 48, seed: int = 0, longest: int = 8) -> list[dict]:
    """Rows of words with the tags of spans: a colour or size with its animal, and heavenly bodies alone."""
    random_ = random.Random(seed)
    others = ["runs", "sleeps", "sings", "here", "there", "now", "then"]
    rows = []
    for _ in range(count):
        words, tags = list[str](), list[str]()
        for _ in range(random_.randint(1, longest)):
            kind = random_.randrange(3)
            if kind == 0:
                words += [random_.choice(["big", "small", "red"]), random_.choice(["cat", "dog", "bird"])]
                tags += ["B-animal", "I-animal"]
            else:
                words.append(random_.choice(["sun", "moon", "star"] if kind == 1 else others))
                tags.append("B-sky" if kind == 1 else "O")
        rows.append({"tokens": words, "tags": tags})
    return rows


def stories(count: int = 24, seed: int = 0) -> list[dict]:
    random_ = random.Random(seed)

    def words(fewest: int, most: int) -> str:
        return " ".join(random_.choices(WORDS, k=random_.randint(fewest, most)))

    return [{"prompt": words(2, 6), "completion": words(1, 9)} for _ in range(count)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path

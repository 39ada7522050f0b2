"""New tokens: into the tokenizer, and rows for them into the base where it has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from chat_tokenizer import byte_tokenizer
from lora import LoRA, add_tokens
from lora.errors import AdapterFileError, ConfigError, ModelError
from lora.model.base import load_tokenizer
from lora.model.heads import modules_to_own
from lora.model.vocabulary import enlarge
from tiny_models import MODELS, batch, logits, randomise, tiny

TOKENS = ["<|im_start|>", "<|im_end|>"]


@pytest.mark.parametrize("arch", [arch for arch in MODELS if arch != "vit"])
def test_new_rows_are_the_mean_of_the_old_ones(arch: str) -> None:
    base = tiny(arch)
    for parameter in base.parameters():  # as `from_pretrained` marks what it found
        parameter._is_hf_initialized = True
    before, state = logits(base, batch(arch)), torch.get_rng_state()
    tables = [table for table in (base.get_input_embeddings(), base.get_output_embeddings()) if table is not None]
    old = [table.weight.detach().clone() for table in tables]
    enlarge(base, 83)
    assert torch.equal(torch.get_rng_state(), state), "nothing random is drawn"
    tables = [base.get_input_embeddings(), base.get_output_embeddings()][: len(old)]
    for table, weight in zip(tables, old, strict=True):
        assert table.weight.shape == (83, 32) and torch.equal(table.weight[:80], weight)
        torch.testing.assert_close(table.weight[80:], weight.mean(0).expand(3, -1))
    after = logits(base, batch(arch))
    assert torch.equal(after[..., : before.shape[-1]], before)
    assert base.config.get_text_config().vocab_size == 83
    assert not any("embed" in path or "shared" in path for path in modules_to_own(base, None))
    again = tiny(arch)
    enlarge(again, 83)
    assert torch.equal(again.get_input_embeddings().weight, base.get_input_embeddings().weight)


def test_tokens_get_the_rows_that_there_are() -> None:
    """A padded vocabulary has room: the base stays as it is. A token that is known keeps its id."""
    tokens = byte_tokenizer(extra=["<|im_start|>"])
    base = tiny("llama", vocab_size=len(tokens) + 4)
    weight = base.get_input_embeddings().weight
    ids = add_tokens(base, tokens, TOKENS)
    assert ids == [len(tokens) - 2, len(tokens) - 1] == tokens.convert_tokens_to_ids(TOKENS)
    assert base.get_input_embeddings().weight is weight
    assert add_tokens(base, tokens, []) == [] and add_tokens(base, tokens, TOKENS) == ids
    assert tokens.tokenize("a<|im_start|>b") == ["a", "<|im_start|>", "b"]
    assert tokens.decode(ids, skip_special_tokens=True) == ""


def test_what_cannot_be() -> None:
    with pytest.raises(ConfigError, match="before adapters are put on a base"):
        add_tokens(LoRA(tiny("llama")), byte_tokenizer(), TOKENS)
    with pytest.raises(ConfigError, match="a list is needed"):
        add_tokens(tiny("llama"), byte_tokenizer(), "<|im_start|>")  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="no embedding of tokens"):
        enlarge(tiny("vit"), 3)


def made(tmp_path: Path) -> tuple[LoRA, list[int], Any]:
    """An adapter with two new tokens on an enlarged base that knows its checkpoint."""
    tokens = byte_tokenizer(extra=[])
    tiny("llama-tied", vocab_size=len(tokens)).save_pretrained(tmp_path / "base")
    base = type(tiny("llama-tied")).from_pretrained(tmp_path / "base")
    ids = add_tokens(base, tokens, TOKENS)
    model = LoRA(base, rank=4, token_rows=ids).eval()
    with torch.no_grad():
        for parameter in model.adapter_parameters("default").values():
            parameter.normal_(0, 0.1)
    model.save_adapter("default", tmp_path / "adapter", tokenizer=tokens)
    return model, ids, type(base)


def test_the_folder_holds_the_rows_and_the_tokenizer_and_no_embedding(tmp_path: Path) -> None:
    import peft
    from safetensors.torch import load_file

    model, ids, kind = made(tmp_path)
    stored = load_file(tmp_path / "adapter/adapter_model.safetensors")
    shapes = {key: tuple(value.shape) for key, value in stored.items()}
    assert [shape for key, shape in shapes.items() if "embed" in key or "lm_head" in key] == [(2, 32)]
    own = load_tokenizer("nowhere", adapter=tmp_path / "adapter")
    assert own.convert_tokens_to_ids(TOKENS) == ids and own.tokenize("a<|im_end|>") == ["a", "<|im_end|>"]
    model.save_adapter("default", tmp_path / "again")  # from now on they go along
    assert (tmp_path / "again/tokenizer.json").is_file()

    inputs = {"input_ids": torch.tensor([[5, ids[0], 9, ids[1]]])}
    small = LoRA(kind.from_pretrained(tmp_path / "base"), name=None)
    with pytest.raises(AdapterFileError, match="there is no token 260"):
        small.load_adapter(tmp_path / "adapter", "x")
    base = kind.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(max(ids) + 1)  # with rows of transformers' own making
    other = LoRA(base, name=None).eval()
    other.load_adapter(tmp_path / "adapter", "x")
    torch.testing.assert_close(logits(other, inputs), logits(model, inputs), atol=1e-5, rtol=0)
    base = kind.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(max(ids) + 1)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    torch.testing.assert_close(logits(theirs, inputs), logits(model, inputs), atol=1e-5, rtol=0)


def test_a_base_with_more_new_tokens_than_the_adapter_has_rows_is_stored_along(tmp_path: Path) -> None:
    """As PEFT does: the rows that nobody stored could not come back."""
    import peft
    from safetensors.torch import load_file

    model, ids, kind = made(tmp_path)
    model.add_adapter("one", rank=2, token_rows=ids[:1])
    model.save_adapter("one", tmp_path / "one")
    keys = load_file(tmp_path / "one/adapter_model.safetensors")
    assert any(key.endswith("embed_tokens.token_adapter.base_layer.weight") for key in keys)
    model.load_adapter(tmp_path / "one", "back")
    inputs = {"input_ids": torch.tensor([[5, ids[0], 9, ids[1]]])}
    base = kind.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(max(ids) + 1)
    theirs = peft.PeftModel.from_pretrained(base, str(tmp_path / "one")).eval()
    with model.using("one"):
        torch.testing.assert_close(logits(theirs, inputs), logits(model, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("arch", ["llama", "llama-tied"])
@pytest.mark.parametrize("table", [False, True])
def test_peft_stores_a_resized_embedding_along(arch: str, table: bool, tmp_path: Path) -> None:
    """With rows of its own that base and folder need not agree in; the same numbers come out."""
    import peft

    kind = type(tiny(arch))
    tiny(arch).save_pretrained(tmp_path / "base")

    def resized(seed: int) -> Any:
        torch.manual_seed(seed)
        base = kind.from_pretrained(tmp_path / "base")
        base.resize_token_embeddings(82)
        return base

    ids: Any = {"embed_tokens": [80, 81], "lm_head": [80, 81]} if table else [80, 81]
    config = peft.LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=ids)
    theirs = peft.get_peft_model(resized(0), config).eval()
    randomise(parameter for parameter in theirs.parameters() if parameter.requires_grad)
    theirs.save_pretrained(tmp_path / "theirs")
    model = LoRA(resized(1), name=None).eval()
    model.load_adapter(tmp_path / "theirs", "x")
    inputs = {"input_ids": torch.tensor([[4, 80, 7, 81, 9]])}
    torch.testing.assert_close(logits(model, inputs), logits(theirs, inputs), atol=1e-5, rtol=0)


def test_the_tokenizer_leaves_with_the_adapter(tmp_path: Path) -> None:
    model, *_ = made(tmp_path)
    assert list(model.tokenizers) == ["default"]
    model.remove_adapter("default")
    assert not model.tokenizers

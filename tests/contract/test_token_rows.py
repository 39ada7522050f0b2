"""Single rows of an embedding that belong to an adapter, on each architecture: isolation, gradients, files, merging."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lora import LoRA
from lora.errors import AdapterFileError, ConfigError, TargetError
from tiny_models import MODELS, batch, bits, logits, randomise, tiny

ARCHS = [arch for arch in MODELS if arch != "vit"]
UNTIED = ("llama", "qwen2", "qwen3", "mistral", "phi3")  # with an output head of their own
ROWS = [5, 70, 75, 79]
# PEFT gives rows of T5ForSequenceClassification no effect: it wraps `shared`, which the model does not call.
THEIRS = [arch for arch in ARCHS if arch != "t5-cls"]


def inputs_of(arch: str, rows: int = 4) -> dict[str, Tensor]:
    """Inputs in which the tokens of ``ROWS`` occur, some of them twice."""
    inputs = batch(arch, rows=rows)
    inputs["input_ids"][:, 2] = 75
    inputs["input_ids"][::2, 0] = 5
    inputs["input_ids"][::2, 3] = 75
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"][:, 1] = 70
    return inputs


def with_rows(arch: str, dtype: torch.dtype = torch.float32, seed: int = 2, **settings: Any) -> LoRA:
    model = LoRA(tiny(arch).to(dtype), rank=4, **{"token_rows": ROWS, **settings}).eval()
    randomise(model.adapter_parameters("default").values(), seed)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("arch", ARCHS)
def test_it_starts_without_effect_and_changes_no_weight(arch: str, dtype: torch.dtype) -> None:
    base = tiny(arch).to(dtype)
    before, plain = bits(base), logits(base, inputs_of(arch))
    model = LoRA(base, rank=4, token_rows=ROWS, modules_to_save=[]).eval()
    assert torch.equal(logits(model, inputs_of(arch)), plain)
    parameters = model.adapter_parameters("default")
    randomise(parameters.values())
    assert (logits(model, inputs_of(arch)) - plain).abs().max() > 1e-2
    with model.using("base"):
        assert torch.equal(logits(model, inputs_of(arch)), plain)
    trained = [key for key in parameters if key.endswith(".rows")]
    assert len(trained) == 1 + (arch in UNTIED) and all(parameters[key].shape == (4, 32) for key in trained)
    assert bits(model.unload()) == before and torch.equal(logits(base, inputs_of(arch)), plain)


@pytest.mark.parametrize("arch", ARCHS)
def test_other_tokens_are_left_alone(arch: str) -> None:
    """Of the rows alone, without the updates of layers: inputs without these tokens give the base's output."""
    model = LoRA(tiny(arch), rank=4, token_rows=[5], head_rows=False).eval()
    for rows in model.token_rows("default").values():
        randomise(rows.parameters())
    inputs = batch(arch)
    inputs["input_ids"][inputs["input_ids"] == 5] = 6
    if "decoder_input_ids" in inputs:
        inputs["decoder_input_ids"][inputs["decoder_input_ids"] == 5] = 6
    ours = logits(model, inputs)
    with model.using("base"):
        plain = logits(model, inputs)
    columns = torch.arange(plain.shape[-1]) != (5 if plain.shape[-1] == 80 else -1)
    assert torch.equal(ours[..., columns], plain[..., columns])


@pytest.mark.parametrize("arch", ARCHS)
def test_a_row_does_not_see_its_neighbours(arch: str) -> None:
    """Adapters with different rows, with some of the same, with none, and the base, in one batch."""
    names = ["default", "b", "c", "base"]
    model = with_rows(arch)
    model.add_adapter("b", rank=3, token_rows=[75, 6])
    model.add_adapter("c", rank=2, targets="attention", modules_to_save=[])
    for number, name in enumerate("bc"):
        randomise(model.adapter_parameters(name).values(), number)
    inputs = inputs_of(arch, rows=32)
    separate = {}
    for name in names:
        with model.using(name):
            separate[name] = logits(model, inputs)
    for order in (names * 8, [name for name in names for _ in range(8)]):
        mixed = logits(model, inputs, adapters=order)
        for row, name in enumerate(order):
            assert torch.equal(mixed[row], separate[name][row]), f"row {row} ({name})"


@pytest.mark.parametrize("arch", ["llama", "llama-tied", "bert", "t5"])
def test_nan_in_rows_stays_with_their_adapter(arch: str) -> None:
    model = with_rows(arch)
    model.add_adapter("b", rank=3, token_rows=ROWS)
    with torch.no_grad():
        for rows in model.token_rows("b").values():
            rows.rows.fill_(torch.nan)
    inputs = inputs_of(arch, rows=16)
    mixed = logits(model, inputs, adapters=["default", "b"] * 8)
    assert mixed[::2].isfinite().all() and mixed[1::2].isnan().any()


def peft_twin(base: nn.Module, indices: Any, **settings: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = peft.LoraConfig(r=4, lora_alpha=32, trainable_token_indices=indices, **settings)
        return peft.get_peft_model(base, config)


@pytest.mark.parametrize(
    "arch, head",
    [(arch, True) for arch in ("gpt2", "opt", "llama", "llama-tied", "qwen2", "gemma3", "t5", "bert")]
    + [("llama", False), ("qwen2", False)],
)
def test_gradients_are_those_of_peft(arch: str, head: bool, tmp_path: Path) -> None:
    model = with_rows(arch, head_rows=None if head else False, modules_to_save=[])
    model.save_adapter("default", tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(tiny(arch), str(tmp_path), is_trainable=True).eval()
    inputs = inputs_of(arch)
    weights = torch.randn(logits(model, inputs).shape, generator=torch.Generator().manual_seed(0))
    for each in (model, theirs):
        (each(**inputs).logits * weights).sum().backward()
    found = {key: p.grad for key, p in model.adapter_parameters("default").items()}
    expected = {
        name.removeprefix("base_model.model.").split(".token_adapter")[0] + ".rows": parameter.grad
        for name, parameter in theirs.named_parameters()
        if "trainable_tokens_delta" in name
    }
    assert len(expected) == 1 + (arch in UNTIED and head) and set(expected) <= set(found)
    for key, gradient in expected.items():
        assert gradient is not None and gradient.abs().max() > 0
        torch.testing.assert_close(found[key], gradient, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", THEIRS)
def test_ours_is_read_by_peft(arch: str, tmp_path: Path) -> None:
    model = with_rows(arch)
    model.save_adapter("default", tmp_path)
    stored = json.loads((tmp_path / "adapter_config.json").read_text())["trainable_token_indices"]
    assert stored == ({"model.embed_tokens": ROWS, "lm_head": ROWS} if arch in UNTIED else ROWS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(tiny(arch), str(tmp_path)).eval()
    torch.testing.assert_close(logits(theirs, inputs_of(arch)), logits(model, inputs_of(arch)), atol=1e-5, rtol=0)


@pytest.mark.parametrize("form, arch", [*(("list", arch) for arch in THEIRS), *(("table", arch) for arch in UNTIED)])
def test_peft_is_read_here(arch: str, form: str, tmp_path: Path) -> None:
    unsorted = [75, 5, 79, 70]
    indices: Any = unsorted
    if form == "table":
        indices = {"embed_tokens": unsorted, "lm_head": unsorted}
    theirs = peft_twin(tiny(arch), indices, target_modules="all-linear").eval()
    randomise(p for p in theirs.parameters() if p.requires_grad)
    theirs.save_pretrained(tmp_path / "theirs")
    model = LoRA(tiny(arch), name=None).eval()
    model.load_adapter(tmp_path / "theirs", "x")
    assert all(rows.numbers == tuple(ROWS) for rows in model.token_rows("x").values())
    assert model.adapters["x"].head_rows is (form == "table")
    torch.testing.assert_close(logits(model, inputs_of(arch)), logits(theirs, inputs_of(arch)), atol=1e-5, rtol=0)
    model.save_adapter("x", tmp_path / "again")
    one, other = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "again"))
    assert {key: value.shape for key, value in one.items()} == {key: value.shape for key, value in other.items()}
    order = sorted(range(4), key=lambda place: unsorted[place])
    for key, value in one.items():
        assert torch.equal(value[order] if "trainable_tokens" in key else value, other[key]), key


@pytest.mark.parametrize("arch", ARCHS)
def test_saved_and_loaded_merged_and_copied(arch: str, tmp_path: Path) -> None:
    model = with_rows(arch)
    inputs = inputs_of(arch)
    ours = logits(model, inputs)
    model.save_adapter("default", tmp_path / "a")
    other = LoRA(tiny(arch), name=None).eval()
    other.load_adapter(tmp_path / "a", "x")
    assert torch.equal(logits(other, inputs), ours)
    randomise(other.adapter_parameters("x").values(), seed=9)
    other.load_adapter(tmp_path / "a", "x")  # takes the folder's values
    assert torch.equal(logits(other, inputs), ours)
    twin = copy.deepcopy(model)
    merged = model.merge()
    torch.testing.assert_close(logits(merged, inputs), ours, atol=2e-5, rtol=0)
    head = merged.get_output_embeddings() if hasattr(merged, "get_output_embeddings") else None
    if head is not None and arch not in UNTIED:
        assert head.weight is merged.get_input_embeddings().weight
    with torch.no_grad():
        for rows in model.token_rows("default").values():
            rows.rows.zero_()
    assert torch.equal(logits(twin, inputs), ours) and not torch.equal(logits(model, inputs), ours)
    model.remove_adapter("default")
    assert not any("Adapted" in type(module).__name__ for module in model.base.modules())


@pytest.mark.parametrize("arch", ["llama", "llama-tied", "gemma3"])
def test_merged_in_half_precision_the_lookup_is_the_same_to_the_bit(arch: str) -> None:
    model = with_rows(arch, dtype=torch.bfloat16)
    embedding = model.base.get_input_embeddings()  # type: ignore[operator]
    ids = inputs_of(arch)["input_ids"]
    merged: Any = model.merge()
    assert torch.equal(merged.get_input_embeddings()(ids), embedding(ids))


@pytest.mark.parametrize("arch", ["llama", "llama-tied"])
def test_generation_can_write_an_owned_token(arch: str) -> None:
    """A row along the hidden state makes its token the likeliest, for its adapter alone, whatever the base says."""
    model = with_rows(arch)
    model.add_adapter("b", rank=2)
    prompt = torch.tensor([[7, 8, 9]] * 3)
    with model.using("default"), torch.no_grad():
        hidden = model.base.model(prompt).last_hidden_state[0, -1]
        rows = model.token_rows("default")["lm_head" if arch == "llama" else "model.embed_tokens"]
        rows.rows[rows.numbers.index(79)] = 100 * hidden
    out = model.generate(prompt, adapters=["default", "b", "base"], max_new_tokens=1, do_sample=False, pad_token_id=0)
    assert out[:, -1].tolist()[0] == 79 and 79 not in out[1:, -1].tolist()


def test_state_dict_holds_each_row_once() -> None:
    model = with_rows("llama-tied")
    state = model.state_dict()
    assert [key for key in state if key.endswith(".rows")] == ["base.model.embed_tokens.slots.@default.rows"]
    before = logits(model, inputs_of("llama-tied"))
    other = with_rows("llama-tied", seed=5)
    other.load_state_dict(state)
    assert torch.equal(logits(other, inputs_of("llama-tied")), before)


@pytest.mark.parametrize(
    "arch, settings, words",
    [
        ("llama", {"token_rows": [80]}, "there is no token 80, model.embed_tokens has 80 rows"),
        ("llama", {"targets": "embedding"}, "model.embed_tokens is adapted as a whole"),
        ("llama-tied", {"targets": ["lm_head", "q_proj"], "tie_embeddings": False}, "lm_head is adapted as a whole"),
        ("llama", {"modules_to_save": ["embed_tokens"]}, "model.embed_tokens is trained in full"),
        ("llama", {"targets": ["lm_head", "q_proj"], "head_rows": True}, "lm_head is adapted as a whole"),
        ("bert", {"head_rows": True}, "no output head"),
        ("vit", {}, "does not say which module embeds its tokens"),
        ("llama", {"token_rows": {"wte": [1]}}, "'wte' names neither model.embed_tokens nor"),
        ("llama", {"token_rows": {"lm_head": [1]}}, "the input embedding (model.embed_tokens) must be among lm_head"),
        ("llama", {"token_rows": {"embed_tokens": [1], "lm_head": [2]}}, "the same ids are needed"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_anything_is_touched(arch: str, settings: Any, words: str) -> None:
    base = tiny(arch)
    kinds = [type(module) for module in base.modules()]
    with pytest.raises(TargetError) as caught:
        LoRA(base, **{"rank": 4, "token_rows": [1], **settings})
    assert words in str(caught.value)
    assert [type(module) for module in base.modules()] == kinds


@pytest.mark.parametrize("given, words", [([1, 1], "1 is named twice"), ([-1], "below 0"), ({"a": []}, "no token ids")])
def test_ids_that_are_none(given: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LoRA(tiny("llama"), token_rows=given)


def test_a_head_that_is_adapted_as_a_whole_keeps_its_update() -> None:
    model = with_rows("llama", targets=["lm_head", "q_proj"])
    assert list(model.token_rows("default")) == ["model.embed_tokens"] and model.adapters["default"].head_rows is False
    table = with_rows("llama", token_rows={"embed_tokens": ROWS})  # PEFT's way to name the embedding alone
    assert list(table.token_rows("default")) == ["model.embed_tokens"] and table.adapters["default"].token_rows == ROWS


def test_peft_spelling() -> None:
    model = LoRA(tiny("llama"), r=4, trainable_token_indices=ROWS)
    assert model.adapters["default"].token_rows == ROWS


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda config, tensors: config.update(trainable_token_indices=[5, 70]), "shape (4, 32), not (2, 32)"),
        (
            lambda config, tensors: config.pop("trainable_token_indices"),
            "no place for tensor model.embed_tok",
        ),
        (lambda config, tensors: config.update(trainable_token_indices=[5, 70, 75, 5]), "5 is named twice"),
        (lambda config, tensors: config.update(trainable_token_indices=[5, 70, 75, 99]), "there is no token 99"),
        (lambda config, tensors: tensors.pop(next(key for key in tensors if "delta" in key)), "is missing"),
    ],
)
def test_damaged_folders_are_refused(change: Any, words: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model = with_rows("llama-tied")
    model.save_adapter("default", tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    change(config, tensors)
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    other = LoRA(tiny("llama-tied"), name=None)
    with pytest.raises(AdapterFileError) as caught:
        other.load_adapter(tmp_path, "x")
    assert words in str(caught.value) and not other.adapters


def test_the_fingerprint_leaves_the_adapters_rows_out(tmp_path: Path) -> None:
    """They come with the folder, so it does not matter what the base has there; everything else does."""
    model = with_rows("llama-tied")
    model.save_adapter("default", tmp_path)
    ours = logits(model, inputs_of("llama-tied"))
    base = tiny("llama-tied")
    base.get_input_embeddings().weight.data[ROWS] = 7.0
    other = LoRA(base, name=None).eval()
    other.load_adapter(tmp_path, "x")
    torch.testing.assert_close(logits(other, inputs_of("llama-tied")), ours, atol=1e-4, rtol=0)
    base = tiny("llama-tied")
    base.get_input_embeddings().weight.data[:5] = 7.0
    with pytest.raises(AdapterFileError, match="other base weights"):
        LoRA(base, name=None).load_adapter(tmp_path, "x")


def test_the_vocabulary_cannot_be_resized_under_them() -> None:
    with pytest.raises(ConfigError, match="sits on"):
        with_rows("llama").resize_token_embeddings(90)

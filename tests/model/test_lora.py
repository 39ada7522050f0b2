"""The model that carries adapters: putting them on, taking them off, running, and living with other tools."""

from __future__ import annotations

import copy
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from lora import LoRA
from lora.errors import ConfigError, RoutingError, TargetError
from lora.model.heads import newly_initialised
from tiny_models import batch, bits, logits, randomise, tiny


def tuned(base: nn.Module, name: str = "default", seed: int = 2, **settings: Any) -> LoRA:
    model = LoRA(base, name=name, **{"rank": 2, **settings}).eval()
    randomise(model.adapter_parameters(name).values(), seed)
    return model


# -- putting on and taking off ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["plain", "dora"])
def test_a_new_adapter_changes_nothing_and_trains_alone(variant: str) -> None:
    base = tiny("bert")
    first = logits(base, batch("bert"))
    model = LoRA(base, rank=2, variant=variant, seed=3)
    torch.testing.assert_close(logits(model.eval(), batch("bert")), first, atol=1e-6, rtol=0)
    trained = {id(p) for p in model.parameters() if p.requires_grad}
    assert trained == {id(p) for p in model.adapter_parameters("default").values()}
    assert all(p.dtype == torch.float32 for p in model.adapter_parameters("default").values())
    again = LoRA(tiny("bert"), rank=2, variant=variant, seed=3)
    other = LoRA(tiny("bert"), rank=2, variant=variant, seed=4)
    values = [[p.clone() for p in m.slots("default")["bert.pooler.dense"].parameters()] for m in (model, again, other)]
    assert all(torch.equal(left, right) for left, right in zip(values[0], values[1], strict=True))
    assert not torch.equal(values[0][0], values[2][0])


def test_training_moves_the_adapter_and_never_the_base() -> None:
    base = tiny("bert")
    before = bits(base)
    model = LoRA(base, rank=2)
    model.add_adapter("other", rank=2)
    other = {key: p.clone() for key, p in model.adapter_parameters("other").items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1, weight_decay=0.0)
    with model.using("default"):
        for _ in range(2):
            optimiser.zero_grad()
            model(**batch("bert"), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
            optimiser.step()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapter_parameters("default").values())
    assert all(torch.equal(p, other[key]) for key, p in model.adapter_parameters("other").items())
    model.unload()
    assert bits(base) == before


def test_removing_leaves_no_trace() -> None:
    base = tiny("bert")
    base.bert.embeddings.requires_grad_(False)
    trainable = [p.requires_grad for p in base.parameters()]
    structure, before = repr(base), bits(base)
    model = tuned(base, "a")
    model.add_adapter("b", rank=2, targets=["query"], modules_to_save=[])
    with model.using("b"):
        of_b = logits(model, batch("bert"))
    model.remove_adapter("a")
    assert list(model.adapters) == ["b"] and torch.equal(logits(model, batch("bert")), of_b)
    assert type(base.classifier) is nn.Linear
    with pytest.raises(RoutingError, match="there is no adapter 'a'; this model carries: b"):
        model.remove_adapter("a")
    model.remove_adapter("b")
    assert repr(base) == structure and bits(base) == before
    with torch.no_grad():
        assert torch.equal(model(**batch("bert")).logits, base(**batch("bert")).logits)
    model.add_adapter("c", rank=2)
    assert model.unload() is base
    assert repr(base) == structure and [p.requires_grad for p in base.parameters()] == trainable


@pytest.mark.parametrize("name", ["train", "a.b", "a%b", "keys", "pop", "0", "ä b", "type"])
def test_any_name_will_do(name: str, tmp_path: Path) -> None:
    model = tuned(tiny("bert"), name)
    model.add_adapter("plain", rank=2)
    with model.using(name):
        first = logits(model, batch("bert"))
    model.save_adapter(name, tmp_path / "x")
    model.remove_adapter(name)
    model.load_adapter(tmp_path / "x", name)
    names = [name, "plain", "base", name]
    mixed = logits(model.eval(), batch("bert"), adapters=names)
    torch.testing.assert_close(mixed[0], first[0])
    assert set(model.state_dict()) == set(copy.deepcopy(model).state_dict())


def test_names_that_look_alike_stay_apart() -> None:
    model = LoRA(tiny("bert"), name=None)
    for rank, name in enumerate(("a.b", "a·b", "a%2Eb", "a%b"), 1):
        model.add_adapter(name, rank=rank)
    assert [model.slots(name)["bert.pooler.dense"].rank for name in model.adapters] == [1, 2, 3, 4]


@pytest.mark.parametrize("name", ["base", "", "a/b", "..", ".a", "a\\b", 3])
def test_names_that_cannot_be(name: Any) -> None:
    model = LoRA(tiny("bert"), rank=2)
    with pytest.raises(ConfigError, match="name"):
        model.add_adapter(name, rank=2)
    with pytest.raises(ConfigError, match="already an adapter 'default'"):
        model.add_adapter("default", rank=2)
    assert list(model.adapters) == ["default"]


def test_a_failed_adapter_leaves_the_model_as_it_was() -> None:
    base = tiny("bert")
    structure = repr(base)
    with pytest.raises(TargetError):
        LoRA(base, targets="nothing")
    assert repr(base) == structure and all(p.requires_grad for p in base.parameters())
    model = tuned(base)
    structure, first = repr(model), logits(model, batch("bert"))
    for settings in ({"targets": "nothing"}, {"rank": 99}, {"variant": "nope"}, {"rank": 2, "tie_embeddings": True}):
        with pytest.raises(ConfigError):
            model.add_adapter("b", **settings)
    assert repr(model) == structure and torch.equal(logits(model, batch("bert")), first)


def test_what_is_no_base() -> None:
    model = LoRA(tiny("bert"), rank=2)
    with pytest.raises(ConfigError, match="already carries adapters"):
        LoRA(model)
    with pytest.raises(ConfigError, match="in use by another LoRA"):
        LoRA(model.base)
    with pytest.raises(ConfigError, match="must be a torch module, not str"):
        LoRA("bert")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"\['rank'\] are for an adapter, but name=None"):
        LoRA(tiny("bert"), name=None, rank=2)
    with pytest.raises(ConfigError, match="either a config or keyword settings"):
        model.add_adapter("b", model.adapters["default"], rank=2)
    with pytest.raises(ConfigError, match="resize the vocabulary before"):
        LoRA(tiny("llama"), rank=2, targets=["embed_tokens"]).resize_token_embeddings(90)
    resized = LoRA(tiny("llama"), rank=2)
    resized.resize_token_embeddings(90)
    assert logits(resized, {"input_ids": torch.tensor([[88]])}).shape[-1] == 90
    assert not resized.base.lm_head.weight.requires_grad


def test_a_module_in_two_places_has_one_set_of_parameters() -> None:
    shared = nn.Linear(4, 4)
    base = nn.Sequential(shared, nn.Tanh(), shared)
    model = LoRA(base, rank=2)
    assert len(model.slots("default")) == 1 and base[0] is base[2]
    randomise(model.adapter_parameters("default").values())
    x = torch.randn(3, 4)
    torch.testing.assert_close(model.merge()(x), model(x))
    model.unload()
    assert base[0] is base[2] is shared


def test_copies_are_apart_in_everything_but_value() -> None:
    model = tuned(tiny("llama-tied"), targets=["embedding", "q_proj"])
    model.add_adapter("b", rank=3)
    clone = copy.deepcopy(model)
    with model.using("default"), clone.using("default"):
        first = logits(model, batch("llama"))
        assert torch.equal(logits(clone, batch("llama")), first)
        randomise(clone.adapter_parameters("default").values(), seed=7)
        changed = logits(clone, batch("llama"))
        assert not torch.equal(changed, first) and torch.equal(logits(model, batch("llama")), first)
    clone.remove_adapter("default")
    assert list(model.adapters) == ["default", "b"] and len(model.slots("default", tied=True)) == 4
    assert {p.data_ptr() for p in model.parameters()}.isdisjoint(p.data_ptr() for p in clone.parameters())
    assert not any(key.startswith("base.model.embed") and "slots" not in key for key in clone.state_dict())


def test_summary_says_what_and_how_much() -> None:
    model = LoRA(tiny("bert"), rank=2, exclude=["pooler"])
    count = sum(p.numel() for p in model.adapter_parameters("default").values())
    total = sum(p.numel() for p in tiny("bert").parameters())
    text = model.summary()
    assert (
        f"{count:,} parameters" in text and f"the base's {total:,}" in text and f"{100 * count / total:.2f} %" in text
    )
    assert "trained in full: classifier" in text and "bert.pooler.dense (excluded)" not in text
    assert "bert.encoder.layer.*.attention.self.query ×2" in text
    assert "excluded" in LoRA(tiny("bert"), rank=2, exclude=["dense"]).summary()
    assert repr(model).startswith("LoRA[default]")


# -- running ----------------------------------------------------------------------------------------------------------


def test_using_nests_and_threads_do_not_meet() -> None:
    model = tuned(tiny("bert"), "a")
    model.add_adapter("b", rank=2)
    randomise(model.adapter_parameters("b").values(), seed=5)
    inputs = batch("bert")
    expected = {name: logits(model, inputs, adapters=[name] * 4) for name in ("a", "b", "base")}
    with pytest.raises(RoutingError, match="2 adapters"):
        logits(model, inputs)
    with pytest.raises(RoutingError, match="unknown adapter 'c'"), model.using("c"):
        pass
    with model.using("a"):
        with model.using("base"):
            assert torch.equal(logits(model, inputs), expected["base"])
            assert torch.equal(logits(model, inputs, adapters=["b"] * 4), expected["b"])
        assert torch.equal(logits(model, inputs), expected["a"])
    wrong: list[str] = []

    def work(name: str) -> None:
        for _ in range(5):
            with model.using(name):
                if not torch.equal(logits(model, inputs), expected[name]):
                    wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b", "base")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_rows_that_cannot_be_routed() -> None:
    model = LoRA(tiny("bert"), rank=2)
    inputs = batch("bert")
    with pytest.raises(RoutingError, match="unknown adapter 'x'; this model carries: base, default"):
        model(**inputs, adapters=["x"] * 4)
    with pytest.raises(RoutingError, match="3 names for a batch of 4 rows"):
        model(**inputs, adapters=["default"] * 3)
    with pytest.raises(RoutingError, match="one name per row is needed"):
        model(**inputs, adapters="default")
    with pytest.raises(RoutingError):
        model(**inputs, adapters=[])


def test_inference_shortcuts_of_torch_do_not_pass_the_adapter_by() -> None:
    """nn.TransformerEncoderLayer reads its weights directly in eval under no_grad, where it may."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0).eval()
    base = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
    x = torch.randn(3, 5, 8)
    with torch.no_grad():
        plain = base(x)
    model = tuned(base.eval())
    padding = torch.tensor([[False] * 5, [False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        fast, short = model(x), model(x, src_key_padding_mask=padding)
    torch.testing.assert_close(short[2, :3], model(x, src_key_padding_mask=padding)[2, :3].detach())
    assert (fast - plain).abs().max() > 1e-3
    torch.testing.assert_close(fast, model(x).detach())
    with torch.no_grad(), model.using("base"):
        torch.testing.assert_close(model(x), plain)
    with torch.no_grad():
        torch.testing.assert_close(model.merge()(x), fast)
    assert model.merge().layers[0].activation_relu_or_gelu == layer.activation_relu_or_gelu
    model.unload()
    with torch.no_grad():
        assert torch.equal(base(x), plain)
    assert base.layers[0].activation_relu_or_gelu == layer.activation_relu_or_gelu


def test_any_torch_module_works() -> None:
    model = tuned(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    x = torch.randn(5, 4)
    assert (model(x) - model(x, adapters=["base"] * 5)).abs().max() > 1e-3
    assert list(model.slots("default")) == ["0", "2"] and model.owned("default") == {}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", ["plain", "dora"])
def test_a_half_precision_base_keeps_its_type_and_trains_in_fp32(dtype: torch.dtype, variant: str) -> None:
    model = tuned(tiny("bert").to(dtype), variant=variant)
    outputs = model(**batch("bert"), output_hidden_states=True)
    out = outputs.logits
    # The head is the adapter's own, and what comes out of it the result: it is not rounded to the base's type.
    assert out.dtype == torch.float32 and outputs.hidden_states[-1].dtype == dtype
    mixed = model(**batch("bert"), adapters=["base", *["default"] * 3]).logits
    alone = model(**batch("bert"), adapters=["base"] * 4).logits
    assert alone.dtype == dtype and torch.equal(mixed[0], alone[0].float()) and torch.equal(mixed[1:], out[1:])
    out.float().pow(2).sum().backward()
    for key, parameter in model.adapter_parameters("default").items():
        assert parameter.dtype == torch.float32 and parameter.grad is not None, key
        assert parameter.grad.dtype == torch.float32 and parameter.grad.abs().sum() > 0, key
    exact = tuned(tiny("bert"), variant=variant)
    torch.testing.assert_close(out.float(), logits(exact, batch("bert")), atol=0.1, rtol=0.1)


def test_part_of_the_heads_gives_the_base_its_own_type() -> None:
    model = LoRA(tiny("distilbert").to(torch.bfloat16), rank=2, modules_to_save=["pre_classifier"])
    assert model(**batch("distilbert")).logits.dtype == torch.bfloat16
    model = LoRA(tiny("distilbert").to(torch.bfloat16), rank=2)
    assert model(**batch("distilbert")).logits.dtype == torch.float32


# -- heads ------------------------------------------------------------------------------------------------------------


def test_what_the_checkpoint_lacks_is_found_trained_and_kept_apart(tmp_path: Path) -> None:
    tiny("bert").bert.save_pretrained(tmp_path / "headless")
    loaded = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "headless", num_labels=4)
    assert newly_initialised(loaded) == ["classifier.weight", "classifier.bias"]
    assert newly_initialised(tiny("bert")) == []  # of a model that was not loaded nothing is known
    body = tiny("bert").bert
    del body.pooler
    torch.save(None, tmp_path / "unrelated")
    body.config.save_pretrained(tmp_path / "poolerless")
    state = {key: value for key, value in body.state_dict().items()}
    transformers.BertModel(body.config, add_pooling_layer=False).save_pretrained(
        tmp_path / "poolerless", state_dict=state
    )
    model = LoRA(
        transformers.BertForSequenceClassification.from_pretrained(tmp_path / "poolerless"), "a", rank=2
    ).eval()
    assert sorted(model.owned("a")) == ["bert.pooler.dense", "classifier"]
    model.add_adapter("b", rank=2)
    randomise(model.owned("a")["classifier"].parameters(), 1)
    with model.using("b"):
        of_b = logits(model, batch("bert"))
    randomise(model.adapter_parameters("a").values(), 3)
    with model.using("b"):
        assert torch.equal(logits(model, batch("bert")), of_b)
    with model.using("a"):
        assert not torch.equal(logits(model, batch("bert")), of_b)


def test_half_of_a_tied_pair_in_full_is_refused() -> None:
    with pytest.raises(TargetError, match="embed_tokens and lm_head are one tensor"):
        LoRA(tiny("llama-tied"), rank=2, modules_to_save=["embed_tokens"])
    with pytest.raises(TargetError, match="are one tensor, and variant 'dora'"):
        LoRA(tiny("llama-tied"), rank=2, targets="embedding", variant="dora")
    with pytest.raises(TargetError, match="no adapted embedding shares"):
        LoRA(tiny("llama"), rank=2, targets="embedding", tie_embeddings=True)


# -- other tools ------------------------------------------------------------------------------------------------------


def test_a_state_dict_holds_the_adapters_alone() -> None:
    model = tuned(tiny("bert"), "a", variant="dora")
    model.add_adapter("b", rank=3)
    holder = nn.ModuleDict({"inside": model, "other": nn.Linear(2, 2)})
    state = {key: value.clone() for key, value in holder.state_dict().items()}
    parameters = sum(len(model.adapter_parameters(name)) for name in model.adapters)
    assert len(state) == parameters + 2 and not any("base_layer" in key or "original" in key for key in state)
    with model.using("a"):
        first = logits(model, batch("bert"))
        randomise(model.adapter_parameters("a").values(), seed=8)
        assert not torch.equal(logits(model, batch("bert")), first)
        assert holder.load_state_dict(state) == ([], [])
        assert torch.equal(logits(model, batch("bert")), first)
    lacking = {key: value for key, value in model.state_dict().items() if "pooler" not in key}
    with pytest.raises(RuntimeError, match=r"Missing key.*pooler"):
        model.load_state_dict(lacking)
    with pytest.raises(RuntimeError, match="Unexpected key.*something"):
        model.load_state_dict({**model.state_dict(), "something": torch.ones(1)})


def test_saving_as_transformers_models_do(tmp_path: Path) -> None:
    model = tuned(tiny("bert"), "a")
    model.save_pretrained(tmp_path / "one")
    model.add_adapter("b", rank=3)
    model.save_pretrained(tmp_path / "two", safe_serialization=True)
    other = LoRA(tiny("bert"), name=None)
    assert other.load_adapter(tmp_path / "one") == "one"
    assert [other.load_adapter(tmp_path / "two" / name) for name in "ab"] == ["a", "b"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {
        "[PAD]": 0,
        "[UNK]": 1,
        **{word: number for number, word in enumerate(["good", "bad", "fine", "the", "a", "film"], 2)},
    }
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")


def test_pipelines_take_it_without_complaint(tokenizer: Any, capfd: Any, caplog: Any) -> None:
    model = tuned(tiny("bert"))
    pipe = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer, device="cpu")
    texts = ["the good film", "a bad film"]
    found = pipe(texts, top_k=None)
    encoded = tokenizer(texts, return_tensors="pt", padding=True)
    expected = logits(model, dict(encoded)).softmax(-1)
    for row, scores in enumerate(found):
        got = {int(entry["label"].rpartition("_")[2]): entry["score"] for entry in scores}
        torch.testing.assert_close(torch.tensor([got[n] for n in range(3)]), expected[row], atol=1e-5, rtol=0)
    error = capfd.readouterr().err
    assert "not supported" not in error and "Traceback" not in error
    assert not [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]


def prompts() -> dict[str, Tensor]:
    ids = torch.randint(3, 80, (4, 5), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.mark.parametrize("arch", ["llama", "gpt2", "t5", "opt"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 4, "num_return_sequences": 2}])
def test_generation_with_an_adapter_per_prompt(arch: str, options: dict[str, Any]) -> None:
    model = tuned(tiny(arch), "a")
    model.add_adapter("b", rank=2, targets="mlp")
    randomise([0.5 * p for p in model.adapter_parameters("b").values()], 5)
    randomise(model.adapter_parameters("b").values(), 5)
    options = {**options, "max_new_tokens": 6, "do_sample": False, "min_new_tokens": 6}
    alone = {}
    for name in ("a", "b", "base"):
        with model.using(name):
            alone[name] = model.generate(**prompts(), **options)
    assert torch.equal(model.merge("a").generate(**prompts(), **options), alone["a"])
    assert len({tuple(value.flatten().tolist()) for value in alone.values()}) == 3, "the adapters generate the same"
    names = ["a", "base", "b", "a"]
    mixed = model.generate(**prompts(), **options, adapters=names)
    times = options.get("num_return_sequences", 1)
    for row, name in enumerate(names):
        assert torch.equal(mixed[row * times : (row + 1) * times], alone[name][row * times : (row + 1) * times])


def test_attributes_are_the_bases_and_the_class_name_too() -> None:
    model = LoRA(tiny("bert"), rank=2)
    assert type(model).__name__ == "BertForSequenceClassification" and isinstance(model, LoRA)
    assert model.config is model.base.config and model.device == torch.device("cpu") and model.dtype == torch.float32
    assert model.get_base_model() is model.base and model.num_labels == 3
    assert model.train() is model and model.base.training and model.eval() is model and not model.base.training
    with pytest.raises(AttributeError, match="nothing_of_that_name"):
        _ = model.nothing_of_that_name
    import inspect

    assert list(inspect.signature(type(model).forward).parameters)[:2] == ["self", "input_ids"]
    assert "adapters" in inspect.signature(type(model).forward).parameters


@pytest.mark.parametrize("variant", ["plain", "dora"])
def test_operations_in_place_after_an_adapted_layer(variant: str) -> None:
    model = LoRA(nn.Sequential(nn.Linear(8, 8), nn.ReLU(inplace=True), nn.Linear(8, 2)), rank=2, variant=variant)
    model.train()
    for shape in ((5, 8), (3, 5, 8)):
        model(torch.randn(shape)).add_(1).sum().backward()
    assert all(p.grad is not None for p in model.adapter_parameters("default").values())


def test_a_forward_that_someone_put_on_a_layer_is_called() -> None:
    """accelerate's hooks (offloading, for one) replace ``forward`` on the instance."""
    base = nn.Sequential(nn.Linear(8, 8))
    model, called = LoRA(base, rank=2), []
    layer = model.base[0].base_layer
    forward = layer.forward
    layer.forward = lambda x: (called.append(1), forward(x))[1]
    model(torch.randn(4, 8))
    assert called


def test_checkpointing_under_any_of_its_names() -> None:
    """Enabled before the adapters came, by Trainer's way or by the older: recomputed blocks keep their rows."""
    with pytest.raises(ConfigError, match="use_reentrant=False"):
        LoRA(tiny("llama"), rank=2).gradient_checkpointing_enable({"use_reentrant": True})

    def gradients(when: str) -> list[Tensor]:
        base = tiny("llama", attention_dropout=0.0)
        base.config.use_cache = False
        if when == "before":
            base.gradient_checkpointing_enable()
        model = tuned(base, "a").train()
        model.add_adapter("b", rank=2)
        randomise(model.adapter_parameters("b").values(), 5)
        if when in ("activation_checkpointing_enable", "gradient_checkpointing_enable"):
            getattr(model, when)()
        loss = model(**batch("llama"), adapters=["a", "b", "base", "a"]).logits.pow(2).sum()
        with model.using("base"):  # what is in force during the backward is not what was in the forward
            loss.backward()
        return [p.grad.clone() for name in "ab" for p in model.adapter_parameters(name).values()]

    plain = gradients("never")
    for when in ("before", "activation_checkpointing_enable", "gradient_checkpointing_enable"):
        for left, right in zip(plain, gradients(when), strict=True):
            torch.testing.assert_close(left, right, atol=1e-6, rtol=1e-5)

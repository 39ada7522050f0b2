"""Loading adapter folders: what is broken is named, nothing is half loaded, and adapters come back as they were."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lora import LoRA
from lora.errors import AdapterFileError, ConfigError, RoutingError
from lora.io.fingerprint import fingerprint
from tiny_models import batch, bits, logits, randomise, tiny

CONFIG, WEIGHTS, SIDECAR = "adapter_config.json", "adapter_model.safetensors", "lora.json"
QUERY = "base_model.model.bert.encoder.layer.0.attention.self.query"


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config.update(changes)
    (folder / CONFIG).write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


class Boom:
    """A pickle that tells when it is opened."""

    def __reduce__(self) -> Any:
        return (os.abort, ())


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Boom()))


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def mlx(folder: Path) -> None:
    (folder / CONFIG).write_text(
        json.dumps({"fine_tune_type": "lora", "lora_parameters": {"rank": 8}, "num_layers": 2})
    )


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no configuration": (lambda f: (f / CONFIG).unlink(), "no adapter_config.json here; an adapter folder holds"),
    "broken JSON": (lambda f: (f / CONFIG).write_text('{"r": 4,'), "not readable as JSON"),
    "no object": (lambda f: (f / CONFIG).write_text("[1]"), "expected a JSON object, found list"),
    "not UTF-8": (lambda f: (f / CONFIG).write_bytes(b'{"r": "\xff"}'), "not readable as JSON"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no adapter_model.safetensors here$"),
    "only a pickle": (only_a_pickle, "adapter_model.bin is a pickle, which is never read"),
    "truncated": (cut, "not a readable safetensors file"),
    "empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), "not a readable safetensors file"),
    "broken sidecar": (lambda f: (f / SIDECAR).write_text("{"), "lora.json: cannot be read"),
    "sidecar of another kind": (lambda f: (f / SIDECAR).write_text("3"), "expected a JSON object, found int"),
    "missing tensor": (
        lambda f: edit_tensors(f, lambda t: t.pop(f"{QUERY}.lora_B.weight")),
        "bert.encoder.layer.0.attention.self.query: tensor B is missing",
    ),
    "missing layer": (
        lambda f: edit_tensors(f, lambda t: [t.pop(f"{QUERY}.lora_{x}.weight") for x in "AB"]),
        "self.query: targeted by the configuration, but there is no tensor for it",
    ),
    "extra tensor": (
        lambda f: edit_tensors(f, lambda t: t.update({"base_model.model.bert.x.lora_A.weight": torch.ones(2)})),
        r"no place for tensor bert.x.lora_A.weight \(2,\)",
    ),
    "another prefix": (
        lambda f: edit_tensors(f, lambda t: t.update({"transformer.x.lora_A.weight": torch.ones(2)})),
        "'transformer.x.lora_A.weight' does not begin with 'base_model.model.'",
    ),
    "wrong shape": (
        lambda f: edit_tensors(f, lambda t: t.update({f"{QUERY}.lora_A.weight": torch.ones(2, 31)})),
        r"self.query.A: shape \(2, 31\), the base needs \(2, 32\)",
    ),
    "ranks disagree": (
        lambda f: edit_tensors(f, lambda t: t.update({f"{QUERY}.lora_B.weight": torch.ones(32, 3)})),
        r"self.query.B: shape \(32, 3\), the base needs \(32, 2\)",
    ),
    "magnitude without dora": (
        lambda f: edit_tensors(f, lambda t: t.update({f"{QUERY}.lora_magnitude_vector": torch.ones(32)})),
        "no place for tensor .*lora_magnitude_vector",
    ),
    "dora without magnitude": (lambda f: edit_config(f, use_dora=True), "tensor magnitude is missing"),
    "head lost": (
        lambda f: edit_tensors(f, lambda t: t.pop("base_model.model.classifier.weight")),
        "tensor classifier.weight is missing",
    ),
    "head of another size": (
        lambda f: edit_tensors(f, lambda t: t.update({"base_model.model.classifier.weight": torch.ones(3, 7)})),
        r"classifier.weight: shape \(3, 7\), the base has \(3, 32\)",
    ),
    "no tensors": (
        lambda f: (edit_tensors(f, lambda t: t.clear()), edit_config(f, target_modules=[], modules_to_save=[])),
        "no tensors of an adapter at all",
    ),
    "other base": (
        lambda f: edit_sidecar(f, fingerprint="0123456789abcdef"),
        "trained on other base weights: .*fingerprint 0123456789abcdef.*allow_other_base=True",
    ),
    "unknown key": (lambda f: edit_config(f, use_frobnication=True), "use_frobnication=True is not known here"),
    "bias": (lambda f: edit_config(f, bias="all"), "bias='all', which trains the base's own biases"),
    "unknown start": (lambda f: edit_config(f, init_lora_weights="novel"), "'novel', a start that is not known here"),
    "changed base": (lambda f: edit_config(f, init_lora_weights="pissa_niter_4"), "'pissa_niter_4', which changes"),
    "another method": (lambda f: edit_config(f, peft_type="IA3"), "peft_type 'IA3'; only LORA"),
    "mlx": (mlx, "looks like one of mlx-lm"),
    "no type": (lambda f: edit_config(f, peft_type=...), "no peft_type"),
    "rank 0": (lambda f: edit_config(f, r=0), "r must be a positive number, found 0"),
    "no rank": (lambda f: edit_config(f, r=...), "r must be a positive number, found None"),
    "alpha below 0": (lambda f: edit_config(f, lora_alpha=-1), "lora_alpha must be a positive number"),
    "dropout of 1": (lambda f: edit_config(f, lora_dropout=1.0), "dropout"),
}  # fmt: skip


def edit_sidecar(folder: Path, **base: Any) -> None:
    sidecar = json.loads((folder / SIDECAR).read_text())
    sidecar["base"].update(base)
    (folder / SIDECAR).write_text(json.dumps(sidecar))


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_folder_is_named_and_the_model_unchanged(case: str, folder: Path) -> None:
    breaking, message = BROKEN[case]
    breaking(folder)
    model = LoRA(tiny("bert"), name="there", rank=2)
    before, structure = bits(model.base), repr(model)
    with pytest.raises(AdapterFileError, match=message) as caught:
        model.load_adapter(folder)
    assert str(folder) in str(caught.value)
    assert bits(model.base) == before and repr(model) == structure and list(model.adapters) == ["there"]
    assert all(parameter.requires_grad for parameter in model.adapter_parameters("there").values())


def test_names_and_places_that_cannot_be(folder: Path, tmp_path: Path) -> None:
    model = LoRA(tiny("bert"), name="there", rank=2)
    structure = repr(model)
    for name, message in {
        "there": "already an adapter 'there'",
        "base": "base model's own name",
        "": "name ''",
    }.items():
        with pytest.raises(ConfigError, match=message):
            model.load_adapter(folder, name)
    for path in (tmp_path / "nowhere", "./nowhere", folder / CONFIG):
        with pytest.raises(AdapterFileError, match="no such adapter folder"):
            model.load_adapter(path, "x")
    with pytest.raises(AdapterFileError, match="no such folder here, and the hub (did not|cannot)"):
        model.load_adapter("someone/nothing-of-that-name")
    with pytest.raises(RoutingError, match="no adapter 'x'"):
        model.save_adapter("x", tmp_path / "x")
    assert repr(model) == structure and not (tmp_path / "x").exists()


def test_ranks_that_the_tensors_contradict_are_told_with_both(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    sound, model = LoRA(tiny("bert"), name=None), LoRA(tiny("bert"), name=None)
    sound.load_adapter(folder)
    assert not caplog.messages
    edit_config(folder, r=8)
    model.load_adapter(folder)
    (said,) = caplog.messages
    assert f"{folder / CONFIG}: says rank 8 for bert.encoder.layer.*.attention.self" in said
    assert "whose tensors have rank 2. The tensors are believed" in said
    slots, others = sound.slots("good"), model.slots("good")
    assert {path: (slot.rank, slot.scaling) for path, slot in slots.items()} == {
        path: (slot.rank, slot.scaling) for path, slot in others.items()
    }
    caplog.clear()
    model.save_adapter("good", folder)
    LoRA(tiny("bert"), name=None).load_adapter(folder)
    assert not caplog.messages, "saved anew they agree"


def test_other_weights_of_the_same_shape_may_be_allowed(folder: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"trained on other base weights: .*\(--allow-other-base\)"):
        LoRA(tiny("bert", seed=5), name=None).load_adapter(folder)
    other = LoRA(tiny("bert", seed=5), name=None)
    assert other.load_adapter(folder, allow_other_base=True) == "good"


@pytest.mark.parametrize("allowed", [False, True])
def test_another_shape_is_named_and_no_permission_offered(folder: Path, allowed: bool) -> None:
    def refusal(base: Any) -> str:
        with pytest.raises(AdapterFileError, match="does not fit the base") as caught:
            LoRA(base, name=None).load_adapter(folder, allow_other_base=allowed)
        assert "allow" not in str(caught.value)
        return str(caught.value)

    edit_sidecar(folder, name="somewhere/bert")
    wider = refusal(tiny("bert", hidden_size=64))
    assert "classifier.weight: shape (3, 32), the base has (3, 64)" in wider
    assert "bert.encoder.layer.0.attention.self.query.A: shape (2, 32), the base needs (2, 64)" in wider
    assert wider.endswith(
        "It was made for somewhere/bert (BertForSequenceClassification): load it on that; "
        "only weights, not shapes, may be those of another base"
    )
    assert "layer.1.attention.self.query.lora_A.weight (2, 32)" in refusal(tiny("bert", num_hidden_layers=1))
    assert "classifier.dense.weight is missing" in refusal(tiny("roberta"))
    assert "no place for tensor bert.encoder.layer.0" in refusal(tiny("llama-cls"))
    assert "no place for tensor bert.encoder" in refusal(tiny("bert").bert)
    (folder / SIDECAR).unlink()  # of a folder that PEFT wrote less is known
    edit_config(folder, base_model_name_or_path="elsewhere/bert")
    assert "It was made for elsewhere/bert: load it on that" in refusal(tiny("bert", hidden_size=64))


def test_a_broken_folder_for_this_base_is_called_so(folder: Path) -> None:
    edit_tensors(folder, lambda t: t.pop(f"{QUERY}.lora_B.weight"))
    with pytest.raises(AdapterFileError, match="made for this base, so its files are damaged"):
        LoRA(tiny("bert"), name=None).load_adapter(folder)


def test_neutral_keys_of_other_versions_are_no_obstacle(folder: Path) -> None:
    edit_config(folder, use_something_new=False, other=None, more=[], runtime_config={"ephemeral_gpu_offload": False},
                init_lora_weights=True, peft_version="99.0", loftq_config={}, layer_replication=None)  # fmt: skip
    assert LoRA(tiny("bert"), name=None).load_adapter(folder, "a") == "a"


def test_without_a_sidecar_nothing_is_known_of_the_base(folder: Path) -> None:
    (folder / SIDECAR).unlink()
    LoRA(tiny("bert", seed=5), name=None).load_adapter(folder)


def test_notes_travel_with_the_adapter(folder: Path, tmp_path: Path) -> None:
    model = LoRA(tiny("bert"), name=None)
    model.load_adapter(folder, "a")
    model.notes["a"]["task"] = {"labels": ["ä", "b"]}
    model.save_adapter("a", tmp_path / "again")
    other = LoRA(tiny("bert"), name=None)
    other.load_adapter(tmp_path / "again", "b")
    assert other.notes["b"] == {"task": {"labels": ["ä", "b"]}}


def test_a_loaded_adapter_trains_unless_told_otherwise(folder: Path) -> None:
    model = LoRA(tiny("bert"), name=None)
    model.load_adapter(folder, "a")
    model.load_adapter(folder, "still", trainable=False)
    for name in ("a", "still"):
        with model.using(name):
            out = model(**batch("bert")).logits
            assert out.requires_grad == (name == "a")
    with model.using("a"):
        model(**batch("bert")).logits.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapter_parameters("a").values())


def test_a_tie_that_the_file_does_not_hold_becomes_two_updates(tmp_path: Path) -> None:
    model = LoRA(tiny("llama-tied"), rank=2, targets="embedding").eval()
    randomise(model.adapter_parameters("default").values())
    folder = model.save_adapter("default", tmp_path / "tied")
    tied = LoRA(tiny("llama-tied"), name=None)
    tied.load_adapter(folder)
    assert len(tied.slots("tied")) == 1
    edit_tensors(folder, lambda t: t.update({"base_model.model.lm_head.lora_A.weight": torch.full((2, 32), 0.1)}))
    apart = LoRA(tiny("llama-tied"), name=None)
    apart.load_adapter(folder)
    assert list(apart.slots("tied")) == ["model.embed_tokens", "lm_head"]
    assert apart.slots("tied")["lm_head"].A.eq(0.1).all()


def test_a_tied_module_in_full_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = LoRA(tiny("llama-tied"), rank=2, modules_to_save=["embed_tokens"], tie_embeddings=False)
    folder = model.save_adapter("default", tmp_path / "a")
    LoRA(tiny("llama-tied"), name=None).load_adapter(folder)
    edit_config(folder, ensure_weight_tying=True)
    with pytest.raises(AdapterFileError, match="embed_tokens and lm_head are one tensor"):
        LoRA(tiny("llama-tied"), name=None).load_adapter(folder)


def test_embedding_weights_of_another_base(tmp_path: Path) -> None:
    model = LoRA(tiny("llama"), rank=2, targets=["embed_tokens"])
    folder = model.save_adapter("default", tmp_path / "a")
    LoRA(tiny("llama").to(torch.bfloat16), name=None).load_adapter(folder)  # the same weights, rounded
    edit_tensors(folder, lambda t: t["base_model.model.model.embed_tokens.base_layer.weight"].add_(1))
    with pytest.raises(
        AdapterFileError, match=r"other embedding weights than .*\(model.embed_tokens\).*allow-other-base"
    ):
        LoRA(tiny("llama"), name=None).load_adapter(folder)
    LoRA(tiny("llama"), name=None).load_adapter(folder, allow_other_base=True)


def test_a_resized_vocabulary_is_stored_and_found(tmp_path: Path) -> None:
    tiny("llama").save_pretrained(tmp_path / "base")

    def resized(seed: int) -> Any:
        torch.manual_seed(seed)
        model = type(tiny("llama")).from_pretrained(tmp_path / "base").eval()
        model.resize_token_embeddings(83)
        with torch.no_grad():
            model.get_input_embeddings().weight[0, 0] += seed  # one that the fingerprint looks at
        return model

    model = LoRA(resized(0), rank=2).eval()
    randomise(model.adapter_parameters("default").values())
    folder = model.save_adapter("default", tmp_path / "a")
    stored = load_file(folder / WEIGHTS)
    assert stored["base_model.model.model.embed_tokens.weight"].shape == (83, 32)
    assert stored["base_model.model.lm_head.weight"].shape == (83, 32)
    other = LoRA(resized(1), name=None).eval()
    inputs = {"input_ids": torch.tensor([[81, 82, 5]])}
    before = bits(other.base)
    assert not torch.equal(other.base.lm_head.weight, model.base.lm_head.weight)  # new rows are made up anew
    other.load_adapter(folder)
    assert torch.equal(logits(other, inputs), logits(model, inputs))
    other.unload()
    assert bits(other.base) == before
    with pytest.raises(AdapterFileError, match=r"resize_token_embeddings\(83\)"):
        LoRA(tiny("llama"), name=None).load_adapter(folder, allow_other_base=True)


# -- fingerprint ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ["bert", "gpt2", "llama-tied", "t5", "vit"])
def test_fingerprint_tells_weights_not_types_or_adapters(arch: str) -> None:
    base = tiny(arch)
    first = fingerprint(base)
    assert fingerprint(tiny(arch).to(torch.bfloat16)) == first
    assert fingerprint(tiny(arch, seed=1)) != first
    model = LoRA(base, rank=2)
    model.add_adapter("b", rank=2, variant="dora")
    assert fingerprint(model.base) == first
    with torch.no_grad():
        last = list(tiny(arch).named_parameters())[-1][0]
        if "classifier" in last:  # heads differ from load to load and belong to the adapter
            other = tiny(arch)
            other.get_parameter(last).add_(1)
            assert fingerprint(other) == first


def test_a_variant_that_peft_does_not_know_comes_back_as_itself(tmp_path):
    from lora.core import variant as registry
    from lora.variants.plain import Plain

    class Twice(Plain):
        name = "twice"

        def apply(self, geometry, parameters, x, base_out, scaling, dropout):
            return super().apply(geometry, parameters, x, base_out, 2 * scaling, dropout)

    registry.register(Twice())
    try:
        model = LoRA(tiny("llama"), rank=2, variant="twice")
        randomise(model.adapter_parameters("default").values())
        expected = logits(model, batch("llama"))
        model.save_adapter("default", tmp_path / "a")
        fresh = LoRA(tiny("llama"), name=None)
        fresh.load_adapter(tmp_path / "a", "default")
        assert fresh.adapters["default"].variant == "twice"
        assert torch.equal(logits(fresh, batch("llama")), expected)
    finally:
        del registry._REGISTRY["twice"], registry.VARIANTS["twice"]
    with pytest.raises(AdapterFileError, match="'twice'.*not known"):
        LoRA(tiny("llama"), name=None).load_adapter(tmp_path / "a", "b")

"""transformers.Trainer sees an adapter model: it saves folders of PEFT, resumes from them and loads the best."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from lora import LoRA
from lora.errors import ConfigError
from tiny_models import batch, bits, logits, randomise, tiny

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
FILES = {"adapter_config.json", "adapter_model.safetensors", "lora.json"}
CASES = {
    "classifier": ("bert", {}),
    "classifier of a decoder": ("llama-cls", {"variant": "dora"}),
    "causal": ("llama-tied", {"targets": ["embedding", "all-linear"], "dropout": 0.3}),
}


class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, arch: str) -> None:
        self.inputs, self.causal = batch(arch, rows=16), arch == "llama-tied"

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = {key: value[index] for key, value in self.inputs.items()}
        return {**row, "labels": row["input_ids"] if self.causal else torch.tensor(index % 3)}


def trainer(arch: str, model: Any, folder: Path, **settings: Any) -> transformers.Trainer:
    settings = {"max_steps": 6, "save_steps": 3, "eval_steps": 1, "learning_rate": 1e-2, **settings}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, logging_steps=1, eval_strategy="steps", report_to=[],
        use_cpu=True, disable_tqdm=True, seed=3, **settings,
    )  # fmt: skip
    return transformers.Trainer(model=model, args=arguments, train_dataset=Rows(arch), eval_dataset=Rows(arch))


def model_of(case: str, seed: int = 0) -> LoRA:
    arch, settings = CASES[case]
    model = LoRA(tiny(arch), name=None)
    model.add_adapter("default", seed=seed, rank=2, **settings)
    return model


def losses(run: transformers.Trainer) -> dict[int, list[float]]:
    """Step -> training and validation loss, to the last bit that Trainer keeps."""
    out: dict[int, list[float]] = {}
    for entry in run.state.log_history:
        found = [entry[key] for key in ("loss", "grad_norm", "eval_loss") if key in entry]
        out.setdefault(entry["step"], []).extend(found)
    return out


def check_folder(folder: Path, arch: str, expected: Tensor) -> None:
    """An adapter folder and nothing of the base, which computes ``expected`` when read here and by PEFT."""
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES and not names & {"model.safetensors", "pytorch_model.bin", "config.json"}
    assert not [name for name in names if name.startswith(".")]
    ours = LoRA(tiny(arch), name=None)
    ours.load_adapter(folder, "a")
    assert torch.equal(logits(ours.eval(), batch(arch)), expected)
    theirs = peft.PeftModel.from_pretrained(tiny(arch), str(folder)).eval()
    torch.testing.assert_close(logits(theirs, batch(arch)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", CASES)
def test_what_trainer_saves_is_an_adapter_folder(case: str, tmp_path: Path) -> None:
    arch, _ = CASES[case]
    model = model_of(case)
    run = trainer(arch, model, tmp_path / "run", gradient_checkpointing=True)
    initial = {key: value.clone() for key, value in model.state_dict().items()}
    run.train()
    assert any(not torch.equal(initial[key], value) for key, value in model.state_dict().items())
    run.save_model(str(tmp_path / "saved"))
    run.save_model()  # into the folder that holds the checkpoints
    expected = logits(model.eval(), batch(arch))
    for folder in (tmp_path / "saved", tmp_path / "run", tmp_path / "run" / "checkpoint-6"):
        check_folder(folder, arch, expected)
    early = LoRA(tiny(arch), name=None)
    early.load_adapter(tmp_path / "run" / "checkpoint-3", "a")
    assert not torch.equal(logits(early.eval(), batch(arch)), expected)
    base = model.unload()
    assert bits(base) == bits(tiny(arch))


@pytest.mark.parametrize("case", CASES)
def test_resumed_it_goes_on_as_if_it_had_not_stopped(case: str, tmp_path: Path) -> None:
    arch, _ = CASES[case]
    whole = trainer(arch, model_of(case), tmp_path / "whole")
    whole.train()
    # Another start on purpose: nothing but the checkpoint may count.
    model = model_of(case, seed=99)
    again = trainer(arch, model, tmp_path / "again")
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert len(losses(whole)) == 6 and losses(again) == losses(whole)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key


@pytest.mark.parametrize("case", CASES)
def test_the_best_is_loaded_at_the_end(case: str, tmp_path: Path) -> None:
    arch, _ = CASES[case]
    model = model_of(case)
    # A rate at which training soon does harm: the best is not the last.
    run = trainer(
        arch, model, tmp_path, load_best_model_at_end=True, save_steps=1, learning_rate=2.0, warmup_steps=2,
        max_grad_norm=1e9,
    )  # fmt: skip
    run.train()
    best = Path(run.state.best_model_checkpoint)
    assert best.name != "checkpoint-6"
    check_folder(best, arch, logits(model.eval(), batch(arch)))
    assert run.evaluate()["eval_loss"] == run.state.best_metric
    assert all(parameter.requires_grad for parameter in model.adapter_parameters("default").values())


def test_one_of_several_put_in_force(tmp_path: Path) -> None:
    model = model_of("classifier")
    model.add_adapter("other", rank=3, targets="attention")
    randomise(model.adapter_parameters("other").values())
    other = {key: value.clone() for key, value in model.adapter_parameters("other").items()}
    with model.using("default"):
        run = trainer("bert", model, tmp_path / "run")
        run.train()
        run.save_model(str(tmp_path / "saved"))
        check_folder(tmp_path / "saved", "bert", logits(model.eval(), batch("bert")))
    assert all(torch.equal(other[key], value) for key, value in model.adapter_parameters("other").items())


class RowsOfTwo(Rows):
    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), "adapters": ("default", "other")[index % 2]}


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    names = [row.pop("adapters") for row in rows]
    return {**transformers.default_data_collator(rows), "adapters": names}


def test_several_at_once_are_all_kept_in_the_state(tmp_path: Path) -> None:
    """PEFT's protocol knows one active adapter, so Trainer keeps what `state_dict` gives."""

    def run_of(seed: int, folder: str) -> transformers.Trainer:
        model = model_of("classifier", seed)
        model.add_adapter("other", rank=3, targets="attention", seed=seed)
        run = trainer("bert", model, tmp_path / folder)
        run.train_dataset = run.eval_dataset = RowsOfTwo("bert")
        run.data_collator = collate
        return run

    whole, again = run_of(0, "whole"), run_of(99, "again")
    whole.train()
    checkpoint = tmp_path / "whole" / "checkpoint-3"
    saved = load_file(checkpoint / "model.safetensors")
    assert saved.keys() == whole.model.state_dict().keys() and any("@other" in key for key in saved)
    again.train(resume_from_checkpoint=str(checkpoint))
    assert losses(again) == losses(whole)


def test_label_smoothing_and_neftune_find_the_base(tmp_path: Path) -> None:
    """Labels are shifted for causal models only, which Trainer knows by name; noise goes to the base's embedding."""
    inputs = {key: torch.stack([row[key] for row in Rows("llama-tied")]) for key in Rows("llama-tied")[0]}
    plain = trainer("llama-tied", tiny("llama-tied"), tmp_path, label_smoothing_factor=0.1)
    ours = trainer("llama-tied", model_of("causal").eval(), tmp_path, label_smoothing_factor=0.1)
    expected = plain.compute_loss(plain.model, dict(inputs)).item()
    assert ours.compute_loss(ours.model, dict(inputs)).item() == pytest.approx(expected, abs=1e-6)
    ours.model.add_adapter("second", rank=2)
    with ours.model.using("base"):  # no adapter in force: no PeftModel
        assert ours.compute_loss(ours.model, dict(inputs)).item() == pytest.approx(expected, abs=1e-6)
    quiet, noisy = (
        trainer("llama-tied", model_of("causal"), tmp_path / str(noise), neftune_noise_alpha=noise)
        for noise in (None, 50.0)
    )
    for run in (quiet, noisy):
        run.train()
    assert losses(quiet)[1][0] != losses(noisy)[1][0]


# -- what makes it so -------------------------------------------------------------------------------------------------


def test_it_passes_for_a_peft_model_while_one_adapter_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    model = LoRA(tiny("bert"), name=None)

    def passes() -> bool:
        assert isinstance(model, LoRA) and model.__class__.__name__ == "BertForSequenceClassification"
        return isinstance(model, peft.PeftModel)

    assert not passes() and model.active_adapters == []
    model.add_adapter("a", rank=2)
    assert passes() and model.active_adapters == ["a"]
    assert model.base_model.model is model.get_base_model() is model.base and model.base_model.bert is model.base.bert
    model.add_adapter("b", rank=2)
    assert not passes() and model.active_adapters == []
    with model.using("b"):
        assert passes() and model.active_adapters == ["b"]
    with model.using("base"):
        assert not passes()
    assert not hasattr(type(model), "merge_and_unload") and not issubclass(type(model), peft.PeftModel)
    model.remove_adapter("b")
    monkeypatch.delitem(sys.modules, "peft")
    assert model.__class__ is type(model)


def test_saving_takes_the_values_it_is_given(tmp_path: Path) -> None:
    """Where parameters lie spread over processes Trainer gathers them and passes them on."""
    model = model_of("causal").eval()
    randomise(model.adapter_parameters("default").values())
    given = {key: value.clone() for key, value in model.state_dict().items()}
    expected = logits(model, batch("llama-tied"))
    randomise(model.adapter_parameters("default").values(), seed=7)
    own = logits(model, batch("llama-tied"))
    model.save_pretrained(tmp_path / "given", state_dict=given)
    assert torch.equal(logits(model, batch("llama-tied")), own)
    check_folder(tmp_path / "given", "llama-tied", expected)
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()
    with pytest.raises(ConfigError, match="push_to_hub"):
        model.save_pretrained(tmp_path / "none", push_to_hub=True)
    del given[next(key for key in given if "embed_tokens" in key)]
    with pytest.raises(ConfigError, match=r"state_dict: .*embed_tokens.* is not in it \(1 such\)"):
        model.save_pretrained(tmp_path / "none", state_dict=given)
    assert torch.equal(logits(model, batch("llama-tied")), own)


def test_saving_keeps_what_others_write_to_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lora.io.peft as files

    model, folder = model_of("classifier"), tmp_path / "checkpoint"
    (folder / "inside").mkdir(parents=True)
    before, save = (folder / "inside").stat().st_ino, files.save_file

    def meanwhile(*args: Any, **kwargs: Any) -> None:
        save(*args, **kwargs)
        (folder / "rng_state_1.pth").write_text("of another process")

    monkeypatch.setattr(files, "save_file", meanwhile)
    model.save_pretrained(folder)
    assert {path.name for path in folder.iterdir()} == FILES | {"inside", "rng_state_1.pth"}
    assert (folder / "inside").stat().st_ino == before
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_loading_under_a_name_that_is_there_gives_it_the_values(tmp_path: Path) -> None:
    source = model_of("classifier").eval()
    randomise(source.adapter_parameters("default").values())
    folder = source.save_adapter("default", tmp_path / "a")
    model = LoRA(tiny("bert"), rank=2).eval()
    held = model.adapter_parameters("default")
    held["bert.pooler.dense.A"].requires_grad_(False)
    assert model.load_adapter(folder, "default", is_trainable=True) == "default"
    assert torch.equal(logits(model, batch("bert")), logits(source, batch("bert")))
    after = model.adapter_parameters("default")
    assert all(after[key] is parameter for key, parameter in held.items())
    assert not held["bert.pooler.dense.A"].requires_grad  # whether it trains is not the folder's to say
    other = LoRA(tiny("bert"), name=None)
    other.load_adapter(folder, "b", is_trainable=False)
    assert not any(parameter.requires_grad for parameter in other.adapter_parameters("b").values())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rank": 3}, "has rank 3 and scaling 10.6667 here, rank 2 and 16 there"),
        ({"rank": 2, "alpha": 1}, "has rank 2 and scaling 0.5 here, rank 2 and 16 there"),
        ({"rank": 2, "rslora": True}, "has rank 2 and scaling 22.6274 here"),
        ({"rank": 2, "variant": "dora"}, "variant 'dora' here, 'plain' there"),
        ({"rank": 2, "targets": "attention"}, "dense is adapted there alone"),
        ({"rank": 2, "modules_to_save": []}, "classifier is trained in full there alone"),
        ({"rank": 2, "modules_to_save": ["classifier", "pooler"]}, "bert.pooler.dense is adapted there alone"),
    ],
)
def test_an_adapter_of_another_making_does_not_take_the_values(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = model_of("classifier").save_adapter("default", tmp_path / "a")
    model = LoRA(tiny("bert"), **settings).eval()
    before = logits(model, batch("bert"))
    with pytest.raises(ConfigError, match=f"already an adapter 'default', .*{message}.*remove_adapter"):
        model.load_adapter(folder, "default")
    assert torch.equal(logits(model, batch("bert")), before)


def test_a_wider_head_and_a_tie_do_not_take_the_values(tmp_path: Path) -> None:
    wide = LoRA(tiny("bert", num_labels=5), rank=2).save_adapter("default", tmp_path / "wide")
    with pytest.raises(ConfigError, match=r"classifier.weight is \(3, 32\) here, \(5, 32\) there"):
        LoRA(tiny("bert"), rank=2).load_adapter(wide, "default")
    both = ["embed_tokens", "lm_head"]
    apart = LoRA(tiny("llama-tied"), rank=2, targets=both, tie_embeddings=False)
    folder = apart.save_adapter("default", tmp_path / "apart")
    with pytest.raises(ConfigError, match="tied embeddings share one update in one of the two only"):
        LoRA(tiny("llama-tied"), rank=2, targets="embedding").load_adapter(folder, "default")

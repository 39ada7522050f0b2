"""Checks before training: a sound run passes all, each fault is found by its check, nothing is changed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from chat_tokenizer import byte_tokenizer
from lora import LoRA
from lora.checks import rows as row_checks
from lora.checks import saving, steps
from lora.checks.before import check_training, refuse_failed
from lora.checks.finding import Finding
from lora.cli import main
from lora.config import DataConfig, TrainingConfig
from lora.errors import SaveError, TrainingError
from lora.tasks.causal import CausalTask
from lora.training.prepare import Prepared, prepare, read_rows
from lora.training.replay import Replayed, with_replay
from small_base import WORDS, labelled, save_base, stories, tokenizer, write_jsonl
from tiny_models import tiny

TALK = [
    [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": f"{word} now"}] for word in WORDS[:8]
]


def prepared_for(model: LoRA, rows: list[dict], tokens: Any, **data: Any) -> Prepared:
    return prepare(model, read_rows(rows, None, DataConfig.make({"held_out": 0.25, **data}), 0), tokens)


def found(model: LoRA, prepared: Prepared, **settings: Any) -> dict[str, Finding]:
    out = check_training(model, "default", prepared, TrainingConfig.make({"batch_size": 4, **settings}))
    return {finding.check: finding for finding in out}


def llama(**settings: Any) -> LoRA:
    return LoRA(tiny("llama", vocab_size=25, **settings), rank=4)


@pytest.mark.parametrize("kind", ["llama", "bert", "chat", "preference"])
def test_a_sound_run_passes_and_nothing_is_changed(kind: str) -> None:
    tokens: Any = tokenizer("bert" if kind == "bert" else "llama")
    if kind == "bert":
        model, rows = LoRA(tiny("bert", vocab_size=25), rank=4), labelled(24)
    elif kind == "chat":
        tokens = byte_tokenizer()
        model, rows = (
            LoRA(tiny("llama", vocab_size=len(tokens), max_position_embeddings=400), rank=4),
            [{"messages": turns} for turns in TALK],
        )
    else:
        model = llama()
        rows = stories(24)
        if kind == "preference":
            rows = [
                {"prompt": r["prompt"], "chosen": f"cat {r['completion']}", "rejected": r["completion"]} for r in rows
            ]
    prepared = prepared_for(model, rows, tokens)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stream, training = torch.get_rng_state(), model.training
    findings = found(model, prepared)
    assert [f for f in findings.values() if f.status not in ("passed", "skipped")] == []
    assert {f.status for f in findings.values()} >= {"passed"} and len(findings) == 15
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items()) and len(before) == len(
        model.state_dict()
    )
    assert torch.equal(stream, torch.get_rng_state()) and model.training == training
    assert all(p.grad is None for p in model.parameters()) and list(model.adapters) == ["default"]


def test_tokens_that_the_base_does_not_know() -> None:
    """In any row, be it a held-out one: the first row alone is tried elsewhere."""
    model = llama()
    prepared = prepared_for(model, stories(12), tokenizer("llama"))
    prepared.held.examples[-1]["input_ids"][0] = 25  # type: ignore[union-attr]
    prepared.test, prepared.held = prepared.held, None
    assert found(model, prepared)["the base knows every token"].status == "failed"
    prepared.held, prepared.test = prepared.test, None
    finding = found(model, prepared)["the base knows every token"]
    assert finding.status == "failed" and "token 25, and its vocabulary has 25" in finding.said
    with pytest.raises(TrainingError, match="new_tokens"):
        refuse_failed([finding])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_base_that_is_broken_is_named(value: float) -> None:
    model = llama()
    dict(model.base.named_parameters())["model.norm.weight"].data[0] = value
    findings = found(model, prepared_for(model, stories(12), tokenizer("llama")))
    finding = findings["every module receives a gradient"]
    assert finding.status == "failed" and "the base itself holds NaN or infinity (model.norm.weight)" in finding.said
    assert "again" in finding.remedy and findings["what is saved is what was trained"].status == "skipped"


def test_answers_that_never_end() -> None:
    model, tokens = llama(), tokenizer("llama")
    tokens.eos_token = None
    model.base.generation_config.eos_token_id = None
    finding = found(model, prepared_for(model, stories(12), tokens))["answers end with a stop token"]
    assert finding.status == "failed" and "0 of 9 examples" in finding.said and "writes on" in finding.why


def test_a_beginning_that_is_doubled() -> None:
    model, prepared = llama(), None
    prepared = prepared_for(model, stories(12), tokenizer("llama"))
    prepared.tokenizer.bos_token = "red"
    begin = prepared.tokenizer.bos_token_id
    for example in prepared.train.examples[:2]:
        example["input_ids"][:2] = [begin, begin]
    finding = found(model, prepared)["one beginning token"]
    assert finding.status == "failed" and finding.said.startswith("2 of 9")


def test_replay_hides_nothing_and_is_blamed_for_nothing() -> None:
    """Text that is replayed may be cut, has other ends and is learned whole: the data are judged by themselves."""
    model, tokens = llama(), tokenizer("llama")
    prepared = prepared_for(model, stories(12), tokens)
    text = Replayed("general", [{"text": "red sun here " * 40}] * 8, CausalTask(text="text"), 0.5)

    def judged() -> list[Finding]:
        both = replace(prepared, train=with_replay(prepared.train, text, tokens, 12))
        return [
            row_checks.supervised(both.train, both.task), row_checks.stops(model, both), row_checks.cut(both),
        ]  # fmt: skip

    own = [row_checks.supervised(prepared.train, prepared.task), row_checks.stops(model, prepared)]
    assert judged() == [*own, row_checks.cut(prepared)] and {one.status for one in judged()} == {"passed"}
    for example in prepared.train.examples:
        example["labels"][-1] = tokens.convert_tokens_to_ids("red")
    prepared.train.lengths[0] = 10_000  # type: ignore[index]
    prepared.train.truncated = 2
    assert [one.status for one in judged()] == ["note", "failed", "note"]


def test_nothing_to_learn() -> None:
    model = llama()
    prepared = prepared_for(model, stories(12), tokenizer("llama"))
    prepared.train.supervised[0] = 0
    assert found(model, prepared)["something to learn in every example"].status == "failed"


@pytest.mark.parametrize("rate, word", [(1e-5, "ten times as much"), (0.5, "diverge")])
def test_rates_that_are_not_loras(rate: float, word: str) -> None:
    model = llama()
    finding = found(model, prepared_for(model, stories(12), tokenizer("llama")), learning_rate=rate)
    assert finding["a learning rate for LoRA"].status == "note" and word in finding["a learning rate for LoRA"].why


@pytest.mark.parametrize("how", ["zero", "twins", "tiny"])
def test_template_tokens_that_were_never_trained(how: str) -> None:
    tokens = byte_tokenizer()
    model = LoRA(tiny("llama", vocab_size=len(tokens), max_position_embeddings=400), rank=4)
    weight = model.base.get_input_embeddings().weight.data  # type: ignore[operator]
    end = tokens.convert_tokens_to_ids("<|im_end|>")
    weight[end] = {
        "zero": 0.0,
        "twins": weight[tokens.convert_tokens_to_ids("<|eot_id|>")],
        "tiny": weight[end] * 1e-3,
    }[how]
    rows = [{"messages": turns} for turns in TALK]
    prepared = prepared_for(model, rows, tokens, options={"template": "chatml"})
    finding = found(model, prepared)["the template's tokens are trained"]
    assert finding.status == "note" and "'<|im_end|>' have the embedding" in finding.said
    assert f"adapter.token_rows {[end]}" in str(finding)
    rows_of_it = LoRA(model.unload(), rank=4, token_rows=[end])
    assert found(rows_of_it, prepared)["the template's tokens are trained"].status == "passed"
    model = LoRA(rows_of_it.unload(), rank=4, token_rows=[end - 1])
    assert found(model, prepared)["the template's tokens are trained"].status == "note"
    adapted = LoRA(model.unload(), name=None)
    adapted.add_adapter("default", rank=4, targets="embedding")
    assert found(adapted, prepared)["the template's tokens are trained"].status == "passed"


def test_gradients_that_are_not_finite_or_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    prepared = prepared_for(model, stories(12), tokenizer("llama"))
    whole = steps.Trial.gradients

    def broken(self: Any, batches: Any, kind: str) -> Any:
        out = whole(self, batches)
        for key, gradient in out.items():
            if "layers.0." in key or kind == "idle":
                out[key] = gradient * (torch.nan if kind == "nan" else 0)
        return out

    for kind, status, word in (("nan", "failed", "is not finite"), ("idle", "failed", "none of 14 does"),
                               ("some", "note", "7 of 14 do not: model.layers.0.")):  # fmt: skip
        monkeypatch.setattr(steps.Trial, "gradients", lambda self, batches, kind=kind: broken(self, batches, kind))
        finding = steps.gradients(steps.Trial(model, "default", prepared, TrainingConfig(learning_rate=1e-3)), False)
        assert (finding.status, word in finding.said) == (status, True), finding


def test_a_model_that_mixes_rows() -> None:
    class Mixing(torch.nn.Module):
        """Takes the mean over the batch away, as batch normalisation does."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            x = self.inner(*args, **kwargs)
            return x - x.mean(dim=0, keepdim=True)

    base = tiny("bert", vocab_size=25)
    base.bert.encoder.layer[1] = Mixing(base.bert.encoder.layer[1])
    model = LoRA(base, rank=4)
    finding = found(model, prepared_for(model, labelled(24), tokenizer("bert")))["accumulation equals a large batch"]
    assert finding.status == "failed" and "unlike length" in finding.why


@pytest.mark.parametrize("what, check", [(Exception, None), (torch.OutOfMemoryError, "the largest batch fits")])
def test_what_does_not_fit_is_told(what: Any, check: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    prepared = prepared_for(model, stories(24), tokenizer("llama"))
    run = steps.Passes.run

    def failing(self: Any, shares: Any) -> None:
        if sum(len(share.examples) for share in shares) > 4:
            raise what("out of memory here")
        run(self, shares)

    monkeypatch.setattr(steps.Passes, "run", failing)
    if check is None:
        with pytest.raises(Exception, match="out of memory here"):
            found(model, prepared, batch_size=8)
        return
    finding = found(model, prepared, batch_size=8)[check]
    assert finding.status == "failed" and "8 rows with" in finding.said and "lora plan" in finding.remedy


def test_a_folder_that_cannot_be_written_and_one_that_comes_back_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = llama()
    prepared = prepared_for(model, stories(12), tokenizer("llama"))
    load = model.load_adapter

    def lossy(folder: Any, name: Any = None, **options: Any) -> str:
        out = load(folder, name, **options)
        with torch.no_grad():
            next(iter(model.adapter_parameters(out).values())).mul_(1.01)
        return out

    monkeypatch.setitem(vars(model), "load_adapter", lossy)
    finding = found(model, prepared)["what is saved is what was trained"]
    assert finding.status == "failed" and "after saving and reading" in finding.said
    monkeypatch.setitem(vars(model), "load_adapter", load)

    def refuse(*args: Any, **options: Any) -> None:
        raise SaveError("no space left on device")

    monkeypatch.setitem(vars(model), "save_adapter", refuse)
    assert found(model, prepared)["the adapter can be saved"].status == "failed"
    monkeypatch.undo()
    monkeypatch.setattr(saving.shutil, "disk_usage", lambda place: SimpleNamespace(free=1))
    finding = found(model, prepared)["the adapter can be saved"]
    assert finding.status == "failed" and "full in the middle" in finding.why
    with pytest.raises(TrainingError, match="(?s)checks before training failed:.*full in the middle.*--no-check"):
        refuse_failed([finding])
    assert list(model.adapters) == ["default"]


def test_targets_without_effect() -> None:
    base = tiny("bert", vocab_size=25)
    base.extra = torch.nn.Linear(8, 8)
    model = LoRA(base, name=None)
    model.add_adapter("default", rank=2, targets=["extra"], modules_to_save=[])
    finding = found(model, prepared_for(model, labelled(24), tokenizer("bert")))
    assert finding["the adapter has an effect"].status == "failed"
    assert finding["every module receives a gradient"].status == "failed"


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: you")])
@pytest.mark.parametrize(
    "place, check",
    [("infer", "an evaluation fits"), ("Trial.gradients", "training fits"), ("Trial.recomputes", "training fits"),
     ("largest_batch", "the largest batch fits")],
)  # fmt: skip
def test_memory_that_runs_out_is_a_finding(
    place: str, check: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = llama()
    prepared = prepared_for(model, stories(24), tokenizer("llama"))

    def failing(*_: Any, **__: Any) -> None:
        raise error

    if place == "largest_batch":
        monkeypatch.setattr(steps, "largest_batch", lambda participant: (7, [0, 1]))
        monkeypatch.setattr(steps.Passes, "run", failing)
        trial = steps.Trial(model, "default", prepared, TrainingConfig(learning_rate=1e-3))
        finding = steps.longest(trial, False)
    else:
        monkeypatch.setattr(f"lora.checks.steps.{place}", failing)
        finding = found(model, prepared)[check]
    assert (finding.check, finding.status) == (check, "failed") and finding.why and finding.remedy
    assert not any(p.grad is not None for p in model.parameters())


def test_an_error_that_is_none_of_memory_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not match")

    model = llama()
    monkeypatch.setattr(steps, "infer", failing)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        found(model, prepared_for(model, stories(24), tokenizer("llama")))


def test_a_folder_that_nothing_can_be_written_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    model = llama()
    monkeypatch.setattr(saving.tempfile, "mkdtemp", refused)
    out = check_training(
        model, "default", prepared_for(model, stories(12), tokenizer("llama")), TrainingConfig(), tmp_path / "run"
    )
    assert out[-1].status == "failed" and str(tmp_path / "run") in out[-1].said and "Permission denied" in out[-1].said


def test_an_end_is_asked_of_every_answer() -> None:
    """Of both answers of a pair, and of each of a conversation's, not of what stands last alone."""
    model, tokens = llama(), tokenizer("llama")
    rows = [{"prompt": r["prompt"], "chosen": "cat here", "rejected": "dog now"} for r in stories(12)]
    prepared = prepared_for(model, rows, tokens)
    assert found(model, prepared)["answers end with a stop token"].status == "passed"
    for example in prepared.train.examples[:2]:
        prompt, chosen, _ = example["branches"]
        example["labels"][prompt + chosen - 1] = 9  # the chosen answer's end
    assert found(model, prepared)["answers end with a stop token"].said.startswith("7 of 9 examples do")
    prepared.train.examples[2]["labels"] = [-100] * len(prepared.train.examples[2]["labels"])
    assert found(model, prepared)["answers end with a stop token"].status == "note", "an example without any is told"


def lora(*arguments: Any) -> int:
    return main([str(argument) for argument in arguments])


def test_the_command_and_training_with_checks_and_without(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    base = save_base(tmp_path / "base", "llama")
    write_jsonl(tmp_path / "data.jsonl", stories(24))
    common = ["--model", base, "--data", "data.jsonl", "--dtype", "float32", "--max-steps", 2]
    assert lora("check", *common) == 0
    shown = capfd.readouterr().out
    assert "14 modules, all finite" in shown and "passed" in shown and "1 skipped" in shown
    assert lora("check", *common, "--json") == 0
    listed = json.loads(capfd.readouterr().out)["default"]
    assert {"check", "status", "said", "why", "remedy"} == set(listed[0]) and len(listed) == 15
    assert not any(path.name not in ("base", "data.jsonl") for path in tmp_path.iterdir()), "nothing is written"
    capfd.readouterr()
    assert lora("check", *common, "--output", "data.jsonl") == 2, "as training would"
    assert "output: data.jsonl is a file" in capfd.readouterr().err
    assert lora("train", *common, "--output", "with") == 0
    assert "checks before training in" in capfd.readouterr().err
    assert lora("train", *common, "--no-check", "--output", "without") == 0
    assert "checks before" not in capfd.readouterr().err
    weights = [tmp_path / run / "adapter/adapter_model.safetensors" for run in ("with", "without")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    # No end token: refused before a step, and the folder is not made.
    config = json.loads((base / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    for file in ("config.json", "generation_config.json"):
        settings = json.loads((base / file).read_text())
        settings["eos_token_id"] = None
        (base / file).write_text(json.dumps(settings))
    assert lora("train", *common, "--output", "third") == 2
    refused = capfd.readouterr().err
    assert "answers end with a stop token: 0 of" in refused and "Traceback" not in refused
    assert not (tmp_path / "third").exists()
    assert lora("check", *common) == 2


def test_rows_that_are_trained_on_too_are_said_as_in_training(
    bert: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = labelled(40)
    data = tmp_path / "data"
    data.mkdir()
    write_jsonl(data / "train.jsonl", rows)
    write_jsonl(data / "test.jsonl", [rows[0], {**rows[3], "text": "red " * 8}])
    held = write_jsonl(tmp_path / "held.jsonl", [{"text": "new " * 9, "label": "cat"}, rows[7], rows[9]])
    call = ["--model", str(bert), "--data", str(data), "--validation", str(held), "--max-steps", "1"]
    said = []
    for command in (["check"], ["train", "--output", str(tmp_path / "run")]):
        assert main([*command, *call]) == 0
        said.append([line for line in capfd.readouterr().err.splitlines() if "trained on too" in line])
    assert said[0] == said[1] and len(said[0]) == 2
    assert said[0][0].startswith("2 of 3 validation rows have an input that is trained on too (")
    assert "held.jsonl lines 2, 3)" in said[0][0]
    assert said[0][1].startswith("1 of 2 test rows has an input that is trained on too (")


def test_layers_are_recomputed_as_the_run_will() -> None:
    """A check must not take memory that the run itself would never need."""
    model = llama()
    prepared = prepared_for(model, stories(24), tokenizer("llama"))
    trial = steps.Trial(model, "default", prepared, TrainingConfig(learning_rate=1e-3))
    assert not trial.recomputes(None) and trial.recomputes(1e-6)
    off = TrainingConfig(learning_rate=1e-3, gradient_checkpointing=False)
    assert not steps.Trial(model, "default", prepared, off).recomputes(1e-6)

"""What goes wrong in silence with such tools, each provoked here and caught by a message that names it.

In the order of a list of users' pains; two more, new tokens and stale caches, have tests of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from chat_tokenizer import byte_tokenizer
from lora import LoRA, fit
from lora.checks import rows as row_checks
from lora.checks import steps
from lora.checks.before import check_training
from lora.checks.finding import Finding
from lora.config import DataConfig, TrainingConfig
from lora.core import causal_attention
from lora.errors import AdapterFileError, ConfigError, DataError, ModelError, SaveError, TargetError, TrainingError
from lora.tasks import Encoded
from lora.tasks.causal import CausalTask
from lora.tasks.chat import ChatTask
from lora.training.packable import find_packing
from lora.training.prepare import Prepared, prepare, read_rows
from small_base import labelled, stories, tokenizer
from tiny_models import tiny

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
CHATML = ChatTask(messages="messages", template="chatml")


def llama(**settings: Any) -> LoRA:
    return LoRA(tiny("llama", vocab_size=25, **settings), rank=4)


def ready(model: LoRA, rows: list[dict] | None = None, tokens: Any = None) -> Prepared:
    rows, tokens = rows or stories(12), tokens or tokenizer("llama")
    return prepare(model, read_rows(rows, None, DataConfig(held_out=0.25), 0), tokens)


def found(model: LoRA, prepared: Prepared, check: str, **settings: Any) -> Finding:
    findings = check_training(model, "default", prepared, TrainingConfig.make({"batch_size": 4, **settings}))
    return next(finding for finding in findings if finding.check == check)


def test_01_nothing_is_supervised() -> None:
    with pytest.raises(DataError, match="hold no answer of the assistant's to learn: row 2"):
        CHATML.encode([{"messages": TALK}, {"messages": TALK[:1]}], byte_tokenizer(), 100)
    prepared = ready(llama())
    prepared.train.supervised[3] = 0
    assert "1 of 9 examples has no supervised token" in row_checks.supervised(prepared.train, prepared.task).said


def test_02_the_end_is_never_learned() -> None:
    tokens = byte_tokenizer(pad_token="</s>")  # the same token fills up: masked by length it is learned all the same
    task = ChatTask(messages="messages", template="zephyr")
    encoded = task.encode([{"messages": TALK}, {"messages": [*TALK, *TALK]}], tokens, 200)
    batch = task.collate(encoded.examples, tokens.pad_token_id)
    ends = (batch["labels"] == tokens.eos_token_id).sum(dim=1).tolist()
    assert ends == [1, 2] and batch["attention_mask"].sum(dim=1).tolist() == encoded.lengths
    silent = tokenizer("llama")
    silent.eos_token = None
    model = llama()
    model.base.generation_config.eos_token_id = None
    finding = found(model, ready(model, tokens=silent), "answers end with a stop token")
    assert finding.status == "failed" and "never learns an end" in finding.why


def test_03_another_template_or_tokenizer_than_in_training() -> None:
    task = CHATML.with_tokenizer(byte_tokenizer())
    with pytest.raises(DataError, match="other token ids of a conversation than the one that the adapter was trained"):
        task.with_tokenizer(byte_tokenizer(extra=["<|im_end|>", "<|im_start|>"]))
    doubled = [{"input_ids": [1, 1, 5], "labels": [-100, -100, 5]}]
    prepared: Any = SimpleNamespace(tokenizer=byte_tokenizer(), train=Encoded(doubled, [3], [1]))
    assert "1 of 1 example begins with two" in row_checks.beginnings(prepared).said


def test_04_merging_into_quantised_weights() -> None:
    model = llama()
    layer = model.base.model.layers[0].self_attn.q_proj.base_layer  # type: ignore[union-attr]
    layer.weight = torch.nn.Parameter(torch.zeros(layer.weight.shape, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match=r"layers.0.self_attn.q_proj: its weights are quantised .* round the update"):
        model.merge("default")


def test_05_tied_embeddings_after_merging() -> None:
    base = tiny("llama-tied", vocab_size=25)
    model = LoRA(base, name=None)
    model.add_adapter("default", rank=2, targets=["lm_head"], tie_embeddings=False)
    with torch.no_grad():
        model.adapter_parameters("default")["lm_head.B"].normal_()
    before = base.get_input_embeddings().weight.clone()
    merged: Any = model.merge("default")
    assert torch.equal(merged.get_input_embeddings().weight, before), "the input side is not what was adapted"
    assert merged.config.tie_word_embeddings is False


def test_06_an_adapter_that_loads_without_effect(tmp_path: Path) -> None:
    model = llama()
    folder = model.save_adapter("default", tmp_path / "a")
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    renamed = {key.replace("base_model.model.model.", "base_model.model.other."): t for key, t in tensors.items()}
    safetensors.torch.save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterFileError, match="other"):
        model.load_adapter(folder, "again")
    base = tiny("bert", vocab_size=25)
    base.extra = torch.nn.Linear(8, 8)
    idle = LoRA(base, name=None)
    idle.add_adapter("default", rank=2, targets=["extra"], modules_to_save=[])
    prepared = ready(idle, labelled(24), tokenizer("bert"))
    assert found(idle, prepared, "the adapter has an effect").status == "failed"


def test_07_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(TargetError, match="query_proj.*(?s:.)*q_proj"):
        LoRA(tiny("llama"), rank=2, targets=["query_proj"])


def test_08_the_rate_of_full_fine_tuning() -> None:
    model = llama()
    finding = found(model, ready(model), "a learning rate for LoRA", learning_rate=2e-5)
    assert finding.status == "note" and "rate of full fine-tuning" in finding.why


def test_09_accumulation_that_weighs_batches_and_not_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    prepared = ready(model)
    assert found(model, prepared, "accumulation equals a large batch").status == "passed"

    def by_batch(self: Any, batches: Any) -> Any:
        """The mean of the batches' means, as it is often done."""
        parts = [whole(self, [rows]) for rows in batches]
        return {key: sum(part[key] for part in parts) / len(parts) for key in parts[0]}

    whole = steps.Trial.gradients
    monkeypatch.setattr(steps.Trial, "gradients", by_batch)
    finding = found(model, prepared, "accumulation equals a large batch")
    assert finding.status == "failed" and "weigh otherwise" in finding.why


def test_10_checkpointing_that_cuts_the_gradient_off() -> None:
    model = llama()
    prepared = ready(model)
    assert found(model, prepared, "every module receives a gradient", gradient_checkpointing=True).status == "passed"


def test_11_resuming_that_is_not(tmp_path: Path) -> None:
    model = llama()
    settings: dict[str, Any] = {"tokenizer": tokenizer("llama"), "output_dir": tmp_path / "run", "progress": False}
    fit(model, stories(12), False, max_steps=2, learning_rate=1e-3, **settings)
    with pytest.raises(ConfigError, match="learning_rate: 0.001 then, 0.002 now"):
        fit(llama(), stories(12), False, max_steps=2, learning_rate=2e-3, resume=True, **settings)
    with pytest.raises(ConfigError, match="data"):
        fit(llama(), stories(12, 5), False, max_steps=2, learning_rate=1e-3, resume=True, **settings)


def test_12_a_reloaded_adapter_that_is_frozen(tmp_path: Path) -> None:
    model = llama()
    model.load_adapter(model.save_adapter("default", tmp_path / "a"), "frozen", trainable=False)
    with pytest.raises(TrainingError, match="'frozen' has no trainable parameter"):
        fit(model, stories(12), False, adapter="frozen", tokenizer=tokenizer("llama"), max_steps=1, progress=False)


def test_13_a_head_that_is_not_saved(tmp_path: Path) -> None:
    model = LoRA(tiny("bert", vocab_size=25), rank=2)
    folder = model.save_adapter("default", tmp_path / "a")
    tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
    head = [key for key in tensors if "classifier" in key]
    assert head, "what was newly made is trained and saved"
    kept = {key: tensor for key, tensor in tensors.items() if key not in head}
    safetensors.torch.save_file(kept, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(AdapterFileError, match="classifier"):
        model.load_adapter(folder, "again")


def test_15_tokens_of_the_template_that_were_never_trained() -> None:
    tokens = byte_tokenizer()
    model = LoRA(tiny("llama", vocab_size=len(tokens), max_position_embeddings=300), rank=2)
    model.base.get_input_embeddings().weight.data[tokens.convert_tokens_to_ids("<|im_end|>")] = 0  # type: ignore[operator]
    rows = [{"messages": [{**turn, "content": f"{turn['content']} {i}"} for turn in TALK]} for i in range(8)]
    settings = DataConfig.make({"options": {"template": "chatml"}, "held_out": 0.25})
    prepared = prepare(model, read_rows(rows, None, settings, 0), tokens)
    finding = found(model, prepared, "the template's tokens are trained")
    assert finding.status == "note" and "<|im_end|>" in finding.said


def test_16_work_that_is_lost_when_it_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    from lora.training import participant

    def full(*_: Any, **__: Any) -> None:
        raise SaveError("no space left on device")

    monkeypatch.setattr(participant, "save_checkpoint", full)
    steps_taken: list[Any] = []
    monkeypatch.setattr("lora.training.trainee.Trainee.update", lambda self: steps_taken.append(1))
    with pytest.raises(SaveError, match="no space left"):
        fit(model, stories(12), False, tokenizer=tokenizer("llama"), output_dir=tmp_path / "run", progress=False)
    assert not steps_taken, "said at step 0, not after hours"


def test_17_out_of_memory_after_hours(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    prepared = ready(model, stories(24))

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr(steps, "infer", full)
    finding = found(model, prepared, "an evaluation fits")
    assert finding.status == "failed" and "tried to allocate 9 GiB" in finding.said and "lora plan" in finding.remedy


def test_18_documents_of_a_row_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    trial = steps.Trial(model, "default", ready(model), TrainingConfig(learning_rate=1e-3))
    assert trial.packed
    honest = causal_attention.layout_of

    def leaking(documents: Any, *rest: Any) -> Any:
        """All documents as one."""
        return honest([documents[0]._replace(length=sum(d.length for d in documents))], *rest)

    monkeypatch.setattr("lora.core.attention.layout_of", leaking)
    assert find_packing(model, trial.trainee, trial.prepared) == (
        "documents of a packed row see each other in LlamaForCausalLM"
    )


def test_19_truncation_that_nobody_sees() -> None:
    rows = [{"prompt": "ab", "completion": "c" * 30}, {"prompt": "ab", "completion": "c"}]
    encoded = CausalTask(prompt="prompt", completion="completion").encode(rows, byte_tokenizer(), 10)
    assert encoded.truncated == 1 and "was left out: an answer is never cut" in encoded.notes[0]
    long = [{"messages": [*TALK, {"role": "user", "content": "x" * 90}, {"role": "assistant", "content": "no"}]}]
    notes = CHATML.encode(long, byte_tokenizer(), 60).notes
    assert any("1 answer does not fit in 60 tokens" in note and "never cut" in note for note in notes)


def test_what_is_told_is_json() -> None:
    model = llama()
    findings = check_training(model, "default", ready(model), TrainingConfig())
    assert json.loads(json.dumps([finding.to_dict() for finding in findings]))

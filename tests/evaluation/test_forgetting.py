"""What an adapter has forgotten: figures beside torch's own on full logits, and what is said where there are none."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from command import lora
from lora import LoRA, evaluate, workflow
from lora.config import RunConfig
from lora.core import divergence
from lora.core.routing import BASE
from lora.errors import DataError
from lora.evaluation import forgetting
from lora.evaluation.forgetting import Forgetting, measure_forgetting
from lora.evaluation.probe import TEXTS, probe_texts
from lora.evaluation.report import write_report
from lora.model.base import load_base
from lora.statistics import estimate
from lora.statistics.means import LOSS, token_rows
from lora.tasks import TASKS
from lora.tasks.mixture import forward
from small_base import WORDS, labelled, save_base, stories, tokenizer, write_jsonl
from tiny_models import tiny

TOKENS = tokenizer("llama")
PROBE = ["red sun", "blue moon runs here now then", "cat", "dog bird star small", "old new big", "sings there " * 9]


def adapted(arch: str, names: tuple[str, ...] = ("a",), **settings: Any) -> LoRA:
    model = LoRA(tiny(arch, vocab_size=25, **settings), name=None)
    for seed, name in enumerate(names):
        model.add_adapter(name, rank=4, seed=seed)
        with torch.no_grad():
            for key, parameter in model.adapter_parameters(name).items():
                if key.endswith(".B"):
                    parameter.normal_(std=0.3, generator=torch.Generator().manual_seed(seed + 7))
    return model


def measured(model: LoRA, names: list[str], texts: list[str] | None = PROBE, tokens: Any = TOKENS, **more: Any) -> Any:
    return measure_forgetting(model, names, tokens, 40, texts, **more)


@pytest.mark.parametrize("arch", ["llama", "gemma2", "gpt2"])
def test_figures_are_those_of_full_logits(arch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "_CPU_BLOCK", 4 * 25 * 3)  # three positions at a time
    model = adapted(arch, ("a", "b"))
    found = measured(model, ["a", "b"], batch_size=6)
    assert found.kind == "next tokens" and found.texts == 6 and list(found.adapters) == [BASE, "a", "b"]
    for name in ("a", "b"):
        loss, kl, same, count = [], [], [], []
        for text in PROBE:
            ids = torch.tensor([[*TOKENS(text)["input_ids"], TOKENS.eos_token_id]])
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            with torch.no_grad():
                own, base = (forward(model, batch, each).logits[0, :-1].float() for each in (name, BASE))
            loss.append(float(F.cross_entropy(own, ids[0, 1:], reduction="sum")))
            kl.append(float(F.kl_div(own.log_softmax(1), base.log_softmax(1), reduction="sum", log_target=True)))
            same.append(int((own.argmax(1) == base.argmax(1)).sum()))
            count.append(len(own))
        figures, sums = found.adapters[name], found.per_text[name]
        assert sums["loss"] == pytest.approx(loss, rel=1e-4) and sums["kl"] == pytest.approx(kl, rel=1e-3)
        assert sums["same"] == same and found.per_text["tokens"] == count and found.tokens == sum(count)
        assert figures["loss"] == pytest.approx(sum(loss) / sum(count), rel=1e-4)
        assert figures["kl"]["value"] == pytest.approx(sum(kl) / sum(count), rel=1e-3) and figures["kl"]["value"] > 0.01
        assert figures["same_token"]["value"] == pytest.approx(sum(same) / sum(count))
        assert figures["kl"]["low"] < figures["kl"]["value"] < figures["kl"]["high"]
        before = found.adapters[BASE]["loss"]
        assert figures["loss_change"]["value"] == pytest.approx(figures["loss"] - before, abs=1e-6)


def test_intervals_are_those_of_the_statistics_with_what_they_say_of_them() -> None:
    model = adapted("llama")
    found = measured(model, ["a"], [f"cat {'dog sun ' * (i % 5)}{WORDS[i]}" for i in range(14)])
    expected = estimate(LOSS, token_rows(found.per_text["a"]["kl"], found.per_text["tokens"]))
    figure = found.adapters["a"]["kl"]
    assert [figure["value"], figure["low"], figure["high"]] == pytest.approx(
        [expected.value, expected.low, expected.high], rel=0.01
    )
    assert not any("relied on" in note for note in found.notes)
    few = measured(model, ["a"])
    assert few.notes == ["Of 6 texts alone the interval says nothing that can be relied on."]
    assert few.notes[0] in few.grid().markdown()


def test_what_is_no_number_is_shown_as_that() -> None:
    model = adapted("llama")
    with torch.no_grad():
        next(iter(model.adapter_parameters("a").values())).fill_(math.nan)
    figure = measured(model, ["a"]).adapters["a"]["kl"]
    assert math.isnan(figure["value"]) and figure["low"] is None


def test_an_adapter_that_does_nothing_has_forgotten_nothing() -> None:
    model = LoRA(tiny("llama", vocab_size=25), rank=4)
    figures = measured(model, ["default"]).adapters["default"]
    assert figures["kl"]["value"] == pytest.approx(0, abs=1e-6) and figures["same_token"]["value"] == 1


def test_long_texts_are_measured_in_pieces_and_many_thinned_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama")
    long = "red sun " * 60
    found = measure_forgetting(model, ["a"], TOKENS, 32, [long, "cat dog"])
    assert isinstance(found, Forgetting) and found.per_text["tokens"] == [120, 2] and found.texts == 2
    assert found.adapters["a"]["kl"]["low"] is None  # two texts say nothing of their spread
    monkeypatch.setattr(forgetting, "MOST", 5)
    found = measured(model, ["a"], [f"cat {'dog ' * i}" for i in range(20)])
    assert found.texts == 5 and found.per_text["tokens"][0] == 1 and found.per_text["tokens"][-1] == 20
    assert "5 of the 20 texts" in found.notes[0]


def test_an_encoder_decoder_writes_second_halves() -> None:
    model = adapted("t5")
    found = measured(model, ["a"], tokens=tokenizer("t5"))
    assert found.kind == "second halves" and found.adapters["a"]["kl"]["value"] > 0.001
    assert "second half of each text" in found.grid().markdown()


@pytest.mark.parametrize("arch", ["bert", "modernbert", "llama-cls", "t5-cls"])
def test_without_a_language_head_the_hidden_state_is_compared(arch: str) -> None:
    tokens = tokenizer("t5" if arch == "t5-cls" else "bert")
    ends = {"eos_token_id": 4} if arch == "t5-cls" else {}
    model = adapted(arch, **ends)
    found = measured(model, ["a"], tokens=tokens, batch_size=2)
    assert found.kind == "hidden states" and abs(found.adapters["a"]["cosine"]["value"]) < 0.9999
    assert "loss" not in found.adapters["a"] and "no language head" in found.grid().markdown()
    ids = torch.tensor([tokens(PROBE[1])["input_ids"]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        states = []
        for name in ("a", BASE):
            out = model(**batch, adapters=[name], output_hidden_states=True)
            states.append((out.encoder_last_hidden_state if arch == "t5-cls" else out.hidden_states[-1]).mean(1))
    expected = float(torch.cosine_similarity(*states))
    assert found.per_text["a"]["cosine"][1] == pytest.approx(expected, abs=1e-5)
    assert measured(LoRA(tiny(arch, vocab_size=25, **ends), rank=2), ["default"], tokens=tokens).adapters["default"][
        "cosine"
    ]["value"] == pytest.approx(1, abs=1e-6)


def test_where_nothing_can_be_measured_the_reason_is_said(tmp_path: Path) -> None:
    model = LoRA(tiny("vit"), rank=2)
    said = measure_forgetting(model, ["default"], None, 40)
    assert said == "ViTForImageClassification has neither a language head nor hidden states that it tells of"
    text = write_report(tmp_path, {}, [], None, said).read_text(encoding="utf-8")
    assert "## Forgetting\n\nNot measured: ViTForImage" in text
    assert json.loads((tmp_path / "report.json").read_text())["forgetting"] == said


def test_evaluate_measures_it_where_asked(tmp_path: Path) -> None:
    model = adapted("llama")
    rows = stories(6)
    assert evaluate(model, rows, tokenizer=TOKENS, latency=False).forgetting is None
    found = evaluate(model, rows, tokenizer=TOKENS, latency=False, probe=PROBE)
    assert found.forgetting is not None and found.forgetting.source is None
    assert found.to_dict()["forgetting"]["adapters"]["a"]["kl"]["value"] > 0
    assert "## Forgetting: 6" in found.to_markdown()
    file = tmp_path / "probe.txt"
    file.write_text("red sun here\n\nblue moon there\n", encoding="utf-8")
    named = evaluate(model, rows, tokenizer=TOKENS, latency=False, probe=file)
    assert named.forgetting is not None and named.forgetting.texts == 2 and str(file) in named.to_markdown()
    with pytest.raises(DataError, match="none of them empty"):
        evaluate(model, rows, tokenizer=TOKENS, latency=False, probe=[" "])


def test_in_the_report_of_every_run(tmp_path: Path) -> None:
    """Checks or not, held-out rows or not."""
    save_base(tmp_path / "base", "llama")
    save_base(tmp_path / "bert", "bert")
    write_jsonl(tmp_path / "data.jsonl", stories(12))
    write_jsonl(tmp_path / "labels.jsonl", labelled(24))
    (tmp_path / "probe.txt").write_text("red sun here\n\nblue moon there\n", encoding="utf-8")
    for base, data, key in (("base", "data", "kl"), ("bert", "labels", "cosine")):
        config = {
            "model": str(tmp_path / base), "data": {"train": str(tmp_path / f"{data}.jsonl"), "held_out": 0},
            "output": str(tmp_path / f"run-{base}"), "training": {"max_steps": 1, "tensorboard": False}, "check": False,
            "probe": str(tmp_path / "probe.txt"),
        }  # fmt: skip
        workflow.train(RunConfig.make(config), latency=False, progress=False)
        report = json.loads((tmp_path / f"run-{base}/report.json").read_text())
        assert report["forgetting"]["adapters"]["default"][key]["value"] is not None
        assert report["forgetting"]["texts"] == 2 and report["evaluation"] is None
        assert "## Forgetting: 2 texts of" in (tmp_path / f"run-{base}/report.md").read_text()


def test_by_the_command(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", "llama")
    rows = write_jsonl(tmp_path / "data.jsonl", stories(8))
    probe = write_jsonl(tmp_path / "probe.jsonl", [{"text": "red sun here"}] * 7)
    model = LoRA(load_base(str(base), "AutoModelForCausalLM", torch.float32), rank=2)
    task = TASKS["causal"].from_rows(stories(2), {"prompt": "prompt", "completion": "completion"})
    model.notes["default"] = {"task": task.state(), "training": {"dtype": "float32"}}
    folder = str(model.save_adapter("default", tmp_path / "adapter"))
    options = ["eval", folder, "--data", str(rows), "--no-latency", "--probe"]
    done = lora(*options, str(probe))
    assert done.returncode == 0 and "Forgetting: 7 texts of" in done.stdout and "KL(base ‖ adapter)" in done.stdout
    found = json.loads(lora(*options, "built-in", "--json").stdout)["forgetting"]
    assert found["source"] is None and found["texts"] == 8
    bad = lora(*options, str(rows))
    assert bad.returncode == 2 and "no text for the probe" in bad.stderr


def test_the_built_in_texts() -> None:
    assert len(TEXTS) == 8 and len(set(TEXTS)) == 8
    with pytest.raises(DataError, match="no such file"):
        probe_texts("/nowhere/at/all.txt")

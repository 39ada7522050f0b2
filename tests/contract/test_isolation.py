"""The law of isolation: K adapters trained together come out as each does alone, on the CPU to the last bit.

Together and alone differ in everything that must not matter: what else is in the batch, who joins and leaves when,
who diverges, how often the loop has gone round. What must not differ: parameters, losses, gradient norms, metrics.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from compiler import needs_compiler
from lora import LoRA, fit
from lora.core.variant import variants
from lora.training.job import Job
from small_base import WORDS, labelled, save_base, tagged, tokenizer
from tiny_models import tiny
from together import base, check, mixed_jobs, rows, same_bits, train

VARIANTS = sorted(variants())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_together_as_alone(request: Any, kind: str, dtype: torch.dtype, variant: str) -> None:
    folder = request.getfixturevalue(kind)
    check(folder, mixed_jobs(folder, variant), dtype, at_once=4)


def test_leaving_and_joining_in_mid_run(bert: Any) -> None:
    """Two places, four adapters of different length: each change of company falls into somebody's run."""
    check(bert, mixed_jobs(bert, "plain"), at_once=2)


def test_with_a_sliding_window(tmp_path: Any) -> None:
    """Documents of one adapter end within the window, those of its neighbours do not."""
    folder = save_base(tmp_path / "llama-mistral", "mistral", sliding_window=6)

    def texts(words: int) -> list[dict[str, str]]:
        return [{"text": " ".join(WORDS[(i + j) % len(WORDS)] for j in range(words))} for i in range(24)]

    jobs = {
        name: Job(texts(words), False, {"rank": 3}, {"learning_rate": 1e-2, "batch_size": 8, "epochs": 2})
        for name, words in (("within", 5), ("beyond", 14))
    }
    for dtype in (torch.float32, torch.bfloat16):
        check(folder, jobs, dtype, at_once=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_with_fewer_tokens_than_a_product_likes(llama: Any, dtype: torch.dtype) -> None:
    few = [{"text": " ".join(WORDS[i : i + 1 + i % 3])} for i in range(9)]
    training = {"learning_rate": 1e-2, "batch_size": 1, "max_steps": 4}
    jobs = {
        "few": Job(few, False, {"rank": 3, "dropout": 0.2}, training),
        "many": Job(rows(llama, 24, 1), False, {"rank": 4}, {**training, "batch_size": 8}),
    }
    check(llama, jobs, dtype, at_once=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_beside_one_with_a_head_of_its_own(llama: Any, dtype: torch.dtype) -> None:
    training = {"learning_rate": 1e-2, "batch_size": 8, "max_steps": 4}
    own = {"rank": 2, "targets": "attention", "modules_to_save": ["lm_head"]}
    jobs = {
        "own": Job(rows(llama, 24, 0), False, own, training),
        "none": Job(rows(llama, 24, 1), False, {"rank": 4}, training),
        "adapted": Job(rows(llama, 24, 2), False, {"rank": 4, "targets": ["lm_head", "q_proj"]}, training),
    }
    check(llama, jobs, dtype, at_once=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("company", ["norms", "all", "both"])
@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_beside_modules_trained_in_full(request: Any, kind: str, company: str, dtype: torch.dtype) -> None:
    """A norm reads its input in several places, and so does the residual beside it: gradients are added in one order,
    of whoever owns the norm and of the others. BERT's positions are one row for all."""
    folder = request.getfixturevalue(kind)
    norms = {
        "bert": ["LayerNorm"], "llama": ["input_layernorm", "post_attention_layernorm", "norm"],
        "t5": ["layer_norm", "final_layer_norm"],
    }  # fmt: skip
    training = {"learning_rate": 1e-2, "batch_size": 8, "max_steps": 6}
    own = {"rank": 2, "targets": "attention", "modules_to_save": norms[kind], "dropout": 0.1}
    full = {"targets": "none", "modules_to_save": ["all"]}
    adapters = {"norms": own, "all": full, "none": {"rank": 4, "dropout": 0.2}, "dora": {"rank": 3, "variant": "dora"}}
    if company != "both":
        del adapters["all" if company == "norms" else "norms"]
    jobs = {
        name: Job(rows(folder, 40, number), False, adapter, {**training, "seed": number})
        for number, (name, adapter) in enumerate(adapters.items())
    }
    check(folder, jobs, dtype, at_once=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("variant", ["plain", "dora"])
def test_beside_adapted_positions(bert: Any, variant: str, dtype: torch.dtype) -> None:
    """Positions are one row for the whole batch: each adapter's gradient is that of one row."""
    training = {"learning_rate": 1e-2, "batch_size": 8, "max_steps": 6}
    adapters = {
        "positions": {"rank": 2, "targets": ["position_embeddings", "query"], "variant": variant, "dropout": 0.1},
        "words too": {"rank": 3, "targets": "embedding", "variant": variant}, "none": {"rank": 4},
    }  # fmt: skip
    jobs = {
        name: Job(rows(bert, 40, number), False, adapter, training)
        for number, (name, adapter) in enumerate(adapters.items())
    }
    check(bert, jobs, dtype, at_once=3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("packing", [None, False], ids=["packed", "padded"])
@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_tokens(tmp_path: Any, tied: bool, packing: bool | None, dtype: torch.dtype) -> None:
    """Two have rows of their own, partly of the same tokens; one adapts the whole embedding, one neither."""
    folder = save_base(tmp_path / "llama", "llama", tie_word_embeddings=tied)
    training = {"learning_rate": 1e-2, "batch_size": 8, "max_steps": 4, "packing": packing}
    adapters = {
        "some": {"rank": 2, "token_rows": [4, 7, 9]}, "others": {"rank": 3, "token_rows": [9, 20], "dropout": 0.2},
        "whole": {"rank": 4, "targets": ["embedding", "q_proj"]}, "none": {"rank": 2, "targets": "mlp"},
    }  # fmt: skip
    jobs = {
        name: Job(rows(folder, 24, number), False, adapter, training)
        for number, (name, adapter) in enumerate(adapters.items())
    }
    found = check(folder, jobs, dtype, at_once=4)
    begun = base(folder, dtype).get_input_embeddings().weight[[9, 20]].float()
    assert (found["others"]["parameters"]["model.embed_tokens.rows"] - begun).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_under_gradient_checkpointing(request: Any, kind: str) -> None:
    """The recomputed blocks draw the dropout of their forward again, their own and the base's."""
    folder = request.getfixturevalue(kind)
    jobs = mixed_jobs(folder, "plain", held=False)
    plain = train(folder, jobs, at_once=4)
    checkpointed = train(folder, jobs, at_once=4, gradient_checkpointing=True)
    for name, result in plain.items():
        same_bits(name, checkpointed[name], result)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_under_any_memory_budget(request: Any, kind: str, monkeypatch: Any) -> None:
    """Recomputed layers and smaller passes, chosen for want of memory, change nothing; nor does whoever is waiting."""
    folder = request.getfixturevalue(kind)
    jobs = mixed_jobs(folder, "plain", held=False)
    ample = train(folder, jobs, at_once=4)
    switched, switch = [], LoRA.activation_checkpointing_enable

    def enable(self: LoRA, *args: Any, **kwargs: Any) -> None:
        switched.append(self)
        switch(self, *args, **kwargs)

    monkeypatch.setattr(LoRA, "activation_checkpointing_enable", enable)
    for at_once in (4, None):
        scarce = train(folder, jobs, at_once=at_once, memory_gib=1e-5)
        for name, result in ample.items():
            same_bits(name, scarce[name], result)
    assert len(switched) == 2


@needs_compiler
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)], ids=["fp32", "bf16"]
)
def test_by_compiled_kernels(llama: Any, dtype: torch.dtype) -> None:
    """Beside DoRA a gated MLP goes layer by layer, and blocks are recomputed together and not alone."""
    jobs = mixed_jobs(llama, "dora", held=False)
    check(llama, jobs, dtype, compile=True, at_once=4, gradient_checkpointing=True)


@pytest.mark.parametrize("bad", [torch.nan, 1e6], ids=["nan", "1e6"])
def test_one_that_diverges_is_stopped_alone(bert: Any, bad: float) -> None:
    jobs = mixed_jobs(bert, "plain")
    alone = {name: train(bert, {name: jobs[name]})[name] for name in jobs if name != "dropped"}
    model = LoRA(base(bert), name=None)
    model.add_adapter("dropped", jobs["dropped"].adapter_settings("dropped"), seed=2)
    with torch.no_grad():
        for key, parameter in model.adapter_parameters("dropped").items():
            if key.endswith(".B"):
                parameter.fill_(bad)
    results = fit(model, jobs, progress=False, at_once=4)
    if bad != bad:
        assert "loss is nan" in str(results["dropped"].error) and results["dropped"].steps == 0
        assert "first in" in str(results["dropped"].error), "the message says where"
    for name, expected in alone.items():
        assert results[name].error is None
        for key, parameter in model.adapter_parameters(name).items():
            assert torch.equal(parameter, expected["parameters"][key]), f"{name}: {key}"


def test_an_absent_adapter_does_not_move(bert: Any) -> None:
    model = LoRA(base(bert), name="bystander", rank=4, variant="dora")
    before = {key: p.detach().clone() for key, p in model.adapter_parameters("bystander").items()}
    fit(model, mixed_jobs(bert, "plain"), progress=False, weight_decay=0.1)
    after = model.adapter_parameters("bystander")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.grad is None for parameter in after.values())


def test_the_set_resumes_to_the_same_bits(bert: Any, tmp_path: Any, monkeypatch: Any) -> None:
    """Cut off in the middle: some adapters are done, some under way, one has not begun."""
    from lora.io.run import RunFolder

    jobs = mixed_jobs(bert, "plain")
    whole = train(bert, jobs, at_once=2, output_dir=tmp_path / "whole", save_every=2)
    entries, log = 0, RunFolder.log

    class Killed(BaseException):
        pass

    def failing(self: RunFolder, entry: dict[str, Any]) -> None:
        nonlocal entries
        entries += 1
        if entries == 21:
            raise Killed
        log(self, entry)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "log", failing)
        with pytest.raises(Killed):
            train(bert, jobs, at_once=2, output_dir=tmp_path / "cut", save_every=2)
    states = {name: (tmp_path / "cut" / name / "adapter").exists() for name in jobs}
    assert any(states.values()) and not all(states.values()), states
    resumed = train(bert, jobs, at_once=2, output_dir=tmp_path / "cut", save_every=2, resume=True)
    for name in jobs:
        for key, parameter in whole[name]["parameters"].items():
            assert torch.equal(parameter, resumed[name]["parameters"][key]), f"{name}: {key}"
        lines = [(tmp_path / run / name / "metrics.jsonl").read_text().splitlines() for run in ("whole", "cut")]
        one, other = ([{k: v for k, v in json.loads(x).items() if k != "tokens_per_second"} for x in y] for y in lines)
        assert one == other, name


def test_each_folder_is_a_run_of_its_own(bert: Any, tmp_path: Any) -> None:
    jobs = mixed_jobs(bert, "dora")
    fit(LoRA(base(bert), name=None), jobs, output_dir=tmp_path / "set", progress=False)
    job = jobs["patient"]
    fit(LoRA(base(bert), name=None), {"patient": job}, output_dir=tmp_path / "alone", progress=False)
    for file in ("adapter_model.safetensors", "adapter_config.json", "lora.json"):
        one, other = ((tmp_path / run / "patient" / "adapter" / file).read_bytes() for run in ("set", "alone"))
        assert one == other, file


def test_heads_with_dropout_inside_and_of_different_width() -> None:
    """RoBERTa's head draws in the middle of what each adapter owns; each has labels of its own."""
    words = [{"text": f"{word} here {other}", "label": word} for word in WORDS[:5] for other in WORDS[5:13]]
    jobs = {
        "three": Job(labelled(40, longest=2), False, {"rank": 2}, {"learning_rate": 1e-2, "batch_size": 8, "seed": 1}),
        "five": Job(words, False, {"rank": 3}, {"learning_rate": 1e-2, "batch_size": 8, "seed": 2}),
        "again": Job(words, False, {"rank": 4, "dropout": 0.2}, {"learning_rate": 1e-3, "batch_size": 8, "seed": 2}),
    }

    def run(jobs: dict[str, Job]) -> dict[str, Any]:
        model = LoRA(tiny("roberta", num_labels=5).train(), name=None)
        assert any(m.p > 0 for m in model.base.classifier.modules() if isinstance(m, torch.nn.Dropout))
        fit(model, jobs, False, tokenizer=tokenizer("bert"), max_steps=4, at_once=3, progress=False)
        return {name: model.adapter_parameters(name) for name in jobs}

    together = run(jobs)
    for name in jobs:
        for key, parameter in run({name: jobs[name]})[name].items():
            assert torch.equal(parameter, together[name][key]), f"{name}: {key}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_tags_of_different_sets(bert: Any, dtype: torch.dtype, monkeypatch: Any) -> None:
    """Heads of different width over every token, sentences in several windows, words without supervision."""
    load = AutoModelForTokenClassification.from_pretrained
    monkeypatch.setattr(
        AutoModelForSequenceClassification, "from_pretrained", lambda *a, **k: load(*a, **{**k, "num_labels": 5})
    )
    plain = [{**row, "tags": [tag[0] for tag in row["tags"]]} for row in tagged(32, 1)]
    training = {"learning_rate": 1e-2, "batch_size": 8, "epochs": 2}
    jobs = {
        "five": Job(tagged(40, 0), tagged(12, 9), {"rank": 2, "dropout": 0.2}, {**training, "label_smoothing": 0.1}),
        "three": Job(plain, False, {"rank": 4, "targets": "attention"}, {**training, "seed": 3}),
        "cut": Job(tagged(40, 2), False, {"rank": 3}, {**training, "seed": 4}, columns={"max_length": 8}),
    }
    check(bert, jobs, dtype, at_once=3)


def test_attention_dropout_in_shared_packed_rows(llama: Any, monkeypatch: Any) -> None:
    load = AutoModelForCausalLM.from_pretrained

    def dropping(*args: Any, **kwargs: Any) -> Any:
        model = load(*args, **kwargs)
        for module in model.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.3
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", dropping)
    check(llama, mixed_jobs(llama, "plain", held=False), at_once=4)


def test_passes_are_shared(bert: Any, monkeypatch: Any) -> None:
    """Trials on the same data have batches of like width: their rows do go through the base together."""
    from lora.training.passes import Passes

    sizes, run = [], Passes.run

    def counted(self: Passes, shares: Any) -> None:
        sizes.append(len(shares))
        run(self, shares)

    monkeypatch.setattr(Passes, "run", counted)
    data = rows(bert, 40, 0)
    jobs = {f"rank {r}": Job(data, False, {"rank": r}, {"learning_rate": 1e-3 * r, "batch_size": 8}) for r in (1, 2, 4)}
    train(bert, jobs, at_once=3)
    assert set(sizes) == {3}


def test_no_gradient_waits_for_the_passes_of_others(bert: Any, monkeypatch: Any) -> None:
    """Of adapters whose rounds take several passes only those of one pass have gradients at a time."""
    from lora.training.mixer import Mixer
    from lora.training.passes import Passes

    data = rows(bert, 40, 0)
    training = {"learning_rate": 1e-2, "batch_size": 8}
    jobs = {f"rank {r}": Job(data, False, {"rank": r}, training) for r in (1, 2, 3, 4)}
    jobs["accumulated"] = Job(data, False, {"rank": 2}, {**training, "accumulation": 2})
    together = train(bert, jobs, at_once=5)
    held, run, groups = [], Passes.run, Mixer._groups

    def counted(self: Passes, shares: Any) -> None:
        run(self, shares)
        having = {
            name
            for name in self.model.adapters
            if any(parameter.grad is not None for parameter in self.model.adapter_parameters(name).values())
        }
        held.append(having - {share.trainee.name for share in shares})

    def pairs(self: Mixer, shares: Any) -> Any:
        return [group[i : i + 2] for group in groups(self, shares) for i in range(0, len(group), 2)]

    monkeypatch.setattr(Passes, "run", counted)
    monkeypatch.setattr(Mixer, "_groups", pairs)
    apart = train(bert, jobs, at_once=5)
    assert len(held) > 10 and set().union(*held) == {"accumulated"}, "which waits for its second batch"
    for name, result in together.items():
        same_bits(name, apart[name], result)


def test_where_rows_cannot_be_told_apart_adapters_take_turns(bert: Any, monkeypatch: Any) -> None:
    from lora.core.routing import Router, Routing
    from lora.errors import RoutingError

    data = rows(bert, 24, 0)
    jobs = {name: Job(data, False, {"rank": 2}, {"learning_rate": 1e-3, "batch_size": 8}) for name in "ab"}
    expected = train(bert, jobs, at_once=2)
    activate = Router.activate

    def refusing(self: Router, routing: Routing | None) -> Any:
        if routing is not None and routing.single is None:
            raise RoutingError("this model has no rows to tell apart")
        return activate(self, routing)

    monkeypatch.setattr(Router, "activate", refusing)
    model = LoRA(base(bert), name=None)
    results = fit(model, jobs, progress=False, at_once=2)
    assert any("take turns" in note and "no rows to tell apart" in note for note in results["a"].notes)
    for name in jobs:
        for key, parameter in model.adapter_parameters(name).items():
            assert torch.equal(parameter, expected[name]["parameters"][key])


job_settings = st.fixed_dictionaries(
    {
        "rank": st.integers(1, 9), "alpha": st.sampled_from([1.0, 8.0, 32.0]), "variant": st.sampled_from(VARIANTS),
        "targets": st.sampled_from(["all-linear", "attention", "mlp", ["query", "dense"]]),
        "dropout": st.sampled_from([0.0, 0.2]),
    }
)  # fmt: skip
training_settings = st.fixed_dictionaries(
    {
        "learning_rate": st.sampled_from([1e-4, 3e-3, 3e-2]), "batch_size": st.sampled_from([8, 12, 16]),
        "accumulation": st.integers(1, 2), "seed": st.integers(0, 3), "max_steps": st.integers(1, 4),
        "weight_decay": st.sampled_from([0.0, 0.1]), "clip": st.sampled_from([None, 0.05]),
    }
)  # fmt: skip


@settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    drawn=st.lists(st.tuples(job_settings, training_settings, st.integers(0, 5)), min_size=2, max_size=5),
    at_once=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_any_company(bert: Any, drawn: list[Any], at_once: int, dtype: torch.dtype) -> None:
    jobs = {
        f"job {number}": Job(rows(bert, 40, seed), False, adapter, training)
        for number, (adapter, training, seed) in enumerate(drawn)
    }
    check(bert, jobs, dtype, at_once=at_once)

"""Two passes of each row in one batch: the loss beside torch's own operators, and that company changes nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

from lora import LoRA, fit
from lora.config import TrainingConfig
from lora.errors import ConfigError
from lora.io.run import RunFolder
from lora.tasks import TASKS
from lora.training import packing
from lora.training.job import Job
from lora.training.memory import largest_batch
from lora.training.packing import Lot, Packing, Text
from lora.training.passes import Passes
from lora.training.prepare import Prepared
from lora.training.trainee import Trainee
from small_base import labelled, stories, tagged, tokenizer
from tiny_models import tiny

SIZE = {"vocab_size": 25}
ALPHA, SMOOTHING = 3.0, 0.1


def task_rows(kind: str) -> tuple[list[dict[str, Any]], dict[str, str], str]:
    """Rows, columns and a base for a task."""
    if kind in ("causal", "seq2seq"):
        return stories(6), {"prompt": "prompt", "completion": "completion"}, "llama" if kind == "causal" else "t5"
    if kind == "token-classification":
        return tagged(6), {"tokens": "tokens", "tags": "tags"}, "bert-tokens"
    rows = labelled(6, longest=6)
    for number, row in enumerate(rows):
        if kind == "multi-label":
            row["label"] = ["x", "y", "z"][: 1 + number % 3]
        if kind == "regression":
            row["label"] = number / 7
    return rows, {"text": "text", "label": "label"}, "bert"


def ready(kind: str, arch: str | None = None, adapter: dict[str, Any] | None = None, **settings: Any) -> Any:
    rows, columns, own = task_rows(kind)
    its: Any = TASKS[kind]
    task = its.from_rows(rows, columns)
    sizes = {**SIZE, "num_labels": len(task.labels) or 1} if kind not in ("causal", "seq2seq") else SIZE
    model = LoRA(tiny(arch or own, **sizes), name=None)
    model.add_adapter("a", rank=4, seed=0, **{"dropout": 0.3, **(adapter or {})})
    with torch.no_grad():
        generator = torch.Generator().manual_seed(7)
        for key, parameter in model.adapter_parameters("a").items():
            if key.endswith(".B"):
                parameter.normal_(std=0.3, generator=generator)
    tokens = tokenizer("bert" if "bert" in own else "t5" if own == "t5" else "llama")
    encoded = task.encode(rows, tokens, 64)
    prepared = Prepared(task, tokens, encoded, None, None, 64, 0, "right", [], "")
    config = TrainingConfig(batch_size=6, learning_rate=1e-3, **settings)
    trainee, passes = Trainee(model, "a", task, encoded, config), Passes(model)
    packed = passes.why_padded(trainee, prepared) is None
    model.train()
    return model, passes, passes.next_share(trainee, prepared, packed)


def kl(one: Tensor, other: Tensor) -> Tensor:
    """KL(one ‖ other) of rows of logits."""
    return F.kl_div(other.log_softmax(-1), one.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def expected(kind: str, logits: Tensor, batch: dict[str, Tensor], count: int) -> Tensor:
    """The loss sum by the formula of the paper, of the logits of 2·``count`` rows."""
    losses, pairs = torch.zeros(()), []
    for place in range(2 * count):
        its, labels = logits[place].float(), batch["labels"][place]
        if kind == "regression":
            losses = losses + (its[0] - labels) ** 2
            pairs.append(its[0])
            continue
        if kind == "multi-label":
            soft = (1 - SMOOTHING) * labels + SMOOTHING / 2
            losses = losses + F.binary_cross_entropy_with_logits(its, soft)
            pairs.append(its)
            continue
        if kind == "causal":
            its, labels = its[:-1], labels[1:]
        its, labels = its.view(-1, its.shape[-1]), labels.view(-1)
        its, labels = its[labels != -100], labels[labels != -100]
        losses = losses + F.cross_entropy(its, labels, reduction="sum", label_smoothing=SMOOTHING)
        pairs.append(its)
    apart = torch.zeros(())
    for one, other in zip(pairs[:count], pairs[count:], strict=True):
        if kind == "regression":
            # Normal distributions of variance 1/2: KL = (x - y)² / (2·1/2), both ways.
            apart = apart + 2 * (one - other) ** 2
        elif kind == "multi-label":
            each = [torch.stack([x, torch.zeros_like(x)], dim=-1) for x in (one, other)]  # (c, 2): is it, is it not
            apart = apart + (kl(*each) + kl(*reversed(each))).mean()
        else:
            apart = apart + (kl(one, other) + kl(other, one)).sum()
    assert float(apart.detach()) > 0.01, "both passes are the same: nothing is tested"
    return losses / 2 + ALPHA / 2 * apart


@pytest.mark.parametrize(
    "kind", ["classification", "multi-label", "regression", "token-classification", "causal", "seq2seq"]
)
def test_loss_and_gradient_are_those_of_the_paper(kind: str) -> None:
    model, passes, share = ready(kind, r_drop=ALPHA, label_smoothing=SMOOTHING, packing=False)
    kept: list[Tensor] = []
    forward = model.base.forward

    def noting(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        kept.append(out.logits)
        return out

    model.base.forward = noting
    (loss,) = passes.forward([share])
    count = len(share.indices)
    assert kept[0].shape[0] == 2 * count == share.rows
    assert torch.equal(share.batch["input_ids"][:count], share.batch["input_ids"][count:])
    true = expected(kind, kept[0], share.batch, count)
    torch.testing.assert_close(loss, true, rtol=1e-5, atol=1e-6)
    found, direct = (torch.autograd.grad(one, kept[0], retain_graph=True)[0] for one in (loss, true))
    torch.testing.assert_close(found, direct, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("arch", ["llama", "llama-tied", "gemma2", "gpt2"])
@pytest.mark.parametrize("adapted", [False, True])
def test_packed_rows_by_chunks_are_full_logits(arch: str, adapted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the head is given, whose halves differ as if by dropout."""
    targets = {"targets": ["lm_head"], "tie_embeddings": False} if adapted else {}
    model, _, _ = ready("causal", arch, {**targets, "dropout": 0.0})
    monkeypatch.setattr(packing, "chunk_rows", lambda *_: 6)  # three positions of both
    texts = [Text({"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]}),
             Text({"input_ids": [9, 8, 7, 6, 5], "labels": [-100, 8, 7, 6, 5]})]  # fmt: skip
    packer, count = Packing(model), 7
    torch.manual_seed(0)
    hidden = torch.randn(2 * count, 32, requires_grad=True)
    lot = Lot("a", "a", texts * 2, 11, SMOOTHING, ALPHA)
    found = packer._head(hidden, lot, None)
    assert found.shape == (count,)
    with model.using("a"):
        logits = model.base.get_output_embeddings()(hidden)
    if packer.softcap:
        logits = torch.tanh(logits / packer.softcap) * packer.softcap
    labels = torch.tensor([6, 7, 8, 8, 7, 6, 5])
    one, other = logits.chunk(2)
    losses = [F.cross_entropy(x, labels, reduction="none", label_smoothing=SMOOTHING) for x in (one, other)]
    true = (losses[0] + losses[1]) / 2 + ALPHA / 2 * (kl(one, other) + kl(other, one))
    torch.testing.assert_close(found, true, rtol=1e-5, atol=1e-5)
    weigh = torch.linspace(1, 2, count)
    wanted = [hidden, *model.adapter_parameters("a").values()] if adapted else [hidden]
    mine, direct = (torch.autograd.grad((x * weigh).sum(), wanted, retain_graph=True) for x in (found, true))
    for its, theirs in zip(mine, direct, strict=True):
        torch.testing.assert_close(its, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "packed"), [("causal", True), ("classification", False)])
def test_both_passes_drop_unlike_values(kind: str, packed: bool) -> None:
    """The loss is a line in the weight that rises: what both say differs."""

    def loss(weight: float) -> float:
        _, passes, share = ready(kind, r_drop=weight)
        assert share.packed is packed
        return float(passes.forward([share])[0].detach())

    one, two, four = loss(1), loss(2), loss(4)
    assert two - one > 1e-3 and four - two == pytest.approx(2 * (two - one), rel=1e-3)


def test_a_pass_and_its_memory_count_both(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("causal", "classification"):
        (_, _, twice), (_, _, once) = ready(kind, r_drop=1.0), ready(kind)
        assert twice.tokens == 2 * once.tokens
        tokens = [
            largest_batch(SimpleNamespace(trainee=share.trainee, packed=share.packed))[0] for share in (once, twice)
        ]
        assert tokens == [once.tokens, twice.tokens]
        assert once.trainee.supervised([once.indices]) == twice.trainee.supervised([twice.indices])


def base(folder: Any) -> Any:
    torch.manual_seed(0)
    if "llama" in str(folder):
        return AutoModelForCausalLM.from_pretrained(folder)
    if "t5" in str(folder):
        return AutoModelForSeq2SeqLM.from_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)


def rows(folder: Any, seed: int) -> list[dict[str, Any]]:
    return labelled(32, seed, longest=5 + seed) if "bert" in str(folder) else stories(32, seed)


def trained(folder: Any, names: tuple[str, ...], **settings: Any) -> dict[str, dict[str, Tensor]]:
    jobs = {
        name: Job(rows(folder, number), False, {"rank": 2 + number, "dropout": 0.1}, {"r_drop": weight, "seed": number})
        for number, (name, weight) in enumerate({"once": 0, "some": 0.5, "more": 4}.items())
        if name in names
    }
    model = LoRA(base(folder), name=None)
    fit(model, jobs, batch_size=8, max_steps=5, learning_rate=1e-2, progress=False, at_once=3, **settings)
    return {name: {key: p.detach() for key, p in model.adapter_parameters(name).items()} for name in names}


@pytest.mark.parametrize("settings", [{}, {"packing": False}, {"gradient_checkpointing": True}, {"neftune_alpha": 5}])
@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_together_as_alone(request: Any, kind: str, settings: dict[str, Any]) -> None:
    folder = request.getfixturevalue(kind)
    together = trained(folder, ("once", "some", "more"), **settings)
    for name, parameters in together.items():
        for key, parameter in trained(folder, (name,), **settings)[name].items():
            assert torch.equal(parameter, parameters[key]), f"{name}: {key}"


def test_with_an_adapted_head_too(llama: Any) -> None:
    def train(names: tuple[str, ...]) -> dict[str, dict[str, Tensor]]:
        jobs = {
            name: Job(stories(32, number), False, {"rank": 3, "dropout": 0.2, "targets": ["lm_head", "q_proj"]},
                      {"r_drop": 1.0, "seed": number})
            for number, name in enumerate(("one", "two")) if name in names
        }  # fmt: skip
        model = LoRA(base(llama), name=None)
        fit(model, jobs, batch_size=8, max_steps=4, learning_rate=1e-2, progress=False, at_once=2)
        return {name: {key: p.detach() for key, p in model.adapter_parameters(name).items()} for name in names}

    together = train(("one", "two"))
    for name, parameters in together.items():
        for key, parameter in train((name,))[name].items():
            assert torch.equal(parameter, parameters[key]), f"{name}: {key}"


def test_resume_gives_the_same_bits(llama: Any, tmp_path: Any, monkeypatch: Any) -> None:
    settings: dict[str, Any] = {
        "r_drop": 1.0, "batch_size": 8, "max_steps": 8, "save_every": 3, "learning_rate": 1e-2, "progress": False,
    }  # fmt: skip
    whole, again = (LoRA(base(llama), rank=4, dropout=0.1) for _ in range(2))
    fit(whole, stories(32), False, output_dir=tmp_path / "whole", **settings)
    log = RunFolder.log

    def failing(self: RunFolder, entry: dict[str, Any]) -> None:
        log(self, entry)
        if entry["step"] == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFolder, "log", failing)
        fit(LoRA(base(llama), rank=4, dropout=0.1), stories(32), False, output_dir=tmp_path / "run", **settings)
    fit(again, stories(32), False, output_dir=tmp_path / "run", resume=True, **settings)
    for key, parameter in whole.adapter_parameters("default").items():
        assert torch.equal(parameter, again.adapter_parameters("default")[key]), key


def test_where_nothing_is_dropped_it_says_that_it_has_no_effect(llama: Any, bert: Any) -> None:
    def notes(folder: Any, examples: Any, **adapter: Any) -> str:
        model = LoRA(base(folder), rank=2, **adapter)
        return " ".join(fit(model, examples, False, max_steps=1, r_drop=1.0, progress=False).notes)

    assert "so both passes of training.r_drop are one" in notes(llama, stories(24))
    assert "r_drop" not in notes(llama, stories(24), dropout=0.1)
    assert "r_drop" not in notes(bert, labelled(24))  # BERT's own dropout


def test_what_it_is_not_for_is_refused(llama: Any) -> None:
    pairs = [{"prompt": "red", "chosen": f"sun {i % 3}", "rejected": "moon"} for i in range(24)]
    with pytest.raises(ConfigError, match=r"r_drop: two passes of a row are compared .* preference says which"):
        fit(LoRA(base(llama), rank=2), pairs, False, r_drop=1.0, progress=False)
    with pytest.raises(ConfigError, match=r"r_drop: not together with training.kl"):
        fit(LoRA(base(llama), rank=2), stories(24), False, r_drop=1.0, kl=0.5, progress=False)

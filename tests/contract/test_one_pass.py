"""Evaluated in one pass or each alone: the same predictions and losses, to the last bit."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from lora.core.routing import BASE
from lora.model.lora import LoRA
from lora.tasks import Encoded, mixture
from lora.tasks.causal import CausalTask
from lora.tasks.classification import ClassificationTask
from lora.tasks.inference import infer, without_cache
from lora.tasks.preference import PreferenceTask
from tiny_models import randomise, tiny

NAMES = ["a", "b", "c", "d", "e"]
ROWS = 43  # more than a batch, and no multiple of anything


def with_adapters(arch: str, dtype: torch.dtype = torch.float32, **base: Any) -> LoRA:
    model = LoRA(tiny(arch, **base).to(dtype), name=None)
    for place, name in enumerate(NAMES):
        model.add_adapter(name, rank=2 + place, alpha=16, seed=place)
        randomise(model.adapter_parameters(name).values(), 7 + place)
    return model.eval()


def encoded(kind: str, count: int = ROWS, shortest: int = 3) -> tuple[Any, Encoded]:
    draw = random.Random(5)
    ids = [[draw.randrange(4, 30) for _ in range(draw.randint(shortest, 17))] for _ in range(count)]
    if kind == "classification":
        task: Any = ClassificationTask(["x", "y", "z"])
        examples: list[dict[str, Any]] = [{"input_ids": own, "label": draw.choice("xyz")} for own in ids]
    elif kind == "causal":
        task = CausalTask(text="text")
        examples = [{"input_ids": own, "labels": [-100, *own[1:]], "row": row} for row, own in enumerate(ids)]
    else:
        task = PreferenceTask(prompt="p", chosen="c", rejected="r")
        examples = []
        for row, own in enumerate(ids):
            prompt = own[:2]
            answers = [own[2:], [draw.randrange(4, 30) for _ in range(4)]]
            examples.append(
                {
                    "input_ids": prompt + answers[0] + answers[1],
                    "labels": [-100, -100, *answers[0], *answers[1]],
                    "branches": [2, len(answers[0]), len(answers[1])],
                    "row": row,
                }
            )
    lengths = [len(one["input_ids"]) for one in examples]
    return task, Encoded(examples, lengths, [1] * count)


@pytest.fixture
def threads(request: Any) -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 1))
    yield
    torch.set_num_threads(before)


@pytest.fixture
def passes(monkeypatch: Any) -> list[list[str]]:
    """The adapters of each pass, a name per row."""
    seen: list[list[str]] = []
    forward = LoRA._forward

    def watched(self: LoRA, *args: Any, adapters: Any = None, **kwargs: Any) -> Any:
        seen.append(list(adapters))
        return forward(self, *args, adapters=adapters, **kwargs)

    monkeypatch.setattr(LoRA, "_forward", watched)
    return seen


def check(model: LoRA, task: Any, rows: Encoded, batch_size: int, counts: tuple[int, ...] = (1, 2, 5)) -> None:
    """Together as alone, in whatever order, and each adapter something else."""
    options: dict[str, Any] = {"pad_token_id": 0, "batch_size": batch_size}
    every = [BASE, *model.adapters]
    alone = {name: infer(model, task, rows, [name], **options)[name] for name in every}
    for count in counts:
        names = [BASE, *every[-count:]]
        for order in (names, names[::-1]):
            together = infer(model, task, rows, order, **options)
            assert list(together) == order
            for name in order:
                assert together[name] == alone[name], f"{name} of {count}"  # all fields, every float
    assert len({tuple(outcome.losses) for outcome in alone.values()}) == len(every)
    assert all(outcome.count and outcome.loss_sum for outcome in alone.values())


KINDS = [("bert", "classification"), ("llama", "causal"), ("llama", "preference"), ("llama-cls", "classification")]


@pytest.mark.parametrize(("arch", "kind"), KINDS)
def test_one_pass_gives_the_bits_of_each_alone(arch: str, kind: str, threads: Any) -> None:
    check(with_adapters(arch), *encoded(kind), batch_size=16)


@pytest.mark.parametrize("threads", [2], indirect=True)
def test_with_threads_that_share_the_elements(threads: Any) -> None:
    """A mixed batch is large enough for two threads, an adapter's own rows are not."""
    model = with_adapters("llama", num_hidden_layers=1)
    check(model, *encoded("causal", 19), batch_size=32, counts=(5,))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 33])
@pytest.mark.parametrize(("arch", "kind"), KINDS)
def test_of_any_number_of_rows(arch: str, kind: str, count: int, threads: Any) -> None:
    # No padding at the end, and a width at which vectors do not come out even: the last elements are of tokens.
    check(with_adapters(arch, intermediate_size=45), *encoded(kind, count, shortest=17), batch_size=40, counts=(2,))


@pytest.mark.parametrize(("arch", "kind"), KINDS[:2])
def test_of_layers_as_wide_as_real_ones(arch: str, kind: str, threads: Any) -> None:
    """Where a pooler's bits depend on 8 rows beside others, and products of bf16 on any number."""
    wide: dict[str, Any] = {"hidden_size": 768, "intermediate_size": 1030, "num_hidden_layers": 1}
    if arch == "llama":
        wide |= {"head_dim": 96, "num_attention_heads": 8}
    for dtype in (torch.float32, torch.bfloat16):
        for count in (8, 17):
            check(with_adapters(arch, dtype, **wide), *encoded(kind, count), batch_size=32, counts=(2,))


def test_a_batch_is_one_pass(passes: list[list[str]]) -> None:
    model, (task, rows) = with_adapters("bert"), encoded("classification", 40)
    infer(model, task, rows, [BASE, "b", "a"], pad_token_id=0, batch_size=20)
    assert passes == [[BASE] * 20 + ["b"] * 20 + ["a"] * 20] * 2
    passes.clear()
    infer(model, task, encoded("classification", 15)[1], [BASE, "a"], pad_token_id=0, batch_size=20)
    assert passes == [[BASE] * 15, ["a"] * 15]  # a pooler's bits would depend on the other


@pytest.mark.parametrize("kind", ["causal", "preference"])
def test_a_pass_is_no_larger_than_its_bound(kind: str, passes: list[list[str]], monkeypatch: Any, threads: Any) -> None:
    model, (task, rows) = with_adapters("llama"), encoded(kind)
    whole = infer(model, task, rows, [*NAMES, BASE], pad_token_id=0, batch_size=16)
    for bound, value in (("TOKENS", 700), ("LOGITS", 700 * 80)):
        with monkeypatch.context() as patched:
            patched.setattr(mixture, bound, value)
            passes.clear()
            assert infer(model, task, rows, [*NAMES, BASE], pad_token_id=0, batch_size=16) == whole
        sizes = {len(set(names)) for names in passes}
        assert min(sizes) < 6 and max(sizes) > 1  # some are parted, and none needlessly
        assert all(len(names) * 3 <= 700 or len(set(names)) == 1 for names in passes)


def test_beside_full_copies_and_heads_of_another_width(tmp_path: Any, threads: Any) -> None:
    wide = LoRA(tiny("bert", num_labels=5), name="wide", rank=2)
    randomise(wide.adapter_parameters("wide").values())
    wide.save_adapter("wide", tmp_path)
    model = with_adapters("bert")
    model.load_adapter(tmp_path, name="wide")
    model.add_adapter("full", targets="none", modules_to_save=["all"])
    model.add_adapter("rows", rank=2, token_rows=[5, 7])
    for name in ("full", "rows"):
        for parameter in model.adapter_parameters(name).values():
            parameter.data += 0.02
    check(model, *encoded("classification"), batch_size=16, counts=(3, 8))


def test_a_base_whose_rows_cannot_be_told_apart(passes: list[list[str]], threads: Any) -> None:
    """T5's table of relative positions, of which a full copy has its own."""
    model = LoRA(tiny("t5"), name=None)
    model.add_adapter("full", targets="none", modules_to_save=["all"])
    model.add_adapter("a", rank=2)
    for name in model.adapters:
        for parameter in model.adapter_parameters(name).values():
            parameter.data += 0.02
    run = mixture.Mixture(model.eval(), of_tokens=True, generates=True)
    ids = torch.arange(4, 68).view(16, 4)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "decoder_input_ids": ids}
    with torch.no_grad(), without_cache(model):
        found = {name: outputs.logits for name, outputs in run(batch, ["full", "a", BASE])}
        assert run.apart and passes[-3:] == [["full"] * 16, ["a"] * 16, [BASE] * 16]
        for name, logits in found.items():
            assert torch.equal(logits, mixture.forward(model, batch, name).logits)
        passes.clear()
        run = mixture.Mixture(model, of_tokens=True, generates=True)
        for name, outputs in run(batch, [BASE, "a"]):
            assert torch.equal(outputs.logits, found[name])
        assert passes == [[BASE] * 16 + ["a"] * 16] and not run.apart

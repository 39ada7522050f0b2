"""Tensors without contents: what operators make of them, and what is counted."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lora.checks.heap import Heap, resident
from lora.checks.shells import Shell, Shells
from tiny_models import MODELS, batch

CPU = torch.device("cpu")
MIB = 1 << 20


def shell(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return Shell(torch.empty(*shape, dtype=dtype, device="meta"), CPU)


def test_a_shell_says_where_it_is_and_has_no_contents() -> None:
    with Shells() as shells:
        x = shell(2**20, 2**20)  # 4 TiB
        y = (x @ x).softmax(-1)
    assert y.shape == x.shape and y.device.type == "cpu" and isinstance(y, Shell)
    assert shells.ledger.operations == 2 * 2**60


def test_what_is_alive_and_the_peak_are_counted() -> None:
    with Shells() as shells:
        x = torch.zeros(MIB, dtype=torch.uint8)  # real: small
        y = shell(MIB, dtype=torch.uint8) + 1
        view = y[1:]
        assert shells.ledger.alive == 2 * MIB, "a view takes nothing, and what was there before is not counted"
        with shells.ledger.phase("sum"):
            z = y + 1
            del z
        del y
        assert shells.ledger.alive == 2 * MIB, "the view holds it"
        del view
    assert not isinstance(x, Shell) and shells.ledger.alive == MIB and shells.ledger.peak == 3 * MIB
    ((name, phase),) = shells.ledger.phases
    assert (name, phase.before, phase.peak, phase.after) == ("sum", 2 * MIB, 3 * MIB, 2 * MIB)


def test_nothing_waits_for_the_garbage_collector() -> None:
    gc.disable()
    try:
        with Shells() as shells:
            x = shell(8, 8).requires_grad_()
            for _ in range(3):
                torch.nn.functional.layer_norm(x @ x, (8,)).sum().backward()
            x.grad = None
            assert shells.ledger.alive <= 4 * 64  # x itself
    finally:
        gc.enable()


def test_in_place_is_the_same_tensor() -> None:
    with Shells():
        x = shell(4, 4)
        assert x.add_(1) is x and torch.mul(x, 2, out=(y := shell(4, 4))) is y


def test_a_parameter_of_another_type_is_of_that_type_throughout() -> None:
    """`nn.Module.float` assigns to ``data``; full fine-tuning of a bf16 base makes its copies so."""
    shells, layer = Shells(), nn.LayerNorm(8, device="meta", dtype=torch.bfloat16)
    shells.hollow(layer, CPU)
    with shells:
        layer.float()
        assert layer.weight.dtype is layer.weight.detach().dtype is torch.float32
        assert shells.ledger.alive == 2 * 8 * 4
        x = shell(4, 8).requires_grad_()
        # Recomputing compares what is kept the second time, which is detached, with the first.
        torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=False).sum().backward()
    gradient = layer.weight.grad
    assert gradient is not None and gradient.dtype is torch.float32


def test_code_that_asks_for_numbers_is_answered() -> None:
    with Shells():
        x = shell(3)
        assert float(x.sum()) == 0 and not (x > 0).any() and torch.equal(x, x) and torch.allclose(x, x)
        assert x.tolist() == [0, 0, 0]
        mask = torch.tensor([True, False, True])
        assert x[mask].shape == (2,), "what is real decides"


def test_large_results_of_real_tensors_have_no_contents() -> None:
    with Shells() as shells:
        places = torch.arange(4096)
        mask = places[:, None] >= places[None, :]
        assert isinstance(mask, Shell) and not isinstance(places, Shell)
    assert shells.ledger.alive == mask.numel() + 8 * places.numel()


@pytest.mark.parametrize("arch", ["bert", "llama", "gpt2", "gemma2", "t5", "modernbert"])
def test_a_step_keeps_what_it_keeps_with_numbers(arch: str) -> None:
    """Outputs and gradients of real models have the shapes and types of the real ones, and the same is kept."""
    model_class, config_class, arguments = MODELS[arch]
    inputs: Any = batch(arch)
    with torch.device("meta"):
        hollow: nn.Module = model_class(config_class(**arguments))
    shells = Shells()
    shells.hollow(hollow, CPU)
    real = model_class(config_class(**arguments))
    before = _kept(real, inputs, nullcontext())
    assert before == _kept(hollow, inputs, shells)
    for (name, one), other in zip(real.named_parameters(), hollow.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or one.grad.shape == other.grad.shape, name  # type: ignore[union-attr]


def _kept(model: nn.Module, inputs: Any, mode: Any) -> int:
    """Bytes that autograd keeps of a step."""
    sizes: dict[int, int] = {}
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor

    with mode:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model.eval()(**inputs).logits
        out.float().sum().backward()
    return sum(sizes.values())


# -- the C library's heap ---------------------------------------------------------------------------------------------


def test_large_pieces_are_mapped_and_go_back() -> None:
    heap = Heap(threshold=64 << 10)
    for number in range(1, 5):
        heap.make(number, MIB)
        heap.give_back(number)
    assert MIB <= heap.peak < 1.3 * MIB


def test_the_heap_keeps_what_is_freed_below_something_in_use() -> None:
    # Where "large" moves, the first piece freed makes all later ones come from the heap.
    events = [MIB, -1, *([MIB] * 8), *(-number for number in range(2, 9)), *([MIB // 2] * 4)]
    (peak,) = resident(events, [(0, len(events))])
    assert 8 * MIB < peak < 9.5 * MIB, "the last four fit into what was freed"
    (later,) = resident(events, [(len(events) - 1, len(events))])
    assert later > 8 * MIB, "and what was freed is held on to"


def test_a_freed_piece_is_short_for_another_of_its_size(monkeypatch: Any) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    tensors = [MIB, -1, *([MIB] * 20), *(-number for number in range(2, 21, 2)), *([MIB] * 10)]
    (peak,) = resident(tensors, [(0, len(tensors))])
    assert peak > 24 * MIB, "twenty are alive"
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")
    (given_back,) = resident(tensors, [(0, len(tensors))])
    assert given_back < 21 * MIB

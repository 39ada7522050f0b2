"""Probabilities of continuations, and requests that are computed once for all adapters. No lm-eval is needed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_rows import with_adapters, word_tokenizer

from lora.config import SamplingConfig
from lora.errors import DataError
from lora.evaluation.decoding import decode
from lora.evaluation.likelihood import score
from lora.evaluation.shared import Shared
from lora.model.lora import LoRA
from tiny_models import tiny

ROWS = [([1, 5, 6], [7]), ([1, 5, 6], [8]), ([1, 9], [10, 11, 12]), ([1, *range(20, 34)], [3, 4]), ([1], [])]


def by_hand(model: LoRA, name: str, before: list[int], after: list[int]) -> tuple[float, bool]:
    with torch.no_grad(), model.using(name):
        logits = model(input_ids=torch.tensor([[*before, *after]])).logits[0, len(before) - 1 : -1]
    logs = logits.log_softmax(-1)
    return sum(float(logs[i, token]) for i, token in enumerate(after)), logits.argmax(-1).tolist() == list(after)


def test_each_adapter_as_alone() -> None:
    model = with_adapters(tiny("llama"), "a", "b")
    with torch.no_grad(), model.using("a"):
        likeliest = model(input_ids=torch.tensor([[1, 5, 6]])).logits[0, -1].argmax().item()
    rows = [*ROWS, ([1, 5, 6], [likeliest])]
    done: list[int] = []
    found = score(model, rows, ["base", "a", "b"], pad_token_id=0, batch_size=6, positions=40, on_rows=done.append)
    for name, its in found.items():
        for (before, after), (value, greedy) in zip(rows, its, strict=True):
            wanted = by_hand(model, name, before, after)
            assert value == pytest.approx(wanted[0], abs=1e-4) and greedy == wanted[1]
    assert found["a"][-1][1] and not found["base"][-1][1]
    assert sum(done) == len(rows)


def test_answers_of_one_token_share_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = with_adapters(tiny("llama"), "a"), []
    forward = LoRA._forward
    monkeypatch.setattr(LoRA, "_forward", lambda self, **given: seen.append(given) or forward(self, **given))
    before = list(range(3, 20))  # with fewer tokens one adapter would go after another
    score(model, [(before, [5]), (before, [6])], ["base", "a"], pad_token_id=0, batch_size=32, positions=40)
    assert [tuple(given["input_ids"].shape) for given in seen] == [(2, 17)]


def test_too_long_a_context_loses_its_beginning() -> None:
    model = with_adapters(tiny("llama"), "a")
    options: dict[str, Any] = {"pad_token_id": 0, "batch_size": 4}
    long, short = ([*range(3, 30)], [5, 6]), ([*range(23, 30)], [5, 6])
    assert score(model, [long], ["a"], positions=8, **options) == score(model, [short], ["a"], positions=40, **options)
    with pytest.raises(DataError, match="longer than the 8 positions"):
        score(model, [([1], list(range(9)))], ["a"], positions=8, **options)
    with pytest.raises(DataError, match="follows no token"):
        score(model, [([], [1])], ["a"], positions=8, **options)


def test_a_base_whose_rows_cannot_be_told_apart_runs_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from lora.errors import RoutingError
    from lora.tasks import mixture

    model, forward, passes, tried = with_adapters(tiny("llama"), "a"), mixture.forward, [], []

    def one_at_a_time(model: LoRA, batch: dict[str, Any], adapters: Any) -> Any:
        if not isinstance(adapters, str):
            tried.append(adapters)
            raise RoutingError("not row by row")
        passes.append(adapters)
        return forward(model, batch, adapters)

    options: dict[str, Any] = {"pad_token_id": 0, "batch_size": 32, "positions": 40}
    rows = [*ROWS, (list(range(3, 20)), [5])]  # enough tokens for a mixed batch
    wanted = score(model, rows, ["base", "a"], **options)
    monkeypatch.setattr(mixture, "forward", one_at_a_time)
    done: list[int] = []
    found = score(model, rows, ["base", "a"], on_rows=done.append, **options)
    for name in ("base", "a"):
        assert [value for value, _ in found[name]] == pytest.approx([value for value, _ in wanted[name]], abs=1e-4)
    assert set(passes) == {"base", "a"} and len(tried) == 1 and sum(done) == len(rows)


def test_requests_are_computed_once() -> None:
    shared = Shared(None, word_tokenizer(), ["base", "a"], {}, 0, 4, 40)  # type: ignore[arg-type]
    computed: list[list[int]] = []

    def compute(places: list[int]) -> dict[str, list[str]]:
        computed.append(places)
        return {name: [f"{name}{place}" for place in places] for name in ("base", "a")}

    assert shared.answers("base", [("x", 1), ("x", 2), ("x", 1)], compute) == ["base0", "base1", "base2"]
    assert shared.answers("a", [("x", 1), ("x", 2), ("x", 1)], compute) == ["a0", "a1", "a2"]
    assert shared.answers("a", [("x", 2), ("y", 1), ("x", 1)], compute) == ["a1", "a1", "a0"]
    assert computed == [[0, 1, 2], [1]]  # equal requests are requests of their own; only a new one is computed


def test_a_row_is_left_where_the_caller_has_what_it_wants() -> None:
    """Each row for itself; the others go on, and write what they would have written anyway."""
    model, sampling = with_adapters(tiny("llama"), "a"), SamplingConfig(max_new_tokens=8)

    def write(finished: Any) -> list[list[int]]:
        rows, ends = [[1, 5, 6], [1, 9]], [frozenset[int]()] * 2
        found = decode(model, rows, ["base", "a"], ends, sampling, [0, 0], pad_token_id=0, finished=finished)
        return [its.ids for its in found]

    whole = write(None)
    begun = whole[0][:3]
    assert whole[1][:3] != begun and 0 not in whole[0]
    left = write(lambda ids: ids[:3] == begun)
    assert left[0][:3] == begun and set(left[0][3:]) == {0} and left[1] == whole[1]

"""Rows to groups and back; who is in force where."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lora.core.routing import Group, Router, Routing
from lora.errors import RoutingError


@settings(max_examples=60, deadline=None, derandomize=True)
@given(names=st.lists(st.sampled_from("abcd"), min_size=1, max_size=20), tokens=st.integers(1, 4))
def test_split_and_join_are_inverse(names: list[str], tokens: int) -> None:
    routing = Routing(names, tokens)
    for x in (torch.arange(len(names) * 3).view(-1, 3), torch.arange(len(names) * tokens * 2).view(-1, 2)):
        parts = routing.split(x, "here")
        assert torch.equal(routing.join(parts, x), x)
        times = x.shape[0] // len(names)
        for group, part in zip(routing.groups, parts, strict=True):
            rows = [row for row, name in enumerate(names) if name == group.name]
            assert torch.equal(part, torch.cat([x[row * times : (row + 1) * times] for row in rows]))


def test_rows_that_lie_together_are_views() -> None:
    x = torch.randn(4, 3)
    first, second = Routing(["a", "a", "b", "b"]).split(x, "here")
    assert first.data_ptr() == x.data_ptr() and second.data_ptr() == x[2:].data_ptr()
    assert Routing(["b", "a", "a"]).groups == (Group("b", 0, 1), Group("a", 1, 3))


def test_what_cannot_be_told_apart_is_refused() -> None:
    routing = Routing(["a", "b", "a"], tokens=4)
    assert routing.fan_out(3, 3, "here") == 1 and routing.fan_out(12, 2, "here") == 4
    for rows, dims in ((12, 3), (6, 2), (4, 2), (1, 2)):
        with pytest.raises(RoutingError, match=f"here: got {rows} rows where the batch names 3"):
            routing.fan_out(rows, dims, "here")
    with pytest.raises(RoutingError):
        routing.split(torch.zeros(12, 1, dtype=torch.long), "ids", ids=True)
    with pytest.raises(RoutingError):
        Routing([])


def test_repeated_rows_and_those_before() -> None:
    routing = Routing(["a", "b"], tokens=3)
    beams = routing.repeated(3)
    assert beams.names == ("a", "a", "a", "b", "b", "b") and beams.tokens == 3
    assert beams.fitting(2) is routing and beams.fitting(6) is beams and routing.fitting(6) is routing
    assert routing.repeated(1) is routing
    assert Routing.uniform("a").repeated(4).size is None


def test_one_adapter_needs_no_name_and_several_do() -> None:
    router = Router({})
    assert router.resolve().single == "base"
    router.known["a"] = object()
    assert router.resolve().single == "a" and router.resolve().size is None
    router.known["b"] = object()
    with pytest.raises(RoutingError, match="2 adapters \\(a, b\\)"):
        router.resolve()
    with pytest.raises(RoutingError, match="unknown adapter 'c', 'd'; this model carries: base, a, b"):
        router.check(["d", "a", "c", "base"])


def test_blocks_nest_and_threads_are_apart() -> None:
    router = Router({"a": 1, "b": 2})
    seen = []

    def elsewhere() -> None:
        seen.append(router.current)
        with router.activate(Routing.uniform("b")):
            ready.set()
            done.wait(5)
            seen.append(router.resolve().single)

    ready, done = threading.Event(), threading.Event()
    with router.activate(Routing.uniform("a")):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        assert ready.wait(5)
        assert router.resolve().single == "a"
        with pytest.raises(ZeroDivisionError), router.activate(Routing.uniform("b")):
            raise ZeroDivisionError
        assert router.resolve().single == "a"
        done.set()
        thread.join()
    assert seen == [None, "b"] and router.current is None


def test_copies_share_nothing() -> None:
    router = Router({"a": 1})
    for clone in (copy.deepcopy(router), pickle.loads(pickle.dumps(router))):
        clone.known["b"] = 2
        assert "b" not in router.known and clone.current is None
    pair = copy.deepcopy([router, router])
    assert pair[0] is pair[1]

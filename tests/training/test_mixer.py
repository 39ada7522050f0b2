"""What goes through the base together: shares of one kind, up to the limit; and where the limit comes from."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora.errors import RoutingError
from lora.training import mixer
from lora.training.mixer import Mixer, find_knee


class Recorded:
    """Stands for `Passes`: notes which shares go together."""

    def __init__(self, refuses: bool = False, mixes: bool = False) -> None:
        self.passes: list[str] = []
        self.refuses = refuses
        self.mixes = mixes
        self.model: Any = torch.nn.Linear(1, 1)

    def kind(self, share: Any) -> str:
        return "any" if self.mixes else share.layout

    def keep_apart(self) -> None:
        self.mixes = False

    def run(self, shares: Any) -> None:
        if len({share.layout for share in shares}) > 1:
            raise RoutingError("not of like width")
        if self.refuses and len(shares) > 1:
            raise RoutingError("no rows here")
        self.passes.append("".join(share.name for share in shares))


def share(name: str, tokens: int, layout: str = "packed") -> Any:
    return SimpleNamespace(name=name, tokens=tokens, layout=layout)


@pytest.mark.parametrize(
    "limit, expected",
    [(None, ["acd", "b"]), (30, ["acd", "b"]), (29, ["ac", "b", "d"]), (1, ["a", "b", "c", "d"])],
)
def test_like_layouts_share_a_pass_up_to_the_limit(limit: int | None, expected: list[str]) -> None:
    passes: Any = Recorded()
    mixing = Mixer(passes)
    mixing.most_tokens = limit
    done = [
        "".join(each.name for each in group)
        for group in mixing.run([share("a", 10), share("b", 10, "wide"), share("c", 10), share("d", 10)])
    ]
    assert done == passes.passes == expected


def test_a_base_that_cannot_tell_rows_apart_is_asked_once() -> None:
    passes: Any = Recorded(refuses=True)
    mixing = Mixer(passes)
    for _ in range(2):
        assert [[each.name for each in done] for done in mixing.run([share("a", 10), share("b", 10)])] == [["a"], ["b"]]
    assert passes.passes == ["a", "b", "a", "b"] and "no rows here" in str(mixing.note)


def test_where_layouts_do_not_mix_like_ones_go_on_sharing() -> None:
    passes: Any = Recorded(mixes=True)
    mixing = Mixer(passes)
    mixing.most_tokens = 30
    for _ in range(2):
        shares = [share("a", 10), share("b", 10, "wide"), share("c", 10), share("d", 10), share("e", 10, "wide")]
        assert len(list(mixing.run(shares))) == 2
    assert passes.passes == ["acd", "be"] * 2 and "not of like width" in str(mixing.note)


@pytest.mark.parametrize(
    "floor, memory, expected", [(0.004, 10**9, 400), (0.0, 10**9, 100), (1.0, 1000, 800), (1.0, 10, 100)]
)
def test_the_knee(monkeypatch: pytest.MonkeyPatch, floor: float, memory: int, expected: int) -> None:
    """A pass of b tokens takes max(floor, b·1e-5) seconds: nothing is gained beyond floor/1e-5, or beyond memory."""
    monkeypatch.setattr(mixer, "_timed", lambda passes, larger: max(floor, larger.tokens * 1e-5))
    monkeypatch.setattr(mixer, "replace", lambda first, indices: share_of(indices))
    monkeypatch.setattr(mixer, "LONGEST", 1e9)

    def share_of(indices: list[int]) -> Any:
        trainee = SimpleNamespace(begin_step=lambda: None)
        return SimpleNamespace(indices=indices, tokens=100 * len(indices), trainee=trainee)

    passes: Any = Recorded()
    assert find_knee(passes, share_of([0]), memory).tokens == expected

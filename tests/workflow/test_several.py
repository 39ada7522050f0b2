"""What the command line names, and loading it: several adapters on one base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chat_base import CHAT, SINGLE, save_adapters, save_chat_base
from lora import LoRA
from lora.errors import AdapterFileError, ConfigError
from lora.model.base import load_base
from lora.tasks.chat import ChatTask
from lora.tasks.classification import ClassificationTask
from lora.workflow import choose, load_several
from lora.workflow.several import name_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def adapters(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return save_adapters(base, tmp_path_factory.mktemp("adapters"), {"a": CHAT, "b": SINGLE})


@pytest.mark.parametrize(
    ("place", "name"),
    [("runs/mine", "mine"), ("runs/mine/adapter/", "mine"), ("m/checkpoints/step-00000012", "m"),
     ("runs/set/x/checkpoints/best", "x"), ("owner/name", "name"), ("runs/.kept", "kept"), ("best", "best-parent")],
)  # fmt: skip
def test_names(place: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "best-parent").mkdir()
    monkeypatch.chdir(tmp_path / "best-parent")
    assert name_of(place) == name


def test_choosing(base: Path, adapters: dict[str, Path]) -> None:
    chosen = choose([str(adapters["a"]), "base"], [f"x={adapters['b']}"], None)
    assert chosen.adapters == {"a": str(adapters["a"]), "x": str(adapters["b"])}
    assert (chosen.base, chosen.model) == (True, None)
    assert choose([str(base)], [], None).model == str(base)
    for places, named, model, words in (
        ([], [], None, "name an adapter's or a run's folder, or a base model"),
        ([str(base)], [], "other", "is a base model, and other is one too"),
        (["x/a", "y/a"], [], None, r"x/a and y/a would both be called 'a'; name one of them: --adapter NAME=y/a"),
        ([], ["base=x/a"], None, "'base' is the base model's own name"),
        ([], ["x/a"], None, "a name and a folder are needed, as in --adapter short=runs/short"),
    ):
        with pytest.raises(ConfigError, match=words):
            choose(places, named, model)


def test_a_folder_of_several(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("adapters: {one: a.jsonl, two: b.jsonl}\n")
    assert choose([str(tmp_path)], [], None).adapters == {name: str(tmp_path / name) for name in ("one", "two")}


def test_loading(base: Path, adapters: dict[str, Path]) -> None:
    loaded = load_several(choose([str(folder) for folder in adapters.values()], [], None))
    assert loaded.names == ["a", "b"] and [task.name for task in loaded.tasks.values()] == ["chat", "causal"]
    assert next(loaded.model.base.parameters()).dtype is torch.float32, "as in training"
    loaded = load_several(choose([str(adapters["a"]), "base"], [], None))
    assert loaded.names == ["a", "base"]
    loaded = load_several(choose([str(base)], [], None), chat=True)
    assert loaded.names == ["base"] and isinstance(loaded.tasks["base"], ChatTask) and loaded.notes == []
    assert (loaded.tasks["base"].tools, loaded.tasks["base"].system) == ("tools", "system"), "rows may bring them"
    bare = load_several(choose([str(save_chat_base(base.parent / "bare", template=False))], [], None), chat=True)
    assert "its tokenizer has no chat template" in bare.notes[0]


def test_what_writes_nothing_is_refused(bert: Path, tmp_path: Path) -> None:
    task = ClassificationTask(["cat", "dog"])
    model = LoRA(load_base(str(bert), task.auto_class, torch.float32, task.model_options()), rank=2)
    model.notes["default"] = {"task": task.state()}
    folder = model.save_adapter("default", tmp_path / "a")
    with pytest.raises(ConfigError, match=f"writes no text; use `lora predict {folder}`"):
        load_several(choose([str(folder)], [], None), writes=True)
    (folder / "lora.json").unlink()
    with pytest.raises(AdapterFileError, match="is for SEQ_CLS and writes no text"):
        load_several(choose([str(folder)], [], None), writes=True)
    with pytest.raises(AdapterFileError, match="does not say its task and labels; use LoRA"):
        load_several(choose([str(folder)], [], None))


def test_an_adapter_of_pefts(base: Path, tmp_path: Path) -> None:
    folder = save_adapters(base, tmp_path, {"a": CHAT})["a"]
    (folder / "lora.json").unlink()
    loaded = load_several(choose([str(folder)], [], str(base)))
    assert isinstance(loaded.tasks["a"], ChatTask) and "was not made by lora" in loaded.notes[0]

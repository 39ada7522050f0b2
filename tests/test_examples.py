"""The recipes of examples/: their settings are valid, and each trains, from its file to a report."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chat_base import save_chat_base
from lora import workflow
from lora.cli.demo import demo_base
from lora.config import RunConfig
from lora.errors import ConfigError
from lora.overrides import each_adapter, load_config
from small_base import WORDS, labelled, save_base, stories, tagged, write_jsonl

EXAMPLES = Path(__file__).parent.parent / "examples"
# Real data and a small pretrained decoder, which the project does not carry.
SHARED = Path(__file__).parents[1].parent / "shared"
RECIPES = ["chatbot", "classification", "domain-assistant", "structured-text", "named-entities", "preferences"]
ENCODERS = ("classification", "named-entities")


def dialogues(count: int = 16) -> list[dict]:
    def turn(role: str, row: dict, key: str) -> dict:
        return {"role": role, "content": row[key]}

    rows = stories(2 * count)
    return [
        {"messages": [turn(role, row, key) for row in pair for role, key in TURNS]}
        for pair in zip(rows[:count], rows[count:], strict=True)
    ]


TURNS = (("user", "prompt"), ("assistant", "completion"))


def questions(count: int = 16) -> list[dict]:
    return [
        {"instruction": row["prompt"], "input": "", "output": row["completion"], "source": "x"}
        for row in stories(count)
    ]


def records(count: int = 16) -> list[dict]:
    return [{"mr": row["prompt"], "ref": row["completion"]} for row in stories(count)]


def pairs(count: int = 16) -> list[dict]:
    return [
        {
            "messages": [{"role": "user", "content": row["prompt"]}],
            "chosen": row["completion"],
            "rejected": f"{row['completion']} {WORDS[0]}",
        }
        for row in stories(count)
    ]


MADE_UP: dict[str, Callable[[], list[dict]]] = {
    "chatbot": dialogues,
    "domain-assistant": questions,
    "structured-text": records,
    "named-entities": tagged,
    "preferences": pairs,
}
REAL = {
    "chatbot": "sgd_dialogues",
    "domain-assistant": "medquad",
    "structured-text": "e2e_nlg",
    "named-entities": "wnut17",
    "preferences": "pref_dpo_en_300",
}
TWO = {"intents": "snips/train.jsonl", "sentiment": "sentence_sentiment_3domain/all.jsonl"}


def configured(recipe: str, base: str | Path, output: Path, steps: int, data: Any) -> RunConfig:
    """The recipe's settings with what the command line would say; ``data``: a source, or those of several by name."""
    config = load_config(
        EXAMPLES / recipe / "config.yaml",
        {"model": str(base), "output": str(output), "training.max_steps": steps, "training.generate_rows": 2,
         "training.tensorboard": False} | ({} if isinstance(data, dict) else {"data.train": str(data)}),
    )  # fmt: skip
    if isinstance(data, dict):
        for name, source in data.items():
            config.adapters[name]["data"]["train"] = str(source)
    return config


def trained(config: RunConfig) -> dict[str, workflow.TrainResult]:
    if config.adapters:
        return workflow.train_many(config, progress=False, latency=False)
    return {"default": workflow.train(config, progress=False, latency=False)}


def test_every_recipe_is_tested_and_in_the_index() -> None:
    folders = sorted(path.parent.name for path in EXAMPLES.glob("*/config.yaml"))
    assert folders == sorted(RECIPES)
    index = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for name in folders:
        assert f"]({name}/README.md)" in index
        assert f"lora train examples/{name}/config.yaml" in (EXAMPLES / name / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES)
def test_settings_are_valid_and_name_no_real_place(recipe: str) -> None:
    config = load_config(EXAMPLES / recipe / "config.yaml")
    assert config.model == "BASE"
    for each in each_adapter(config).values() if config.adapters else [config]:
        assert each.data.train and not Path(each.data.train).is_absolute()
    with pytest.raises(ConfigError):
        load_config(EXAMPLES / recipe / "config.yaml", {"training.learning_rat": 1})


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_trains_from_its_file_to_a_report(recipe: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base") if recipe in ENCODERS else save_chat_base(tmp_path / "base")
    data: Any
    if recipe == "classification":
        data = {name: write_jsonl(tmp_path / f"{name}.jsonl", labelled()) for name in ("intents", "sentiment")}
    else:
        data = write_jsonl(tmp_path / "rows.jsonl", MADE_UP[recipe]())
    config = configured(recipe, base, tmp_path / "run", 2, data)
    config.data.max_length = 64  # as many as the small bases have positions for
    results = trained(config)
    for result in results.values():
        assert result.fit.steps == 2
        assert result.evaluation is not None
        assert result.report is not None and result.report.is_file()
    folder = tmp_path / "run" / ("intents" if recipe == "classification" else "")
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_takes_a_step_on_real_data(recipe: str, tmp_path: Path) -> None:
    data: Any = {}
    if recipe == "classification":
        data = {name: SHARED / "data" / file for name, file in TWO.items()}
        files = list(data.values())
        data = {name: f"{file}#24" for name, file in data.items()}
    else:
        files = [SHARED / "data" / REAL[recipe] / "train.jsonl"]
        data = f"{files[0]}#12"
    if recipe not in ENCODERS:
        files.append(SHARED / "models" / "small3m")
    if not all(file.exists() for file in files):
        pytest.skip("the shared data sets and models are not on this machine")
    try:
        base = demo_base() if recipe in ENCODERS else str(files[-1])
    except ConfigError as error:
        pytest.skip(str(error))
    config = configured(recipe, base, tmp_path / "run", 1, data)
    config.check = False  # they take longer than the step
    for result in trained(config).values():
        assert result.fit.steps == 1

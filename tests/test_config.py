"""Configuration: from a file, from options and from Python; every problem named, with its remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lora.config import (
    AdapterConfig,
    DataConfig,
    RunConfig,
    TrainingConfig,
)
from lora.errors import ConfigError
from lora.overrides import apply_overrides, load_config, save_config

SECTIONS = {"data": DataConfig, "adapter": AdapterConfig, "training": TrainingConfig}


def problem(values: dict[str, Any], group: Any = RunConfig) -> str:
    with pytest.raises(ConfigError) as caught:
        group.make(values)
    return str(caught.value)


def file(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_are_valid_as_they_stand() -> None:
    for group in (RunConfig, *SECTIONS.values()):
        assert group.make(group().model_dump()) == group()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"adapter": {"rnk": 4}}, "adapter.rnk: unknown setting; did you mean 'rank'?"),
        ({"trainign": {}}, "trainign: unknown setting; did you mean 'training'?"),
        ({"training": {"learning-rat": 1}}, "did you mean 'learning_rate'?"),
        ({"training": {"rank": 4}}, "training.rank: unknown setting; did you mean 'adapter.rank'?"),
        ({"lr": 1e-3}, "lr: unknown setting; did you mean 'training.learning_rate'?"),
        (
            {"zzz": 1},
            "zzz: unknown setting; known: adapter, adapters, at_once, check, compile, data, liger, memory_gib, ",
        ),
        ({1: 2}, "1: unknown setting"),
    ],
)
def test_an_unknown_key_names_the_nearest(values: dict[str, Any], words: str) -> None:
    assert words in problem(values)


def test_all_problems_are_reported_at_once() -> None:
    said = problem({"adapter": {"rank": 0, "alpha": -1, "foo": 1}, "training": {"lr": "x"}, "model": 3}).splitlines()
    assert [line.partition(":")[0] for line in said] == [
        "model",
        "adapter.rank",
        "adapter.alpha",
        "adapter.foo",
        "training.learning_rate",
    ]


def test_problems_of_a_file_are_listed_under_its_name(tmp_path: Path) -> None:
    path = file(tmp_path, "adapter: {rank: 0, alpha: 0}")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).splitlines() == [
        f"{path}: 2 problems",
        "  adapter.rank: must be greater than or equal to 1 (given: 0)",
        "  adapter.alpha: must be greater than 0 (given: 0)",
    ]


@pytest.mark.parametrize(
    ("group", "values", "words"),
    [
        (AdapterConfig, {"rank": 0}, "rank: must be greater than or equal to 1 (given: 0)"),
        (AdapterConfig, {"alpha": 0}, "alpha: must be greater than 0 (given: 0)"),
        (AdapterConfig, {"alpha": float("inf")}, "finite"),
        (AdapterConfig, {"alpha": float("nan")}, "finite"),
        (AdapterConfig, {"dropout": 1}, "dropout: must be less than 1"),
        (AdapterConfig, {"rank_pattern": {"q": 0}}, "rank of 'q' must be at least 1"),
        (AdapterConfig, {"alpha_pattern": {"q": 0}}, "alpha of 'q' must be above 0"),
        (AdapterConfig, {"layers": True}, "a truth value"),
        (AdapterConfig, {"targets": 3}, "targets: must be a valid string, or a valid list (given: 3)"),
        (AdapterConfig, {"use_dora": True, "variant": "plain"}, "use_dora contradicts variant: 'plain'"),
        (TrainingConfig, {"batch_size": True}, "batch_size: a truth value"),
        (TrainingConfig, {"eval_every": 0}, "must be at least 1, 'epoch' or null"),
        (TrainingConfig, {"eval_every": "sometimes"}, "(given: 'sometimes')"),
        (TrainingConfig, {"schedule": "square"}, "schedule: must be 'linear', 'cosine' or 'constant'"),
        (TrainingConfig, {"lr": 1, "learning_rate": 2}, "'learning_rate' is given twice"),
        (DataConfig, {"held_out": 0.9999}, "held_out: must be less than or equal to 0.9 (given: 0.9999)"),
        (DataConfig, {"held_out": -0.1}, "held_out: must be greater than or equal to 0 (given: -0.1)"),
        (DataConfig, {"task": "clasification"}, "task: unknown; did you mean 'classification'? known: auto, "),
        (DataConfig, {"task": "translate"}, "task: unknown; known: auto, classification, token-classification, "),
        (DataConfig, {"columns": {"text": 3}}, "columns: must be a valid string (given: 3)"),
        (DataConfig, {"columns": {"text": "a"}, "text": "b"}, "name different columns for 'text'"),
        (RunConfig, {"memory_gib": 0}, "memory_gib: must be greater than 0 (given: 0)"),
        (RunConfig, {"memory_gib": float("nan")}, "memory_gib: must be a finite number (given: nan)"),
        (RunConfig, {"memory_gib": True}, "memory_gib: a truth value"),
        (TrainingConfig, {"gradient_checkpointing": "often"}, "gradient_checkpointing: must be a valid boolean"),
        (RunConfig, {"adapter": [1]}, "adapter: expected settings as 'key: value' lines"),
    ],
)
def test_a_bad_value_is_named(group: Any, values: dict[str, Any], words: str) -> None:
    said = problem(values, group)
    assert words in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(("text", "expected"), [("auto", None), ("null", None), ("yes", True), ("no", False)])
def test_gradient_checkpointing_may_be_left_open(tmp_path: Path, text: str, expected: bool | None) -> None:
    config = load_config(file(tmp_path, f"memory_gib: 1.5\ntraining: {{gradient_checkpointing: {text}}}"))
    assert config.training.gradient_checkpointing is expected and config.memory_gib == 1.5


def test_where_prefixes_the_keys() -> None:
    with pytest.raises(ConfigError, match=r"^adapters\.b\.rank: "):
        AdapterConfig.make({"rank": 0}, where="adapters.b")


@pytest.mark.parametrize(("section", "group"), [("", RunConfig), *SECTIONS.items()])
def test_every_alias_leads_to_a_setting_and_hides_none(section: str, group: Any) -> None:
    for alias, name in group.aliases.items():
        assert name in group.model_fields, f"{section}.{alias} leads to {name}, which is no setting"
        assert alias not in group.model_fields


def test_spellings_of_other_tools() -> None:
    adapter = AdapterConfig.make({"r": 4, "lora_alpha": 8, "target_modules": ["q"], "use_rslora": True})
    assert (adapter.rank, adapter.alpha, adapter.targets, adapter.rslora) == (4, 8.0, ["q"], True)
    assert AdapterConfig.make({"use_dora": True}).variant == "dora"
    assert AdapterConfig.make({"use_dora": False}).variant == "plain"
    training = TrainingConfig.make({"per_device_train_batch_size": 2, "num-train-epochs": 1, "lr": "3e-4"})
    assert (training.batch_size, training.epochs, training.learning_rate) == (2, 1.0, 3e-4)


def test_data_may_be_just_a_path_and_a_section_may_be_empty(tmp_path: Path) -> None:
    config = load_config(file(tmp_path, "data: rows.csv\ntraining:\nadapter:\n"))
    assert config.data.train == "rows.csv"
    assert (config.training, config.adapter) == (TrainingConfig(), AdapterConfig())


@pytest.mark.parametrize("spelling", ["learning_rate", "learning-rate", "lr"])
@pytest.mark.parametrize("override", ["learning_rate", "learning-rate", "lr"])
def test_an_override_wins_however_it_is_spelled(tmp_path: Path, spelling: str, override: str) -> None:
    path = file(tmp_path, f"training: {{{spelling}: 1.0, epochs: 2}}")
    config = load_config(path, {f"training.{override}": 0.5})
    assert (config.training.learning_rate, config.training.epochs) == (0.5, 2.0)


def test_overrides_of_the_top_level_and_of_data(tmp_path: Path) -> None:
    path = file(tmp_path, "base_model: a\noutput_dir: b\ndata: rows.csv\n")
    config = load_config(path, {"model": "c", "output": "d", "data.max_length": 9})
    assert (config.model, config.output, config.data.train, config.data.max_length) == ("c", "d", "rows.csv", 9)


def test_overrides_leave_their_input_alone() -> None:
    values = {"training": {"lr": 1}, "data": "x"}
    apply_overrides(values, {"training.learning_rate": 2, "data.train": "y"})
    assert values == {"training": {"lr": 1}, "data": "x"}


@pytest.mark.parametrize("key", ["trainig.lr", "a.b.c", "nothing", "training.nothing"])
def test_an_unknown_override_is_reported_like_an_unknown_key(key: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting"):
        load_config(None, {key: 1})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "not valid YAML"),
        ("\x01", "not valid YAML"),
        ("- 1\n- 2", "found list"),
        ("just a text", "found str"),
        ("training: {lr: 1}\nmodel: x\ntraining: {epochs: 2}", "'training' stands in line 1 and again in line 3"),
        ("adapter:\n  rank: 1\n  rank: 2", "'rank' stands in line 2 and again in line 3"),
        ("adapter: &x {rank: *x}", "adapter.rank"),
    ],
)
def test_a_broken_file_is_one_message(tmp_path: Path, text: str, words: str) -> None:
    path = file(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such configuration file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path)
    path = tmp_path / "latin.yaml"
    path.write_bytes("model: é".encode("latin-1"))
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(path)


@pytest.mark.parametrize("start", ["", "\ufeff", "# only a comment\n"])
def test_an_empty_file_means_the_defaults(tmp_path: Path, start: str) -> None:
    assert load_config(file(tmp_path, start)) == RunConfig() == load_config(None)


def test_a_saved_configuration_reads_back_as_it_was(tmp_path: Path) -> None:
    config = RunConfig.make(
        {
            "model": "größe",
            "data": {"train": "a.csv", "held_out": 0.1},
            "adapter": {"targets": ["q", "v"], "layers": "4-7", "rank_pattern": {"q.*": 4}},
            "training": {"lr": 3e-4, "epsilon": 1e-8, "eval_every": None, "save_every": 7, "clip": None},
        }
    )
    text = save_config(config)
    assert load_config(file(tmp_path, text)) == config
    written = yaml.safe_load(text)
    # Every default is written out: a later version of this package may have others.
    assert all(set(written[name]) == set(group.model_fields) for name, group in SECTIONS.items())


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "training.learning_rate": st.floats(1e-8, 1.0),
            "training.eval_every": st.one_of(st.none(), st.just("epoch"), st.integers(1, 10**6)),
            "training.seed": st.integers(0, 2**31),
            "adapter.rank": st.integers(1, 4096),
            "adapter.targets": st.one_of(st.text(min_size=1), st.lists(st.text(min_size=1), min_size=1)),
            "adapter.rslora": st.booleans(),
            "data.train": st.text(min_size=1),
            "model": st.text(),
        },
    )
)
def test_any_overrides_survive_saving_and_loading(overrides: dict[str, Any]) -> None:
    config = load_config(None, overrides)
    for key, value in overrides.items():
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        assert found == value
    assert RunConfig.make(yaml.safe_load(save_config(config))) == config

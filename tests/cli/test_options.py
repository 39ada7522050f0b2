"""Every key is an option; only what was given counts."""

from __future__ import annotations

import contextlib
from typing import Any

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from lora import registry
from lora.cli.options import ConfigCommand, _keys, _option_names, config_options, parse_value
from lora.config import AdapterConfig, DataConfig, RunConfig, TrainingConfig
from lora.overrides import load_config


def run(*arguments: str, parts: tuple[str, ...] = ()) -> Any:
    """The overrides that a command receives, or click's result where it fails."""
    received: dict[str, Any] = {}

    @click.command(cls=ConfigCommand)
    @click.argument("config", required=False)
    @config_options(*parts)
    @click.option("--resume", is_flag=True, help="Go on.")
    def command(config: str | None, overrides: dict[str, Any], resume: bool) -> None:
        """Train."""
        received.update(config=config, overrides=overrides, resume=resume)

    result = CliRunner().invoke(command, list(arguments), standalone_mode=True)
    return received if received and result.exit_code == 0 else result


def test_nothing_given_is_no_override() -> None:
    assert run() == {"config": None, "overrides": {}, "resume": False}


def test_other_options_and_arguments_keep_working() -> None:
    assert run("run.yaml", "--resume", "--rank", "4") == {
        "config": "run.yaml",
        "overrides": {"adapter.rank": 4},
        "resume": True,
    }


@pytest.mark.parametrize(
    ("arguments", "key", "value"),
    [
        (["--lr", "3e-4"], "training.learning_rate", 3e-4),
        (["--learning-rate", "3e-4"], "training.learning_rate", 3e-4),
        (["--learning_rate", "3e-4"], "training.learning_rate", 3e-4),
        (["--training.learning-rate", "3e-4"], "training.learning_rate", 3e-4),
        (["--training.learning_rate=3e-4"], "training.learning_rate", 3e-4),
        (["--training.lr", "3e-4"], "training.learning_rate", 3e-4),
        (["--per_device_train_batch_size", "8"], "training.batch_size", 8),
        (["--rank", "4"], "adapter.rank", 4),
        (["--lora-r", "4"], "adapter.rank", 4),
        (["--lora_alpha", "16"], "adapter.alpha", 16.0),
        (["--alpha", "16"], "adapter.alpha", 16.0),
        (["--epochs", "0.5"], "training.epochs", 0.5),
        (["--batch-size", "2"], "training.batch_size", 2),
        (["--max-length", "64"], "data.max_length", 64),
        (["--variant", "dora"], "adapter.variant", "dora"),
        (["--dropout", ".1"], "adapter.dropout", 0.1),
        (["--seed", "7"], "training.seed", 7),
        (["--model", "m"], "model", "m"),
        (["-m", "m"], "model", "m"),
        (["--data", "d.csv"], "data.train", "d.csv"),
        (["-d", "2024"], "data.train", "2024"),
        (["-o", "out"], "output", "out"),
        (["--output-dir", "out"], "output", "out"),
        (["--rslora"], "adapter.rslora", True),
        (["--no-rslora"], "adapter.rslora", False),
        (["--adapter.no-rslora"], "adapter.rslora", False),
        (["--no-tie-embeddings"], "adapter.tie_embeddings", False),
        (["--gradient-checkpointing"], "training.gradient_checkpointing", True),
        (["--no-gradient-checkpointing"], "training.gradient_checkpointing", False),
        (["--memory-gib", "2.5"], "memory_gib", 2.5),
        (["--memory-gib", "null"], "memory_gib", None),
        (["--clip", "null"], "training.clip", None),
        (["--eval-every", "null"], "training.eval_every", None),
        (["--eval-every", "epoch"], "training.eval_every", "epoch"),
        (["--eval-every", "50"], "training.eval_every", 50),
        (["--layers", "3"], "adapter.layers", 3),
        (["--layers", "4-7"], "adapter.layers", "4-7"),
        (["--layers", "[0, 1]"], "adapter.layers", [0, 1]),
        (["--layers", "0,1"], "adapter.layers", [0, 1]),
        (["--targets", "attention"], "adapter.targets", "attention"),
        (["--targets", "q_proj,v_proj"], "adapter.targets", ["q_proj", "v_proj"]),
        (["--targets", "[q_proj, v_proj]"], "adapter.targets", ["q_proj", "v_proj"]),
        (["--targets", "[qkv]_proj"], "adapter.targets", "[qkv]_proj"),
        (["--targets", r".*\.(q|v)_proj"], "adapter.targets", r".*\.(q|v)_proj"),
        (["--targets", r"layers\.\d{1,2}\.q"], "adapter.targets", r"layers\.\d{1,2}\.q"),
        (["--modules-to-save", "classifier"], "adapter.modules_to_save", ["classifier"]),
        (["--task", "regression"], "data.task", "regression"),
        (["--columns", "{context: notes}"], "data.columns", {"context": "notes"}),
        (["--rank-pattern", "{q_proj: 8}"], "adapter.rank_pattern", {"q_proj": 8}),
    ],
)
def test_an_option_reaches_its_setting(arguments: list[str], key: str, value: Any) -> None:
    outcome = run(*arguments)
    assert list(outcome["overrides"]) == [key]
    config: Any = load_config(None, outcome["overrides"])
    for part in key.split("."):
        config = getattr(config, part)
    assert config == value and type(config) is type(value)


def test_every_key_is_an_option_in_full() -> None:
    names = _option_names()
    keys = [key for key, _ in _keys()]
    written_out = RunConfig().model_dump(exclude={"tune"})  # whose keys are options of `lora tune` alone
    # `adapters` is a table and no section: the names in it are the user's.
    sections = {name: group for name, group in written_out.items() if isinstance(group, dict) and group}
    inner = [f"{section}.{name}" for section, group in sections.items() for name in group]
    assert sorted(keys) == sorted([*inner, *(written_out.keys() - sections.keys())])
    for key in keys:
        assert f"--{key.replace('_', '-')}" in names[key]


def test_no_spelling_means_two_keys() -> None:
    spelled = [name for names in _option_names().values() for name in names]
    assert len(spelled) == len(set(spelled))


def test_parts_limit_the_options() -> None:
    assert run("--lr", "1", parts=("model", "data")).exit_code == 2
    assert run("--max-length", "9", "-m", "x", parts=("model", "data"))["overrides"] == {
        "model": "x",
        "data.max_length": 9,
    }


def test_an_unknown_option_names_the_nearest() -> None:
    result = run("--learning-rat", "1")
    assert result.exit_code == 2
    assert "--learning-rate" in result.output


@pytest.mark.parametrize(
    ("text", "expected"),
    [("general.txt", "general.txt"), ("a, b {c}.txt", "a, b {c}.txt"), ("null", None),
     ("{path: general.txt, share: 0.2}", {"path": "general.txt", "share": 0.2})],
)  # fmt: skip
def test_a_group_of_settings_is_a_name_or_a_table(text: str, expected: Any) -> None:
    assert parse_value(DataConfig.model_fields["replay"].annotation, text) == expected


def test_broken_yaml_is_a_usage_error() -> None:
    result = run("--rank-pattern", "{q: 3")
    assert result.exit_code == 2
    assert "--adapter.rank-pattern" in result.output and "not valid YAML" in result.output


def test_help_is_grouped_and_shows_defaults() -> None:
    text = run("--help").output
    order = ["Options:", "Model and output:", "Data:", "Adapter:", "Training:"]
    assert sorted(order, key=text.index) == order
    flat = " ".join(text.split())
    assert "--rank INT rank r of the update B·A [default: 32]" in flat
    assert "--lr, --learning-rate NUMBER peak rate; default: derived from the model" in flat
    assert "-d, --data, --train TEXT" in flat
    assert "--tensorboard/--no-tensorboard write TensorBoard events [default: yes]" in flat
    assert "--lora-alpha" not in flat  # accepted, but one name is enough to read


def test_help_lists_what_the_registry_holds() -> None:
    # That this loads no torch is held by tests/test_public.py.
    flat = " ".join(run("--help").output.split()).replace("- ", "-")  # lines are broken behind hyphens too
    for names in (registry.TASKS, registry.VARIANTS):
        assert ", ".join(names) in flat


def test_every_setting_has_a_help_text() -> None:
    assert [key for key, field in _keys() if not field.description] == []


@given(st.floats(min_value=1e-9, max_value=1e3, allow_nan=False))
def test_any_float_survives(value: float) -> None:
    parsed = parse_value(TrainingConfig.model_fields["learning_rate"].annotation, repr(value))
    assert load_config(None, {"training.learning_rate": parsed}).training.learning_rate == value


@given(st.integers(min_value=1, max_value=10**9))
def test_any_integer_survives(value: int) -> None:
    for name in ("batch_size", "eval_every", "max_steps"):
        parsed = parse_value(TrainingConfig.model_fields[name].annotation, str(value))
        assert getattr(load_config(None, {f"training.{name}": parsed}).training, name) == value


@given(st.text(min_size=1).filter(lambda text: text.strip() not in {"", "~", "null"}))
def test_any_text_survives(value: str) -> None:
    parsed = parse_value(RunConfig.model_fields["model"].annotation, value)
    assert load_config(None, {"model": parsed}).model == value


@given(st.lists(st.from_regex(r"[a-z_][a-z_0-9.]*", fullmatch=True), min_size=2, max_size=5))
def test_any_list_of_names_survives(names: list[str]) -> None:
    annotation = AdapterConfig.model_fields["targets"].annotation
    # Quoted, since YAML reads y, no, null and the like as something else.
    quoted = "[" + ", ".join(f"'{name}'" for name in names) + "]"
    assert load_config(None, {"adapter.targets": parse_value(annotation, quoted)}).adapter.targets == names


def test_tokens_in_a_row_are_several() -> None:
    annotation = RunConfig.model_fields["new_tokens"].annotation
    assert parse_value(annotation, "<|im_start|>,<|im_end|>") == ["<|im_start|>", "<|im_end|>"]
    assert parse_value(annotation, "<|one|>") == ["<|one|>"]
    assert parse_value(annotation, '["[INST]", "[/INST]"]') == ["[INST]", "[/INST]"]
    rows = AdapterConfig.model_fields["token_rows"].annotation
    assert parse_value(rows, "3,4") == [3, 4] and parse_value(rows, "{wte: [3, 4]}") == {"wte": [3, 4]}


@given(st.text(max_size=30))
def test_no_text_makes_the_parser_fail_otherwise_than_by_a_usage_error(text: str) -> None:
    for _, field in _keys():
        with contextlib.suppress(click.BadParameter):
            parse_value(field.annotation, text)

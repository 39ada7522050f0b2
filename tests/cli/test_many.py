"""`lora train` with several adapters, as a process: a folder each, the same as alone; one that fails fails alone."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

import command
from lora.config import RunConfig
from lora.errors import ConfigError, Interrupted
from lora.overrides import each_adapter, load_config
from small_base import WORDS, labelled, save_base, write_jsonl


def lora(*arguments, folder) -> subprocess.CompletedProcess[str]:
    done = command.lora(*arguments, cwd=folder)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def words_as_labels(count):
    """Rows with other labels than `labelled` has, and more of them."""
    return [{"text": f"{WORDS[i % 5]} here {WORDS[7 + i % 3]}", "label": WORDS[i % 5]} for i in range(count)]


@pytest.fixture(scope="module")
def trained(bert, tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    write_jsonl(folder / "animals.jsonl", labelled(60))
    write_jsonl(folder / "words.jsonl", words_as_labels(60))
    settings = {
        "model": str(bert), "output": "set", "at_once": 2,
        "training": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2, "dtype": "float32", "save_every": 2},
        "adapters": {
            "animals": "animals.jsonl",
            "words": {"data": {"train": "words.jsonl"}, "adapter": {"rank": 4}, "training": {"seed": 3}},
            "wild": {"data": "animals.jsonl", "training": {"learning_rate": 1e30, "clip": None}},
        },
    }  # fmt: skip
    (folder / "several.yaml").write_text(yaml.safe_dump(settings))
    return folder, lora("train", "several.yaml", folder=folder)


def test_each_has_a_row_and_a_folder_and_the_stopped_one_its_reason(trained):
    folder, done = trained
    assert done.returncode == 2, done.stderr
    assert "error: wild was stopped: step" in done.stderr and "Lower learning_rate (now 1e+30)" in done.stderr
    for name in ("animals", "words"):
        assert name in done.stdout
        for file in ("adapter/adapter_model.safetensors", "metrics.jsonl", "config.yaml", "report.md"):
            assert (folder / "set" / name / file).exists(), (name, file)
    assert not (folder / "set" / "wild" / "adapter").exists()
    answer = lora("predict", "set/words", "sun here cat", folder=folder)
    assert json.loads(answer.stdout)["label"] in WORDS[:5]


def test_one_of_them_alone_is_the_same_to_the_bit(trained):
    """Other labels and another seed than the set's: the head too must be its own."""
    folder, _ = trained
    done = lora("train", "set/words/config.yaml", "--output", "alone", folder=folder)
    assert done.returncode == 0, done.stderr
    one, other = (
        (folder / run / "adapter" / "adapter_model.safetensors").read_bytes() for run in ("set/words", "alone")
    )
    assert one == other


def test_the_set_can_be_gone_on_with(trained):
    folder, _ = trained
    done = lora("train", "--resume", "set", folder=folder)
    assert done.returncode == 2 and "wild was stopped" in done.stderr, "its checkpoint is that of the beginning"
    again = lora("train", "several.yaml", folder=folder)
    assert again.returncode == 2 and "already holds a set of runs" in again.stderr


def test_places_that_hold_others(trained):
    folder, _ = trained
    single = ["train", "--model", "base", "--data", "animals.jsonl", "--output"]
    refused = lora(*single, "set", folder=folder)
    assert refused.returncode == 2 and "holds a set of runs" in refused.stderr
    settings = yaml.safe_load((folder / "several.yaml").read_text())
    settings["adapters"] = {"new": "animals.jsonl"}
    (folder / "other.yaml").write_text(yaml.safe_dump(settings))
    refused = lora("train", "other.yaml", "--overwrite", folder=folder)
    assert refused.returncode == 2 and "holds runs that would stay (animals, wild, words)" in refused.stderr
    settings["output"] = "set/words"
    (folder / "other.yaml").write_text(yaml.safe_dump(settings))
    refused = lora("train", "other.yaml", "--overwrite", folder=folder)
    assert refused.returncode == 2 and "holds a single run; name another" in refused.stderr
    assert (folder / "set" / "words" / "adapter").is_dir()


def test_overwriting_a_set_and_stopping_leaves_one_that_goes_on(bert, tmp_path, monkeypatch):
    """The second adapter has not begun: what the run before left of it is not taken for its own."""
    from lora.io.run import RunFolder
    from lora.workflow import resume
    from lora.workflow.many import train_many

    write_jsonl(tmp_path / "rows.jsonl", labelled(40))
    settings = {
        "model": str(bert), "output": str(tmp_path / "set"), "at_once": 1,
        "training": {"max_steps": 4, "batch_size": 8, "learning_rate": 1e-2, "dtype": "float32"},
        "adapters": {name: str(tmp_path / "rows.jsonl") for name in "ab"},
    }  # fmt: skip
    train_many(RunConfig.make(settings), progress=False)
    settings["training"]["seed"] = 5
    log = RunFolder.log

    def stopping(self, entry):
        log(self, entry)
        if entry["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched, pytest.raises(Interrupted, match="a at step|stopped at step"):
        patched.setattr(RunFolder, "log", stopping)
        train_many(RunConfig.make(settings), overwrite=True, progress=False)
    assert not list((tmp_path / "set" / "b" / "checkpoints").glob("step-*"))
    results = resume(tmp_path / "set", progress=False)
    assert all(result.fit.steps == 4 for result in results.values())


def test_ranks_that_nobody_chose_are_brought_down_as_in_a_single_run(bert, tmp_path):
    """The base is 32 wide, its head's input too; rank 32 would be above the size of a smaller layer."""
    from lora.workflow import resume
    from lora.workflow.many import train_many

    narrow = save_base(tmp_path / "narrow", hidden_size=16)
    write_jsonl(tmp_path / "rows.jsonl", labelled(40))
    settings = {
        "model": str(narrow), "output": str(tmp_path / "set"), "training": {"max_steps": 1, "dtype": "float32"},
        "adapters": {"a": str(tmp_path / "rows.jsonl")},
    }  # fmt: skip
    result = train_many(RunConfig.make(settings), progress=False)["a"]
    assert all(slot.rank <= 16 for slot in result.model.slots("a").values())
    assert resume(tmp_path / "set", progress=False)["a"].fit.steps == 1
    settings["adapter"], settings["output"] = {"rank": 32}, str(tmp_path / "chosen")
    with pytest.raises(ConfigError, match="above the size"):
        train_many(RunConfig.make(settings), progress=False)


def test_settings_assigned_afterwards_count():
    config = RunConfig.make({"model": "m", "output": "o", "adapters": {"a": "a.jsonl"}})
    config.training.learning_rate, config.data.held_out, config.adapter.rank = 7e-3, 0.25, 3
    found = each_adapter(config)["a"]
    assert (found.training.learning_rate, found.data.held_out, found.adapter.rank) == (7e-3, 0.25, 3)
    assert found.data.train == "a.jsonl"


def test_a_scaling_of_ones_own_leaves_the_common_variant():
    config = RunConfig.make({"adapter": {"variant": "dora"}, "adapters": {
        "a": {"adapter": {"use_rslora": True}}, "b": {"adapter": {"use-dora": False}}, "c": None,
    }})  # fmt: skip
    found = each_adapter(config)
    assert {name: each.adapter.variant for name, each in found.items()} == {"a": "dora", "b": "plain", "c": "dora"}
    assert found["a"].adapter.rslora


@pytest.mark.parametrize(
    "adapters, message",
    [
        ({"a": {"rank": 3}}, r"adapters.a.rank: unknown section; did you mean adapter.rank\?"),
        ({"a": {"adapter": {"rnk": 3}}}, r"adapters.a.adapter.rnk: unknown setting; did you mean 'rank'\?"),
        ({"a/b": {}}, "'a/b' cannot be an adapter's name"),
        ({"config.yaml": {}}, "'config.yaml' cannot be an adapter's name"),
        ({"adapter": {}}, "'adapter' cannot be an adapter's name"),
        ({"a": {"training": [1]}}, "adapters.a.training: expected settings"),
    ],
)
def test_settings_of_one_adapter_that_are_wrong(adapters, message):
    with pytest.raises(ConfigError, match=message):
        each_adapter(RunConfig.make({"adapters": adapters}))


def test_settings_of_one_lie_over_those_of_all():
    config = RunConfig.make(
        {"output": "o", "data": {"max_length": 9}, "adapter": {"r": 4}, "training": {"lr": 1e-3},
         "adapters": {"a": None, "b": {"adapter": {"rank": 8}, "training": {"learning_rate": 2e-3}}}}
    )  # fmt: skip
    a, b = each_adapter(config).values()
    assert (a.adapter.rank, a.training.learning_rate, a.data.max_length) == (4, 1e-3, 9)
    assert (b.adapter.rank, b.training.learning_rate, b.data.max_length) == (8, 2e-3, 9)
    assert Path(b.output or "") == Path("o/b")


@pytest.mark.parametrize("key", ["train", "validation", "replay"])
def test_data_for_all_that_nobody_would_read_are_refused(key, tmp_path):
    set_of = {"a": {"data": {key: "a.jsonl"}}, "b": {"data": {key: "b.jsonl"}}}
    path = tmp_path / "several.yaml"
    path.write_text(yaml.safe_dump({"adapters": set_of}))
    with pytest.raises(ConfigError, match=rf"data.{key}: is given for all.* adapters.a.data.{key}, adapters.b.data"):
        load_config(path, {f"data.{key}": "c.jsonl"})
    set_of["b"] = {}
    path.write_text(yaml.safe_dump({"adapters": set_of}))
    found = each_adapter(load_config(path, {f"data.{key}": "c.jsonl"}))
    assert [getattr(each.data, key) for each in found.values()] == ["a.jsonl", "c.jsonl"]


def test_data_of_all_may_have_moved_when_a_set_goes_on(bert, tmp_path):
    from lora.workflow import resume
    from lora.workflow.many import train_many

    data, output = write_jsonl(tmp_path / "a.jsonl", labelled(30)), tmp_path / "set"
    settings = {
        "model": str(bert), "output": str(output), "check": False, "data": str(data),
        "training": {"max_steps": 1, "tensorboard": False}, "adapters": {"a": {}, "b": {"adapter": {"rank": 4}}},
    }  # fmt: skip
    train_many(RunConfig.make(settings), progress=False)
    moved = data.rename(tmp_path / "moved.jsonl")
    results = resume(output, progress=False, overrides={"data.train": str(moved)})
    assert isinstance(results, dict) and {each.fit.steps for each in results.values()} == {1}
    assert load_config(output / "config.yaml").data.train == str(moved)


def test_tasks_that_need_different_models(bert, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", labelled(30))
    write_jsonl(tmp_path / "b.jsonl", [{"text": f"red sun {i}"} for i in range(30)])
    settings = {"model": str(bert), "output": "set", "adapters": {"a": "a.jsonl", "b": "b.jsonl"}}
    (tmp_path / "several.yaml").write_text(yaml.safe_dump(settings))
    done = lora("train", "several.yaml", folder=tmp_path)
    assert done.returncode == 2 and "need different models of the same base" in done.stderr


def test_what_is_wrong_with_the_data_of_all_is_said_at_once_and_nothing_is_left(bert, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": 3, "label": "x"}, {"text": "red", "label": "y"}])
    write_jsonl(tmp_path / "b.jsonl", [{"text": "red", "label": None}, {"text": "sun", "label": "y"}])
    settings = {"model": str(bert), "output": "set", "adapters": {"a": "a.jsonl", "b": "b.jsonl"}}
    (tmp_path / "several.yaml").write_text(yaml.safe_dump(settings))
    done = lora("train", "several.yaml", folder=tmp_path)
    assert done.returncode == 2 and "adapters.a:" in done.stderr and "adapters.b:" in done.stderr
    # Refused after everything has been read: no folder may look as if a run had begun.
    write_jsonl(tmp_path / "a.jsonl", labelled(30))
    write_jsonl(tmp_path / "b.jsonl", labelled(30))
    done = lora("train", "several.yaml", "--liger", folder=tmp_path)
    assert done.returncode == 2 and "liger" in done.stderr and not (tmp_path / "set").exists()


def test_an_option_that_is_wrong_is_not_blamed_on_the_file(bert, tmp_path):
    (tmp_path / "several.yaml").write_text(yaml.safe_dump({"model": str(bert), "output": "set"}))
    done = lora("train", "several.yaml", "--memory-gib", "-1", folder=tmp_path)
    assert done.returncode == 2 and "memory_gib" in done.stderr and "several.yaml" not in done.stderr
    done = lora("train", "several.yaml", "--learning-rate", "-1", folder=tmp_path)
    assert done.returncode == 2 and "several.yaml" not in done.stderr
    (tmp_path / "several.yaml").write_text("rank: 3\n")
    assert "several.yaml: rank: unknown" in lora("train", "several.yaml", "--lr", "1", folder=tmp_path).stderr

"""`lora eval` on rows: several adapters in one pass, what its files say of their origin, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lora import LoRA, evaluate
from lora.cli import main
from lora.data.sources import sha256
from lora.io.describe import files_sha256
from lora.model.base import load_base
from lora.tasks import Task
from lora.tasks.classification import ClassificationTask
from lora.workflow import choose, load_several
from small_base import labelled, save_base, write_jsonl
from tiny_models import randomise

sys.path.append(str(Path(__file__).parents[1] / "evaluation"))
from figures import Page, at, wrong

ANIMALS = ClassificationTask(["bird", "cat", "dog"])


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("bert"), initializer_range=0.1)


def saved(base: Path, folder: Path, name: str, task: Task = ANIMALS, dtype: str = "float32", **notes: Any) -> Path:
    """An adapter with random weights, as a run would leave it."""
    model = LoRA(load_base(str(base), task.auto_class, getattr(torch, dtype), task.model_options()), name=None)
    model.add_adapter(name, rank=2)
    randomise(model.adapter_parameters(name).values(), seed=len(name) + ord(name[0]))
    trained = {"trained_on": {"rows": 90, "digest": "d1"}, "training": {"dtype": dtype}}
    model.notes[name] = {"task": task.state(), **trained, **notes}
    return model.save_adapter(name, folder / name / "adapter").parent


@pytest.fixture(scope="module")
def runs(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    earlier = [{"folder": "runs/first/adapter", "sha256": "5" * 64, "trained_on": {"rows": 7, "digest": "d0"}}]
    saved(bert, folder, "long")
    saved(bert, folder, "short", begun_with=earlier)
    write_jsonl(folder / "rows.jsonl", labelled(70, seed=9, longest=6))
    return folder


def measured(runs: Path, file: Path, *more: str) -> dict[str, Any]:
    call = ["eval", str(runs / "long"), str(runs / "short"), "--data", str(runs / "rows.jsonl"), "--resamples", "200"]
    assert main([*call, "--no-latency", "--output", str(file), *more]) == 0
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.suffix == ".json" else {}


def test_several_in_one_pass_are_compared_with_the_base_and_one_another(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = measured(runs, tmp_path / "m.json")
    shown = capsys.readouterr().out
    assert list(told["metrics"]) == ["base", "long", "short"], "the names of the runs' folders"
    assert set(told["comparisons"]) == {"long", "short"}
    assert all(its["f1_macro"]["comparisons"] == 2 for its in told["comparisons"].values()), "corrected for two"
    assert [(its["a"], its["b"], its["metric"]) for its in told["pairs"]] == [
        ("long", "short", "f1_macro"), ("long", "short", "loss")
    ]  # fmt: skip
    for words in ("Against base", "long against short", "Computed on a base in float32.", "with short ("):
        assert words in shown
    # The same from Python, and each alone, to the last digit.
    loaded = load_several(choose([str(runs / "long"), str(runs / "short")], [], None))
    options: dict[str, Any] = {"tokenizer": loaded.tokenizer, "latency": False, "resamples": 200}
    together = evaluate(loaded.model, str(runs / "rows.jsonl"), **options)
    assert together.metrics == told["metrics"] and together.dtype == told["dtype"] == "float32"
    for name in ("long", "short"):
        alone = evaluate(loaded.model, str(runs / "rows.jsonl"), adapters=[name], **options)
        assert alone[name] == told["metrics"][name] and alone["base"] == told["metrics"]["base"]
    assert told["metrics"]["long"] != told["metrics"]["short"]


def test_an_adapter_may_be_named_otherwise(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["eval", str(runs / "long"), "--adapter", f"other={runs / 'long'}", "--data", str(runs / "rows.jsonl")]
    assert main([*call, "--no-latency", "--json", "--resamples", "0", "--no-baseline"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert list(told["metrics"]) == ["long", "other"] and told["metrics"]["long"] == told["metrics"]["other"]


def test_the_json_says_where_everything_comes_from(runs: Path, bert: Path, tmp_path: Path) -> None:
    told = measured(runs, tmp_path / "m.json", "--slices", "label", "--batch-size", "16")
    rows = runs / "rows.jsonl"
    assert told["data"] == {
        "sources": [{"name": str(rows), "split": "test", "sha256": sha256(rows), "weight": None}], "rows": 70
    }  # fmt: skip
    assert told["base"]["name"] == str(bert) and len(told["base"]["fingerprint"]) == 16
    assert told["versions"]["torch"] == torch.__version__ and "lora" in told["versions"]
    assert told["adapters"]["long"]["trained_on"] == {"rows": 90, "digest": "d1"}
    assert told["adapters"]["long"]["sha256"] == files_sha256(runs / "long" / "adapter")
    assert told["adapters"]["short"]["begun_with"][0]["sha256"] == "5" * 64
    config = told["config"]
    assert (config["batch_size"], config["slices"], config["resamples"]) == (16, ["label"], 200)
    assert config["data"]["train"] == str(rows)
    assert config["adapters"]["short"]["adapter"]["rank"] == 2
    assert config["adapters"]["short"]["training"] == {"dtype": "float32"}


def test_every_figure_of_the_page_stands_in_the_file_it_was_made_from(runs: Path, tmp_path: Path) -> None:
    told = measured(runs, tmp_path / "m.json", "--slices", "label", "--robustness", "typos")
    assert main(["report", str(tmp_path / "m.json")]) == 0
    source = (tmp_path / "m.html").read_text(encoding="utf-8")
    page = Page(source)
    figures = [each for each in page.elements if "data-path" in each.attributes]
    assert [found for each in figures if (found := wrong(told, each.attributes, each.said))] == []
    paths = {str(each.attributes["data-path"]) for each in figures}
    assert {"/metrics/short/f1_macro", "/pairs/0/difference", "/rows", "/data/rows"} <= paths
    assert "/adapters/short/begun_with/0/trained_on/rows" in paths
    assert [at(told, str(code.attributes["data-yaml"])) for code in page.all("pre") if "data-yaml" in code.attributes]
    for words in ("Made from m.json", "short: begun with", "measured on", sha256(runs / "rows.jsonl"), "float32"):
        assert words in source
    assert "learned from" not in source, "the rows here were only measured"


def test_the_ending_of_the_file_says_what_is_written(runs: Path, tmp_path: Path) -> None:
    measured(runs, tmp_path / "m.json")
    measured(runs, tmp_path / "direct.md")
    measured(runs, tmp_path / "direct.html")
    assert main(["report", str(tmp_path / "m.json"), "--output", str(tmp_path / "m.md")]) == 0
    text = (tmp_path / "direct.md").read_text(encoding="utf-8")
    assert "## Adapters against one another" in text and "## Lineage" in text and "| long against short |" in text
    assert (tmp_path / "m.md").read_text(encoding="utf-8") == text
    page = (tmp_path / "direct.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and 'data-path="/pairs/0/difference"' in page


def test_a_file_goes_into_new_folders_and_it_is_said_where_and_no_mistake_leaves_them(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(runs, tmp_path / "new" / "deep" / "m.json")
    assert f"written: {tmp_path}/new/deep/m.json" in capsys.readouterr().err
    other = tmp_path / "other" / "m.json"
    assert main(["eval", str(runs / "long"), "--data", str(runs / "nowhere.jsonl"), "--output", str(other)]) == 2
    assert not other.parent.exists()


def test_eval_and_predict_give_the_same_probabilities(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In bfloat16, where a row's last digits depend on its batch: both make the same batches, file or not."""
    from lora.evaluation import predict as predicting
    from lora.tasks import inference

    run = saved(bert, tmp_path, "half", dtype="bfloat16")
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(90, seed=3, longest=12))
    for module in (inference, predicting):
        monkeypatch.setattr(module, "AT_ONCE", 40)  # so that there is more than one lot
    seen: list[Any] = []
    metrics = ClassificationTask.metrics

    def kept(self: Any, predictions: Any, *rest: Any) -> Any:
        seen.append(list(predictions))
        return metrics(self, predictions, *rest)

    batches: list[Any] = []
    collated = inference.collated

    def recorded(model: Any, task: Any, examples: Any, *rest: Any) -> Any:
        batches.append([tuple(its["input_ids"]) for its in examples])
        return collated(model, task, examples, *rest)

    monkeypatch.setattr(ClassificationTask, "metrics", kept)
    monkeypatch.setattr(inference, "collated", recorded)
    assert main(["eval", str(run), "--data", str(data), "--no-latency", "--resamples", "0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == "bfloat16"
    of_eval, batches[:] = list(batches), []
    assert main(["predict", str(run), "--data", str(data)]) == 0
    assert batches == of_eval and len(of_eval) == 5, "40 rows make two batches of at most 32, and 10 one"
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert main(["predict", str(run), "--data", str(data), "--output", str(tmp_path / "out.jsonl")]) == 0
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert printed == written
    evaluated = [its["probabilities"] for its in seen[1]]  # the base's come first
    assert [list(its["probabilities"].values()) for its in printed] == evaluated
    assert evaluated != [its["probabilities"] for its in seen[0]]


def test_what_cannot_be_measured_together(
    runs: Path, bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(bert, tmp_path, "labels", ClassificationTask(["bird", "cat", "cow"]))
    saved(bert, tmp_path, "column", ClassificationTask(["bird", "cat", "dog"], text="review"))
    saved(save_base(tmp_path / "base2", initializer_range=0.2), tmp_path, "stranger")
    saved(bert, tmp_path / "so", "called").rename(tmp_path / "base")
    long, rows = str(runs / "long"), str(runs / "rows.jsonl")
    for arguments, words in (
        ([long, str(tmp_path / "labels")], "labels: long alone has 'dog', labels alone has 'cow'"),
        ([long, str(tmp_path / "column")], "text is 'text' of long, 'review' of column"),
        ([long, str(tmp_path / "stranger")], "long and stranger were trained on different bases"),
        ([long, long], "would both be called 'long'; name one of them"),
        ([str(tmp_path / "base")], "'base' is the base model's own name; call it otherwise"),
        ([str(bert)], "a base alone does not say by which task it is measured"),
        ([], "name an adapter's or a run's folder"),
        ([long, str(tmp_path / "none")], "there is no such adapter folder"),
    ):
        assert main(["eval", *arguments, "--data", rows]) == 2
        said = capsys.readouterr().err
        assert words in said and "Traceback" not in said, said


def test_several_lengths_and_types_are_said(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(bert, tmp_path, "few", max_length=8)
    saved(bert, tmp_path, "many", max_length=16, dtype="bfloat16")
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(20, longest=4))
    call = ["eval", str(tmp_path / "few"), str(tmp_path / "many"), "--data", str(data), "--resamples", "0"]
    assert main([*call, "--no-latency", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert any("(few 8, many 16); here all read the first 8" in note for note in told["notes"])
    assert any("few in float32, many in bfloat16" in note for note in told["notes"]) and told["dtype"] == "float32"
    assert main([*call, "--no-latency", "--json", "--data.max-length", "12"]) == 0
    assert not any("here all read" in note for note in json.loads(capsys.readouterr().out)["notes"])


def test_classifiers_of_one_head_load_together(runs: Path, bert: Path, tmp_path: Path) -> None:
    from lora.errors import ConfigError

    loaded = load_several(choose([str(runs / "long"), str(runs / "short")], [], None))
    assert loaded.names == ["long", "short"] and [task.name for task in loaded.tasks.values()] == ["classification"] * 2
    saved(bert, tmp_path, "two", ClassificationTask(["bird", "cat"]))
    with pytest.raises(ConfigError, match="long and two cannot sit on one base: labels: long alone has 'dog'"):
        load_several(choose([str(runs / "long"), str(tmp_path / "two")], [], None))


def test_an_adapter_keeps_what_it_was_begun_with(bert: Path, tmp_path: Path) -> None:
    from lora.config import RunConfig
    from lora.io.peft import read_sidecar
    from lora.workflow import train
    from lora.workflow.loading import load
    from lora.workflow.tuned import task_of

    data = str(write_jsonl(tmp_path / "rows.jsonl", labelled(40, longest=4)))
    settings: dict[str, Any] = {"max_steps": 2, "save_every": 1, "tensorboard": False}
    place = {"model": str(bert)}
    for name in ("one", "two", "three"):
        train(
            RunConfig.model_validate(
                {**place, "data": {"train": data}, "output": str(tmp_path / name), "training": settings, "check": False}
            )
        )
        place = {"start": str(tmp_path / name)}
    folders = [tmp_path / name / "adapter" for name in ("one", "two", "three")]
    told = read_sidecar(folders[2])["begun_with"]
    assert [its["folder"] for its in told] == [str(folders[1]), str(folders[0])], "the newest first"
    assert told[0]["sha256"] == files_sha256(folders[1])
    assert told[0]["trained_on"] == read_sidecar(folders[1])["trained_on"]
    assert "begun_with" not in read_sidecar(folders[0])
    checkpoint = sorted((tmp_path / "three" / "checkpoints").glob("step-*"))[-1]
    config = RunConfig.model_validate(
        {"start": str(folders[1]), "model": str(bert), "data": {"train": data}, "output": str(tmp_path / "three")}
    )
    model, _ = load(config, task_of(checkpoint), checkpoint)
    assert model.notes["default"]["begun_with"] == told, "a run that is gone on with does not begin with itself"

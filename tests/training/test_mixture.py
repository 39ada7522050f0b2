"""Training on several sources: one task, one spelling, weights, notes, resume."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from command import lora
from lora import DataConfig, LoRA, Source, fit
from lora.errors import ConfigError, DataError
from lora.model.base import load_base
from lora.tasks import from_state
from lora.training.prepare import prepare, read_rows
from small_base import labelled, stories


def put(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(*sources: Any, **settings: Any) -> Any:
    return read_rows(list(sources), None, DataConfig(**settings), 0)


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """The same kind of rows under two spellings."""
    first = put(tmp_path / "a.jsonl", labelled(40, 1))
    with (tmp_path / "b.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["category", "text", "Review"])
        writer.writerows([row["label"], "noise", row["text"]] for row in labelled(20, 2))
    return first, str(tmp_path / "b.csv")


def test_spellings_become_one_and_places_stay(files: tuple[str, str]) -> None:
    first, second = files
    found = read(first, Source(path=second, weight=0.5, columns={"text": "review"}), held_out=0.25)
    assert found.task.state() == {
        "task": "classification", "text": "text", "text_pair": None, "label": "label",
        "labels": ["bird", "cat", "dog"], "label_kind": "str",
    }  # fmt: skip
    assert all(set(row) == {"text", "label"} and row["text"] != "noise" for row in [*found.train, *found.held])
    origins = {(Path(row.origin.name).name, row.origin.unit) for row in found.train}
    assert origins == {("a.jsonl", "line"), ("b.csv", "line")}
    assert len(found.held) == 15 and sum(row.origin.name == second for row in found.held) == 5
    assert found.shares == [(30, 1.0), (15, 0.5)] and [s["weight"] for s in found.sources] == [1.0, 0.5]
    notes = "\n".join(found.notes)
    assert "column 'Review' is read as 'text', column 'category' is read as 'label'; 'text'" not in notes
    assert "column 'Review' is read as 'text', column 'category' is read as 'label'." in notes
    assert "An epoch takes 30 rows of a.jsonl, 8 rows of b.csv (of 15): 79%, 21%." in notes


def test_a_row_at_fault_is_named_by_its_own_file(files: tuple[str, str], tmp_path: Path) -> None:
    rows = labelled(10, 3)
    rows[4]["text"] = " "
    broken = put(tmp_path / "c.jsonl", rows)
    with pytest.raises(DataError, match=rf"{broken}.*\n.*text is empty: line 5"):
        read(files[0], broken)


def test_sources_must_agree(files: tuple[str, str], tmp_path: Path) -> None:
    scores = put(tmp_path / "c.jsonl", [{"text": f"t {n}", "label": n / 7} for n in range(20)])
    with pytest.raises(DataError, match=r"(?s)are for different tasks.*a\.jsonl: Task classification.*Task regression"):
        read(files[0], scores)
    pairs = put(tmp_path / "d.jsonl", [{**row, "text_pair": "b"} for row in labelled(10)])
    with pytest.raises(DataError, match="unlike columns .text_pair in one of them only."):
        read(files[0], pairs)
    with pytest.raises(DataError, match=r"(?s)c\.jsonl: .*no column 'x'.*d\.jsonl: .*no column 'y'"):
        read(Source(path=scores, columns={"text": "x"}), Source(path=pairs, columns={"text": "y"}))


def test_an_optional_column_may_be_in_one_source_alone(tmp_path: Path) -> None:
    first = put(tmp_path / "a.jsonl", [{"instruction": f"do {n}", "output": "cat"} for n in range(9)])
    second = put(
        tmp_path / "b.jsonl", [{"prompt": f"say {n}", "context": "dog", "completion": "x", "z": 1} for n in range(9)]
    )
    found = read(first, second, held_out=0)
    state = found.task.state()
    assert (state["prompt"], state["context"], state["completion"]) == ("instruction", "context", "output")
    assert found.train[-1] == {"instruction": "say 8", "context": "dog", "output": "x"}


def test_a_known_task_is_held_to(files: tuple[str, str]) -> None:
    state = {**read(files[0]).task.state(), "text": "body"}
    own = {"text": "text", "label": "label"}
    task = from_state(state)
    sources = [
        Source(path=files[0], columns=own),
        Source(path=files[1], columns={"text": "review", "label": "Category"}),
    ]
    found = read_rows(sources, False, DataConfig(), 0, task)
    assert found.task.state() == state and len(found.train) == 60
    assert all(set(row) == {"body", "label"} for row in found.train)
    with pytest.raises(DataError, match=r"b\.csv: no row has the column 'body', 'label'"):
        read_rows([sources[0], files[1]], False, DataConfig(), 0, task)


def test_double_rows_are_told_and_held_out_together(tmp_path: Path) -> None:
    rows = labelled(60, 1)
    first, second = put(tmp_path / "a.jsonl", rows), put(tmp_path / "b.jsonl", rows[:30] + labelled(20, 5))
    found = read(first, second, held_out=0.3)
    texts = {row["text"] for row in found.held}
    assert texts and not texts & {row["text"] for row in found.train}
    kept = sum(row.origin.name == second and row in rows for row in found.train)
    assert any(f"{kept} of the" in note and "stand in a.jsonl too" in note for note in found.notes)


def test_plain_texts_of_another_source_are_not_held_out(tmp_path: Path) -> None:
    texts = [{"text": f"story {n} about a cat and a dog"} for n in range(120)]
    found = read(put(tmp_path / "a.jsonl", texts), put(tmp_path / "b.jsonl", [*texts[:60], {"text": "x y"}]))
    held = {row["text"] for row in found.held}
    assert held and not held & {row["text"] for row in found.train}
    assert len(found.train) + len(found.held) == 181


def test_validation_that_one_source_brings(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    put(tmp_path / "one" / "train.jsonl", labelled(30, 1))
    put(tmp_path / "one" / "dev.jsonl", labelled(6, 2))
    found = read(str(tmp_path / "one"), put(tmp_path / "b.jsonl", labelled(40, 3)), held_out=0.25)
    assert [sum("dev" in r.origin.name for r in found.held), len(found.held), len(found.train)] == [6, 16, 60]


def test_examples_are_counted_by_source(llama: Path, tmp_path: Path) -> None:
    first = put(tmp_path / "a.jsonl", [{"text": "cat dog bird " * 20} for _ in range(3)])
    second = put(tmp_path / "b.jsonl", [{"text": f"cat dog sun {word}"} for word in ("red", "blue")])
    model = LoRA(load_base(str(llama), "AutoModelForCausalLM", torch.float32), rank=2)
    rows = read(first, f"{second}#x2", held_out=0)
    prepared = prepare(model, rows, max_length=16)
    assert prepared.train.shares == [(12, 1.0), (2, 2.0)] and len(prepared.train) == 14
    assert "3 of 5 rows were longer than 16 tokens and became 12 examples." in prepared.notes
    assert [example["row"] for example in prepared.train.examples][-2:] == [3, 4]
    alone = prepare(model, read_rows([dict(row) for row in rows.train], False, DataConfig(), 0), max_length=16)
    assert alone.train.examples == prepared.train.examples and alone.digest != prepared.digest


def test_fit_takes_sources_and_resumes_with_the_same_weights(llama: Path, tmp_path: Path) -> None:
    first, second = put(tmp_path / "a.jsonl", stories(24, 1)), put(tmp_path / "b.jsonl", stories(24, 2))

    def run(folder: str, weight: float, **more: Any) -> Any:
        model = LoRA(load_base(str(llama), "AutoModelForCausalLM", torch.float32), rank=2)
        sources = [first, Source(path=second, weight=weight)]
        return fit(model, sources, False, output_dir=tmp_path / folder, batch_size=8, epochs=2, learning_rate=1e-2,
                   save_every=2, progress=False, **more)  # fmt: skip

    whole = run("whole", 0.5)
    assert whole.steps == 2 * 5  # 24 + 12 rows in batches of 8
    for later in (tmp_path / "whole" / "checkpoints").glob("step-*10"):
        shutil.rmtree(later)
    again = run("whole", 0.5, resume=True)
    losses = [[entry["loss"] for entry in result.history if "loss" in entry] for result in (whole, again)]
    assert losses[0] == losses[1]
    with pytest.raises(ConfigError, match="training data"):
        run("whole", 0.25, resume=True)


def test_nothing_depends_on_what_is_kept(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lora.tasks.encoding.FEWEST", 1)

    def run(cache: str | bool, **more: Any) -> Any:
        torch.manual_seed(0)  # of A
        model = LoRA(load_base(str(llama), "AutoModelForCausalLM", torch.float32), rank=2)
        return fit(
            model, stories(24), output_dir=tmp_path / f"run{bool(cache)}", data=DataConfig(cache=cache), batch_size=8,
            epochs=2, learning_rate=1e-2, save_every=2, keep_checkpoints=9, progress=False, **more,
        )  # fmt: skip

    kept, fresh = run(str(tmp_path / "cache")), run(False)
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 2, "training and held-out rows"
    losses = [[entry["loss"] for entry in result.history if "loss" in entry] for result in (kept, fresh)]
    assert losses[0] == losses[1] and kept.best_value == fresh.best_value
    shutil.rmtree(tmp_path / "runTrue" / "checkpoints" / f"step-{kept.steps:08d}")
    shutil.rmtree(tmp_path / "cache")
    again = run(str(tmp_path / "cache"), resume=True)
    assert [entry["loss"] for entry in again.history if "loss" in entry] == losses[0]


def test_by_the_command(llama: Path, tmp_path: Path) -> None:
    put(tmp_path / "a.jsonl", stories(24, 1))
    put(tmp_path / "b.jsonl", stories(16, 2))
    command = ["train", "--model", str(llama), "-o", "run", "--max-steps", "2"]
    done = lora(*command, "--data", "a.jsonl", "--data", "b.jsonl#8x0.5", "--rank", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [(Path(s["name"]).name, s["weight"]) for s in report["data"]["sources"]] == [
        ("a.jsonl", 1.0),
        ("b.jsonl", 0.5),
    ]
    assert "An epoch takes" in done.stderr
    train = report["config"]["data"]["train"]
    assert train[0] == str(tmp_path / "a.jsonl") and train[1]["path"] == f"{tmp_path / 'b.jsonl'}#8"
    again = lora("train", "--resume", str(tmp_path / "run"), cwd=tmp_path.parent)
    assert again.returncode == 0 and "All 2 steps had been taken" in again.stderr, again.stderr

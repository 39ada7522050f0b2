"""A whole cross-validation on tiny models: each run as it is alone, figures by hand, ablations, choices, refusals."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

import lora
from lora import LoRA, RunConfig, fit
from lora.cross_validation.cross_validate import FoldRows
from lora.cross_validation.material import Material
from lora.cross_validation.result import CrossValidationResult
from lora.data.folds import k_folds, together
from lora.errors import ConfigError, DataError, TrainingError
from lora.model.base import load_base
from small_base import WORDS, labelled, tagged, write_jsonl

TRAINING = {"max_steps": 4, "batch_size": 8, "dtype": "float32", "learning_rate": 3e-3}


def numbers(count: int = 60) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [{"text": " ".join(draw.choices(WORDS, k=4)), "label": draw.gauss(7, 5) + 0.5} for _ in range(count)]


def sets_of_labels(count: int = 60) -> list[dict[str, Any]]:
    draw = random.Random(0)
    return [
        {"text": " ".join(draw.choices(WORDS, k=4)), "labels": draw.sample(["a", "b", "c"], draw.randint(1, 2))}
        for _ in range(count)
    ]


def settings(base: Path, folder: Path, rows: list[dict[str, Any]] | None = None, **values: Any) -> RunConfig:
    folder.mkdir(exist_ok=True)
    data = write_jsonl(folder / "rows.jsonl", labelled(60, longest=4) if rows is None else rows)
    training = {**TRAINING, **values.pop("training", {})}
    return RunConfig.make({
        "model": str(base), "output": str(folder / "out"), "at_once": 4, "training": training,
        "data": {"train": str(data), **values.pop("data", {})}, **values,
    })  # fmt: skip


def validate(base: Path, folder: Path, rows: list[dict[str, Any]] | None = None, **asked: Any) -> CrossValidationResult:
    return lora.cross_validate(settings(base, folder, rows), progress=False, **asked)


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def found(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> CrossValidationResult:
    return validate(
        bert, tmp_path_factory.mktemp("cv"), folds=5, seeds=2, keep_adapters=True, shares=[0.5, 1.0],
        ablate={"adapter.rank": [1, 32]},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "auto_class", "options"),
    [
        (labelled(60, longest=4), "AutoModelForSequenceClassification", {"num_labels": 3}),
        (numbers(), "AutoModelForSequenceClassification", {"num_labels": 1}),
        (sets_of_labels(), "AutoModelForSequenceClassification", {"num_labels": 3}),
        (tagged(60, longest=4), "AutoModelForTokenClassification", {"num_labels": 5}),
    ],
    ids=["classes", "numbers", "sets of labels", "tags"],
)
def test_each_fold_is_trained_as_alone_on_its_training_rows(
    bert: Path, tmp_path: Path, rows: list[dict[str, Any]], auto_class: str, options: dict[str, Any]
) -> None:
    """To the last bit the same as `fit` on those rows alone, which never sees the held-out ones: nothing is fitted on
    them, be it the mean and spread of a number."""
    validate(bert, tmp_path, rows, folds=3, seeds=2, keep_adapters=True)
    said = lines_of(tmp_path / "out" / "predictions.jsonl")
    for fold in (1, 2, 3):
        held = {line["row"] for line in said if line["fold"] == fold}
        train = [row for number, row in enumerate(rows, start=1) if number not in held]
        for seed in (0, 1):
            torch.manual_seed(0)
            model = LoRA(load_base(str(bert), auto_class, torch.float32, options), None)
            job = lora.Job(train, False, training={**TRAINING, "seed": seed, "eval_every": None})
            fit(model, {"alone": job}, output_dir=tmp_path / f"alone{fold}{seed}", progress=False)
            alone = load_file(tmp_path / f"alone{fold}{seed}" / "alone" / "adapter" / "adapter_model.safetensors")
            place = tmp_path / "out" / "runs" / f"repeat1-fold{fold}-seed{seed}" / "adapter"
            together_ = load_file(place / "adapter_model.safetensors")
            assert alone.keys() == together_.keys()
            for key, value in alone.items():
                assert torch.equal(value, together_[key]), (fold, seed, key)


def test_figures_are_those_of_the_answers(found: CrossValidationResult) -> None:
    said = lines_of(found.output / "predictions.jsonl")
    assert len(said) == 120 and found.rows == {"all": 60, "held_out": 60}
    assert Counter(line["row"] for line in said) == dict.fromkeys(range(1, 61), 2), "each once for each seed"
    assert Counter((line["fold"], line["true"]) for line in said) == {
        (fold, name): 8 for fold in range(1, 6) for name in ("cat", "dog", "bird")
    }
    right = {(line["row"], line["seed"]): line["true"] == line["label"] for line in said}
    its = found.configuration
    assert its.pooled["accuracy"].value == pytest.approx(np.mean(list(right.values())))
    assert its.pooled["accuracy"].units == 60, "a row is drawn with the answers of all its runs"
    by_fold = [np.mean([its == "x" or line["true"] == line["label"] for line in said if line["fold"] == fold])
               for fold in range(1, 6)]  # fmt: skip
    assert [own["accuracy"] for own in its.by_fold.values()] == pytest.approx(by_fold)
    mean = its.means["accuracy"]
    assert mean.value == pytest.approx(np.mean(by_fold)) and mean.folds == 5
    assert its.ratio == pytest.approx(1 / 4)
    assert its.by_seed.keys() == {0, 1}


def test_shares_and_ablations(found: CrossValidationResult, bert: Path, tmp_path: Path) -> None:
    assert [its.setup.share for its in found.shares] == [0.5, 1.0]
    assert set(found.shares[0].train.values()) == {24} and set(found.shares[1].train.values()) == {48}
    assert [its.setup.name for its in found.ablations] == ["adapter.rank=1"], "rank 32 is what stands, and is said"
    assert "adapter.rank 32 is the configuration as it stands." in found.notes
    its = found["adapter.rank=1"]
    assert its.against is not None and its.against.comparisons == 1 and its.against.n == 120
    assert its.against_folds is not None and its.against_folds.folds == 5
    differences = [own["f1_macro"] - found.configuration.by_fold[name]["f1_macro"] for name, own in its.by_fold.items()]
    assert its.against_folds.value == pytest.approx(np.mean(differences))
    alone = lora.cross_validate(
        settings(bert, tmp_path, adapter={"rank": 1}), folds=5, seeds=2, progress=False
    )  # fmt: skip
    for key in ("loss", "f1_macro", "auroc"):
        assert alone.configuration.pooled[key] == its.pooled[key], "an ablation is the configuration with that value"


def test_files(found: CrossValidationResult) -> None:
    told = json.loads((found.output / "cv.json").read_text())
    assert told["format"] == 1 and told["metric"]["key"] == "f1_macro"
    assert told["configuration"]["metrics"]["accuracy"]["pooled"]["n"] == 120
    assert len(told["configuration"]["folds"]) == 5 and told["configuration"]["folds"][0]["held_out"] == 12
    text = (found.output / "cv.md").read_text()
    for heading in ("5 folds, 2 seeds", "Folds", "Learning curve", "Ablations", "Labels in doubt", "Protocol"):
        assert f"## {heading}" in text, heading
    assert (found.output / "runs" / "share0.5-repeat1-fold2-seed1" / "adapter" / "adapter_config.json").is_file()
    assert not list(found.output.glob("runs/*/checkpoints"))
    assert len(found.tables()) == 5


def test_adapters_go_unless_they_are_to_stay(bert: Path, tmp_path: Path) -> None:
    validate(bert, tmp_path, folds=2)
    assert not list((tmp_path / "out").glob("runs/*/adapter"))
    assert len(list((tmp_path / "out").glob("runs/*/out_of_fold.json"))) == 2


def test_groups_and_equal_inputs_are_drawn_together(bert: Path, tmp_path: Path) -> None:
    rows = [{**row, "author": f"a{number // 5}"} for number, row in enumerate(labelled(60, longest=4))]
    rows[59]["text"] = rows[0]["text"].upper()
    found = validate(bert, tmp_path, rows, folds=3, repeats=2, group_column="author")
    said = lines_of(found.output / "predictions.jsonl")
    assert Counter(line["row"] for line in said) == dict.fromkeys(range(1, 61), 2), "once in each repeat"
    for repeat in (1, 2):
        fold_of = {line["row"]: line["fold"] for line in said if line["repeat"] == repeat}
        for start in range(1, 61, 5):
            assert len({fold_of[row] for row in range(start, start + 5)}) == 1
        assert fold_of[1] == fold_of[60]
    assert found.configuration.pooled["accuracy"].units == 11, "12 authors, two of whom share an input"
    assert "rows of one author stay on one side" in found.protocol[0]


def test_a_group_that_fills_folds_is_told_of(bert: Path, tmp_path: Path) -> None:
    rows = [
        {**row, "author": "one" if number < 40 else f"{number}"} for number, row in enumerate(labelled(60, longest=4))
    ]
    found = validate(bert, tmp_path, rows, folds=3, group_column="author")
    assert sorted(found.configuration.held.values()) == [10, 10, 40]
    assert any("Folds hold out 10 to 40 rows: 40 of 60 rows hang together" in note for note in found.protocol)


def test_by_time(bert: Path, tmp_path: Path) -> None:
    rows = [{**row, "day": f"2024-03-{1 + number % 20:02d}"} for number, row in enumerate(labelled(60, longest=4))]
    found = validate(bert, tmp_path, rows, folds=3, time_column="day")
    said = lines_of(found.output / "predictions.jsonl")
    held = {line["row"]: line["fold"] for line in said}
    assert found.rows == {"all": 60, "held_out": len(held)} and len(held) == 45
    days = {fold: {rows[row - 1]["day"] for row, its in held.items() if its == fold} for fold in (1, 2, 3)}
    assert max(days[1]) < min(days[2]) and max(days[2]) < min(days[3])
    assert list(found.configuration.train.values()) == [15, 30, 45]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=20, max_size=60),
    st.lists(st.sampled_from([0.2, 0.4, 0.7, 0.9]), min_size=1, unique=True), st.sampled_from([0.0, 0.2]),
    st.booleans(),
)  # fmt: skip
def test_smaller_shares_lie_within_larger_and_no_held_out_row_chooses(
    rows: list[tuple[str, int]], shares: list[float], inner: float, by_time: bool
) -> None:
    units = together([row[1] for row in rows])
    if units.max() + 1 < 8:
        return
    material = Material.__new__(Material)
    material.units, material.strata = units, [[row[0]] for row in rows]
    material.seed, material.inner = 0, inner
    for fold in k_folds(units, material.strata, 3, 1, 0):
        before = set(fold.train.tolist())
        for share in sorted(shares, reverse=True):
            try:
                own = material.training_rows(fold, share, shares)
            except DataError as error:
                assert "are none" in str(error)
                return
            assert set(own.tolist()) <= before
            before = set(own.tolist())


def test_a_checkpoint_is_chosen_on_training_rows(bert: Path, tmp_path: Path) -> None:
    """Patience divides the fold's own training rows; without it nothing is measured while a run trains."""
    rows = [{**row, "who": f"{number // 2}"} for number, row in enumerate(labelled(60, longest=4))]
    config = settings(bert, tmp_path, rows, training={"patience": 1, "eval_every": 2}, data={"held_out": 0.2})
    found = lora.cross_validate(config, folds=3, group_column="who", keep_adapters=True, progress=False)
    assert "20% of each fold's training rows choose its checkpoint, and are not trained on." in found.protocol
    said = lines_of(found.output / "predictions.jsonl")
    for fold in (1, 2, 3):
        place = found.output / "runs" / f"repeat1-fold{fold}-seed0"
        assert any("eval" in line for line in lines_of(place / "metrics.jsonl"))
        held = sum(line["fold"] == fold for line in said)
        assert found.configuration.train[f"repeat1-fold{fold}"] == pytest.approx(0.8 * (60 - held), abs=3)
    plain = validate(bert, tmp_path / "plain", rows, folds=3)
    for file in plain.output.glob("runs/*/metrics.jsonl"):
        assert not any("eval" in line for line in lines_of(file))
    assert "The last step of each run is taken; nothing is chosen on held-out rows." in plain.protocol


def test_changed_labels_are_doubted(bert: Path, tmp_path: Path) -> None:
    """A task that the model learns, with six labels changed: these lead the list."""
    rows = labelled(120, longest=3)
    wrong = {5, 23, 47, 61, 88, 110}
    for number in wrong:
        rows[number]["label"] = {"cat": "dog", "dog": "bird", "bird": "cat"}[rows[number]["label"]]
    config = settings(bert, tmp_path, rows, training={"max_steps": 80, "learning_rate": 5e-3}, adapter={"rank": 8})
    found = lora.cross_validate(config, folds=4, progress=False)
    assert found.configuration.pooled["accuracy"].value > 0.55, "twice as often as by chance"
    assert found.label_errors is not None
    first = {line["row"] - 1 for line in found.label_errors[:8]}
    assert len(first & wrong) >= 5, found.label_errors
    line = found.label_errors[0]
    assert line["margin"] == pytest.approx(line["p_suggested"] - line["p_label"]) and line["label"] != line["suggested"]
    assert lines_of(found.output / "label_errors.jsonl") == found.label_errors


def test_labels_in_doubt_of_words_and_of_sets(bert: Path, tmp_path: Path) -> None:
    rows = tagged(60, longest=4)
    found = validate(bert, tmp_path / "tags", rows, folds=2, repeats=2)
    assert found.label_errors
    for line in found.label_errors:
        own = rows[line["row"] - 1]
        assert own["tokens"][line["at"]] == line["word"] and own["tags"][line["at"]] == line["label"]
    rows = sets_of_labels()
    found = validate(bert, tmp_path / "sets", rows, folds=2)
    assert found.label_errors
    for line in found.label_errors:
        assert line["given"] == (line["label"] in rows[line["row"] - 1]["labels"])
    assert validate(bert, tmp_path / "numbers", numbers(), folds=2).label_errors is None


def test_settings_are_chosen_on_training_rows_alone(bert: Path, tmp_path: Path) -> None:
    seen: dict[str, FoldRows] = {}

    def choose(fold: FoldRows) -> dict[str, Any]:
        seen[fold.name] = fold
        assert fold.prepared.held is None and fold.prepared.test is None
        fold.model.add_adapter("tried")
        return {"training.learning_rate": 1e-3 if fold.name.endswith("fold1") else 5e-3, "adapter.rank": 2}

    found = validate(bert, tmp_path, folds=2, choose=choose, keep_adapters=True)
    rows, said = labelled(60, longest=4), lines_of(tmp_path / "out" / "predictions.jsonl")
    for name, its in seen.items():
        held = {rows[line["row"] - 1]["text"] for line in said if f"fold{line['fold']}" in name}
        assert {row["text"] for row in its.rows}.isdisjoint(held) and len(its.rows) == 30 == its.prepared.train.rows
    assert found.chosen["repeat1-fold2"] == {"training.learning_rate": 5e-3, "adapter.rank": 2}
    kept = json.loads(
        (tmp_path / "out" / "runs" / "repeat1-fold2-seed0" / "adapter" / "adapter_config.json").read_text()
    )
    assert kept["r"] == 2
    again = lora.cross_validate(tmp_path / "out", resume=True, progress=False)
    assert again.to_dict() == found.to_dict(), "what was chosen is known"
    with pytest.raises(ConfigError, match=r"choose: gave data.train; settings of adapter and training alone"):
        validate(bert, tmp_path / "other", folds=2, choose=lambda fold: {"data.train": "x"})
    with pytest.raises(ConfigError, match="nothing is chosen for repeat1-fold1 yet; give choose="):
        lora.cross_validate(tmp_path / "other" / "out", resume=True, progress=False)


def test_the_choice_of_the_documentation(bert: Path, tmp_path: Path, monkeypatch: Any) -> None:
    text = (Path(__file__).parents[2] / "docs" / "cross-validation.md").read_text(encoding="utf-8")
    (code,) = [part.partition("```")[0] for part in text.split("```python")[1:] if "def choose" in part]
    found: dict[str, Any] = {"lora": lora, "config": settings(bert, tmp_path, training={"max_steps": 2})}
    whole = lora.cross_validate
    monkeypatch.setattr(lora, "cross_validate", lambda *given, **asked: found.update(
        result=whole(*given, folds=2, progress=False, **asked)))  # fmt: skip
    monkeypatch.setattr(lora, "fit", lambda *given: fit(*given, max_steps=2, batch_size=8, progress=False))
    exec(code, found)
    chosen = found["result"].chosen
    assert chosen.keys() == {"repeat1-fold1", "repeat1-fold2"}
    assert all(its["training.learning_rate"] in (3e-4, 3e-3) for its in chosen.values())


def test_a_run_that_diverges(bert: Path, tmp_path: Path) -> None:
    found = lora.cross_validate(
        settings(bert, tmp_path, training={"clip": None}), folds=2, ablate={"training.learning_rate": [1e30]},
        progress=False,
    )  # fmt: skip
    error = found["training.learning_rate=1e+30"].error
    assert error is not None and "was stopped in training: step " in error
    assert "| training.learning_rate=1e+30 | stopped |" in found.to_markdown()
    with pytest.raises(TrainingError, match="came to nothing: repeat1-fold1-seed0 was stopped in training"):
        lora.cross_validate(
            settings(bert, tmp_path / "all", training={"clip": None, "learning_rate": 1e30}), folds=2, progress=False
        )


def test_a_language_model(llama: Path, tmp_path: Path) -> None:
    from small_base import stories

    found = validate(llama, tmp_path, stories(40), folds=2)
    assert found.key == "loss" and found.configuration.pooled["loss"].value > 1 and found.label_errors is None
    assert len(lines_of(found.output / "predictions.jsonl")) == 40


@pytest.mark.parametrize(
    ("asked", "config", "said"),
    [
        ({"folds": 30}, {}, "3 classes with fewer different inputs than folds .30.: 'bird' .20., 'cat' .20."),
        ({"folds": 61, "stratify": False}, {}, "61 folds of 60 groups of rows"),
        ({"group_column": "who"}, {}, "group_column: there is no column 'who'; there are text, label"),
        ({"time_column": "text"}, {}, "time_column: column 'text' holds no number and no date such as"),
        ({"group_column": "label"}, {}, "'label' divides the rows into 3 groups, too few for 5 folds"),
        ({"time_column": "label", "repeats": 2}, {}, "repeats: by time there is one division alone"),
        ({"ablate": {"rank": [1]}}, {}, "rank: name a setting in full, as in adapter.rank"),
        ({"ablate": {"adapter.rnk": [1]}}, {}, "adapter.rnk: unknown setting; did you mean 'rank'"),
        ({"ablate": {"adapter.rank": ["x"]}}, {}, "adapter.rank: "),
        ({"ablate": {"adapter.targets": ["nothing_such"]}}, {}, "nothing_such"),
        ({"shares": [0.01]}, {}, "shares: 0.01 of the 48 training rows of repeat1-fold1 are none"),
        ({"ablate": {"training.seed": [1]}}, {}, "that is what seeds is for"),
        ({"shares": [0]}, {}, "each must be above 0 and at most 1"),
        ({"metric": "rmse"}, {}, "metric: 'rmse' is not measured for the task classification"),
        ({}, {"data": {"validation": "x.jsonl"}}, "data.validation: its validation rows are the folds"),
        ({}, {"data": {"held_out": 0}, "training": {"patience": 1}}, "nothing tells patience when to stop"),
        ({}, {"training": {"patience": 1, "eval_every": None}}, "without evaluations nothing chooses a checkpoint"),
        ({"choose": lambda fold: {}, "shares": [0.1]}, {}, "would flatter the smaller shares"),
        ({"folds": 1}, {}, "folds: must be greater than or equal to 2"),
    ],
)  # fmt: skip
def test_what_is_refused(bert: Path, tmp_path: Path, asked: dict[str, Any], config: dict[str, Any], said: str) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        lora.cross_validate(settings(bert, tmp_path, **config), progress=False, **asked)
    assert not (tmp_path / "out").exists(), "nothing is written before everything has been checked"


def test_rare_classes_are_measured_if_that_is_asked_for(bert: Path, tmp_path: Path) -> None:
    rows = [*labelled(57, longest=4), {"text": "now then here", "label": "moon"}]
    with pytest.raises(DataError, match="1 class with fewer different inputs than folds .2.: 'moon' .1."):
        validate(bert, tmp_path, rows, folds=2)
    found = validate(bert, tmp_path, rows, folds=2, stratify=False)
    assert found.rows["held_out"] == 58


def test_a_folder_that_is_used(bert: Path, tmp_path: Path) -> None:
    found = validate(bert, tmp_path, folds=2)
    with pytest.raises(ConfigError, match="already holds a cross-validation"):
        validate(bert, tmp_path, folds=2)
    again = lora.cross_validate(settings(bert, tmp_path), folds=3, overwrite=True, progress=False)
    assert len(list(found.output.glob("runs/*"))) == 3 and len(again.configuration.by_fold) == 3
    write_jsonl(tmp_path / "rows.jsonl", labelled(60, seed=5, longest=4))
    with pytest.raises(ConfigError, match="was trained on other rows, or with other settings"):
        lora.cross_validate(found.output, resume=True, progress=False)
    (tmp_path / "mine" / "runs").mkdir(parents=True)
    config = settings(bert, tmp_path)
    config.output = str(tmp_path / "mine")
    with pytest.raises(ConfigError, match="holds runs, which no cross-validation made"):
        lora.cross_validate(config, folds=2, progress=False)

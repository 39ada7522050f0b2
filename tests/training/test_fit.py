"""fit(): it learns, leaves the base alone, and each setting has its effect."""

import json
import math

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from lora import LoRA, fit
from lora.config import TrainingConfig
from lora.errors import ConfigError, DataError, ModelError, TrainingError
from lora.tasks import TASKS
from lora.training.job import Job
from lora.training.prepare import prepare, read_rows
from lora.training.trainee import greater_is_better
from small_base import labelled, stories


def classifier(folder, seed=0, **adapter):
    torch.manual_seed(seed)
    base = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    return LoRA(base, rank=4, **adapter)


def parameters(model, name="default"):
    return {key: p.detach().clone() for key, p in model.adapter_parameters(name).items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_learns_and_writes_the_run(bert, tmp_path):
    model = classifier(bert)
    frozen = {name: p.clone() for name, p in model.base.named_parameters() if not p.requires_grad}
    result = fit(model, labelled(240, longest=2), output_dir=tmp_path / "run", epochs=30, learning_rate=3e-3)
    assert result.best_value > 0.9
    losses = [entry["loss"] for entry in result.history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(p, frozen[name]) for name, p in model.base.named_parameters() if name in frozen)
    assert any("held" in note.lower() for note in result.notes), "the split must be said"
    for name in ("adapter/adapter_model.safetensors", "adapter/lora.json", "metrics.jsonl", "checkpoints/best"):
        assert (tmp_path / "run" / name).exists(), name
    assert list((tmp_path / "run" / "tensorboard").glob("events*"))
    sidecar = json.loads((tmp_path / "run/adapter/lora.json").read_text())
    assert sidecar["task"]["task"] == "classification"


def test_saved_adapter_is_the_best_checkpoint(bert, tmp_path):
    model = classifier(bert)
    result = fit(
        model,
        labelled(60),
        labelled(30, seed=1),
        output_dir=tmp_path / "run",
        epochs=6,
        learning_rate=2e-2,
        batch_size=8,
    )
    fresh = LoRA(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), name=None)
    fresh.load_adapter(tmp_path / "run" / "adapter", "default")
    assert same(parameters(model), parameters(fresh))
    best = max(entry["eval"]["f1_macro"] for entry in result.history if "eval" in entry)
    assert result.best_value == best


def test_same_seed_same_bits_and_other_seed_not(bert):
    runs = []
    for seed in (0, 0, 1):
        model = classifier(bert)
        fit(model, labelled(), False, epochs=1, learning_rate=1e-2, batch_size=8, seed=seed)
        runs.append(parameters(model))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_accumulation_equals_a_large_batch_whatever_the_lengths(llama):
    """Completions of unequal length: a mean of means would weigh them wrongly."""
    runs = []
    for batch_size, accumulation in ((12, 1), (3, 4)):
        torch.manual_seed(0)
        model = LoRA(AutoModelForCausalLM.from_pretrained(llama), rank=4)
        options = {"batch_size": batch_size, "accumulation": accumulation, "max_steps": 1, "length_grouped": False}
        fit(model, stories(12), False, learning_rate=1e-2, clip=None, **options)
        runs.append(parameters(model))
    # Adam's first step is a sign: compare what differs by more than the rate's rounding.
    for key in runs[0]:
        torch.testing.assert_close(runs[0][key], runs[1][key], rtol=1e-4, atol=1e-5)


def test_loss_is_normalised_by_supervised_tokens(llama):
    torch.manual_seed(0)
    model = LoRA(AutoModelForCausalLM.from_pretrained(llama), rank=4)
    rows = read_rows(stories(8), False, __import__("lora").DataConfig(), 0)
    prepared = prepare(model, rows)
    result = fit(model, [], prepared=prepared, batch_size=4, accumulation=2, max_steps=1, learning_rate=1e-3)
    total = count = 0.0
    with torch.no_grad(), model.using("base"):
        for example in prepared.train.examples:
            batch = prepared.task.collate([example], 0)
            sums, counts = prepared.task.row_losses(model(input_ids=batch["input_ids"]), batch)
            total, count = total + float(sums.sum()), count + float(counts.sum())
    assert result.history[0]["loss"] == pytest.approx(total / count, rel=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"weight_decay": 0.5}, {"label_smoothing": 0.3}, {"clip": 1e-3}, {"schedule": "cosine"},
        {"schedule": "constant"},
        {"warmup_steps": 4}, {"beta1": 0.5}, {"beta2": 0.5}, {"epsilon": 1e-2}, {"length_grouped": False},
        {"learning_rate": 5e-3},
    ],
    ids=lambda s: "-".join(s),
)  # fmt: skip
def test_each_setting_changes_the_result(bert, settings):
    runs = []
    for given in ({}, settings):
        model = classifier(bert)
        fit(
            model,
            labelled(),
            False,
            **{"epochs": 1, "learning_rate": 1e-2, "batch_size": 8, "warmup_ratio": 0.0, **given},
        )
        runs.append(parameters(model))
    assert not same(*runs)


def test_dropout_acts_in_training_alone(bert):
    runs = []
    for dropout in (0.0, 0.5):
        model = classifier(bert, dropout=dropout)
        fit(model, labelled(), False, max_steps=3, learning_rate=1e-2, batch_size=8)
        runs.append(parameters(model))
        model.eval()
        ids = torch.arange(5, 15).unsqueeze(0)
        assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not same(*runs)


def test_gradient_checkpointing_gives_the_same_bits(bert):
    runs = []
    for checkpointing in (False, True):
        model = classifier(bert)
        fit(model, labelled(), False, max_steps=3, learning_rate=1e-2, gradient_checkpointing=checkpointing)
        runs.append(parameters(model))
    assert same(*runs)


def test_early_stopping_keeps_the_best(bert):
    model = classifier(bert)
    values = iter([0.1, 0.5, 0.4, 0.3, 0.2, 0.1])
    kept = []

    def evaluate(model, name):
        kept.append(parameters(model))
        return {"mine": next(values)}

    result = fit(
        model,
        labelled(),
        epochs=6,
        batch_size=8,
        learning_rate=1e-2,
        patience=2,
        best_metric="mine",
        evaluate=evaluate,
        greater_is_better=True,
    )
    assert result.stopped_early and result.best_value == 0.5 and len(kept) == 4
    assert same(parameters(model), kept[1])


@pytest.mark.parametrize("cut", [None, 2])
def test_of_equal_values_the_lowest_loss_is_kept_also_after_a_resume(bert, tmp_path, cut):
    """(metric, loss): a lower loss never beats a better value, NaN is none, of equals the earlier stays."""
    measured = [(0.5, 0.1), (1.0, 0.9), (1.0, 0.3), (1.0, 0.3), (1.0, math.nan), (1.0, 0.4)]
    steps = []

    def evaluate(model, name):
        if len(steps) == cut and not (tmp_path / "cut").exists():
            (tmp_path / "cut").touch()
            raise RuntimeError("cut")
        steps.append(measured[len(steps)])
        return dict(zip(("mine", "loss"), steps[-1], strict=True))

    def train(resume):
        return fit(
            classifier(bert), labelled(24), labelled(6, seed=1), output_dir=tmp_path / "run", max_steps=6,
            batch_size=8, eval_every=1, save_every=1, learning_rate=1e-3, best_metric="mine", greater_is_better=True,
            patience=5, evaluate=evaluate, tensorboard=False, resume=resume,
        )  # fmt: skip

    if cut:
        with pytest.raises(RuntimeError, match="cut"):
            train(False)
    result = train(bool(cut))
    assert (result.best_value, result.best_step, result.stopped_early) == (1.0, 3, False)


def test_early_stopping_on_a_loss_takes_the_lowest(bert):
    values = iter([0.9, 0.3, 0.4, 0.5])
    result = fit(
        classifier(bert), labelled(), epochs=4, batch_size=16, best_metric="my_loss", learning_rate=1e-3,
        greater_is_better=False,
        evaluate=lambda model, name: {"my_loss": next(values)},
    )  # fmt: skip
    assert result.best_value == 0.3


def test_unknown_best_metric_lists_the_known(bert):
    with pytest.raises(ConfigError, match="accuracy"):
        fit(classifier(bert), labelled(), epochs=1, best_metric="acuracy")


def test_divergence_is_named_and_checkpoints_kept(bert, tmp_path):
    model = classifier(bert)
    with torch.no_grad():
        model.adapter_parameters("default")["bert.encoder.layer.1.output.dense.B"].fill_(float("nan"))
    before = parameters(model)
    with pytest.raises(TrainingError, match=r"step 1.*layer\.1\.output\.dense.*learning_rate"):
        fit(model, labelled(), False, output_dir=tmp_path / "run", learning_rate=1e-3)
    assert (tmp_path / "run/checkpoints/step-00000000/state.json").is_file()
    for key, value in parameters(model).items():
        assert torch.equal(value.nan_to_num(7), before[key].nan_to_num(7)), "a step with NaN must not be taken"


def test_nothing_to_train_is_an_error(bert, tmp_path):
    model = classifier(bert)
    model.save_adapter("default", tmp_path / "a")
    other = LoRA(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), name=None)
    other.load_adapter(tmp_path / "a", "a", trainable=False)
    with pytest.raises(TrainingError, match="no trainable"):
        fit(other, labelled(), False)


def test_other_adapters_are_not_touched(bert):
    model = classifier(bert)
    model.add_adapter("other", rank=2)
    before = parameters(model, "other")
    fit(model, labelled(), False, adapter="default", max_steps=2, learning_rate=1e-2)
    assert same(parameters(model, "other"), before)
    with pytest.raises(Exception, match="default, other"):
        fit(model, labelled())


def test_used_output_folder_is_not_overwritten(bert, tmp_path):
    fit(classifier(bert), labelled(), False, output_dir=tmp_path / "run", max_steps=1)
    before = (tmp_path / "run/metrics.jsonl").read_text()
    with pytest.raises(ConfigError, match="already holds a run"):
        fit(classifier(bert), labelled(), False, output_dir=tmp_path / "run", max_steps=1)
    assert (tmp_path / "run/metrics.jsonl").read_text() == before
    fit(classifier(bert), labelled(), False, output_dir=tmp_path / "run", max_steps=2, overwrite=True)
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2


def test_rows_of_the_wrong_kind(bert):
    with pytest.raises(DataError, match="row 2 is a str"):  # counted from 1, as everywhere
        fit(classifier(bert), [{"text": "a", "label": "b"}, "text"])
    with pytest.raises(DataError, match="no rows"):
        fit(classifier(bert), [])


def test_learning_rate_default_follows_the_model():
    from types import SimpleNamespace

    from lora.training.schedule import default_learning_rate, rate_at

    llama = SimpleNamespace(model_type="llama", hidden_size=2000)
    assert default_learning_rate(llama) == pytest.approx(5e-4)
    assert default_learning_rate(SimpleNamespace(model_type="llama", hidden_size=4096)) == pytest.approx(
        5e-4 * (2000 / 4096) ** 0.781
    )
    assert default_learning_rate(SimpleNamespace(model_type="qwen3", hidden_size=4096)) == pytest.approx(
        5e-4 * (2000 / 4096) ** 0.0775
    )
    assert default_learning_rate(SimpleNamespace(model_type="bert", hidden_size=384)) == 3e-4
    rates = [rate_at(step, 10, 1.0, "linear", 2) for step in range(10)]
    assert rates[:2] == [0.5, 1.0] and rates[2] == 1.0 and rates[9] == pytest.approx(1 / 8)
    assert [rate_at(s, 10, 1.0, "constant", 0) for s in range(3)] == [1.0] * 3
    assert rate_at(5, 10, 1.0, "cosine", 0) == pytest.approx(0.5 * (1 + math.cos(math.pi / 2)))


def test_the_direction_of_an_unknown_metric_must_be_said(bert):
    with pytest.raises(ConfigError, match="greater_is_better"):
        fit(classifier(bert), labelled(), best_metric="wer", evaluate=lambda model, name: {"wer": 1.0})


def test_min_improvement_counts_for_patience_and_not_for_the_best(bert):
    values = iter([0.5, 0.505, 0.508, 0.509])
    result = fit(
        classifier(bert), labelled(), epochs=4, batch_size=24, learning_rate=1e-3, best_metric="mine", patience=3,
        greater_is_better=True, min_improvement=0.01, evaluate=lambda model, name: {"mine": next(values)},
    )  # fmt: skip
    assert result.best_value == 0.509 and result.stopped_early is False


def test_overwrite_keeps_the_old_run_until_the_new_one_can_begin(bert, tmp_path):
    fit(classifier(bert), labelled(), False, output_dir=tmp_path / "run", max_steps=1)
    with pytest.raises(DataError):
        fit(classifier(bert), "nothing.jsonl", output_dir=tmp_path / "run", overwrite=True)
    assert (tmp_path / "run/adapter/adapter_model.safetensors").is_file()
    (tmp_path / "mine" / "adapter").mkdir(parents=True)
    with pytest.raises(ConfigError, match="not made by a run"):
        fit(classifier(bert), labelled(), False, output_dir=tmp_path / "mine", overwrite=True)


def test_own_evaluation_leaves_all_rows_to_training(bert):
    result = fit(
        classifier(bert), labelled(48), epochs=1, batch_size=48, learning_rate=1e-3,
        evaluate=lambda m, n: {"f1_macro": 0.5},
    )  # fmt: skip
    assert len(result.data.train) == 48


def test_a_held_out_folder_gives_its_validation_rows(bert, tmp_path):
    from small_base import write_jsonl

    write_jsonl(tmp_path / "train.jsonl", labelled(30))
    write_jsonl(tmp_path / "validation.jsonl", labelled(9, seed=3))
    result = fit(classifier(bert), labelled(24), tmp_path, max_steps=1, learning_rate=1e-3)
    assert len(result.data.held) == 9


def test_mode_is_restored_after_a_failure(bert):
    model = classifier(bert).eval()

    def evaluate(model, name):
        raise RuntimeError

    with pytest.raises(RuntimeError):
        fit(model, labelled(), epochs=1, evaluate=evaluate, learning_rate=1e-3)
    assert not model.training


def test_nothing_is_held_out_on_request(bert):
    from lora import DataConfig

    result = fit(classifier(bert), labelled(48), data=DataConfig(held_out=0), max_steps=1, learning_rate=1e-3)
    assert len(result.data.train) == 48 and result.data.held is None and result.best_value is None


def test_foreign_files_in_the_output_folder_stay(bert, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "mine.txt").write_text("mine")
    (tmp_path / "run" / "tensorboard").mkdir()
    (tmp_path / "run" / "tensorboard" / "mine.txt").write_text("mine")
    for overwrite in (False, True):
        fit(classifier(bert), labelled(), False, output_dir=tmp_path / "run", max_steps=1, overwrite=overwrite)
    assert (tmp_path / "run/checkpoints/mine.txt").is_file() and (tmp_path / "run/tensorboard/mine.txt").is_file()


def test_a_model_that_sees_what_it_is_to_predict_is_refused(bert):
    from transformers import AutoModelForMaskedLM

    model = LoRA(AutoModelForMaskedLM.from_pretrained(bert), rank=2)
    with pytest.raises(ModelError, match="BertForMaskedLM sees the tokens that it is to predict"):
        fit(model, stories(20), False, max_steps=1)


def test_a_model_for_another_task_is_refused(bert, llama):
    text = LoRA(AutoModelForCausalLM.from_pretrained(llama), rank=2)
    with pytest.raises(ModelError, match=r"task classification needs a model loaded with AutoModelForSeq.*LlamaForCau"):
        fit(text, labelled(20), False, max_steps=1)
    with pytest.raises(ModelError, match=r"task causal needs a model loaded with AutoModelForCausalLM"):
        fit(classifier(bert), stories(20), False, max_steps=1)
    with pytest.raises(ModelError, match=r"task classification needs a model loaded with"):
        fit(LoRA(AutoModel.from_pretrained(bert, num_labels=3), rank=2), labelled(20), False, max_steps=1)


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"task": "classification"}, "task: a Task is needed, not str; to name one: data=DataConfig"),
        ({"config": {"epochs": 1}}, "config: a TrainingConfig is needed, not dict"),
        ({"data": {"text_column": "x"}}, "data: a DataConfig is needed, not dict"),
        ({"tokenizer": "bert"}, "tokenizer: a tokenizer is needed"),
    ],
)
def test_arguments_of_the_wrong_kind(bert, wrong, message):
    with pytest.raises(ConfigError, match=message):
        fit(classifier(bert), labelled(20), False, **wrong)


def test_a_model_without_adapters_is_no_lora(bert):
    with pytest.raises(ConfigError, match=r"model: a LoRA is needed, as in LoRA\(base, rank=8\), not BertFor"):
        fit(classifier(bert).base, labelled(20), False)


def test_what_has_no_effect_is_said(bert):
    result = fit(classifier(bert), labelled(20), False, max_steps=1, patience=3)
    assert "Without evaluations training.patience has no effect." in result.notes
    result = fit(classifier(bert, modules_to_save=[]), labelled(20), False, max_steps=1)
    assert any("classifier.weight was made up when the base was loaded" in note for note in result.notes)
    assert not any("has no effect" in note or "made up" in note for note in fit(classifier(bert), labelled(30)).notes)


def test_the_result_does_not_print_the_data(bert):
    assert len(repr(fit(classifier(bert), labelled(40), False, max_steps=1))) < 2000


def test_labels_get_their_names_in_the_models_configuration(bert, tmp_path):
    model = classifier(bert)
    fit(model, labelled(20), False, max_steps=1, output_dir=tmp_path / "run")
    assert sorted(model.merge().config.id2label.values()) == ["bird", "cat", "dog"]
    other = LoRA(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), name=None)
    other.load_adapter(tmp_path / "run")
    assert other.config.id2label == model.config.id2label


def test_rows_as_other_libraries_have_them(bert):
    datasets = pytest.importorskip("datasets")
    numpy = pytest.importorskip("numpy")
    named = datasets.Dataset.from_list(labelled(30)).class_encode_column("label")
    assert fit(classifier(bert), named, False, max_steps=1).data.task.labels == ["bird", "cat", "dog"]
    numbers = [{"text": row["text"], "label": numpy.int64(place % 3)} for place, row in enumerate(labelled(30))]
    assert fit(classifier(bert), numbers, False, max_steps=1).data.task.label_kind == "int"
    frame = pytest.importorskip("pandas").DataFrame(labelled(30))
    assert fit(classifier(bert), frame, False, max_steps=1).data.task.labels == ["bird", "cat", "dog"]


def test_a_misspelt_label_is_not_taken_for_plain_text(llama):
    rows = [{"text": row["text"], "lable": row["label"]} for row in labelled(30)]
    with pytest.raises(DataError, match="column 'lable' looks like 'label' misspelt"):
        fit(LoRA(AutoModelForCausalLM.from_pretrained(llama), rank=2), rows, False, max_steps=1)


def test_vectors_of_zeros_and_ones_are_not_names(bert):
    for kind in (int, float, bool):
        cells = [[kind(i % 3 == k) for k in range(3)] for i in range(30)]
        rows = [{"text": row["text"], "labels": cell} for row, cell in zip(labelled(30), cells, strict=True)]
        with pytest.raises(DataError, match="lists of zeros and ones say by their places"):
            fit(classifier(bert), rows, False, max_steps=1)


def test_a_set_that_fails_is_named_and_leaves_no_adapter(bert):
    model = LoRA(AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), name=None)
    with pytest.raises(DataError, match="adapters.second: training data: "):
        fit(model, {"first": labelled(30), "second": [{"text": "a", "label": "b"}] * 3}, max_steps=1)
    assert not model.adapters
    with pytest.raises(ConfigError, match="adapters.second: rank"):
        fit(model, {"first": labelled(30), "second": Job(labelled(30), adapter={"rank": 99})}, max_steps=1)
    assert not model.adapters


def test_a_refusal_at_the_last_moment_leaves_the_run_to_be_replaced(bert, tmp_path):
    fit(classifier(bert), labelled(30), False, max_steps=1, output_dir=tmp_path / "run")

    def refuse(*_):
        raise ConfigError("not here")

    with pytest.MonkeyPatch.context() as patched, pytest.raises(ConfigError, match="not here"):
        patched.setattr("lora.training.loop.recomputing", refuse)
        fit(classifier(bert), labelled(30), False, max_steps=1, output_dir=tmp_path / "run", overwrite=True,
            gradient_checkpointing=True)  # fmt: skip
    assert (tmp_path / "run" / "adapter").is_dir() and (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("kind", TASKS)
def test_any_measure_of_a_task_can_pick_the_best(kind):
    task, _ = TASKS[kind].made_up()
    found = {key: greater_is_better(key, TrainingConfig(best_metric=key), task) for key in task.measures}
    assert task.best_metric in found and found["loss"] is False
    less = {"loss", "perplexity", "mse", "rmse", "mae", "hamming", "reward_rejected"}
    assert {key for key, more in found.items() if not more} == less & set(found)

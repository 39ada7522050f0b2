"""The real commands on a small base: train, predict, eval, merge, inspect; and what they say of bad input."""

import json

import pytest

from command import lora
from small_base import labelled, save_base, stories, write_jsonl


def fails(*arguments, **kwargs):
    """The message of a command that must fail as the user's mistake does: exit code 2, no traceback."""
    done = lora(*arguments, **kwargs)
    assert done.returncode == 2, (done.returncode, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error:") + done.stderr.count("Error:") == 1, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A base that can be taught whatever type it is loaded in.

    With BERT's usual 0.02 random layers hand on next to nothing of a word: whether an adapter then gets beyond two of
    the three labels is left to chance, and the last bit of a bfloat16 decides it.
    """
    return save_base(tmp_path_factory.mktemp("bert"), initializer_range=0.1)


@pytest.fixture(scope="module")
def run(bert, tmp_path_factory):
    """A finished run that the other tests use."""
    folder = tmp_path_factory.mktemp("job")
    data = write_jsonl(folder / "train.jsonl", labelled(240, longest=4))
    done = lora(
        "train",
        "--model",
        bert,
        "--data",
        data,
        "--output",
        folder / "run",
        "--rank",
        "4",
        "--epochs",
        "12",
        "--lr",
        "3e-3",
    )
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and str(folder / "run" / "adapter") in done.stdout.replace("\n", "")
    assert "\r" not in done.stderr, "no progress bar where output is no terminal"
    return folder / "run"


def test_run_folder(run):
    import yaml

    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["adapter"]["rank"] == 4 and config["training"]["learning_rate"] == 3e-3
    report = json.loads((run / "report.json").read_text())
    assert report and "accuracy" in (run / "report.md").read_text()


def test_predict_texts_and_files(run, tmp_path):
    done = lora("predict", run, "cat sun moon", "bird sun")
    assert done.returncode == 0, done.stderr
    labels = [json.loads(line)["label"] for line in done.stdout.splitlines()]
    assert labels == ["cat", "bird"]
    rows = write_jsonl(tmp_path / "new.jsonl", [{"text": row["text"]} for row in labelled(30, seed=9, longest=4)])
    done = lora("predict", run, "--data", rows, "--output", tmp_path / "out.jsonl")
    assert done.returncode == 0, done.stderr
    found = [json.loads(line)["label"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    expected = [row["label"] for row in labelled(30, seed=9, longest=4)]
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 28


def test_eval_prints_json_equal_to_a_count_by_hand(run, tmp_path):
    rows = labelled(30, seed=9, longest=4)
    data = write_jsonl(tmp_path / "test.jsonl", rows)
    done = lora("eval", run, "--data", data, "--json", "--no-latency")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    predictions = [json.loads(line)["label"] for line in lora("predict", run, "--data", data).stdout.splitlines()]
    accuracy = sum(p == row["label"] for p, row in zip(predictions, rows, strict=True)) / len(rows)
    assert facts["metrics"][run.name]["accuracy"] == pytest.approx(accuracy)
    assert "base" in facts["metrics"]


def test_merge_gives_a_plain_model(run, tmp_path):
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    done = lora("merge", run, "--output", tmp_path / "merged")
    assert done.returncode == 0, done.stderr
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        logits = model(**tokenizer(["cat sun moon", "bird sun"], return_tensors="pt", padding=True)).logits
    assert [model.config.id2label[i] for i in logits.argmax(-1).tolist()] == ["cat", "bird"]
    assert "not empty" in fails("merge", run, "--output", tmp_path / "merged")


def test_inspect_adapter_and_base(run, bert):
    facts = json.loads(lora("inspect", run, "--json").stdout)
    assert facts["rank"] == 4 and facts["task"]["labels"] == ["bird", "cat", "dog"]
    facts = json.loads(lora("inspect", bert, "--json", "--rank", "4").stdout)
    assert facts["presets"]["all-linear"].startswith("13 modules")


def test_causal_job_from_csv_with_yaml_and_overrides(llama, tmp_path):
    rows = stories(40)
    lines = ["prompt,completion"] + [f"{row['prompt']},{row['completion']}" for row in rows]
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    (tmp_path / "job.yaml").write_text(
        f"model: {llama}\ndata: {tmp_path / 'data.csv'}\noutput: {tmp_path / 'run'}\n"
        "adapter: {r: 4, lora_alpha: 8}\ntraining: {num_train_epochs: 9, lr: 0.001}\n"
    )
    done = lora("train", tmp_path / "job.yaml", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert "perplexity" in done.stdout
    config = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (4, 8, "CAUSAL_LM")
    done = lora("predict", tmp_path / "run", "red sun", "--max-new-tokens", "3")
    assert done.returncode == 0 and "completion" in json.loads(done.stdout)


BAD_FILES = {
    "empty": (b"", "empty"),
    "broken line": (b'{"text": "a", "label": "x"}\n{"text": "b", "label": \n', "line 2"),
    "columns": (b'{"foo": 1, "bar": 2}\n' * 5, "foo"),
    "one class": (b'{"text": "a b", "label": "x"}\n{"text": "b c", "label": "x"}\n' * 5, "x"),
    "missing label": (b'{"text": "a", "label": "x"}\n{"text": "b", "label": null}\n{"text": "c", "label": "y"}\n', "2"),
    "NaN": (b'{"text": "a", "label": 0.5}\n{"text": "b", "label": NaN}\n{"text": "c", "label": 1.5}\n', "2"),
    "encoding": (b'{"text": "caf\xe9", "label": "x"}\n', "UTF-8"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(bert, tmp_path, name):
    content, word = BAD_FILES[name]
    (tmp_path / "data.jsonl").write_bytes(content)
    message = fails("train", "-m", bert, "-d", tmp_path / "data.jsonl", "-o", tmp_path / "run", "--rank", "4")
    assert word in message
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--rank", "0"], "rank"),
        (["--rank", "1000"], "size"),
        (["--alpha", "0"], "alpha"),
        (["--targets", "q_proj"], "query"),
        (["--variant", "nope"], "dora"),
        (["--max-length", "5000"], "5000"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--model", "./nowhere"], "nowhere"),
        (["--epocs", "3"], "epochs"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_bad_settings(bert, tmp_path, options, word):
    data = write_jsonl(tmp_path / "data.jsonl", labelled(30))
    message = fails("train", "-m", bert, "-d", data, "-o", tmp_path / "run", "--rank", "4", *options)
    assert word in message


def test_adapter_for_another_base(run, tmp_path):
    import torch
    from transformers import BertModel

    other = save_base(tmp_path / "other")
    model = BertModel.from_pretrained(other)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight += 1
    model.save_pretrained(other)
    message = fails("predict", run, "cat", "--model", other)
    assert "other base weights" in message and "--allow-other-base" in message
    assert lora("predict", run, "cat", "--model", other, "--allow-other-base").returncode == 0


def test_a_used_output_folder_is_kept(run, bert, tmp_path):
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    data = write_jsonl(tmp_path / "data.jsonl", labelled(30))
    assert "--resume" in fails("train", "-m", bert, "-d", data, "-o", run)
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before


def test_labels_unseen_in_training(run, tmp_path):
    data = write_jsonl(tmp_path / "test.jsonl", [*labelled(10), {"text": "sun moon", "label": "fish"}])
    assert "fish" in fails("eval", run, "--data", data)

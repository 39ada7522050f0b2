"""A run that is killed goes on with the same losses to the bit."""

import json
import os
import signal
import subprocess
import time

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from command import COLD, Started, lora, surroundings
from lora import LoRA, fit
from lora.errors import ConfigError, Interrupted, SaveError
from small_base import labelled, write_jsonl

SETTINGS = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-2, "save_every": 4, "eval_every": 5}


def model(folder):
    torch.manual_seed(0)
    return LoRA(AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3), rank=4, dropout=0.1)


def losses(run):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(e["step"], e["loss"], e["grad_norm"]) for e in entries if "loss" in e], [e for e in entries if "eval" in e]


def weights(run):
    from safetensors.torch import load_file

    return load_file(run / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def whole(bert, tmp_path_factory):
    """An uninterrupted run to compare with."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    fit(model(bert), labelled(), labelled(24, seed=1), output_dir=folder, **SETTINGS)
    return folder


class Stop(Exception):
    pass


@pytest.mark.parametrize("after", [2, 4, 9, 17])
def test_resume_gives_the_same_bits(bert, whole, tmp_path, monkeypatch, after):
    """Stopped without warning after any step: between checkpoints, right after one, after evaluations."""
    from lora.io.run import RunFolder

    log = RunFolder.log

    def failing(self, entry):
        log(self, entry)
        if entry["step"] == after and "loss" in entry:
            raise Stop

    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(RunFolder, "log", failing)
        fit(model(bert), labelled(), labelled(24, seed=1), output_dir=run, **SETTINGS)
    torch.manual_seed(999)  # nothing of the process's own state may matter
    fit(model(bert), labelled(), labelled(24, seed=1), output_dir=run, resume=True, **SETTINGS)
    assert losses(run) == losses(whole)
    expected, found = weights(whole), weights(run)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_kill_9_of_the_real_command(bert, tmp_path):
    """`lora train` killed without warning at several moments, then `lora train --resume`."""
    data = write_jsonl(tmp_path / "train.jsonl", labelled(60))
    settings = ["--epochs", "30", "--batch-size", "4", "--learning-rate", "1e-3", "--save-every", "7", "--rank", "4"]
    base = ["train", "--model", str(bert), "--data", str(data), *settings]
    run = tmp_path / "run"
    process = Started(["lora", *base, "--output", str(run)])
    for lines in (12, 60):
        wait_for(run / "metrics.jsonl", lines, process)
        process.kill()
        process = Started(["lora", "train", "--resume", str(run)])
    done = process.wait()
    assert done.returncode == 0, done.stderr
    other = tmp_path / "whole"
    assert lora(*base, "--output", other).returncode == 0
    assert losses(run)[0] == losses(other)[0]
    expected, found = weights(other), weights(run)
    assert all(torch.equal(expected[key], found[key]) for key in expected)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_says_how_to_go_on(bert, tmp_path, number):
    data = write_jsonl(tmp_path / "train.jsonl", labelled(60))
    run = tmp_path / "run"
    arguments = [
        "train",
        "--model",
        str(bert),
        "--data",
        str(data),
        "--output",
        str(run),
        "--epochs",
        "200",
        "--rank",
        "4",
    ]
    process = start([*arguments, "--save-every", "null"])
    wait_for(run / "metrics.jsonl", 10, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "lora train --resume" in err and "Traceback" not in err
    last = losses(run)[0][-1][0]
    assert (run / "checkpoints" / f"step-{last:08d}" / "state.json").is_file()


def start(arguments):
    return subprocess.Popen(
        [*COLD, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=surroundings()
    )


def wait_for(path, lines, process, seconds=120):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.is_file() and len(path.read_text().splitlines()) >= lines:
            return
        if process.poll() is not None:
            raise AssertionError(f"ended early: {process.wait()}")
        time.sleep(0.02)
    process.kill()
    raise AssertionError("no progress")


def test_resume_refuses_other_settings_and_other_data(bert, tmp_path):
    run = tmp_path / "run"
    fit(model(bert), labelled(), False, output_dir=run, max_steps=2, learning_rate=1e-2)
    with pytest.raises(ConfigError, match="learning_rate: 0.01 then, 0.02 now"):
        fit(model(bert), labelled(), False, output_dir=run, resume=True, max_steps=2, learning_rate=2e-2)
    with pytest.raises(ConfigError, match="training data"):
        fit(model(bert), labelled(seed=5), False, output_dir=run, resume=True, max_steps=2, learning_rate=1e-2)
    with pytest.raises(ConfigError, match=r"adapter\.alpha: 32.0 then, 64.0 now"):
        other = LoRA(
            AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3), rank=4, dropout=0.1, alpha=64
        )
        fit(other, labelled(), False, output_dir=run, resume=True, max_steps=2, learning_rate=1e-2)
    with pytest.raises(ConfigError, match="no run here"):
        fit(model(bert), labelled(), False, output_dir=tmp_path / "none", resume=True)


def test_a_full_disk_leaves_earlier_checkpoints(bert, tmp_path, monkeypatch):
    import errno

    import lora.io.run as run_module

    save, calls = run_module.save_file, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*args, **kwargs)

    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(SaveError, match="no space left"):
        patched.setattr(run_module, "save_file", failing)
        fit(model(bert), labelled(), False, output_dir=run, **SETTINGS)
    names = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert names == ["step-00000000", "step-00000004"], "no half-written folder may remain"
    fit(model(bert), labelled(), False, output_dir=run, resume=True, **SETTINGS)
    assert losses(run)[0][-1][0] == 18


def test_a_run_cut_short_at_its_first_save_can_begin_again(bert, tmp_path, monkeypatch):
    import errno

    import lora.io.run as run_module

    def failing(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    run = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises(SaveError):
        patched.setattr(run_module, "save_file", failing)
        fit(model(bert), labelled(), False, output_dir=run, **SETTINGS)
    fit(model(bert), labelled(), False, output_dir=run, **SETTINGS)
    assert losses(run)[0][-1][0] == 18


def test_a_broken_checkpoint_is_named(bert, tmp_path):
    run = tmp_path / "run"
    fit(model(bert), labelled(), False, output_dir=run, **SETTINGS)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (newest / "training.safetensors").write_bytes(b"broken")
    with pytest.raises(Exception, match=newest.name):
        fit(model(bert), labelled(), False, output_dir=run, resume=True, **SETTINGS)


def test_interrupt_from_python(bert, tmp_path):
    def evaluate(model, name):
        os.kill(os.getpid(), signal.SIGINT)
        return {"f1_macro": 0.5}

    before = signal.getsignal(signal.SIGINT)  # a process in the background may ignore it
    with pytest.raises(Interrupted, match="resume=True"):
        fit(model(bert), labelled(), output_dir=tmp_path / "run", evaluate=evaluate, **SETTINGS)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_finished_run_is_not_trained_again(bert, tmp_path):
    settings = {**SETTINGS, "save_every": None}
    fit(model(bert), labelled(), labelled(24, seed=1), output_dir=tmp_path / "run", **settings)
    before = losses(tmp_path / "run"), weights(tmp_path / "run")
    again = model(bert)
    passes = []
    again.base.register_forward_hook(lambda module, *_: passes.append(1) if module.training else None)
    fit(again, labelled(), labelled(24, seed=1), output_dir=tmp_path / "run", resume=True, **settings)
    assert losses(tmp_path / "run") == before[0] and not passes
    assert all(torch.equal(before[1][key], value) for key, value in weights(tmp_path / "run").items())


def test_what_others_wrote_is_not_taken_for_a_run(bert, tmp_path):
    (tmp_path / "report.md").write_text("mine")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(ConfigError, match=r"holds report.md, which no run wrote"):
            fit(model(bert), labelled(), False, output_dir=tmp_path, **SETTINGS, **options)
    (tmp_path / "report.md").unlink()
    (tmp_path / "metrics.jsonl").write_text("not JSON\n")
    with pytest.raises(ConfigError, match=r"holds metrics.jsonl, which no run wrote"):
        fit(model(bert), labelled(), False, output_dir=tmp_path, **SETTINGS)
    assert (tmp_path / "metrics.jsonl").read_text() == "not JSON\n"


def test_a_metric_of_another_task_is_refused_before_training(bert, tmp_path):
    with pytest.raises(ConfigError, match="'perplexity' is not measured for the task classification; known: loss, acc"):
        fit(model(bert), labelled(), labelled(9), output_dir=tmp_path / "run", best_metric="perplexity", max_steps=1)
    assert not (tmp_path / "run").exists()

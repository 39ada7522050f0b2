"""Two processes give what one gives: gloo on this machine, the same code as on several GPUs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from command import script, surroundings
from small_base import labelled, write_jsonl

SCRIPT = """
import json, sys
sys.path.insert(0, sys.argv[1])
import torch
from transformers import AutoModelForSequenceClassification
from lora import LoRA, fit
rows = [json.loads(line) for line in open(sys.argv[3])]
torch.manual_seed(int(__import__("os").environ.get("RANK", 0)))  # processes begin apart on purpose
model = LoRA(AutoModelForSequenceClassification.from_pretrained(sys.argv[2], num_labels=3), rank=4)
model.base.config.hidden_dropout_prob = 0.0
for module in model.modules():
    if isinstance(module, torch.nn.Dropout):
        module.p = 0.0
batch, accumulation, cut_at = int(sys.argv[5]), int(sys.argv[6]), int(sys.argv[7])
if cut_at > 0:
    from lora.io.run import RunFolder
    log = RunFolder.log
    def dying(self, entry):
        if entry["step"] == cut_at:
            __import__("os")._exit(9)
        log(self, entry)
    RunFolder.log = dying
fit(model, rows, rows[:9], output_dir=sys.argv[4], epochs=2, batch_size=batch, accumulation=accumulation,
    learning_rate=1e-2, length_grouped=False, seed=3, save_every=2, resume=cut_at < 0)
"""

# Three adapters under a budget for none: each batch is a pass, and the last batch of an epoch falls to one process.
SET = (
    SCRIPT.partition("batch, accumulation")[0]
    + """
from lora import Job
model.remove_adapter("default")
options = {"epochs": 2, "batch_size": int(sys.argv[5]), "accumulation": int(sys.argv[6]), "save_every": 2}
jobs = {f"rank {r}": Job(rows[r:], rows[:9], {"rank": r}, {"learning_rate": 1e-2, "seed": r}) for r in (1, 2, 3)}
results = fit(model, jobs, output_dir=sys.argv[4], length_grouped=False, memory_gib=1e-5, at_once=2, **options)
assert all("layers are recomputed" in " ".join(result.notes) for result in results.values())
assert not model.base.is_activation_checkpointing
"""
)


def launch(processes, arguments, tmp_path, cut_at=0, text=SCRIPT, torchrun=False):
    """Train; ``cut_at``: the first process dies at this step; -1: go on with what is there."""
    file = tmp_path / "train.py"
    file.write_text(text)
    arguments = [*arguments, str(cut_at)]
    if torchrun:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        done = subprocess.run(
            [*command, str(file), *arguments], env=surroundings(ACCELERATE_USE_CPU="1"), capture_output=True, text=True,
            timeout=300,
        )  # fmt: skip
        assert (done.returncode == 0) == (cut_at <= 0), done.stderr[-3000:]
        return
    every = script(file, *arguments, processes=processes, ACCELERATE_USE_CPU="1")
    assert any(done.returncode for done in every) == (cut_at > 0), [done.stderr[-3000:] for done in every]


def history(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in lines]


@pytest.mark.parametrize("rows", [48, 45], ids=["even", "uneven"])
def test_two_processes_equal_one(bert, tmp_path, rows):
    data = write_jsonl(tmp_path / "train.jsonl", labelled(rows))
    source = str(Path(__file__).parents[2] / "src")
    launch(1, [source, str(bert), str(data), str(tmp_path / "one"), "4", "2"], tmp_path)
    launch(2, [source, str(bert), str(data), str(tmp_path / "two"), "4", "1"], tmp_path)
    one, two = history(tmp_path / "one"), history(tmp_path / "two")
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two]
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3), a["step"]
        else:  # measured by two, put together again
            assert a["eval"] == pytest.approx(b["eval"], rel=1e-3), a["step"]
    assert any("eval" in entry for entry in one)
    assert list((tmp_path / "two" / "checkpoints").glob("step-*")), "the first process saves"


def test_several_adapters_under_two_processes(bert, tmp_path):
    data = write_jsonl(tmp_path / "train.jsonl", labelled(45))
    source = str(Path(__file__).parents[2] / "src")
    launch(1, [source, str(bert), str(data), str(tmp_path / "one"), "4", "2"], tmp_path, text=SET)
    launch(2, [source, str(bert), str(data), str(tmp_path / "two"), "4", "1"], tmp_path, text=SET, torchrun=True)
    for name in ("rank 1", "rank 2", "rank 3"):
        one, two = history(tmp_path / "one" / name), history(tmp_path / "two" / name)
        assert [entry["step"] for entry in one] == [entry["step"] for entry in two]
        losses = [[entry["loss"] for entry in run if "loss" in entry] for run in (one, two)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-3) and len(losses[0]) > 8


def test_resume_under_two_processes_gives_the_same_bits(bert, tmp_path):
    data = write_jsonl(tmp_path / "train.jsonl", labelled(48))
    source = str(Path(__file__).parents[2] / "src")
    for name, cuts in (("whole", [0]), ("cut", [5, -1])):
        for cut_at in cuts:
            launch(2, [source, str(bert), str(data), str(tmp_path / name), "4", "1"], tmp_path, cut_at)
    assert history(tmp_path / "whole") == history(tmp_path / "cut")
    weights = [(tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert weights[0] == weights[1]

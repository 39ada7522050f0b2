"""Two processes give what one gives: gloo on this machine, the same code as on several GPUs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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
batch, accumulation = int(sys.argv[5]), int(sys.argv[6])
fit(model, rows, rows[:9], output_dir=sys.argv[4], epochs=2, batch_size=batch, accumulation=accumulation,
    learning_rate=1e-2, length_grouped=False, seed=3)
"""


def launch(processes, arguments, tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "1"}
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*command, str(script), *arguments], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("rows", [48, 45], ids=["even", "uneven"])
def test_two_processes_equal_one(bert, tmp_path, rows):
    data = write_jsonl(tmp_path / "train.jsonl", labelled(rows))
    source = str(Path(__file__).parents[2] / "src")
    launch(1, [source, str(bert), str(data), str(tmp_path / "one"), "4", "2"], tmp_path)
    launch(2, [source, str(bert), str(data), str(tmp_path / "two"), "4", "1"], tmp_path)
    histories = []
    for name in ("one", "two"):
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        histories.append([json.loads(line) for line in lines])
    one, two = histories
    assert [entry["step"] for entry in one] == [entry["step"] for entry in two]
    for a, b in zip(one, two, strict=True):
        if "loss" in a:
            assert a["loss"] == pytest.approx(b["loss"], rel=1e-3), a["step"]
    assert list((tmp_path / "two" / "checkpoints").glob("step-*")), "the first process saves"

"""``lora cv`` as a process: options, the section of the file, a kill in the middle, what it says of mistakes."""

from __future__ import annotations

import json
import time
from pathlib import Path

from command import Started, lora
from small_base import labelled, write_jsonl

TRAINING = ["--batch-size", "8", "--dtype", "float32", "--learning-rate", "3e-3", "--at-once", "4"]


def told(folder: Path) -> dict[str, object]:
    found = json.loads((folder / "cv.json").read_text(encoding="utf-8"))
    for key in ("config", "asked"):
        del found[key]
    return found


def test_options_and_the_section_of_the_file(bert: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(60, longest=4))
    file = tmp_path / "cv.yaml"
    file.write_text(
        f"model: {bert}\ndata: {data}\noutput: {tmp_path / 'out'}\ntraining: {{max_steps: 3}}\n"
        "cv: {folds: 5, ablate: {adapter.rank: [1]}}\n"
    )
    done = lora("cv", file, *TRAINING, "--folds", "2", "--shares", "0.5,1", "--ablate", "adapter.dropout=0.1,0.2")
    assert done.returncode == 0, done.stderr
    for said in ("2 folds, 60 held-out rows", "fold 2", "Learning curve", "Ablations", "Labels in doubt"):
        assert said in done.stdout, said
    found = told(tmp_path / "out")
    assert [its["name"] for its in found["ablations"]] == ["adapter.dropout=0.1", "adapter.dropout=0.2"]  # type: ignore
    assert len(found["configuration"]["folds"]) == 2  # type: ignore
    again = lora("cv", "--resume", tmp_path / "out", "--json", "--quiet")
    assert again.returncode == 0 and json.loads(again.stdout)["configuration"] == found["configuration"]


def test_killed_and_gone_on_with(bert: Path, tmp_path: Path) -> None:
    """Killed twice, once while runs train: the same figures to the bit, and what was done is not done again."""
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(60, longest=4))
    asked = ["cv", "-m", bert, "-d", data, *TRAINING, "--epochs", "8", "--folds", "3", "--seeds", "2"]
    whole = lora(*asked, "-o", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    out = tmp_path / "out"
    call = [str(part) for part in ["lora", *asked, "-o", out]]
    for steps in (6, 20):
        begun = Started(call)
        end = time.monotonic() + 120
        while begun.poll() is None and time.monotonic() < end:
            if sum(file.read_text().count("\n") for file in out.glob("runs/*/metrics.jsonl")) > steps * 4:
                break
            time.sleep(0.01)
        assert begun.poll() is None, "killed in the middle"
        begun.kill()
        assert not (out / "cv.json").exists()
        call = ["lora", "cv", "--resume", str(out)]
    assert list(out.glob("runs/*/checkpoints/step-*")), "there is something to go on with"
    done = lora("cv", "--resume", out)
    assert done.returncode == 0, done.stderr
    assert told(out) == told(tmp_path / "whole")
    assert (out / "predictions.jsonl").read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()


def test_mistakes_are_said_in_a_line(bert: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", labelled(60, longest=4))
    start = ["cv", "-m", bert, "-d", data, "-o", tmp_path / "out"]
    for options, said in (
        (["--ablate", "adapter.rank"], "a setting and its values are needed, as in adapter.rank=1,8"),
        (["--shares", "a"], "numbers with commas are needed"),
        (["--group-column", "who"], "group_column: there is no column 'who'"),
        (["--resume", tmp_path], "leave other options out"),
    ):
        done = lora(*start, *options)
        assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr, done.stderr

"""`lora data show` as a process: what it prints, and what it says of data and arguments that will not do."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from command import lora
from lora.cli import main
from small_base import labelled, stories, write_jsonl


def show(*arguments: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    return lora("data", "show", *arguments, **environment)


@pytest.fixture
def quick(capfd: pytest.CaptureFixture[str]) -> Any:
    """The same in this process: (exit code, what it printed, what it complained of)."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        code = main(["data", "show", *map(str, arguments)])
        said = capfd.readouterr()
        return code, said.out, said.err

    return run


def test_a_look_at_answers(llama: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "stories.jsonl", [*stories(60), {"prompt": "red", "completion": "old [EOS] sun"}])
    done = show(data, "--model", llama, "--rows", "61,2")
    assert done.returncode == 0, done.stderr
    assert "training line 61 · 5 tokens · 4 learned" in done.stdout
    assert "answer ⟦·old|«[EOS]»|sun|«[EOS]»⟧" in done.stdout
    assert "line 2 ·" in done.stdout and "An epoch:" in done.stdout and "Learned:" in done.stdout
    assert "! Special tokens written in the texts: 1 in 1 row" in done.stdout and "line 61" in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith("! Nothing must be mended; 1 thing to look at.")
    assert "\x1b[" not in done.stdout and done.stderr == ""


def test_colours_where_they_are_asked_for_and_not_where_they_are_refused(llama: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "stories.jsonl", stories(60))
    coloured = show(data, "--model", llama, FORCE_COLOR="1", TERM="xterm").stdout
    assert "\x1b[1;32m" in coloured and "⟦" not in coloured
    assert "⟦" in show(data, "--model", llama, FORCE_COLOR="1", NO_COLOR="1", TERM="xterm").stdout


def test_json(bert: Path, tmp_path: Path, quick: Any) -> None:
    rows = [*labelled(60), {"text": "red sun", "label": "cat"}, {"text": "red sun", "label": "dog"}]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    code, out, _ = quick(data, "--model", bert, "--json", "--held-out", "0", "--examples", "1", "--longest")
    found = json.loads(out)
    assert code == 0 and found["rows"] == {"training": 62} and len(found["examples"]) == 1
    (first, *_) = found["findings"]
    assert first["kind"] == "contradiction" and first["level"] == "mend"
    assert first["at"] == [{"source": str(data), "number": 61}, {"source": str(data), "number": 62}]


def test_a_folder_with_splits_that_leak(bert: Path, tmp_path: Path, quick: Any) -> None:
    rows = labelled(60)
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", [rows[7], {"text": "now then big small", "label": "cat"}])
    code, out, _ = quick(tmp_path, "--model", bert)
    assert code == 0 and "✗ 1 row of test (50 %) is in training too" in out
    assert "must be mended" in out.splitlines()[-1]


def test_settings_come_from_a_file_and_options_win(llama: Path, tmp_path: Path, quick: Any) -> None:
    data = write_jsonl(tmp_path / "stories.jsonl", stories(60))
    file = tmp_path / "config.yaml"
    file.write_text(f"model: {llama}\ndata: {{train: {data}, max_length: 8}}\ntraining: {{batch_size: 4, epochs: 1}}\n")
    _, out, _ = quick(file, "--json")
    found = json.loads(out)["lengths"]
    assert found["max_length"] == 8 and found["batches"] == -(-found["examples"] // 4) == found["total_steps"]
    _, out, _ = quick(tmp_path, "--json", "--max-length", "12")  # a run's folder holds its configuration
    assert json.loads(out)["lengths"]["max_length"] == 12
    several = tmp_path / "several.yaml"
    several.write_text(f"model: {llama}\nadapters: {{a: {data}, b: {{data: {{train: {data}, max_length: 9}}}}}}\n")
    _, out, _ = quick(several, "--adapter", "b", "--json")
    assert json.loads(out)["lengths"]["max_length"] == 9
    code, _, err = quick(several)
    assert code == 2 and "name one of a, b" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["DATA"], "model: is needed"),
        ([], "data.train: is needed"),
        (["DATA", "--data", "other.jsonl", "-m", "BASE"], "is given twice"),
        (["DATA", "-m", "BASE", "--rows", "x"], "--rows: numbers are needed"),
        (["DATA", "-m", "BASE", "--rows", "99"], "there is no row 99"),
        (["DATA", "-m", "BASE", "--near", "2"], "near: must be above 0"),
        (["DATA", "-m", "BASE", "--adapter", "a"], "no set of adapters"),
        (["DATA", "-m", "/nowhere"], "there is no such folder"),
        (["missing.jsonl", "-m", "BASE"], "there is no such file"),
        (["BROKEN", "-m", "BASE"], "line 2"),
    ],
)
def test_mistakes_are_told_in_one_message(
    llama: Path, tmp_path: Path, quick: Any, arguments: list[str], said: str
) -> None:
    data = write_jsonl(tmp_path / "stories.jsonl", stories(30))
    broken = write_jsonl(tmp_path / "broken.jsonl", [stories(1)[0], {"prompt": "red", "completion": ""}])
    places = {"DATA": data, "BASE": llama, "BROKEN": broken}
    code, out, err = quick(*(places.get(word, word) for word in arguments))
    assert code == 2 and out == "" and said in err and "Traceback" not in err and err.count("rror:") == 1


def test_the_group_shows_its_commands(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "--help"]) == 0
    assert "show" in capfd.readouterr().out

"""`lora generate`, and files of answers that are gone on with after a kill (of `lora predict` too)."""

from __future__ import annotations

import io
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from chat_base import CHAT, SINGLE, save_adapters, save_chat_base, sentences
from command import COLD, lora, surroundings
from lora.cli import main
from small_base import write_jsonl


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = save_chat_base(tmp_path_factory.mktemp("base"))
    return save_adapters(base, tmp_path_factory.mktemp("adapters"), {"a": CHAT, "b": SINGLE})


def run(*arguments: Any, text: str | None = None) -> subprocess.CompletedProcess[str]:
    return lora(*arguments, text=text, TERM="xterm", COLUMNS="100")


def test_generate_as_a_process(
    adapters: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"prompt": text} for text in sentences(5)])
    call = ["generate", adapters["a"], "base", "--adapter", f"x={adapters['b']}", "--max-new-tokens", 6, "--n", 2]
    call += ["--temperature", "0.9", "--batch-size", 4]
    done = run(*call, "--data", data)
    assert done.returncode == 0, done.stderr
    texts = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(text["adapter"], text["sample"]) for text in texts[:6]] == [
        (name, sample) for name in ("a", "x", "base") for sample in (0, 1)
    ]
    assert [text["prompt"] for text in texts[::6]] == sentences(5)
    assert set(texts[0]) == {"prompt", "adapter", "sample", "completion", "stop", "tokens"}
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(sentences(5))))
    assert main([*map(str, call), "--data", "-", "--output", str(tmp_path / "out.jsonl")]) == 0
    assert f"30 texts: {tmp_path / 'out.jsonl'}" in capfd.readouterr().out
    assert [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()] == texts


def test_tools_that_are_not_read_are_said_on_standard_error(
    adapters: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tools = [{"type": "function", "function": {"name": "red", "parameters": {}}}]
    data = write_jsonl(tmp_path / "rows.jsonl", [{"messages": "red", "tools": tools}, {"messages": "sun"}] * 5)
    call = ["generate", str(adapters["a"]), "--data", str(data), "--max-new-tokens", "1", "--batch-size", "1"]
    assert main(call) == 0
    said = capfd.readouterr()
    assert said.err.count("a: 5 of 10 rows have tools and are answered without them") == 1
    assert "data.columns {tools: NAME}" in said.err and len(said.out.splitlines()) == 10


def test_generate_refuses(adapters: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["-p", "x", "--n", "2"], "without a temperature all are alike"),
        (["-p", "x", "--data", "y"], "give --prompt, or --data"),
        (["-p", "x", "--resume"], "name it with --output"),
        (["-p", "x", "--min-p", "7"], "min_p: must be less than or equal to 1"),
    ):
        assert main(["generate", str(adapters["a"]), *arguments]) == 2
        said = capfd.readouterr().err
        assert said.count("error:") == 1 and words in said


@pytest.mark.parametrize("command", ["predict", "generate"])
def test_a_killed_command_goes_on(
    command: str, adapters: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """To the same bytes, without answering again what is there; and only with the same data, adapter and options."""
    data = write_jsonl(tmp_path / "rows.jsonl", [{"messages": text} for text in sentences(40)])
    more = ["--max-new-tokens", "14", "--batch-size", "1"]
    more += ["--temperature", "1"] if command == "generate" else []
    call = [command, str(adapters["a"]), "--data", str(data), *more, "--output"]
    whole, out = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    assert main([*call, str(whole)]) == 0
    part = tmp_path / "out.jsonl.part"
    process = subprocess.Popen([*COLD, *call, str(out)], env=surroundings(), stderr=subprocess.DEVNULL)
    try:
        last = time.monotonic() + 120
        while not (part.exists() and part.read_bytes().count(b"\n") >= 8):
            assert process.poll() is None and time.monotonic() < last
            time.sleep(0.005)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists() and part.exists()
    there = part.read_bytes().count(b"\n")
    assert 8 <= there < 40 and whole.read_bytes().startswith(part.read_bytes())

    capfd.readouterr()
    assert main([*call, str(out)]) == 2
    assert "go on with it (--resume), or begin anew (--overwrite)" in capfd.readouterr().err
    other = write_jsonl(tmp_path / "other.jsonl", [{"messages": "red"}] * 40)
    for changed, words in (
        ({str(data): str(other)}, "data: 40 rows"),
        ({"14": "15"}, "--max-new-tokens: 14 then, 15 now"),
        ({str(adapters["a"]): str(adapters["b"])}, "adapter"),
    ):
        again = [changed.get(word, word) for word in call]
        if again[1] == str(adapters["b"]):
            again[3] = str(write_jsonl(tmp_path / "b.jsonl", [{"prompt": "x", "messages": "x"}] * 40))
        assert main([*again, str(out), "--resume"]) == 2
        said = capfd.readouterr().err
        assert "was begun with something else" in said and words in said
    with part.open("a") as file:
        file.write('{"prompt": "torn')
    assert main([*call, str(out), "--resume"]) == 0
    said = capfd.readouterr()
    kept = int(re.search(r"(\d+) of 40 \w+ are there already", said.err)[1])  # type: ignore[index]
    assert kept in range(4, there + 1, 4) and f"40 {'texts' if command == 'generate' else 'predictions'}" in said.out
    assert out.read_bytes() == whole.read_bytes() and not part.exists()


def test_interrupted(adapters: dict[str, Path], tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", [{"messages": text} for text in sentences(400)])
    call = ["predict", adapters["a"], "--data", data, "--max-new-tokens", 20, "--batch-size", 1, "-o", tmp_path / "out"]
    process = subprocess.Popen(
        [*COLD, *map(str, call)], env=surroundings(), stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs of the background ignore it
    )  # fmt: skip
    last = time.monotonic() + 120
    while not (tmp_path / "out.part").exists():
        assert process.poll() is None and time.monotonic() < last
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2 and "Traceback" not in said
    assert f"interrupted: what was written is in {tmp_path / 'out'}.part; go on with it by the same" in said

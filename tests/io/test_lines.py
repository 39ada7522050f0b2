"""Files of lines: whole or not there, gone on with where they were left, and only by the same job."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lora.errors import ConfigError, SaveError
from lora.io.lines import LinesFile, complete_lines

JOB = {"data": "abc", "--n": 2}


class Killed(BaseException):
    """As good as a kill: nobody catches it."""


def write(file: LinesFile, numbers: range, at_once: int = 2, job: dict = JOB, kill: bool = False) -> int:
    """Gives how many lines were there."""
    with file.open(job, at_once) as out:
        done = out.done
        for number in numbers:
            if number >= done:
                out.write({"n": number, "é": "\u2028"})
        if kill:
            raise Killed
    return done


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["n"] for line in path.read_bytes().split(b"\n") if line]


def test_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "new" / "out.jsonl"
    assert write(LinesFile(path), range(5)) == 0
    assert numbers(path) == [0, 1, 2, 3, 4] and list(path.parent.iterdir()) == [path]
    with pytest.raises(ConfigError, match="is there already; name another file, or say --overwrite"):
        LinesFile(path)
    with pytest.raises(ConfigError, match="is finished already; --overwrite makes it anew"):
        LinesFile(path, resume=True)
    with pytest.raises(Killed):
        write(LinesFile(path, overwrite=True), range(3), kill=True)
    assert numbers(path) == [0, 1, 2, 3, 4], "what was there is there until the new one is whole"


@pytest.mark.parametrize("torn", ["", '{"n": 9', '{"n": 9}', "\0\0\0\n", '{"n": 5}\n{"n"'])
def test_going_on(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        write(LinesFile(path), range(5), kill=True)
    with (tmp_path / "out.jsonl.part").open("a") as part:
        part.write(torn)
    assert not path.exists()
    with pytest.raises(ConfigError, match=r"out.jsonl.part is there, which was not finished; go on with it \(--resume"):
        LinesFile(path)
    # Lines that are computed together are computed together again: in another batch they might differ by rounding.
    assert write(LinesFile(path, resume=True), range(9)) == (6 if torn.startswith('{"n": 5}\n') else 4)
    assert numbers(path) == list(range(9)) and list(tmp_path.iterdir()) == [path]


def test_another_job_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(Killed):
        write(LinesFile(path), range(5), kill=True)
    other = {"data": "xyz", "--n": 2, "--seed": 1}
    with pytest.raises(ConfigError, match="data: abc then, xyz now\n  --seed: none then, 1 now\n"):
        write(LinesFile(path, resume=True), range(5), job=other)
    assert numbers(tmp_path / "out.jsonl.part") == [0, 1, 2, 3, 4]
    (tmp_path / "out.jsonl.part.json").unlink()
    with pytest.raises(ConfigError, match="nothing says what .* is of"):
        write(LinesFile(path, resume=True), range(5))
    assert write(LinesFile(path, overwrite=True), range(2), job=other) == 0
    assert numbers(path) == [0, 1] and list(tmp_path.iterdir()) == [path]


def test_resume_begins_where_nothing_was(tmp_path: Path) -> None:
    """So that a script can always say it."""
    assert write(LinesFile(tmp_path / "out.jsonl", resume=True), range(2)) == 0
    with pytest.raises(ConfigError, match="give one of the two"):
        LinesFile(tmp_path / "out.jsonl", resume=True, overwrite=True)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    with pytest.raises(
        SaveError, match=r"no space left on the disk; what was written stays in .*\.part: go on with --res"
    ):
        with LinesFile(path).open(JOB, 1) as out:
            out.write({"n": 0})

            def full(_: str) -> None:
                raise OSError(errno.ENOSPC, "No space left on device")

            monkeypatch.setattr(out, "_file", SimpleNamespace(write=full, name=str(path)))
            out.write({"n": 1})
    assert write(LinesFile(path, resume=True), range(3), at_once=1) == 1
    with pytest.raises(OSError, match="of the model's"):  # which is nothing that could not be written
        with LinesFile(path, overwrite=True).open(JOB, 1):
            raise OSError(errno.EIO, "of the model's")


def test_groups(tmp_path: Path) -> None:
    path = tmp_path / "part"
    path.write_text("1\n2\n3\n4\n5\n")
    assert [complete_lines(path, size) for size in (1, 2, 3, 6)] == [(5, 10), (4, 8), (3, 6), (0, 0)]


HOLD = """
import sys
from lora.io.lines import LinesFile
with LinesFile(sys.argv[1]).open({"data": "abc", "--n": 2}, 1) as out:
    out.write({"n": 0})
    print("open", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_write_one_file(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    early = LinesFile(path)  # of one who looked before the other had begun
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "src")},
    )  # fmt: skip
    assert other.stdout is not None and other.stdout.readline() == "open\n"
    for file in (early, LinesFile(path, resume=True), LinesFile(path, overwrite=True)):
        with pytest.raises(ConfigError, match="is being written by another process; wait for it, or name another file"):
            write(file, range(3))
    assert numbers(tmp_path / "out.jsonl.part") == [0]
    other.kill()
    other.wait()
    with pytest.raises(ConfigError, match="was not finished; go on with it"):
        write(early, range(3))
    assert write(LinesFile(path, resume=True), range(3), at_once=1) == 1, "the lock of one that was killed is none"
    assert numbers(path) == [0, 1, 2] and list(tmp_path.iterdir()) == [path]
    with pytest.raises(ConfigError, match="is there already"):
        write(early, range(3))

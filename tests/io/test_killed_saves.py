"""A save killed at any moment leaves an adapter that loads: the one before or the new one, never a mixture.

Run as a program this file does the killing, in forks of a process that has imported torch once.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

# Everything Python itself does to the disk; the tensors are written by a library that tells nobody, in one go.
OPERATIONS = {"open", "os.rename", "os.mkdir", "os.link", "os.remove", "os.rmdir", "os.listdir", "os.scandir"}
TRIALS = 25


class Saves:
    """Versions of one adapter in one folder; each file of it says which version it is of."""

    def __init__(self, folder: Path) -> None:
        from lora import LoRA
        from tiny_models import tiny

        self.folder = folder
        self.writer, self.reader = LoRA(tiny("bert"), "a", rank=2), LoRA(tiny("bert"), name=None)

    def save(self, version: int) -> None:
        import torch

        with torch.no_grad():
            for parameter in self.writer.adapter_parameters("a").values():
                parameter.fill_(version)
        self.writer.adapters["a"].dropout = version / 1000
        self.writer.notes["a"] = {"training": version}
        self.writer.save_adapter("a", self.folder)

    def load(self) -> int:
        """The version that the folder holds; fails for one that does not load, or a mixture."""
        self.reader.load_adapter(self.folder, "b")
        values = {float(value) for p in self.reader.adapter_parameters("b").values() for value in p.detach().unique()}
        config, notes = self.reader.adapters["b"], self.reader.notes["b"]
        self.reader.remove_adapter("b")
        version = int(notes["training"])
        assert values == {float(version)} and round(config.dropout * 1000) == version, (values, config.dropout, notes)
        return version

    def at_rest(self) -> int:
        """`load` where nobody saves any more; a file of the user's is there too. (Between a living writer's two renames
        the folder is away for a moment: loading waits for that, reading a file does not.)"""
        version = self.load()
        assert (self.folder / "README.md").read_text() == "mine"
        return version


@contextmanager
def forked(work: Callable[[], None]) -> Iterator[int]:
    """A child doing ``work``; killed, if it still runs, when the block ends."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def die_before(number: int) -> None:
    """Kill this process before its operation ``number`` from now on."""
    left = number

    def count(event: str, _: object) -> None:
        nonlocal left
        left -= event in OPERATIONS
        if left == 0:
            left = -1  # killing is an event too
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def at_every_operation(saves: Saves) -> dict[str, int]:
    """Kill the save of version 2 over version 1 before its first operation, its second, and so on, until it is done."""
    found: Counter[str] = Counter()
    for number in range(1, 1000):
        for litter in saves.folder.parent.glob(".*.tmp-*"):
            shutil.rmtree(litter)
        saves.save(1)
        child = os.fork()
        if child == 0:
            die_before(number)
            saves.save(2)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        found["between the renames"] += not saves.folder.exists()
        found[f"version {saves.at_rest()}"] += 1
        if not os.WIFSIGNALED(status):
            return dict(found)
    raise AssertionError("the save never came to its end")


def at_random_moments(saves: Saves) -> dict[str, int]:
    """Kill a process that saves version after version; in every second trial read the folder all the while."""
    found: Counter[str] = Counter()
    moment, version = random.Random(0), 1
    for trial in range(TRIALS):
        receive, send = os.pipe()

        def work(start: int = version, send: int = send) -> None:
            for number in range(start + 1, start + 10000):
                saves.save(number)
                os.write(send, b"x")  # this one is saved for good

        end = time.monotonic() + moment.uniform(0, 0.3)
        with forked(work):
            os.close(send)
            while time.monotonic() < end:
                if trial % 2:
                    found["read"] += 1
                    saves.load()
        with os.fdopen(receive, "rb") as pipe:
            saved = version + len(pipe.read())
        version = saves.at_rest()
        assert version in (saved, saved + 1), f"{saved} was saved, {version} is there"
        found["kills"] += 1
        found["saves"] = version
    return dict(found)


def run(way: str, folder: Path) -> dict[str, int]:
    done = subprocess.run([sys.executable, __file__, way, folder], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forks")


@needs_fork
def test_killed_at_every_operation(tmp_path: Path) -> None:
    found = run("at_every_operation", tmp_path / "adapter")
    assert found["version 1"] > 10 and found["version 2"] > 2, found
    assert found["between the renames"] >= 1, found


@needs_fork
def test_killed_at_random_moments(tmp_path: Path) -> None:
    found = run("at_random_moments", tmp_path / "adapter")
    assert found["kills"] == TRIALS and found["saves"] > 10 and found["read"] > 10, found


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import torch

    torch.set_num_threads(1)
    target = Path(sys.argv[2])
    target.mkdir()
    (target / "README.md").write_text("mine")
    trials = Saves(target)
    trials.save(1)
    print(json.dumps(globals()[sys.argv[1]](trials)))

"""The command ``lora``, or a script, as a process: arguments in, exit code, standard output and standard error out.

Each call is a process of its own with its own folder, environment and files. It is forked from a server that has
imported torch, transformers and this package once, so that a call costs what the command does and not the four seconds
of those imports. What depends on a cold start (an environment that libraries read when they are imported, signals)
starts `COLD` by itself.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SRC = str(Path(__file__).parents[1] / "src")
COLD = [sys.executable, "-c", "import sys; from lora.cli import main; sys.exit(main(sys.argv[1:]))"]


def lora(
    *arguments: Any, cwd: Path | None = None, text: str | None = None, timeout: float = 300, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run ``lora ARGUMENTS``. ``text``: what it reads on standard input. ``environment``: over this process's own."""
    return Started(["lora", *map(str, arguments)], cwd, text, environment).wait(timeout)


def script(
    path: Path, *arguments: Any, processes: int = 1, timeout: float = 300, **environment: str
) -> list[subprocess.CompletedProcess[str]]:
    """Run a Python script in so many processes that know of each other as under torchrun."""
    shared: dict[str, str] = dict(environment)
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        shared |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} if processes > 1 else {} for rank in range(processes)]
    started = [Started([str(path), *map(str, arguments)], None, None, {**shared, **rank}) for rank in ranks]
    return [each.wait(timeout) for each in started]


class Started:
    """A process that runs ``call``: the command, or a script where its first word is the name of a file."""

    def __init__(
        self, call: list[str], cwd: Path | None = None, text: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.call, self._folder = call, tempfile.TemporaryDirectory()
        self._files = [Path(self._folder.name, name) for name in ("stdin", "stdout", "stderr")]
        self._files[0].write_text(text or "", encoding="utf-8")
        self._process: Any = _server().Process(
            target=_child,
            args=(call, str(cwd or Path.cwd()), surroundings(**environment or {}), [*map(str, self._files)]),
        )
        self._process.start()

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        return self._process.exitcode

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        self._process.kill()
        self.wait(60)

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self._process.kill()
            self._process.join()
        out, error = (file.read_text(encoding="utf-8") if file.exists() else "" for file in self._files[1:])
        self._folder.cleanup()
        if code is None:
            raise subprocess.TimeoutExpired(self.call, timeout, out, error)
        return subprocess.CompletedProcess(self.call, code, out, error)


def surroundings(**more: str) -> dict[str, str]:
    """The environment of a command: this process's, with the package to be tested, and ``more``."""
    return {**os.environ, "PYTHONPATH": SRC, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **more}


def _server() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["warm"])
    # The server takes its path from the environment alone; it is started once, by the first call.
    os.environ["PYTHONPATH"], before = os.pathsep.join([SRC, str(Path(__file__).parent)]), os.environ.get("PYTHONPATH")
    try:
        multiprocessing.forkserver.ensure_running()  # type: ignore[attr-defined]
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return context


def _child(call: list[str], cwd: str, environment: dict[str, str], files: list[str]) -> None:
    for number, (file, flags) in enumerate(
        zip(files, (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT), strict=True)
    ):
        os.dup2(os.open(file, flags, 0o600), number)
    sys.stdin = os.fdopen(0, encoding="utf-8")
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", 1, encoding="utf-8")
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.argv = call
    if call[0] != "lora":
        runpy.run_path(call[0], run_name="__main__")
        return
    from lora.cli import main

    code = main()
    sys.stdout.flush()
    sys.exit(code)

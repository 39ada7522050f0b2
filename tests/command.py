"""The command ``lora`` as a process: arguments in, exit code, standard output and standard error out.

Each call is a process of its own with its own folder, environment and files. It is forked from a server that has
imported torch, transformers and this package once, so that a call costs what the command does and not the four seconds
of those imports. What depends on a cold start (an environment that libraries read when they are imported, signals)
starts `COLD` by itself.
"""

from __future__ import annotations

import multiprocessing
import os
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
    call = ["lora", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(text or "", encoding="utf-8")
        process: Any = _server().Process(
            target=_child, args=(call, str(cwd or Path.cwd()), surroundings(**environment), [*map(str, files)])
        )
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(call, timeout)
        out, error = (file.read_text(encoding="utf-8") if file.exists() else "" for file in files[1:])
    return subprocess.CompletedProcess(call, process.exitcode, out, error)


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
    from lora.cli import main

    code = main()
    sys.stdout.flush()
    sys.exit(code)

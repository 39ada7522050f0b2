"""One study, several processes: each trial is done once; those of a process that dies are done by another."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

import lora
from command import Started
from lora.errors import ConfigError
from small_searches import data, settings, tuned

WORKER = Path(__file__).with_name("worker.py")


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A server of one's own on loopback."""
    pytest.importorskip("psycopg")
    programs = {name: _program(name) for name in ("initdb", "pg_ctl")}
    if not all(programs.values()):
        pytest.skip("PostgreSQL is not installed")
    # It refuses to run as root, and whoever it runs as must get at its folder.
    folder = Path(tempfile.mkdtemp(prefix="lora-postgres-"))
    user = {"user": "nobody"} if os.geteuid() == 0 else {}
    if user:
        shutil.chown(folder, "nobody")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = str(folder / "data")
    made = subprocess.run(
        [str(programs["initdb"]), "-D", place, "-U", "tests", "-A", "trust"], capture_output=True, text=True,
        cwd=folder, **user,  # type: ignore[call-overload]
    )  # fmt: skip
    if made.returncode:
        pytest.skip(f"no server can be made here: {made.stderr.strip().splitlines()[-1:]}")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    control = [str(programs["pg_ctl"]), "-D", place, "-w", "-l", str(folder / "log")]
    quiet: Any = {"check": True, "stdout": subprocess.DEVNULL, "cwd": folder, **user}
    subprocess.run([*control, "-o", options, "start"], **quiet)
    try:
        yield f"postgresql://tests@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], **quiet)
        shutil.rmtree(folder, ignore_errors=True)


def _program(name: str) -> str | None:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_worker_that_dies(request: Any, bert: Path, tmp_path: Path, kind: str) -> None:
    url = request.getfixturevalue("postgres") if kind == "postgresql" else f"sqlite:///{tmp_path / 'shared.db'}"
    data(tmp_path)  # written once, by nobody else
    workers = {name: Started([str(WORKER), url, str(bert), str(tmp_path), name]) for name in ("one", "two")}
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("one/trials/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert workers["one"].poll() is None, workers["one"].wait(1).stderr
    workers["one"].kill()
    ended = workers["two"].wait(240)
    assert ended.returncode == 0, ended.stderr
    study = optuna.load_study(study_name="shared", storage=url)
    dead = [its for its in study.trials if its.state == TrialState.FAIL]
    done = [its for its in study.trials if its.state == TrialState.COMPLETE]
    assert len(done) == 12 and dead and len(study.trials) == 12 + len(dead)
    again = {number: its for its in done for number in its.system_attrs.get("retry_history", [])}
    for its in dead:
        assert its.user_attrs["worker"].endswith("/one")
        assert again[its.number].params.items() >= its.params.items(), "with the same settings"
        assert again[its.number].user_attrs["worker"].endswith("/two")
    assert f"trials {12}" in ended.stdout, "those cut off count once"
    assert len({tuple(its.params.values()) for its in done}) == 12


def test_two_studies_of_one_name(bert: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'shared.db'}"
    tuned(bert, tmp_path, trials=1, seeds=0, storage=url)
    config = settings(bert, tmp_path)
    config.output = str(tmp_path / "other")
    with pytest.raises(ConfigError, match=r"'tune' was begun with other space; .*another name with --study"):
        lora.tune(config, trials=1, seeds=0, space=["rank"], storage=url, progress=False)
    with pytest.raises(ConfigError, match="searches for something else"):
        lora.tune(config, trials=1, seeds=0, objectives=["loss"], storage=url, progress=False)
    assert not (tmp_path / "other" / "tune.yaml").exists()


def test_a_database_that_is_not_there(bert: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tune\.storage: postgresql://me@127\.0\.0\.1:1/none") as told:
        tuned(bert, tmp_path, trials=1, storage="postgresql://me:secret@127.0.0.1:1/none")
    assert "secret" not in str(told.value), "the password is nobody's business"

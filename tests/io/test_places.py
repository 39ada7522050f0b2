"""Places that cannot be written are told before the work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lora.errors import ConfigError
from lora.io.places import file_to_write, folder_to_write


def test_what_is_not_there_yet_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert file_to_write(tmp_path / "new" / "x.json", "--output") == tmp_path / "new" / "x.json"
    assert folder_to_write(tmp_path / "new" / "run", "output") == tmp_path / "new" / "run"
    monkeypatch.chdir(tmp_path)
    assert file_to_write("x.json", "--output") == Path("x.json")
    assert file_to_write("~/x.json", "--output") == Path.home() / "x.json"
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_folder_must_be_and_the_other_way_round(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output: .*is a folder; name a file"):
        file_to_write(tmp_path, "--output")
    with pytest.raises(ConfigError, match=r"output: .*file is a file; name a folder"):
        folder_to_write(tmp_path / "file", "output")
    for check in (file_to_write, folder_to_write):
        with pytest.raises(ConfigError, match=r"file is no folder, so nothing can be written in it"):
            check(tmp_path / "file" / "a" / "b", "--output")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="link is no folder"):
        file_to_write(tmp_path / "link" / "x.json", "--output")


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told apart from what root may: root may write anywhere, and tests may run as root."""
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    for check in (file_to_write, folder_to_write):
        with pytest.raises(ConfigError, match="nothing may be written in"):
            check(tmp_path / "a", "--output")
    with pytest.raises(ConfigError, match="nothing may be written in"):
        folder_to_write(tmp_path, "output")

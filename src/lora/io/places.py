"""Whether something can be written at a place: told before the work, not after it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lora.errors import ConfigError


def file_to_write(place: str | Path, said: str, overwrite: bool = True, reads: str | Path | None = None) -> Path:
    """``place`` as a file that can be written, its folder made if need be. Raises ConfigError, led by ``said``.

    Args:
        overwrite: whether a file that is there may be replaced.
        reads: what the work reads, which is never replaced.
    """
    path = Path(place).expanduser()
    if reads is not None and path.exists() and path.resolve() == Path(reads).expanduser().resolve():
        raise ConfigError(f"{said}: {place} is the data that are read; name another file")
    if path.is_file() and not overwrite:
        raise ConfigError(f"{said}: {place} is there already; name another file, or say --overwrite")
    if path.is_dir():
        raise ConfigError(f"{said}: {place} is a folder; name a file")
    _check_above(path, said)
    return path


# What transformers and its tokenizers write into a model's folder, and `trust_remote_code` reads from there.
_MODEL_FILE = re.compile(
    r"(config|generation_config|special_tokens_map|added_tokens|vocab|merges|(pre)?processor_config|tokenizer(_config)?)"
    r"\.(json|txt|model)|sentencepiece\.bpe\.model|spiece\.model|chat_template\.(jinja|json)|.*\.py"
    r"|bpe\.codes|normalizer\.json|vocab-(src|tgt)\.json|tekken\.json|(spm|source|target)\.(model|spm)|entity_vocab\.json"
    r"|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?"
)


def is_of_a_model(path: Path) -> bool:
    """Whether ``path`` is what a plain model folder holds."""
    return path.is_file() and _MODEL_FILE.fullmatch(path.name) is not None


def folder_to_write(place: str | Path, said: str) -> Path:
    """``place`` as a folder that can be written to, or made. Raises ConfigError, led by ``said``."""
    path = Path(place).expanduser()
    if path.exists() and not path.is_dir():
        raise ConfigError(f"{said}: {place} is a file; name a folder")
    _check_above(path / "file in it", said)
    return path


def _check_above(path: Path, said: str) -> None:
    """Look at the nearest folder above ``path`` that is there."""
    above = next(folder for folder in path.absolute().parents if folder.exists() or folder.is_symlink())
    if not above.is_dir():
        raise ConfigError(f"{said}: {above} is no folder, so nothing can be written in it; name another place")
    if not os.access(above, os.W_OK | os.X_OK):
        raise ConfigError(f"{said}: nothing may be written in {above}; name another place, or change its permissions")

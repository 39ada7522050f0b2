"""A base with two chat adapters and one of single prompts."""

from __future__ import annotations

from typing import Any

import pytest

from chat_base import CHAT, SINGLE, save_adapters, save_chat_base
from lora.chat.session import Session
from lora.config import SamplingConfig
from lora.workflow import choose, load_several
from lora.workflow.several import Loaded


@pytest.fixture(scope="session")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    base = save_chat_base(tmp_path_factory.mktemp("base"))
    adapters = save_adapters(base, tmp_path_factory.mktemp("a"), {"a": CHAT, "b": CHAT, "single": SINGLE})
    return load_several(choose([str(folder) for folder in adapters.values()], [], None), chat=True)


@pytest.fixture
def session(loaded: Loaded) -> Any:
    def make(system: str | None = None, length: int | None = None, reuse: bool = True, **sampling: Any) -> Session:
        return Session(loaded, SamplingConfig(**{"max_new_tokens": 6, **sampling}), system, length, reuse)

    return make

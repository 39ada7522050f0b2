"""What all tests share: no network, one thread (tiny tensors only wait for a second one), `tiny_models` importable."""

import os
import sys
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import hypothesis
import pytest

# No test is about time: on a machine with other work any example may take longer than hypothesis allows.
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """Nothing is kept in the user's own cache. In the environment: some tests start processes."""
    folder = tmp_path_factory.mktemp("cache")
    before = os.environ.get("LORA_CACHE")
    os.environ["LORA_CACHE"] = str(folder)
    yield folder
    os.environ.pop("LORA_CACHE") if before is None else os.environ.update(LORA_CACHE=before)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A headless BERT folder with its tokenizer."""
    from small_base import save_base

    return save_base(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A causal Llama folder with its tokenizer."""
    from small_base import save_base

    return save_base(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(scope="session")
def t5(tmp_path_factory):
    """An encoder-decoder's folder with its tokenizer."""
    from small_base import save_base

    return save_base(tmp_path_factory.mktemp("t5"), "t5")

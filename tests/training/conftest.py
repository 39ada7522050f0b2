import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    from small import save_base

    return save_base(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    from small import save_base

    return save_base(tmp_path_factory.mktemp("llama"), "llama")

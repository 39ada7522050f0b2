"""Whether torch's compiler can make code for the CPU here."""

import os
import shutil

import pytest

needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler here: torch.compile needs one"
)

"""One of several processes that share a study: ``worker.py URL BASE FOLDER NAME``."""

from __future__ import annotations

import sys
from pathlib import Path

import lora
from lora.tuning import study
from small_searches import ASKED, settings

if __name__ == "__main__":
    study.BEAT, study.GRACE = 1, 3  # seconds: no test waits for a minute
    url, base, folder, name = sys.argv[1:]
    config = settings(Path(base), Path(folder), epochs=3)
    config.output = str(Path(folder) / name)
    asked = {**ASKED, "trials": 12, "seeds": 0, "storage": url, "study": "shared"}
    found = lora.tune(config, progress=False, say=print, **asked)
    print("trials", len(found.trials))

"""The table of names is the truth: what it lists exists under that name, and settings know it without loading torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from lora import registry
from lora.config import AdapterConfig
from lora.core import variant as core_variant
from lora.core.variant import register, variants
from lora.errors import ConfigError
from lora.tasks import TASKS
from lora.variants.plain import Plain


def test_names_are_those_of_the_classes() -> None:
    listed = {name: place for name, place in registry.VARIANTS.items() if place is not None}
    assert {name: registry.load(place).name for name, place in listed.items()} == {name: name for name in listed}
    assert set(listed) <= set(variants())
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in registry.TASKS}


def test_an_unknown_name_is_told_with_the_nearest() -> None:
    assert registry.unknown("Alpa", ["alpha", "beta"]) == "unknown; did you mean 'alpha'? known: alpha, beta"
    assert registry.unknown("zzz", ["alpha", "beta"]) == "unknown; known: alpha, beta"


class Gentle(Plain):
    name = "gentle"
    peft_keys = {"use_gentle": True}


class Twofold(Plain):
    name = "twofold"
    peft_keys = {"use_gentle": True, "twice": True}


@pytest.fixture
def own() -> Iterator[None]:
    variants()  # all of the package's own first
    for made in (Gentle(), Twofold()):
        register(made)
    yield
    for made in (Gentle, Twofold):
        del core_variant._REGISTRY[made.name], registry.VARIANTS[made.name]


@pytest.mark.usefixtures("own")
def test_the_keys_of_any_variant_select_it() -> None:
    assert AdapterConfig.make({"variant": "gentle"}).variant == "gentle"
    assert AdapterConfig.make({"use-gentle": True}).variant == "gentle"
    assert AdapterConfig.make({"use_gentle": None, "rank": 2}).variant == "plain"
    assert AdapterConfig.make({"use_gentle": True, "twice": True}).variant == "twofold", "the one that says most"
    assert AdapterConfig.make({"use_gentle": True, "variant": "gentle"}).variant == "gentle"
    for values, words in (
        ({"use_gentle": True, "use_dora": True}, "use_gentle: True, use_dora: True selects no variant"),
        (
            {"use_gentle": "often"},
            "use_gentle: 'often' selects no variant; name it instead, as variant: plain, dora, ",
        ),
        ({"use_gentle": True, "variant": "plain"}, "use_gentle contradicts variant: 'plain'"),
        ({"use_gentel": True}, "use_gentel: unknown setting"),
    ):
        with pytest.raises(ConfigError) as caught:
            AdapterConfig.make(values)
        assert words in str(caught.value)


@pytest.mark.parametrize(
    "code",
    [
        "AdapterConfig.make({'variant': 'dorra'})",
        "AdapterConfig.make({'rnk': 4})",
        "DataConfig.make({'task': 'clasification', 'columns': {'text': 1}})",
        "AdapterConfig.make({'use_rslora': True}); 1 / 0",
    ],
)
def test_a_wrong_setting_is_refused_without_torch(code: str) -> None:
    code = f"""
import sys
from lora.config import AdapterConfig, DataConfig
try:
    {code}
except (ValueError, ZeroDivisionError) as error:
    print(error)
assert "torch" not in sys.modules and "numpy" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr

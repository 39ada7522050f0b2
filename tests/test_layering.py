"""Imports under src/lora point downward only; see the layout in docs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import lora

PACKAGE = Path(lora.__file__).parent

# Lowest first; those of one line may not import each other.
LAYERS = [
    {"statistics"},  # numpy and scipy alone
    {"core"},
    {"variants"},
    {"model"},
    {"io", "data"},
    {"tasks"},
    {"training", "evaluation"},
    {"checks"},  # rehearses training
    {"workflow"},  # brings training and evaluation together, which do not know each other
    {"tuning", "comparison", "continual", "serving", "chat"},
    {"cross_validation"},  # of a comparison it takes how a base is loaded and how runs are told together
    {"demo"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Importable by all, and so importing nothing above themselves. Each may use those before it.
GROUND = ["arithmetic", "errors", "plural", "registry", "settings", "yaml_text", "config", "overrides", "hub"]
# The places where something below reaches up, inside a function and so when all modules are there.
DEFERRED = {
    ("config/adapter.py", "lora.core.variant"): "a key like PEFT's use_dora selects the variant whose file names it",
    ("core/variant.py", "lora.variants"): "the registry is filled when it is first asked; core names no variant",
    ("model/lora.py", "lora.io.peft"): "model.save_adapter and load_adapter are methods for the user's sake",
}
# What the ground must not load: `lora --help` and a configuration error answer at once.
HEAVY = {"torch", "transformers", "datasets", "accelerate", "sklearn", "peft", "numpy", "pandas"}


def imported_names(tree: ast.AST, module: list[str]) -> set[str]:
    """Dotted names of everything that ``module`` imports, wherever the import stands."""
    out = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            out |= {alias.name for alias in node.names if alias.name != "lora"}
            if any(alias.name == "lora" for alias in node.names):
                out |= _attributes_of_lora(tree)
        elif isinstance(node, ast.ImportFrom):
            start = module[: len(module) - node.level + 1] if node.level else []
            base = ".".join([*start, *([node.module] if node.module else [])])
            # `from lora import config` imports a module, `from lora.core import layer` perhaps one.
            out |= {f"{base}.{alias.name}" for alias in node.names} if base == "lora" else {base}
    return out


def _attributes_of_lora(tree: ast.AST) -> set[str]:
    """After ``import lora`` what counts is what is used: ``lora.__version__`` is free to all, ``lora.fit`` is not."""
    used = {
        f"lora.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "lora"
    }
    return used or {"lora"}


def top_level_names(source: str, package: list[str]) -> set[str]:
    """As ``imported_names``, without what functions import."""
    tree = ast.parse(source)
    tree.body = [node for node in tree.body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))]
    return imported_names(tree, package)


def violations(source: str, path: str) -> list[str]:
    """What the file at ``path`` (relative to the package) imports against the order."""
    parts = path.removesuffix(".py").split("/")
    here, package = parts[0], ["lora", *parts[:-1]]
    out = []
    for name in sorted(imported_names(ast.parse(source), package)):
        top, _, rest = name.partition(".")
        if top != "lora":
            if here in GROUND and top in HEAVY:
                out.append(f"{path}: imports {name}, which the ground must not load")
            continue
        there = rest.partition(".")[0]
        if there in {*GROUND, *LEVEL} and not _is_there(rest):
            out.append(f"{path}: imports {name}, and there is no such module")
            continue
        if (path, name) in DEFERRED and name not in top_level_names(source, package):
            continue
        problem = _problem(here, there)
        if problem:
            out.append(f"{path}: imports {name}: {problem}")
    return out


def _is_there(module: str) -> bool:
    """Whether ``module`` (below the package) has a file: what a function imports is else found out when it is called,
    and a type checker that ignores missing third parties says nothing."""
    path = PACKAGE / module.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _problem(here: str, there: str) -> str | None:
    if there in {here, "__version__", "__file__"}:
        return None
    if there in GROUND:
        later = here in GROUND and GROUND.index(there) > GROUND.index(here)
        return f"{there} builds on {here}" if later else None
    if here in GROUND:
        return f"{here} may be imported by all and so imports no layer"
    if there not in LEVEL:
        return "import from the module where the name lives, not through the public namespace"
    if here not in LEVEL:
        return f"{here} has no place in the order of layers"
    if LEVEL[there] == LEVEL[here]:
        return f"{here} and {there} stand side by side and do not know each other"
    return f"{there} lies above {here}" if LEVEL[there] > LEVEL[here] else None


def files() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


# lora/__init__.py names everything and imports it only when it is used; tests/test_public.py holds it to that.
@pytest.mark.parametrize("path", [path for path in files() if path != "__init__.py"])
def test_imports_point_downward(path: str) -> None:
    assert violations((PACKAGE / path).read_text(encoding="utf-8"), path) == []


def test_every_package_has_a_place() -> None:
    assert {path.removesuffix(".py").split("/")[0] for path in files()} <= {"__init__", *GROUND, *LEVEL}


@pytest.mark.parametrize(("path", "name"), DEFERRED)
def test_exceptions_are_in_use(path: str, name: str) -> None:
    source = (PACKAGE / path).read_text(encoding="utf-8")
    assert name in imported_names(ast.parse(source), ["lora", *path.split("/")[:-1]])


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/variant.py", "import lora.variants"),
        ("core/layer.py", "def f():\n    import lora.variants"),
        ("core/layer.py", "import lora\nlora.fit"),
        ("core/layer.py", "from lora.variants import plain"),
        ("core/layer.py", "import lora.model.lora"),
        ("core/layer.py", "def f():\n    from lora.training import loop"),
        ("core/layer.py", "from ..model import inject"),
        ("core/layer.py", "from .. import cli"),
        ("training/loop.py", "from lora.evaluation.evaluate import evaluate"),
        ("evaluation/evaluate.py", "from lora.training import loop"),
        ("io/peft.py", "from lora.data import sources"),
        ("data/sources.py", "from lora.io.peft import load"),
        ("model/lora.py", "from lora import fit"),
        ("model/lora.py", "import lora"),
        ("config/run.py", "import torch"),
        ("config/run.py", "from torch import nn"),
        ("config/run.py", "from lora.core.layer import Layer"),
        ("errors.py", "from lora.config import RunConfig"),
        ("workflow/many.py", "def f():\n    from lora.checks.probe import probe_texts"),
        ("novel/thing.py", "from lora.core import layer"),
    ],
)
def test_a_bad_import_is_found(path: str, source: str) -> None:
    assert len(violations(source, path)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/layer.py", "import torch\nfrom lora.errors import LoraError\nfrom lora.core.routing import Routing"),
        ("core/layer.py", "from .routing import Routing\nfrom ..errors import LoraError"),
        ("cli/train.py", "from lora.training.loop import fit\nfrom lora import __version__, config"),
        ("config/run.py", "import pydantic\nfrom lora.errors import ConfigError"),
        ("core/variant.py", "def f():\n    import lora.variants"),
        ("io/peft.py", "import lora\nlora.__version__"),
    ],
)
def test_a_good_import_passes(path: str, source: str) -> None:
    assert violations(source, path) == []

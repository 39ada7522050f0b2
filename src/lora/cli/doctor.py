"""``lora doctor``: what this machine has, what is missing and the command that adds it. Nothing is fetched."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import click

import lora

# The name under which pip knows this package; see pyproject.toml.
DISTRIBUTION = "lora-many"
SHOWN_PACKAGES = ("torch", "transformers", "accelerate", "datasets", "safetensors", "tokenizers")

# Feature -> names under which Linux (/proc/cpuinfo) and torch list it. What matters is what speeds up bf16 and fp32.
FEATURES = {
    "AVX2": ("avx2",),
    "AVX512": ("avx512f", "avx512_f"),
    "AVX512-BF16": ("avx512_bf16",),
    "AMX-BF16": ("amx_bf16",),
    "ARM bf16": ("bf16", "arm_bf16"),
}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(as_json: bool) -> int:
    """Show what this machine has, what is missing and how to add it.

    Ends with a one-line verdict. The exit code is 2 where training is impossible, otherwise 0.
    """
    report = examine()
    if as_json:
        import json

        click.echo(json.dumps(report, indent=2))
    else:
        click.echo(as_text(report))
    return 0 if report["verdict"]["can_train"] else 2


def examine() -> dict[str, Any]:
    """Everything that the report shows, as plain values."""
    required, extras = requirements()
    report: dict[str, Any] = {
        "lora": lora.__version__,
        "python": {"version": platform.python_version(), "executable": sys.executable, "system": platform.platform()},
        "packages": {name: installed(name) for name in SHOWN_PACKAGES},
        "processor": processor(),
        "torch": torch_report(),
        "memory": memory(),
        "disk": {"path": os.getcwd(), "free": shutil.disk_usage(".").free},
        "cache": cache(),
        "missing": [item for item in required if not satisfied(item)],
        "extras": {name: [item for item in items if not satisfied(item)] for name, items in extras.items()},
    }
    report["dtype"] = automatic_dtype(report)
    report["verdict"] = verdict(report)
    return report


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """What the package requires and what each of its extras adds, as pip's requirement lines."""
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return _from_source_tree()
    required: list[str] = []
    extras: dict[str, list[str]] = {}
    for line in lines:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        extra = re.search(r"extra == ['\"]([\w.-]+)['\"]", marker)
        (extras.setdefault(extra[1], []) if extra else required).append(requirement)
    return required, _without_own(extras)


def _from_source_tree() -> tuple[list[str], dict[str, list[str]]]:
    """The same from pyproject.toml, for a checkout that is on the path without being installed."""
    import tomllib

    path = Path(lora.__file__).parents[2] / "pyproject.toml"
    if not path.is_file():
        return [], {}
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    return list(project["dependencies"]), _without_own(project["optional-dependencies"])


def _without_own(extras: dict[str, list[str]]) -> dict[str, list[str]]:
    """Without requirements such as ``lora-many[demo]``, by which one extra includes another."""
    return {name: [item for item in items if not item.startswith(DISTRIBUTION)] for name, items in extras.items()}


def installed(name: str) -> str | None:
    """The version of a package, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def satisfied(requirement: str) -> bool:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    version = installed(match[0]) if match else None
    if version is None:
        return False
    try:
        from packaging.requirements import Requirement
    except ImportError:
        return True
    return Requirement(requirement).specifier.contains(version, prereleases=True)


def processor() -> dict[str, Any]:
    flags: set[str] = set()
    name = ""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"flags", "Features"}:
                flags |= set(value.split())
            elif key.strip() == "model name":
                name = value.strip()
    except OSError:
        flags = _torch_flags()
    found = [feature for feature, names in FEATURES.items() if flags & set(names)]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"name": name or platform.processor() or platform.machine(), "cores": usable, "features": found}


def _torch_flags() -> set[str]:
    """What torch knows of the processor, where there is no /proc/cpuinfo."""
    try:
        capabilities = import_module("torch").cpu.get_capabilities()
    except Exception:
        return set()
    return {name for name, present in capabilities.items() if present is True}


def torch_report() -> dict[str, Any] | None:
    """Threads, speed of matrix products and accelerators as torch sees them; None without a working torch."""
    try:
        torch = import_module("torch")
    except ImportError:
        return None
    except OSError as error:  # a shared library of it is missing or broken
        return {"error": str(error)}
    rates = {name: matmul_rate(torch, getattr(torch, name)) for name in ("float32", "bfloat16")}
    return {"version": torch.__version__, "threads": torch.get_num_threads(), "gflops": rates, "gpus": gpus(torch)}


def matmul_rate(torch: Any, dtype: Any) -> float:
    """GFLOP/s of a matrix product on the CPU.

    Without bf16 instructions a product of 2048³ takes most of a minute, so a small one goes first; a large one, which
    tells more, follows only where that was quick.
    """
    rate = 0.0
    for size, enough in ((256, 20.0), (1024, float("inf"))):
        x = torch.ones(size, size, dtype=dtype)
        x @ x  # the first call sets up threads and kernels
        # The best of as many as fit a tenth of a second: other processes must not count, and some are usually there.
        best, end = float("inf"), time.perf_counter() + 0.1
        while time.perf_counter() < end:
            start = time.perf_counter()
            x @ x
            best = min(best, time.perf_counter() - start)
        rate = 2 * size**3 / best / 1e9
        if rate < enough:
            break
    return round(rate, 1)


def gpus(torch: Any) -> list[dict[str, Any]]:
    if not torch.cuda.is_available():
        mps = torch.backends.mps.is_available()
        return [{"name": "Apple GPU (mps)", "memory": None, "capability": None, "bf16": None}] if mps else []
    out = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = (properties.major, properties.minor)
        out.append(
            {
                "name": properties.name,
                "memory": properties.total_memory,
                "free": torch.cuda.mem_get_info(index)[0],
                "capability": ".".join(map(str, capability)),
                # Native from Ampere on; older cards only emulate it.
                "bf16": bool(torch.version.hip) or capability >= (8, 0),
            }
        )
    return out


def memory() -> dict[str, int] | None:
    try:
        found = import_module("psutil").virtual_memory()
    except ImportError:
        return None
    return {"total": found.total, "available": found.available}


def cache() -> dict[str, Any]:
    """Where token ids are kept for another run, and how much there is."""
    from lora.io.cache import LIMIT, Cache

    found = Cache()
    entries = found.entries()
    return {
        "path": str(found.folder), "entries": len(entries), "size": sum(entry.size for entry in entries), "limit": LIMIT
    }  # fmt: skip


def automatic_dtype(report: dict[str, Any]) -> str | None:
    """What ``training.dtype: auto`` comes to here: the answer of training itself, so that the two cannot differ."""
    if not report["torch"] or "error" in report["torch"]:
        return None
    return str(import_module("lora.training.device").choose_dtype("auto")).removeprefix("torch.")


def verdict(report: dict[str, Any]) -> dict[str, Any]:
    found = report["torch"]
    if found is None or report["missing"]:
        names = ", ".join(re.split(r"[<>=!~\[; ]", item)[0] for item in report["missing"]) or "torch"
        command = pip_command(report["missing"] or ["torch"])
        return {"can_train": False, "text": f"cannot train: {names} missing or too old. Add with: {command}"}
    if "error" in found:
        return {"can_train": False, "text": f"cannot train: torch does not load ({found['error']})"}
    where = found["gpus"][0]["name"] if found["gpus"] else f"the CPU, {found['threads']} threads"
    dtype = f", base model in {report['dtype']} (dtype auto)" if report["dtype"] else ""
    return {"can_train": True, "text": f"ready to train on {where}{dtype}"}


def pip_command(items: list[str]) -> str:
    return f"{_short_path(sys.executable)} -m pip install " + " ".join(f"'{item}'" for item in items)


def _short_path(path: str) -> str:
    """Relative where the interpreter lies below the current folder, as ``.venv/bin/python`` does."""
    here = os.getcwd() + os.sep
    return path.removeprefix(here) if path.startswith(here) else path


def as_text(report: dict[str, Any]) -> str:
    python, cpu, found = report["python"], report["processor"], report["torch"]
    features = ", ".join(cpu["features"]) or "no vector features known"
    rows = [
        ("lora", report["lora"]),
        ("Python", f"{python['version']} ({_short_path(python['executable'])})"),
        ("system", python["system"]),
        ("processor", f"{cpu['name']}, {cpu['cores']} cores, {features}"),
        *_torch_rows(found),
        ("memory", _memory_text(report["memory"])),
        ("disk", f"{_size(report['disk']['free'])} free in {report['disk']['path']}"),
        ("cache", _cache_text(report["cache"])),
        *((name, version or "missing") for name, version in report["packages"].items()),
    ]
    for extra, missing in sorted(report["extras"].items()):
        rows.append((f"[{extra}]", "complete" if not missing else f"to add: {pip_command(missing)}"))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    return "\n".join([*lines, "", report["verdict"]["text"]])


def _torch_rows(found: dict[str, Any] | None) -> list[tuple[str, str]]:
    if not found or "error" in found:
        return []
    single, half = found["gflops"]["float32"], found["gflops"]["bfloat16"]
    judged = "bf16 is fast here" if half > 1.2 * single else "bf16 is no faster here"
    rows = [("CPU speed", f"{single:g} GFLOP/s in float32, {half:g} in bfloat16: {judged}")]
    for gpu in found["gpus"]:
        size = f", {_size(gpu['memory'])} ({_size(gpu['free'])} free)" if gpu["memory"] else ""
        level = f", compute capability {gpu['capability']}" if gpu["capability"] else ""
        bf16 = {True: ", bf16", False: ", no native bf16", None: ""}[gpu["bf16"]]
        rows.append(("GPU", f"{gpu['name']}{size}{level}{bf16}"))
    return rows if found["gpus"] else [*rows, ("GPU", "none that torch can use")]


def _memory_text(found: dict[str, int] | None) -> str:
    return f"{_size(found['available'])} free of {_size(found['total'])}" if found else "unknown (psutil is missing)"


def _cache_text(found: dict[str, Any]) -> str:
    what = "data set" if found["entries"] == 1 else "data sets"
    return f"{found['entries']} {what}, {_size(found['size'])} of at most {_size(found['limit'])}, in {found['path']}"


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"

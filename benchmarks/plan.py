"""Memory that `lora plan` predicts beside the peak that training then takes.

    python benchmarks/plan.py [--only NAME] [--output FILE.json]

Each configuration is predicted in one process and trained in another, two steps by the real `fit` on random weights,
with an evaluation where there are held-out rows. On the CPU the peak is that of resident memory above what the process
had before the model was made, when all libraries had been used once (on a tiny model); on CUDA what torch had allocated
there at the most, beside the tensors alone. Where layers are recomputed, glibc's holding on to freed memory is not
foretold (see docs/plan.md): there the processes run with MALLOC_MMAP_THRESHOLD_=65536, unless --as-it-is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import speed_models as models
from lora import AdapterConfig, Job, LoRA, TrainingConfig, fit
from lora.checks.rehearsal import Role, rehearse
from lora.checks.stand_in import made_up
from lora.checks.tally import Rehearsed
from lora.cli import quiet_libraries
from lora.cli.demo import demo_base


@dataclass(frozen=True)
class Case:
    """A configuration: a base, and how it is trained."""

    base: str
    dtype: str
    length: int
    batch: int
    rank: int = 16
    recompute: bool = False
    packing: bool | None = None
    adapters: int = 1
    held: int = 0
    variant: str = "plain"
    accumulation: int = 1


CASES = {
    "Llama 135M": Case("llama135", "bfloat16", 256, 8),
    "long rows": Case("llama135", "bfloat16", 1024, 2),
    "short rows": Case("llama135", "bfloat16", 64, 8, rank=64),
    "recomputed": Case("llama135", "bfloat16", 512, 8, recompute=True),
    "fp32": Case("llama135", "float32", 256, 4),
    "fp32, recomputed": Case("llama135", "float32", 512, 4, rank=4, recompute=True),
    "padded": Case("llama135", "bfloat16", 128, 4, packing=False),
    "held-out rows": Case("llama135", "bfloat16", 128, 4, held=16),
    "four adapters": Case("llama40", "bfloat16", 128, 4, adapters=4),
    "DoRA": Case("llama40", "float32", 128, 4, variant="dora"),
    "small3m": Case("small3m", "float32", 256, 16),
    "MiniLM fp32": Case("minilm", "float32", 128, 32),
    "MiniLM bf16": Case("minilm", "bfloat16", 64, 32, held=64),
    "MiniLM long": Case("minilm", "float32", 512, 16, recompute=True),
    "MiniLM, three adapters": Case("minilm", "float32", 32, 16, adapters=3),
    "GPT-2": Case("gpt2", "float32", 256, 4),
}


def config_of(kind: str) -> Any:
    """The transformers configuration of a base."""
    from transformers import AutoConfig, GPT2Config, LlamaConfig

    if kind == "minilm":
        off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return AutoConfig.from_pretrained(demo_base(), num_labels=models.CLASSES, **off)
    common = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    if kind == "gpt2":  # of half of its depth
        return GPT2Config(n_layer=6, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, **common)
    sizes = (192, 512, 6, 6, 2) if kind == "small3m" else models.SHAPES[int(kind.removeprefix("llama"))]
    hidden, intermediate, layers, heads, shared = sizes
    return LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=shared, vocab_size=4096 if kind == "small3m" else 49152, tie_word_embeddings=True,
        max_position_embeddings=8192, **common,
    )  # fmt: skip


def make(kind: str, dtype: str, device: str) -> torch.nn.Module:
    """The base with random weights, or on the meta device."""
    import transformers

    auto = "AutoModelForSequenceClassification" if kind == "minilm" else "AutoModelForCausalLM"
    torch.manual_seed(0)
    with torch.device(device):
        model: torch.nn.Module = getattr(transformers, auto).from_config(config_of(kind), dtype=getattr(torch, dtype))
    return model


def roles(case: Case) -> dict[str, Role]:
    training = TrainingConfig(
        batch_size=case.batch, max_steps=2, accumulation=case.accumulation, epochs=1000, learning_rate=1e-4,
        gradient_checkpointing=case.recompute, packing=case.packing, eval_every=1, save_every=None,
        tensorboard=False,
    )  # fmt: skip
    prepared = made_up(
        "classification" if case.base == "minilm" else "causal",
        case.length,
        2 * case.batch * case.accumulation,
        case.held,
        models.CLASSES,
    )
    role = Role(prepared, AdapterConfig(rank=case.rank, variant=case.variant), training)
    return {f"adapter{number}": role for number in range(case.adapters)}


def predicted(case: Case) -> Rehearsed:
    return rehearse(make(case.base, case.dtype, "meta"), roles(case), case.recompute)


def train(case: Case) -> None:
    everyone = roles(case)
    model = LoRA(make(case.base, case.dtype, "cpu"), name=None)
    for name, role in everyone.items():
        model.add_adapter(name, role.adapter, seed=0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if case.adapters == 1:
        ((name, role),) = everyone.items()
        fit(model, [], prepared=role.prepared, adapter=name, config=role.training, progress=False)
    else:
        jobs = {name: Job(prepared=role.prepared, training=role.training) for name, role in everyone.items()}
        fit(model, jobs, at_once=case.adapters, memory_gib=900, progress=False)


def measured(case: Case) -> float:
    """Bytes at the peak of two steps."""
    import sklearn.metrics  # noqa: F401  # an evaluation would load it

    # Libraries are loaded, and have made what they make at first use.
    train(Case("small3m", case.dtype, 16, 2, recompute=case.recompute))
    if torch.cuda.is_available():
        train(case)
        return float(torch.cuda.max_memory_allocated())
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident("VmRSS")
    train(case)
    return float((_resident("VmHWM") - before) * 1024)


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


def _apart(name: str, what: str, as_it_is: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--only", name, "--" + what]
    given_back = {"MALLOC_MMAP_THRESHOLD_": "65536"} if CASES[name].recompute and not as_it_is else {}
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **given_back})
    if done.returncode:
        raise RuntimeError(done.stderr)
    out: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="this configuration")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--as-it-is", action="store_true", help="leave the C library alone")
    parser.add_argument("--predict", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    quiet_libraries()
    if options.predict:
        found = predicted(CASES[options.only])
        print(json.dumps({"peak": found.held, "tensors": found.tensors}))
        return
    if options.measure:
        print(json.dumps({"peak": measured(CASES[options.only])}))
        return
    print(
        f"{'':<26}{'base':<10}{'type':<10}{'rows':>9}{'rank':>6}{'tensors':>10}{'predicted':>11}{'measured':>10}  off"
    )
    table = {}
    for name, case in CASES.items():
        if options.only and options.only not in name:
            continue
        plan, measure = (_apart(name, what, options.as_it_is) for what in ("predict", "measure"))
        found = measure["peak"]
        off = plan["peak"] / found - 1
        table[name] = {**plan, "measured": found, "off": off}
        rows = f"{case.batch} × {case.length}"
        print(
            f"{name:<26}{case.base:<10}{case.dtype:<10}{rows:>9}{case.rank:>6}{plan['tensors'] / 2**20:>10.0f}"
            f"{plan['peak'] / 2**20:>11.0f}{found / 2**20:>10.0f}{off:>+8.1%}",
            flush=True,
        )  # fmt: skip
    if options.output:
        options.output.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()

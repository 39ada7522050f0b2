"""Where the time of a training step goes: one pass of our `fit` under torch's profiler, one thread.

    python benchmarks/profile_step.py [--part single|many] [--quick]

single    a Llama of the 135M shape in bf16, one adapter, a batch of 8 rows
many      the same model, eight adapters in a pass, 4 rows of 16 to 64 tokens each

Shares are of the operators' own time. What the profiler itself costs is in them, most where operators are many.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

import speed_models as models
import speed_sides as sides
from lora.cli import quiet_libraries
from lora.training.passes import Passes, Share

PRODUCTS = ("aten::mm", "aten::addmm_", "aten::addmm")
OF_ATTENTION = ("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data", "aten::index_select")


def kind(name: str, shapes: Sequence[Any], vocabulary: int) -> str:
    """What an operator belongs to, by its name and the sizes of what it is given."""
    sizes = {size for shape in shapes if isinstance(shape, list) for size in shape if isinstance(size, int)}
    if vocabulary in sizes:
        return "output head: products" if name in PRODUCTS else "output head: the rest"
    if name in PRODUCTS:
        return "low-rank updates: products" if sides.RANK in sizes else "frozen layers: products"
    if name in OF_ATTENTION:
        return "attention"
    if "silu" in name or "mul" in name or "add" in name or "pow" in name or "mean" in name or "sum" in name:
        return "element-wise: MLP, norms, rotary embedding, residuals"
    if "copy" in name:
        return "copies and casts"
    return "everything else: Python, autograd, allocation, views"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=["single", "many"], default="single")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it works")
    options = parser.parse_args()
    quiet_libraries()
    torch.set_num_threads(1)
    base = models.llama(torch.bfloat16, options.quick)
    count = 8 if options.part == "many" else 1
    lengths = [[16 + (n * 37 + seed * 11) % 49 for n in range(64)] for seed in range(count)]
    lengths = lengths if count > 1 else [models.alpaca_lengths(400, 0)]
    data = [
        models.prepared(base, models.instructions(own, base.config.vocab_size, seed))
        for seed, own in enumerate(lengths)
    ]
    side = sides.Ours(base, data, 4 if count > 1 else 8, at_once=count)
    run, seen = Passes.run, list[int]()

    def measured(self: Passes, shares: Sequence[Share]) -> None:
        seen.append(len(shares))
        if seen.count(count) != 3 or len(shares) != count:
            run(self, shares)
            return
        with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as found:
            run(self, shares)
        totals: dict[str, float] = {}
        for event in found.key_averages(group_by_input_shape=True):
            what = kind(event.key, event.input_shapes, base.config.vocab_size)
            totals[what] = totals.get(what, 0) + event.self_cpu_time_total
        tokens = sum(share.tokens for share in shares)
        print(f"{options.part}: a pass of {tokens:,} tokens, {sum(totals.values()) / 1e6:.2f} s under the profiler")
        for what, time in sorted(totals.items(), key=lambda line: -line[1]):
            print(f"  {100 * time / sum(totals.values()):5.1f} %  {what}")

    Passes.run = measured  # type: ignore[method-assign]
    side.run(4)


if __name__ == "__main__":
    main()

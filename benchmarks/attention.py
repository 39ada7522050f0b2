"""Attention of packed documents on the CPU: ours in blocks beside torch's kernel, one document length at a time.

    python benchmarks/attention.py [--threads N]

Forward and backward, 9 heads of 64 that share 3 keys and values, as a Llama of the 135M shape has them. Both sides take
turns; a figure is the median over the turns of the ratio within a turn.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lora.core.attention import Document, Row, _by_runs
from lora.core.causal_attention import causal_attention

HEADS, SHARED, WIDTH = 9, 3, 64
SPANS = {"16 to 64": (16, 64, 32), "80 to 90": (80, 90, 8), "115 to 125": (115, 125, 8), "250 to 300": (250, 300, 8),
         "512": (512, 512, 4), "2048": (2048, 2048, 1)}  # fmt: skip


def sides(lengths: list[int], dtype: torch.dtype) -> list[Callable[[], Tensor]]:
    row = Row([Document(length, None, "a") for length in lengths])
    tokens = sum(lengths)
    q, k, v = (torch.randn(tokens, heads, WIDTH).to(dtype).requires_grad_() for heads in (HEADS, SHARED, SHARED))
    incoming, layer = torch.randn(tokens, HEADS, WIDTH).to(dtype), nn.Module()
    blocks, scale = row.layout(q.transpose(0, 1).unsqueeze(0), k.transpose(0, 1).unsqueeze(0)), WIDTH**-0.5

    def ours() -> Tensor:
        return causal_attention(q, k, v, blocks, scale)

    def kernel() -> Tensor:
        return _by_runs(layer, q, k, v, row, True, scale, None, None, 0.0)

    return [lambda side=side: torch.autograd.grad(side(), (q, k, v), incoming)[0] for side in (ours, kernel)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--turns", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    draw = random.Random(0)
    print(
        f"{options.threads} threads; forward and backward of one layer\n"
        f"{'type, tokens of a document':<32}{'ours is faster by':>18}"
    )
    for dtype in (torch.bfloat16, torch.float32):
        for label, (least, most, count) in SPANS.items():
            built = sides([draw.randint(least, most) for _ in range(count)], dtype)
            ratios = []
            for _ in range(options.turns):
                seconds = []
                for side in built:
                    side()
                    begun = time.perf_counter()
                    side()
                    side()
                    seconds.append(time.perf_counter() - begun)
                ratios.append(seconds[1] / seconds[0])
            name = str(dtype).removeprefix("torch.")
            print(f"{name}, {label:<22}{statistics.median(ratios):>10.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()

"""Queries, keys and values of a small layer, and a memory that takes them in steps."""

import dataclasses

import torch

from attention import LocalWindow, Sinks
from crossbar import presets
from crossbar.hardware import Tile

B, H, KV, N, D = 2, 4, 2, 40, 8
WINDOW = (LocalWindow(12) | Sinks(3)).causal()
IDEAL = dataclasses.replace(presets.ideal(), tile=Tile(rows=5, cols=8))
STEPS = {"at once": [N], "one by one": [1] * N, "in pieces": [7, 1, 1, 20, 3, 8]}


def draw(seed=0, n=N):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, heads, n, D, generator=generator) for heads in (H, KV, KV)]


def run(memory, q, k, v, pattern, steps):
    outputs, first = [], 0
    for n in steps:
        here = slice(first, first + n)
        memory.append(k[:, :, here], v[:, :, here])
        outputs.append(memory.read(q[:, :, here], pattern)[0])
        first += n
    return torch.cat(outputs, 2)

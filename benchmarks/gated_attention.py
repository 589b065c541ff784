"""Gated attention against torch's `scaled_dot_product_attention` with the same pattern as a bool mask.

Batch 8, 12 heads of 32, `window(64) | sinks(4)`, float32, forward. The mask is made beforehand, and so is the schedule.

(This file cannot be called attention.py: beside the script it would hide the package of that name.)
"""

from functools import partial

import torch
import torch.nn.functional as F
from paired import measure, options, print_setting, table
from rich.console import Console

from attention import gated_attention, parse

BATCH, HEADS, SIZE = 8, 12, 32
PATTERN = parse("window(64) | sinks(4)")


def main() -> None:
    rounds = options(__doc__, rounds=9).rounds
    print_setting()
    for tokens in (64, 128, 256, 512, 1024):
        torch.manual_seed(0)
        q, k, v = torch.randn(3, BATCH, HEADS, tokens, SIZE)
        mask = PATTERN.to_dense(tokens)
        arms = {
            "masked": partial(F.scaled_dot_product_attention, q, k, v, mask),
            "dense": partial(F.scaled_dot_product_attention, q, k, v),
            "gated": partial(gated_attention, q, k, v, PATTERN),
        }
        with torch.inference_mode():
            costs = measure(arms, rounds)
        share = float(mask.double().mean())
        Console().print(table(f"{tokens} tokens, {share:.0%} of the pairs, {rounds} rounds", costs, base="masked"))


if __name__ == "__main__":
    main()

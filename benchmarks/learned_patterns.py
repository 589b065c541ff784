"""How do the costs of routing and hierarchical attention grow with the length, beside dense attention?

Forward and backward pass of one causal layer. The slope is that of log time over log n, fitted by least squares: 1 is
linear, 2 is quadratic. Routing has about √n clusters of n / clusters tokens, whose pairs grow as n^1.5, and in a second
arm 64 tokens a cluster at every length.
"""

import math
from functools import partial

import numpy as np
import paired
import torch
from rich.console import Console

from attention import Dense, Hierarchical, LocalWindow, Routing, gated_attention

HEADS, SIZE = 4, 32


def clusters(n: int) -> int:
    return 2 ** round(math.log2(n) / 2)


ARMS = {
    "dense": lambda n: Dense(),
    "routing, √n clusters": lambda n: Routing(clusters(n), n // clusters(n)) | LocalWindow(16),
    "routing, 64 a cluster": lambda n: Routing(n // 64, 64) | LocalWindow(16),
    "hierarchical": lambda n: Hierarchical(32, max(1, round(math.log2(n / 32)))),
}


def train(q, k, v, pattern) -> None:
    gated_attention(q, k, v, pattern).sum().backward()


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024, 2048, 4096, 8192])
    options = paired.use(parser)
    paired.print_setting()
    seconds = {name: [] for name in ARMS}
    for n in options.lengths:
        q, k, v = (
            torch.randn(1, HEADS, n, SIZE, generator=torch.Generator().manual_seed(s), requires_grad=True)
            for s in range(3)
        )
        arms = {name: partial(train, q, k, v, make(n).causal()) for name, make in ARMS.items()}
        costs = paired.measure(arms, options.rounds)
        Console().print(paired.table(f"{n} tokens, {HEADS} heads of {SIZE}", costs, "dense"))
        for name, cost in costs.items():
            seconds[name].append(min(cost.seconds))
    for name, times in seconds.items():
        slope = np.polyfit(np.log(options.lengths), np.log(times), 1)[0]
        Console().print(f"{name}: time grows as n^{slope:.2f}", highlight=False)


if __name__ == "__main__":
    main()

"""Gated attention against torch's dense one, its growth with the sequence, and its memory.

1. `window(256) | sinks(4)`, causal, one sequence of 8 heads of 64, float32, forward: digital and with full analog error
   (PCM, 8-bit converters, read noise; keys and values are written in each call) against torch's dense causal
   `scaled_dot_product_attention`. Bars of issue 4: at least 4 and 1.5 times faster at 8,192 tokens (goals:
   8 and 3), 8 and 3 at 16,384.
2. Time and peak memory beyond the inputs from 8,192 to 32,768 tokens (a ratio of at most 4.8), and the memory of a
   forward pass of 65,536 tokens (under 3 GiB).
3. `strided(√n)` and `fixed(√n, 8)`, causal, from 4,096 to 65,536 tokens: the fitted power of n (at most 1.6).
4. Short sequences as encoders have them: batch 8, 12 heads of 32, `window(64) | sinks(4)`, against torch's attention
   with the pattern as a bool mask.

Schedules are made beforehand, as they are for every call but the first; the table says how long that takes.

(This file cannot be called attention.py: beside the script it would hide the package of that name.)
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from paired import Arms, Cost, judge, measure, option_parser, print_setting, ratio, table, use
from rich.console import Console
from rich.table import Table
from torch import Tensor

from attention import Fixed, Pattern, Strided, gated_attention, parse
from crossbar import presets

WINDOW = parse("causal(window(256) | sinks(4))")
SHORT = parse("window(64) | sinks(4)")
PCM = presets.pcm()
GIB = 1024  # MiB


def main() -> None:
    parser = option_parser(__doc__, rounds=5)
    parser.add_argument("--longest", type=int, default=65536, help="most tokens (default 65536)")
    parser.add_argument("--only", type=int, choices=(1, 2, 3, 4), help="one of the four parts")
    chosen = use(parser)
    print_setting()
    parts: tuple[Callable[[argparse.Namespace], None], ...] = (against_dense, growth, powers, short)
    with torch.inference_mode():
        for number, part in enumerate(parts, 1):
            if chosen.only in (None, number):
                part(chosen)


def against_dense(chosen: argparse.Namespace) -> None:
    for tokens, bars, goals in ((8192, (4.0, 1.5), (8.0, 3.0)), (16384, (8.0, 3.0), (None, None))):
        if tokens > chosen.longest:
            continue
        q, k, v = inputs(tokens)
        arms: Arms = {
            "dense": partial(F.scaled_dot_product_attention, q, k, v, is_causal=True),
            "digital": partial(gated_attention, q, k, v, WINDOW),
            "analog": partial(gated_attention, q, k, v, WINDOW, hardware=PCM),
        }
        costs = measure(arms, chosen.rounds)
        view = table(f"1. {tokens} tokens, {WINDOW}, {chosen.rounds} rounds", costs, base="dense")
        Console().print(view)
        for name, bar, goal in zip(("digital", "analog"), bars, goals, strict=True):
            say(f"dense over {name}", ratio(costs["dense"].seconds, costs[name].seconds), bar, goal, least=True)


def growth(chosen: argparse.Namespace) -> None:
    for name, hardware in (("digital", None), ("analog", PCM)):
        costs: dict[int, Cost] = {}
        for tokens in (8192, 32768, 65536):
            if tokens <= chosen.longest:
                q, k, v = inputs(tokens)
                gated_attention(q, k, v, WINDOW, hardware=hardware)  # makes the schedule
                arm = {name: partial(gated_attention, q, k, v, WINDOW, hardware=hardware)}
                costs[tokens] = measure(arm, chosen.rounds)[name]
        view = Table(title=f"2. {name}, {WINDOW}", title_justify="left")
        for column in ("tokens", "median", "peak memory beyond inputs"):
            view.add_column(column, justify="right")
        for tokens, cost in costs.items():
            view.add_row(str(tokens), f"{statistics.median(cost.seconds) * 1e3:.0f} ms", f"{cost.memory:.0f} MiB")
        Console().print(view)
        if 32768 in costs:
            times = [statistics.median(costs[tokens].seconds) for tokens in (32768, 8192)]
            say("time at 32,768 over 8,192", times[0] / times[1], 4.8)
            memory = [costs[tokens].memory for tokens in (32768, 8192)]
            say("memory at 32,768 over 8,192", memory[0] / max(memory[1], 1.0), 4.8)
        if 65536 in costs:
            say("GiB at 65,536", costs[65536].memory / GIB, 3.0)


def powers(chosen: argparse.Namespace) -> None:
    families: dict[str, Callable[[int], Pattern]] = {
        "strided(√n)": lambda stride: Strided(stride).causal(),
        "fixed(√n, 8)": lambda stride: Fixed(stride, 8).causal(),
    }
    for name, family in families.items():
        view = Table(title=f"3. {name}, causal", title_justify="left")
        for column in ("tokens", "pattern", "schedule", "fastest", "pairs"):
            view.add_column(column, justify="right")
        found: list[tuple[float, float]] = []
        for tokens in (4096, 16384, 65536):
            if tokens > chosen.longest:
                continue
            pattern, (q, k, v) = family(math.isqrt(tokens)), inputs(tokens)
            first = seconds(partial(gated_attention, q, k, v, pattern))
            best = min(seconds(partial(gated_attention, q, k, v, pattern)) for _ in range(chosen.rounds))
            found.append((math.log(tokens), math.log(best)))
            pairs = pattern.stats(tokens).pairs
            view.add_row(str(tokens), str(pattern), f"{first - best:.2f} s", f"{best:.3f} s", f"{pairs:,}")
        Console().print(view)
        if len(found) > 1:
            say(f"{name}: fitted power of n", slope(found), 1.6)


def short(chosen: argparse.Namespace) -> None:
    for tokens in (64, 128, 256, 512, 1024):
        torch.manual_seed(0)
        q, k, v = torch.randn(3, 8, 12, tokens, 32)
        mask = SHORT.to_dense(tokens)
        arms: Arms = {
            "masked": partial(F.scaled_dot_product_attention, q, k, v, mask),
            "dense": partial(F.scaled_dot_product_attention, q, k, v),
            "gated": partial(gated_attention, q, k, v, SHORT),
        }
        costs = measure(arms, chosen.rounds)
        share = float(mask.double().mean())
        title = f"4. {tokens} tokens, {share:.0%} of the pairs, {chosen.rounds} rounds"
        Console().print(table(title, costs, base="masked"))


def inputs(tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 8, tokens, 64)
    return q, k, v


def seconds(arm: Callable[[], object]) -> float:
    start = time.perf_counter()
    arm()
    return time.perf_counter() - start


def slope(points: list[tuple[float, float]]) -> float:
    """Of the straight line that fits the points best."""
    x, y = (statistics.mean(values) for values in zip(*points, strict=True))
    return sum((a - x) * (b - y) for a, b in points) / sum((a - x) ** 2 for a, _ in points)


def say(what: str, found: float, bar: float, goal: float | None = None, least: bool = False) -> None:
    Console().print("   " + judge(what, found, bar, goal, least), highlight=False)


if __name__ == "__main__":
    main()

"""SmolLM2 with its keys and values in analog memory: what write noise, scales and age do to its perplexity.

    python benchmarks/analog_memory.py noise       # write noise, with and without protection of sinks and recent tokens
    python benchmarks/analog_memory.py scales      # the same noise under scales of rows, channels and heads
    python benchmarks/analog_memory.py retention   # rows that leak (gain cells) or drift (PCM) between tokens
    python benchmarks/analog_memory.py reads       # noise, range and counts of a value-stage read by open rows

Each prints a table and draws a picture. Measurements are kept in a file as they are made, so that a run that was
stopped goes on where it was; ``--fresh`` begins again.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from attention import AnalogMemory, LocalWindow, Memory, Protected, attach, detach, memory_cache, renew_memory
from calibration import load_model
from calibration.tasks.perplexity import Perplexity
from crossbar import Ledger, presets
from crossbar.devices import GainCell
from crossbar.hardware import CellNoise, Converter, Hardware, Tile

LEVELS = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07, 0.10)
PROTECTED = Protected(sinks=4, recent=48)  # 5% of 1,024 tokens

Point = tuple[float, float, float, float]
Curves = dict[str, list[Point]]  # x, mean, low and high by arm


class Kept:
    """Measurements by name in a JSON file, written whole after each."""

    def __init__(self, path: Path, fresh: bool) -> None:
        self.path = path
        self.found: dict[str, Any] = {} if fresh or not path.is_file() else json.loads(path.read_text(encoding="utf-8"))

    def measure(self, name: str, function: Callable[[], Any]) -> Any:
        """What was found under this name, or what the function finds now."""
        if name not in self.found:
            self.found[name] = function()
            partial = self.path.with_suffix(".partial")
            partial.write_text(json.dumps(self.found, indent=1), encoding="utf-8")
            partial.replace(self.path)
            print(f"{name}: {self.found[name]}", flush=True)
        return self.found[name]


def noisy(deviation: float) -> Hardware:
    """Rows whose numbers have this deviation, as a part of their full scale, and nothing else that is not ideal.

    A number is the difference of two cells around the middle, so that none is held up by 0 µS.
    """
    device = GainCell(tau=1e12, levels=2**16, write_std=deviation / math.sqrt(2))
    return Hardware(device=device, tile=Tile(encoding="balanced"), dac=None, adc=None, output_noise=0.0)


def interval(logs: list[float]) -> tuple[float, float, float]:
    """Geometric mean and 95% interval (Student's t over seeds) of numbers given by their logarithms."""
    mean, n = float(np.mean(logs)), len(logs)
    half = 0.0 if n == 1 else float(student.ppf(0.975, n - 1) * np.std(logs, ddof=1) / math.sqrt(n))
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def perplexities(model: Any, task: Perplexity, memory: Memory, seeds: int, kept: Kept, name: str) -> list[float]:
    """Logarithms of perplexity, one a seed."""
    attach(model, "dense", memory)

    def score(seed: int) -> float:
        renew_memory(model, seed)
        return math.log(task.metrics(model)["perplexity"])

    found = [kept.measure(f"{name}, seed {seed}", lambda seed=seed: score(seed)) for seed in range(seeds)]
    detach(model)
    return found


def draw(curves: Curves, base: float, xlabel: str, path: Path, *, log: bool = False, published: bool = False) -> None:
    """Curves of (x, mean, low, high) over a digital base line."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for (name, points), marker in zip(curves.items(), "osD^vP", strict=False):
        x, mean, low, high = zip(*points, strict=True)
        (line,) = axes.plot(x, mean, marker=marker, markersize=4, label=name)
        axes.fill_between(x, low, high, alpha=0.2, color=line.get_color())
    top = max(high for points in curves.values() for *_, high in points)
    axes.axhline(base, color="black", linewidth=1, linestyle="--", label="digital")
    if published:
        label = "published: flat to 3%, sharp drop at 5% (arXiv 2609.05764)"
        axes.axvspan(0.03, 0.05, color="grey", alpha=0.15, label=label)
    axes.set_yscale("log")
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(xlabel)
    axes.set_ylabel("perplexity (lower is better)")
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_yticks([tick for tick in (20, 25, 30, 40, 50, 70, 100, 150, 200, 300) if tick <= top])
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def table(title: str, curves: Curves, unit: Callable[[float], str]) -> None:
    """The same as rows."""
    view = Table(title=title, title_justify="left")
    view.add_column("")
    for name in curves:
        view.add_column(name, justify="right")
    rows = sorted({point[0] for points in curves.values() for point in points})
    for x in rows:
        cells = []
        for points in curves.values():
            here = [point for point in points if point[0] == x]
            cells.append(f"{here[0][1]:.2f} ({here[0][2]:.2f} to {here[0][3]:.2f})" if here else "")
        view.add_row(unit(x), *cells)
    Console(width=160).print(view)


def knee(points: list[Point], base: float, factor: float) -> float:
    """The noise at which perplexity passes ``factor`` times the digital one, between levels by its logarithm."""
    for (x0, y0, *_), (x1, y1, *_) in pairwise(points):
        if y1 > factor * base >= y0:
            share = (math.log(factor * base) - math.log(y0)) / (math.log(y1) - math.log(y0))
            return x0 + share * (x1 - x0)
    return math.nan


def noise(options: argparse.Namespace, kept: Kept) -> None:
    loaded = load_model("smollm2")
    task = Perplexity(loaded.tokenizer, windows=2, window_length=1024)
    base = kept.measure("digital", lambda: task.metrics(loaded.model)["perplexity"])
    arms = {"every token in analog": None, "4 sinks and 48 recent tokens in digital": PROTECTED}
    arms["the same in 4 times the cells"] = replace(PROTECTED, by="pairs", copies=4)
    curves: Curves = {}
    for name, protected in arms.items():
        for level in LEVELS:
            memory = Memory(noisy(level), capacity=1024, protected=protected)
            seeds = options.seeds if level else 1
            logs = perplexities(loaded.model, task, memory, seeds, kept, f"{name}, {level:.0%}")
            curves.setdefault(name, []).append((level, *interval(logs)))
    title = f"SmolLM2, 2 windows of 1,024 tokens: perplexity by write noise of K and V ({options.seeds} seeds, 95%)"
    table(title, curves, lambda x: f"{x:.0%}")
    for name, points in curves.items():
        some, twice = (knee(points, base, factor) for factor in (1.1, 2))
        print(f"{name}: perplexity is 10% above digital at {some:.1%}, twice at {twice:.1%}")
    what = "deviation of a stored number, part of its row's full scale"
    draw(curves, base, what, options.out / "memory_noise.png", published=True)


def scales(options: argparse.Namespace, kept: Kept) -> None:
    loaded = load_model("smollm2")
    task = Perplexity(loaded.tokenizer, windows=2, window_length=1024)
    base = kept.measure("digital", lambda: task.metrics(loaded.model)["perplexity"])
    arms = {
        "K by row, V by row": ("row", "row"),
        "K by channel, V by row": ("channel", "row"),
        "K by head, V by row": ("head", "row"),
        "K by row, V by head": ("row", "head"),
        "K by head, V by head": ("head", "head"),
    }
    curves: Curves = {}
    for name, (key_scale, value_scale) in arms.items():
        for level in (0.0, 0.02, 0.03, 0.05):
            memory = Memory(noisy(level), capacity=1024, key_scale=key_scale, value_scale=value_scale)
            logs = perplexities(loaded.model, task, memory, options.seeds if level else 1, kept, f"{name}, {level:.0%}")
            curves.setdefault(name, []).append((level, *interval(logs)))
    table("SmolLM2: perplexity by write noise, under scales of different reach", curves, lambda x: f"{x:.0%}")
    draw(curves, base, "deviation of a stored number, part of its full scale", options.out / "memory_scales.png")


@torch.inference_mode()
def streamed(model: Any, windows: torch.Tensor) -> dict[str, float]:
    """Perplexity of windows that a model reads token by token, so that every row has its age, and rows that expired."""
    cache, losses = memory_cache(model), []
    for position in range(windows.shape[1] - 1):
        logits = model(input_ids=windows[:, position : position + 1], cache=cache).logits[:, -1]
        losses.append(F.cross_entropy(logits.float(), windows[:, position + 1]).double())
    reports = cache.report().values()
    return {
        "log": float(torch.stack(losses).mean()),
        "expired": sum(report.expired_reads for report in reports),
        "evicted": max(report.evicted for report in reports),
        "lost": sum(report.lost_pairs for report in reports),
    }


def retention(options: argparse.Namespace, kept: Kept) -> None:
    loaded = load_model("smollm2")
    model, pattern = loaded.model, "window(256) | sinks(4)"
    task = Perplexity(loaded.tokenizer, windows=2, window_length=384)
    windows = next(iter(task.batches("evaluation")))["input_ids"]
    attach(model, pattern)
    base = kept.measure("digital", lambda: task.metrics(model)["perplexity"])
    quiet = replace(presets.gain_cell(), dac=None, adc=None, output_noise=0.0)
    fast, slow = (1e-7, 3e-6, 1e-5, 2e-5, 4e-5, 1e-4), (1e-3, 1.0, 60.0, 3600.0)
    arms = {
        "gain cells of 8 levels, τ = 5 ms": (Memory(quiet), fast, 1),
        "the same, 4 sinks and 16 recent in digital": (Memory(quiet, protected=Protected(4, 16)), fast, 1),
        "PCM with 8-bit converters": (Memory(presets.pcm()), slow, options.seeds),
    }
    curves: Curves = {}
    expired: dict[str, int] = {}
    for name, (memory, times, seeds) in arms.items():
        for seconds in times:
            attach(model, pattern, replace(memory, token_seconds=seconds))

            def score(seed: int) -> dict[str, float]:
                renew_memory(model, seed)
                return streamed(model, windows)

            runs = [f"{name}, {seconds:g} s, seed {seed}" for seed in range(seeds)]
            found = [kept.measure(run, lambda seed=seed: score(seed)) for seed, run in enumerate(runs)]
            expired[f"{name}, {seconds:g} s a token"] = sum(int(one["expired"]) for one in found)
            curves.setdefault(name, []).append((seconds, *interval([one["log"] for one in found])))
    table(f"SmolLM2, 2 windows of 384 tokens, {pattern}: perplexity by time a token", curves, lambda x: f"{x:g} s")
    for name, rows in expired.items():
        print(f"{name}: {rows:,} reads of expired rows" if rows else f"{name}: no row expired")
    draw(curves, base, "seconds from token to token", options.out / "memory_retention.png", log=True)


class Read(NamedTuple):
    """Of one number of open rows.

    Attributes:
        noise: deviation of an output, unit outputs, of amplifiers alone.
        cells: the same with white noise of every cell too.
        swing: deviation of what a column of a tile sums up to before its conversion, unit outputs.
        limit: most that an ADC whose range follows the open rows delivers, unit outputs.
        conversions, drives: of one head.
    """

    noise: float
    cells: float
    swing: float
    limit: float
    conversions: int
    drives: int


SIGMA, CELL, RANGE, SIZE = 0.04, 0.25, 4.0, 64  # unit outputs, µS of 25, unit outputs of 256 open rows, D


def value_read(rows: int) -> Read:
    """Equal scores drive the last ``rows`` token rows in full; their values are random, but 1 in the first column."""
    heads = 128
    k, q = torch.zeros(1, heads, 1024, SIZE), torch.zeros(1, heads, 1, SIZE)
    v = torch.rand(1, heads, 1024, SIZE, generator=torch.Generator().manual_seed(rows)) * 2 - 1
    v[..., 0] = 1.0  # full scale of every row, so that numbers are as they are written
    dac = Converter(bits=16, range="per_token")
    quiet = replace(presets.ideal(), tile=Tile(rows=256), dac=dac)
    adc = Converter(bits=12, range="active_rows", full_scale=RANGE)

    def read(hardware: Hardware) -> torch.Tensor:
        memory = AnalogMemory(Memory(hardware, capacity=1024))
        memory.append(k, v)
        return memory.read(q, LocalWindow(rows).causal())[0].double() * rows

    with Ledger() as ledger:
        exact = read(quiet)
    totals, tiles = ledger.totals(), -(-rows // 256)
    amplifiers = read(replace(quiet, output_noise=SIGMA))
    cells = read(replace(quiet, output_noise=SIGMA, read_noise=CellNoise(constant=CELL)))
    return Read(
        noise=float((amplifiers - exact).std()),
        cells=float((cells - exact).std()),
        swing=float((exact[..., 1:] / math.sqrt(tiles)).std()),
        limit=float(read(replace(quiet, adc=adc))[..., 0].mean()) / tiles,
        conversions=totals["adc_conversions"] // heads - rows,  # the score stage converts once a row
        drives=totals["row_activations"] // heads,
    )


def expected_read(rows: int) -> Read:
    """The same by formula; a number is a pair of cells of up to 25 µS."""
    tiles = -(-rows // 256)
    open_in_tile = rows / tiles
    return Read(
        noise=SIGMA * math.sqrt(tiles),
        cells=math.sqrt(SIGMA**2 * tiles + 2 * rows * (CELL / 25.0) ** 2),
        swing=math.sqrt(open_in_tile / 3),
        limit=min(RANGE * math.sqrt(open_in_tile / 256), open_in_tile),
        conversions=SIZE * tiles,
        drives=rows,
    )


def reads(options: argparse.Namespace, kept: Kept) -> None:
    title = f"A value-stage read: tiles of 256 rows, D = {SIZE}; measured / formula"
    view = Table(title=title, title_justify="left")
    texts = {
        "noise": f"noise of an output, amplifiers of {SIGMA}",
        "cells": f"the same with cells of {CELL} µS",
        "swing": "swing of a column",
        "limit": "most that the ADC delivers",
        "conversions": "conversions of a head",
        "drives": "row drives of a head",
    }
    view.add_column("open rows", justify="right")
    for text in texts.values():
        view.add_column(text, justify="right")
    counts = (16, 32, 64, 128, 256, 512, 1024)
    found, formula = [value_read(rows) for rows in counts], [expected_read(rows) for rows in counts]
    for rows, one, other in zip(counts, found, formula, strict=True):
        pairs = zip(one, other, strict=True)
        cells = (f"{a} / {b}" if isinstance(a, int) else f"{a:.4f} / {b:.4f}" for a, b in pairs)
        view.add_row(str(rows), *cells)
    Console(width=150).print(view)
    figure = Figure(figsize=(8.4, 5.2), layout="constrained")
    for axes, (name, text) in zip(figure.subplots(2, 3).flat, texts.items(), strict=True):
        axes.loglog(counts, [getattr(read, name) for read in formula], color="black", linewidth=1, label="formula")
        axes.loglog(counts, [getattr(read, name) for read in found], "o", markersize=4, label="measured")
        axes.set_xlabel("open rows")
        axes.set_title(text, fontsize=8)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=8)
    figure.savefig(options.out / "memory_reads.png", dpi=110)


JOBS = {"noise": noise, "scales": scales, "retention": retention, "reads": reads}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=JOBS)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("memory"))
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    JOBS[options.job](options, Kept(options.out / f"{options.job}.json", options.fresh))


if __name__ == "__main__":
    main()

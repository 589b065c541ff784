"""Pictures of what wires do, and where published statements about them hold.

    python benchmarks/wire_pictures.py map  --out irdrop.png     # voltages across the cells of a tile
    python benchmarks/wire_pictures.py rows --out rows.png       # the value stage's error against active rows
    python benchmarks/wire_pictures.py accuracy --out wires.png  # models against ohms and tile sizes: hours in full
    python benchmarks/wire_pictures.py statements                # IR drop matters; it hardly matters

Accuracy: MiniLM's code search (`--model smollm2`: perplexity) on PCM at a day, uncalibrated, with the recipe `fast`,
and with `WireAware` in it. Statements: that IR drop matters (arXiv:2506.00004) and that for language models it hardly
does (NORA) are both found, each with its own ohms, tile size and cells.
"""

import argparse
from collections.abc import Iterable
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import torch

import calibration
from calibration import Recipe, WireAware, calibrate, emulate, recipe
from crossbar import Tile, Wire, cell_voltages, presets, transfer_matrix

mpl.use("Agg")
from matplotlib import pyplot as plt

SIZES = (64, 128, 256, 512)
OHMS = (0.0, 0.35, 1.0, 2.0, 5.0)
ACTIVE = (16, 32, 64, 128, 256, 512, 1024)


def draw_map(options: argparse.Namespace) -> None:
    """Voltages across the cells of positive weights, all rows at 1 V."""
    size = options.tiles[-1]
    weight = torch.as_tensor(np.random.default_rng(0).standard_normal((size, size)))
    cells = (weight * 25 / weight.abs().amax(0)).clamp(min=0)
    across = cell_voltages(cells, torch.ones(1, size), options.ohms[-1])[0]
    figure, axes = plt.subplots(figsize=(5, 4))
    shown = axes.imshow(across, cmap="viridis", vmax=1.0)
    figure.colorbar(shown, label="volts across the cell")
    axes.set(
        title=f"{size} × {size}, {options.ohms[-1]:g} Ω a segment, all rows at 1 V",
        xlabel="bit line (drivers at the left)",
        ylabel="word line (amplifiers at the bottom)",
    )
    figure.savefig(options.out, dpi=150, bbox_inches="tight")
    print(f"least {float(across.min()):.2f} V, most {float(across.max()):.2f} V; written: {options.out}")


def value_stage(active: int, ohms: float, lines: int = 1024, size: int = 64, queries: int = 4) -> dict[str, float]:
    """Errors of the outputs of a value memory, one tile of ``lines`` token rows, of which some are open."""
    draw = np.random.default_rng(active)
    values = torch.as_tensor(draw.standard_normal((lines, size)))
    digits = values / values.abs().amax(1, keepdim=True)
    cells = torch.stack([digits.clamp(min=0), (-digits).clamp(min=0)]) * 25
    found: dict[str, list[float]] = {}
    for _ in range(queries):
        opened = torch.zeros(lines, dtype=torch.bool)
        opened[torch.as_tensor(draw.permutation(lines)[:active])] = True
        weights = torch.as_tensor(draw.dirichlet(np.full(lines, 0.3))) * opened
        drives = (weights / weights.max())[None]

        def output(drives: torch.Tensor = drives, **options: object) -> torch.Tensor:
            matrix = transfer_matrix(cells, ohms, **options)
            return drives @ (matrix[0] - matrix[1])

        ideal, exact, first = drives @ (cells[0] - cells[1]), output(active=opened)
        first = output(active=opened, solver="first_order")
        for name, one, other in (
            ("closed rows disconnected", exact, ideal),
            ("first order", first, ideal),
            ("closed rows at 0 V", output(), ideal),
            ("first order against exact", first, exact),
        ):
            found.setdefault(name, []).append(float((one - other).norm() / other.norm()))
    return {name: float(np.mean(errors)) for name, errors in found.items()}


def draw_rows(options: argparse.Namespace) -> None:
    """The value stage against active rows."""
    ohms = options.ohms[-1]
    errors = {active: value_stage(active, ohms) for active in ACTIVE}
    figure, axes = plt.subplots(figsize=(5, 4))
    for name in errors[ACTIVE[0]]:
        axes.plot(ACTIVE, [errors[active][name] for active in ACTIVE], marker="o", label=name)
    axes.set(
        xscale="log", yscale="log", xlabel="open token rows of 1,024", ylabel="error of the outputs",
        title=f"Value stage, 1,024 × 64, {ohms:g} Ω a segment",
    )  # fmt: skip
    axes.legend()
    figure.savefig(options.out, dpi=150, bbox_inches="tight")
    for active, found in errors.items():
        print(f"{active:5d} open: " + ", ".join(f"{name} {error:.2%}" for name, error in found.items()))
    print(f"written: {options.out}")


def scores(options: argparse.Namespace, tile: int, ohms: float) -> dict[str, float]:
    """Scores of one size of tiles and one resistance at a day, by arm."""
    wire = Wire(ohms, ohms) if ohms else None
    hardware = replace(presets.pcm(), tile=Tile(tile, tile), wire=wire)
    loaded = calibration.load_model(options.model)
    task = {"minilm": "code-search", "smollm2": "perplexity"}[options.model]
    fast = recipe.get("fast").steps
    aware = Recipe("fast, wire-aware", (*fast[:2], WireAware(rounds=options.wire_rounds), *fast[2:]))
    common = {"hardware": hardware, "times": ["1d"], "chips": options.chips}
    found: dict[str, float] = {}
    if "uncalibrated" in options.arms:
        result = emulate(loaded, task, **common)
        found["digital"] = float(np.mean(result.values("digital")))
        found["uncalibrated"] = float(np.mean(result.values("analog")))
    for name, steps in (("fast", "fast"), ("wire-aware", aware)):
        if name in options.arms:
            result = calibrate(loaded, task, recipe=steps, staircase=False, **common)
            found[name] = float(np.mean(result.values("calibrated")))
    return found


def draw_accuracy(options: argparse.Namespace) -> None:
    """Scores against ohms and tile sizes."""
    figure, panels = plt.subplots(
        1, len(options.tiles), figsize=(4 * len(options.tiles), 4), sharey=True, squeeze=False
    )
    for axes, tile in zip(panels[0], options.tiles, strict=True):
        rows = []
        for ohms in options.ohms:
            rows.append(scores(options, tile, ohms))
            print(
                f"tiles of {tile}, {ohms:g} ohm: " + ", ".join(f"{n} {v:.4f}" for n, v in rows[-1].items()), flush=True
            )
        for name in rows[0]:
            axes.plot(options.ohms, [row[name] for row in rows], marker="o", label=name)
        axes.set(title=f"tiles of {tile} × {tile}", xlabel="Ω a segment")
    panels[0][0].set_ylabel(f"{options.model}: score")
    panels[0][0].legend()
    figure.savefig(options.out, dpi=150, bbox_inches="tight")
    print(f"written: {options.out}")


def compensated(cells: torch.Tensor, volts: torch.Tensor, ohms: float) -> tuple[float, float]:
    """Error of a product, and what is left of it behind one gain for each column."""
    matrix = transfer_matrix(cells, ohms)
    output, ideal = volts @ (matrix[0] - matrix[1]), volts @ (cells[0] - cells[1])
    gain = (output * ideal).sum(0) / output.square().sum(0)
    error, left = ((found - ideal).norm() / ideal.norm() for found in (output, output * gain))
    return float(error), float(left)


def statements(_: argparse.Namespace) -> None:
    """Where IR drop matters and where it does not."""
    draw = np.random.default_rng(0)
    regimes: Iterable[tuple[str, int, float, float, str]] = (
        ("matters", 512, 1.0, 25.0, "uniform"),
        ("matters", 512, 0.35, 25.0, "normal"),
        ("matters", 256, 1.0, 25.0, "normal"),
        ("between", 256, 0.35, 5.0, "uniform"),
        ("hardly matters", 256, 0.35, 5.0, "normal"),
        ("hardly matters", 128, 0.35, 25.0, "normal"),
        ("hardly matters", 64, 1.0, 25.0, "normal"),
    )
    for verdict, size, ohms, g_max, kind in regimes:
        weight = torch.as_tensor(
            draw.standard_normal((size, size)) if kind == "normal" else draw.uniform(-1, 1, (size, size))
        )
        weight = weight * g_max / weight.abs().amax(0)
        cells = torch.stack([weight.clamp(min=0), (-weight).clamp(min=0)])
        error, left = compensated(cells, torch.as_tensor(draw.standard_normal((64, size))), ohms)
        print(
            f"{verdict}: {size} × {size}, {ohms:g} ohm, {kind} weights up to {g_max:g} µS: error {error:.1%}, "
            f"{left:.1%} behind a gain for each column"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    draws = {"map": draw_map, "rows": draw_rows, "accuracy": draw_accuracy, "statements": statements}
    parser.add_argument("what", choices=draws)
    parser.add_argument("--out", default="wires.png", help="the picture (default wires.png)")
    parser.add_argument("--ohms", type=float, nargs="+", help="of a segment (default: 1; 0 to 5 for accuracy)")
    parser.add_argument("--tiles", type=int, nargs="+", help="lines of a tile (default: 256; 64 to 512 for accuracy)")
    parser.add_argument("--model", choices=("minilm", "smollm2"), default="minilm")
    parser.add_argument("--chips", type=int, default=3)
    parser.add_argument("--wire-rounds", type=int, default=4, help="of WireAware")
    parser.add_argument("--arms", nargs="+", default=["uncalibrated", "fast", "wire-aware"])
    options = parser.parse_args()
    accuracy = options.what == "accuracy"
    options.ohms = options.ohms or (OHMS if accuracy else (1.0,))
    options.tiles = options.tiles or (SIZES if accuracy else (256,))
    draws[options.what](options)


if __name__ == "__main__":
    main()

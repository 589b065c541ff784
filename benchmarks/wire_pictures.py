"""Pictures of what wires do, and where published statements about them hold.

    python benchmarks/wire_pictures.py map  --out irdrop.png     # voltages across the cells of a tile
    python benchmarks/wire_pictures.py rows --out rows.png       # the value stage's error against active rows
    python benchmarks/wire_pictures.py accuracy --out wires.png  # models against ohms and tile sizes
    python benchmarks/wire_pictures.py statements                # IR drop matters; it hardly matters

Accuracy: MiniLM's code search and SmolLM2's perplexity on PCM, one chip at a day and an hour, uncalibrated, with the
recipe `fast`, and with `WireAware` in it; without `--full` the last two on some of the tiles alone.
Circuits are solved in first order, which is fast; with `--solution exact` each solution takes half a minute of two
cores for MiniLM and four for SmolLM2, and `fast`, which looks at eight instants, asks for ten. `--results` is a file of
the points that are done: what stands in it is not computed again, so a run can be stopped and gone on with, and the
picture is drawn of all of them.

Statements: that IR drop matters (arXiv:2506.00004) and that for language models it hardly does (NORA) are both found,
each with its own ohms, tile size and cells.
"""

import argparse
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch

import calibration
from calibration import Recipe, WireAware, calibrate, emulate, recipe, tasks
from calibration.models.loading import Loaded
from crossbar import Tile, Wire, cell_voltages, presets, transfer_matrix

mpl.use("Agg")
from matplotlib import pyplot as plt

SIZES = (64, 128, 256, 512)
ARMS = ("uncalibrated", "fast", "wire-aware")
OHMS = (0.0, 0.35, 1.0, 2.0, 5.0)
ACTIVE = (16, 32, 64, 128, 256, 512, 1024)


def draw_map(options: argparse.Namespace) -> None:
    """Voltages across the cells of positive weights, all rows at 1 V."""
    size = options.tile
    weight = torch.as_tensor(np.random.default_rng(0).standard_normal((size, size)))
    cells = (weight * 25 / weight.abs().amax(0)).clamp(min=0)
    across = cell_voltages(cells, torch.ones(1, size), options.ohms)[0]
    figure, axes = plt.subplots(figsize=(5, 4))
    shown = axes.imshow(across, cmap="viridis", vmax=1.0)
    figure.colorbar(shown, label="volts across the cell")
    axes.set(
        title=f"{size} × {size}, {options.ohms:g} Ω a segment, all rows at 1 V",
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
    ohms = options.ohms
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


class Point(NamedTuple):
    """A model on tiles of so many lines, with wires of so many ohms."""

    model: str
    tile: int
    ohms: float
    arms: tuple[str, ...]


POINTS = (
    *(Point("minilm", tile, ohms, ARMS) for tile in (256, 512) for ohms in (0.0, 1.0, 5.0)),
    *(Point("minilm", tile, ohms, ARMS[:1]) for tile in (64, 128) for ohms in (0.0, 1.0, 5.0)),
    *(Point("smollm2", 256, ohms, ARMS) for ohms in (0.0, 1.0, 5.0)),
    *(Point("smollm2", tile, ohms, ARMS[:1]) for tile in (64, 128, 512) for ohms in (0.0, 1.0, 5.0)),
)
"""What docs/wires.md has, in the order in which it is computed."""


def scores(point: Point, loaded: Loaded, options: argparse.Namespace) -> dict[str, float]:
    """Scores of one point, the means of chips, by arm."""
    wire = Wire(point.ohms, point.ohms, solution=options.solution) if point.ohms else None
    hardware = replace(presets.pcm(), tile=Tile(point.tile, point.tile), wire=wire)
    task: tasks.Task
    if point.model == "minilm":
        task = tasks.CodeSearch(loaded.tokenizer, pairs=options.pairs, calibration_pairs=32)
    else:
        task = tasks.Perplexity(loaded.tokenizer, windows=options.windows, window_length=256)
    fast = recipe.get("fast").steps
    aware = Recipe("fast, wire-aware", (*fast[:3], WireAware(rounds=options.wire_rounds), *fast[3:]))
    common = {"hardware": hardware, "times": ["1d"], "chips": options.chips, "staircase": False}
    found: dict[str, float] = {}
    if "fast" not in point.arms:
        del common["staircase"]
        result = emulate(loaded, task, **{**common, "times": ["25h"]})  # the instant at which others are scored
        for arm, name in (("digital", "digital"), ("analog", "uncalibrated")):
            found[name] = float(np.mean(result.values(arm)))
        return found
    result = calibrate(loaded, task, recipe="fast", **common)
    for arm, name in (("digital", "digital"), ("analog", "uncalibrated"), ("calibrated", "fast")):
        found[name] = float(np.mean(result.values(arm)))
    if "wire-aware" in point.arms:
        if wire is None:  # the step does nothing
            found["wire-aware"] = found["fast"]
        else:
            found["wire-aware"] = float(np.mean(calibrate(loaded, task, recipe=aware, **common).values("calibrated")))
    return found


def draw_accuracy(options: argparse.Namespace) -> None:
    """Scores against ohms and tile sizes."""
    points = POINTS
    if options.full:
        points = tuple(Point(m, tile, ohms, ARMS) for m in ("minilm", "smollm2") for tile in SIZES for ohms in OHMS)
    points = tuple(point for point in points if point.model in options.models)
    file = Path(options.results)
    loaded: dict[str, Loaded] = {}
    done: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.exists() else {}
    for point in points:
        key = _key(point)
        if not {"digital", *point.arms} <= done.get(key, {}).keys():
            begin, start = time.perf_counter(), time.process_time()
            loaded[point.model] = loaded.get(point.model) or calibration.load_model(point.model)
            found = scores(point, loaded[point.model], options)
            took = {"seconds of cores": time.process_time() - start, "seconds": time.perf_counter() - begin}
            done[key] = {**found, **took}
            file.write_text(json.dumps(done, indent=1))
            draw_points([point for point in points if _key(point) in done], done, options.out)
        print(f"{key}: " + ", ".join(f"{name} {value:.4g}" for name, value in done[key].items()), flush=True)
    draw_points(points, done, options.out)
    print(f"written: {options.out}")


def _key(point: Point) -> str:
    return f"{point.model}, tiles of {point.tile}, {point.ohms:g} ohm"


def draw_points(points: Sequence[Point], done: Mapping[str, Mapping[str, float]], out: str) -> None:
    """A row of panels for each model, one for each size of tiles."""
    models = list(dict.fromkeys(point.model for point in points))
    sizes = sorted({point.tile for point in points})
    shape = (len(models), len(sizes))
    figure, panels = plt.subplots(
        *shape, figsize=(3.2 * shape[1], 3.2 * shape[0]), sharey="row", squeeze=False, layout="constrained"
    )
    styles = {"digital": {"color": "black", "linestyle": ":"}}
    styles |= {arm: {"color": f"C{number}", "marker": "o"} for number, arm in enumerate(ARMS)}
    for row, model in zip(panels, models, strict=True):
        for axes, tile in zip(row, sizes, strict=True):
            here = sorted(
                (point for point in points if (point.model, point.tile) == (model, tile)), key=lambda p: p.ohms
            )
            if not here:
                axes.set_visible(False)
                continue
            for arm in ("digital", *here[0].arms):
                seen = [point for point in here if arm in done[_key(point)]]
                axes.plot([p.ohms for p in seen], [done[_key(p)][arm] for p in seen], label=arm, **styles[arm])
            axes.set(title=f"tiles of {tile} × {tile}", xlabel="Ω a segment")
            if model == "smollm2":
                axes.set_yscale("log")
        first = next(axes for axes in row if axes.get_visible())
        first.set_ylabel({"minilm": "MiniLM: recall@1", "smollm2": "SmolLM2: perplexity"}[model])
        first.tick_params(labelleft=True)
    shown = {label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=len(shown))
    figure.savefig(out, dpi=130, bbox_inches="tight")
    plt.close(figure)


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
    parser.add_argument("--ohms", type=float, default=1.0, help="of a segment, for map and rows (default 1)")
    parser.add_argument("--tile", type=int, default=256, help="lines of the tile of the map (default 256)")
    parser.add_argument("--models", choices=("minilm", "smollm2"), nargs="+", default=["minilm", "smollm2"])
    parser.add_argument("--full", action="store_true", help="accuracy at all sizes, ohms and arms of both models")
    parser.add_argument("--results", default="wires.json", help="points of accuracy that are done (default wires.json)")
    parser.add_argument("--chips", type=int, default=1, help="for accuracy (default 1)")
    parser.add_argument("--pairs", type=int, default=100, help="of code search (default 100)")
    parser.add_argument("--windows", type=int, default=2, help="of perplexity, of 256 tokens (default 2)")
    parser.add_argument("--wire-rounds", type=int, default=4, help="of WireAware (default 4)")
    parser.add_argument(
        "--solution", choices=("first_order", "exact"), default="first_order", help="of the wires (default first_order)"
    )
    options = parser.parse_args()
    draws[options.what](options)


if __name__ == "__main__":
    main()

"""What wire resistance takes from a product, and what solving it costs.

    python benchmarks/wires.py                      # all of it: minutes
    python benchmarks/wires.py --only arrays        # errors of one array
    python benchmarks/wires.py --only speed --size 256 --ohms 1
    python benchmarks/wires.py --only forward
    python benchmarks/wires.py --only models
    python benchmarks/wires.py --only memory        # rows that queries open: first order against exact
    python benchmarks/wires.py --only aware         # what calibration gets back of a layer

Arrays: normal weights, a column's largest at 25 µS, positive and negative ones in arrays of their own or side by side;
and uniform cells, all rows driven alike. Speed: every input of one array against badcrossbar with as many inputs, where
that is installed (`make test-circuit` does); bar: 30 times at 256 x 256. Forward: a layer with wires against one
without; bar: 1.05. Models: MiniLM at one age (bar: 60 s on two cores, goal 30 s) and the first of SmolLM2's 30 blocks,
times 30 (bar: 10 minutes, goal 5). Memory: attention on keys and values, both stages, of exact cells without
converters, the last 16 of 1,024 queries; and the time of all of them. Aware: outputs of 256 x 256 normal weights for
64 normal inputs, without converters.

Seconds are of the processor (`time.process_time`, all threads together) beside those of the clock, for machines that do
other work meanwhile: on n idle cores a solution takes a n-th of the former.
"""

import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from paired import judge, measure, option_parser, print_setting, ratio, table, use
from rich.console import Console
from torch import nn

import calibration
from attention import LocalWindow, gated_attention
from calibration import DriftCompensation, WireAware
from calibration.steps.protocol import Stage
from crossbar import Tile, Wire, age, analog_layers, convert, presets, program, transfer_matrix
from crossbar.circuit import reference
from crossbar.circuit.currents import solution

BLOCKS = 30  # of SmolLM2-135M


def timed(run: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the processor and of the clock."""
    begin, start = time.perf_counter(), time.process_time()
    run()
    return time.process_time() - start, time.perf_counter() - begin


def pair(size: int) -> torch.Tensor:
    """Positive and negative cells of normal weights (µS), ``[2, R, C]``."""
    weight = torch.as_tensor(np.random.default_rng(0).standard_normal((size, size)))
    weight *= 25 / weight.abs().amax(0)
    return torch.stack([weight.clamp(min=0), (-weight).clamp(min=0)])


def arrays(size: int, ohms: float) -> None:
    """Errors of products."""
    cells, volts = pair(size), torch.as_tensor(np.random.default_rng(1).standard_normal((64, size)))
    ideal = volts @ (cells[0] - cells[1])
    for layout in ("separate", "interleaved"):
        matrix = transfer_matrix(cells, ohms, layout=layout)
        error = (volts @ (matrix[0] - matrix[1]) - ideal).norm() / ideal.norm()
        first = transfer_matrix(cells, ohms, layout=layout, solver="first_order")
        off = (first[0] - first[1] - matrix[0] + matrix[1]).norm() / (matrix[0] - matrix[1]).norm()
        print(
            f"{size} x {size}, {ohms:g} ohm a segment, normal weights, {layout} pairs: {error:.2%} of the product; "
            f"the first order of the matrix is {off:.3%} off"
        )
    uniform = torch.as_tensor(np.random.default_rng(2).uniform(0, 25, (size, size)))
    alike = torch.ones(1, size, dtype=torch.float64)
    error = (alike @ (transfer_matrix(uniform, ohms) - uniform)).norm() / (alike @ uniform).norm()
    print(f"uniform cells, all rows driven alike: {error:.1%}")


def speed(size: int, ohms: float) -> None:
    """All inputs of one array."""
    cells = pair(size)[0].float()
    solution(cells, ohms)  # compiles
    found = solution(cells, ohms)
    seconds = [timed(lambda: solution(cells, ohms)) for _ in range(5)]
    own = min(cpu for cpu, _ in seconds)
    chosen = np.arange(0, size, max(size // 4, 1))
    expected = reference.solve(cells.double().numpy(), np.eye(size)[chosen], ohms, ohms)[0]
    error = np.linalg.norm(found.matrix[chosen].numpy() - expected) / np.linalg.norm(expected)
    print(
        f"transfer matrix, {size} x {size}, {ohms:g} ohm, float32: {own:.3f} s of one core ({found.sweeps} sweeps); "
        f"estimated error {found.error:.0e}, against sparse LU {error:.0e}"
    )
    exact, _ = timed(lambda: solution(cells, ohms, solver="elimination"))
    print(f"by elimination: {exact:.2f} s")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import badcrossbar
    except ImportError:
        print("badcrossbar is not installed: `make test-circuit` does it")
        return
    logging.disable(logging.INFO)
    with np.errstate(divide="ignore"):
        resistance = 1e6 / cells.double().numpy()
    options = {"r_i": ohms, "node_voltages": False, "all_currents": False}
    theirs, _ = timed(lambda: badcrossbar.compute(np.eye(size), resistance, **options))
    logging.disable(logging.NOTSET)
    print(judge(f"badcrossbar, {size} inputs: {theirs:.2f} s, times as long", theirs / own, 30, least=True))


def forward(rounds: int) -> None:
    """A layer of MiniLM's size with and without wires."""
    layers = {}
    for name, wire in (("ideal wires", None), ("wires", Wire(1.0, 1.0))):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(384, 1536))
        convert(model, replace(presets.pcm(), wire=wire))
        program(model, 0)
        age(model, "1d")
        layers[name] = model
    x = torch.randn(2048, 384)
    with torch.no_grad():
        costs = measure({name: lambda layer=layer: layer(x) for name, layer in layers.items()}, 10 * rounds, twice=True)
    Console().print(table(f"2,048 vectors through 384 x 1,536, {10 * rounds} rounds", costs, base="ideal wires"))
    print(judge("with / without", ratio(costs["wires"].seconds, costs["ideal wires"].seconds), 1.05))


def models() -> None:
    """Ageing of whole models."""
    hardware = replace(presets.pcm(), wire=Wire(1.0, 1.0))
    for name, part, times, bar, goal in (("minilm", None, 1, 60, 30), ("smollm2", "*layers.0.*", BLOCKS, 600, 300)):
        model = calibration.load_model(name).model
        convert(model, hardware, include=None if part is None else [part])
        program(model, 0)
        plain = sum(layer.digital.weight.numel() for layer in analog_layers(model).values())
        tiles = sum(
            -(-layer.in_features // 256) * -(-layer.out_features // 256) for layer in analog_layers(model).values()
        )
        cpu, clock = timed(lambda model=model: age(model, "1d"))
        what = "all layers" if part is None else f"one block of {BLOCKS}"
        print(f"{name}, {what}: {tiles} tiles, {plain / 1e6:.1f} million weights: {cpu:.1f} s of cores, {clock:.1f} s")
        print(judge(f"{name} at one age, seconds of two cores", cpu * times / 2, bar, goal))


def attend(window: int, rows: int, wire: Wire | None, heads: int = 1, queries: int = 16) -> torch.Tensor:
    """Outputs of the last queries of 1,024 tokens with 64 dimensions a head, on tiles of so many rows."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, 1024, 64, generator=draw) for _ in range(3))
    hardware = replace(presets.ideal(), tile=Tile(rows, 64), wire=wire)
    pattern = LocalWindow(window).causal()
    return gated_attention(q[:, :, -queries:], k, v, pattern, offset=1024 - queries, hardware=hardware)


def memory(rounds: int) -> None:
    """Rows that are opened by queries."""
    for rows, window in ((256, 64), (256, 256), (1024, 64), (1024, 256), (1024, 1024)):
        for ohms in (1.0, 5.0):
            ideal, first = (attend(window, rows, wire) for wire in (None, Wire(ohms, ohms)))
            begin = time.process_time()
            exact = attend(window, rows, Wire(ohms, ohms, solution="exact"))
            taken, size = time.process_time() - begin, exact.norm()
            print(
                f"tiles of {rows:,} rows, window of {window:,}, {ohms:g} ohm: off the exact outputs by "
                f"{(ideal - exact).norm() / size:.2%} (ideal wires), {(first - exact).norm() / size:.3%} (first), "
                f"exact: {taken / 16:.2g} s of a core a query",
                flush=True,
            )
    arms = {
        name: lambda wire=wire: attend(256, 256, wire, heads=12, queries=1024)
        for name, wire in (("ideal wires", None), ("first order", Wire(1.0, 1.0)))
    }
    costs = measure(arms, rounds)
    Console().print(table("12 heads, 1,024 tokens, window of 256, tiles of 256 rows", costs, base="ideal wires"))


def aware() -> None:
    """Errors of a layer's outputs behind calibration."""
    steps = {
        "uncalibrated": (),
        "DriftCompensation": (DriftCompensation(),),
        "WireAware, 4 rounds": (WireAware(rounds=4),),
        "both": (WireAware(rounds=4), DriftCompensation()),
        "WireAware, places alone": (WireAware(rounds=0),),
    }
    draw = torch.Generator().manual_seed(0)
    inputs = [{"input": torch.randn(64, 256, generator=draw)} for _ in range(2)]
    for cells, preset in (("ideal", presets.ideal()), ("PCM at 1 d", presets.pcm())):
        for ohms in (1.0, 5.0):
            wire = Wire(ohms, ohms)
            hardware = replace(preset, dac=None, adc=None, output_noise=0.0, read_noise=None, wire=wire)
            for name, chosen in steps.items():
                torch.manual_seed(0)
                model = nn.Sequential(nn.Linear(256, 256, bias=False))
                nn.init.normal_(model[0].weight)
                wanted = inputs[1]["input"] @ model[0].weight.detach().t()
                convert(model, hardware)
                for step in chosen:
                    if step.stage is Stage.BEFORE_PROGRAMMING:
                        step.apply(model, step.fit(model, inputs[:1]))
                program(model, 0)
                age(model, "1d")
                for step in chosen:
                    if step.stage is not Stage.BEFORE_PROGRAMMING:
                        step.apply(model, step.fit(model, inputs[:1]))
                with torch.no_grad():
                    error = (model(inputs[1]["input"]) - wanted).norm() / wanted.norm()
                print(f"{cells}, {ohms:g} ohm a segment, {name}: {error:.2%}", flush=True)


def main() -> None:
    parser = option_parser(__doc__, rounds=5)
    parser.add_argument(
        "--only", choices=("arrays", "speed", "forward", "models", "memory", "aware"), help="one part (default: all)"
    )
    parser.add_argument("--size", type=int, default=256, help="word lines and bit lines of the array")
    parser.add_argument("--ohms", type=float, default=1.0, help="resistance of a segment of the array")
    chosen = use(parser)
    print_setting()
    parts = {
        "arrays": lambda: arrays(chosen.size, chosen.ohms),
        "speed": lambda: speed(chosen.size, chosen.ohms),
        "forward": lambda: forward(chosen.rounds),
        "models": models,
        "memory": lambda: memory(chosen.rounds),
        "aware": aware,
    }
    for name, part in parts.items():
        if chosen.only in (None, name):
            part()


if __name__ == "__main__":
    main()

"""How much of each non-ideality MiniLM's word similarity bears, one at a time, and which cost most at an equal error.

    python benchmarks/sensitivities.py
    python benchmarks/sensitivities.py --effects "DAC bits" "ADC bits" --chips 8

The form of Rasch et al., Nat. Commun. 14, 5282, 2023, Figs. 4 and 5: hardware is ideal but for one effect, whose amount
grows until it costs a part of the score (``--loss``). Effects differ in what an amount of them is, so they are also
compared where they make products equally wrong (``--error``): ``|analog - digital| / |digital|`` of the outputs of a
layer without bias, on the inputs that it gets, as the mean over layers. Published there: at an error of 20% what
disturbs inputs and outputs costs more than what disturbs weights. Their networks were retrained for analog hardware;
MiniLM is as it was published, and nothing is calibrated but where it says so.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import fmean
from typing import NamedTuple

import paired
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from calibration import DriftCompensation, load_model, tasks
from calibration.metrics import interval
from calibration.steps.protocol import uncalibrate
from crossbar import AnalogLinear, Converter, Hardware, Wire, age, analog_layers, convert, presets, program, to_seconds
from crossbar.devices import PCM
from crossbar.hardware import Cell, CellNoise

IDEAL = presets.ideal()
CELL = 25.0  # µS, g_max


class Effect(NamedTuple):
    """One non-ideality.

    Attributes:
        on: what it disturbs: inputs, outputs or weights.
        unit: of its amounts.
        amounts: from little to much.
        hardware: with so much of it and nothing else.
        drawn: whether chips differ; otherwise one is enough.
        seconds: after programming, of an amount.
        compensated: with a gain for each column, measured at that time.
    """

    on: str
    unit: str
    amounts: Sequence[float]
    hardware: Callable[[float], Hardware]
    drawn: bool = True
    seconds: Callable[[float], float] = lambda amount: 0.0
    compensated: bool = False


class Point(NamedTuple):
    """What an amount does: the part of the digital score that each chip loses, and the mean error of products."""

    amount: float
    losses: list[float]
    error: float

    @property
    def loss(self) -> float:
        """Mean over chips."""
        return fmean(self.losses)


def dac(**fields: object) -> Hardware:
    return replace(IDEAL, dac=Converter(range="per_token", **fields))


def adc(**fields: object) -> Hardware:
    return replace(IDEAL, adc=Converter(**fields))


def pcm(programming: float = 0.0, drift: float = 0.0, reading: float = 0.0) -> Hardware:
    """Cells of PCM with so many times their errors."""
    device = PCM(prog_noise_scale=programming, drift_scale=drift, read_noise_scale=reading)
    return replace(IDEAL, device=device)


def bent(volts: float) -> Hardware:
    """Cells whose current goes as ``sinh(v / volts)``, under pulses whose height is the input."""
    return replace(dac(bits=16, coding="amplitude"), cell=Cell("sinh", v0=volts))


TIMES = [to_seconds(time) for time in ("1h", "1d", "30d", "1y")]
EFFECTS = {
    "DAC bits": Effect("inputs", "bits", (6, 5, 4, 3), lambda n: dac(bits=int(n)), drawn=False),
    "gain errors of DACs": Effect("inputs", "", (0.1, 0.2, 0.4), lambda part: dac(bits=16, gain_std=part)),
    "bent currents": Effect("inputs", "V of v0, read at 0.2 V", (0.2, 0.1, 0.05), bent, drawn=False),
    "ADC bits": Effect("outputs", "bits over ±10", (8, 5, 4, 3), lambda n: adc(bits=int(n)), drawn=False),
    "clipping by ADCs": Effect(
        "outputs", "unit outputs", (8, 4, 2), lambda most: adc(bits=16, full_scale=most), drawn=False
    ),
    "gain errors of ADCs": Effect(
        "outputs", "", (0.1, 0.2, 0.4), lambda part: adc(bits=16, full_scale=100.0, gain_std=part)
    ),
    "noise of outputs": Effect(
        "outputs", "unit outputs", (0.08, 0.16, 0.32, 0.64), lambda std: replace(IDEAL, output_noise=std)
    ),
    "noise of cells at each read": Effect(
        "weights",
        "of g_max",
        (0.02, 0.04, 0.08),
        lambda part: replace(IDEAL, read_noise=CellNoise(constant=part * CELL)),
    ),
    "programming errors": Effect("weights", "× PCM's", (2, 4, 8), lambda scale: pcm(programming=scale)),
    "1/f noise at 1 d": Effect(
        "weights", "× PCM's", (2, 4, 8), lambda scale: pcm(reading=scale), seconds=lambda scale: TIMES[1]
    ),
    "drift": Effect("weights", "s", TIMES, lambda seconds: pcm(drift=1.0), seconds=lambda seconds: seconds),
    "drift, compensated": Effect(
        "weights", "s", TIMES[1::2], lambda seconds: pcm(drift=1.0), seconds=lambda seconds: seconds, compensated=True
    ),
    "wires": Effect(
        "weights",
        "Ω a segment",
        (1, 2, 5, 10),
        lambda ohms: replace(IDEAL, wire=Wire(ohms, ohms, solution="first_order")),
        drawn=False,
    ),
}
LINEAR = {"DAC bits", "ADC bits"}
"""Effects between whose amounts one goes in equal steps; elsewhere in equal factors."""


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=1)
    parser.add_argument("--effects", nargs="+", choices=EFFECTS, default=list(EFFECTS), metavar="EFFECT")
    parser.add_argument("--chips", type=int, default=3)
    parser.add_argument("--loss", type=float, default=0.05, help="part of the digital score (default 0.05)")
    parser.add_argument("--error", type=float, default=0.2, help="of the products (default 0.2)")
    options = paired.use(parser)
    paired.print_setting()
    loaded = load_model("minilm")
    task = tasks.WordSim(loaded.tokenizer)
    digital = task.metrics(loaded.model)[task.primary]
    print(f"digital: {digital:.4f}", flush=True)
    found = {}
    for name in options.effects:
        chips = options.chips if EFFECTS[name].drawn else 1
        found[name] = [
            measured(loaded.model, task, EFFECTS[name], amount, chips, digital) for amount in EFFECTS[name].amounts
        ]
        told = "; ".join(f"{point.amount:g}: {percent(point.losses)}, error {point.error:.1%}" for point in found[name])
        print(f"{name}: {told}", flush=True)
    Console(width=140).print(view(found, options.loss, options.error))


def measured(model: nn.Module, task: tasks.WordSim, effect: Effect, amount: float, chips: int, digital: float) -> Point:
    """Losses and error with so much of an effect."""
    model = copy.deepcopy(model)
    convert(model, effect.hardware(amount))
    losses, errors = [], []
    for chip in range(chips):
        program(model, chip)
        uncalibrate(model)
        age(model, effect.seconds(amount))
        if effect.compensated:
            step = DriftCompensation()
            step.apply(model, step.fit(model, []))
        with watched(model) as squares:
            losses.append(1 - task.metrics(model)[task.primary] / digital)
        errors.append(fmean(math.sqrt(wrong / right) for wrong, right in squares.values()))
    return Point(amount, losses, fmean(errors))


@contextmanager
def watched(model: nn.Module) -> Iterator[dict[str, tuple[float, float]]]:
    """Sums of squares of what analog layers' outputs are wrong by and ought to be, without bias, by layer."""
    squares = {}

    def see(name: str, layer: AnalogLinear, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        right = layer.digital_outputs(inputs[0])
        wrong = float((output - right).square().sum(dtype=torch.float64))
        if layer.digital.bias is not None:
            right = right - layer.digital.bias
        before = squares.get(name, (0.0, 0.0))
        squares[name] = (before[0] + wrong, before[1] + float(right.square().sum(dtype=torch.float64)))

    hooks = [layer.register_forward_hook(partial(see, name)) for name, layer in analog_layers(model).items()]
    try:
        yield squares
    finally:
        for hook in hooks:
            hook.remove()


def amount_at(points: Sequence[Point], loss: float, linear: bool = False) -> float | None:
    """The amount that costs so much, between measured ones; None where it lies beyond them."""
    for one, other in pairwise(points):
        if one.loss <= loss < other.loss:
            share = (loss - one.loss) / (other.loss - one.loss)
            if linear:
                return one.amount + share * (other.amount - one.amount)
            return one.amount * (other.amount / one.amount) ** share
    return None


def loss_at(points: Sequence[Point], error: float) -> list[float] | None:
    """What an effect costs each chip where products are so wrong, between measured amounts; None beyond them."""
    for one, other in pairwise(points):
        if one.error <= error < other.error:
            share = math.log(error / one.error) / math.log(other.error / one.error)
            return [a + share * (b - a) for a, b in zip(one.losses, other.losses, strict=True)]
    return None


def percent(values: list[float]) -> str:
    """Their mean, with its 95% interval over chips."""
    if len(values) == 1:
        return f"{values[0]:.1%}"
    middle, low, _ = interval(values)
    return f"{middle:.1%} ± {middle - low:.1%}"


def view(found: dict[str, list[Point]], loss: float, error: float) -> Table:
    """Effects by what they cost at an equal error, with the amount that costs a fixed part of the score."""
    table = Table(title="one effect at a time on ideal hardware, MiniLM, word similarity", title_justify="left")
    for name in (
        "effect",
        "disturbs",
        f"amount that costs {loss:.0%}",
        "unit",
        f"cost at an error of {error:.0%}",
        "most: amount, cost, error",
    ):
        table.add_column(name, justify="left" if name in ("effect", "disturbs", "unit") else "right")
    costs = {name: loss_at(points, error) for name, points in found.items()}
    for name in sorted(found, key=lambda name: -math.inf if costs[name] is None else fmean(costs[name]), reverse=True):
        effect, points, cost = EFFECTS[name], found[name], costs[name]
        amount, last = amount_at(points, loss, name in LINEAR), points[-1]
        table.add_row(
            name,
            effect.on,
            "" if amount is None else f"{amount:.3g}",
            effect.unit,
            "" if cost is None else percent(cost),
            f"{last.amount:.3g}, {percent(last.losses)}, {last.error:.0%}",
        )
    return table


if __name__ == "__main__":
    main()

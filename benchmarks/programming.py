"""Programming and ageing a layer, on tiles of 256 x 256.

- default: one layer of 768 x 768 of PCM against aihwkit's. Bar: at least twice as fast as aihwkit's torch tile; its
  compiled tile programs with the same code.
- ``devices``: one layer of 1,024 x 1,024 of each device: `program`, the first `age` of a chip and a later one, in
  milliseconds of process time, the least of the rounds. With ``--write FILE.json`` they are kept, and ``--against
  FILE.json`` prints ratios to figures kept before, such as those of another version (``PYTHONPATH``) run in turn.
  Bar: `age` takes at most 1.3 times as long.

Every call programs another chip, or ages it to another time and reads its cells, so that nothing could be kept from the
last one.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import torch
from paired import Arms, judge, measure, option_parser, print_setting, ratio, table, use
from rich.console import Console
from rich.table import Table
from torch import nn

from crossbar import AnalogLinear, Hardware, age, analog_layers, convert, devices, presets, program

_SIZE = 1024
_MEASURED = devices.Measured(
    target_us=(0.0, 5.0, 12.0, 25.0),
    mean_us=(0.5, 5.2, 12.0, 24.0),
    std_us=(0.2, 0.5, 0.8, 1.0),
    drift_mean=(0.05, 0.05, 0.06, 0.06),
    drift_std=(0.01, 0.01, 0.01, 0.01),
)
_DEVICES = {
    "pcm": presets.pcm(),
    "hermes": presets.hermes(),
    "reram": presets.reram(),
    "reram_cmo": presets.reram("cmo"),
    "gain_cell": presets.gain_cell(),
    "gain_cell, noisy": Hardware(device=devices.GainCell(write_std=0.05)),
    "ideal": presets.ideal(),
    "measured": Hardware(device=_MEASURED),
}


def main() -> None:
    parser = option_parser(__doc__, rounds=9)
    parser.add_argument("what", nargs="?", default="aihwkit", choices=["aihwkit", "devices"])
    parser.add_argument("--write", type=Path, help="JSON that keeps the figures of devices")
    parser.add_argument("--against", type=Path, help="JSON of figures to compare those of devices with")
    chosen = use(parser)
    print_setting()
    torch.manual_seed(0)
    if chosen.what == "devices":
        of_devices(chosen)
    else:
        against_aihwkit(chosen.rounds)


def of_devices(chosen: argparse.Namespace) -> None:
    before = None if chosen.against is None else json.loads(chosen.against.read_text())
    found, view = (
        {},
        Table(title=f"{_SIZE} x {_SIZE}, {chosen.rounds} rounds, ms of process time", title_justify="left"),
    )
    for name in ("device", "program", "first age", "later age", *(() if before is None else ("age / before",))):
        view.add_column(name, justify="left" if name == "device" else "right")
    digital = nn.Linear(_SIZE, _SIZE, bias=False)
    for name, hardware in _DEVICES.items():
        found[name] = figures = of_device(AnalogLinear.from_digital(digital, hardware), hardware, chosen.rounds)
        ratios = [] if before is None else [f"{figures['later age'] / before[name]['later age']:.2f}"]
        view.add_row(name, *(f"{value:.2f}" for value in figures.values()), *ratios)
    Console().print(view)
    if before is not None:
        worst = max(found, key=lambda name: found[name]["later age"] / before[name]["later age"])
        share = found[worst]["later age"] / before[worst]["later age"]
        print(judge(f"later age against figures of before, worst device ({worst})", share, 1.3))
    if chosen.write is not None:
        chosen.write.write_text(json.dumps(found, indent=2))


def of_device(layer: AnalogLinear, hardware: Hardware, rounds: int) -> dict[str, float]:
    """Milliseconds of process time, the least of the rounds; the first round warms up."""
    seconds: dict[str, list[float]] = {"program": [], "first age": [], "later age": []}
    step = 1e-4 if isinstance(hardware.device, devices.GainCell) else 1.0  # a gain cell holds for milliseconds
    for chip in range(rounds + 1):
        jobs = (partial(layer.program, chip), partial(layer.age, step * (chip + 1)), partial(layer.age, step * 3600))
        for name, job in zip(seconds, jobs, strict=True):
            start = time.process_time()
            job()
            seconds[name].append(time.process_time() - start)
    return {name: min(values[1:]) * 1e3 for name, values in seconds.items()}


def against_aihwkit(rounds: int) -> None:
    from aihwkit.inference.utils import drift_analog_weights, program_analog_weights
    from linear import INPUTS, PEERS, peer

    digital = nn.Linear(INPUTS, INPUTS)
    ours = nn.Sequential(digital)
    convert(ours, presets.pcm())

    def age_and_read(seconds: int) -> object:
        age(ours, seconds)
        return analog_layers(ours)["0"].cells.digits  # left until it is needed

    jobs: dict[str, Arms] = {
        "program": {"ohmformer": each(partial(program, ours), count())},
        "age": {"ohmformer": each(age_and_read, count(3600, 3600))},
    }
    for name, kind in PEERS.items():
        model = peer(digital, kind, 0.04).eval()
        jobs["program"][f"aihwkit {name}"] = partial(program_analog_weights, model, None)
        jobs["age"][f"aihwkit {name}"] = each(partial(drift_analog_weights, model), count(3600, 3600))
    for job, arms in jobs.items():
        with torch.inference_mode():
            costs = measure(arms, rounds)
        Console().print(table(f"{job} {INPUTS} x {INPUTS}, {rounds} rounds", costs, base="ohmformer"))
        found = ratio(costs["aihwkit torch tile"].seconds, costs["ohmformer"].seconds)
        print(judge(f"{job}: aihwkit torch tile / ours", found, 2.0, least=True))


def each(job: Callable[[int], object], values: Iterator[int]) -> Callable[[], object]:
    """The job with the next value at every call."""
    return lambda: job(next(values))


if __name__ == "__main__":
    main()

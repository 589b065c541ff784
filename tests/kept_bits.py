"""What a set of chips, patterns, memories and recipes computes, to tell whether a change of the code changes a bit.

``python -m tests.kept_bits`` compares the record ``kept_bits.json`` with the code at hand; ``--record`` writes it anew.
Record only where a change of results is intended, and say in CHANGELOG.md which results change and why.

All inputs and weights are multiples of 1/256, so that they are the same on every processor. Cases go through public
names alone, so that they outlast moves of files.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
import json
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import attention
import calibration
import crossbar
from attention import (
    AnalogMemory,
    BlockSparse,
    Controller,
    Documents,
    LearnedStrengths,
    Memory,
    Padding,
    PerHead,
    PerSequence,
    Protected,
    Router,
    gated_attention,
    parse,
    platforms,
)
from crossbar import CellNoise, Converter, Faults, Hardware, Ledger, Tile, WriteVerify, devices, presets

RECORD = Path(__file__).with_name("kept_bits.json")
HOUR, YEAR = 3600.0, 365 * 86400.0

Found = dict[str, Tensor | int | float]
CASES: dict[str, Callable[[], Found]] = {}

THREADS = (
    "device: pcm",
    "device: a user's own",
    "hardware: slices",
    "hardware: mismatch",
    "hardware: faults, offset, slices",
    "hardware: read noise, cheap",
    "hardware: a large layer",
    "calibrated: plain",
    "state: saved and loaded",
    "attention on pcm: causal(window(9) | sinks(3))",
    "memory: pcm",
    "jobs: emulate",
)
"""Cases whose sums are exact or whose order is fixed, so that they give the same bits with any number of threads."""


def case(name: str) -> Callable[[Callable[[], Found]], Callable[[], Found]]:
    def entered(function: Callable[[], Found]) -> Callable[[], Found]:
        assert name not in CASES, name
        CASES[name] = function
        return function

    return entered


def draw(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """Numbers of mean 0 and deviation 1.15, multiples of 1/256: sums of four whole numbers, the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    parts = torch.randint(-256, 257, (4, *shape), generator=generator, dtype=torch.int64)
    return (parts.sum(0).double() / 256).to(dtype)


@torch.no_grad()
def filled(model: nn.Module, size: float = 0.25, seed: int = 3) -> nn.Module:
    """A model in eval mode whose matrices are drawn, and whose vectors are as torch begins them, but for biases."""
    for place, (name, parameter) in enumerate(model.named_parameters()):
        if parameter.dim() > 1 or name.endswith("bias"):
            parameter.copy_(draw(*parameter.shape, seed=seed + place) * size)
    return model.eval()


def changed(hardware: Hardware, **fields: Any) -> Hardware:
    return dataclasses.replace(hardware, **fields)


TILE = Tile(rows=32, cols=16)
PCM = changed(presets.pcm(), tile=TILE)
I, O = 70, 33  # noqa: E741 - as in docs/physics.md


def layer(hardware: Hardware, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    """A layer of ragged tiles, converted and not programmed."""
    model = filled(nn.Sequential(nn.Linear(I, O))).to(dtype)
    crossbar.convert(model, hardware)
    return model


def conductances(model: nn.Module, found: Found, when: str) -> None:
    for place, cells in enumerate(crossbar.analog_layers(model)["0"].conductances()):
        if not cells.isnan().all():
            found[f"G{'+-'[place]} {when}"] = cells


@torch.no_grad()
def seen(model: nn.Module, found: Found, when: str, x: Tensor | None = None) -> None:
    """Outputs of two reads after each other and one after a reset, a read-out and the effective weight."""
    x = draw(5, 3, I) if x is None else x
    one = crossbar.analog_layers(model)["0"]
    crossbar.reset_reads(model)
    found[f"y {when}"] = model(x)
    found[f"y again {when}"] = model(x)
    crossbar.reset_reads(model)
    assert torch.equal(model(x), found[f"y {when}"])
    found[f"read-out {when}"] = one.read_out(x.flatten(0, -2))
    found[f"W {when}"] = one.effective_weight()


def life(hardware: Hardware, times: tuple[float, ...] = (0.0, HOUR, YEAR), dtype: torch.dtype = torch.float32) -> Found:
    """A chip as it is programmed, aged and read."""
    model, found = layer(hardware, dtype), {}
    seen(model, found, "as targets", draw(5, 3, I, dtype=dtype))
    for cells, name in zip(crossbar.analog_layers(model)["0"].target_conductances(), "+-", strict=True):
        if not cells.isnan().all():
            found[f"target G{name}"] = cells
    crossbar.program(model, 5)
    for time in times:
        crossbar.age(model, time)
        conductances(model, found, f"{time:g} s")
        seen(model, found, f"{time:g} s", draw(5, 3, I, dtype=dtype))
    found["G+ without noise"] = crossbar.analog_layers(model)["0"].conductances(noise=False)[0]
    return found


def counted(ledger: Ledger) -> Found:
    return {f"count {name}": number for name, number in sorted(ledger.totals().items())}


# Chips


def aihwkit_pcm() -> devices.AihwkitDevice:
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel

    return devices.AihwkitDevice(PCMLikeNoiseModel(g_max=20.0))


def aihwkit_custom() -> devices.AihwkitDevice:
    from aihwkit.inference.noise.custom import StateIndependentNoiseModel

    return devices.AihwkitDevice(StateIndependentNoiseModel())


@dataclasses.dataclass(frozen=True)
class Leaky(devices.Ideal):
    """A device of a user's own."""

    kind = "leaky"
    loss: float = 0.1

    def program(self, target: Tensor, draw: devices.Draw) -> devices.State:
        return {"target": (target * (1 + 0.01 * draw("error"))).clamp_(min=0.0)}

    def drifted(self, state: devices.State, seconds: float | Tensor) -> Tensor:
        return state["target"] * (1 - self.loss)


MEASURED = devices.Measured(
    target_us=(0.0, 10.0, 30.0),
    mean_us=(0.5, 9.5, 30.5),
    std_us=(0.1, 0.8, 0.4),
    drift_mean=(0.1, 0.05, -0.01),
    drift_std=(0.02, 0.01, 0.0),
)
DEVICES: dict[str, Callable[[], Any]] = {
    "ideal": devices.Ideal,
    "pcm": devices.PCM,
    "pcm, correlated": lambda: devices.PCM(correlated=True),
    "hermes": devices.Hermes,
    "hermes, one device": lambda: devices.Hermes(g_max=10.35, t_0=200.0, devices=1),
    "reram": devices.ReRam,
    "cmo": devices.CmoReRam,
    "gain cell": lambda: devices.GainCell(write_std=0.02),
    "measured": lambda: MEASURED,
    "aihwkit pcm": aihwkit_pcm,
    "aihwkit, state independent": aihwkit_custom,
    "a user's own": Leaky,
}
for _name, _device in DEVICES.items():
    _times = (0.0, 2e-3, 1e-2) if _name == "gain cell" else (0.0, HOUR, YEAR)
    case(f"device: {_name}")(lambda device=_device, times=_times: life(changed(PCM, device=device()), times))

DAC, ADC = Converter(range="per_token"), Converter()
HARDWARE: dict[str, Hardware] = {
    "balanced": changed(PCM, tile=Tile(32, 16, encoding="balanced")),
    "offset": changed(PCM, tile=Tile(32, 16, encoding="offset")),
    "offset, cmo": changed(PCM, device=devices.CmoReRam(), tile=Tile(32, 16, encoding="offset")),
    "balanced, cmo": changed(PCM, device=devices.CmoReRam(), tile=Tile(32, 16, encoding="balanced")),
    "pairs": changed(PCM, tile=Tile(32, 16, pairs=3)),
    "slices": changed(PCM, tile=Tile(32, 16, slices=3, slice_bits=2)),
    "pairs and slices, offset": changed(PCM, tile=Tile(32, 16, pairs=2, slices=2, encoding="offset")),
    "scale of a tile": changed(PCM, tile=Tile(32, 16, scale="tile")),
    "scale of a layer": changed(PCM, tile=Tile(32, 16, scale="layer")),
    "one tile": changed(PCM, tile=Tile()),
    "faults": changed(PCM, faults=Faults(0.01, 0.01, 0.002, broken_rows=0.05, broken_cols=0.05, spare_cols=3, seed=4)),
    "faults, offset, slices": changed(
        PCM, tile=Tile(32, 16, slices=2, encoding="offset"), faults=Faults(0.02, 0.02, 0.002, spare_cols=2)
    ),
    "mismatch": changed(
        PCM,
        dac=Converter(range="per_token", gain_std=0.05, offset_std=0.01),
        adc=Converter(gain_std=0.03, offset_std=0.05),
    ),
    "mismatch, slices": changed(
        PCM,
        tile=Tile(32, 16, slices=2),
        dac=Converter(range="per_token", gain_std=0.05, offset_std=0.01),
        adc=Converter(gain_std=0.03, offset_std=0.05),
    ),
    "mismatch of gains": changed(PCM, dac=Converter(range="max", gain_std=0.05), adc=Converter(gain_std=0.03)),
    "verify": changed(PCM, verify=WriteVerify(0.02, 6, 0.005)),
    "verify, faults": changed(PCM, verify=WriteVerify(0.02, 6, 0.005), faults=Faults(0.01, 0.01, spare_cols=2)),
    "verify, aihwkit": changed(PCM, device=devices.ReRam(), verify=WriteVerify(0.03, 5)),
    "read noise, exact": changed(PCM, read_noise=CellNoise(0.2, 0.02)),
    "read noise, cheap": changed(PCM, read_noise=CellNoise(0.2, 0.02, "cheap")),
    "read noise, constant": changed(PCM, read_noise=CellNoise(0.3)),
    "read noise, exact, slices": changed(PCM, tile=Tile(32, 16, slices=2), read_noise=CellNoise(0.2, 0.02)),
    "read noise, faults": changed(PCM, read_noise=CellNoise(0.3), faults=Faults(0.01, broken_rows=0.1)),
    "bit serial": changed(PCM, dac=Converter(range="per_token", coding="bit_serial", bits=5)),
    "bit serial, exact noise, slices": changed(
        PCM,
        tile=Tile(32, 16, slices=2),
        dac=Converter(range="per_token", coding="bit_serial", bits=4),
        read_noise=CellNoise(0.2, 0.02),
    ),
    "rate": changed(PCM, dac=Converter(range="per_token", coding="rate", bits=6)),
    "static DAC": changed(PCM, dac=Converter(full_scale=3.0)),
    "max DAC": changed(PCM, dac=Converter(range="max")),
    "max DAC, 10 bits": changed(PCM, dac=Converter(range="max", bits=10)),
    "no DAC": changed(PCM, dac=None),
    "no ADC": changed(PCM, adc=None),
    "no converters": changed(PCM, dac=None, adc=None),
    "no converters, no noise": changed(PCM, dac=None, adc=None, output_noise=0.0),
    "ADC of active rows": changed(PCM, adc=Converter(range="active_rows", full_scale=4.0)),
    "ADC of active rows, offset": changed(
        PCM, tile=Tile(32, 16, encoding="offset"), adc=Converter(range="active_rows", full_scale=12.0, bits=6)
    ),
    "1 bit": changed(PCM, dac=Converter(bits=1, range="per_token"), adc=Converter(bits=1, full_scale=2.0)),
    "1-bit ADC": changed(PCM, adc=Converter(bits=1, full_scale=2.0)),
    "4 and 6 bits": changed(PCM, dac=Converter(bits=4, range="per_token"), adc=Converter(bits=6)),
    "16 bits": changed(PCM, dac=Converter(bits=16, range="per_token"), adc=Converter(bits=16)),
    "no output noise": changed(PCM, output_noise=0.0),
}
for _name, _hardware in HARDWARE.items():
    case(f"hardware: {_name}")(lambda hardware=_hardware: life(hardware, (0.0, HOUR)))


@torch.no_grad()
def large(hardware: Hardware) -> Found:
    """More vectors than are worked on at once."""
    model = filled(nn.Sequential(nn.Linear(600, 500)), 1 / 16)
    crossbar.convert(model, hardware)
    crossbar.program(model, 5)
    crossbar.age(model, HOUR)
    return {"y": model(draw(300, 600)), "G+": crossbar.analog_layers(model)["0"].conductances()[0]}


@case("hardware: a large layer")
def _() -> Found:
    return large(presets.pcm())


@case("hardware: a large layer, exact read noise, max DAC")
def _() -> Found:
    return large(changed(presets.pcm(), read_noise=CellNoise(0.2, 0.02), dac=Converter(range="max")))


@case("model: float64")
def _() -> Found:
    return life(PCM, dtype=torch.float64)


@case("model: float64, exact noise, slices, offset")
def _() -> Found:
    hardware = changed(PCM, tile=Tile(32, 16, slices=2, encoding="offset"), read_noise=CellNoise(0.2, 0.02))
    return life(hardware, dtype=torch.float64)


@case("model: bfloat16")
def _() -> Found:
    return life(PCM, dtype=torch.bfloat16)


@case("model: float16")
def _() -> Found:
    return life(PCM, dtype=torch.float16)


@case("model: Conv1D of transformers")
@torch.no_grad()
def _() -> Found:
    from transformers.pytorch_utils import Conv1D

    model = filled(nn.Sequential(Conv1D(O, I)))
    crossbar.convert(model, PCM)
    crossbar.program(model, 1)
    crossbar.age(model, HOUR)
    return {"y": model(draw(4, I)), "W": crossbar.analog_layers(model)["0"].effective_weight()}


@case("chip: several layers, new chips, other seeds, ages back and forth")
@torch.no_grad()
def _() -> Found:
    model = filled(nn.Sequential(nn.Linear(I, O), nn.ReLU(), nn.Linear(O, 40), nn.Linear(40, 9, bias=False)))
    crossbar.convert(model, PCM, per_layer={"2": changed(PCM, faults=Faults(0.05, spare_cols=2))})
    found, x = {}, draw(7, I)
    for seed in (0, 1, 0):
        crossbar.program(model, seed)
        for time in (YEAR, 60.0):
            crossbar.age(model, time)
            found[f"y {seed} {time:g} s"] = model(x)
    crossbar.new_chip(model)
    crossbar.program(model, 2**31 + 7)
    with Ledger(model) as ledger:
        found["y of the new chip"] = model(x)
    with crossbar.bypassed(model):
        found["y of bypassed layers"] = model(x)
    return {**found, **counted(ledger)}


CALIBRATED = {
    "plain": PCM,
    "per line ADC, offset, slices": changed(PCM, tile=Tile(32, 16, slices=2, encoding="offset")),
    "no DAC": changed(PCM, dac=None),
    "active rows": changed(PCM, adc=Converter(range="active_rows", full_scale=4.0)),
    "bit serial": changed(PCM, dac=Converter(range="per_token", coding="bit_serial", bits=5)),
}


def calibrated(hardware: Hardware, seed: int = 2) -> nn.Sequential:
    """A chip with everything that calibration can leave in a layer."""
    model = layer(hardware)
    one = crossbar.analog_layers(model)["0"]
    one.set_line_scale(draw(I, seed=7).abs() / 4 + 0.5)
    one.set_weight_range(one.scales * 0.75)
    one.set_weight_correction(draw(O, I, seed=8) / 64)
    crossbar.program(model, seed)
    crossbar.age(model, HOUR)
    if hardware.dac is not None:
        one.input_range = torch.tensor(3.5)
    one.column_gain = 1 + draw(*one.column_gain.shape, seed=9) / 16
    one.set_adc_range(4.0 + draw(*one.column_gain.shape, seed=10).abs())
    one.set_output_correction(1 + draw(O, seed=11) / 16, draw(O, seed=12) / 8)
    one.set_adapter(draw(I, 4, seed=13) / 16, draw(4, O, seed=14) / 16)
    return model


def _calibrated(hardware: Hardware) -> Found:
    found: Found = {}
    model = calibrated(hardware)
    seen(model, found, "calibrated")
    conductances(model, found, "calibrated")
    one = crossbar.analog_layers(model)["0"]
    one.set_adc_range(torch.tensor(5.0))
    seen(model, found, "with one ADC range")
    found["expected read-out"] = one.expected_read_out(draw(4, I))
    crossbar.reset_gains(model)
    seen(model, found, "gains reset")
    return found


for _name, _hardware in CALIBRATED.items():
    case(f"calibrated: {_name}")(lambda hardware=_hardware: _calibrated(hardware))


@case("state: saved and loaded")
@torch.no_grad()
def _() -> Found:
    hardware = changed(PCM, faults=Faults(0.01, 0.01, spare_cols=2), verify=WriteVerify())
    model, other, found = calibrated(hardware), layer(hardware), {}
    with tempfile.TemporaryDirectory() as folder:
        crossbar.save_state(model, Path(folder) / "state")
        crossbar.load_state(other, Path(folder) / "state")
    seen(other, found, "loaded")
    conductances(other, found, "loaded")
    crossbar.age(other, YEAR)
    seen(other, found, "loaded and aged")
    return found


TRAINED = {
    "pcm": PCM,
    "static DAC": changed(PCM, dac=Converter(full_scale=3.0), adc=Converter(full_scale=4.0)),
    "reram, offset": changed(PCM, device=devices.ReRam(), tile=Tile(32, 16, encoding="offset")),
    "hermes, slices, pairs": changed(PCM, device=devices.Hermes(), tile=Tile(32, 16, slices=2, pairs=2)),
    "cell noise": changed(PCM, read_noise=CellNoise(0.2, 0.02)),
    "cell noise, cheap": changed(PCM, read_noise=CellNoise(0.2, 0.02, "cheap")),
    "bit serial": changed(PCM, dac=Converter(range="per_token", coding="bit_serial", bits=5)),
    "rate": changed(PCM, dac=Converter(range="per_token", coding="rate", bits=5)),
    "active rows": changed(PCM, adc=Converter(range="active_rows", full_scale=4.0)),
    "no converters": changed(PCM, dac=None, adc=None),
    "1 bit": changed(PCM, dac=Converter(bits=1, range="per_token"), adc=Converter(bits=1, full_scale=2.0)),
    "aihwkit": PCM,
}


def gradients(model: nn.Module, x: Tensor, found: Found, when: str) -> None:
    x = x.requires_grad_()
    y = model(x)
    (y * draw(*y.shape, seed=20).to(y)).sum().backward()
    found |= {f"y {when}": y.detach(), f"dx {when}": x.grad}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"d {name} {when}"] = parameter.grad
            parameter.grad = None


def _trained(hardware: Hardware) -> Found:
    found: Found = {}
    model = layer(hardware)
    crossbar.program(model, 1)
    crossbar.age(model, HOUR)
    gradients(model, draw(6, I), found, "in eval mode")
    model.train()
    for step in range(2):
        gradients(model, draw(6, I, seed=step), found, f"in train mode, step {step}")
    dac = hardware.dac
    if dac is None or dac.range == "static":
        crossbar.learn_ranges(model)
        gradients(model, draw(6, I), found, "with learned ranges")
    crossbar.clip_weights(model, 2.0)
    gradients(model, draw(6, I), found, "with clipped weights")
    gradients(model.eval(), draw(6, I), found, "of the chip again")
    return found


def _trained_by_name(name: str) -> Found:
    hardware = TRAINED[name]
    return _trained(changed(hardware, device=aihwkit_pcm()) if name == "aihwkit" else hardware)


for _name in TRAINED:
    case(f"training: {_name}")(lambda name=_name: _trained_by_name(name))


@case("training: calibrated, with trained corrections")
def _() -> Found:
    found: Found = {}
    model = calibrated(PCM)
    one = crossbar.analog_layers(model)["0"]
    one.set_adapter(nn.Parameter(draw(I, 4, seed=13) / 16), nn.Parameter(draw(4, O, seed=14) / 16))
    one.set_output_correction(nn.Parameter(1 + draw(O, seed=11) / 16), nn.Parameter(draw(O, seed=12) / 8))
    gradients(model, draw(6, I), found, "in eval mode")
    gradients(model.train(), draw(6, I), found, "in train mode")
    crossbar.learn_ranges(model)
    gradients(model, draw(6, I), found, "with learned ranges")
    gradients(model.eval(), draw(6, I), found, "of the chip again")
    return found


@case("training: float64")
def _() -> Found:
    found: Found = {}
    model = layer(changed(PCM, dac=Converter(full_scale=3.0)), torch.float64)
    crossbar.program(model, 1)
    crossbar.learn_ranges(model)
    for name in ("in train mode", "again"):
        gradients(model.train(), draw(6, I, dtype=torch.float64), found, name)
    return found


@case("training: gradient checkpointing")
def _() -> Found:
    from torch.utils.checkpoint import checkpoint

    found: Found = {}
    model = layer(changed(PCM, dac=Converter(full_scale=3.0)))
    crossbar.program(model, 1)

    class Again(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = model

        def forward(self, x: Tensor) -> Tensor:
            contexts = crossbar.replayed_reads(self.part)
            result: Tensor = checkpoint(self.part, x, use_reentrant=False, context_fn=contexts)
            return result

    gradients(Again().train(), draw(6, I), found, "checkpointed")
    return found


# Attention

N, H, KV, D = 48, 4, 2, 8


def qkv(n: int = N, batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 30) -> list[Tensor]:
    shapes = ((batch, H, n, D), (batch, KV, n, D), (batch, KV, n, D))
    return [draw(*shape, seed=seed + place, dtype=dtype) for place, shape in enumerate(shapes)]


def _documents() -> Tensor:
    return torch.arange(N) // 17


LAYOUT = torch.tensor([[True, False, True], [False, True, True], [True, False, False]])
PATTERNS: dict[str, Callable[[], attention.Pattern]] = {
    text: (lambda text=text: parse(text))
    for text in (
        "dense",
        "causal(dense)",
        "causal(window(9) | sinks(3))",
        "window(6) | global(0, 31)",
        "strided(7)",
        "causal(strided(7, local) | sinks(1))",
        "fixed(8, 2)",
        "dilated(6, 3)",
        "random(2, 8, 1)",
        "bigbird(8, 2)",
        "neighborhood(5)",
        "topk(7)",
        "causal(topk(7))",
        "topk(7, straight)",
        "causal(blocktopk(8, 2) | sinks(1))",
        "routing(3, 9)",
        "causal(routing(3, 9) | window(4))",
        "heads(window(5), dense, sinks(2), strided(5))",
        "causal(heads(window(5), topk(4), dense, routing(2, 8)))",
        "(window(12) | sinks(2)) & strided(3)",
    )
} | {
    "blocks": lambda: BlockSparse(LAYOUT, 16),
    "window in documents": lambda: parse("window(12)").causal() & Documents(_documents()),
    "window of what is no padding": lambda: parse("window(12)") & Padding(torch.arange(N) < 41),
    "sequences": lambda: PerSequence([parse("window(5)"), parse("causal(dense)")]),
    "heads by pattern": lambda: PerHead([parse(t) for t in ("window(3)", "sinks(1)", "dense", "window(9)")]),
}
HIERARCHICAL = ("hierarchical(8, 2)", "causal(hierarchical(8, 2))")

ROWS = {
    "pcm": changed(presets.pcm(), tile=Tile(16, 4)),
    "ideal": changed(presets.ideal(), tile=Tile(16, 4)),
    "active rows": changed(
        presets.pcm(), tile=Tile(16, 4), adc=Converter(range="active_rows", bits=6, full_scale=4.0), dac=Converter()
    ),
    "no DAC": changed(presets.pcm(), tile=Tile(32, 4), dac=None, adc=Converter(full_scale=1.5)),
    "cell noise, no ADC": changed(
        presets.pcm(), tile=Tile(32, 8), adc=None, read_noise=CellNoise(constant=0.3, relative=0.02)
    ),
    "pairs": changed(presets.pcm(), tile=Tile(7, 10, pairs=2, encoding="balanced")),
    "reram": changed(presets.reram(), tile=Tile(16, 4)),
    "gain cell": changed(presets.gain_cell(), tile=Tile(16, 8)),
}


def attended(pattern: attention.Pattern, dtype: torch.dtype = torch.float32, **options: Any) -> Found:
    """Output, log-sum-exp, gradients and counts."""
    inputs = [x.requires_grad_() for x in qkv(dtype=dtype)]
    with Ledger() as ledger:
        output, lse = gated_attention(*inputs, pattern, return_lse=True, **options)
    (output * draw(*output.shape, seed=40).to(output)).sum().backward()
    found: Found = {"out": output.detach(), "lse": lse.detach()}
    for name, x in zip("qkv", inputs, strict=True):
        if x.grad is not None:
            found[f"d{name}"] = x.grad
    with torch.no_grad():
        found["out without gradients"] = gated_attention(*qkv(dtype=dtype), pattern, **options)
    return {**found, **counted(ledger)}


for _name, _pattern in PATTERNS.items():
    case(f"attention: {_name}")(lambda pattern=_pattern: attended(pattern()))
    case(f"attention on pcm: {_name}")(
        lambda pattern=_pattern: attended(pattern(), hardware=ROWS["pcm"], seconds=HOUR, seed=3)
    )
for _name in HIERARCHICAL:
    case(f"attention: {_name}")(lambda name=_name: attended(parse(name)))
for _name, _hardware in ROWS.items():
    _seconds = 2e-3 if _name == "gain cell" else 60.0
    case(f"attention on rows: {_name}")(
        lambda hardware=_hardware, seconds=_seconds: attended(
            parse("causal(window(20) | sinks(3))"), hardware=hardware, seconds=seconds, layer="a.layer"
        )
    )
    case(f"attention on rows, dense: {_name}")(
        lambda hardware=_hardware, seconds=_seconds: attended(
            parse("dense"), torch.float64, hardware=hardware, seconds=seconds
        )
    )


@case("attention: options")
def _() -> Found:
    mask = torch.arange(N) < torch.tensor([[N], [31]])
    pattern = parse("causal(window(9) | sinks(3))")
    found: Found = {}
    for name, options in {
        "mask": {"mask": mask},
        "dropout": {"dropout": 0.25, "seed": 7},
        "scale": {"scale": 0.5},
        "mask on pcm": {"mask": mask, "hardware": ROWS["pcm"]},
        "dropout on pcm": {"dropout": 0.25, "hardware": ROWS["pcm"]},
        "reference": {"impl": "reference", "mask": mask},
        "bfloat16": {"dtype": torch.bfloat16},
        "bfloat16 on pcm": {"dtype": torch.bfloat16, "hardware": ROWS["pcm"]},
    }.items():
        found |= {f"{name}: {key}": value for key, value in attended(pattern, **options).items()}
    q, k, v = qkv()
    for name, hardware in (("digital", None), ("pcm", ROWS["pcm"])):
        found[f"{name}: last queries"] = gated_attention(q[:, :, -5:], k, v, pattern, offset=N - 5, hardware=hardware)
    return found


@case("attention: controllers")
def _() -> Found:
    found: Found = {}
    fifo = attention.Platform("fifo", rows=16, timing="fifo", unit=1e-9, step=4, service=1)
    machines = {
        "ideal": platforms.ideal(rows=16),
        "loihi": platforms.loihi1(),
        "drops": dataclasses.replace(fifo, queue=2, full="drop_new"),
        "drops old": dataclasses.replace(fifo, queue=2, full="drop_old"),
    }
    pattern = parse("causal(window(9) | sinks(2))")
    for name, platform_ in machines.items():
        controller = Controller(platform_)
        events = controller.events(pattern.rows(N), attention.Placement.sequential(N, platform_.rows))
        timing = controller.simulate(events)
        assert timing.depart is not None
        found[f"{name}: departures"] = timing.depart
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", attention.EventsDropped)
            parts = attended(pattern, controller=controller)
            if platform_.rows == 16:
                parts |= {
                    f"on pcm, {key}": value
                    for key, value in attended(pattern, controller=controller, hardware=ROWS["pcm"]).items()
                }
        found |= {f"{name}: {key}": value for key, value in parts.items()}
    counts = attention.count(pattern, N, head_dim=D, heads=H)
    return found | {f"count: {name}": number for name, number in dataclasses.asdict(counts).items()}


# Memories of keys and values

MEMORIES: dict[str, dict[str, Any]] = {
    "pcm": {"token_seconds": 60.0},
    "pcm, cell noise": {
        "hardware": changed(ROWS["pcm"], read_noise=CellNoise(0.3, 0.02)),
        "token_seconds": 60.0,
    },
    "gain cell, protected": {
        "hardware": ROWS["gain cell"],
        "token_seconds": 1e-4,
        "protected": Protected(2, 5),
    },
    "pcm, protected by pairs": {"protected": Protected(2, 5, by="pairs"), "token_seconds": 1.0},
    "scales of channels and heads": {"key_scale": "channel", "value_scale": "head", "placement": "striped"},
    "scales of heads, saturating": {"key_scale": "head", "activation": attention.Saturating()},
    "active rows": {"hardware": ROWS["active rows"]},
    "reram": {"hardware": ROWS["reram"], "token_seconds": 3600.0},
    "hermes": {"hardware": changed(presets.hermes(), tile=Tile(16, 4)), "token_seconds": 60.0},
    "ideal": {"hardware": ROWS["ideal"]},
}


def decoded(options: dict[str, Any]) -> Found:
    """Tokens at once and one by one, through a ring that turns, aged between."""
    memory = AnalogMemory(Memory(**{"hardware": ROWS["pcm"], "capacity": 20, "sinks": 3, "seed": 2, **options}), "m")
    q, k, v = qkv()
    pattern = parse("causal(window(14) | sinks(3))")
    found: Found = {}
    first, outputs, sums = 0, [], []
    with Ledger() as ledger:
        for n in (9, 1, 1, 12, *[1] * 8, 17):
            here = slice(first, first + n)
            memory.append(k[:, :, here], v[:, :, here])
            output, lse = memory.read(q[:, :, here], pattern, return_lse=True)
            outputs.append(output)
            sums.append(lse)
            first += n
        memory.age(float(options.get("token_seconds", 0.0)) * 10)
        found["out, aged"] = memory.read(q[:, :, -1:], pattern)[0]
        memory.select(torch.tensor([1, 0, 1]))
        found["out, other sequences"] = memory.read(q[[1, 0, 1], :, -1:], parse("causal(dense)"))[0]
    report = memory.report()
    found |= {"out": torch.cat(outputs, 2), "lse": torch.cat([x for x in sums if x is not None], 2)}
    return {**found, **counted(ledger), **{f"report {name}": int(value) for name, value in vars(report).items()}}


for _name, _options in MEMORIES.items():
    case(f"memory: {_name}")(lambda options=_options: decoded(options))


def llama() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    sizes |= {"intermediate_size": 48, "max_position_embeddings": 128, "vocab_size": 40}
    config = LlamaConfig(**sizes, bos_token_id=1, eos_token_id=None, pad_token_id=0, tie_word_embeddings=True)
    return filled(LlamaForCausalLM(config))


def bert() -> Any:
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return filled(BertModel(BertConfig(**sizes, vocab_size=40, max_position_embeddings=64), add_pooling_layer=False))


def words(n: int = 24, batch: int = 2, seed: int = 50) -> Tensor:
    return torch.randint(1, 40, (batch, n), generator=torch.Generator().manual_seed(seed))


@case("models: a language model on tiles and rows")
@torch.no_grad()
def _() -> Found:
    found: Found = {}
    model = llama()
    found["logits, digital"] = model(input_ids=words()).logits
    attention.attach(model, "window(12) | sinks(2)")
    found["logits, gated"] = model(input_ids=words()).logits
    crossbar.convert(model, PCM, exclude="lm_head")
    crossbar.program(model, 3)
    crossbar.age(model, HOUR)
    found["logits, on tiles"] = model(input_ids=words()).logits
    memory = Memory(changed(presets.gain_cell(), tile=Tile(16, 8)), token_seconds=1e-4, protected=Protected(2, 4))
    for name, held in {"gain cell": memory, "pcm": ROWS["pcm"]}.items():
        attention.attach(model, "window(12) | sinks(2)", held)
        crossbar.reset_reads(model)
        cache = attention.memory_cache(model)
        known = inspect.signature(model.forward).parameters
        cached = {"cache" if "cache" in known else "past_key_values": cache}  # the first one since transformers 5.24
        with Ledger(model) as ledger:
            steps = [words()[:, :9], *words()[:, 9:].split(1, 1)]
            found[f"logits, decoded, {name}"] = torch.cat([model(input_ids=ids, **cached).logits for ids in steps], 1)
        attention.renew_memory(model, seed=1)
        crossbar.reset_reads(model)
        found[f"logits, {name}"] = model(input_ids=words()).logits
        found |= {f"{name}: {key}": value for key, value in counted(ledger).items()}
    return found


@case("models: an encoder with padding on tiles and rows")
@torch.no_grad()
def _() -> Found:
    found: Found = {}
    model, mask = bert(), (torch.arange(24) < torch.tensor([[24], [17]])).long()
    crossbar.convert(model, PCM)
    crossbar.program(model, 3)
    for name, pattern, held in (
        ("gated", "window(6) | sinks(2)", None),
        ("selected", "topk(5)", None),
        ("on rows", "window(6) | sinks(2)", ROWS["pcm"]),
    ):
        attention.attach(model, pattern, held)
        crossbar.reset_reads(model)
        with Ledger(model) as ledger:
            output = model(input_ids=words(), attention_mask=mask).last_hidden_state
        found[f"hidden, {name}"] = output[mask.bool()]
        found |= {f"{name}: {key}": value for key, value in counted(ledger).items()}
    return found


@case("models: training on tiles and rows")
def _() -> Found:
    found: Found = {}
    model = llama().train()
    crossbar.convert(model, PCM, exclude="lm_head")
    crossbar.program(model, 3)
    attention.attach(model, "window(12) | sinks(2)", ROWS["pcm"])
    output = model.train()(input_ids=words(), labels=words())
    output.loss.backward()
    found |= {"logits": output.logits.detach(), "loss": output.loss.detach()}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found[f"d {name}"] = parameter.grad
    return found


# What is learned


class Mixed(nn.Module):
    """Strengths by themselves."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.strengths = LearnedStrengths(H, 24, parse("causal(window(7) | sinks(2))"), **options)
        with torch.no_grad():
            self.strengths.strength.copy_(draw(*self.strengths.strength.shape, seed=60) / 4)

    def forward(self, *inputs: Tensor) -> Tensor:
        result: Tensor = self.strengths(*inputs)
        return result


STRENGTHS = {
    "pcm": changed(PCM, tile=Tile(8, 5)),
    "cell noise": changed(PCM, tile=Tile(8, 5), read_noise=CellNoise(0.2, 0.02)),
    "cell noise, cheap": changed(PCM, tile=Tile(8, 5), read_noise=CellNoise(0.2, 0.02, "cheap")),
    "active rows, mismatch": changed(
        PCM,
        tile=Tile(8, 5, encoding="balanced", pairs=2),
        dac=Converter(full_scale=3.0, gain_std=0.03),
        adc=Converter(range="active_rows", full_scale=4.0, gain_std=0.03, offset_std=0.02),
    ),
    "no converters": changed(PCM, tile=Tile(8, 5), dac=None, adc=None),
}


def strengths_in(hardware: Hardware, by: Any, content_free: bool) -> Found:
    found: Found = {}
    model = Mixed(by=by, content_free=content_free)
    inputs = [draw(2, H, 24, D, seed=61 + place) for place in range(1 if content_free else 3)]
    found["digital"] = model(*inputs).detach()
    attention.place_strengths(model, hardware)
    with torch.no_grad():
        crossbar.program(model, 2)
        for time in (0.0, HOUR):
            crossbar.age(model, time)
            with Ledger() as ledger:
                found[f"out {time:g} s"] = model(*inputs)
            found[f"again {time:g} s"] = model(*(x[:, :, :15] for x in inputs))
    for place, cells in enumerate(next(iter(crossbar.analog_layers(model).values())).conductances()):
        found[f"G{'+-'[place]}"] = cells
    return {**found, **counted(ledger)}


for _name, _hardware in STRENGTHS.items():
    for _by, _free in (("offset", False), ("pair", True)):
        case(f"strengths: {_name}, {'content-free' if _free else 'with content'}")(
            lambda hardware=_hardware, by=_by, free=_free: strengths_in(hardware, by, free)
        )


@case("strengths: quantised, and fitted to cores")
def _() -> Found:
    strengths = Mixed(by="pair", content_free=True).strengths
    found: Found = {"4 bits": strengths.quantised(4).of_pairs().detach(), "dense": strengths.matrix().detach()}
    fitted = attention.fitted_to_cores(strengths, seed=1)
    return found | {"on cores": fitted.strengths.of_pairs().detach(), "error": fitted.error}


@case("strengths: trained")
def _() -> Found:
    found: Found = {}
    for content_free in (False, True):
        model = Mixed(content_free=content_free)
        inputs = [draw(2, H, 24, D, seed=61 + place).requires_grad_() for place in range(1 if content_free else 3)]
        (model(*inputs) * draw(2, H, 24, D, seed=65)).sum().backward()
        name = "content-free" if content_free else "with content"
        found |= {f"d strength, {name}": model.strengths.strength.grad, f"dv, {name}": inputs[0].grad}
    return found


@case("router: learned, and its centroids in tiles")
def _() -> Found:
    found: Found = {}
    router = Router(parse("causal(routing(3, 9) | window(4))"), H, D, decay=0.5)
    q, k, v = qkv()
    for step in range(3):
        a, b, _ = qkv(seed=70 + step)
        router(a.requires_grad_(), b)
    assert router.loss is not None
    found |= {"centroids": router.centroids, "loss": router.loss.detach()}
    router.eval()
    with torch.no_grad():
        found["out, digital"] = gated_attention(q, k, v, router(q, k))
        attention.place_centroids(router, changed(PCM, tile=Tile(6, 2)))
        crossbar.program(router, 2)
        crossbar.age(router, HOUR)
        with Ledger() as ledger:
            found["similarity"] = router.similarity(q)
            found["out, in tiles"] = gated_attention(q, k, v, router(q, k))
    return {**found, **counted(ledger)}


# Jobs


class Net(nn.Module):
    """Two layers with a norm between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 12)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        result: Tensor = self.second(torch.relu(self.norm(self.first(x))))
        return result


class Agreement:
    """How close outputs stay to those of the digital model."""

    name, primary = "agreement", "closeness"

    def __init__(self, model: nn.Module) -> None:
        mask = torch.ones(4, 6, dtype=torch.int64)
        mask[0, 4:] = 0
        size = (torch.arange(40) % 8 + 1) / 4
        self.calibration = [{"x": draw(4, 6, 40, seed=80 + place) * size, "attention_mask": mask} for place in range(4)]
        self.evaluation = draw(50, 40, seed=90) * size
        with torch.no_grad():
            self.expected = model(self.evaluation)

    def batches(self, split: str) -> Any:
        return iter(self.calibration if split == "calibration" else [{"x": self.evaluation}])

    def metrics(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            outputs = model(x=self.evaluation)
        error = (outputs - self.expected).norm() / self.expected.norm()
        return {"closeness": 1 - float(error), "signs": float((outputs.sign() == self.expected.sign()).double().mean())}


SMALL = changed(PCM, tile=Tile(16, 8))
STEPS: dict[str, dict[str, Any]] = {
    "InputRanges": {"step": "InputRanges"},
    "WeightRanges": {"step": "WeightRanges"},
    "ReprogramWorst": {"step": "ReprogramWorst"},
    "DriftCompensation": {"step": "DriftCompensation"},
    "DriftCompensation by tile": {"step": "DriftCompensation", "per": "tile"},
    "AdcRanges": {"step": "AdcRanges"},
    "AffineCorrection": {"step": "AffineCorrection"},
    "LowRankAdapter": {"step": "LowRankAdapter"},
    "NormRecalibration": {"step": "NormRecalibration"},
    "Finetune": {"step": "Finetune", "steps": 4, "rank": 2},
    "Finetune weights": {"step": "Finetune", "train": "weights", "chip": "any", "steps": 4},
}


def fitted_step(name: str) -> Found:
    """What a step fits and books, and what the chip gives an hour later."""
    task, model = Agreement(filled(Net())), filled(Net())
    crossbar.convert(model, SMALL)
    crossbar.program(model, 1)
    step = calibration.Recipe.from_dict({"name": "one", "steps": [STEPS[name]]}).steps[0]
    if step.stage is calibration.Stage.IN_USE:
        crossbar.age(model, 86400.0)
    with Ledger() as ledger:
        fitted = step.fit(model, task.batches("calibration"))
    step.apply(model, fitted)
    if step.stage is calibration.Stage.BEFORE_PROGRAMMING:
        crossbar.program(model, 1)
    crossbar.age(model, 86400.0 + HOUR)
    crossbar.reset_reads(model)
    with torch.no_grad():
        return {**fitted, **counted(ledger), "y": model(task.evaluation)}


for _name in STEPS:
    case(f"steps: {_name}")(lambda name=_name: fitted_step(name))


def measured(result: Any) -> Found:
    return {
        f"{m.arm}, chip {m.chip}, {'-' if m.seconds is None else f'{m.seconds:g} s'}, {m.metric}": m.value
        for m in result.measurements
    }


def recipe(*steps: str) -> calibration.Recipe:
    return calibration.Recipe.from_dict({"name": "kept", "steps": [STEPS[step] for step in steps]})


FAST = ("InputRanges", "WeightRanges", "DriftCompensation", "AdcRanges", "AffineCorrection")


@case("jobs: emulate")
def _() -> Found:
    model = filled(Net())
    return measured(calibration.emulate(model, Agreement(model), SMALL, times=["0s", "1d"], chips=2, seed=4))


@case("jobs: calibrate")
def _() -> Found:
    model = filled(Net())
    task = Agreement(model)
    steps = recipe(*FAST[:2], "ReprogramWorst", *FAST[2:], "LowRankAdapter")
    return measured(calibration.calibrate(model, task, SMALL, steps, times=["0s", "1d"], chips=2))


@case("jobs: calibrate on a population")
def _() -> Found:
    model = filled(Net())
    return measured(
        calibration.calibrate(
            model, Agreement(model), SMALL, recipe(*FAST), times=["1d"], chips=2, staircase=False, population=2
        )
    )


@case("jobs: calibrate into a bundle")
@torch.no_grad()
def _() -> Found:
    model = filled(Net())
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "bundle"
        calibration.calibrate(
            model, Agreement(model), SMALL, recipe(*FAST), times=["1d"], chips=1, staircase=False, out=out
        )
        chip = calibration.load_bundle(out, model=filled(Net()))
        return {"y": chip.model(draw(5, 40))}


class Words:
    """The mean log-probability of the likeliest next word."""

    name, primary = "words", "score"

    def batches(self, split: str) -> Any:
        return [
            {"input_ids": words(n=20, batch=1, seed=100 + place + (split == "evaluation") * 10)} for place in (0, 1)
        ]

    def metrics(self, model: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            scores = [model(**batch).logits.log_softmax(-1).amax(-1).mean() for batch in self.batches("evaluation")]
        return {"score": float(torch.stack(scores).mean())}


@case("jobs: emulate a language model with a memory")
def _() -> Found:
    memory = Memory(presets.pcm(), protected=Protected(1, 4))
    return measured(
        calibration.emulate(
            llama(),
            Words(),
            SMALL,
            pattern="window(8) | sinks(2)",
            memory=memory,
            times=["1h"],
            chips=2,
            exclude="lm_head",
        )
    )


@case("jobs: energy")
def _() -> Found:
    from calibration.energy import energy

    found: Found = {}
    study = energy(
        llama(), Words(), SMALL, ("dense", "window(6) | sinks(2)"), recipe=None, memory="gain_cell", exclude="lm_head"
    )
    for arm in study.arms:
        found |= {f"{arm.pattern}: digital": arm.digital, f"{arm.pattern}: analog": arm.analog}
        for work in arm.work:
            name = f"{arm.pattern}, {work.phase}"
            found |= {f"{name}: pJ": study.report(arm, work).total.pj, f"{name}: macs": work.macs}
            found |= {f"{name}: {key}": value for key, value in counted(work.ledger).items()}
    return found


# The record


def compute(name: str) -> Found:
    """A case with fresh models, on the present number of threads."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(99)  # which must not matter
        return CASES[name]()


def described(value: Tensor | int | float) -> Any:
    """What the record holds: a number as it is; of a tensor its kind, hash, mean and root mean square.

    The last two are of what is finite. All NaN count as one, since their bits mean nothing.
    """
    if not isinstance(value, Tensor):
        return value
    values = value.detach().contiguous()
    if values.is_floating_point():
        values = torch.where(values.isnan(), torch.full_like(values, torch.nan), values)
    content = values.flatten().view(torch.uint8).numpy().tobytes()
    real = values.double()[values.isfinite()]
    plain = [0.0, 0.0] if real.numel() == 0 else [float(real.mean()), float(real.square().mean().sqrt())]
    kind = f"{str(values.dtype).removeprefix('torch.')} {list(values.shape)}, {real.numel()} finite"
    return [kind, hashlib.sha256(content).hexdigest()[:32], *(float(f"{number:.8g}") for number in plain)]


def machine() -> dict[str, str]:
    """What decides the last bits of floating-point results."""
    import numba
    import numpy
    import transformers

    known = Path("/proc/cpuinfo")
    lines = known.read_text(encoding="utf-8").splitlines() if known.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    units = sorted(flag for flag in flags if flag.startswith(("avx", "fma", "amx", "f16c")))
    return {
        "processor": f"{platform.machine()} {facts.get('vendor_id', platform.processor())}",
        "vector units": " ".join(units),
        "torch runs on": torch.backends.cpu.get_cpu_capability(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        **{package.__name__: package.__version__ for package in (torch, numpy, numba, transformers)},
    }


def load() -> dict[str, Any]:
    record: dict[str, Any] = json.loads(RECORD.read_text(encoding="utf-8"))
    return record


def tolerance(case_name: str, key: str) -> float:
    """How far means and scores may be off on a processor whose sums and functions round otherwise.

    Conductances and effective weights have float32's rounding, 1e-7, in each number. Behind a converter a code may tip
    over: a step, a thirtieth of the root mean square, in one of some hundred outputs moves their mean by 1e-4 of it.
    One of a task's 600 signs is 0.002.
    """
    if case_name.startswith("jobs"):
        return 1e-2
    return 1e-5 if key.startswith(("G", "W", "target")) else 1e-3


def difference(expected: Any, found: Any, rtol: float) -> str:
    """How a described value differs from the record by more than another processor makes it; empty: it does not.

    A mean may be off by ``rtol`` of the root mean square.
    """
    if isinstance(expected, list):
        if expected[0] != found[0]:
            return f"{found[0]}, not {expected[0]}"
        pairs = zip(("mean", "root mean square"), expected[2:], found[2:], strict=True)
        off = [f"{name} {new!r}, not {old!r}" for name, old, new in pairs if not abs(new - old) <= rtol * expected[3]]
        return "; ".join(off)
    if found == expected or (isinstance(expected, float) and abs(found - expected) <= rtol * max(1.0, abs(expected))):
        return ""
    return f"{found!r}, not {expected!r}"


def other_machine(record: dict[str, Any]) -> str:
    """In what this machine differs from the record's, so that last bits may too; empty: in nothing that is known."""
    here = machine()
    return "; ".join(f"{name}: {here[name]}, not {old}" for name, old in record["machine"].items() if here[name] != old)


@functools.cache
def described_case(name: str, threads: int = 1) -> dict[str, Any]:
    """A case as the record has it, computed with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return {key: described(value) for key, value in compute(name).items()}
    finally:
        torch.set_num_threads(before)


def main() -> int:
    """Compare with the record, or write it anew; 1 if anything differs."""
    found = {name: described_case(name) for name in CASES}
    if "--record" in sys.argv:
        parts = []
        for name, values in found.items():
            lines = (f" {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
            parts.append(f"{json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n}")
        head = f'{{\n"machine": {json.dumps(machine(), indent=1)},\n"cases": {{\n'
        RECORD.write_text(head + ",\n".join(parts) + "\n}\n}\n", encoding="utf-8")
        print(f"{len(found)} cases recorded in {RECORD.name}")  # noqa: T201 - what the command says
        return 0
    record = load()
    if reason := other_machine(record):
        print(f"another machine than the record's ({reason}): last bits may differ")  # noqa: T201 - what the command says
    differ = 0
    for name in sorted({*found, *record["cases"]}):
        new, old = found.get(name, {}), record["cases"].get(name, {})
        for key in sorted({*new, *old}):
            if new.get(key) != old.get(key):
                differ += 1
                print(f"{name}: {key}: {new.get(key)}, not {old.get(key)}")  # noqa: T201 - what the command says
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())

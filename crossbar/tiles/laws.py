"""What a compiled pass over cells is told of a device: its kernel, its numbers, and what is drawn for each cell."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from crossbar.devices import PCM, AnyDevice, CmoReRam, GainCell, Hermes, Ideal, Measured, PowerLawDrift, ReRam, window


class Law(NamedTuple):
    """A device at a time, for `crossbar.tiles.kernels`.

    Attributes:
        name: of `crossbar.tiles.kernels.LAWS`.
        numbers: in the order that is stated there.
        rows: how many statistics a target has.
        drawn: for what cells have normal numbers: what follows the cells' key in that of the stream.
        whole: conductances are as they are read; or else the device's fluctuation, which needs no state, and its
            window follow.
        statistics: gives them of targets (µS) where torch makes them, one tensor a row, and then ``numbers`` are those
            of an empty cell; None: the pass makes them.
    """

    name: str
    numbers: tuple[float, ...]
    rows: int
    drawn: tuple[tuple[str | float, ...], ...]
    whole: bool = True
    statistics: Callable[[Tensor], tuple[Tensor, ...]] | None = None


def has_law(device: AnyDevice) -> bool:
    """Whether cells of a device can be read in one compiled pass: those of this package whose 1/f noise has no past."""
    return type(device) in _LAWS and not (isinstance(device, PowerLawDrift) and device.correlated)


def law(device: AnyDevice, seconds: float) -> Law:
    """The law of a device that has one, at a time since programming."""
    return _LAWS[type(device)](device, seconds)


def fluctuating(device: AnyDevice, seconds: float) -> Law:
    """The law of cells that fluctuate, with deviations that are given, around the conductances that stand for targets.

    What is read is within the device's window.
    """
    return Law("fluctuating", window(device), 1, (("1/f", seconds),))


def _power_law(
    name: str, device: PowerLawDrift, seconds: float, characterised: float, fit: tuple[float, ...] = ()
) -> Law:
    drawn: tuple[tuple[str | float, ...], ...] = (("programming",), ("drift",))
    growth = 0.0
    if device.read_noise_scale > 0:
        growth = math.sqrt(math.log((seconds + device.t_0 + device.t_read) / (2 * device.t_read)))
        drawn = (*drawn, ("1/f", seconds))
    scales = (device.g_max / characterised, device.prog_noise_scale)
    drift = (device.drift_scale, -math.log1p(seconds / device.t_0))
    return Law(name, (device.g_max, *drift, growth * device.read_noise_scale, *scales, *fit), 3, drawn)


def _pcm(device: PCM, seconds: float) -> Law:
    return _power_law("pcm", device, seconds, 25.0)


def _hermes(device: Hermes, seconds: float) -> Law:
    fit = device.fit
    mean = (fit.mean_below, *fit.mean_log, *fit.mean)
    spread = (fit.spread_below, *fit.spread_log, *fit.spread)
    numbers = (*fit.programming, *mean, *spread, fit.read_below, *fit.read_log, *fit.read)
    return _power_law("hermes", device, seconds, fit.g_max, numbers)


def _reram(device: ReRam, seconds: float) -> Law:
    empty = device.deviations(torch.zeros(1, device="cpu"), seconds)
    drawn = (("programming",), ("relaxation",))
    return Law("reram", tuple(map(float, empty)), 2, drawn, statistics=partial(device.deviations, seconds=seconds))


def _cmo(device: CmoReRam, seconds: float) -> Law:
    relaxation = (0.0, 0.0, 0.0) if seconds == 0 else (*device.relaxation(seconds), device.drift_scale)
    numbers = (device.g_min, *device.programming, device.prog_noise_scale, *relaxation)
    return Law("cmo", numbers, 2, (("programming",), ("relaxation",)), whole=False)


def _gain_cell(device: GainCell, seconds: float) -> Law:
    step, deviation = device.g_max / (device.levels - 1), device.write_std * device.g_max
    drawn: tuple[tuple[str], ...] = (("programming",),) if deviation > 0 else ()
    return Law("gain_cell", (step, math.exp(-seconds / device.tau), deviation), 1, drawn)


def _ideal(device: Ideal, seconds: float) -> Law:
    return Law("ideal", (), 0, ())


def _measured(device: Measured, seconds: float) -> Law:
    columns, drawn = [device.mean_us, device.std_us], [("programming",)]
    if device.drift_mean is not None and device.drift_std is not None:
        columns += [device.drift_mean, device.drift_std]
        drawn.append(("drift",))
    table = [number for column in (device.target_us, *columns) for number in column]
    return Law("measured", (len(columns), -math.log1p(seconds / device.t_0), *table), len(columns), tuple(drawn))


_LAWS: dict[type, Callable[[Any, float], Law]] = {
    PCM: _pcm,
    Hermes: _hermes,
    ReRam: _reram,
    CmoReRam: _cmo,
    GainCell: _gain_cell,
    Ideal: _ideal,
    Measured: _measured,
}

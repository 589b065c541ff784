"""A converted model as one chip: programmed, aged and read as a whole."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from crossbar.errors import InputError, require_whole
from crossbar.nn.linear import AnalogLinear
from crossbar.tiles.wires import resistive
from crossbar.units import to_seconds


def analog_layers(model: nn.Module) -> dict[str, AnalogLinear]:
    """The analog layers of a model by name.

    Raises:
        InputError: if there are none.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, AnalogLinear)}
    if not layers:
        raise InputError(f"{type(model).__name__} has no analog layers: call crossbar.convert(model, hardware) first")
    return layers


@torch.inference_mode(False)
@torch.no_grad()
def program(model: nn.Module, seed: int = 0) -> None:
    """Write every analog layer's targets as chip ``seed``, with programming error; the model is then 0 s old.

    Input ranges and line scales stay; gains, which were measured on the cells as they were, become 1 again, and output
    corrections and adapters are dropped.

    Raises:
        InputError: for a model without analog layers or a seed that is not a whole number of 0 or more.
    """
    require_whole("seed", seed, least=0)
    layers = analog_layers(model).values()
    name, copies = Counter(layer.name for layer in layers).most_common(1)[0]
    if copies > 1:
        raise InputError(f"{copies} layers are called {name!r} and would get the same noise: convert in one call")
    for layer in layers:
        layer.program(seed)


@torch.inference_mode(False)
@torch.no_grad()
def age(model: nn.Module, seconds: str | float) -> None:
    """Move a programmed model to a time since programming, such as ``3600`` or ``"1h"``, forwards or backwards.

    With wires that have a resistance this solves every tile's circuit, which takes half a minute for 10 million weights
    on two cores; a terminal shows how far it is.

    Raises:
        InputError: for a model that was not programmed and for an impossible time.
    """
    time, layers = to_seconds(seconds), analog_layers(model).values()
    for layer in layers:
        layer.require_programmed()
    for layer in _shown(list(layers)):
        layer.age(time)


def _shown(layers: list[AnalogLinear]) -> Iterable[AnalogLinear]:
    """Layers one after another, with a bar on standard error if that is a terminal and their wires take a while."""
    if not sys.stderr.isatty() or not any(resistive(layer.hardware) for layer in layers):
        return layers
    from rich.console import Console
    from rich.progress import track

    return track(layers, "Solving the wires of tiles", console=Console(stderr=True), transient=True)


@torch.inference_mode(False)
def new_chip(model: nn.Module) -> None:
    """Take another chip: the next `program` draws new faults too, while programming anew keeps those there are."""
    for layer in analog_layers(model).values():
        layer.new_chip()


@torch.inference_mode(False)
def reset_gains(model: nn.Module) -> None:
    """Make the calibrated gains of every layer 1 again and drop output corrections and adapters."""
    for layer in analog_layers(model).values():
        layer.reset_gains()


def reset_reads(model: nn.Module) -> None:
    """Start the read-noise streams again, so that the next evaluation repeats the last one bit for bit."""
    for layer in analog_layers(model).values():
        layer.reset_reads()


@contextmanager
def bypassed(model: nn.Module) -> Iterator[None]:
    """Compute with the digital layers for a while: the reference that calibration compares a chip with."""
    before = [(layer, layer.bypass) for layer in analog_layers(model).values()]
    for layer, _ in before:
        layer.bypass = True
    try:
        yield
    finally:
        for layer, bypass in before:
            layer.bypass = bypass

"""Cells of GPUs are the CPU's: programmed, aged and read again, and drawn anew for training."""

import dataclasses

import pytest
import torch

from crossbar import Hardware, Tile, devices
from crossbar.native import gpu
from crossbar.random.streams import Stream
from crossbar.tiles import ageing, injection
from crossbar.tiles.tile_array import TileArray

DEVICE = torch.device("cpu" if gpu.interpreted() else "cuda")
pytestmark = pytest.mark.skipif(gpu.why_not() is not None, reason=f"no kernels here: {gpu.why_not()}")
SCALED = devices.PCM(g_max=13.7, prog_noise_scale=1.3, drift_scale=0.7, read_noise_scale=2.1)


def array(device, encoding="differential", lines=40, outputs=31):
    matrix = torch.randn(outputs, lines, generator=torch.Generator().manual_seed(0))
    matrix[:, 3] = 0
    cells = TileArray(matrix, Hardware(device=device, tile=Tile(32, 16, encoding=encoding)), "cells")
    cells.program(3)
    return cells


def on_gpu(monkeypatch):
    """Let Triton make what it makes on a GPU."""
    monkeypatch.setattr(gpu, "serves", lambda device: True)


@pytest.mark.parametrize(
    ("device", "seconds", "encoding"),
    [
        (devices.PCM(), 0.0, "balanced"),
        (devices.PCM(), 60.0, "offset"),
        (devices.PCM(), 3e7, "differential"),
        (SCALED, 3600.0, "differential"),
    ],
)
def test_cells_read_again(device, seconds, encoding, monkeypatch):
    cells = array(device, encoding)
    cells.age(seconds)
    expected, digits = cells.conductances(), cells.digits
    on_gpu(monkeypatch)
    cells = cells.to(DEVICE)
    cells.age(seconds)
    assert torch.equal(cells.digits.cpu(), digits)
    assert torch.equal(cells.conductances().cpu(), expected)


def test_parts_of_an_array_have_the_numbers_of_the_whole(monkeypatch):
    on_gpu(monkeypatch)
    device, shape = devices.PCM(), (2, 40, 31)
    target = torch.rand(40, 31, generator=torch.Generator().manual_seed(0)).sub_(0.5).mul_(50.0).to(DEVICE)
    whole, parts = torch.empty_like(target), torch.empty_like(target)
    ageing.read_again(device, [target], 60.0, ("cells",), shape, slice(0, 40), whole)
    for lines in (slice(0, 17), slice(17, 40)):
        ageing.read_again(device, [target[lines]], 60.0, ("cells",), shape, lines, parts[lines])
    assert torch.equal(parts, whole)


@pytest.mark.parametrize("device", [devices.PCM(), devices.reram.CmoReRam()], ids=lambda device: device.kind)
def test_cells_for_training(device, monkeypatch):
    low, high = devices.window(device)[0], device.g_max
    targets = torch.rand(3, 17, 11, generator=torch.Generator().manual_seed(0)) * (high - low) + low
    targets[0, 0] = torch.linspace(low, high, 11)
    hardware, draws = Hardware(device=device), Stream(("training",), DEVICE)
    expected = injection.written(targets.clone(), hardware, 3600.0, Stream(("training",)))
    on_gpu(monkeypatch)
    found = injection.written(targets.clone().to(DEVICE), hardware, 3600.0, draws).cpu()
    assert torch.equal(found, expected)
    assert not torch.equal(found, targets)


def test_what_is_read_again(monkeypatch):
    like = torch.empty(1, device="meta")
    assert not ageing.reads_again(devices.PCM(), like)
    on_gpu(monkeypatch)
    assert ageing.reads_again(devices.PCM(), like)
    assert not ageing.reads_again(dataclasses.replace(devices.PCM(), correlated=True), like)
    assert not ageing.reads_again(devices.PCM(), like.double())

"""What programming left in cells: made again where it can be, kept where not."""

import dataclasses

import pytest
import torch

from crossbar import (
    AnalogLinear,
    Hardware,
    Tile,
    WriteVerify,
    age,
    convert,
    devices,
    load_state,
    presets,
    program,
    reset_reads,
    save_state,
)
from crossbar.tiles import ageing
from crossbar.tiles.tile_array import TileArray
from tests.crossbar.conftest import digital, seeded

PCM = Hardware(tile=Tile(32, 16))
KEY = (3, "cells")


def matrix(outputs=33, lines=70, dtype=torch.float32):
    return torch.randn(outputs, lines, generator=torch.Generator().manual_seed(0)).to(dtype)


def held(model):
    """Bytes of all tensors that a module holds, each storage once."""
    tensors = [*model.buffers(), *model.parameters()]
    for layer in model.modules():
        if isinstance(layer, TileArray):
            tensors += [part for form in layer._forms.values() for part in form]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.parametrize("encoding", ["differential", "balanced", "offset"])
@pytest.mark.parametrize(
    "scales", [{}, {"prog_noise_scale": 1.3, "drift_scale": 0.7, "read_noise_scale": 2.1, "g_max": 13.7}]
)
@pytest.mark.parametrize("seconds", [0.0, 3600.0, 3e7])
def test_cells_made_again_are_those_that_were_kept(encoding, scales, seconds):
    hardware = dataclasses.replace(PCM, device=devices.PCM(**scales), tile=Tile(32, 16, encoding=encoding))
    cells = TileArray(matrix(), hardware, "cells")
    cells.program(3)
    cells.age(seconds)
    state = ageing.program(hardware.device, cells.targets(), KEY)
    assert cells.state().keys() == state.keys()
    assert all(torch.equal(cells.state()[name], state[name]) for name in state)
    kept = ageing.conductances(hardware.device, state, seconds, KEY)
    assert torch.equal(cells.conductances(), kept)
    assert torch.equal(
        cells.conductances(noise=False), ageing.conductances(hardware.device, state, seconds, KEY, False)
    )
    other = TileArray(matrix(), hardware, "cells")
    other.set_state(state, 3, seconds)
    assert torch.equal(cells.digits, other.digits)


TABLE = {"target_us": (0.0, 4.0, 9.0, 25.0), "mean_us": (0.4, 4.3, 8.8, 24.0), "std_us": (0.2, 0.5, 0.8, 1.0)}
DRIFT = {"drift_mean": (0.05, 0.05, -0.06, 0.06), "drift_std": (0.01, 0.02, 0.01, 0.03)}
LONG = {name: tuple(i**0.5 + shift for i in range(70)) for name, shift in (("target_us", 0.0), ("mean_us", 0.1))}


@pytest.mark.parametrize("encoding", ["differential", "offset"])
@pytest.mark.parametrize("seconds", [0.0, 3e5])
@pytest.mark.parametrize(
    "device",
    [
        devices.PCM(read_noise_scale=0.0),
        devices.Hermes(),
        devices.Hermes(g_max=9.0, devices=1, prog_noise_scale=1.3, drift_scale=0.7, read_noise_scale=2.1),
        devices.ReRam(),
        devices.ReRam(g_max=25.0, noise_scale=1.7),
        devices.CmoReRam(),
        devices.CmoReRam(g_max=80.0, g_min=10.0, acceptance=2.0, read_noise_scale=0.0),
        devices.GainCell(tau=1e5),
        devices.GainCell(write_std=0.1),
        devices.Ideal(),
        devices.Measured(**TABLE),
        devices.Measured(**TABLE, **DRIFT),
        devices.Measured(**LONG, std_us=(0.3,) * 70),
    ],
    ids=lambda device: device.kind,
)
def test_one_pass_has_the_bits_of_the_device(device, seconds, encoding):
    hardware = Hardware(device=device, tile=Tile(32, 16, encoding=encoding))
    weights = matrix()
    weights[:, 3] = 0.0
    cells = TileArray(weights, hardware, "cells")
    cells.program(3)
    cells.age(seconds)
    assert ageing.reads_again(device, cells.scales)
    state = ageing.program(device, cells.targets(), KEY)
    kept = TileArray(weights, hardware, "cells")
    kept.set_state(state, 3, seconds)
    assert torch.equal(cells.conductances(), ageing.conductances(device, state, seconds, KEY))
    assert torch.equal(cells.digits, kept.digits)


@pytest.mark.parametrize("lines", [1, 7, 10_000])
def test_pieces_of_word_lines_change_nothing(monkeypatch, lines):
    cells = TileArray(matrix(), PCM, "cells")
    cells.program(3)
    cells.age(60.0)
    whole = cells.digits.clone()
    monkeypatch.setattr(ageing, "_LINES", lines * 2 * 33)
    cells.age(60.0)
    assert torch.equal(cells.digits, whole)


def test_a_chip_keeps_what_was_written_when_its_matrix_changes():
    layer = AnalogLinear.from_digital(digital(), PCM)
    layer.program(0)
    layer.age(60.0)
    before = layer.effective_weight()
    with torch.no_grad():
        layer.digital.weight.mul_(3.0)
    layer.age(3600.0)
    layer.age(60.0)
    assert torch.equal(layer.effective_weight(), before)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 8.0), (torch.bfloat16, 4.1)])
def test_bytes_a_weight_beside_the_digital_ones(dtype, most):
    model = torch.nn.Sequential(torch.nn.Linear(512, 512, bias=False, dtype=dtype))
    own = held(model)
    convert(model, presets.pcm())
    program(model, 0)
    age(model, "1h")
    with torch.no_grad():
        model(torch.ones(2, 512, dtype=dtype))
    # Two bytes of fixed point and the matrix in its own dtype; scales, gains and steps are 0.05.
    assert (held(model) - own) / 512**2 <= most


@pytest.mark.parametrize(
    "hardware",
    [dataclasses.replace(PCM, verify=WriteVerify()), dataclasses.replace(PCM, device=devices.ReRam())],
    ids=["verified", "ReRAM"],
)
def test_the_state_of_cells_that_were_verified_or_written_again_is_kept(hardware):
    cells = TileArray(matrix(), hardware, "cells")
    cells.program(3)
    assert bool(cells._cells) == (hardware.verify is not None)
    columns = torch.zeros_like(cells.scales, dtype=torch.bool)
    columns[0, 0] = True
    cells.write_again(columns, WriteVerify())
    assert cells._cells


def test_a_loaded_state_that_can_be_made_again_is_not_kept(tmp_path):
    def made():
        model = seeded(lambda: torch.nn.Sequential(torch.nn.Linear(70, 33)))
        convert(model, PCM)
        return model

    model, other = made(), made()
    program(model, 3)
    age(model, "1d")
    save_state(model, tmp_path / "state")
    load_state(other, tmp_path / "state")
    assert not other[0].cells._cells
    x = torch.ones(2, 70)
    with torch.no_grad():
        assert torch.equal(other(x), model(x))
        other[0].digital.weight.add_(1.0)  # now programming would leave something else
    load_state(other, tmp_path / "state")
    assert other[0].cells._cells
    with torch.no_grad():
        reset_reads(model)
        assert torch.equal(other(x), model(x))

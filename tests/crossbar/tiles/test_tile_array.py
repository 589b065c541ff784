"""Tiles by themselves: cells of a matrix that someone hands them, without any layer."""

import copy
import dataclasses
import pickle

import pytest
import torch

from crossbar import AnalogLinear, CellNoise, Converter, Faults, Hardware, InputError, Tile, WriteVerify, presets
from crossbar.random.streams import Stream
from crossbar.tiles.faults import Fault
from crossbar.tiles.tile_array import TileArray
from tests.crossbar.conftest import QUIET, inputs

CHIP = Hardware(tile=Tile(4, 3), output_noise=0.0)
ENCODED = {
    "differential": Tile(4, 3),
    "balanced": Tile(4, 3, encoding="balanced"),
    "offset": Tile(4, 3, encoding="offset"),
    "pairs and slices": Tile(4, 3, pairs=2, slices=3, slice_bits=2),
    "a scale of the layer": Tile(4, 3, "layer"),
}
encoded = pytest.mark.parametrize("tile", ENCODED.values(), ids=ENCODED)


def weight(dtype=torch.float32):
    return inputs(7, 10, seed=3, dtype=dtype)


def seen(cells):
    """The matrix that noise-free converters would find, ``[O, I]``."""
    gains = cells.scales.new_ones(len(cells.scales) * cells.hardware.tile.slices, cells.out_features)
    return cells.readout(gains, None).effective(cells.hardware.tile.rows).t()


@encoded
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cells_that_were_not_written_hold_the_matrix(tile, dtype):
    cells = TileArray(weight(dtype), dataclasses.replace(QUIET, tile=tile), "cells")
    assert cells.conductances().shape == (cells.cells_a_weight, 10, 7)
    assert cells.scales.shape == (3, 7)
    found = seen(cells)
    assert found.dtype == dtype
    if tile.slices == 1:
        torch.testing.assert_close(found, weight(dtype), rtol=0, atol=20 * torch.finfo(dtype).eps)
    else:  # rounded to steps of 1/63 of each column's largest
        step = cells.scales.repeat_interleave(4, 0)[:10].t() / 63
        assert ((found - weight(dtype)).abs() <= 0.5001 * step).all()
    assert torch.equal(cells.conductances(), cells.targets())


@encoded
def test_a_life(tile):
    cells = TileArray(weight(), dataclasses.replace(CHIP, tile=tile), "cells")
    pulses = cells.program(5)
    assert pulses == 70 * cells.cells_a_weight
    assert (cells.seed, cells.seconds) == (5, 0.0)
    written, states = cells.conductances(), copy.deepcopy(cells.state())
    assert not torch.equal(written, cells.targets())
    cells.age(3600.0)
    aged, digits = cells.conductances(), cells.digits
    assert cells.seconds == 3600.0
    assert float(aged.mean()) < float(written.mean())  # it drifted
    cells.age(0.0)
    assert torch.equal(cells.conductances(), written)  # and back
    cells.age(3600.0)
    assert torch.equal(cells.conductances(), aged)
    other = TileArray(weight(), cells.hardware, "cells")
    other.set_state(states, 5, 3600.0)
    assert torch.equal(other.conductances(), aged)
    assert torch.equal(other.digits, digits)
    cells.new_chip()
    assert (cells.seed, cells.seconds, cells.state()) == (None, 0.0, {})
    assert torch.equal(cells.conductances(), cells.targets())


def test_a_chip_depends_on_seed_and_name_alone():
    def chip(seed, name, value=None):
        cells = TileArray(weight() if value is None else value, CHIP, name)
        cells.program(seed)
        cells.age(60.0)
        return cells.conductances()

    assert torch.equal(chip(5, "cells"), chip(5, "cells"))
    assert not torch.equal(chip(5, "cells"), chip(6, "cells"))
    assert not torch.equal(chip(5, "cells"), chip(5, "others"))


def test_tiles_of_a_layer_are_these():
    layer = AnalogLinear.from_matrix(weight(), CHIP, "cells")
    cells = TileArray(weight(), CHIP, "cells")
    layer.program(5)
    cells.program(5)
    layer.age(60.0)
    cells.age(60.0)
    assert torch.equal(layer.cells.conductances(), cells.conductances())
    assert torch.equal(layer.effective_weight(), seen(cells))
    assert isinstance(layer.cells, TileArray)


def test_what_gives_the_matrix_is_asked_when_cells_are_written():
    held = {"weight": weight()}
    cells = TileArray(lambda: held["weight"], QUIET, "cells")
    before = cells.scales.clone()
    held["weight"] = 3 * weight()
    assert torch.equal(cells.scales, before)
    cells.program(0)
    torch.testing.assert_close(cells.scales, 3 * before)
    torch.testing.assert_close(seen(cells), 3 * weight())


def test_a_matrix_keeps_no_gradient():
    given = weight().requires_grad_()
    cells = TileArray(given, CHIP, "cells")
    cells.program(1)
    assert not any(tensor.requires_grad for tensor in (cells.matrix(), cells.scales, cells.targets(), cells.digits))


def test_a_chip_that_nobody_has_seen_has_gradients():
    cells = TileArray(weight(), QUIET, "cells")
    matrix = (2 * weight()).requires_grad_()
    readout = cells.fresh(matrix, Stream(("draws",)), cells.scales.new_ones(3, 7), None)
    found = readout.effective(4).t()
    torch.testing.assert_close(found, matrix)
    found.backward(inputs(7, 10, seed=8))
    torch.testing.assert_close(matrix.grad, inputs(7, 10, seed=8), rtol=1e-5, atol=1e-5)


@encoded
def test_where_there_are_no_devices_nothing_is_seen(tile):
    devices = inputs(7, 10, seed=4) > 0
    hardware = dataclasses.replace(CHIP, tile=tile, read_noise=CellNoise(0.5))
    cells = TileArray(weight(), hardware, "cells", devices)
    assert (cells.fault_map == torch.where(devices.t(), int(Fault.NONE), int(Fault.OPEN))).all()
    for _ in range(2):
        cells.program(5)
        assert (cells.conductances()[:, ~devices.t()] == 0).all()
        assert (cells.conductances()[:, devices.t()] > 0).any()
        cells.new_chip()


def test_faults_are_drawn_once_and_stay():
    hardware = dataclasses.replace(CHIP, faults=Faults(stuck_min=0.2, stuck_max=0.2))
    cells = TileArray(weight(), hardware, "cells")
    assert cells.fault_map is None
    cells.program(5)
    drawn = cells.fault_map.clone()
    assert set(drawn.unique().tolist()) == {int(Fault.NONE), int(Fault.STUCK_MIN), int(Fault.STUCK_MAX)}
    assert (cells.conductances()[drawn == Fault.STUCK_MAX] == 25.0).all()
    assert (cells.conductances()[drawn == Fault.STUCK_MIN] == 0.0).all()
    cells.program(6)
    assert torch.equal(cells.fault_map, drawn)
    cells.new_chip()
    assert cells.fault_map is None
    cells.set_faults(torch.full((2, 10, 7), int(Fault.STUCK_MAX)))
    cells.program(5)
    assert (seen(cells) == 0).all()  # both cells of each pair conduct alike


def test_columns_are_written_again_right_after_programming():
    cells = TileArray(weight(), CHIP, "cells")
    columns = torch.zeros(3, 7, dtype=torch.bool)
    columns[1, 2] = True
    cells.program(5)
    before = cells.conductances()
    assert cells.write_again(columns, WriteVerify(0.01, 20)) >= 2 * 4
    changed = before != cells.conductances()
    assert changed[:, 4:8, 2].any()
    changed[:, 4:8, 2] = False
    assert not changed.any()
    error = (cells.conductances() - cells.targets()).abs()[:, 4:8, 2].max()
    assert error < (before - cells.targets()).abs()[:, 4:8, 2].max()


def test_a_chosen_range_clips_the_weights():
    cells = TileArray(weight(), QUIET, "cells")
    cells.set_weight_range(torch.full((3, 7), 0.5))
    cells.program(0)
    torch.testing.assert_close(seen(cells), weight().clamp(-0.5, 0.5))
    cells.set_weight_range(None)
    cells.program(0)
    torch.testing.assert_close(seen(cells), weight())


def test_nothing_is_saved_and_copies_are_whole():
    cells = TileArray(weight(), CHIP, "cells")
    cells.program(5)
    assert cells.state_dict() == {}
    for other in (copy.deepcopy(cells), pickle.loads(pickle.dumps(cells))):
        other.age(60.0)
        assert cells.seconds == 0.0
        cells.age(60.0)
        assert torch.equal(other.conductances(), cells.conductances())
        cells.age(0.0)


def test_halving_a_model_halves_no_cells():
    cells = TileArray(weight(), CHIP, "cells")
    cells.program(5)
    before = cells.conductances()
    cells.half()
    assert torch.equal(cells.conductances(), before)
    assert cells.digits.dtype == torch.float32


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda cells: cells.age(1.0), r"^cells was not programmed: call crossbar\.program\(model, seed\) first$"),
        (lambda cells: cells.write_again(torch.ones(3, 7).bool(), WriteVerify()), r"^cells was not programmed"),
        (lambda cells: cells.set_faults(torch.zeros(2, 7, 10).int()), r"bad fault map: give .* \[2, 10, 7\]$"),
        (lambda cells: cells.set_faults(torch.zeros(2, 10, 7)), r"^cells got a bad fault map: give an integer tensor"),
        (lambda cells: cells.set_faults(torch.full((2, 10, 7), 99)), r"^cells got fault codes \(99, 99\): give 0 to "),
        (lambda cells: cells.set_weight_range(torch.zeros(3, 7)), r"bad weight range: give \[3, 7\] finite numbers"),
        (lambda cells: cells.set_weight_range(torch.ones(7)), r"^cells got a bad weight range: give \[3, 7\]"),
    ],
    ids=["age", "write again", "shape", "dtype", "codes", "range", "shape of range"],
)  # fmt: skip
def test_mistakes_are_refused(act, message):
    with pytest.raises(InputError, match=message):
        act(TileArray(weight(), CHIP, "cells"))


def test_old_cells_are_not_written_again():
    cells = TileArray(weight(), CHIP, "cells")
    cells.program(1)
    with pytest.raises(InputError, match=r"bad columns to write again: give bool \[3, 7\]$"):
        cells.write_again(torch.ones(7).bool(), WriteVerify())
    cells.age(2.0)
    with pytest.raises(InputError, match=r"^cells is 2 s old: write columns again right after programming$"):
        cells.write_again(torch.ones(3, 7).bool(), WriteVerify())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_matrix_of_no_numbers_is_refused(bad):
    given = weight()
    given[2, 3] = bad
    with pytest.raises(InputError, match="cells"):
        TileArray(given, CHIP, "cells")


def test_read_outs_see_mismatch_and_variance():
    hardware = dataclasses.replace(
        presets.ideal(), tile=Tile(4, 3), adc=Converter(offset_std=0.1), read_noise=CellNoise(0.5)
    )
    cells = TileArray(weight(), hardware, "cells")
    gains = cells.scales.new_ones(3, 7)
    assert cells.readout(gains, None).offset is None  # until there is a chip
    cells.program(2)
    readout = cells.readout(2 * gains, torch.tensor(4.0))
    assert readout.offset.shape == (3, 7)
    assert readout.offset.abs().max() > 0
    torch.testing.assert_close(readout.variance, torch.full((3, 7), 2 * (0.5 / 25.0) ** 2))
    torch.testing.assert_close(readout.scales, 2 * cells.scales)
    assert float(readout.adc_range) == 4.0
    assert readout.bias_scales is None


@pytest.mark.parametrize(
    ("weight", "devices", "hardware", "message"),
    [
        (torch.ones(3), None, Hardware(), r"cells got weights \[3\]: give a matrix \[O, I\]$"),
        (torch.ones(3, 2), torch.ones(2, 3) > 0, Hardware(), r"bad places of devices: give bool \[3, 2\]$"),
        (torch.ones(3, 2), torch.ones(3, 2), Hardware(), r"bad places of devices: give bool \[3, 2\]$"),
        (
            torch.ones(3, 2),
            torch.ones(3, 2, dtype=torch.bool),
            Hardware(faults=Faults(stuck_min=0.1)),
            "faults = .+ is not supported for tiles with devices in some places only: give None$",
        ),
    ],
    ids=["a vector", "turned", "numbers", "faults too"],
)
def test_bad_matrices_and_places_are_refused(weight, devices, hardware, message):
    with pytest.raises(InputError, match=message):
        TileArray(weight, hardware, "cells", devices)

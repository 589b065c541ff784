"""What is no number is never computed with in silence: devices, inputs, ranges, and kernels that fail."""

import dataclasses
import math
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import cfunc
from torch import nn

from attention.kernel import token_rows
from crossbar import CellNoise, Converter, Faults, Hardware, InputError, Tile, WriteVerify, age, convert, program
from crossbar.devices import PCM, CmoReRam, GainCell, Ideal, ReRam
from crossbar.native import compiled, openmp
from tests.crossbar.conftest import inputs, linear_layer


@dataclasses.dataclass(frozen=True)
class Broken:
    """Ideal cells, of which one in a hundred reads as ``value`` from an age on."""

    value: float
    since: float = 0.0
    kind: ClassVar[str] = "broken"
    g_max: float = 25.0

    def program(self, target, draw):
        return {"programmed": target, "chance": draw("chance")}

    def drifted(self, state, seconds):
        broken = state["chance"] > 2.33
        return state["programmed"].masked_fill(broken, self.value) if seconds >= self.since else state["programmed"]

    def fluctuation(self, state, drifted, seconds):
        return None


BAD = pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e38])


def model(hardware):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20))
    convert(net, hardware)
    return net


@BAD
def test_cells_without_a_conductance_are_refused_by_layer_and_device(value):
    net = model(Hardware(device=Broken(value)))
    program(net, 0)
    with pytest.raises(
        InputError, match=r"^0: \d+ of 2400 cells of device 'broken' read as NaN or as more than .* 0 s"
    ):
        net(inputs(4, 40))
    with pytest.raises(InputError, match="'broken'"):
        net[1].read_out(inputs(4, 30))
    later = model(Hardware(device=Broken(value, since=60.0)))
    program(later, 0)
    assert later(inputs(4, 40)).isfinite().all()
    with pytest.raises(InputError, match="at 3600 s"):
        age(later, "1h")


@BAD
def test_training_and_token_rows_refuse_them_too(value):
    net = model(Hardware(device=Broken(value)))
    net.train()
    with pytest.raises(InputError, match="'broken'"):
        net(inputs(4, 40))
    with pytest.raises(InputError, match="'broken'"):
        token_rows.write(inputs(6, 8).view(1, 1, 6, 8), Hardware(device=Broken(value)), (0,))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_input_that_is_no_number_gives_none(value):
    layer = linear_layer(40, 30, Hardware(tile=Tile(16, 8)), dtype=torch.float32)
    layer.program(0)
    x = inputs(4, 40)
    x[2, 7] = value
    lost = layer(x).isnan()
    assert lost[2].all()
    assert not lost[[0, 1, 3]].any()


@pytest.mark.parametrize("full_scale", [1e-40, 1e-30, 1e-6, 1e6, 1e30, 3e38])
def test_extreme_ranges_give_numbers_and_the_same_each_time(full_scale):
    layer = linear_layer(40, 30, Hardware(), dtype=torch.float32)
    layer.program(0)
    layer.input_range = torch.tensor(full_scale)
    x = inputs(4, 40)
    found = layer(x)
    assert found.isfinite().all()
    torch.full((100_000,), 7.0)  # what memory that was not written could hold
    layer.reset_reads()
    assert torch.equal(layer(x), found)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_range_that_is_none_gives_no_numbers(value):
    layer = linear_layer(40, 30, Hardware(), dtype=torch.float32)
    layer.program(0)
    layer.input_range = torch.tensor(value)
    assert layer(inputs(4, 40)).isnan().all()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_kernel_that_fails_is_not_taken_for_one_that_worked():
    @cfunc(compiled.SIGNATURE)
    def failing(words):
        raise ValueError

    for threads in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with pytest.raises(RuntimeError, match="kernel"):
                openmp.run(failing, 8)
        finally:
            torch.set_num_threads(before)


def test_spare_columns_do_not_outgrow_their_tile():
    # 8,192 of them for tiles of four columns and 8,192 lines took 64 GiB.
    Hardware(tile=Tile(8, 4), faults=Faults(spare_cols=64))
    Hardware(tile=Tile(8, 100), faults=Faults(spare_cols=100))
    with pytest.raises(InputError, match=r"spare_cols = 101 is too much for tiles of 100 columns: give 100 or fewer$"):
        Hardware(tile=Tile(8, 100), faults=Faults(spare_cols=101))


def test_a_short_is_no_fault_of_the_device():
    hardware = Hardware(device=Ideal(g_max=1e-3), faults=Faults(shorts=1.0, short_conductance=1e6))
    layer = linear_layer(40, 30, hardware, dtype=torch.float32)
    layer.program(0)
    assert layer(inputs(4, 40)).isfinite().all()


BOUNDS = {
    "device": [Ideal(g_max=g) for g in (1e-3, 1e5)]
    + [PCM(g_max=g, prog_noise_scale=s, drift_scale=s, read_noise_scale=s) for g in (1e-3, 1e5) for s in (0.0, 1.0)]
    + [ReRam(g_max=1e5), GainCell(tau=1e-9), GainCell(tau=1e12, levels=2), CmoReRam()],
    "tile": [Tile(1, 1), Tile(256, 4, slices=2, slice_bits=10), Tile(3, 4, encoding="offset", scale="layer", pairs=3)],
    "dac": [None, *(Converter(bits=b, range=r, full_scale=f) for b, r, f in (
        (1, "per_token", 10.0), (8, "static", 1e-6), (8, "static", 1e6), (8, "max", 10.0), (16, "static", 1e-6)
    )), Converter(coding="bit_serial", gain_std=10, offset_std=1e4), Converter(coding="rate", range="per_token")],
    "adc": [None, *(Converter(bits=b, full_scale=f, gain_std=g, offset_std=o) for b, f, g, o in (
        (1, 10.0, 0, 0), (8, 1e-6, 0, 0), (8, 1e6, 10, 1e4), (16, 1e-6, 0, 1e4)
    )), Converter(range="active_rows", full_scale=1e6)],
    "output_noise": [0.0, 1e4],
    "read_noise": [None, CellNoise(1e3, 10), CellNoise(1e3, 10, form="cheap")],
    "verify": [None, WriteVerify(tolerance=1e-9, rounds=2, read_std=10)],
    "faults": [None, Faults(shorts=1.0, short_conductance=1e6), Faults(broken_rows=1.0), Faults(stuck_max=1.0)],
}  # fmt: skip


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(
    st.fixed_dictionaries({name: st.sampled_from(values) for name, values in BOUNDS.items()}),
    st.sampled_from([0.0, 1e12]),
)
def test_hardware_at_the_bounds_of_its_fields_gives_finite_numbers(fields, seconds):
    layer = linear_layer(10, 7, Hardware(**fields), dtype=torch.float32)
    layer.program(0)
    layer.age(seconds)
    x = inputs(3, 10)
    for found in (layer(x), layer.read_out(x), layer.expected_read_out(x)):
        assert found.isfinite().all()

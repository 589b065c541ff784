"""The contract of every backend: for each feature of hardware it gives what the float64 oracle gives, or a reason."""

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch

from crossbar import (
    AnalogLinear,
    Cell,
    CellNoise,
    Converter,
    Faults,
    Hardware,
    InputError,
    Tile,
    Wire,
    WriteVerify,
    backend_names,
    devices,
    using_backend,
)
from crossbar.backends import dispatch, eager, naive
from crossbar.backends.cpu import integers
from crossbar.backends.protocol import AgedRows, Columns, Product, Read, RowNumbers
from crossbar.devices.gain_cell import GainCell
from crossbar.devices.reram import CmoReRam, ReRam
from crossbar.features import CELLS, CONVERTERS, MISMATCH, NOISES, WIRES
from crossbar.random.streams import Stream
from tests.crossbar.backends.test_naive import gated, layer_codes, mismatch
from tests.crossbar.conftest import linear_layer

# Odd full scales, so that no column sum of whole codes and cells is at a tie.
DAC, ADC = Converter(range="static", full_scale=1.3371), Converter(full_scale=3.1415)
PLAIN = Hardware(tile=Tile(5, 4), dac=DAC, adc=ADC, output_noise=0.0)
VECTORS, INPUTS, OUTPUTS = 6, 13, 7  # three row tiles, the last with 3 word lines; two column tiles
COLUMNS = 0.02  # share that may be at a tie for float32, or in fixed point, and is none for float64
SINGLE, DOUBLE = 2e-5, 1e-10  # of the largest: a few hundred roundings of terms up to 50 times the largest result


@dataclasses.dataclass(frozen=True)
class Redrawn:
    """A device whose error is drawn anew at each time."""

    kind = "redrawn"
    g_max: float = 20.0

    def write(self, target, seed):
        return {"programmed": target}

    def read(self, state, seconds, seed, noise=True):
        generator = torch.Generator().manual_seed(seed)
        error = torch.randn(state["programmed"].shape, generator=generator, dtype=torch.float64)
        return (state["programmed"] + 0.3 * error).clamp(0.0, 30.0).to(state["programmed"])


class Case(NamedTuple):
    """Hardware, and what a calibration found on it."""

    hardware: Hardware
    input_range: float | None = None
    adc_range: str = ""
    gains: bool = False


def plain(**parts):
    return dataclasses.replace(PLAIN, **parts)


def dac(**fields):
    return plain(dac=dataclasses.replace(DAC, **fields))


def adc(**fields):
    return plain(adc=dataclasses.replace(ADC, **fields))


def tile(**fields):
    return plain(tile=Tile(5, 4, **fields))


DEFECTS = Faults(0.05, 0.05, 0.02, 0.05, 0.05, spare_cols=1, seed=3)
ALL_MISMATCH = {"gain_std": 0.05, "offset_std": 0.05}
SERIAL = dataclasses.replace(DAC, coding="bit_serial", bits=5)
HARDWARE = {
    "plain": PLAIN,
    "output noise": plain(output_noise=0.04),
    "noise of cells": plain(read_noise=CellNoise(0.8)),
    "noise of cells by their conductance": plain(read_noise=CellNoise(0.5, 0.05)),
    "cheap noise of cells": plain(read_noise=CellNoise(0.5, 0.05, "cheap")),
    "both noises": plain(read_noise=CellNoise(0.8), output_noise=0.04),
    "balanced": tile(encoding="balanced"),
    "offset": tile(encoding="offset"),
    "pairs": tile(pairs=3),
    "slices": tile(slices=3, slice_bits=2),
    "a scale of each tile": tile(scale="tile"),
    "a scale of the layer": tile(scale="layer"),
    "verify": plain(verify=WriteVerify(0.05, 3, 0.01)),
    "faults": plain(faults=DEFECTS),
    "redrawn": plain(device=Redrawn()),
    "gain of word lines": dac(gain_std=0.05),
    "offset of word lines": dac(offset_std=0.05),
    "gain of columns": adc(gain_std=0.05),
    "offset of columns": adc(offset_std=0.05),
    "range of each token": dac(range="per_token"),
    "range of the batch": dac(range="max"),
    "range of driven rows": adc(range="active_rows"),
    "no dac": plain(dac=None),
    "no adc": plain(adc=None),
    "neither": plain(dac=None, adc=None),
    "a dac of 1 bit": dac(bits=1, range="per_token"),
    "an adc of 1 bit": adc(bits=1),
    "a dac of 12 bits": dac(bits=12),
    "bit-serial": plain(dac=SERIAL),
    "rate": dac(coding="rate", bits=5),
    "rate and offset": plain(
        tile=Tile(5, 4, encoding="offset"), dac=dataclasses.replace(DAC, coding="rate", range="max"), output_noise=0.04
    ),
    "everything": plain(
        tile=Tile(5, 4, "tile", "balanced", pairs=2, slices=2, slice_bits=3),
        dac=dataclasses.replace(SERIAL, range="per_token", **ALL_MISMATCH),
        adc=dataclasses.replace(ADC, range="active_rows", **ALL_MISMATCH),
        output_noise=0.04,
        read_noise=CellNoise(0.5, 0.05),
        verify=WriteVerify(0.05, 3, 0.01),
        faults=DEFECTS,
    ),
    "much in integers": plain(
        tile=Tile(5, 4, "layer", "balanced", pairs=2, slices=2, slice_bits=4),
        dac=dataclasses.replace(DAC, range="max", **ALL_MISMATCH),
        adc=dataclasses.replace(ADC, **ALL_MISMATCH),
        output_noise=0.04,
        read_noise=CellNoise(0.5, 0.05, "cheap"),
        faults=DEFECTS,
    ),
    "offset, signs and cheap noise": plain(
        tile=Tile(5, 4, encoding="offset", slices=2),
        dac=Converter(1, "max"),
        adc=dataclasses.replace(ADC, bits=1, **ALL_MISMATCH),
        read_noise=CellNoise(0.5, 0.05, "cheap"),
    ),
    "no adc, with mismatch and noise": plain(
        dac=dataclasses.replace(SERIAL, **ALL_MISMATCH), adc=None, output_noise=0.04, read_noise=CellNoise(0.8)
    ),
    "wires": plain(wire=Wire(300.0, 200.0, solution="exact")),
    "wires in first order": plain(wire=Wire(300.0, 200.0, solution="first_order")),
    "wires of everything": plain(
        tile=Tile(5, 4, "tile", "balanced", pairs=2, slices=2, slice_bits=3),
        wire=Wire(30.0, 50.0, "both", "top", "interleaved"),
        adc=dataclasses.replace(ADC, **ALL_MISMATCH),
        output_noise=0.04,
        faults=DEFECTS,
    ),
    "ohmic cells": plain(cell=Cell()),
    "amplitudes of sinh cells": plain(cell=Cell("sinh", v0=0.1), dac=dataclasses.replace(DAC, coding="amplitude")),
    "pulses of measured cells": plain(cell=Cell("table", table=((0.1, 0.2), (0.2, 1.0))), output_noise=0.04),
}
CASES = {name: Case(hardware) for name, hardware in HARDWARE.items()}
NOISY = plain(output_noise=0.04, read_noise=CellNoise(0.8))
CASES |= {
    "calibrated dac": Case(NOISY, input_range=1.1717),
    "calibrated adc": Case(NOISY, adc_range="one"),
    "calibrated adcs and gains": Case(NOISY, 1.1717, "all", gains=True),
    "calibrated adcs of driven rows": Case(HARDWARE["everything"], 1.1717, "all", gains=True),
}
every_backend = pytest.mark.parametrize("impl", backend_names())
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


def chip(case, dtype):
    """A layer of chip 3, an hour old, calibrated as the case says."""
    layer = linear_layer(INPUTS, OUTPUTS, case.hardware, dtype=dtype)
    layer.program(3)
    layer.age(3600.0)
    generator = np.random.default_rng(5)
    each = torch.as_tensor(generator.uniform(1.5, 4.0, layer.column_gain.shape)).to(dtype)
    if case.input_range is not None:
        layer.input_range = torch.tensor(case.input_range, dtype=dtype)
    if case.adc_range:
        layer.set_adc_range(each if case.adc_range == "all" else each[0, 0].clone())
    if case.gains:
        layer.column_gain = torch.as_tensor(generator.uniform(0.8, 1.2, layer.column_gain.shape)).to(dtype)
    return layer


def inputs(dtype, vectors=VECTORS):
    """Inputs, a third of which are 0."""
    return torch.as_tensor(gated(vectors, INPUTS, 7)).to(dtype)


def read(layer, x):
    """The same read each time: its noise is taken from the start."""
    noise = layer.read_noise("read", 0)
    return Read(x, layer.readout(), layer.hardware, layer.input_range, noise)


def columns_of(layer, x):
    """The oracle's columns of a read, float64."""
    wide = read(layer, x)._replace(x=x.double())
    return naive.Naive().read_columns(wide)


def full_scales(case, x):
    """DAC range of each vector, ``[B, 1]``."""
    sizes, found = x.abs().double(), case.hardware.dac
    if found is None:
        return torch.ones(len(x), 1)
    if case.input_range is not None or found.range == "static":
        return torch.full((len(x), 1), found.full_scale if case.input_range is None else case.input_range)
    return sizes.amax(1, keepdim=True) if found.range == "per_token" else sizes.amax().expand(len(x), 1)


def steps(case, layer, x):
    """What one step of each column's ADC is in `Backend.read_columns`, ``[T, B, O]``; 0 without one."""
    found, shape = case.hardware.adc, (len(layer.column_gain), len(x), OUTPUTS)
    if found is None:
        return torch.zeros(shape, dtype=torch.float64)
    span = torch.tensor(found.full_scale) if layer.adc_range is None else layer.adc_range
    span = span.double() if span.dim() == 0 else span.double().unsqueeze(1)
    return (span * (2.0 if found.bits == 1 else 1 / found.levels) * full_scales(case, x)).expand(shape)


def require_near(found, expected, step, dtype, share):
    """No number is further off than rounding, but for a share of them, which ties make one step."""
    error, fine = (found.double() - expected).abs(), (DOUBLE if dtype == torch.float64 else SINGLE)
    off = error > fine * expected.abs().max().clamp(min=1.0)
    assert off.double().mean() <= (0.0 if dtype == torch.float64 else share)
    assert (error[off] <= 1.001 * step[off]).all()


def refused(backend, work):
    """Why a backend refuses work, which `dispatch` then says; None: it takes it."""
    reason = dispatch.refusals(work)[backend]
    if reason is None:
        assert dispatch.choose(work, backend).name == backend
        return None
    assert reason.strip()
    assert "\n" not in reason
    operation = {Read: dispatch.multiply, Columns: dispatch.sense, AgedRows: dispatch.age_rows}[type(work)]
    with using_backend(backend), pytest.raises(InputError) as caught:
        operation(work)
    assert str(caught.value).startswith(f"backend {backend!r} cannot compute this ({reason}): choose one of ")
    return reason


def test_the_cases_have_every_feature():
    found = set().union(*(case.hardware.features() for case in CASES.values()))
    assert found == CELLS | CONVERTERS | MISMATCH | NOISES | WIRES


# Products


@every_case
@every_dtype
@pytest.mark.parametrize("impl", [name for name in backend_names() if name != "naive"])
def test_products_are_the_oracles(impl, dtype, case):
    layer, x = chip(case, dtype), inputs(dtype)
    with torch.no_grad():
        if refused(impl, read(layer, x)) is not None:
            return
        columns = dispatch.read_columns(read(layer, x), impl)
        products = dispatch.multiply(read(layer, x), impl)
        expected, whole = columns_of(layer, x), naive.Naive().multiply(read(layer, x)._replace(x=x.double()))
    assert columns.dtype == products.dtype == dtype
    assert columns.shape == (len(layer.column_gain), VECTORS, OUTPUTS)
    assert products.shape == (VECTORS, OUTPUTS)
    step, scales = steps(case, layer, x), layer.readout().scales.double().unsqueeze(1)
    require_near(columns, expected, step, dtype, COLUMNS)
    require_near(products, whole, (step * scales).sum(0), dtype, COLUMNS * len(scales))


def draws(layer, x):
    """What chance decided in a read of the layer, for an oracle that knows nothing but conductances."""
    count, coding = (len(layer.column_gain), VECTORS, OUTPUTS), getattr(layer.hardware.dac, "coding", "pwm")
    found = mismatch(layer)
    if layer.hardware.output_noise:
        reads = layer.hardware.dac.bits - 1 if coding == "bit_serial" else 1
        stream = Stream((3, "linear", "read", 3600.0, 0))
        parts = [stream.columns(*count, first=p * VECTORS) for p in range(reads)]
        found["output"] = torch.stack(parts).double().numpy()
    if coding == "rate":
        codes = layer_codes(x.numpy(), layer.hardware.dac, None)
        pulses = Stream((3, "linear", "read", 3600.0, 0, "pulses")).binomial(
            torch.as_tensor(np.abs(codes)), layer.hardware.dac.levels
        )
        found["pulses"] = pulses.numpy() * np.sign(codes)
        assert not np.array_equal(found["pulses"], codes)
    return found


def oracle(layer, x, **drawn):
    """The oracle of conductances."""
    plus, minus = (cells.double().numpy() for cells in layer.conductances())
    ranges = {} if layer.adc_range is None else {"adc_range": layer.adc_range.double().numpy()}
    if layer.input_range is not None:
        ranges["input_range"] = float(layer.input_range)
    return torch.as_tensor(
        naive.multiply(
            x.double().numpy(),
            plus,
            minus,
            layer.scales.double().numpy(),
            layer.hardware,
            g_min=devices.window(layer.hardware.device)[0],
            draws=naive.Draws(**drawn),
            **ranges,
        )
    )


# Wires and curves have oracles of their own: test_wires.py and test_cell_curves.py.
OF_CONDUCTANCES = {
    name: case
    for name, case in CASES.items()
    if case.hardware.read_noise is case.hardware.wire is case.hardware.cell is None and not case.gains
}


@pytest.mark.parametrize("case", OF_CONDUCTANCES.values(), ids=OF_CONDUCTANCES)
def test_the_oracle_of_read_outs_is_that_of_conductances(case):
    layer, x = chip(case, torch.float64), inputs(torch.float64)
    with torch.no_grad():
        found = dispatch.multiply(read(layer, x), "naive")
    expected = oracle(layer, x, **draws(layer, x))
    assert (found - expected).abs().max() <= DOUBLE * expected.abs().max().clamp(min=1.0)


@every_backend
@pytest.mark.parametrize("case", ["much in integers", "everything", "calibrated adcs and gains", "no adc"])
def test_a_batch_in_pieces_gets_the_numbers_of_the_whole(impl, case, monkeypatch):
    for module, name, value in (
        (eager, "_VECTORS", 1),
        (eager, "_PARTIALS", 1),
        (integers, "_SUMS", 1),
        (integers, "_VECTORS", 3),
    ):
        monkeypatch.setattr(module, name, value)
    case = CASES[case]
    layer, x = chip(case, torch.float32), inputs(torch.float32, 10)
    with torch.no_grad():
        if refused(impl, read(layer, x)) is not None:
            return
        found = dispatch.multiply(read(layer, x), impl)
        expected = naive.Naive().multiply(read(layer, x)._replace(x=x.double()))
    step, scales = steps(case, layer, x), layer.readout().scales.double().unsqueeze(1)
    require_near(found, expected, (step * scales).sum(0), torch.float32, COLUMNS * len(scales))


@every_backend
@pytest.mark.parametrize("case", ["plain", "bit-serial", "both noises", "neither", "range of the batch"])
def test_no_vectors_give_none(impl, case):
    layer, x = chip(CASES[case], torch.float32), torch.zeros(0, INPUTS)
    with torch.no_grad():
        if refused(impl, read(layer, x)) is None:
            assert dispatch.multiply(read(layer, x), impl).shape == (0, OUTPUTS)
            assert dispatch.read_columns(read(layer, x), impl).shape == (len(layer.column_gain), 0, OUTPUTS)
        with using_backend(impl if dispatch.refusals(read(layer, x))[impl] is None else None):
            assert layer(torch.zeros(3, 0, INPUTS)).shape == (3, 0, OUTPUTS)


@every_backend
@pytest.mark.parametrize(
    "case",
    ["plain", "bit-serial", "both noises", "neither", "range of each token", "an adc of 1 bit", "a dac of 1 bit"],
)
def test_what_is_not_a_number_stays_that_and_spoils_its_vector_alone(impl, case):
    layer, x = chip(CASES[case], torch.float32), inputs(torch.float32)
    spoiled = x.clone()
    spoiled[1, 7] = math.nan
    with torch.no_grad():
        if refused(impl, read(layer, x)) is not None:
            return
        whole, found = (dispatch.multiply(read(layer, vectors), impl) for vectors in (x, spoiled))
        columns = dispatch.read_columns(read(layer, spoiled), impl)
    assert found[1].isnan().all()
    assert columns[1, 1].isnan().all()  # word lines 5 to 9 are those of the second row tile
    others = [0, *range(2, VECTORS)]
    assert torch.equal(found[others], whole[others])


@every_backend
@pytest.mark.parametrize("range_", ["per_token", "max", "static"])
@pytest.mark.parametrize("bits", [1, 8])
def test_a_vector_of_zeros_gives_zeros_where_ranges_are_found(impl, range_, bits):
    hardware = dataclasses.replace(NOISY, dac=Converter(bits, range_), adc=dataclasses.replace(ADC, offset_std=0.05))
    layer, x = chip(Case(hardware), torch.float32), inputs(torch.float32)
    x[2] = 0.0
    x = x * 0.0 if range_ == "max" else x
    with torch.no_grad():
        if refused(impl, read(layer, x)) is not None:
            return
        found = dispatch.multiply(read(layer, x), impl)
        columns = dispatch.read_columns(read(layer, x), impl)
    if range_ == "static":  # noise and offsets are read as those of other vectors
        assert found[2].abs().min() > 1e-3
        return
    assert found[2].abs().max() <= 1e-28
    assert columns[:, 2].abs().max() <= 1e-28
    assert (found.abs().amax(1) > 0.1).tolist() == [range_ != "max" and b != 2 for b in range(VECTORS)]


@every_backend
@pytest.mark.parametrize("case", ["plain", "both noises", "everything", "neither"])
def test_results_are_the_callers_and_inputs_stay(impl, case):
    layer, x = chip(CASES[case], torch.float32), inputs(torch.float32)
    before = x.clone()
    with torch.no_grad():
        if refused(impl, read(layer, x)) is not None:
            return
        for operation in (dispatch.multiply, dispatch.read_columns):
            first = operation(read(layer, x), impl)
            kept = first.clone()
            first.fill_(math.nan)
            assert torch.equal(operation(read(layer, x), impl), kept)
    assert torch.equal(x, before)


@every_backend
def test_gradients_are_those_of_the_matrix_or_refused(impl):
    layer, x = linear_layer(INPUTS, OUTPUTS, plain(adc=None, dac=None)), inputs(torch.float64).requires_grad_()
    if refused(impl, read(layer, x)) is not None:
        return
    upstream = torch.as_tensor(gated(VECTORS, OUTPUTS, 9))
    dispatch.multiply(read(layer, x), impl).backward(upstream)
    torch.testing.assert_close(x.grad, upstream @ layer.digital.weight.detach(), rtol=1e-13, atol=1e-13)


@every_backend
def test_a_layer_computes_with_the_backend_that_is_named(impl):
    layer, x = chip(Case(dataclasses.replace(NOISY, dac=Converter(range="per_token"))), torch.float32), inputs
    x = x(torch.float32)
    with torch.no_grad():
        found = {}
        for name in (impl, None):
            layer.reset_reads()
            with using_backend(name):
                found[name] = [layer(x), layer(x), layer.read_out(x)]
        expected = dispatch.multiply(read(layer, x), impl)
    assert torch.equal(found[impl][0], expected)
    assert not torch.equal(found[impl][0], found[impl][1])  # each read has noise of its own
    for one, other in zip(found[impl], found[None], strict=True):
        assert torch.quantile((one - other).abs().flatten(), 0.9) <= SINGLE * one.abs().max()


@every_backend
def test_a_matrix_by_itself_reads_as_its_layer(impl):
    layer = linear_layer(INPUTS, OUTPUTS, NOISY, dtype=torch.float32)
    alone = AnalogLinear.from_matrix(layer.digital.weight, NOISY, "linear")
    x = inputs(torch.float32)
    with torch.no_grad(), using_backend(impl):
        for one in (layer, alone):
            one.program(3)
        assert torch.equal(layer(x), alone(x))


# Columns

BATCHES, BATCH, LINES, WIDE = 4, 5, 7, 6
SHAPE = (BATCHES, BATCH, WIDE)
SPANS = {"static": None, "of each vector": (BATCHES, BATCH, 1), "of each column": (BATCHES, 1, WIDE)}
VARIANCES = {"none": None, "exact": SHAPE, "cheap": (BATCHES, BATCH, 1)}


def drawn(*shape, seed, dtype):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def bit_lines(dtype, bits, spans=None, noise=0.0, variance=None, offset=False, quiet=False, whole=False):
    """Columns of two products, of three batches and of a single one, or of one product."""
    sizes = [(BATCHES, BATCH, LINES)] if whole else [(BATCHES - 1, BATCH, LINES), (BATCH, 2)]
    codes = [drawn(*size, seed=k, dtype=dtype).mul(3).round() for k, size in enumerate(sizes)]
    cells = [drawn(*size[:-2], size[-1], WIDE, seed=9 + k, dtype=dtype) for k, size in enumerate(sizes)]
    converter = None if bits is None else Converter(bits, full_scale=4.217)
    return Columns(
        products=tuple(map(Product, [None] if whole else [slice(0, 3), 3], codes, cells)),
        shape=SHAPE,
        unit=1 / 7,
        hardware=plain(adc=converter, output_noise=noise, read_noise=None if variance is None else CellNoise(1.0)),
        step=1.0 if converter is None else 4.217 / converter.levels,
        spans=None if spans is None or bits is None else drawn(*spans, seed=20, dtype=dtype).abs() + 0.5,
        normals=None if quiet else lambda: Stream(("columns",)).columns(*SHAPE),
        variance=None if variance is None else drawn(*variance, seed=21, dtype=dtype).square(),
        offset=drawn(BATCHES, WIDE, seed=22, dtype=dtype) if offset else None,
    )


def sensed(columns):
    """The definition, float64."""
    total = torch.zeros(columns.shape, dtype=torch.float64)
    for place, codes, cells in columns.products:
        total[slice(None) if place is None else place] += codes.double() @ cells.double() * columns.unit
    if columns.normals is not None:
        spread = torch.tensor(columns.hardware.output_noise**2, dtype=torch.float64)
        spread = spread if columns.variance is None else spread + columns.variance.double()
        total += columns.normals().double() * spread.sqrt()
    if columns.offset is not None:
        total += columns.offset.double().unsqueeze(1)
    total, found = total / columns.step, columns.hardware.adc
    if found is None:
        return total
    span = torch.ones(()).double() if columns.spans is None else columns.spans.double()
    if found.bits == 1:
        return torch.where(total >= 0, span, -span)
    return (total / span).round().clamp(-found.levels, found.levels) * span


@every_backend
@every_dtype
@pytest.mark.parametrize("bits", [None, 1, 6])
def test_columns_are_sums_with_noise_and_offset_converted(impl, dtype, bits):
    for spans, variance, offset, noise in itertools.product(SPANS, VARIANCES, (False, True), (0.0, 0.3)):
        options = {"spans": SPANS[spans], "noise": noise, "variance": VARIANCES[variance], "offset": offset}
        work = bit_lines(dtype, bits, **options, whole=not offset)
        expected = sensed(work)
        if refused(impl, work) is not None:
            continue
        found = dispatch.sense(work, impl)
        assert found.dtype == dtype
        step = torch.ones(SHAPE).double() * (0.0 if bits is None else 2.0 if bits == 1 else 1.0)
        if work.spans is not None:
            step = step * work.spans.double()
        require_near(found, expected, step, dtype, COLUMNS)


@every_backend
def test_quiet_columns_have_no_noise_whatever_the_hardware(impl):
    work = bit_lines(torch.float64, 6, noise=0.3, quiet=True)
    if refused(impl, work) is None:
        torch.testing.assert_close(dispatch.sense(work, impl), sensed(work), rtol=DOUBLE, atol=0.0)
        assert (sensed(bit_lines(torch.float64, 6, noise=0.3)) - sensed(work)).abs().max() > 0.5


# Rows, each at its own age

SLOTS = torch.tensor([11, 0, 3, 7, 8, 3])
AGES = torch.tensor([0.0, 1e-3, 20.0, 3600.0, 86400.0, 1.0], dtype=torch.float64)
PLACES = RowNumbers(("rows", 1.0), (0, 4), torch.tensor([1, 0, 0, 1, 0, 0]), torch.tensor([5, 0, 3, 1, 2, 3]), 6)
AGEING = {
    "ideal": devices.Ideal(), "pcm": devices.PCM(), "reram": ReRam(), "reram_cmo": CmoReRam(), "gain cell": GainCell(),
}  # fmt: skip


def rows(device, pairs, noise, dtype):
    target = torch.rand(2 * pairs, 2, 3, 12, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low, high = devices.window(device)[0], device.g_max
    generator = torch.Generator().manual_seed(1)

    def draw(purpose):
        return torch.randn(target.shape, generator=generator, dtype=torch.float64).to(dtype)

    state = device.program((low + target * (high - low)).to(dtype), draw)
    amplitude = device.amplitude(state) if isinstance(device, devices.Decaying) else None
    state = state if amplitude is None else {**state, "amplitude": amplitude}
    return AgedRows(state, SLOTS, AGES, PLACES, Hardware(device=device, tile=Tile(pairs=pairs), read_noise=noise))


@every_backend
@every_dtype
@pytest.mark.parametrize("device", AGEING.values(), ids=AGEING)
def test_rows_are_the_oracles(impl, dtype, device):
    for pairs, noise in itertools.product((1, 2), (None, CellNoise(0.2, 0.05), CellNoise(0.2, 0.05, "cheap"))):
        work = rows(device, pairs, noise, dtype)
        before = {name: cells.clone() for name, cells in work.state.items()}
        expected, spread = naive.Naive().age_rows(rows(device, pairs, noise, torch.float64))
        if refused(impl, work) is not None:
            continue
        digits, variance = dispatch.age_rows(work, impl)
        assert digits.dtype == dtype
        assert digits.shape == (2, 3, len(SLOTS), 7)
        # float32 states and the kernel's powers of 2 are off by 1e-7 of factors, of terms of order 1
        rounding = 1e-12 if dtype == torch.float64 else 2e-5
        assert (digits - expected).abs().max() <= rounding
        assert (variance is None) == (noise is None)
        if variance is not None:
            torch.testing.assert_close(variance.double(), spread, rtol=10 * rounding, atol=0.0)
        assert all(torch.equal(cells, before[name]) for name, cells in work.state.items())


@every_backend
def test_rows_do_not_depend_on_what_is_opened_beside_them(impl):
    work = rows(devices.PCM(), 1, None, torch.float32)
    if refused(impl, work) is not None:
        return
    whole, _ = dispatch.age_rows(work, impl)
    one = dataclasses.replace(PLACES, tiles=(4,), tile=torch.tensor([0]), line=torch.tensor([5]))
    part, _ = dispatch.age_rows(dataclasses.replace(work, slots=SLOTS[:1], seconds=AGES[:1], numbers=one), impl)
    assert torch.equal(part, whole[:, :, :1])

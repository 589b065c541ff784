"""The backend of GPUs gives the CPU's bits: its kernels interpreted, or compiled where the tensors are on a GPU."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from crossbar import AnalogLinear, CellNoise, Converter, Hardware, InputError, Tile, using_backend
from crossbar.backends import dispatch
from crossbar.backends.protocol import Read
from crossbar.backends.triton import products
from crossbar.backends.triton.backend import Triton
from crossbar.native import gpu
from crossbar.random.streams import Stream
from crossbar.tiles.readout import Readout
from tests.crossbar.backends.test_integers import SERVED, programmed
from tests.crossbar.conftest import inputs, linear_layer

DEVICE = torch.device("cpu" if gpu.interpreted() else "cuda")
pytestmark = pytest.mark.skipif(gpu.why_not() is not None, reason=f"no kernels here: {gpu.why_not()}")

TALL = Hardware(
    tile=Tile(600, 48), adc=Converter(full_scale=6.0), output_noise=0.04
)  # more rows than sums have bits for
CASES = {
    **{name: (SERVED[name], "", (70, 33, 5)) for name in ("per token", "quiet", "cells' noise alone", "slices")},
    "range of the batch, balanced pairs": (
        dataclasses.replace(SERVED["balanced pairs"], dac=Converter(6, "max")),
        "",
        (70, 33, 5),
    ),
    "a calibrated dac": (SERVED["cells' noise"], "dac", (70, 33, 5)),
    "a calibrated adc": (SERVED["mismatch"], "one adc", (70, 33, 5)),
    "calibrated adcs": (SERVED["cells' noise"], "all adcs", (70, 33, 5)),
    "one column": (SERVED["per token"], "", (64, 1, 3)),
    "one input": (SERVED["per token"], "", (1, 2, 1)),
    "more columns than a block": (SERVED["one range"], "", (20, 67, 33)),
    "tall tiles": (TALL, "", (640, 6, 3)),
}


def case_of(name):
    """A programmed layer on the CPU, and inputs."""
    hardware, calibrated, (lines, outputs, vectors) = CASES[name]
    layer = programmed(hardware, lines, outputs)
    if calibrated == "dac":
        layer.input_range = torch.tensor(1.7)
    elif calibrated:
        each = torch.rand(layer.column_gain.shape, generator=torch.Generator().manual_seed(0)) + 4
        layer.set_adc_range(each if calibrated == "all adcs" else each[0, 0])
    layer.column_gain = 1 + torch.rand(layer.column_gain.shape, generator=torch.Generator().manual_seed(1)) / 8
    return layer, inputs(vectors, lines)


def read(layer, x):
    return Read(x, layer.readout(), layer.hardware, layer.input_range, layer.read_noise("read", 0))


def moved(work, layer):
    """The same read, of the same digits, on the device of the kernels."""

    def there(tensor):
        return None if tensor is None else tensor.to(DEVICE)

    cells, digits = work.cells, layer.cells.digits.to(DEVICE)
    cells = Readout(
        digits, there(cells.scales), there(cells.offset), there(cells.variance), None, there(cells.adc_range),
        lambda name, make: make(digits),
    )  # fmt: skip
    noise = None if work.noise is None else Stream(work.noise.key, DEVICE)
    return work._replace(x=there(work.x), cells=cells, input_range=there(work.input_range), noise=noise)


def same(found, expected):
    """Bits, so that zeros of both signs differ."""
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    bits = {2: torch.int16, 4: torch.int32}[found.dtype.itemsize]
    assert torch.equal(found.cpu().view(bits), expected.view(bits))


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_products_are_the_cpus_bit_by_bit(name):
    layer, x = case_of(name)
    expected, columns = dispatch.multiply(read(layer, x), "cpu"), dispatch.read_columns(read(layer, x), "cpu")
    work = moved(read(layer, x), layer)
    same(dispatch.multiply(work, "triton"), expected)
    same(dispatch.read_columns(work, "triton"), columns)
    assert expected.abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("blocks", [(16, 16, 2, 4, 1)])
def test_no_bit_depends_on_the_sizes_of_blocks(blocks):
    layer, x = programmed(dataclasses.replace(SERVED["cells' noise"], tile=Tile(40, 48)), 50, 19), inputs(19, 50)
    layer, x = layer.to(DEVICE), x.to(DEVICE)
    whole = products.multiply(read(layer, x))
    same(products.multiply(read(layer, x), products.Blocks(*blocks)), whole.cpu())


def test_blocks_are_what_registers_and_shared_memory_hold():
    for padded, kept, room in itertools.product((32, 256, 512, 1024), (0, 1, 2), (99 << 10, 227 << 10)):
        for vectors in (1, 40, 4096):
            blocks = products.blocks_for(vectors, padded, kept, room)
            conversions = blocks.vectors * blocks.columns // (32 * blocks.warps)  # of a thread
            assert conversions <= 32 >> kept or vectors <= 16
            loaded = min(padded, 256) * (blocks.vectors + 2 * blocks.columns)  # codes and both bytes of cells
            buffers = blocks.stages if blocks.stages < 4 else 3
            assert loaded * buffers <= (room if blocks.stages > 1 else 64 << 10)
            assert blocks.stages == 1 or padded <= 256


@torch.no_grad()
def test_a_vectors_result_does_not_depend_on_its_batch():
    layer, x = programmed(SERVED["per token"], 70, 33).to(DEVICE), inputs(5, 70).to(DEVICE)
    whole = dispatch.multiply(read(layer, x), "triton")
    same(dispatch.multiply(read(layer, x[:2]), "triton"), whole[:2].cpu())
    same(dispatch.multiply(read(layer, x.t().contiguous().t()), "triton"), whole.cpu())  # strides of any kind


@torch.no_grad()
@pytest.mark.parametrize(("name", "dtype"), [("per token", torch.bfloat16), ("range of the batch", torch.float16)])
def test_inputs_of_16_bits_are_those_of_float32(name, dtype):
    layer, x = programmed(SERVED[name], 70, 33), inputs(3, 70).to(dtype)
    x[1] = 0
    expected = dispatch.multiply(read(layer, x.float()), "cpu")
    same(dispatch.multiply(read(layer, x), "cpu"), expected)
    same(dispatch.multiply(moved(read(layer, x), layer), "triton"), expected)
    layer, x = layer.to(DEVICE), x.to(DEVICE)
    expected = dispatch.multiply(read(layer, x), "triton")
    with using_backend("triton"):
        outputs = layer(x)
    assert outputs.dtype == dtype
    same(outputs, expected.to(dtype).cpu())


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "bad"),
    [("per token", -math.inf), ("one range", math.inf), ("range of the batch", math.nan)],
)
def test_what_is_not_a_number_is_what_it_is_on_the_cpu(name, bad):
    layer, x = programmed(SERVED[name], 70, 9), inputs(3, 70)
    x[1, 69] = bad
    expected = dispatch.multiply(read(layer, x), "cpu")
    found = dispatch.multiply(moved(read(layer, x), layer), "triton").cpu()
    torch.testing.assert_close(found, expected, rtol=0.0, atol=0.0, equal_nan=True)


def test_what_is_refused():
    work = read(programmed(SERVED["per token"], 8, 3).to(DEVICE), inputs(2, 8).to(DEVICE))
    backend = Triton()

    def reason(**parts):
        changed = work._replace(hardware=dataclasses.replace(work.hardware, **parts))
        return dispatch.refusals(changed)["triton"]

    assert backend.refuses(work, DEVICE, torch.float32, False) is None
    assert backend.refuses(work, torch.device("meta"), torch.float32, False) == "tensors on meta"
    assert backend.refuses(work, DEVICE, torch.float64, False) == "numbers in float64"
    assert reason(adc=None) == "hardware with adc:ideal"
    assert reason(dac=Converter(12)) == "input codes of more than 8 bits"
    assert reason(tile=Tile(1025)) == "tiles of more than 1024 word lines"
    assert reason(dac=Converter(coding="bit_serial")) == "hardware with dac.coding:bit_serial"
    layer = programmed(dataclasses.replace(work.hardware, read_noise=CellNoise(0.5, 0.1)), 8, 3).to(DEVICE)
    found = dispatch.refusals(read(layer, inputs(2, 8).to(DEVICE)))
    assert found["triton"] == "read noise of each cell by its own conductance"


def test_without_triton_it_refuses_and_others_compute(monkeypatch):
    monkeypatch.setattr(gpu, "why_not", lambda: "Triton is not installed")
    layer, x = programmed(SERVED["per token"], 8, 3), inputs(2, 8)
    assert dispatch.choose(read(layer, x)).name == "cpu"
    wanted = r"backend 'triton' cannot compute this \(Triton is not installed\): choose one of cpu, eager, naive"
    with using_backend("triton"), torch.no_grad(), pytest.raises(InputError, match=wanted):
        layer(x)


@pytest.mark.skipif(not gpu.interpreted(), reason="kernels are compiled here")
def test_interpreted_kernels_are_picked_by_name_alone():
    layer = programmed(SERVED["per token"], 8, 3)
    assert dispatch.choose(read(layer, inputs(2, 8))).name == "cpu"
    assert dispatch.choose(read(layer, inputs(2, 8).requires_grad_())).name == "eager"
    exact = linear_layer(8, 3, dataclasses.replace(SERVED["per token"], adc=None))
    assert dispatch.choose(read(exact, inputs(2, 8))).name == "eager"


@pytest.mark.parametrize("shape", [(1, 1, 1), (70, 33, 64), (33, 4, 16)])
def test_cells_are_the_cpus_integers(shape):
    from crossbar.backends.cpu import integers

    lines, outputs, rows = shape
    weight = torch.randn(2, lines, outputs, generator=torch.Generator().manual_seed(0))
    weight[:, :, -1] = 0
    expected, found = integers.fixed_point(weight, rows), products.fixed_point(weight.to(DEVICE), rows)
    same(found.steps, expected.steps)
    half, tiles = (outputs + 1) // 2, -(-lines // rows)
    places = [2 * (o % half) + o // half for o in range(outputs)]
    cells = found.cells.cpu()
    assert cells.abs().sum() == cells[:, :, places, :rows].abs().sum()  # nothing where there is no cell
    for tile in range(2 * tiles):
        line = tile % tiles * rows
        count = min(rows, lines - line)
        parts = integers._of_tile(expected.bytes[tile // tiles], outputs, line, count).view(2, outputs, count)
        assert torch.equal(cells[tile][:, places, :count], parts)


def exactly(a, b, c):
    """``a b + c`` rounded once, by whole numbers."""
    from fractions import Fraction

    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    near = np.float32(float(exact))
    return min((np.nextafter(near, np.float32(side)) for side in (-math.inf, near, math.inf)),
               key=lambda x: (abs(Fraction(float(x)) - exact), int(np.float32(x).view(np.int32)) & 1))  # fmt: skip


def test_the_interpreters_multiply_add_is_rounded_once():
    generator = np.random.default_rng(0)
    a, b = (generator.standard_normal(4000).astype(np.float32) for _ in range(2))
    c = (-a.astype(np.float64) * b * (1 + generator.standard_normal(4000) * 1e-7)).astype(np.float32)
    c[::2] = generator.standard_normal(2000).astype(np.float32) * np.float32(1e7)
    # a sum that float64 rounds to a tie of float32
    a[0], b[0], c[0] = np.float32(1 + 2**-12), np.float32(2.0**-24), np.float32(1.0)
    a[1], b[1], c[1] = np.float32(1 + 2.0**-23), np.float32(2.0**-24 * (1 + 2.0**-23)), np.float32(1.0)
    found = gpu.fma(a, b, c)
    assert found.dtype == np.float32
    assert [float(x) for x in found] == [float(exactly(*each)) for each in zip(a, b, c, strict=True)]
    assert (found != (a.astype(np.float32) * b + c)).mean() > 0.3
    assert gpu.fma(*(np.array([x], np.float32) for x in (math.inf, 0.0, 1.0)))[0] != 0  # NaN stays that


_NO_LAUNCH = ("empty", "view", "detach", "alias", "select", "expand", "transpose", ".t.")


class Counted(TorchDispatchMode):
    """Counts torch operations that a GPU would be asked for: those that make or change numbers."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = str(operation)
        if not any(
            part in name for part in ("empty", "view", "detach", "alias", "select", "expand", "transpose", ".t.")
        ):
            self.operations.append(name)
        return operation(*args, **(kwargs or {}))


@torch.no_grad()
@pytest.mark.skipif(not gpu.interpreted(), reason="launches are counted where kernels are interpreted")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_read_in_four_launches(dtype, monkeypatch):
    from triton.runtime import interpreter

    linear = torch.nn.Linear(40, 9, dtype=dtype)
    layer, x = AnalogLinear.from_digital(linear, SERVED["per token"]), inputs(3, 40).to(dtype)
    layer.program(0)
    launch, launched = interpreter.GridExecutor.__call__, []

    def counted(self, *args, **kwargs):
        launched.append(self.fn.__name__)
        with torch.utils._python_dispatch._disable_current_modes():
            launch(self, *args, **kwargs)

    with using_backend("triton"):
        layer(x)  # makes the form of the cells
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", counted)
        with Counted() as torchs:
            layer(x)
    assert launched == ["prepare", "multiply"]
    assert torchs.operations == ["aten.mul.Tensor", "aten.add.out"]  # scales with gains; bias and dtype of the output


def gradients(layer, x, impl, upstream):
    """Outputs, and gradients of inputs and weights, of a training read."""
    layer.reset_reads()
    layer.digital.zero_grad()
    x = x.clone().requires_grad_()
    with using_backend(impl):
        y = layer(x)
        y.backward(upstream)
    return y.detach(), x.grad, layer.digital.weight.grad.clone()


@pytest.mark.parametrize("name", ["one range", "a narrow adc", "slices", "cells' noise"])
def test_gradients_are_those_of_eager(name):
    narrow = dataclasses.replace(SERVED["per token"], adc=Converter(full_scale=0.8))  # clips a quarter of conversions
    layer = programmed({**SERVED, "a narrow adc": narrow}[name], 70, 33).to(DEVICE).train()
    x, upstream = inputs(9, 70).to(DEVICE), inputs(9, 33, seed=2).to(DEVICE)
    found, expected = (gradients(layer, x, impl, upstream) for impl in ("triton", "eager"))
    # sums of 33 or 9 terms in float32; at a tie of the fixed point an output is another by a step, its gradient is not
    assert ((found[0] - expected[0]).abs() > 2e-5 * expected[0].abs().max()).float().mean() < 0.02
    for one, other in zip(found[1:], expected[1:], strict=True):
        assert other.abs().max() > 0.1
        assert (one - other).abs().max() <= 2e-6 * other.abs().max()
    assert (expected[1] == 0).any() == (name == "one range")  # inputs outside of the range


def test_gradients_of_inputs_through_programmed_cells():
    layer, upstream = programmed(SERVED["one range"], 70, 33).to(DEVICE), inputs(9, 33, seed=2).to(DEVICE)
    found = {}
    for impl in ("triton", "eager"):
        x = inputs(9, 70).to(DEVICE).requires_grad_()
        layer.reset_reads()
        with using_backend(impl):
            layer(x).backward(upstream)
        found[impl] = x.grad
    assert (found["triton"] - found["eager"]).abs().max() <= 2e-6 * found["eager"].abs().max()


@pytest.mark.parametrize("columns", [False, True], ids=["one ADC range", "a range of each column"])
def test_gradients_of_learned_ranges_are_those_of_eager(columns):
    layer, x = programmed(SERVED["one range"], 40, 9).to(DEVICE), inputs(7, 40).to(DEVICE)
    upstream, spread = inputs(7, 9, seed=2).to(DEVICE), 0.5 + 0.1 * inputs(len(layer.column_gain), 9, seed=3).tanh()
    layer.set_adc_range(spread.to(DEVICE) if columns else torch.tensor(0.5, device=DEVICE))  # clips many conversions
    learned, found = layer.learn_ranges(), {}
    for impl in ("triton", "eager"):
        layer.reset_reads()
        with using_backend(impl):
            found[impl] = torch.autograd.grad(layer(x), learned, upstream)
    assert [each.shape for each in learned] == [(), spread.shape if columns else ()]
    for one, other in zip(found["triton"], found["eager"], strict=True):
        assert other.abs().max() > 0.1
        off = (one - other).abs() / other.abs().max()
        assert off.max() < 0.02
        # What codes leave has 11 bits; at a tie of the fixed point it is another by a step.
        assert (off > 2e-3).float().mean() < 0.05

"""Products in integers: what fixed point costs, and that nothing else differs from floating point."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from scipy import stats

from crossbar import AnalogLinear, CellNoise, Converter, Hardware, Tile, presets
from crossbar.backends import dispatch
from crossbar.backends.cpu import integers, kernels
from crossbar.backends.protocol import Read
from crossbar.native import openmp
from crossbar.random.streams import Stream
from tests.crossbar.conftest import inputs, linear_layer

NOISY = Hardware(tile=Tile(64, 48), adc=Converter(full_scale=6.0), output_noise=0.04)
SERVED = {
    "per token": NOISY,
    "one range": dataclasses.replace(NOISY, dac=Converter(range="static", full_scale=2.0)),
    "range of the batch": dataclasses.replace(NOISY, dac=Converter(bits=6, range="max")),
    "quiet": dataclasses.replace(NOISY, output_noise=0.0),
    "cells' noise": dataclasses.replace(NOISY, read_noise=CellNoise(0.5)),
    "cells' noise alone": dataclasses.replace(NOISY, read_noise=CellNoise(0.5, 0.02, form="cheap"), output_noise=0.0),
    "mismatch": dataclasses.replace(
        NOISY,
        adc=Converter(full_scale=6.0, gain_std=0.02, offset_std=0.1),
        dac=Converter(range="per_token", offset_std=0.01),
    ),
    "slices": dataclasses.replace(NOISY, tile=Tile(64, 48, slices=2)),
    "balanced pairs": dataclasses.replace(NOISY, tile=Tile(64, 48, pairs=2, encoding="balanced")),
}
served = pytest.mark.parametrize("hardware", SERVED.values(), ids=SERVED)


def programmed(hardware, in_features=150, out_features=71):
    layer = linear_layer(in_features, out_features, hardware, dtype=torch.float32)
    layer.program(3)
    layer.age(3600.0)
    return layer


def both_ways(layer, x):
    """Products in integers and in floating point, without bias, with the same noise."""

    def read():
        return Read(x, layer.readout(), layer.hardware, layer.input_range, layer.read_noise("read", 0))

    with torch.no_grad():
        assert dispatch.choose(read()).name == "cpu"
        return dispatch.multiply(read()), dispatch.multiply(read(), "eager")


@served
@pytest.mark.parametrize("calibrated", ["", "dac", "one adc", "all adcs"])
def test_agrees_with_floating_point(hardware, calibrated):
    layer = programmed(hardware)
    if calibrated == "dac":
        layer.input_range = torch.tensor(1.7)
    elif calibrated:
        each = torch.rand(layer.column_gain.shape, generator=torch.Generator().manual_seed(0)) + 4
        layer.adc_range = each if calibrated == "all adcs" else each[0, 0]
    found, expected = both_ways(layer, inputs(40, 150))
    # A cell is off by up to 1/65,276 of the largest, so a column by some 3e-4 of a step: one code in some 4,500 falls
    # the other way, by one step of its tile. There are 3 or 6 tiles.
    fine = 2e-5 * expected.abs().max()
    wrong = (found - expected).abs() > fine
    assert wrong.float().mean() < 0.005
    span = 6.0 if layer.adc_range is None else layer.adc_range
    step = (layer.readout().scales * span / 127).amax(0) * layer_range(layer, inputs(40, 150))
    assert ((found - expected).abs() <= 1.01 * step + fine).all()


def layer_range(layer, x):
    if layer.input_range is not None:
        return layer.input_range
    return {"per_token": x.abs().amax(1, keepdim=True), "max": x.abs().max(), "static": 2.0}[layer.hardware.dac.range]


@pytest.mark.parametrize(
    ("rows", "bits", "share"), [(256, 8, 3.6e-4), (64, 8, 2.2e-4), (256, 16, 0.096), (64, 16, 0.056)]
)
def test_how_many_conversions_take_the_next_step(rows, bits, share):
    """The figures of docs/physics.md, "Approximations": Gaussian weights and inputs on one tile of PCM at 1 h."""
    hardware = presets.pcm()
    hardware = dataclasses.replace(hardware, adc=dataclasses.replace(hardware.adc, bits=bits))
    found, expected = both_ways(programmed(hardware, rows, 256), inputs(2000, rows))
    other = int(((found - expected).abs() > 1e-6 * expected.abs().max()).sum())
    assert abs(other - share * found.numel()) < 0.05 * share * found.numel() + 4 * math.sqrt(other)


@pytest.mark.parametrize("shape", [(256, 64), (300, 70), (1, 1), (257, 129)])
def test_a_cell_is_off_by_half_a_step_at_most(shape):
    weight = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    weight[:, :, -1] = 0
    fixed = integers.fixed_point(weight, 256)
    tiles = [tile for digits in weight for tile in digits.split(256)]
    first = [line for _ in weight for line in range(0, shape[0], 256)]
    assert fixed.steps.shape == (len(tiles), shape[1])
    for index, (tile, line) in enumerate(zip(tiles, first, strict=True)):
        parts = integers._of_tile(fixed.bytes[index // (len(tiles) // 2)], shape[1], line, len(tile)).double()
        whole = (256 * parts[: shape[1]] + parts[shape[1] :]).t()
        assert whole.abs().max() <= 32_638
        step = tile.abs().amax(0).double() / 32_638
        assert ((whole * step - tile.double()).abs() <= 0.51 * step).all()


@pytest.mark.parametrize("shape", [(256, 64), (300, 70), (1, 1), (257, 129), (50, 9)])
@pytest.mark.parametrize("rows", [256, 24])
def test_whole_cells_are_their_bytes(shape, rows):
    weight = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    bytes_, whole = integers.fixed_point(weight, rows), integers.fixed_point(weight, rows, whole=True)
    assert torch.equal(bytes_.steps, whole.steps)
    assert whole.bytes.dtype == torch.int16
    for parts, cells in zip(bytes_.bytes, whole.bytes, strict=True):
        for line in range(0, shape[0], rows):
            count = min(rows, shape[0] - line)
            both = integers._of_tile(parts, shape[1], line, count).int()
            found = integers._whole_tile(cells, shape[1], line, count, rows).transpose(1, 2).flatten(2).flatten(0, 1)
            assert torch.equal(found[: shape[1], :count].int(), 256 * both[: shape[1]] + both[shape[1] :])
            assert not found[shape[1] :].any()
            assert not found[:, count:].any()


@pytest.mark.parametrize("shape", [(1, 2, 16), (2, 16, 16), (3, 46, 32), (5, 512, 16), (17, 32, 80), (130, 256, 112)])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_of_16_bits_are_exact(shape, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    vectors, width, outputs = shape
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (vectors, width), generator=generator).to(torch.int16)
    cells = torch.randint(-32_638, 32_639, (outputs, width), generator=generator).to(torch.int16)
    for given in ((codes, cells), (torch.full_like(codes, -127), torch.full_like(cells, 32_638))):
        found = torch.full((vectors, outputs), 7, dtype=torch.int32)
        integers._product(given[0], integers._in_pairs(given[1]), found)
        assert torch.equal(found.double(), given[0].double() @ given[1].double().t())


@pytest.mark.parametrize("kind", [torch.int8, torch.float32])
@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (1, 1, 7), (5, 1, 3), (3, 2, 1), (17, 65, 9), (130, 256, 100), (3, 1024, 5)]
)
def test_products_are_exact(shape, kind):
    vectors, lines, outputs = shape
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-127, 128, (vectors, lines + 3), generator=generator, dtype=torch.int8)[:, 1:-2]
    cells = torch.randint(-128, 128, (2 * outputs, lines), generator=generator, dtype=torch.int8)
    found = torch.full((vectors, 2 * outputs), 7, dtype=integers._SUMS_OF[kind])
    integers._product(codes.to(kind), cells.to(kind), found)
    assert torch.equal(found.double(), codes.double() @ cells.double().t())
    codes, cells = torch.full_like(codes, -127), torch.full_like(cells, -128)  # sums that 16 bits would not hold
    integers._product(codes.to(kind), cells.to(kind), found)
    assert (found == 127 * 128 * lines).all()


@served
def test_units_of_8_and_16_bits_and_floating_point_give_the_same_bits(hardware, monkeypatch):
    layer, found = programmed(hardware), []
    for kind in (torch.int8, torch.float32, torch.int16):
        monkeypatch.setattr(integers, "_kind", lambda kind=kind: kind)
        layer.reset_reads()
        found.append(layer(inputs(300, 150)))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_tiles_of_many_word_lines_are_not_summed_in_32_bits(monkeypatch):
    layer, found = programmed(dataclasses.replace(NOISY, tile=Tile(1024, 48)), 1000), []
    for kind in (torch.float32, torch.int16):
        monkeypatch.setattr(integers, "_kind", lambda kind=kind: kind)
        layer.reset_reads()
        found.append(layer(torch.full((9, 1000), 1.0)))
    assert torch.equal(*found)


def test_units_whose_products_saturate_are_left_alone(monkeypatch):
    product = torch._int_mm

    def saturating(codes, cells, out):
        return product(codes, cells, out=out).clamp_(-(2**15), 2**15 - 1)

    monkeypatch.setattr(torch, "_int_mm", saturating)
    assert integers._kind.__wrapped__() in (torch.float32, torch.int16)


def test_a_vectors_result_does_not_depend_on_its_batch(monkeypatch):
    layer, x = programmed(NOISY), inputs(300, 150)
    whole = layer(x)
    layer.reset_reads()
    assert torch.equal(layer(x[:7]), whole[:7])
    monkeypatch.setattr(integers, "_SUMS", 1)
    monkeypatch.setattr(integers, "_VECTORS", 11)
    layer.reset_reads()
    assert torch.equal(layer(x), whole)


@served
def test_thread_count_changes_no_bit(hardware, monkeypatch):
    layer, x = programmed(hardware), inputs(300, 150)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            layer.reset_reads()
            results.append(layer(x))
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(openmp, "_openmp", lambda: None)  # where torch's OpenMP cannot be called
    layer.reset_reads()
    results.append(layer(x))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("name", ["per token", "one range", "range of the batch"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_spoils_its_vector_as_in_floating_point(name, bad):
    layer, x = programmed(SERVED[name]), inputs(5, 150)
    x[2, 70] = bad
    found, expected = both_ways(layer, x)
    assert torch.equal(found.isfinite(), expected.isfinite())
    assert found[2].isnan().all() == (name != "one range" or math.isnan(bad))


def test_zeros_give_noise_around_zero_and_no_vectors_give_none():
    layer = programmed(NOISY)
    assert layer(torch.zeros(3, 150)).abs().max() < 1e-28  # full scale is 1e-30
    assert layer(torch.zeros(0, 150)).shape == (0, 71)


@pytest.mark.parametrize("asks", ["inputs", "range"])
def test_gradients_take_the_floating_point_way_with_the_same_noise(asks):
    layer, x = programmed(SERVED["one range"]), inputs(20, 150)
    plain = layer(x).detach()
    layer.reset_reads()
    if asks == "range":
        layer.learn_ranges()
    else:
        x.requires_grad_()
    found = layer(x)
    assert found.requires_grad
    # other noise, of 0.04 unit outputs, would change half of all codes by a step
    assert ((found - plain).abs() > 1e-4).float().mean() < 0.02


def test_columns_deviate_as_stated_and_independently_of_one_another():
    hardware = dataclasses.replace(presets.pcm(), adc=Converter(bits=16, full_scale=4.0), output_noise=0.04)
    layer = AnalogLinear.from_digital(torch.nn.Linear(600, 500, bias=False), hardware)
    x = torch.zeros(400, 600)
    x[:, 0] = 1e-9  # one cell of each column, of the first tile, under full scale: nothing is clipped
    reads = torch.stack([layer(x) for _ in range(3)]).double()
    power = (layer.scales.double() ** 2).sum(0).sqrt() * 1e-9 * 0.04
    z = (reads - reads.mean((0, 1))) / power * (1200 / 1199) ** 0.5
    n = z.numel()
    assert abs(z.square().mean() - 1) < 4 * (2 / n) ** 0.5 + 1e-4  # 16 bits add (4/32767)² / 12 / 0.04²
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    for a, b in [(z[:, :, :-1], z[:, :, 1:]), (z[:, :, :250], z[:, :, 250:]), (z[:, :-1], z[:, 1:]), (z[:-1], z[1:])]:
        for f in (lambda v: v, torch.square):
            r = np.corrcoef(f(a).flatten().numpy(), f(b).flatten().numpy())[0, 1]
            assert abs(r) < 4 / a.numel() ** 0.5


@pytest.mark.parametrize("bits", [2, 5, 8])
@pytest.mark.parametrize("given", ["each", "one", "all"])
def test_codes_are_those_of_the_converter(bits, given):
    x = inputs(33, 130) * 3
    x[3] = 0
    levels = 2 ** (bits - 1) - 1
    ranges = {"each": None, "one": torch.tensor([2.0]), "all": torch.rand(33) + 1}[given]
    codes, full_scale, power = torch.empty(33, 130, dtype=torch.int8), torch.empty(33), torch.empty(33, 3)
    known = 1 if ranges is None else len(ranges)
    one_after_another = (None, torch.zeros(1, dtype=torch.int64), 1, 130)
    openmp.run(
        kernels.encode, 33, x, *one_after_another, ranges, known, codes, full_scale, power, 33, 130, 64, levels, 1e-30
    )
    span = x.abs().amax(1).clamp(min=1e-30) if ranges is None else ranges.expand(33)
    expected = (x * (levels / span).unsqueeze(1)).round().clamp(-levels, levels)
    assert torch.equal(codes.float(), expected)
    assert torch.equal(full_scale, span)
    squares = torch.stack([part.square().sum(1) for part in (expected.double() / levels).split(64, 1)], 1)
    torch.testing.assert_close(power.double(), squares, rtol=1e-6, atol=0)
    lost = torch.tensor([[1.0, float("nan")], [1.0, 2.0]])
    one_after_another = (None, torch.zeros(1, dtype=torch.int64), 1, 2)
    openmp.run(kernels.encode, 2, lost, *one_after_another, None, 1, codes, full_scale, None, 2, 2, 64, levels, 1e-30)
    assert full_scale[:2].isnan().tolist() == [True, False]
    assert codes.flatten()[:4].tolist() == [0, 0, round(levels / 2), levels]  # Python rounds to even too


@pytest.mark.parametrize("kind", [torch.int8, torch.float32, torch.int16])
@pytest.mark.parametrize(
    "cut",
    [
        lambda x: x.unfold(1, 3, 2).unfold(2, 4, 1).permute(0, 1, 2, 4, 5, 3),  # patches, channels last
        lambda x: x.unfold(1, 3, 2).unfold(2, 4, 1),  # channels first
        lambda x: x.unfold(1, 5, 2)[..., ::2].unfold(2, 4, 1).permute(0, 1, 2, 4, 5, 3),  # taps apart
        lambda x: x[:1, :1].expand(3, 4, 9, 12),
    ],
)
def test_vectors_are_cut_where_they_are_read(kind, cut, monkeypatch):
    monkeypatch.setattr(integers, "_kind", lambda: kind)
    given = cut(inputs(3 * 9 * 9, 12).view(3, 9, 9, 12))
    taken = 3 if given.dim() == 6 else 2
    lines = math.prod(given.shape[-taken:])
    layer = programmed(SERVED["per token"], lines)
    whole = layer(given.flatten(-taken))
    layer.reset_reads()
    found = layer(given, taken)
    assert torch.equal(found, whole)
    assert found.shape == (*given.shape[:-taken], 71)
    read = Read(given, layer.readout(), layer.hardware, None, layer.read_noise("read", 0), taken)
    assert dispatch.choose(read).name == "cpu"
    columns = read._replace(x=given.flatten(-taken).flatten(0, -2), taken=1)
    assert torch.equal(dispatch.read_columns(read), dispatch.read_columns(columns))
    assert torch.equal(dispatch.multiply(read, "eager"), dispatch.multiply(columns, "eager"))


def test_corrections_and_gradients_see_vectors():
    x = inputs(2 * 8 * 8, 5).view(2, 8, 8, 5)
    given = x.unfold(1, 3, 1).unfold(2, 3, 1)
    layer = programmed(NOISY, 45)
    layer.set_line_scale(torch.linspace(0.5, 2, 45))
    layer.program(3)
    layer.set_adapter(torch.full((45, 1), 0.1), torch.full((1, 71), 0.2))
    whole = layer(given.flatten(-3))
    layer.reset_reads()
    assert torch.equal(layer(given, 3), whole)
    layer.reset_reads()
    x.requires_grad_()
    found = layer(x.unfold(1, 3, 1).unfold(2, 3, 1), 3)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert gradient.shape == x.shape
    assert gradient.isfinite().all()
    assert gradient.abs().sum() > 0


def test_rows_of_numbers_continue_each_other():
    # columns [T, B, O] follow vector by vector, as the kernel that converts them takes them
    stream = Stream(("columns",))
    whole = stream.columns(3, 10, 7)
    assert torch.equal(torch.cat([stream.columns(3, 4, 7), stream.columns(3, 6, 7, first=4)], 1), whole)
    rows = [stream.columns(1, 1, 7, first=row) for row in range(30)]
    assert torch.equal(torch.cat(rows).view(10, 3, 7).transpose(0, 1), whole)

import dataclasses
import math

import pytest
import torch

import attention.kernel.analog
import attention.kernel.chunks
from attention import (
    BigBird,
    Dense,
    Fixed,
    GlobalTokens,
    LocalWindow,
    Pattern,
    PerHead,
    PerSequence,
    Sinks,
    Strided,
    TopK,
    count,
    gated_attention,
)
from attention.kernel.analog import ReadNoise, attend_analog
from attention.kernel.analog_booking import count_reads
from attention.kernel.analog_reference import analog_reference
from attention.kernel.blocks import Options
from attention.kernel.schedule import make
from attention.kernel.token_rows import TokenRows, write
from crossbar import Ledger, presets
from crossbar.errors import InputError
from crossbar.hardware import CellNoise, Converter, Tile

PCM = presets.pcm()
N = 90
PATTERNS = [
    Dense(),
    (LocalWindow(20) | Sinks(3)).causal(),
    LocalWindow(8) | GlobalTokens((0, 70)),
    Strided(9).causal(),
    Sinks(0),
]
HARDWARE = {
    "pcm": dataclasses.replace(PCM, tile=Tile(rows=16, cols=4)),
    "active rows": dataclasses.replace(
        PCM, tile=Tile(rows=16, cols=4), adc=Converter(range="active_rows", bits=6, full_scale=4.0), dac=Converter()
    ),
    "no DAC": dataclasses.replace(PCM, tile=Tile(rows=32), dac=None, adc=Converter(full_scale=1.5)),
    "cell noise": dataclasses.replace(
        PCM, tile=Tile(rows=32, cols=8), adc=None, read_noise=CellNoise(constant=0.3, relative=0.02)
    ),
    "pairs": dataclasses.replace(PCM, tile=Tile(rows=7, cols=10, pairs=2, encoding="balanced")),
}


def draw(n=N, size=10, heads=4, kv_heads=2, batch=1, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, heads, n, size), (batch, kv_heads, n, size), (batch, kv_heads, n, size))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


class Constant:
    """A stream of read noise that always gives one number."""

    value = 0.7

    def __init__(self, key, device):
        pass

    def scattered(self, number, row, shift, element, width):
        blocks = len(number) * len(row)
        return torch.full((blocks, row.shape[1], element.shape[1]), self.value, dtype=torch.float64)


@pytest.mark.parametrize("hardware", HARDWARE.values(), ids=HARDWARE.keys())
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_both_stages_equal_the_slow_transcription(pattern, hardware, monkeypatch):
    monkeypatch.setattr(attention.kernel.analog, "Stream", Constant)
    q, k, v = draw(N, 10)
    keys, values = (write(x, hardware, (0, role)) for x, role in ((k, "k"), (v, "v")))
    work = make(pattern, N, N, tile=hardware.tile.rows)
    output, lse = attend_analog(q, keys, values, work, Options(0.3, None, 0.0, 0, True), hardware, ReadNoise((0,)))

    def plain(rows):
        variance = None if rows.variance is None else rows.variance[0].numpy()
        return rows.digits[0].numpy(), rows.scale[0, :, :, 0].numpy(), variance

    (k_digits, k_scale, k_variance), (v_digits, v_scale, v_variance) = plain(keys), plain(values)
    expected, expected_lse, counts = analog_reference(
        q[0].numpy(), k_digits, k_scale, v_digits, v_scale, pattern.to_dense(N).numpy(), 0.3, hardware,
        Constant.value, k_variance, v_variance,
    )  # fmt: skip
    torch.testing.assert_close(output[0], torch.from_numpy(expected), rtol=0, atol=1e-9)
    torch.testing.assert_close(lse[0], torch.from_numpy(expected_lse), rtol=0, atol=1e-9)
    counted = []
    with Ledger() as ledger:
        count_reads("rows", q, (10, 10), work, None, hardware, None, lambda found, _: counted.append(found))
    assert ledger.by_layer.keys() <= {"rows"}
    assert [dataclasses.asdict(found) for found in counted] == [counts]
    tile = hardware.tile
    assert counts == dataclasses.asdict(count(pattern, N, head_dim=10, heads=4, rows=tile.rows, columns=tile.cols))


@pytest.mark.parametrize(
    "pattern",
    [*PATTERNS, BigBird(16, 1), TopK(5), PerHead([Dense(), LocalWindow(9), Fixed(16, 2), LocalWindow(9)])],
    ids=str,
)
def test_ideal_hardware_is_digital_attention(pattern):
    ideal = dataclasses.replace(presets.ideal(), tile=Tile(rows=16, cols=4))
    q, k, v = draw(N, 10, batch=2, dtype=torch.float32)
    mask = torch.rand(2, N, generator=torch.Generator().manual_seed(1)) < 0.8
    found = []
    for hardware in (ideal, None):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        output, lse = gated_attention(*inputs, pattern, mask=mask, hardware=hardware, return_lse=True)
        total = output.square().sum() + lse.masked_fill(lse == -math.inf, 0).cos().sum()
        found.append([output, lse, *torch.autograd.grad(total, inputs, materialize_grads=True)])
    for analog, digital in zip(*found, strict=True):
        largest = digital.detach().masked_fill(digital == -math.inf, 0).abs().max().clamp(min=1).item()
        torch.testing.assert_close(analog, digital, rtol=0, atol=1e-5 * largest)


def rows_of(x):
    """Exact token rows, as a memory of one's own would hand them in."""
    return TokenRows(x, torch.ones(*x.shape[:3], 1, dtype=x.dtype))


def test_noise_comes_with_open_rows_only():
    """Ones as values: an output is the number of its conversions' noise, in no case that of tiles it does not touch."""
    hardware = dataclasses.replace(presets.ideal(), tile=Tile(rows=16), output_noise=0.1)
    n, size = 128, 64
    pattern = LocalWindow(32).causal()
    q, k = torch.zeros(1, 1, n, size), torch.zeros(1, 1, n, size)
    work = make(pattern, n, n, tile=16)
    reads = torch.cat(
        [
            attend_analog(
                q, rows_of(k), rows_of(k), work, Options(1.0, None, 0.0, 0, False), hardware, ReadNoise((seed,))
            )[0]
            for seed in range(40)
        ],
        1,
    )
    touched = torch.tensor([len({j // 16 for j in range(max(0, i - 31), i + 1)}) for i in range(n)])
    deviation = reads[0].double().square().mean((0, 2)).sqrt()  # over 40 x 64 reads: a relative error of 1.4%
    torch.testing.assert_close(deviation, 0.1 * touched.double().sqrt(), rtol=0.08, atol=0)
    # Independent between queries, dimensions and seeds.
    flat = reads[0].transpose(0, 1).flatten(1)
    assert (torch.corrcoef(flat) - torch.eye(n)).abs().max() < 6 / flat.shape[1] ** 0.5


def test_noise_of_scores():
    """One-hot values give the weights away: the logarithm of their ratio is the difference of two scores' noise."""
    hardware = dataclasses.replace(presets.ideal(), output_noise=0.2)
    n = 2000
    q, k = torch.zeros(1, 1, n, 2), torch.zeros(1, 1, n, 2)
    v = torch.eye(2).repeat(n // 2, 1)[None, None]
    quiet_values = dataclasses.replace(hardware, output_noise=0.0)
    scores = []
    for seed in range(5):
        _, lse = gated_attention(
            q, k, v, LocalWindow(1).causal(), scale=0.5, hardware=hardware, seed=seed, return_lse=True
        )
        scores.append(lse.flatten())  # a single key: its score
    z = torch.cat(scores) / (0.5 * 0.2)
    assert abs(float(z.mean())) < 4 / len(z) ** 0.5
    assert float(z.std()) == pytest.approx(1, abs=4 / (2 * len(z)) ** 0.5)
    exact = gated_attention(q, k, v, LocalWindow(1).causal(), hardware=quiet_values, return_lse=True)[1]
    assert (exact == 0).all()


def test_results_are_keyed_and_do_not_depend_on_threads_or_global_state():
    q, k, v = draw(200, 16, dtype=torch.float32)
    pattern = (LocalWindow(30) | Sinks(4)).causal()

    def read(**options):
        return gated_attention(q, k, v, pattern, hardware=PCM, **options)

    first, state = read(seed=1), torch.random.get_rng_state()
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(read(seed=1), first)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), state)
    for other in ({"seed": 2}, {"seed": 1, "layer": "other"}, {"seed": 1, "seconds": 3600.0}):
        assert not torch.equal(read(**other), first)


def require_same_numbers(found, expected):
    """But for the order of float32 sums, which a conversion at a tie makes a step."""
    off = (found - expected).abs()
    assert off.max() < 0.1
    assert (off > 1e-5).float().mean() < 0.01


def test_noise_has_its_place_whatever_the_blocks_and_parts():
    """Calls that cut the same pairs in other ways: heads and sequences apart, and schedules of other patterns."""
    hardware = dataclasses.replace(PCM, tile=Tile(rows=16, cols=4), read_noise=CellNoise(0.2, 0.02))
    q, k, v = draw(N, 10, batch=2, dtype=torch.float32)
    pattern = (LocalWindow(20) | Sinks(3)).causal()
    rows = [write(x, hardware, (1, role)) for x, role in ((k, "keys"), (v, "values"))]

    def read(pattern):
        options = Options(0.3, None, 0.0, 0, True)
        work = make(pattern, N, N, tile=hardware.tile.rows)
        return attend_analog(q, *rows, work, options, hardware, ReadNoise((4,)))

    whole = read(pattern)
    alike = gated_attention(q, k, v, PerSequence([pattern] * 2), hardware=hardware, seed=1)
    alone = gated_attention(q, k, v, PerHead([pattern, Dense(), pattern, Dense()]), hardware=hardware, seed=1)
    expected = gated_attention(q, k, v, pattern, hardware=hardware, seed=1)
    for found, wanted in ((alike, expected), (alone[:, ::2], expected[:, ::2])):
        require_same_numbers(found, wanted)
    # The same pairs from a pattern that has no blocks.
    pairs = pattern.to_dense(N)
    listed = read(Pattern.from_mask_mod(lambda b, h, i, j: pairs[i, j]))
    for found, wanted in zip(listed, whole, strict=True):
        require_same_numbers(found, wanted)


@pytest.mark.parametrize("size", [1, 2**10, 2**14])
def test_noise_does_not_depend_on_the_size_of_chunks(size, monkeypatch):
    q, k, v = draw(N, 10, dtype=torch.float32)
    pattern = LocalWindow(8) | GlobalTokens((0, 70))
    whole = gated_attention(q, k, v, pattern, hardware=HARDWARE["pcm"], seed=1)
    monkeypatch.setattr(attention.kernel.chunks, "SCORES", size)
    cut = gated_attention(q, k, v, pattern, hardware=HARDWARE["pcm"], seed=1)
    require_same_numbers(cut, whole)


def test_error_is_that_of_an_eight_bit_analog_chip():
    """PCM with 8-bit converters: some percent of error, more after a day, less with more devices a number."""
    q, k, v = draw(400, 64, dtype=torch.float32)
    pattern = (LocalWindow(64) | Sinks(4)).causal()
    exact = gated_attention(q, k, v, pattern)

    def error(**options):
        hardware = options.pop("hardware", PCM)
        return float((gated_attention(q, k, v, pattern, hardware=hardware, **options) - exact).norm() / exact.norm())

    fresh = error()
    assert 0.03 < fresh < 0.3
    assert error(seconds=86400.0) > 1.2 * fresh
    assert error(hardware=dataclasses.replace(PCM, tile=Tile(pairs=8))) < fresh


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_training_goes_straight_through_both_stages(dropout):
    """Gradients are those of digital attention on what is in the cells, as converters and noise were not there."""
    hardware = dataclasses.replace(PCM, output_noise=0.0, dac=Converter(bits=14, range="per_token"))
    hardware = dataclasses.replace(hardware, adc=Converter(bits=16, full_scale=40.0))
    pattern = (LocalWindow(30) | Sinks(4)).causal()
    q, k, v = (x.requires_grad_() for x in draw(200, 16))
    options = {"dropout": dropout, "seed": 3}
    output = gated_attention(q, k, v, pattern, hardware=hardware, **options)
    found = torch.autograd.grad(output.square().sum(), (q, k, v))
    held = []
    for x, role in ((k, "keys"), (v, "values")):
        rows = write(x.detach(), hardware, (3, "attention", role))
        held.append((rows.digits * rows.scale).requires_grad_())
    ideal = gated_attention(q, *held, pattern, hardware=presets.ideal(), **options)
    torch.testing.assert_close(output, ideal, rtol=0, atol=0.01)
    for analog, digital in zip(found, torch.autograd.grad(ideal.square().sum(), (q, *held)), strict=True):
        assert (analog - digital).norm() < 0.02 * digital.norm()


def test_training_meets_the_noise_of_the_forward_pass_and_clips():
    q, k, v = draw(150, 16)
    noisy = dataclasses.replace(presets.ideal(), output_noise=0.3, tile=Tile(rows=32))
    inputs = [x.requires_grad_() for x in (q, k, v)]
    # With noise and no converters, the function is smooth for its seed: numbers agree with finite differences.
    rows = [rows_of(x) for x in (k, v)]
    work = make(LocalWindow(20), 150, 150, tile=32)

    def attend(q, keys, values):
        held = [dataclasses.replace(row, digits=x) for row, x in zip(rows, (keys, values), strict=True)]
        return attend_analog(q, *held, work, Options(0.3, None, 0.0, 0, False), noisy, ReadNoise((4,)))[0]

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)
    clipped = dataclasses.replace(presets.ideal(), adc=Converter(bits=16, full_scale=1e-6))
    output = gated_attention(*inputs, LocalWindow(20), hardware=clipped)
    assert all((grad == 0).all() for grad in torch.autograd.grad(output.sum(), inputs))


def test_a_ledger_counts_writes_and_reads():
    q, k, v = draw(N, 10, batch=2, dtype=torch.float32)
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[1, 60:] = False
    hardware = dataclasses.replace(PCM, tile=Tile(rows=16, cols=4))
    pattern = (LocalWindow(20) | Sinks(3)).causal()
    with Ledger() as ledger:
        gated_attention(q, k, v, pattern, mask=mask, hardware=hardware, layer="a")
    # Padding has no row and asks nothing.
    attended = pattern.to_dense(N)[None] & mask[:, None] & mask[:, :, None]
    tiles = sum(int(attended[..., low : low + 16].any(-1).sum()) for low in range(0, N, 16))
    pairs = int(attended.sum())
    counts = ledger.to_dict()["a"]
    assert counts["row_writes"] == 2 * 2 * (N + 60) * 3
    assert counts["column_activations"] == counts["row_activations"] == 4 * 3 * pairs
    assert counts["write_pulses"] == 2 * 2 * (N + 60) * 10 * 2
    assert counts["query_drives"] == 4 * 10 * tiles
    assert counts["special_functions"] == 4 * (pairs + N + 60)
    assert counts["adc_conversions_8bit"] == 4 * (3 * pairs + 10 * tiles)
    assert counts["dac_conversions_8bit"] == 4 * (10 * tiles + 3 * pairs)
    assert counts["cell_macs"] == 4 * 2 * 10 * pairs
    with Ledger() as digital:
        gated_attention(q, k, v, pattern, mask=mask)
    assert digital.totals() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    q, k, v = draw(N, 16, dtype=dtype)
    output, lse = gated_attention(q, k, v, LocalWindow(20), hardware=PCM, return_lse=True)
    assert output.dtype == dtype
    assert lse.dtype == torch.float32
    assert output.isfinite().all()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"hardware": "pcm"}, "hardware 'pcm' is not a Hardware"),
        ({"hardware": PCM, "impl": "reference"}, "impl 'reference' cannot have hardware"),
        ({"hardware": PCM, "impl": "flex"}, "impl 'flex' cannot have hardware"),
        ({"hardware": PCM, "seconds": -1.0}, "seconds = -1.0"),
        (
            {"hardware": dataclasses.replace(PCM, tile=Tile(slices=2))},
            "tile.slices = 2 is not supported for keys and values: give 1$",
        ),
    ],
)
def test_bad_hardware_is_named(options, named):
    q, k, v = draw(10, 4)
    with pytest.raises(InputError, match=named):
        gated_attention(q, k, v, Dense(), **options)

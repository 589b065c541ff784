"""The kernel of GPUs for analog keys and values: the numbers of the chunks that the CPU computes."""

import dataclasses
from functools import partial

import pytest
import torch

from attention import BigBird, Dense, LocalWindow, PerHead, Sinks, Strided, gated_attention
from attention.kernel import fused
from attention.kernel.analog import ReadNoise, attend_analog
from attention.kernel.blocks import Options
from attention.kernel.schedule import make
from attention.kernel.token_rows import write
from crossbar import CellNoise, Converter, Tile, presets
from crossbar.errors import InputError
from crossbar.native import gpu
from tests.attention.kernel.test_flex import EVERY
from tests.attention.kernel.test_flex import N as LONG

DEVICE = torch.device("cpu" if gpu.interpreted() else "cuda")
PCM = presets.pcm()
WINDOW = (LocalWindow(12) | Sinks(2)).causal()
ACTIVE = Converter(range="active_rows", bits=6, full_scale=4.0)
CASES = {
    "heads that share keys, padding": (WINDOW, dataclasses.replace(PCM, tile=Tile(8, 64)), 18, 5, True),
    "parts of a head in tiles, not causal": (
        Strided(9), dataclasses.replace(PCM, tile=Tile(7, 4), output_noise=0.2), 19, 6, False
    ),
    "active rows, ranges that stay": (
        WINDOW,
        dataclasses.replace(PCM, tile=Tile(16, 64), dac=Converter(full_scale=3.0), adc=ACTIVE),
        20, 4, False,
    ),
    "no ADC": (Dense().causal(), dataclasses.replace(PCM, tile=Tile(32, 64), adc=None), 18, 4, False),
    "quiet": (WINDOW, dataclasses.replace(PCM, tile=Tile(16, 64), output_noise=0.0), 20, 4, False),
    "cells that are noisy": (
        WINDOW, dataclasses.replace(PCM, tile=Tile(16, 4), read_noise=CellNoise(0.3, 0.02)), 18, 5, False
    ),
    "cells that are noisy, wide heads": (
        WINDOW, dataclasses.replace(PCM, tile=Tile(8, 30), read_noise=CellNoise(0.3, 0.02)), 6, 37, False
    ),
}  # fmt: skip
kernels = pytest.mark.skipif(gpu.why_not() is not None, reason=f"no kernels here: {gpu.why_not()}")


def draw(n, size, heads=2, kv_heads=1, device=DEVICE):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, n, size, generator=generator) for h in (heads, kv_heads, kv_heads))
    return [x.to(device) for x in (q, k, v)], (torch.rand(1, n, generator=generator) < 0.8).to(device)


def require_same(found, expected):
    """But for the order of float32 sums, which a conversion at a tie makes a step."""
    off = (found - expected).abs().masked_fill(expected == found, 0.0)  # both may be infinite
    assert off.max() < 0.1
    assert (off > 2e-6).float().mean() < 0.01


@kernels
@pytest.mark.parametrize("name", CASES)
def test_the_kernels_give_numbers_and_gradients_of_the_chunks(name, monkeypatch):
    monkeypatch.setattr(fused, "_TOGETHER", 1)  # blocks of queries whose gradients a program adds up
    pattern, hardware, n, size, padded = CASES[name]
    (q, k, v), mask = draw(n, size, heads=2 if padded else 1)
    rows = [write(x, hardware, (0, role)) for x, role in ((k, "keys"), (v, "values"))]
    options = Options(0.3, mask if padded else None, 0.0, 0, True)
    assert fused.why_not(q, n, hardware, options) is None
    work = make(pattern, n, n, tile=hardware.tile.rows, device=DEVICE)
    given = pattern, n, n, 0, hardware.tile.rows, DEVICE
    fused.readers.cache_clear()
    generator = torch.Generator().manual_seed(1)
    grads = (
        torch.randn(q.shape, generator=generator).to(DEVICE),
        torch.randn(q.shape[:3], generator=generator).to(DEVICE),
    )
    results = []
    for kernel in (fused.Kernels(fused.chunks(*given, 16), partial(fused.readers, *given, 16, 16)), None):
        inputs = [x.detach().requires_grad_() for x in (q, rows[0].digits, rows[1].digits)]
        keys, values = (dataclasses.replace(own, digits=digits) for own, digits in zip(rows, inputs[1:], strict=True))
        found = attend_analog(inputs[0], keys, values, work, options, hardware, ReadNoise((1,)), fused=kernel)
        results.append([*(x.detach() for x in found), *torch.autograd.grad(found, inputs, grads)])
    for found, expected in zip(*(x[:2] for x in results), strict=True):
        require_same(found, expected)
    for found, expected in zip(*(x[2:] for x in results), strict=True):
        assert expected.abs().max() > 0.05
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-5)


@kernels
def test_the_backend_of_that_name_computes_attention_and_gradients():
    hardware, pattern = dataclasses.replace(PCM, tile=Tile(8, 64)), PerHead([WINDOW, Dense().causal()])
    found = {}
    for impl in ("triton", "eager"):
        inputs = [x.requires_grad_() for x in draw(9, 4, kv_heads=2)[0]]
        output, lse = gated_attention(*inputs, pattern, hardware=hardware, impl=impl, return_lse=True, seed=2)
        found[impl] = [output, lse, *torch.autograd.grad(output.square().sum() + lse.sum(), inputs)]
    for one, other in zip(found["triton"], found["eager"], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pattern", [*(p for p in EVERY if p.is_static and p.n_heads is None)], ids=str)
@pytest.mark.parametrize("rows", [16, 7, 100])
def test_chunks_hold_every_attended_pair(pattern, rows):
    pattern, n = pattern.at(LONG), LONG
    lists = fused.chunks(pattern, n, n, 0, rows, torch.device("cpu"))
    half, dense = (rows + 1) // 2, torch.zeros(n, n, dtype=torch.bool)
    column = torch.arange(lists.size)
    for block in range(len(lists.bounds) - 1):
        here = slice(*lists.bounds[block : block + 2].tolist())
        queries = torch.arange(block * fused.QUERIES, min((block + 1) * fused.QUERIES, n))
        tiles = lists.entries[here] // 2 // lists.per_tile
        ends = torch.cat([tiles[:-1] != tiles[1:], torch.ones(1, dtype=torch.bool)]) if len(tiles) else tiles
        assert torch.equal(lists.entries[here] % 2, ends.int())
        for entry, number in zip(lists.entries[here].tolist(), lists.numbers[here].tolist(), strict=True):
            tile, chunk = divmod(entry // 2, lists.per_tile)
            low = chunk * lists.size // 2 + column // 2
            line = low + column % 2 * half
            there = (low < half) & (line < rows) & (tile * rows + line < n)
            pairs = torch.ones(fused.QUERIES, lists.size) if number < 0 else lists.masks[number]
            assert not (pairs[: len(queries)] > 0)[:, ~there].any() or number < 0
            assert (pairs[: len(queries), there] > 0).any()
            keys = tile * rows + line[there]
            assert not dense[queries[:, None], keys].any()  # no pair twice
            dense[queries[:, None], keys] = pairs[: len(queries), there] > 0
    assert torch.equal(dense, pattern.to_dense(n))


def test_chunks_are_kept_and_few():
    pattern, n = (LocalWindow(256) | Sinks(4)).causal(), 8192
    lists = fused.chunks(pattern, n, n, 0, 256, torch.device("cpu"))
    assert fused.chunks(pattern, n, n, 0, 256, torch.device("cpu")) is lists
    assert len(lists.masks) < 60  # a window's inner blocks have the same ones
    computed = len(lists.entries) * fused.QUERIES * lists.size
    assert computed < 2.5 * pattern.stats(n).pairs
    assert fused.chunks(BigBird(64, 1).at(512), 512, 512, 0, 256, torch.device("cpu")).bounds.shape == (9,)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dac": None}, "hardware with dac:ideal"),
        ({"dac": Converter(bits=14)}, "input codes of more than 12 bits"),
        ({"adc": Converter(bits=1)}, "hardware with adc.bits:1"),
        ({"read_noise": CellNoise(0.1, form="cheap")}, "hardware with read_noise.form:cheap"),
    ],
)
@kernels
def test_what_the_kernel_does_not_have(change, reason):
    (q, k, v), _ = draw(5, 4)
    hardware = dataclasses.replace(PCM, **change)
    assert fused.why_not(q, 5, hardware, Options(1.0, None, 0.0, 0, False)) == reason
    if change.get("adc") is None:
        with pytest.raises(InputError, match="backend 'triton' cannot compute this"):
            gated_attention(q, k, v, Dense(), hardware=hardware, impl="triton")


@kernels
def test_other_calls_that_the_kernel_does_not_have():
    (q, _, _), _ = draw(5, 4)
    plain = Options(1.0, None, 0.0, 0, False)
    assert fused.why_not(q, 5, PCM, plain._replace(dropout=0.1)) == "dropout"
    assert fused.why_not(q.double(), 5, PCM, plain) == "numbers in float64"
    assert fused.why_not(q.new_zeros(1, 1, 5, 257), 5, PCM, plain) == "heads of more than 256 dimensions"
    assert fused.why_not(q, 2**30, PCM, plain) == "more than 2^31 numbers of a head"

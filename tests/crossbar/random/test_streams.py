"""Random streams: the key decides the numbers, and nothing else does."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from crossbar.random import reference
from crossbar.random.streams import Stream, normal, seed, uniform

N = 200_000


def of_columns(shape, key):
    """Numbers of columns, all of one vector."""
    return Stream(key).columns(1, 1, math.prod(shape)).view(shape)


normals = pytest.mark.parametrize("draw", [normal, of_columns])
draws = pytest.mark.parametrize("draw", [normal, of_columns, uniform])


def correlation(a, b):
    return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])


@normals
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_numbers_are_standard_normal(draw, seed):
    z = draw((N,), (seed, "distribution")).double()
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.01
    n = 1_000_000
    for half in draw((2, n), (seed, "moments")).double():  # the two numbers of a pair are made in different ways
        assert abs(half.mean()) < 4 / n**0.5  # 4 standard errors of a mean
        assert abs(half.var() - 1) < 4 * (2 / n) ** 0.5  # and of a variance
        assert abs((half**4).mean() - 3) < 4 * (96 / n) ** 0.5  # and of a fourth moment


def test_uniform_numbers_are_uniform():
    z = uniform((N,), (0, "distribution"))
    assert stats.kstest(z.numpy(), "uniform").pvalue > 0.01
    assert z.min() >= 0
    assert z.max() < 1


@draws
def test_neighbours_and_halves_are_independent(draw):
    z = draw((N,), ("lags",))
    for lag in (1, 2, 3, 4, N // 2):  # four numbers share a word of bits in one stream, two halves in the other
        a, b = z[:-lag], z[lag:]
        assert abs(correlation(a, b)) < 4 / len(a) ** 0.5
        assert abs(correlation(a**2, b**2)) < 4 / len(a) ** 0.5


@draws
def test_same_key_same_bits(draw):
    assert torch.equal(
        draw((50, 41), (3, "layer.0", "read", 3600.0, 2)), draw((50, 41), (3, "layer.0", "read", 3600.0, 2))
    )


@draws
@pytest.mark.parametrize("other", [(1, "a", 2.0), (0, "b", 2.0), (0, "a", 3.0), ("0", "a", 2.0), (0, "a"), (0, "a2.0")])
def test_another_key_gives_unrelated_numbers(draw, other):
    a, b = draw((N,), (0, "a", 2.0)), draw((N,), other)
    assert (a == b).float().mean() < 1e-3  # 2^-16 by chance where 16 bits pick a number
    assert abs(correlation(a, b)) < 4 / N**0.5


@draws
def test_global_generators_neither_matter_nor_move(draw):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        before_torch, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the point
        a = draw((1001,), ("global",))
        assert torch.equal(torch.get_rng_state(), before_torch)
        assert np.array_equal(np.random.get_state()[1], before_numpy)  # noqa: NPY002 - the point
        torch.manual_seed(2)
        assert torch.equal(draw((1001,), ("global",)), a)


@draws
@pytest.mark.parametrize("n", [1, 7, 1000, 65_537, 200_001])  # the last ones are worked on by several threads
def test_thread_count_changes_no_bit(draw, n):
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = draw((n,), ("threads", n))
        torch.set_num_threads(2)
        two = draw((n,), ("threads", n))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, two)


@draws
@pytest.mark.parametrize("shape", [(), (1,), (3,), (5, 7), (0, 4), (3, 1, 5)])
def test_any_shape(draw, shape):
    z = draw(shape, ("shape",))
    assert z.shape == shape
    assert z.dtype == torch.float32
    assert z.isfinite().all()


def test_a_stream_is_not_used_up_and_parts_are_those_of_the_whole():
    stream = Stream(("stream",))
    columns, normals, even, each = stream.columns(3, 10, 7), stream.normal((5000,)), uniform((99,), ("stream",)), 127
    assert torch.equal(stream.columns(3, 10, 7), columns)
    assert torch.equal(torch.cat([stream.columns(3, 4, 7), stream.columns(3, 6, 7, first=4)], 1), columns)
    for first, last in ((0, 5000), (0, 1), (1000, 1030), (1024, 4096), (4000, 4999), (4500, 5000), (7, 7)):
        assert torch.equal(stream.normal_part(5000, first, last), normals[first:last])
    assert torch.equal(torch.cat([stream.uniform((40,)), stream.uniform((59,), first=40)]), even)
    octets = stream.bytes((1001,))
    for first in (0, 1, 6, 1000):
        assert torch.equal(stream.bytes((1001 - first,), first=first), octets[first:])
    codes = torch.arange(99) % (each + 1)
    assert torch.equal(stream.binomial(codes[30:], each, first=30), stream.binomial(codes, each)[30:])


def test_numbers_of_several_kinds_are_the_same_whatever_torchs_default_device():
    def drawn():
        stream = Stream(("device", 1))
        return [
            normal((3, 700), ("device",)),
            uniform((77,), ("device",)),
            stream.columns(2, 3, 5),
            stream.bytes((9,)),
            stream.binomial(torch.tensor([0.0, 3.0, 7.0], device="cpu"), 7),
            scattered(stream),
        ]

    expected = drawn()
    with torch.device("meta"):
        found = drawn()
    assert all(one.device.type == "cpu" for one in found)
    assert all(torch.equal(*both) for both in zip(found, expected, strict=True))


PLACES = (
    torch.tensor([[3, 3, 0], [70001, 5, 5]]),  # streams [Q, R]
    torch.tensor([[0, 9, 9], [2**31, 1, 4], [7, 7, 7]]),  # rows [G, R]
    torch.tensor([[0, 0, 0, 0, 1, 1, 0, 2], [4, 4, 4, 5, 5, 5, 5, 5], [0] * 8]),  # shifts [G, L]
    torch.tensor([[0, 1, 4, 5, 3, 8, 2, 2], [0, 5, 8, 1, 2, 3, 7, 7], [8, 7, 6, 5, 4, 3, 2, 1]]),  # elements [G, L]
)


def scattered(stream, device="cpu"):
    return stream.scattered(*(x.to(device) for x in PLACES), 9)


def test_scattered_numbers_are_those_of_their_places():
    number, row, shift, element = PLACES
    found = scattered(Stream(("places",)))
    for q, g, r, place in np.ndindex(2, 3, 3, 8):
        where = number[q, r], row[g, r] + shift[g, place], element[g, place]
        expected = reference.scattered(("places",), *map(int, where), 9)
        assert float(found[q * 3 + g, r, place]) == expected
    # Blocks of other shapes hold the same numbers.
    for part in (slice(0, 3), slice(2, 8)):
        cut = Stream(("places",)).scattered(number[:, 1:], row[:, 1:], shift[:, part], element[:, part], 9)
        assert torch.equal(cut, found[:, 1:, part])


def test_streams_of_a_key_are_standard_normal_and_unrelated():
    row, element = torch.arange(200)[None], torch.arange(101)[None]
    shift = torch.zeros_like(element)
    one, other = (
        Stream(("many",)).scattered(torch.full((1, 200), n), row, shift, element, 101).flatten() for n in (0, 1)
    )
    assert stats.kstest(one.double().numpy(), "norm").pvalue > 0.01
    assert abs(correlation(one, other)) < 4 / one.numel() ** 0.5
    assert abs(correlation(one**2, other**2)) < 4 / one.numel() ** 0.5


def of_each_kind(stream, device="cpu"):
    codes = (torch.arange(120.0, device=device) % 16).view(8, 15)
    return [
        stream.normal(()),
        stream.normal((3, 700)),
        stream.normal((0, 4)),
        stream.normal_part(5000, 1000, 4999),
        stream.columns(2, 3, 5, first=7),
        stream.uniform((77, 2), first=3),
        stream.bytes((3, 11), first=5),
        stream.binomial(codes, 15, first=4),
        stream.binomial(codes.int(), 127),
        scattered(stream, device),
    ]


def test_torchs_operations_give_the_bits_of_the_kernels():
    expected, other = of_each_kind(Stream(("other",))), Stream(("other",))
    other._compiled = False
    for found, numbers in zip(of_each_kind(other), expected, strict=True):
        assert found.dtype == numbers.dtype
        assert found.shape == numbers.shape
        assert found.numpy().tobytes() == numbers.numpy().tobytes()


def test_another_device_is_neither_waited_for_nor_copied_from():
    # of tensors on this device there is nothing to wait for or to copy
    found, expected = of_each_kind(Stream(("other",), "meta"), "meta"), of_each_kind(Stream(("other",)))
    assert [(one.dtype, one.shape) for one in found] == [(one.dtype, one.shape) for one in expected]
    assert all(one.device.type == "meta" for one in found)


def test_bytes_are_evenly_spread_and_independent():
    octets = Stream(("bytes",)).bytes((N,))
    assert stats.chisquare(octets.bincount(minlength=256)).pvalue > 0.01
    for lag in (1, 2, 3, 4, 8):
        assert abs(correlation(octets[lag:], octets[:-lag])) < 4 / (N - lag) ** 0.5


def test_a_number_can_be_large_and_stays_finite():
    z = normal((2_000_000,), ("tails",)).abs()
    assert 4.5 < z.max() < 6.7  # the largest of 2e6 is below 4.5 with probability exp(-13)
    assert z.isfinite().all()


def test_seeds_for_foreign_generators():
    keys = [(0, "layer", "redraw", t) for t in (0.0, 1.0, 2.0)] + [
        (0, "layer", "redraw", 0),
        (1, "layer", "redraw", 0.0),
    ]
    seeds = [seed(key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= s < 2**64 for s in seeds)
    assert seeds == [seed(key) for key in keys]

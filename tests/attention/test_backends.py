"""Attention on analog rows, strengths, routers and memory compute with the backend that is registered or named."""

import dataclasses

import pytest
import torch

from attention import AnalogMemory, LearnedStrengths, LocalWindow, Memory, Router, gated_attention, parse
from crossbar import CellNoise, Converter, InputError, Tile, presets, program, register_backend, using_backend
from tests.crossbar.toys import Toy

N, H, D = 12, 2, 8
WINDOW = LocalWindow(5).causal()
HARDWARE = dataclasses.replace(
    presets.pcm(), tile=Tile(5, 6), adc=Converter(full_scale=3.1415), read_noise=CellNoise(0.5, 0.02)
)


@pytest.fixture
def toy(registries):
    made = Toy()
    register_backend(made, first=False)
    return made


def tensors(count=3, n=N):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(2, H, n, D, generator=generator) for _ in range(count)]


def rows():
    """Keys and values in rows: a score and a value stage."""
    return gated_attention(*tensors(), WINDOW, hardware=HARDWARE, seed=3)


def strengths(content_free):
    made = LearnedStrengths(H, N, WINDOW, content_free=content_free)
    with torch.no_grad():
        made.strength.normal_(generator=torch.Generator().manual_seed(0))
    made.place(HARDWARE)
    program(made, 3)
    q, k, v = tensors()
    return made(v) if content_free else made(v, q, k)


def mixed():
    """Values drive tiles of strengths."""
    return strengths(True)


def pairs():
    """Strengths are read one by one."""
    return strengths(False)


def memory():
    """Rows of their own ages, then a score and a value stage."""
    made = AnalogMemory(Memory(HARDWARE, capacity=8, token_seconds=1.0))
    q, k, v = tensors()
    made.append(k, v)
    return made.read(q, WINDOW)[0]


def routed():
    """Similarities with centroids in tiles."""
    router = Router(parse("routing(4, 8)"), H, D)
    router.place(HARDWARE)
    program(router, 3)
    return router.tiles[0](tensors()[0][:, 0])


READERS = {rows: "sense", mixed: "sense", pairs: "sense", memory: "age_rows", routed: "sense"}
every_reader = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)


@every_reader
@torch.no_grad()
def test_the_backend_that_is_named_computes(toy, reader):
    expected = reader()
    assert not toy.calls
    with using_backend("toy"):
        found = reader()
    assert toy.calls[READERS[reader]] > 0
    assert toy.calls["sense"] > 0
    # The same numbers are drawn: what differs is rounding, which a column at a tie makes a step.
    assert (found - expected).abs().median() <= 1e-5 * expected.abs().max()
    assert torch.quantile((found - expected).abs().flatten(), 0.95) <= 0.02 * expected.abs().max()


@every_reader
@torch.no_grad()
def test_a_backend_that_is_asked_first_computes_all_of_it(toy, reader):
    register_backend(toy)
    found = reader()
    calls = dict(toy.calls)
    assert calls[READERS[reader]] > 0
    with using_backend("toy"):
        assert torch.equal(reader(), found)
    assert toy.calls == {name: 2 * count for name, count in calls.items()}


@every_reader
@torch.no_grad()
def test_the_oracle_computes_it_too(reader):
    expected = reader()
    with using_backend("naive"):
        found = reader()
    assert found.dtype == expected.dtype
    assert (found - expected).abs().median() <= 1e-5 * expected.abs().max()
    assert torch.quantile((found - expected).abs().flatten(), 0.95) <= 0.02 * expected.abs().max()


def test_the_number_of_conversions_is_that_of_the_stages(toy):
    with torch.no_grad(), using_backend("toy"):
        q, k, v = tensors(n=4)
        hardware = dataclasses.replace(HARDWARE, tile=Tile(4, 4))
        gated_attention(q, k, v, LocalWindow(4).causal(), hardware=hardware)
    assert toy.calls == {"sense": 3}  # scores in two tiles of 4 columns each, values in one of 4 rows


def test_what_a_named_backend_refuses_is_not_computed_by_another():
    q, k, v = tensors()
    with torch.no_grad(), using_backend("cpu"), pytest.raises(InputError) as caught:
        gated_attention(q, k, v, WINDOW, hardware=HARDWARE)
    assert str(caught.value) == (
        "backend 'cpu' cannot compute this (cells that are not kept in fixed point): choose one of eager, naive"
    )


def test_gradients_are_those_of_the_backend_that_has_them(toy):
    found = []
    for first in (True, False):
        register_backend(toy, first)
        q, k, v = (x.requires_grad_() for x in tensors())
        gated_attention(q, k, v, WINDOW, hardware=HARDWARE, seed=3).sum().backward()
        found.append([x.grad for x in (q, k, v)])
        assert all(x.grad.abs().max() > 0 for x in (q, k, v))
        assert bool(toy.calls) == first
        toy.calls.clear()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)

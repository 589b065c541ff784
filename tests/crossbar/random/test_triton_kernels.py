"""Random numbers of GPUs are those of the specification, bit by bit."""

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not on every platform")
tl = pytest.importorskip("triton.language", reason="kernels need Triton, which is for Linux")

from crossbar.native import gpu
from crossbar.random import reference, triton_kernels
from crossbar.random.streams import Stream

DEVICE = torch.device("cpu" if gpu.interpreted() else "cuda")
KEY = (0, "layer.0", "read", 3600.0, 2)
pytestmark = pytest.mark.skipif(gpu.why_not() is not None, reason=f"no kernels here: {gpu.why_not()}")


@pytest.fixture
def stream(monkeypatch):
    """A stream whose numbers Triton makes, on the CPU too."""
    monkeypatch.setattr(gpu, "serves", lambda device: True)
    return Stream(KEY, DEVICE)


def same(found, expected):
    assert tuple(found.shape) == expected.shape
    assert found.cpu().numpy().tobytes() == expected.tobytes()


@pytest.mark.parametrize("shape", [(1,), (5, 7), (0, 4), (1025,), (2047,)])
def test_numbers_of_tensors(stream, shape):
    same(stream.normal(shape), reference.normal(KEY, shape))
    same(stream.uniform(shape), reference.uniform(KEY, shape))
    same(stream.bytes(shape), reference.bytes_of(KEY, shape))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 7), (2, 1, 64)])
def test_numbers_of_columns(stream, shape):
    same(stream.columns(*shape), reference.columns(KEY, *shape))


@pytest.mark.parametrize(("first", "last"), [(0, 3), (700, 2100), (1024, 2048), (2400, 2500), (7, 7)])
def test_parts_of_a_tensor(stream, first, last):
    same(stream.normal_part(2500, first, last), reference.normal(KEY, (2500,))[first:last])


def test_a_counter_that_wraps_around(stream):
    found = triton_kernels.rows(2**32 - 2, stream.word_key, 1, 1, 6, DEVICE)
    words = reference.mixed(np.array([2**32 - 2, 2**32 - 1, 0, 1, 2, 3], np.uint32), stream.word_key)
    radius, (x, y) = reference.radius(words[::2]), reference.direction(words[1::2])
    same(found[0, 0], np.concatenate((radius * x, radius * y)))


@triton.jit
def made(words, radii, first, second, BLOCK: tl.constexpr):
    own = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    word = tl.load(words + own).to(tl.uint32, bitcast=True)
    tl.store(radii + own, triton_kernels.radius(word))
    one, other = triton_kernels.turned(tl.full((BLOCK,), 1.0, tl.float32), word)
    tl.store(first + own, one)
    tl.store(second + own, other)


def test_every_angle_and_many_radii():
    """The 2^16 angles, and radii at both ends of each power of 2."""
    edges = np.unique([max(min((1 << k) + d, 2**23 - 1), 0) for k in range(24) for d in range(-3, 4)])
    words = np.arange(2**16, dtype=np.uint32)
    words[:] |= np.random.default_rng(0).integers(0, 2**16, 2**16).astype(np.uint32) << 16
    words[: len(edges)] = (edges.astype(np.uint32) << 9) | (words[: len(edges)] & 0x1FF)
    words[2**15 :] = np.arange(2**15, 2**16) | (words[2**15 :] & 0xFFFF0000)
    given = torch.from_numpy(words.view(np.int32)).to(DEVICE)
    radii, first, second = (torch.empty(2**16, device=DEVICE) for _ in range(3))
    made[(16,)](given, radii, first, second, BLOCK=2**12, **gpu.OPTIONS)
    same(radii, reference.radius(words))
    cosine, sine = reference.direction(words)
    same(first, cosine)
    same(second, sine)

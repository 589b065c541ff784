"""Logarithm and exponential of GPUs are the CPU's, bit by bit."""

import pytest
import torch

triton = pytest.importorskip("triton", reason="Triton is not on every platform")
tl = pytest.importorskip("triton.language", reason="kernels need Triton, which is for Linux")

from crossbar.native import functions, gpu, triton_kernels
from tests.crossbar.native.test_functions import CASES

DEVICE = torch.device("cpu" if gpu.interpreted() else "cuda")
pytestmark = pytest.mark.skipif(gpu.why_not() is not None, reason=f"no kernels here: {gpu.why_not()}")


@triton.jit
def both(numbers, found, LOG: tl.constexpr, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(numbers + at)
    tl.store(found + at, triton_kernels.log(number) if LOG else triton_kernels.exp(number))


@pytest.mark.parametrize(("name", "x"), CASES)
def test_the_same_bits(name, x):
    x = x[-12_288:].to(DEVICE)
    found = torch.empty_like(x)
    both[(3,)](x, found, LOG=name == "log", BLOCK=4096, **gpu.OPTIONS)
    assert torch.equal(found.cpu(), getattr(functions, name)(x.cpu()))

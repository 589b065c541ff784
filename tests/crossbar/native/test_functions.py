"""Logarithm and exponential in stated steps: how exact they are, and the same bits in torch and compiled."""

import math

import pytest
import torch

from crossbar.native import function_steps, functions

GENERATOR = torch.Generator().manual_seed(0)
ABOVE_0 = torch.cat(
    [
        torch.rand(20_000, generator=GENERATOR).add_(1e-7),
        torch.rand(5_000, generator=GENERATOR).mul_(0.02).add_(0.99),
        torch.logspace(-37, 38, 5_000),
        torch.tensor([1.0, 1e-7, 1e-3, math.sqrt(0.5), math.sqrt(2.0), 0.5, 2.0]),
    ]
)
POWERS = torch.cat([torch.linspace(-90.0, 90.0, 20_000), -torch.rand(5_000, generator=GENERATOR), torch.zeros(1)])
CASES = [("log", ABOVE_0), ("exp", POWERS)]


def by_torch(name, x, monkeypatch):
    """By torch operations, as on other devices."""
    with monkeypatch.context() as patch:
        patch.setattr(functions, "_is_compiled", lambda x: False)
        return getattr(functions, name)(x)


def test_how_exact():
    exact = ABOVE_0.double().log()
    error = (functions.log(ABOVE_0).double() - exact).abs()
    assert (error <= 1.5 * 2**-24 * exact.abs().clamp(min=2.0**-1) * 2).all()
    exact = POWERS.double().clamp(function_steps.LEAST, function_steps.MOST).exp()
    assert ((functions.exp(POWERS).double() - exact).abs() <= 1.5 * 2**-23 * exact).all()


@pytest.mark.parametrize(("name", "x"), CASES)
def test_torch_and_compiled_loops_give_the_same_bits(name, x, monkeypatch):
    assert torch.equal(getattr(functions, name)(x), by_torch(name, x, monkeypatch))


@pytest.mark.parametrize(("name", "x"), CASES)
def test_bits_depend_on_no_thread_and_no_neighbour(name, x):
    function, threads = getattr(functions, name), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(function(x[7:9_990]), function(x)[7:9_990])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(function(x.view(1, -1).expand(2, -1).t())[:, 1], function(x))


def test_what_is_no_number_stays_none(monkeypatch):
    x = torch.tensor([math.nan, 1.0])
    for name, one in (("log", 0.0), ("exp", math.e)):
        for found in (getattr(functions, name)(x), by_torch(name, x, monkeypatch)):
            assert found[0].isnan()
            assert float(found[1]) == pytest.approx(one, rel=1e-7)


def test_other_dtypes_and_gradients_are_torchs():
    assert torch.equal(functions.log(ABOVE_0.double()), ABOVE_0.double().log())
    x = torch.tensor([0.5, 2.0], requires_grad=True)
    functions.log(x).sum().backward()
    assert x.grad.tolist() == [2.0, 0.5]

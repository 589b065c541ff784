"""The nearest weights within bounds, against scipy's bounded least squares in float64."""

import hypothesis.extra.numpy as arrays
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from calibration.steps.clipping import InputMoments, nearest_within


def correlated(lines, tokens=400, seed=1):
    """Inputs that are mixtures of a third as many, with sizes that differ a hundredfold."""
    draw = torch.Generator().manual_seed(seed)
    sources = torch.randn(tokens, lines // 3, generator=draw, dtype=torch.float64)
    mixed = sources @ torch.randn(lines // 3, lines, generator=draw, dtype=torch.float64)
    own = torch.randn(tokens, lines, generator=draw, dtype=torch.float64)
    return (mixed + 0.3 * own) * torch.logspace(-1, 1, lines, dtype=torch.float64)


def moments_of(x):
    found = InputMoments()
    for part in x.split(150):
        found.add(part, torch.ones(len(part), 1))
    return found.mean()


def error(v, w, moments):
    change = v - w
    return ((change @ moments) * change).sum(1) + 1e-2 * (change.square() @ moments.diagonal())


def test_two_lines_that_go_together_share_what_one_cannot_carry():
    x = torch.tensor([[1.0, 1.0], [-2.0, -2.0]])
    found = nearest_within(torch.tensor([[3.0, 0.5]]), torch.full((1, 2), 2.0), moments_of(x))
    torch.testing.assert_close(found, torch.tensor([[2.0, 1.5]]), rtol=0, atol=0.02)


def test_lines_that_do_not_are_clipped():
    weight, bound = torch.tensor([[3.0, -0.5], [-2.0, 0.7]]), torch.tensor([[2.0, 2.0], [1.0, 1.0]])
    found = nearest_within(weight, bound, torch.diag(torch.tensor([4.0, 1.0])))
    torch.testing.assert_close(found, torch.tensor([[2.0, -0.5], [-1.0, 0.7]]))


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_the_error_is_that_of_bounded_least_squares(share):
    x = correlated(30)
    weight = torch.randn(8, 30, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    bound = (share * weight.abs().amax(1, keepdim=True)).expand_as(weight)
    moments = moments_of(x)
    torch.testing.assert_close(moments, x.t() @ x / len(x))
    found = nearest_within(weight, bound, moments)
    root = np.linalg.cholesky((moments + 1e-2 * torch.diag(moments.diagonal())).numpy()).T
    best = torch.stack(
        [
            torch.from_numpy(lsq_linear(root, root @ w.numpy(), (-b.numpy(), b.numpy()), tol=1e-12).x)
            for w, b in zip(weight, bound, strict=True)
        ]
    )
    reached, least = error(found, weight, moments).sum(), error(best, weight, moments).sum()
    assert least * (1 - 1e-9) <= reached <= 1.03 * least
    assert reached < 0.6 * error(weight.clamp(-bound, bound), weight, moments).sum()


def test_tokens_count_by_their_weight():
    x, weight = torch.tensor([[1.0, 2.0], [3.0, -1.0]]), torch.tensor([[1.0], [3.0]])
    moments = InputMoments()
    moments.add(x, weight)
    expected = (torch.outer(x[0], x[0]) + 3 * torch.outer(x[1], x[1])) / 4
    torch.testing.assert_close(moments.mean(), expected.double())


sizes = st.floats(-10, 10, width=32)


@settings(max_examples=100, deadline=None)
@given(
    weight=arrays.arrays(np.float32, (3, 6), elements=sizes),
    x=arrays.arrays(np.float32, (9, 6), elements=sizes),
    share=st.floats(0.1, 1.0),
)
def test_bounds_hold_and_no_output_is_worse_than_clipped(weight, x, share):
    weight, x = torch.from_numpy(weight), torch.from_numpy(x)
    bound = (share * weight.abs().amax(1, keepdim=True)).expand_as(weight)
    moments = moments_of(x)
    found = nearest_within(weight, bound, moments)
    assert (found.abs() <= bound * (1 + 1e-5) + np.finfo(np.float32).tiny).all()  # below it numbers have few digits
    clipped = weight.clamp(-bound, bound)
    exact = error(clipped.double(), weight.double(), moments)
    assert (error(found.double(), weight.double(), moments) <= exact * (1 + 1e-3) + 1e-6).all()
    kept = (clipped == weight).all(1)
    assert torch.equal(found[kept], weight[kept])

"""Thresholds of binomial numbers against exact probabilities, and the numbers' distribution."""

from fractions import Fraction
from math import comb

import numpy as np
import pytest
import torch
from scipy import stats

from crossbar.random import binomial, reference
from crossbar.random.streams import Stream


@pytest.mark.parametrize("trials", [1, 2, 7, 31, 127])
def test_thresholds_are_exact_probabilities_in_32_bits(trials):
    def chance(k, j):
        return Fraction(comb(trials, j) * k**j * (trials - k) ** (trials - j), trials**trials)

    for k in range(1, trials // 2 + 1):
        least, found = binomial.row(trials, k)
        total = sum(chance(k, j) for j in range(least))
        assert total < Fraction(1, 2**33)
        for j, threshold in enumerate(found.tolist(), least):
            total += chance(k, j)
            assert abs(threshold - total * 2**32) <= Fraction(3, 2)  # rounding, and the tails that are left out
        assert 1 - total - chance(k, least + len(found)) < Fraction(1, 2**33)


@pytest.mark.parametrize("trials", [2047, 32767])
def test_thresholds_of_many_trials(trials):
    for k in (1, 2, 30, trials // 3, trials // 2):
        least, found = binomial.row(trials, k)
        counts = np.arange(least, least + len(found))
        expected = stats.binom.cdf(counts, trials, k / trials)
        assert np.abs(found / 2**32 - expected).max() < 1e-9
        assert (np.diff(found) >= 0).all()
        assert len(found) <= 1260


@pytest.mark.parametrize(("trials", "k"), [(7, 5), (127, 1), (127, 64), (127, 126), (2047, 700), (32767, 20000)])
def test_numbers_have_the_binomial_distribution(trials, k):
    n = 100_000
    found = Stream(("binomial", trials, k)).binomial(torch.full((n,), k), trials).double()
    p = k / trials
    assert abs(found.mean() - k) < 4 * (trials * p * (1 - p) / n) ** 0.5  # standard errors of a mean
    counts = np.bincount(found.long().numpy(), minlength=trials + 1)
    expected = n * stats.binom.pmf(np.arange(trials + 1), trials, p)
    common = expected > 10
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    keep = wanted > 0.5
    assert stats.chisquare(observed[keep], wanted[keep] * observed[keep].sum() / wanted[keep].sum()).pvalue > 0.001


def test_certain_and_impossible_trials():
    codes = torch.tensor([0, 31, 0, 31]).expand(100, 4)
    assert torch.equal(Stream(("certain",)).binomial(codes, 31), codes)


def test_kernel_torch_and_reference_agree_for_16_bits():
    codes = torch.from_numpy(np.random.default_rng(0).integers(0, 32768, 200))
    stream = Stream(("sixteen",))
    found = stream.binomial(codes, 32767)
    assert torch.equal(binomial.counts(stream._words(200, 0), codes, 32767), found)
    assert np.array_equal(reference.binomial(("sixteen",), codes[:20].numpy(), 32767), found[:20].numpy())


def test_codes_keep_their_dtype_and_shape():
    for dtype in (torch.float32, torch.float64, torch.int32, torch.bfloat16):
        codes = torch.tensor([[3, 0], [7, 2]], dtype=dtype).t()
        found = Stream(("dtype",)).binomial(codes, 7)
        assert found.dtype == dtype
        assert torch.equal(found.long(), Stream(("dtype",)).binomial(codes.long().contiguous(), 7))

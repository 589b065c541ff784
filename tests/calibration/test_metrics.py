"""What metrics mean, and means and intervals over chips."""

import math

import pytest
from scipy import stats

from calibration.metrics import interval, metric


def test_interval_against_scipy():
    values = [0.1, 0.4, 0.35, 0.2]
    expected = stats.t.interval(0.95, 3, loc=0.2625, scale=stats.sem(values))
    assert interval(values) == pytest.approx((0.2625, *expected), rel=1e-12)


def test_interval_by_hand():
    # Mean 2, standard deviation sqrt(2), n = 2: half-width t(0.975, 1) * sqrt(2) / sqrt(2) = 12.706
    assert interval([1.0, 3.0]) == pytest.approx((2.0, 2 - 12.706204736, 2 + 12.706204736), rel=1e-9)


def test_equal_values_have_no_width_and_one_value_has_no_interval():
    assert interval([0.5] * 3) == (0.5, 0.5, 0.5)
    mean, low, high = interval([0.7])
    assert mean == 0.7
    assert math.isnan(low)
    assert math.isnan(high)


def test_a_logarithmic_interval_by_hand():
    # Logarithms 2 and 4: geometric mean e^3, half-width 12.706 on the logarithm.
    expected = [math.exp(3 + step * 12.706204736) for step in (0, -1, 1)]
    assert interval([math.exp(2), math.exp(4)], logarithmic=True) == pytest.approx(expected, rel=1e-8)


def test_a_logarithmic_interval_of_one_value():
    mean, low, high = interval([18.0], logarithmic=True)
    assert mean == pytest.approx(18.0, rel=1e-15)
    assert math.isnan(low)
    assert math.isnan(high)


def test_a_logarithmic_interval_beyond_what_a_float_holds():
    mean, low, high = interval([1e-200, 1e200], logarithmic=True)
    assert (mean, low, high) == (pytest.approx(1.0), 0.0, math.inf)
    assert interval([math.inf, 20.0], logarithmic=True)[0] == math.inf
    for impossible in (0.0, -1.0, math.nan):
        assert all(math.isnan(x) for x in interval([impossible, 20.0], logarithmic=True))


def test_what_metrics_mean():
    assert metric("recall@1").higher_is_better
    assert not metric("recall@1").logarithmic
    assert metric("a metric of one's own").higher_is_better
    assert not metric("perplexity").higher_is_better
    assert metric("perplexity").logarithmic
    assert metric("median_perplexity") == metric("a text's_perplexity") == metric("perplexity")
    assert metric("perplexity gained").higher_is_better

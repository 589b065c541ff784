"""How values of a metric are compared and averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Metric:
    """What a metric's numbers mean.

    Attributes:
        higher_is_better: or lower.
        logarithmic: whether differences mean something on a logarithmic scale only. Means and intervals are then taken
            of logarithms, which makes them geometric, and pictures have a logarithmic axis.
    """

    higher_is_better: bool = True
    logarithmic: bool = False


_PERPLEXITY = Metric(higher_is_better=False, logarithmic=True)


def metric(name: str) -> Metric:
    """What a metric of this name means: higher is better on a linear scale, for all but perplexities.

    These are called ``perplexity`` or end in ``_perplexity``, such as ``median_perplexity``.
    """
    return _PERPLEXITY if name == "perplexity" or name.endswith("_perplexity") else Metric()


def interval(values: Sequence[float], logarithmic: bool = False) -> tuple[float, float, float]:
    """Mean and the 95% Student-t interval of the mean, ``(mean, low, high)``; NaN bounds for a single value.

    Args:
        values: at least one.
        logarithmic: take all three of the logarithms, and return their exponentials. A value of 0 or less then has no
            mean.
    """
    if logarithmic:
        logarithms = [math.log(value) if value > 0 else math.nan for value in values]
        mean, low, high = (exponential(bound) for bound in interval(logarithms))
        return mean, low, high

    from scipy import stats

    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return mean, math.nan, math.nan
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)) * math.sqrt(variance / n)
    return mean, mean - half, mean + half


def exponential(x: float) -> float:
    """``e^x``, infinite where that is more than a float holds."""
    try:
        return math.exp(x)
    except OverflowError:
        return math.inf

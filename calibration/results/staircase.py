"""The staircase of a calibration: what each step gains, paired chip by chip."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from calibration.metrics import interval, metric
from calibration.results.results import Results
from calibration.runs.measurement import Measurement


class Range(NamedTuple):
    """A mean over chips and its 95% Student-t interval; NaN bounds for a single chip."""

    mean: float
    low: float
    high: float


class Stair(NamedTuple):
    """One arm at one time, beside the arm before it and beside digital, chip by chip.

    Attributes:
        arm: what was scored.
        seconds: the time since programming at which steps were fitted; all arms were scored at one later instant.
        metric: name of the metric.
        value: mean and interval, as in `Results.rows`.
        gain: difference from the arm before; more is better, and of a logarithmic metric the difference of logarithms.
            None for the first arm of a chip.
        of_digital: value as a part of that of digital with the same pattern; of perplexity, digital's as a part of it.
        recovered: part of the loss between digital and the arm ``analog`` that came back; of a logarithmic metric, of
            its logarithm. None for ``analog``.
        n: number of chips.
    """

    arm: str
    seconds: float
    metric: str
    value: Range
    gain: Range | None
    of_digital: Range
    recovered: Range | None
    n: int


def stairs(result: Results) -> list[Stair]:
    """The arms of chips in the order in which they were scored, for each metric and time."""
    digital = {m.metric: m.value for m in result.measurements if m.arm == "digital"}
    fits = result.fits()
    groups: dict[tuple[str, float, str], list[Measurement]] = {}
    for m in result.measurements:
        if m.chip is not None and m.seconds is not None:
            when = fits.get(m.seconds, m.seconds) if m.fitted is None else m.fitted
            groups.setdefault((m.metric, when, m.arm), []).append(m)
    found = []
    arms = list(dict.fromkeys(arm for _, _, arm in groups))
    for name, seconds in dict.fromkeys((name, seconds) for name, seconds, _ in groups):
        reference = _better(name, [digital[name]])[0]
        before: list[float] | None = None
        first: list[float] | None = None
        for arm in arms:
            members = groups.get((name, seconds, arm))
            if members is None:
                continue
            values = [m.value for m in sorted(members, key=lambda m: m.chip or 0)]
            now = _better(name, values)
            first = now if first is None else first
            found.append(
                Stair(
                    arm,
                    seconds,
                    name,
                    Range(*interval(values, metric(name).logarithmic)),
                    None if before is None else Range(*interval([a - b for a, b in zip(now, before, strict=True)])),
                    _of_digital(name, values, digital[name]),
                    None if now is first else _share(now, first, reference),
                    len(values),
                )
            )
            before = now
    return found


def _better(name: str, values: Sequence[float]) -> list[float]:
    """Values on a scale where differences mean something and more is better."""
    meaning = metric(name)
    scaled = [(math.log(v) if v > 0 else math.nan) if meaning.logarithmic else v for v in values]
    return scaled if meaning.higher_is_better else [-v for v in scaled]


def _of_digital(name: str, values: Sequence[float], digital: float) -> Range:
    meaning = metric(name)
    parts = [v / digital if meaning.higher_is_better else digital / v for v in values] if digital else [math.nan]
    return Range(*interval(parts, meaning.logarithmic))


def _share(now: list[float], first: list[float], digital: float) -> Range:
    """Recovered part of the loss: a ratio of means, its interval to first order in the deviations of both."""
    losses = [digital - f for f in first]
    gains = [n - f for n, f in zip(now, first, strict=True)]
    loss = math.fsum(losses) / len(losses)
    if not math.isfinite(loss) or loss <= 0:
        return Range(math.nan, math.nan, math.nan)
    share = math.fsum(gains) / len(gains) / loss
    _, low, high = interval([share + (gain - share * lost) / loss for gain, lost in zip(gains, losses, strict=True)])
    return Range(share, low, high)

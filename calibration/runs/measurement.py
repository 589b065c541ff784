"""What a job writes down of each evaluation."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Measurement:
    """One metric of one arm, on one chip at one time.

    Attributes:
        arm: what was scored, such as ``"analog"``.
        metric: name of the metric.
        value: its value.
        chip: seed of the chip; None for a digital arm.
        seconds: time since programming at which it was scored; None for a digital arm.
        fitted: time since programming at which the calibration was fitted; None without calibration.
    """

    arm: str
    metric: str
    value: float
    chip: int | None = None
    seconds: float | None = None
    fitted: float | None = None

"""What a calibration leaves for deployment: each calibrated chip, to be put together again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from calibration.runs.experiment import Experiment
from calibration.steps.protocol import Fitted, Step
from crossbar import InputError, age, format_seconds, new_chip, program, reset_reads


class FittedStep(NamedTuple):
    """A step, what it found on a chip, and when (s since programming)."""

    step: Step
    values: Fitted
    seconds: float


@dataclass(frozen=True)
class Deployment:
    """The chips of a calibration by what was fitted on them.

    Attributes:
        experiment: whose analog copy becomes the chip that is asked for.
        fits: fitted steps in their order, by chip and time (s).
        wait: from fitting to scoring, s.
    """

    experiment: Experiment
    fits: dict[tuple[int, float], list[FittedStep]]
    wait: float

    def last_time(self) -> float:
        """The last time at which steps were fitted, s."""
        return max(time for _, time in self.fits)

    def first_chip(self) -> int:
        """The seed of the first chip."""
        return min(chip for chip, _ in self.fits)

    def restore(self, chip: int, fitted: float) -> None:
        """Make the experiment's analog copy the chip as it was scored: fitted at a time, ``wait`` older.

        Raises:
            InputError: for a chip or a time that was not calibrated.
        """
        if (chip, fitted) not in self.fits:
            chips = [chip for chip, _ in self.fits]
            times = ", ".join(format_seconds(time) for time in sorted({time for _, time in self.fits}))
            raise InputError(
                f"chip {chip!r} was not calibrated at {format_seconds(fitted)}: choose a chip from {min(chips)} to "
                f"{max(chips)} and one of {times}"
            )
        model = self.experiment.analog
        new_chip(model)
        self.experiment.uncalibrate()
        program(model, chip)
        for step, values, seconds in self.fits[chip, fitted]:
            age(model, seconds)
            step.apply(model, values)
        age(model, fitted + self.wait)
        reset_reads(model)

"""What a calibration leaves for deployment: each calibrated chip, to be put together again."""

from __future__ import annotations

from dataclasses import dataclass

from calibration.runs.climb import Climb, FittedStep
from calibration.runs.experiment import Experiment
from crossbar import InputError, format_seconds


@dataclass(frozen=True)
class Deployment:
    """The chips of a calibration by what was fitted on them.

    Attributes:
        climb: whose analog twin becomes the chip that is asked for.
        fits: fitted steps in their order, by chip and time (s).
    """

    climb: Climb
    fits: dict[tuple[int, float], list[FittedStep]]

    @property
    def experiment(self) -> Experiment:
        """The models."""
        return self.climb.experiment

    @property
    def wait(self) -> float:
        """From fitting to scoring, s."""
        return self.climb.wait

    def last_time(self) -> float:
        """The last time at which steps were fitted, s."""
        return max(time for _, time in self.fits)

    def first_chip(self) -> int:
        """The seed of the first chip."""
        return min(chip for chip, _ in self.fits)

    def restore(self, chip: int, fitted: float) -> None:
        """Make the experiment's analog twin the chip as it was scored: fitted at a time, ``wait`` older.

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
        self.climb.restore(chip, self.fits[chip, fitted], fitted)


@dataclass(frozen=True)
class Streamed(Deployment):
    """The chips of a calibration that went block by block: none of them is in memory, nor what was fitted."""

    def restore(self, chip: int, fitted: float) -> None:
        """Refuse it.

        Raises:
            InputError: always.
        """
        raise InputError(
            "a calibration that streams by blocks keeps no chip in memory to save: give calibrate its folder, out=..."
        )

"""Where the picojoules go: the study and its pictures."""

from calibration.energy.results import DECODE, PREFILL, Arm, EnergyStudy, Work
from calibration.energy.study import PATTERNS, default_book, energy

__all__ = ["DECODE", "PATTERNS", "PREFILL", "Arm", "EnergyStudy", "Work", "default_book", "energy"]

"""Where the picojoules go: the study, its command and its pictures."""

from calibration.energy.study import DECODE, PATTERNS, PREFILL, Arm, EnergyStudy, Work, default_book, energy

__all__ = ["DECODE", "PATTERNS", "PREFILL", "Arm", "EnergyStudy", "Work", "default_book", "energy"]

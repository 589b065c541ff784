"""The jobs: ``emulate`` what accuracy becomes on analog hardware, ``calibrate`` to get it back."""

from calibration import tasks
from calibration.calibrate import calibrate
from calibration.compensation import DriftCompensation
from calibration.emulate import emulate
from calibration.models import load_model
from calibration.ranges import InputRanges
from calibration.recipe import Recipe
from calibration.results import Calibration, Emulation, Measurement
from calibration.step import Fitted, Stage, Step
from calibration.tasks import Task

__all__ = [
    "Calibration",
    "DriftCompensation",
    "Emulation",
    "Fitted",
    "InputRanges",
    "Measurement",
    "Recipe",
    "Stage",
    "Step",
    "Task",
    "calibrate",
    "emulate",
    "load_model",
    "tasks",
]

"""The jobs: ``emulate`` what accuracy becomes on analog hardware, ``calibrate`` to get it back."""

from calibration import tasks
from calibration.bundle import Bundle, load_bundle
from calibration.bundle_inspection import inspect_bundle
from calibration.calibrate import calibrate
from calibration.compensation import DriftCompensation
from calibration.emulate import emulate
from calibration.models import load_model
from calibration.protection import TokenProtection
from calibration.ranges import InputRanges
from calibration.recipe import Recipe
from calibration.results import Calibration, Emulation, Measurement
from calibration.step import Fitted, Stage, Step
from calibration.studies.results import Study
from calibration.study import study
from calibration.tasks import Task

__all__ = [
    "Bundle",
    "Calibration",
    "DriftCompensation",
    "Emulation",
    "Fitted",
    "InputRanges",
    "Measurement",
    "Recipe",
    "Stage",
    "Step",
    "Study",
    "Task",
    "TokenProtection",
    "calibrate",
    "emulate",
    "inspect_bundle",
    "load_bundle",
    "load_model",
    "study",
    "tasks",
]

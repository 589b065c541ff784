"""The jobs: ``emulate`` what accuracy becomes on analog hardware, ``calibrate`` to get it back."""

from calibration import tasks
from calibration.adc_ranges import AdcRanges
from calibration.affine import AffineCorrection
from calibration.bundle import Bundle, load_bundle
from calibration.bundle_inspection import inspect_bundle
from calibration.calibrate import calibrate
from calibration.compensation import DriftCompensation
from calibration.emulate import emulate
from calibration.finetune import Finetune
from calibration.lowrank import LowRankAdapter
from calibration.models import load_model
from calibration.norm_recalibration import NormRecalibration
from calibration.protection import TokenProtection
from calibration.ranges import InputRanges
from calibration.recipe import Recipe
from calibration.reprogram import ReprogramWorst
from calibration.results import Calibration, Emulation, Measurement
from calibration.step import Fitted, Stage, Step
from calibration.studies.results import Study
from calibration.study import study
from calibration.tasks import Task

__all__ = [
    "AdcRanges",
    "AffineCorrection",
    "Bundle",
    "Calibration",
    "DriftCompensation",
    "Emulation",
    "Finetune",
    "Fitted",
    "InputRanges",
    "LowRankAdapter",
    "Measurement",
    "NormRecalibration",
    "Recipe",
    "ReprogramWorst",
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

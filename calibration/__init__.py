"""The jobs: ``emulate`` what accuracy becomes on analog hardware, ``calibrate`` to get it back."""

from calibration import tasks
from calibration.bundles.bundle import Bundle, load_bundle
from calibration.bundles.inspection import inspect_bundle
from calibration.calibrate import calibrate
from calibration.emulate import emulate
from calibration.estimate import estimate
from calibration.models import load_model
from calibration.recipe import Recipe
from calibration.results.emulation import Calibration, Emulation
from calibration.runs.estimating import Estimate
from calibration.runs.measurement import Measurement
from calibration.steps.adc_ranges import AdcRanges
from calibration.steps.affine import AffineCorrection
from calibration.steps.average_reads import AverageReads
from calibration.steps.compensated_programming import CompensatedProgramming
from calibration.steps.compensation import DriftCompensation
from calibration.steps.digital_lines import DigitalLines
from calibration.steps.drift_targets import DriftTargets
from calibration.steps.finetune import Finetune
from calibration.steps.lowrank import LowRankAdapter
from calibration.steps.norm_recalibration import NormRecalibration
from calibration.steps.protection import TokenProtection
from calibration.steps.protocol import Fitted, Stage, Step
from calibration.steps.ranges import InputRanges
from calibration.steps.reprogram import ReprogramWorst
from calibration.steps.rotation import Rotation
from calibration.steps.screening_thresholds import ScreeningThresholds
from calibration.steps.weight_ranges import WeightRanges
from calibration.steps.wire_aware import WireAware
from calibration.studies.results import Study
from calibration.study import study
from calibration.tasks import Task
from calibration.threads import strict_products

__all__ = [
    "AdcRanges",
    "AffineCorrection",
    "AverageReads",
    "Bundle",
    "Calibration",
    "CompensatedProgramming",
    "DigitalLines",
    "DriftCompensation",
    "DriftTargets",
    "Emulation",
    "Estimate",
    "Finetune",
    "Fitted",
    "InputRanges",
    "LowRankAdapter",
    "Measurement",
    "NormRecalibration",
    "Recipe",
    "ReprogramWorst",
    "Rotation",
    "ScreeningThresholds",
    "Stage",
    "Step",
    "Study",
    "Task",
    "TokenProtection",
    "WeightRanges",
    "WireAware",
    "calibrate",
    "emulate",
    "estimate",
    "inspect_bundle",
    "load_bundle",
    "load_model",
    "study",
    "tasks",
]

strict_products()

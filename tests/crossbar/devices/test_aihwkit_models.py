"""Models that become devices: what is read of them, and what is refused."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from crossbar import Hardware, InputError, Tile
from crossbar.devices.aihwkit import AihwkitDevice
from tests.peers import module_needs_aihwkit

module_needs_aihwkit()
from aihwkit.exceptions import ArgumentError
from aihwkit.inference.converter.conductance import DualPairConductanceConverter, SinglePairConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.custom import StateIndependentNoiseModel
from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
from aihwkit.inference.noise.reram import ReRamCMONoiseModel, ReRamWan2022NoiseModel

HOUR, DAY = 3600.0, 86400.0


class Perfect(BaseNoiseModel):
    """A user's own: the two abstract methods alone."""

    def apply_programming_noise_to_conductance(self, g_target):
        return g_target.clone()

    def apply_drift_noise_to_conductance(self, g_prog, drift_noise_param, t_inference):
        return g_prog.clone()


# Descriptions


def test_description_holds_plain_values():
    class Fitted(Perfect):
        def __init__(self):
            super().__init__(SinglePairConductanceConverter(g_max=40.0))
            self.table, self.long = torch.arange(3.0), np.zeros((20, 20))
            self.law, self.kinds, self.count, self.limits = math.log, {"b", "a"}, np.int64(4), {1.0: (2, None)}

    described = Hardware(device=AihwkitDevice(Fitted())).to_dict()["device"]
    parameters = described.pop("parameters")
    assert described == {"kind": "aihwkit", "model": f"{__name__}.{Fitted.__qualname__}"}
    converter = "aihwkit.inference.converter.conductance.SinglePairConductanceConverter"
    assert parameters.pop("g_converter") == {"class": converter, "g_max": 40.0, "g_min": 0.0, "scale_ratio": None}
    assert parameters.pop("long").keys() == {"dtype", "shape", "blake2b"}
    assert parameters == {
        "table": [0.0, 1.0, 2.0],
        "law": "math.log",
        "kinds": ["'a'", "'b'"],
        "count": 4,
        "limits": {1.0: [2, None]},
    }


def test_a_model_changed_afterwards_changes_no_device():
    model = PCMLikeNoiseModel()
    device = AihwkitDevice(model)
    model.t_0 = 1.0
    assert device == AihwkitDevice(PCMLikeNoiseModel())


def test_importing_crossbar_leaves_aihwkit_alone():
    # In an interpreter of its own: imported twice, operators of torch would belong to the second.
    code = "import sys, crossbar, crossbar.devices.aihwkit, crossbar.rpu_config; sys.exit('aihwkit' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0


# Refusals


class NoDrift(BaseNoiseModel):
    def apply_programming_noise_to_conductance(self, g_target):
        return g_target


class WeightsOnly(BaseNoiseModel):
    def apply_noise(self, weights, t_inference):
        return weights


class Bare(Perfect):
    def __init__(self):
        pass  # no converter


class Reduced(Perfect):
    def __init__(self, returned):
        super().__init__()
        self.returned = returned

    def apply_programming_noise_to_conductance(self, g_target):
        return self.returned


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: None, r"noise_model = None is not allowed: give an instance of an aihwkit BaseNoiseModel"),
        (lambda: PCMLikeNoiseModel, r"noise_model = <class .*PCMLikeNoiseModel'> is not allowed: give an instance"),
        (NoDrift, r"NoDrift does not define apply_drift_noise_to_conductance: define it, in µS"),
        (WeightsOnly, r"WeightsOnly does not define apply_programming_noise_to_conductance: define it"),
        (Bare, r"Bare has no g_max: give it a conductance converter that has one"),
        (
            lambda: PCMLikeNoiseModel(prog_coeff=[0.2], prog_coeff_g_max_reference=25.0),
            r"PCMLikeNoiseModel lost its prog_coeff_g_max_reference, as aihwkit does .*: set it on the model",
        ),
        (
            lambda: ReRamWan2022NoiseModel(coeff_dic={1.0: [0.2]}, coeff_g_max_reference=40.0),
            r"ReRamWan2022NoiseModel lost its coeff_g_max_reference, .*: set it on the model after building it",
        ),
    ],
)
def test_refuses_models_that_cannot_be_used(model, message):
    with pytest.raises(InputError, match=message):
        AihwkitDevice(model())


def test_a_lost_reference_can_be_set():
    model = ReRamWan2022NoiseModel(coeff_dic={1.0: [0.2]}, coeff_g_max_reference=40.0)
    model.coeff_g_max_reference = 50.0
    assert AihwkitDevice(model).noise_model.coeff_g_max_reference == 50.0


@pytest.mark.parametrize("returned", [torch.ones(3), None, "noise"])
def test_refuses_what_is_not_shaped_like_the_cells(returned):
    found = r"shape \[3\]" if isinstance(returned, torch.Tensor) else type(returned).__name__
    with pytest.raises(InputError, match=rf"of Reduced returned {found}: return a tensor of the cells' shape \[5\]"):
        AihwkitDevice(Reduced(returned)).write(torch.ones(5), 0)


def test_refuses_reads_that_are_not_conductances():
    class Silent(Perfect):
        def apply_drift_noise_to_conductance(self, g_prog, drift_noise_param, t_inference):
            return None

    device = AihwkitDevice(Silent())
    with pytest.raises(
        InputError, match="apply_drift_noise_to_conductance of Silent returned NoneType: return a tensor"
    ):
        device.read(device.write(torch.ones(5), 0), 0.0, 0)


def test_refuses_times_that_a_model_does_not_define():
    device = AihwkitDevice(ReRamWan2022NoiseModel())
    state = device.write(torch.ones(3), 0)
    with pytest.raises(
        InputError, match=r"ReRamWan2022NoiseModel gives no conductances at 3600 s \(t_inference should"
    ):
        device.read(state, HOUR, 0)
    with pytest.raises(ArgumentError):
        ReRamWan2022NoiseModel().apply_drift_noise_to_conductance(torch.ones(3), torch.ones(3), HOUR)


@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context")  # in aihwkit, with torch 2.10 and numpy 2
def test_refuses_conductances_that_are_not_numbers():
    # the logarithm in aihwkit's read noise ends at 0 µS, which cells near a small g_min reach
    device = AihwkitDevice(ReRamCMONoiseModel(g_min=0.01))
    state = device.write(torch.full((1000,), 0.01), 0)
    with pytest.raises(InputError, match=r"gives no conductances at 86400 s \(some are NaN or infinite\): give times"):
        device.read(state, DAY, 0)


def test_other_mappings_of_a_converter_are_left_to_the_tile():
    device = AihwkitDevice(StateIndependentNoiseModel(DualPairConductanceConverter([1.0, 3.0], g_max=10.0)))
    assert device.g_max == 10.0
    assert Hardware(device=device).tile == Tile()

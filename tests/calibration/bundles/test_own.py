"""Bundles of a model, a device, hardware and a pattern of one's own."""

from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from attention import BlockSparse
from calibration import calibrate, load_bundle, tasks
from crossbar import Converter, Hardware, InputError, Tile, devices, presets
from tests.calibration.conftest import TinyNet


def test_a_model_of_ones_own(net, task, tmp_path):
    result = calibrate(net, task, times=["1d"], chips=1, out=tmp_path / "bundle")
    with pytest.raises(InputError, match=r"a model of a class of your own.*load_bundle\(path, model=...\)"):
        load_bundle(tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle", model=TinyNet())
    assert task.metrics(loaded.model)["closeness"] == result.values("calibrated")[0]
    assert not loaded.model.training
    with pytest.raises(InputError, match="do not fit a Linear"):
        load_bundle(tmp_path / "bundle", model=torch.nn.Linear(3, 4))


@dataclass(frozen=True)
class Leaky(devices.Ideal):
    """A device of a user's own."""

    kind: ClassVar[str] = "leaky"
    loss: float = 0.1

    def drifted(self, state, seconds):
        return {name: cells * (1 - self.loss) for name, cells in state.items()}["target"]

    def program(self, target, draw):
        return {"target": target * (1 + 0.01 * draw("error"))}


def test_a_device_of_ones_own(net, task, tmp_path):
    hardware = replace(presets.pcm(), device=Leaky())
    result = calibrate(net, task, hardware, times=["1d"], chips=1, out=tmp_path / "bundle")
    with pytest.raises(InputError, match=r"cannot be made from hardware.json .*give load_bundle\(path, hardware=...\)"):
        load_bundle(tmp_path / "bundle", model=TinyNet())
    loaded = load_bundle(tmp_path / "bundle", model=TinyNet(), hardware=hardware)
    assert task.metrics(loaded.model)["closeness"] == result.values("calibrated")[0]
    other = replace(hardware, device=Leaky(loss=0.2))
    with pytest.raises(InputError, match="needs other hardware"):
        load_bundle(tmp_path / "bundle", model=TinyNet(), hardware=other)


@pytest.mark.parametrize(
    "hardware",
    [
        presets.reram(),
        presets.hermes(),
        Hardware(tile=Tile(16, 8, encoding="offset"), dac=Converter(full_scale=2.0, coding="bit_serial")),
        Hardware(tile=Tile(20, 20, pairs=2, slices=2, slice_bits=3), adc=None),
        Hardware(device=devices.PCM(correlated=True), tile=Tile(encoding="balanced")),
    ],
    ids=["reram", "hermes", "offset", "slices", "correlated"],
)
def test_hardware_of_other_kinds(net, task, tmp_path, hardware):
    result = calibrate(net, task, hardware, times=["1d"], chips=1, out=tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle", model=TinyNet())
    assert loaded.hardware == hardware
    assert task.metrics(loaded.model)["closeness"] == result.values("calibrated")[0]


def test_a_pattern_without_a_text(folder, tmp_path):
    layout = torch.eye(8, dtype=torch.bool)
    pattern = BlockSparse(layout, 8)
    result = calibrate(folder, "wordsim", recipe="quick", pattern=pattern, times=["1d"], chips=1, staircase=False)
    result.save(tmp_path / "bundle")
    with pytest.raises(InputError, match=r"its pattern cannot be made from text .*load_bundle\(path, pattern=...\)"):
        load_bundle(tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle", pattern=pattern)
    assert tasks.get("wordsim", loaded.tokenizer).metrics(loaded.model)["spearman"] == result.values("calibrated")[0]

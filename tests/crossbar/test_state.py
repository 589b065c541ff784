"""Programmed state on disk."""

import dataclasses
import json
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from crossbar import (
    Hardware,
    InputError,
    Tile,
    age,
    analog_layers,
    convert,
    devices,
    load_state,
    presets,
    program,
    reset_reads,
    save_state,
)

PCM = dataclasses.replace(presets.pcm(), tile=Tile(4, 3))


@dataclass(frozen=True)
class Borrower(devices.Ideal):
    """A device that keeps its state under names that calibration uses too."""

    kind: ClassVar[str] = "borrower"

    def program(self, target, draw):
        return {"scales": target, "input_range": target + 1}

    def drifted(self, state, seconds):
        return state["scales"]


def analog_model(hardware=PCM, sizes=(10, 7, 4), dtype=torch.float32, **choice):
    model = nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:])).to(dtype)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    convert(model, hardware, **choice)
    return model


def inputs():
    return torch.randn(5, 10, generator=torch.Generator().manual_seed(1))


def calibrate(model):
    """What calibration leaves behind in the first layer; the second has no input range."""
    generator = torch.Generator().manual_seed(2)
    model[0].column_gain = 1 + 0.1 * torch.randn(model[0].column_gain.shape, generator=generator)
    model[0].input_range = torch.tensor(1.25)
    model[2].column_gain = 1 + 0.1 * torch.randn(model[2].column_gain.shape, generator=generator)


def picture(model):
    """Everything that decides the next outputs."""
    return [
        (
            layer.seed,
            layer.seconds,
            layer.input_range,
            layer.line_scale,
            layer.cell_weight,
            layer.scales,
            layer.column_gain,
        )
        for layer in analog_layers(model).values()
    ]


def same(a, b):
    def equal(x, y):
        return torch.equal(x, y) if isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) else x == y

    return all(equal(x, y) for one, two in zip(a, b, strict=True) for x, y in zip(one, two, strict=True))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "chip.safetensors"


@pytest.fixture
def saved(path):
    """A calibrated chip at one hour, and the file that holds it."""
    model = analog_model()
    model[0].set_line_scale(torch.linspace(0.5, 2.0, 10))
    program(model, 5)
    age(model, "1h")
    calibrate(model)
    save_state(model, path)
    return model


@pytest.mark.parametrize("programmed_before", [False, True])
def test_a_reloaded_chip_repeats_every_bit(saved, path, programmed_before):
    other = analog_model()
    if programmed_before:  # as another chip, at another time, after some reads
        program(other, 6)
        age(other, "1d")
        other[2].input_range = torch.tensor(9.0)
        other[2].line_scale = torch.full((7,), 3.0)
        other(inputs())
    load_state(other, path)
    assert same(picture(other), picture(saved))
    assert other[2].input_range is None
    assert other[2].line_scale is None
    reset_reads(saved)
    for time in ("1h", "1d", "0s"):
        age(saved, time)
        age(other, time)
        for _ in range(2):
            assert torch.equal(other(inputs()), saved(inputs()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("hardware", [PCM, presets.ideal(), Hardware(device=Borrower())], ids=lambda h: h.device.kind)
def test_every_device_and_precision_keeps_its_bits(path, hardware, dtype):
    one, two = (analog_model(hardware, dtype=dtype) for _ in range(2))
    program(one)
    save_state(one, path)
    load_state(two, path)
    assert one[0].cell_weight.dtype == dtype
    assert same(picture(one), picture(two))
    assert all(torch.equal(cells, two[0].state()[name]) for name, cells in one[0].state().items())
    x = inputs().to(dtype)
    assert torch.equal(one(x), two(x))


def test_a_layer_of_its_own_can_be_saved(path):
    model = analog_model()[0]
    program(model, 2)
    save_state(model, path)
    other = analog_model()[0]
    load_state(other, path)
    assert torch.equal(model(inputs()), other(inputs()))


def test_saving_leaves_one_file_and_the_chip_as_it_was(saved, path):
    before = picture(saved)
    save_state(saved, path)  # over the old one
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert same(before, picture(saved))


def test_a_failed_save_leaves_the_old_file(saved, path, monkeypatch):
    before = path.read_bytes()

    def half(tensors, file, metadata):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("crossbar.state.save_file", half)
    with pytest.raises(OSError, match="disk full"):
        save_state(saved, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_digital_weights_are_not_in_the_file(saved, path):
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    each = ("cells.programmed", "cells.exponent", "scales", "column_gain")
    assert names == {f"{layer}/{name}" for layer in "02" for name in each} | {"0/input_range", "0/line_scale"}


# Refusals, each leaving the model as it was


def refuses_to_load(model, path, message):
    before = picture(model)
    with pytest.raises(InputError, match=message):
        load_state(model, path)
    assert same(before, picture(model))


def test_refuses_to_save_what_was_not_programmed(path):
    with pytest.raises(InputError, match=r"0 was not programmed, so there is no state to save: program it first"):
        save_state(analog_model(), path)
    assert not path.exists()


def test_refuses_to_save_a_digital_model(path):
    with pytest.raises(InputError, match=r"Sequential has no analog layers"):
        save_state(nn.Sequential(nn.Linear(2, 2)), path)


def test_refuses_a_missing_folder(saved, tmp_path):
    with pytest.raises(InputError, match=r"folder '.*nowhere' does not exist: make it first"):
        save_state(saved, tmp_path / "nowhere" / "chip")


def test_refuses_to_save_onto_a_folder(saved, tmp_path):
    with pytest.raises(InputError, match=r"is a folder: give the path of a file"):
        save_state(saved, tmp_path)


def test_refuses_a_missing_file(tmp_path):
    refuses_to_load(analog_model(), tmp_path / "nowhere", r"state file '.*nowhere' does not exist")


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x00" * 100, b"\xff" * 100, b"PK\x03\x04" + b"a" * 50])
def test_refuses_garbage(path, content):
    path.write_bytes(content)
    refuses_to_load(analog_model(), path, r"is not a safetensors file")


def test_refuses_a_file_cut_short(saved, path):
    path.write_bytes(path.read_bytes()[:-20])
    refuses_to_load(analog_model(), path, r"is not a safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"format": "ohmformer state", "version": "99"}])
def test_refuses_a_foreign_file(path, metadata):
    save_file({"0/scales": torch.zeros(1)}, path, metadata)
    refuses_to_load(analog_model(), path, r"is not an ohmformer state of version 1: write it again")


@pytest.mark.parametrize(
    "hardware",
    [
        dataclasses.replace(PCM, output_noise=0.05),
        dataclasses.replace(PCM, adc=None),
        dataclasses.replace(PCM, tile=Tile(5, 3)),
        Hardware(device=presets.ideal().device, tile=Tile(4, 3)),
    ],
)
def test_refuses_other_hardware(saved, path, hardware):
    refuses_to_load(analog_model(hardware), path, r"needs other hardware in 0: Hardware\(device=PCM")


def test_refuses_other_layers(saved, path):
    refuses_to_load(analog_model(include="0"), path, r"and the model differ in layer '2'")


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((10, 8, 4), r"has .* \[.*7\] in 0, the model .*\[.*8\]"),
        ((11, 7, 4), r"has .* \[.*10.*\] in 0, the model .*\[.*11.*\]"),  # as many row tiles
        ((10, 7, 5), r"has .* \[.*4\] in 2, the model .*\[.*5\]"),
    ],
)
def test_refuses_other_sizes(saved, path, sizes, message):
    refuses_to_load(analog_model(sizes=sizes), path, message)


@pytest.mark.parametrize(
    "lost",
    [
        "scales",
        "column_gain",
        "cells.exponent",
    ],
)
def test_refuses_a_file_with_less(saved, path, lost):
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    del tensors[f"2/{lost}"]
    save_file(tensors, path, metadata)
    refuses_to_load(analog_model(), path, rf"lacks '{lost}' of 2: write it again")


def test_metadata_is_plain_json(saved, path):
    with safe_open(path, framework="pt") as file:
        layers = json.loads(file.metadata()["layers"])
    assert layers["0"]["seed"] == 5
    assert layers["2"]["seconds"] == 3600.0

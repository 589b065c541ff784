"""Programmed state on disk."""

import dataclasses
import json
import math
import random
import resource
import struct
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from crossbar import (
    Hardware,
    InputError,
    Tile,
    WriteVerify,
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
from tests.limits import files_of_at_most
from tests.mutations import of_bytes
from tests.tensor_mutations import of_tensors

PCM = dataclasses.replace(presets.pcm(), tile=Tile(4, 3))
KEPT = ("cells.programmed", "cells.exponent", "scales", "column_gain")
ABOVE_0 = ("scales", "input_range", "line_scale", "weight_range", "adc_range")
FINITE = ("column_gain", "weight_correction", "output_gain", "output_offset", "adapter_down", "adapter_up")


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
            layer.cells.digits,
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


@pytest.fixture
def complete(path):
    """A chip whose first layer has everything that a state can hold, and its file."""
    model = analog_model()
    first = model[0]
    first.set_line_scale(torch.linspace(0.5, 2.0, 10))
    first.set_weight_range(first.scales * 0.9)
    first.set_weight_correction(torch.full((7, 10), 0.01))
    program(model, 5)
    age(model, "1h")
    calibrate(model)
    first.set_adc_range(torch.full_like(first.column_gain, 3.0))
    first.set_output_correction(torch.linspace(0.9, 1.1, 7), torch.linspace(-1, 1, 7))
    first.set_adapter(torch.full((10, 2), 0.1), torch.full((2, 7), -0.1))
    first.set_faults(torch.zeros(2, 10, 7, dtype=torch.uint8))
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
    assert one[0].cells.digits.dtype == dtype
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

    monkeypatch.setattr("crossbar.nn.state.write", half)
    with pytest.raises(InputError, match=r"state file '.*' cannot be written \(disk full\): make room"):
        save_state(saved, path)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_cells_that_are_made_again_can_be_left_out(saved, path, tmp_path):
    save_state(saved, tmp_path / "small", whole=False)
    with safe_open(tmp_path / "small", "pt") as file:
        assert not [key for key in file.keys() if "cells." in key]  # noqa: SIM118 - not a dict
    model = analog_model()
    load_state(model, tmp_path / "small")
    assert same(picture(model), picture(saved))
    with torch.no_grad():  # since then the digital weights have changed, and cells are what they were
        saved[0].digital.weight.mul_(2)
    save_state(saved, tmp_path / "other", whole=False)
    with safe_open(tmp_path / "other", "pt") as file:
        assert {key.partition("/")[0] for key in file.keys() if "cells." in key} == {"0"}  # noqa: SIM118 - not a dict
    load_state(model, tmp_path / "other")
    assert same(picture(model), picture(saved))


def test_cells_that_nothing_makes_again_are_not_left_out(tmp_path):
    model = analog_model(dataclasses.replace(PCM, verify=WriteVerify()))
    program(model, 5)
    save_state(model, tmp_path / "chip", whole=False)
    tensors, metadata = load_file(tmp_path / "chip"), dict(safe_open(tmp_path / "chip", "pt").metadata())
    assert "0/cells.programmed" in tensors
    layers = json.loads(metadata["layers"])
    layers["0"]["cells"] = []
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith("0/cells.")}
    save_file(kept, tmp_path / "chip", {**metadata, "layers": json.dumps(layers)})
    with pytest.raises(InputError, match=r"lacks 'cells\.\w+' of 0"):
        load_state(model, tmp_path / "chip")


def test_digital_weights_are_not_in_the_file(saved, path):
    with safe_open(path, framework="pt") as file:
        names = set(file.keys())
    assert names == {f"{layer}/{name}" for layer in "02" for name in KEPT} | {"0/input_range", "0/line_scale"}


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


def rewritten(path, change):
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
    layers = json.loads(metadata["layers"])
    change(tensors, layers)
    save_file(tensors, path, {**metadata, "layers": json.dumps(layers)})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e19])
@pytest.mark.parametrize("key", ["cells.programmed", "cells.exponent", *FINITE, *ABOVE_0])
def test_refuses_numbers_that_no_setter_takes(complete, path, key, bad):
    def change(tensors, _):
        tensors[f"0/{key}"].view(-1)[-1] = bad

    rewritten(path, change)
    refuses_to_load(analog_model(), path, rf"has a bad {key} in 0, which takes finite numbers.*: write it again")


@pytest.mark.parametrize("bad", [0.0, -1.0])
@pytest.mark.parametrize("key", ABOVE_0)
def test_refuses_a_range_that_is_not_above_0(complete, path, key, bad):
    def change(tensors, _):
        tensors[f"0/{key}"].view(-1)[0] = bad

    rewritten(path, change)
    refuses_to_load(analog_model(), path, rf"has a bad {key} in 0, which takes finite numbers above 0")


UNREADABLE = r"holds cells of 0 that programming never leaves, without a possible conductance at 3600 s"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda t, _: t["0/cells.exponent"].fill_(-20.0), UNREADABLE),
        (lambda t, _: t["0/cells.programmed"].fill_(1e17), UNREADABLE),
        (lambda t, _: t["0/fault_map"].fill_(5), r"has a bad fault_map in 0, which takes codes from 0 to 4"),
        (lambda t, _: t.update({"0/fault_map": t["0/fault_map"].int()}), r"has fault_map torch.int32 in 0, the model"),
        (lambda t, _: t.update({"0/scales": t["0/scales"].half()}), r"has scales torch.float16 in 0, the model"),
        (lambda t, _: t.update({"0/cells.more": torch.ones(2)}), r"has 'cells.more' of 0, which its layer has not"),
        (lambda t, _: t.update({"0/gain": torch.ones(2)}), r"has 'gain' of 0, which its layer has not"),
        (lambda t, _: t.update({"1/scales": torch.ones(2)}), r"has '1/scales', which no layer has"),
        (lambda t, _: t.pop("0/adapter_up"), r"has half an adapter of 0"),
        (lambda t, _: t.update({"0/adapter_up": torch.ones(())}), r"has adapter_up \[\] in 0, the model \[2, 7\]"),
        (lambda t, m: m["2"].update(cells=["programmed"]) or t.pop("2/cells.exponent"), r"lacks 'cells.exponent' of 2"),
        (lambda _, m: m["2"].update(cells=["programmed", "more"]), r"lacks 'cells.more' of 2"),
        (lambda _, m: m["2"].update(cells=3), r"does not describe its layers"),
        (lambda _, m: m["2"].pop("hardware"), r"does not describe its layers \('hardware'\)"),
        (lambda _, m: m["2"].update(seconds=math.inf), r"is not JSON \(Infinity is not a number in JSON\)"),
        (lambda _, m: m["2"].update(seed=10**400), r"is not JSON \(a number has 401 digits\)"),
        (lambda _, m: m["2"].update(seed=-1), r"seed of 2 = -1 is not allowed"),
        (lambda _, m: m["2"].update(hardware="x" * 10_000), r"needs other hardware in 2: x{1000}$"),
    ],
)
def test_refuses_what_saving_never_writes(complete, path, change, told):
    rewritten(path, change)
    refuses_to_load(analog_model(), path, told)


def test_what_setters_take_comes_back(complete, path):
    """A column that delivers noise alone is fitted a gain of any sign."""
    rewritten(path, lambda tensors, _: tensors["0/column_gain"].view(-1)[:2].copy_(torch.tensor([0.0, -1.5])))
    other = analog_model()
    load_state(other, path)
    assert other[0].column_gain.view(-1)[:2].tolist() == [0.0, -1.5]
    assert all(torch.equal(getattr(other[0], key), getattr(complete[0], key)) for key in ("adc_range", "output_gain"))


def test_a_large_file_is_not_read_where_its_shapes_are_wrong(saved, path):
    names, size = [f"{layer}/{name}" for layer in "02" for name in KEPT], 4 * 10**8
    header = {"__metadata__": safe_open(path, "pt").metadata()}
    for k, name in enumerate(names):
        header[name] = {"dtype": "F32", "shape": [10**8], "data_offsets": [size * k, size * (k + 1)]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + size * len(names))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuses_to_load(analog_model(), path, r"has .* \[100000000\] in 0, the model")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_full_disk_is_a_sentence_and_leaves_the_old_file(saved, path):
    before = path.read_bytes()
    with files_of_at_most(1000), pytest.raises(InputError) as caught:
        save_state(saved, path)
    reason = "cannot be written (File too large): make room and access there, or give another path"
    assert str(caught.value) == f"state file {str(path)!r} {reason}"
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


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


# Damaged files of every kind


def finite(model):
    with torch.no_grad():
        return bool(model(inputs()).isfinite().all())


def test_damaged_files_are_refused_in_a_sentence(complete, path):
    """500 of them; what is loaded computes."""
    data, before, told = path.read_bytes(), picture(complete), []
    draw = random.Random(0)
    for _ in range(500):
        (damaged,) = of_bytes(data, 1, draw.random()) if draw.random() < 0.3 else [of_tensors(data, draw)]
        path.write_bytes(damaged)
        model = analog_model()
        unloaded = picture(model)
        try:
            load_state(model, path)
        except InputError as error:
            told.append(str(error))
            if not same(picture(model), unloaded):
                pytest.fail(f"half loaded: {error}")
        else:
            assert finite(model)
    assert 250 < len(told) < 500
    assert all("\n" not in line and len(line) < 2000 for line in told)
    path.write_bytes(data)
    load_state(model, path)
    assert same(picture(model), before)

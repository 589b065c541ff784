"""Cell noise, write-verify, faults and the finer fields of tiles and converters: there and back, and refused."""

import dataclasses
import math

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from crossbar import (
    CellNoise,
    Converter,
    Faults,
    Hardware,
    InputError,
    Tile,
    WriteVerify,
    age,
    convert,
    devices,
    load_state,
    presets,
    program,
    save_state,
)
from crossbar.devices.gain_cell import GainCell
from crossbar.devices.hermes import Hermes
from crossbar.devices.reram import CmoReRam, ReRam

EVERY_FIELD = Hardware(
    device=CmoReRam(acceptance=2.0),
    tile=Tile(31, 17, "tile", encoding="balanced", pairs=2, slices=3, slice_bits=5),
    dac=Converter(7, "max", 3.0, coding="bit_serial", gain_std=0.01, offset_std=0.02),
    adc=Converter(9, "active_rows", 5.0, gain_std=0.03, offset_std=0.04),
    output_noise=0.05,
    read_noise=CellNoise(0.5, 0.01, "cheap"),
    verify=WriteVerify(0.03, 7, 0.01),
    faults=Faults(0.01, 0.02, 0.03, 0.04, 0.05, 500.0, 6, 7, True),
)
rates = st.floats(0, 0.3)
every_hardware = st.builds(
    Hardware,
    device=st.sampled_from([devices.Ideal(), devices.PCM(), ReRam(), CmoReRam(), Hermes(), GainCell()]),
    tile=st.builds(
        Tile,
        rows=st.integers(1, 512),
        cols=st.integers(1, 512),
        encoding=st.sampled_from(["differential", "balanced", "offset"]),
        pairs=st.integers(1, 4),
        slices=st.integers(1, 5),
        slice_bits=st.integers(1, 4),
    ),
    dac=st.none()
    | st.builds(
        Converter,
        bits=st.integers(2, 16),
        range=st.sampled_from(["static", "per_token", "max"]),
        coding=st.sampled_from(["pwm", "bit_serial", "rate"]),
        gain_std=rates,
    ),
    adc=st.none()
    | st.builds(Converter, bits=st.integers(1, 16), range=st.sampled_from(["static", "active_rows"]), offset_std=rates),
    read_noise=st.none()
    | st.builds(CellNoise, constant=rates, relative=rates, form=st.sampled_from(["exact", "cheap"])),
    verify=st.none() | st.builds(WriteVerify, tolerance=st.floats(1e-3, 1), rounds=st.integers(1, 9), read_std=rates),
    faults=st.none() | st.builds(Faults, stuck_min=rates, shorts=rates, broken_rows=rates, seed=st.integers(0, 9)),
)


def test_the_example_leaves_no_field_at_its_default():
    for part in ("tile", "read_noise", "verify", "faults"):
        chosen = getattr(EVERY_FIELD, part)
        assert all(getattr(chosen, f.name) != f.default for f in dataclasses.fields(chosen))


@given(hardware=every_hardware)
@settings(max_examples=100, deadline=None)
def test_there_and_back(hardware):
    assert Hardware.from_dict(hardware.to_dict()) == hardware
    assert Hardware.from_dict(yaml.safe_load(yaml.safe_dump(hardware.to_dict()))) == hardware
    assert eval(repr(hardware), {**vars(devices), **globals()}) == hardware  # what a state file is compared by


def test_every_field_through_a_file(tmp_path):
    path = tmp_path / "tile.yaml"
    path.write_text(yaml.safe_dump(EVERY_FIELD.to_dict()), encoding="utf-8")
    assert Hardware.from_yaml(path) == EVERY_FIELD
    assert presets.get(str(path)) == EVERY_FIELD


def test_a_file_by_hand(tmp_path):
    path = tmp_path / "tile.yaml"
    path.write_text(
        "device: {kind: reram_cmo, acceptance: 2}\n"
        "tile: {encoding: offset, pairs: 2, slices: 2, slice_bits: 3}\n"
        "dac: {coding: rate, gain_std: 0.01}\n"
        "adc: {range: active_rows, bits: 1}\n"
        "read_noise: {relative: 0.02}\n"
        "verify: {rounds: 3}\n"
        "faults: {stuck_min: 0.001, spare_cols: 2}\n",
        encoding="utf-8",
    )
    assert Hardware.from_yaml(path) == Hardware(
        device=CmoReRam(acceptance=2),
        tile=Tile(encoding="offset", pairs=2, slices=2, slice_bits=3),
        dac=Converter(range="per_token", coding="rate", gain_std=0.01),
        adc=Converter(bits=1, range="active_rows"),
        read_noise=CellNoise(relative=0.02),
        verify=WriteVerify(rounds=3),
        faults=Faults(stuck_min=0.001, spare_cols=2),
    )


def test_parts_may_be_left_out():
    values = {"read_noise": None, "verify": None, "faults": None}
    assert Hardware.from_dict(values) == Hardware()
    assert Hardware.from_dict({"faults": {}}).faults == Faults()
    assert Hardware.from_dict({"verify": {}}).verify == WriteVerify()
    assert Hardware.from_dict({"read_noise": {}}).read_noise == CellNoise()


@pytest.mark.parametrize(("bits", "levels"), [(1, 1), (2, 1), (3, 3), (16, 32767)])
def test_levels(bits, levels):
    assert Converter(bits=bits).levels == levels


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"tile": {"encoding": "plain"}},
            r"in hardware\.tile: tile field encoding = 'plain' .* differential, balanced",
        ),
        ({"tile": {"pairs": 0}}, r"tile field pairs = 0 is not allowed: give a whole number from 1 to"),
        ({"tile": {"pairs": 1.5}}, r"tile field pairs = 1\.5 is not allowed"),
        ({"tile": {"slices": 0}}, r"tile field slices = 0 is not allowed: give a whole number from 1 to 16"),
        ({"tile": {"slices": 17}}, r"tile field slices = 17 is not allowed"),
        ({"tile": {"slice_bits": 0}}, r"tile field slice_bits = 0 is not allowed: give a whole number from 1 to 16"),
        ({"tile": {"slices": 6}}, r"slices = 6 and slice_bits = 4 give more than 20 bits together: give fewer"),
        ({"dac": {"coding": "pam"}}, r"coding = 'pam' is not allowed: choose one of pwm, bit_serial, rate"),
        ({"dac": {"bits": 1, "coding": "rate"}}, r"coding = 'rate' is not allowed with 1 bit: give 2 bits or more"),
        ({"dac": {"bits": 1, "coding": "bit_serial"}}, r"coding = 'bit_serial' is not allowed with 1 bit"),
        ({"dac": {"bits": 0}}, r"converter field bits = 0 is not allowed: give a whole number from 1 to 16"),
        ({"dac": {"bits": 17}}, r"converter field bits = 17 is not allowed"),
        ({"adc": {"bits": -1}}, r"converter field bits = -1 is not allowed"),
        ({"dac": {"gain_std": -0.1}}, r"in hardware\.dac: converter field gain_std = -0\.1 is not allowed"),
        ({"adc": {"offset_std": math.inf}}, r"in hardware\.adc: converter field offset_std = inf is not allowed"),
        ({"dac": {"range": "active_rows"}}, r"dac\.range = 'active_rows' .* choose one of static, per_token, max"),
        ({"adc": {"range": "max"}}, r"adc\.range = 'max' is not allowed: choose one of static, active_rows"),
        ({"adc": {"coding": "rate"}}, r"adc\.coding = 'rate' is not allowed: choose one of pwm"),
        ({"read_noise": {"sigma": 1}}, r"hardware\.read_noise has no field 'sigma': allowed are constant, relative"),
        ({"read_noise": 0.1}, r"hardware\.read_noise = 0\.1 is not allowed: give a mapping"),
        ({"read_noise": {"constant": -1}}, r"in hardware\.read_noise: read_noise field constant = -1 is not allowed"),
        ({"verify": {"tol": 1}}, r"hardware\.verify has no field 'tol': allowed are tolerance, rounds, read_std"),
        ({"verify": True}, r"hardware\.verify = True is not allowed: give a mapping"),
        ({"verify": {"rounds": 0}}, r"in hardware\.verify: verify field rounds = 0 is not allowed"),
        ({"faults": {"stuck": 1}}, r"hardware\.faults has no field 'stuck': allowed are stuck_min, stuck_max, shorts"),
        ({"faults": [0.1]}, r"hardware\.faults = \[0\.1\] is not allowed: give a mapping"),
        ({"faults": {"stuck_min": 1.1}}, r"in hardware\.faults: faults field stuck_min = 1\.1 is not allowed"),
        ({"wires": {}}, r"hardware has no field 'wires': allowed are .*read_noise, verify, faults, wire"),
        (
            {"wire": {"ohms": 1}},
            r"hardware\.wire has no field 'ohms': allowed are r_row, r_col, drive, sense, layout",
        ),
        ({"wire": 1.0}, r"hardware\.wire = 1\.0 is not allowed: give a mapping"),
        (
            {"wire": {"r_row": -1}},
            r"in hardware\.wire: wire field r_row = -1 is not allowed: give a finite number from 0",
        ),
        (
            {"wire": {"r_col": float("nan")}},
            r"wire field r_col = nan is not allowed: give a finite number from 0 to 1e",
        ),
        (
            {"wire": {"r_col": 1e9}},
            r"wire field r_col = 1000000000\.0 is not allowed: give a finite number from 0 to 1e",
        ),
        ({"wire": {"drive": "right"}}, r"wire field drive = 'right' is not allowed: choose one of left, both"),
        ({"wire": {"sense": "both"}}, r"wire field sense = 'both' is not allowed: choose one of bottom, top"),
        ({"wire": {"layout": "x"}}, r"wire field layout = 'x' is not allowed: choose one of separate, interleaved"),
        (
            {"wire": {"solution": "x"}},
            r"wire field solution = 'x' is not allowed: choose one of auto, exact, first_order",
        ),
    ],
)
def test_refuses_and_says_what_is_allowed(values, message):
    with pytest.raises(InputError, match=message):
        Hardware.from_dict(values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"read_noise": 0.1}, r"hardware field read_noise = 0\.1 is not allowed: give a CellNoise"),
        ({"verify": True}, r"hardware field verify = True is not allowed: give a WriteVerify"),
        ({"faults": {"stuck_min": 0.1}}, r"hardware field faults = \{.*\} is not allowed: give a Faults"),
    ],
)
def test_refuses_what_is_not_a_part(options, message):
    with pytest.raises(InputError, match=message):
        Hardware(**options)


@pytest.mark.parametrize(
    "kind", [devices.Ideal, devices.PCM, devices.PowerLaw, Hermes, ReRam, CmoReRam, GainCell], ids=lambda k: k.kind
)
@pytest.mark.parametrize("g_max", [0.0, -25.0, math.nan, math.inf, "25", True, None])
def test_every_device_refuses_a_g_max_that_is_not_above_0(kind, g_max):
    with pytest.raises(InputError, match=r"device field.* g_max = .* (is|are) not allowed"):
        kind(g_max=g_max)
    with pytest.raises(InputError, match=r"in hardware\.device: device field.* g_max"):
        Hardware.from_dict({"device": {"kind": kind.kind, "g_max": g_max}})


# Time


def model(hardware=EVERY_FIELD):
    found = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 4))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in found:
            layer.reset_parameters()
    convert(found, dataclasses.replace(hardware, tile=dataclasses.replace(hardware.tile, rows=4, cols=3)))
    return found


@pytest.mark.parametrize("time", [-1, -1e-9, -20.0, math.nan, -math.inf])
def test_refuses_times_before_programming(time):
    chip = model()
    program(chip)
    before = [layer.cells.digits.clone() for layer in chip]
    with pytest.raises(InputError, match=r"time .* is not usable: give a time from 0 s to 1e"):
        age(chip, time)
    assert [layer.seconds for layer in chip] == [0.0, 0.0]
    assert all(torch.equal(layer.cells.digits, cells) for layer, cells in zip(chip, before, strict=True))


def test_refuses_a_time_where_nothing_was_programmed():
    chip = model()
    chip[1].program(0)
    with pytest.raises(InputError, match=r"0 was not programmed: call crossbar\.program\(model, seed\) first"):
        age(chip, "1h")
    assert chip[1].seconds == 0.0


# State files


@pytest.fixture
def saved(tmp_path):
    chip, path = model(), tmp_path / "chip.safetensors"
    program(chip, 5)
    age(chip, "1h")
    chip[0].adc_range = torch.linspace(1.0, 5.0, 9 * 7).view(9, 7)  # 3 slices on 3 row tiles
    chip[1].adc_range = torch.tensor(3.0)
    save_state(chip, path)
    return chip, path


def test_every_part_repeats_after_reload(saved):
    chip, path = saved
    other = model()
    load_state(other, path)
    x = torch.randn(5, 10, generator=torch.Generator().manual_seed(1))
    for time in ("1h", "1d"):
        age(chip, time)
        age(other, time)
        for layer in (*chip, *other):
            layer.reset_reads()
        for _ in range(2):
            assert torch.equal(other(x), chip(x))


@pytest.mark.parametrize(
    "part",
    [
        {"tile": Tile(4, 3, "tile", encoding="differential", pairs=2, slices=3, slice_bits=5)},
        {"tile": Tile(4, 3, "tile", encoding="balanced", pairs=1, slices=3, slice_bits=5)},
        {"dac": dataclasses.replace(EVERY_FIELD.dac, gain_std=0.02)},
        {"adc": dataclasses.replace(EVERY_FIELD.adc, range="static")},
        {"read_noise": None},
        {"verify": WriteVerify()},
        {"faults": dataclasses.replace(EVERY_FIELD.faults, seed=8)},
    ],
    ids=lambda part: next(iter(part)),
)
def test_refuses_the_state_of_other_hardware(saved, part):
    other = model(dataclasses.replace(EVERY_FIELD, **part))
    with pytest.raises(InputError, match=r"needs other hardware in 0: Hardware\(device=CmoReRam"):
        load_state(other, saved[1])
    assert other[0].seed is None


@pytest.mark.parametrize("name", ["0/fault_map", "0/adc_range", "1/cells.programmed"])
def test_refuses_state_of_another_shape(saved, name):
    _, path = saved
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no dict
    tensors[name] = tensors[name][..., 1:].contiguous()
    save_file(tensors, path, metadata)
    other = model()
    key = name.partition("/")[2].replace(".", r"\.")
    with pytest.raises(InputError, match=rf"has {key} \[.*\] in {name[0]}, the model"):
        load_state(other, path)
    assert other[0].seed is None
    assert other[0].fault_map is None


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_refuses_a_file_cut_short(saved, share):
    _, path = saved
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    other = model()
    with pytest.raises(InputError, match=r"is not a safetensors file"):
        load_state(other, path)
    assert other[0].seed is None

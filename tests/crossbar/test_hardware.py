"""Hardware descriptions: plain values in and out, and refusals that say what is allowed."""

import dataclasses
import math

import pytest

from crossbar import Converter, Hardware, InputError, Tile, devices, presets
from tests.peers import needs_aihwkit

SOME = Hardware(
    device=devices.PCM(g_max=10.0, t_0=30.0, drift_scale=0.5),
    tile=Tile(128, 64, "layer"),
    dac=Converter(6, "max", 3.0),
    adc=None,
    output_noise=0.1,
)


@pytest.mark.parametrize("hardware", [presets.ideal(), presets.pcm(), Hardware(), SOME], ids=lambda h: h.device.kind)
def test_there_and_back(hardware):
    assert Hardware.from_dict(hardware.to_dict()) == hardware


def test_to_dict_holds_plain_values():
    assert SOME.to_dict() == {
        "device": {
            "kind": "pcm",
            "g_max": 10.0,
            "t_0": 30.0,
            "t_read": 250e-9,
            "prog_noise_scale": 1.0,
            "drift_scale": 0.5,
            "read_noise_scale": 1.0,
            "correlated": False,
        },
        "tile": {
            "rows": 128,
            "cols": 64,
            "scale": "layer",
            "encoding": "differential",
            "pairs": 1,
            "slices": 1,
            "slice_bits": 4,
        },
        "dac": {
            "bits": 6,
            "range": "max",
            "full_scale": 3.0,
            "coding": "pwm",
            "gain_std": 0.0,
            "offset_std": 0.0,
        },
        "adc": None,
        "output_noise": 0.1,
        "read_noise": None,
        "verify": None,
        "faults": None,
        "wire": None,
        "cell": None,
    }


def test_missing_fields_keep_their_defaults():
    assert Hardware.from_dict({}) == Hardware()
    assert Hardware.from_dict({"device": "ideal"}).device == devices.Ideal()
    assert Hardware.from_dict({"device": {"kind": "pcm", "t_0": 5.0}}).device == devices.PCM(t_0=5.0)
    assert Hardware.from_dict({"tile": {"rows": 9}}).tile == Tile(rows=9)
    assert Hardware.from_dict({"dac": None, "adc": {"bits": 4}}) == Hardware(dac=None, adc=Converter(bits=4))
    assert Hardware.from_dict({"dac": {"bits": 6}}).dac == Converter(bits=6, range="per_token")


def test_from_dict_does_not_change_what_it_is_given():
    values = SOME.to_dict()
    before = SOME.to_dict()
    Hardware.from_dict(values)
    assert values == before


def test_descriptions_are_frozen_and_comparable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SOME.output_noise = 0.0
    assert hash(presets.pcm()) == hash(Hardware())
    assert presets.pcm() != presets.ideal()


@pytest.mark.parametrize(("bits", "levels"), [(2, 1), (4, 7), (8, 127), (16, 32767)])
def test_levels(bits, levels):
    assert Converter(bits=bits).levels == levels


# Files


def test_from_yaml(tmp_path):
    path = tmp_path / "tile.yaml"
    path.write_text(
        "device: {kind: pcm, g_max: 10.0, t_0: 30, drift_scale: 0.5}\n"
        "tile: {rows: 128, cols: 64, scale: layer}\n"
        "dac: {bits: 6, range: max, full_scale: 3}\n"
        "adc: null\n"
        "output_noise: 0.1  # µ in a comment\n",
        encoding="utf-8",
    )
    assert Hardware.from_yaml(path) == SOME
    assert presets.get(str(path)) == SOME


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"hardware file '.*bad\.yml' is empty: give a mapping of field names to values"),
        (b"- pcm", r"hardware = \['pcm'\] is not allowed: give a mapping"),
        (b"a: [1", r"is not YAML"),
        (b"\xff\xfe\x00", r"is not YAML"),
        (b"!!python/object/apply:os.getcwd []", r"is not YAML"),
        (b"adc:\n  bits: 6\n  bits: 8", r"hardware file '.*bad\.yml' has 'bits' again in line 3: give it once"),
        (b"1: 2", r"'1' in line 1 is no name"),
        (b"'1': 2", r"hardware has no field '1': allowed are device, tile, dac, adc, output_noise"),
    ],
)
def test_refuses_bad_files(tmp_path, content, message):
    path = tmp_path / "bad.yml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        Hardware.from_yaml(path)


def test_refuses_a_missing_file(tmp_path):
    for read in (Hardware.from_yaml, lambda path: presets.get(str(path))):
        with pytest.raises(InputError, match=r"hardware file '.*none\.yaml' does not exist"):
            read(tmp_path / "none.yaml")


# Values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"wires": {}}, r"hardware has no field 'wires': allowed are device, tile, dac, adc, output_noise"),
        ({"tile": {"row": 3}}, r"hardware\.tile has no field 'row': allowed are rows, cols, scale"),
        ({"dac": {"bit": 3}}, r"hardware\.dac has no field 'bit': allowed are bits, range, full_scale"),
        ({"adc": {"full": 3}}, r"hardware\.adc has no field 'full': allowed are bits, range, full_scale"),
        ({"device": {"kind": "pcm", "nu": 1}}, r"hardware\.device has no field 'nu': allowed are g_max, t_0, t_read"),
        ({"device": {"kind": "ideal", "t_0": 1}}, r"hardware\.device has no field 't_0': allowed are g_max"),
        ({"device": "rram"}, r"device\.kind = 'rram' is not allowed: choose one of ideal, pcm"),
        ({"device": {}}, r"device\.kind = None is not allowed: choose one of ideal, pcm"),
        ({"device": None}, r"hardware\.device = None is not allowed: give a mapping"),
        ({"tile": None}, r"hardware\.tile = None is not allowed: give a mapping"),
        ({"tile": 256}, r"hardware\.tile = 256 is not allowed: give a mapping"),
        ({"adc": 8}, r"hardware\.adc = 8 is not allowed: give a mapping"),
        (
            {"tile": {"rows": 0}},
            r"in hardware\.tile: tile field rows = 0 is not allowed: give a whole number from 1 to",
        ),
        ({"tile": {"cols": 2.5}}, r"cols = 2\.5 is not allowed: give a whole number from 1 to"),
        ({"tile": {"scale": "row"}}, r"scale = 'row' is not allowed: choose one of tile_column, tile, layer"),
        (
            {"adc": {"bits": 0}},
            r"in hardware\.adc: converter field bits = 0 is not allowed: give a whole number from 1 to 16",
        ),
        ({"adc": {"bits": 17}}, r"hardware\.adc.* bits = 17 is not allowed"),
        ({"adc": {"bits": "8"}}, r"bits = '8' is not allowed"),
        ({"adc": {"bits": 8.0}}, r"bits = 8\.0 is not allowed"),
        (
            {"adc": {"range": "per_token"}},
            r"adc\.range = 'per_token' is not allowed: choose one of static, active_rows",
        ),
        ({"dac": {"range": "auto"}}, r"range = 'auto' is not allowed: choose one of static, per_token, max"),
        (
            {"dac": {"full_scale": 0}},
            r"in hardware\.dac: converter field full_scale = 0 is not allowed: give a finite number from",
        ),
        ({"dac": {"full_scale": math.nan}}, r"full_scale = nan is not allowed"),
        (
            {"dac": {"full_scale": "10"}},
            r"hardware\.dac.* full_scale = '10' is not allowed: give a finite number from",
        ),
        (
            {"device": {"kind": "pcm", "g_max": "25"}},
            r"in hardware\.device: device field g_max = '25' is not allowed: give a finite number from",
        ),
        ({"output_noise": -0.1}, r"output_noise = -0\.1 is not allowed: give a finite number from 0 to"),
        ({"output_noise": math.inf}, r"output_noise = inf is not allowed"),
        ({"output_noise": "0.04"}, r"hardware field output_noise = '0\.04' is not allowed: give"),
    ],
)
def test_refuses_and_says_what_is_allowed(values, message):
    with pytest.raises(InputError, match=message):
        Hardware.from_dict(values)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Hardware(device="pcm"), r"field device = 'pcm' is not a device: give one of crossbar\.devices"),
        (lambda: Hardware(device=devices.PCM), r"field device = <class .*PCM'> is not a device: give one of"),
        (lambda: Hardware(tile=None), r"hardware field tile = None is not allowed: give a Tile"),
        (lambda: Hardware(dac=8), r"hardware field dac = 8 is not allowed: give a Converter"),
        (lambda: Hardware(adc=Tile()), r"hardware field adc = Tile\(.*\) is not allowed: give a Converter"),
        (lambda: Hardware(output_noise=None), r"hardware field output_noise = None is not allowed: give a finite"),
        (lambda: Tile(rows=True), r"tile field rows = True is not allowed: give a whole number from 1 to"),
        (lambda: Converter(full_scale="10"), r"converter field full_scale = '10' is not allowed: give a finite"),
    ],
)
def test_refuses_bad_parts(build, message):
    with pytest.raises(InputError, match=message):
        build()


# Files of one's own


@pytest.mark.parametrize("name", presets._PRESETS)
def test_hardware_is_written_as_yaml_and_read_again(tmp_path, name):
    hardware = presets.get(name)
    hardware.to_yaml(tmp_path / "chip.yaml")
    assert Hardware.from_yaml(tmp_path / "chip.yaml") == hardware
    assert [path.name for path in tmp_path.iterdir()] == ["chip.yaml"]


@needs_aihwkit
def test_a_device_without_yaml_is_refused(tmp_path):
    from aihwkit.inference.noise.reram import ReRamCMONoiseModel

    hardware = Hardware(device=devices.AihwkitDevice(ReRamCMONoiseModel()))
    with pytest.raises(InputError, match="a device of the kind 'aihwkit' has no YAML: choose one of ideal, pcm"):
        hardware.to_yaml(tmp_path / "chip.yaml")
    with pytest.raises(InputError, match=r"folder '.*absent' does not exist"):
        presets.pcm().to_yaml(tmp_path / "absent" / "chip.yaml")
    assert list(tmp_path.iterdir()) == []


def test_a_measured_device_from_its_table(tmp_path, monkeypatch):
    table = "target_us,mean_us,std_us\n0,0.1,0.1\n30,29,1\n"
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells/mine.csv").write_text(table)
    (tmp_path / "chip.yaml").write_text("device: {kind: measured, csv: cells/mine.csv, t_0: 5}\nadc: {bits: 6}\n")
    cells = devices.Measured((0.0, 30.0), (0.1, 29.0), (0.1, 1.0))
    assert presets.get(str(tmp_path / "cells/mine.csv")) == presets.get(tmp_path / "cells/mine.csv") == Hardware(cells)
    read = presets.get(tmp_path / "chip.yaml")
    assert read == Hardware(dataclasses.replace(cells, t_0=5), adc=Converter(bits=6))
    monkeypatch.chdir(tmp_path)
    assert presets.get({"device": {"kind": "measured", "csv": "cells/mine.csv"}}) == Hardware(cells)
    read.to_yaml("copy.yaml")
    assert Hardware.from_yaml("copy.yaml") == read


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ({"kind": "measured", "csv": "absent.csv"}, r"device file 'absent\.csv' does not exist"),
        ({"kind": "measured", "csv": 3}, "csv = 3 is not allowed: give the path of a CSV file"),
        ({"kind": "measured", "csv": "a.csv", "std_us": [1]}, "has csv and 'std_us': give csv and t_0 alone"),
        ({"kind": "pcm", "csv": "a.csv"}, "hardware.device has no field 'csv'"),
    ],
)
def test_a_table_that_is_not_there(device, words):
    with pytest.raises(InputError, match=words):
        presets.get({"device": device})


# Presets


def test_presets_by_name():
    assert presets.get("pcm") == presets.pcm()
    assert presets.get("ideal") == presets.ideal()


@pytest.mark.parametrize("name", ["", "PCM", "pcmo", "pcm.json", "__class__"])
def test_refuses_unknown_presets(name):
    with pytest.raises(
        InputError, match=rf"hardware '{name}' is unknown: choose one of {', '.join(presets._PRESETS)}, or give a .yaml"
    ):
        presets.get(name)


@needs_aihwkit
def test_pcm_preset_has_the_numbers_of_aihwkit():
    from aihwkit.simulator.presets.inference import StandardHWATrainingPreset

    ours, theirs = presets.pcm(), StandardHWATrainingPreset()
    io = theirs.forward
    assert io.inp_res == 2 * ours.dac.levels  # aihwkit gives steps over the whole range
    assert io.out_res == 2 * ours.adc.levels
    assert io.out_bound == ours.adc.full_scale
    assert io.out_noise == ours.output_noise
    model = theirs.noise_model
    assert (model.g_max, model.t_0, model.t_read) == (ours.device.g_max, ours.device.t_0, ours.device.t_read)
    assert model.prog_coeff == [0.26348, 1.9650, -1.1731]
    assert theirs.mapping.weight_scaling_columnwise
    assert ours.tile.scale == "tile_column"
    # The tile size is the design's choice: aihwkit cuts at 512 inputs and not at all along the outputs.
    assert (ours.tile.rows, ours.tile.cols) == (256, 256)


def test_ideal_preset_leaves_nothing_to_err():
    hardware = presets.ideal()
    assert hardware.dac is None
    assert hardware.adc is None
    assert hardware.output_noise == 0

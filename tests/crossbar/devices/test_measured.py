"""Devices from tables."""

import math

import numpy as np
import pytest
import torch

from crossbar import Hardware, InputError, devices
from crossbar.devices.measured import Measured
from crossbar.tiles import ageing

N = 20_000
KEY = (0, "measured")
TABLE = (
    "target_us,mean_us,std_us,drift_mean,drift_std\n"
    "0,0.5,0.1,0.10,0.02\n"
    "10,9.5,0.8,0.05,0.01\n"
    "\n"
    "30,30.5,0.4,-0.01,0.0\n"
)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_from_csv(tmp_path):
    device = devices.from_csv(write(tmp_path / "cell.csv", TABLE), t_0=60.0)
    assert device == Measured(
        target_us=(0.0, 10.0, 30.0),
        mean_us=(0.5, 9.5, 30.5),
        std_us=(0.1, 0.8, 0.4),
        drift_mean=(0.1, 0.05, -0.01),
        drift_std=(0.02, 0.01, 0.0),
        t_0=60.0,
    )
    assert device.g_max == 30.0


def test_columns_in_any_order_and_without_drift(tmp_path):
    text = "\ufeffstd_us, target_us ,mean_us\r\n0.1,0,0\r\n0.2,5,5\r\n"  # as a spreadsheet saves it
    assert devices.from_csv(write(tmp_path / "cell.csv", text)) == Measured((0.0, 5.0), (0.0, 5.0), (0.1, 0.2))


def test_through_yaml(tmp_path):
    path = tmp_path / "tile.yaml"
    path.write_text("device: {kind: measured, target_us: [0, 5], mean_us: [0, 4.5], std_us: [0.1, 0.2], t_0: 1}\n")
    device = Hardware.from_yaml(path).device
    assert device == Measured((0, 5), (0, 4.5), (0.1, 0.2), t_0=1)
    assert hash(device) == hash(Measured((0, 5), (0, 4.5), (0.1, 0.2), t_0=1))


@pytest.mark.parametrize("target", [0.0, 4.0, 10.0, 12.5, 30.0])
def test_moments_are_interpolated(tmp_path, target):
    device = devices.from_csv(write(tmp_path / "cell.csv", TABLE))
    state = ageing.program(device, torch.full((N,), target, dtype=torch.float64), KEY)
    rows = [0.0, 10.0, 30.0]
    columns = {"programmed": ([0.5, 9.5, 30.5], [0.1, 0.8, 0.4]), "exponent": ([0.1, 0.05, -0.01], [0.02, 0.01, 0.0])}
    for name, (means, deviations) in columns.items():
        mean, deviation = np.interp(target, rows, means), np.interp(target, rows, deviations)
        assert float(state[name].mean()) == pytest.approx(mean, abs=4 * deviation / math.sqrt(N) + 1e-12)
        assert float(state[name].std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * N), abs=1e-12)


def test_drifts_by_its_exponent():
    device = Measured((0.0, 10.0), (0.0, 10.0), (0.0, 0.0), (0.0, 0.1), (0.0, 0.0), t_0=5.0)
    state = ageing.program(device, torch.tensor([0.0, 10.0], dtype=torch.float64), KEY)
    read = ageing.conductances(device, state, 3600.0, KEY)
    assert read.tolist() == pytest.approx([0.0, 10 * (3605 / 5) ** -0.1], rel=1e-12)
    still = Measured((0.0, 10.0), (0.0, 10.0), (0.0, 0.0))
    state = ageing.program(still, torch.tensor([0.0, 4.0]), KEY)
    assert ageing.conductances(still, state, 1e9, KEY).tolist() == [0.0, 4.0]


HEAD = "target_us,mean_us,std_us\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty: give a header with target_us, mean_us, std_us"),
        ("target_us,mean_us\n0,0\n", "has no column std_us: give target_us, mean_us, std_us"),
        ("target_us,mean_us,std_us,drift_mean\n0,0,0,0\n", "has no column drift_std: give"),
        ("target_us,mean_us,std_us,sigma\n", "has a column 'sigma' that is not known: allowed are target_us, mean_us"),
        ("target_us,mean_us,std_us,std_us\n", "has column std_us twice: give it once"),
        (HEAD, "has measurements at 0 targets: give 2 or more"),
        (HEAD + "0,0,0\n", "has measurements at 1 targets: give 2 or more, from 0 µS"),
        (HEAD + "0,0,0\n5,5\n", "line 3 has 2 cells: give 3, as the header"),
        (HEAD + "0,0,0\n5,five,0\n", "line 3, column mean_us = 'five' is not a number"),
        (
            HEAD + "0,0,0\n\n5,5,-1\n",
            r"line 4, column std_us = -1\.0 is not allowed: give a finite number from 0 to",
        ),
        (HEAD + "0,0,0\n5,nan,0\n", "line 3, column mean_us = nan is not allowed"),
        (HEAD + "1,1,0\n5,5,0\n", r"line 2, column target_us = 1\.0 is not allowed: begin with the empty cell, 0 µS"),
        (HEAD + "0,0,0\n5,5,0\n5,5,0\n", r"line 4, column target_us = 5\.0 .*: targets must rise, give more than 5\.0"),
        ('target_us,"mean_us\n', "is not CSV"),
        (
            "target_us,mean_us,std_us,drift_mean,drift_std\n0,0,0,inf,0\n5,5,0,0,0\n",
            "line 2, column drift_mean = inf is not allowed: give a finite number",
        ),
    ],
)
def test_refuses_files_with_line_and_column(tmp_path, text, message):
    with pytest.raises(InputError, match=rf"device file '.*cell\.csv'.*{message}"):
        devices.from_csv(write(tmp_path / "cell.csv", text))


def test_refuses_missing_and_binary_files(tmp_path):
    with pytest.raises(InputError, match=r"device file '.*none\.csv' does not exist: give the path of a CSV file"):
        devices.from_csv(tmp_path / "none.csv")
    (tmp_path / "cell.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not CSV"):
        devices.from_csv(tmp_path / "cell.csv")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ((), "device has measurements at 0 targets: give 2 or more"),
        (((0, 5), (0, 5), (0,)), "device field std_us has 1 numbers: give 2, as targets"),
        (((0, 5), (0, 5), (0, -1)), "device row 2, column std_us = -1 is not allowed"),
        (((0, 5), (0, 5), "00"), "device field std_us = '00' is not allowed: give a list of numbers"),
        (((0, 5), (0, 5), ("0", 1)), "device row 1, column std_us = '0' is not allowed"),
        (((0, 5), (0, 5), (0, 0), (0, 0)), "device has no column drift_std"),
        (((0, 5), (0, 5), (0, 0), (0, "x"), (0, 0)), "device row 2, column drift_mean = 'x' is not allowed"),
        (((0, 5), (0, 5), (0, 0), None, None, 0.0), "device field t_0 = 0.0 is not allowed"),
    ],
)
def test_refuses_fields(fields, message):
    with pytest.raises(InputError, match=message):
        Measured(*fields)

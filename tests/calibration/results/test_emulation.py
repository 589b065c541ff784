"""Measurements to rows, intervals and plain values."""

import json
import math
from dataclasses import replace

import pytest
from torch import nn

from calibration import Emulation, Measurement
from crossbar import convert, presets


def emulation(*measurements, **setup):
    conversion = convert(nn.Sequential(nn.Linear(3, 2)), presets.ideal())
    setup = {"model": "m", "task": "t", "chips": 2, "hardware": presets.ideal().to_dict(), **setup}
    return Emulation(setup, "good", measurements, conversion, {"linear": {"cell_macs": 6}})


def test_rows_group_by_arm_metric_time_and_fit():
    result = emulation(
        Measurement("digital", "good", 0.9),
        Measurement("analog", "good", 0.5, 0, 60.0),
        Measurement("analog", "good", 0.7, 1, 60.0),
        Measurement("analog", "bad", 0.1, 0, 60.0),
        Measurement("analog", "good", 0.4, 0, 90.0),
        Measurement("calibrated", "good", 0.8, 0, 90.0, 60.0),
        Measurement("calibrated", "good", 0.6, 0, 90.0, 30.0),
    )
    rows = result.rows()
    assert [(row.arm, row.metric, row.seconds, row.fitted, row.n) for row in rows] == [
        ("digital", "good", None, None, 1),
        ("analog", "good", 60.0, None, 2),
        ("analog", "bad", 60.0, None, 1),
        ("analog", "good", 90.0, None, 1),
        ("calibrated", "good", 90.0, 60.0, 1),
        ("calibrated", "good", 90.0, 30.0, 1),
    ]
    assert [row.mean for row in rows] == pytest.approx([0.9, 0.6, 0.1, 0.4, 0.8, 0.6])
    assert (rows[0].low, rows[0].high) == (0.9, 0.9)  # nothing varies in digital


def test_means_of_perplexity_are_geometric():
    result = emulation(
        Measurement("digital", "perplexity", 18.62),
        Measurement("analog", "perplexity", 20.0, 0, 60.0),
        Measurement("analog", "perplexity", 45.0, 1, 60.0),
        Measurement("analog", "good", 20.0, 0, 60.0),
        Measurement("analog", "good", 45.0, 1, 60.0),
    )
    digital, analog, linear = result.rows()
    assert (digital.mean, digital.low, digital.high) == (18.62, 18.62, 18.62)
    assert analog.mean == pytest.approx(30.0)
    half = 12.706204736 * math.log(45 / 20) / 2  # two values: half their difference, times t(0.975, 1)
    assert (analog.low, analog.high) == pytest.approx((30 * math.exp(-half), 30 * math.exp(half)))
    assert linear.mean == 32.5
    assert result.to_dict()["interval"] == "Student-t, 95%, over chips"
    assert replace(result, primary="perplexity").to_dict()["interval"] == "Student-t, 95%, over chips, of logarithms"


def test_values_of_an_arm():
    result = emulation(
        Measurement("calibrated", "good", 0.8, 0, 90.0, 60.0),
        Measurement("calibrated", "good", 0.6, 1, 90.0, 60.0),
        Measurement("calibrated", "bad", 0.2, 0, 90.0, 60.0),
        Measurement("calibrated", "good", 0.5, 0, 190.0, 160.0),
    )
    assert result.values("calibrated") == [0.8, 0.6, 0.5]
    assert result.values("calibrated", fitted=60.0) == [0.8, 0.6]
    assert result.values("calibrated", "bad") == [0.2]
    assert result.values("analog") == []


def test_plain_values_have_no_nan():
    result = emulation(Measurement("analog", "good", 0.5, 0, 60.0), pattern=None)
    values = result.to_dict()
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["primary"] == "good"
    assert values["interval"] == "Student-t, 95%, over chips"
    assert values["table"] == [
        {
            "arm": "analog",
            "seconds": 60.0,
            "metric": "good",
            "mean": 0.5,
            "low": None,
            "high": None,
            "n": 1,
            "fitted": None,
        }
    ]
    assert values["measurements"] == [
        {"arm": "analog", "metric": "good", "value": 0.5, "chip": 0, "seconds": 60.0, "fitted": None}
    ]
    assert values["counts"] == {"linear": {"cell_macs": 6}}
    assert values["conversion"]["parameters"] == 8

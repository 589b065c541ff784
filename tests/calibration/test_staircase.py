"""What each step gains, paired chip by chip, by hand."""

import json
import math
import statistics

import pytest

from calibration import calibrate
from calibration.console import staircase_table
from calibration.results import Emulation, Measurement
from calibration.staircase import stairs
from crossbar import ConversionReport

T = 12.706204736  # Student's t, 95%, one degree of freedom


def result(metric, digital, **arms):
    """Two chips at 1 h: values by arm, the first of them not calibrated."""
    found = [Measurement("digital", metric, digital), Measurement("quantised", metric, digital)]
    for index, (arm, values) in enumerate(arms.items()):
        fitted = None if index == 0 else 3600.0
        found += [
            Measurement(arm, metric, value, chip, 3600.0 + (fitted is not None) * 60, fitted)
            if fitted
            else Measurement(arm, metric, value, chip, 3600.0)
            for chip, value in enumerate(values)
        ]
    return Emulation({"chips": 2}, metric, tuple(found), ConversionReport(()), {})


def test_stairs_by_hand():
    found = stairs(result("recall@1", 0.8, analog=[0.4, 0.5], step=[0.5, 0.7], calibrated=[0.7, 0.8]))
    assert [(stair.arm, stair.seconds, stair.metric, stair.n) for stair in found] == [
        (arm, 3600.0, "recall@1", 2) for arm in ("analog", "step", "calibrated")
    ]
    analog, step, calibrated = found
    assert (analog.gain, analog.recovered) == (None, None)
    assert analog.of_digital.mean == pytest.approx(0.45 / 0.8)
    # Gains of 0.1 and 0.2: half their difference is the standard error.
    assert step.gain == pytest.approx((0.15, 0.15 - T * 0.05, 0.15 + T * 0.05))
    assert calibrated.gain == pytest.approx((0.15, 0.15 - T * 0.05, 0.15 + T * 0.05))
    assert calibrated.value.mean == pytest.approx(0.75)
    assert calibrated.recovered.mean == pytest.approx(0.3 / 0.35)


def test_perplexity_is_compared_by_logarithms():
    analog, calibrated = stairs(result("perplexity", 10.0, analog=[40.0, 90.0], calibrated=[20.0, 30.0]))
    assert analog.value.mean == pytest.approx(60.0)
    assert analog.of_digital.mean == pytest.approx(1 / 6)
    gains = [math.log(2), math.log(3)]
    assert calibrated.gain.mean == pytest.approx(statistics.mean(gains))
    assert calibrated.gain.high - calibrated.gain.mean == pytest.approx(T * (gains[1] - gains[0]) / 2)
    assert calibrated.recovered.mean == pytest.approx(math.log(6) / math.log(36))


def test_nothing_lost_is_not_a_share():
    _, calibrated = stairs(result("recall@1", 0.5, analog=[0.5, 0.6], calibrated=[0.5, 0.5]))
    assert all(math.isnan(bound) for bound in calibrated.recovered)


def test_a_calibration_has_its_stairs_everywhere(net, task):
    found = calibrate(net, task, times=["1h", "1d"], chips=2)
    arms = ["analog", *(f"after {name}" for name in ("WeightRanges", "DriftCompensation", "AdcRanges")), "calibrated"]
    for metric in ("closeness", "signs"):
        for seconds in (3600.0, 86400.0):
            own = [stair for stair in found.stairs() if (stair.metric, stair.seconds) == (metric, seconds)]
            assert [stair.arm for stair in own] == arms
            total = sum(stair.gain.mean for stair in own[1:])
            assert total == pytest.approx(own[-1].value.mean - own[0].value.mean)
    plain = json.loads(json.dumps(found.to_dict(), allow_nan=False))["staircase"]
    assert len(plain) == len(found.stairs())
    assert plain[1]["gain"].keys() == {"mean", "low", "high"}
    table = staircase_table(found)
    assert table.row_count == len(found.stairs())
    axes = found.plot().axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["digital", "quantised", "1 h", "1 d"]


def test_quantised_has_converters_and_nothing_else(net, task):
    (quantised,) = calibrate(net, task, times=["1d"], chips=1).values("quantised")
    assert 0.9 < quantised < 1  # 8 bits
    (ideal,) = calibrate(net, task, "ideal", times=["1d"], chips=1).values("quantised")
    assert ideal == pytest.approx(1, abs=1e-5)

"""What each step gains, paired chip by chip, by hand."""

import io
import json
import math
import statistics

import pytest
from rich.console import Console

from calibration import (
    DigitalLines,
    DriftCompensation,
    Emulation,
    InputRanges,
    LowRankAdapter,
    Measurement,
    Recipe,
    ReprogramWorst,
    WeightRanges,
    calibrate,
    emulate,
)
from calibration.results.plots import accuracy_over_time
from calibration.results.staircase import stairs
from calibration.results.tables import accuracy_table, costs_table, staircase_table, tables
from crossbar import ConversionReport, to_seconds

T = 12.706204736  # Student's t, 95%, one degree of freedom


def result(metric, digital, **arms):
    """Two chips fitted at 1 h and scored a minute later: values by arm, the first of them not calibrated."""
    found = [Measurement("digital", metric, digital), Measurement("quantised", metric, digital)]
    for index, (arm, values) in enumerate(arms.items()):
        fitted = None if index == 0 else 3600.0
        found += [Measurement(arm, metric, value, chip, 3660.0, fitted) for chip, value in enumerate(values)]
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
    steps = ("DigitalLines", "InputRanges", "Rotation", "WeightRanges", "DriftCompensation", "AdcRanges")
    arms = ["analog", *(f"after {name}" for name in steps), "calibrated"]
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


def test_each_step_before_programming_has_its_own_stair(net, task):
    """What a recipe that ends with the step gives; and what the steps after it find does not depend on it."""
    recipe = Recipe("written", (InputRanges(), WeightRanges(), DriftCompensation()))
    result = calibrate(net, task, recipe=recipe, times=["1h", "1d"], chips=2)
    for index in (1, 2):
        arm = recipe.arms[index - 1]
        alone = calibrate(net, task, recipe=Recipe("part", recipe.steps[:index]), times=["1h", "1d"], chips=2)
        assert result.values(arm) == alone.values("calibrated")
    without = calibrate(net, task, recipe=recipe, times=["1h", "1d"], chips=2, staircase=False)
    assert result.values("calibrated") == without.values("calibrated")
    stair = {(s.arm, s.seconds): s for s in result.stairs() if s.metric == "closeness"}
    for seconds in (3600.0, 86400.0):
        first, second = stair["after InputRanges", seconds], stair["after WeightRanges", seconds]
        assert first.gain.mean == pytest.approx(first.value.mean - stair["analog", seconds].value.mean)
        assert second.gain.mean == pytest.approx(second.value.mean - first.value.mean)


@pytest.mark.parametrize("times", [["1d"], ["0s", "1h"]])
def test_all_chips_of_a_row_are_scored_at_one_instant(net, task, times):
    """Also where the time of one row is that at which another is scored."""
    result = calibrate(net, task, times=times, chips=2)
    seconds = [to_seconds(time) for time in times]
    scored = {arm: {m.seconds for m in result.measurements if m.arm == arm} for arm in ("analog", "calibrated")}
    assert scored["analog"] == scored["calibrated"] == {time + 3600 for time in seconds}
    uncalibrated = emulate(net, task, times=[time + 3600 for time in seconds], chips=2)
    at = {(m.chip, m.seconds): m.value for m in uncalibrated.measurements if m.metric == "closeness"}
    (digital,) = result.values("digital")
    for time in seconds:
        analog, *_, last = [s for s in result.stairs() if (s.metric, s.seconds) == ("closeness", time)]
        first = [at[chip, time + 3600] for chip in (0, 1)]
        assert analog.value.mean == statistics.mean(first)
        lost, left = digital - analog.value.mean, digital - last.value.mean
        assert last.recovered.mean == pytest.approx(1 - left / lost)
    terminal = Console(file=io.StringIO(), width=200)
    terminal.print(accuracy_table(result))
    text = terminal.file.getvalue()
    for time, row in zip(times, [line for line in text.splitlines() if "closeness" in line], strict=True):
        half = T * abs(at[0, to_seconds(time) + 3600] - at[1, to_seconds(time) + 3600]) / 2
        mean = (at[0, to_seconds(time) + 3600] + at[1, to_seconds(time) + 3600]) / 2
        assert f"│ {mean:.3f} ± {half:.3f} │" in row
    assert "all scored 1 h after the time shown" in " ".join(text.split())


def test_one_time_stands_on_its_ticks(net, task):
    (axes,) = calibrate(net, task, times=["1d"], chips=2).plot().axes
    assert list(axes.containers[0].lines[0].get_xdata()) == list(axes.get_xticks())


def test_accuracy_over_time_of_a_calibration_names_the_wait(net, task):
    (axes,) = accuracy_over_time([calibrate(net, task, times=["0s", "1d"], chips=2)]).axes
    assert axes.get_xlabel() == "time since programming + 1 h"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0 s", "1 d"]
    assert list(axes.get_xticks()) == [3600.0, 90000.0]
    drawn = {line.get_label(): list(line.get_xdata()) for line in axes.lines}
    assert drawn["analog"] == drawn["calibrated"] == [3600.0, 90000.0]


def test_quantised_has_converters_and_nothing_else(net, task):
    (quantised,) = calibrate(net, task, times=["1d"], chips=1).values("quantised")
    assert 0.9 < quantised < 1  # 8 bits
    (ideal,) = calibrate(net, task, "ideal", times=["1d"], chips=1).values("quantised")
    assert ideal == pytest.approx(1, abs=1e-5)


COSTLY = Recipe(
    "costly",
    (
        DigitalLines(0.125),
        InputRanges(),
        ReprogramWorst(fraction=0.25, reads=10),
        DriftCompensation(reads=100),
        LowRankAdapter(rank=2),
    ),
)


def test_the_cost_of_each_step_by_hand(net, task):
    """24 x 40 and 40 x 8 weights, one tile each."""
    result = calibrate(net, task, recipe=COSTLY, times=["1h", "1d"], chips=2)
    costs, weights = result.costs, 24 * 40 + 40 * 8
    reads = 24 + 40 + 40 + 8 - 8  # the digital lines are not driven
    assert list(costs) == ["analog", *(f"after {type(step).__name__}" for step in COSTLY.steps[:-1]), "calibrated"]
    assert costs["analog"] == (0, 0, 0, 0, 2 * weights)  # pairs
    lines = 3 * 40 + 5 * 8  # an eighth of the lines of each layer
    assert costs["after DigitalLines"] == (lines, lines / weights, -(3 + 5), 0, 0)  # which drive no tile
    assert costs["after InputRanges"] == (24 + 40, (24 + 40) / weights, 0, 0, 0)
    again = 2 * (10 * 24 + 2 * 40)  # a quarter of the columns
    assert costs["after ReprogramWorst"] == (0, 0, 0, 10 * reads, again)
    assert costs["after DriftCompensation"] == (0, 0, 0, 100 * reads, 0)
    adapters = 2 * (24 + 40) + 2 * (40 + 8)
    last = costs["calibrated"]
    assert last[:3] == (adapters, adapters / weights, 0)
    tokens = 2 * 3 * 4 * 6  # calibration data are read twice, padding too
    assert last.fit_conversions % (tokens // 2 * reads) == 0
    assert last.fit_conversions > 0
    assert result.minutes.keys() == costs.keys()
    assert result.minutes["analog"] == 0
    assert all(0 < result.minutes[arm] < 1 for arm in list(costs)[1:])


def test_without_a_staircase_the_whole_recipe_has_one_cost(net, task):
    options = {"recipe": COSTLY, "times": ["1d"], "chips": 1}
    steps, whole = calibrate(net, task, **options), calibrate(net, task, **options, staircase=False)
    assert list(whole.costs) == ["analog", "calibrated"]
    together = [sum(values) for values in zip(*list(steps.costs.values())[1:], strict=True)]
    assert whole.costs["calibrated"] == pytest.approx(together)


def test_a_population_is_fitted_once_for_all_chips(net, task):
    recipe = Recipe("reads", (DriftCompensation(reads=100),))
    (own, shared) = (
        calibrate(net, task, recipe=recipe, times=["1h", "1d"], chips=2, population=count) for count in (None, 3)
    )
    assert shared.costs["calibrated"].fit_conversions == 3 * own.costs["calibrated"].fit_conversions


def test_costs_are_in_the_table_the_values_and_the_picture(net, task):
    result = calibrate(net, task, recipe=COSTLY, times=["1h", "1d"], chips=1)
    assert [table.title for table in tables(result)][1:] == ["what each step gains", "what each step costs"]
    terminal = Console(file=io.StringIO(), width=200)
    terminal.print(costs_table(result))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in terminal.file.getvalue().splitlines()]
    found = {row[0]: row[1:] for row in rows if row}
    assert found["analog"] == ["", "", "", "", "2,560", ""]
    assert found["after DigitalLines"][:5] == ["160", "12.50%", "-8", "0", "0"]
    assert found["after LowRankAdapter"][:3] == ["224", "17.50%", "0"]
    assert json.loads(json.dumps(result.to_dict()))["costs"]["after DigitalLines"]["share"] == 0.125
    assert "minutes" not in result.to_dict()  # two runs are equal
    assert result.clock() == {"minutes": result.minutes}
    (axes,) = result.plot_shares().axes
    drawn = {line.get_label(): line.get_xdata() for line in axes.lines}
    shares = [0, 0.125, 0.125 + 0.05, 0.125 + 0.05, 0.125 + 0.05, 0.125 + 0.05 + 0.175]
    assert list(drawn["1 h"]) == list(drawn["1 d"]) == pytest.approx(shares)
    numbers = ", ".join(text.get_text() for text in axes.texts)
    assert numbers == "0, 1, 2, 3, 4, 5"
    assert list(drawn)[-6:] == ["analog", *(f"+ {type(step).__name__}" for step in COSTLY.steps)]

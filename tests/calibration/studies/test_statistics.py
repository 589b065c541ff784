"""Intervals, paired differences, sensitivity and trade-offs, on scores whose answers are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from calibration.metrics import interval
from calibration.studies.tradeoffs import not_dominated
from crossbar import InputError
from tests.calibration.studies import tiny

CHIPS = np.random.default_rng(0).normal(size=(2, 8)) * 0.05
CONFIG = {
    "hardware": "pcm",
    "recipe": "fast",
    "time": "1h",
    "grid": {"hardware.adc.bits": [4, 6, 8], "recipe": [None, "fast"], "time": ["1h", "1d"], "seed": "0..7"},
}


def score(axes, seconds, seed):
    """0.1 a bit, 0.05 for a recipe, what a chip has of its own, and what it has at a time."""
    arm = "analog" if axes["recipe"] is None else "calibrated"
    value = 0.1 * axes["hardware.adc.bits"] + 0.05 * (arm == "calibrated") + CHIPS[int(seconds > 3600), seed]
    return {arm: value}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.made_study(tmp_path_factory.mktemp("made") / "s.sqlite", CONFIG, score)


def test_table(made):
    table = made.table()
    assert len(table) == 3 * 2 * 2
    row = table.query("`hardware.adc.bits` == 6 and recipe == 'fast' and time == 86400").iloc[0]
    mean, low, high = interval((0.65 + CHIPS[1]).tolist())
    assert (row["arm"], row["metric"], row["n"], row["digital"]) == ("calibrated", "spearman", 8, 0.9)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((mean, low, high), rel=1e-12)


def test_logarithms_where_those_count(tmp_path):
    study = tiny.made_study(
        tmp_path / "s.sqlite", CONFIG, lambda *of: {"analog": math.exp(score(*of).popitem()[1])}, primary="perplexity"
    )
    row = study.table().query("`hardware.adc.bits` == 6 and recipe == 'none' and time == 3600").iloc[0]
    expected = interval(np.exp(0.6 + CHIPS[0]).tolist(), logarithmic=True)
    assert (row["mean"], row["low"], row["high"]) == pytest.approx(expected, rel=1e-12)
    worse = study.sensitivity().set_index("axis").loc["hardware.adc.bits"]
    assert (worse["best"], worse["worst"]) == (4, 8)  # lower is better
    assert worse["cost"] == pytest.approx(0.4)


def test_differences_are_paired(made):
    found = made.differences("recipe", None, "fast")
    assert len(found) == 3 * 2
    assert (found["n"] == 8).all()
    for name in ("mean", "low", "high"):  # chips differ by 0.05, and their differences not at all
        assert found[name].to_numpy() == pytest.approx(0.05, abs=1e-12)
    times = made.differences("time", "1h", "1d")
    expected = interval((CHIPS[1] - CHIPS[0]).tolist())
    for row in times[["mean", "low", "high"]].to_numpy():
        assert tuple(row) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("axis", "level", "words"), [("colour", 1, "does not vary"), ("recipe", "a", "no finished")])
def test_differences_of_nothing(made, axis, level, words):
    with pytest.raises(InputError, match=words):
        made.differences(axis, None, level)


def test_sensitivity(made):
    found = made.sensitivity().set_index("axis")
    assert found.index[0] == "hardware.adc.bits"
    bits = found.loc["hardware.adc.bits"]
    assert (bits["best"], bits["worst"], bits["n"]) == (8, 4, 8)
    assert (bits["cost"], bits["low"], bits["high"]) == pytest.approx((0.4, 0.4, 0.4))
    assert bits["per_unit"] == pytest.approx(0.1)
    assert found.loc["recipe", "cost"] == pytest.approx(0.05)
    apart = (CHIPS[1] - CHIPS[0]).mean()
    assert found.loc["time", "cost"] == pytest.approx(abs(apart))
    assert found.loc["time", "per_unit"] == pytest.approx(apart / math.log10(24))


def test_sensitivity_compares_where_all_else_is_equal(tmp_path):
    """A recipe that is scored at 8 bits only is not taken for better than one that is scored at 4 bits too."""
    own = {"name": "own", "steps": ["InputRanges"]}
    grids = [CONFIG["grid"], {"recipe": [own], "time": ["1h"], "seed": "0..7"}]
    found = tiny.made_study(tmp_path / "s.sqlite", {**CONFIG, "grid": grids}, score).sensitivity().set_index("axis")
    assert found.loc["recipe", ["best", "worst"]].tolist() == ["fast", "none"]
    assert found.loc["recipe", "cost"] == pytest.approx(0.05)


def test_sensitivity_of_random_samples(tmp_path):
    spread = {"samples": 30, "fields": {"hardware.output_noise": {"low": 0.0, "high": 0.5}}}
    config = {"grid": {"seed": "0..2"}, "random": spread}

    def noisy(axes, seconds, seed):
        return {"analog": 0.8 - 0.6 * axes["hardware.output_noise"] + 0.01 * seed}

    (row,) = tiny.made_study(tmp_path / "s.sqlite", config, noisy).sensitivity().to_dict("records")
    assert row["per_unit"] == pytest.approx(-0.6)
    assert row["cost"] == pytest.approx(0.6 * (row["worst"] - row["best"]))
    assert row["worst"] > row["best"]


@pytest.mark.parametrize("half_width", [0.2, 0.02, 0.005])
def test_seeds_needed(made, half_width):
    found = made.seeds_needed(half_width)
    for row in found.to_dict("records"):

        def half(n, std=row["std"]):
            return stats.t.ppf(0.975, n - 1) * std / math.sqrt(n)

        needed = int(row["needed"])
        assert half(needed) <= half_width
        assert needed == 2 or half(needed - 1) > half_width


def test_pareto(tmp_path):
    plan = tiny.made_plan(CONFIG)
    bits = {s.setup: s.axes["hardware.adc.bits"] for s in plan.settings}
    counts = [(f'[["adc_conversions", {b}, 1000000000]]', key) for key, b in bits.items()]
    study = tiny.made_study(tmp_path / "s.sqlite", CONFIG, score, counts=counts)
    found = study.pareto()
    assert len(found) == 6
    energy = found.groupby("hardware.adc.bits")["energy"].first()
    assert energy.to_dict() == pytest.approx({4: 460.0, 6: 530.0, 8: 850.0})  # of 10⁹ conversions, in µJ
    # A recipe takes no energy of an evaluation here, so without one a setting is beaten; more bits cost more.
    assert found.groupby("hardware.adc.bits")["energy"].nunique().eq(1).all()
    assert found.set_index(["hardware.adc.bits", "recipe"])["best"].to_dict() == {
        (b, recipe): recipe == "fast" for b in (4, 6, 8) for recipe in ("none", "fast")
    }


def test_pareto_of_settings_on_chips(tmp_path):
    """Fewer bits are better here and take less energy, but more time and area: none beats another."""
    plan = tiny.made_plan(CONFIG)
    bits = {s.setup: s.axes["hardware.adc.bits"] for s in plan.settings}
    counts = [
        (
            f'[["adc_conversions", {b}, 1000000000], ["token_ps", null, {9000 - b}], ["token_way_ps", null, 20000], '
            f'["chip_um2", null, {7_000_000 - b}]]',
            key,
        )
        for key, b in bits.items()
    ]

    def falling(axes, seconds, seed):
        return score({**axes, "hardware.adc.bits": -axes["hardware.adc.bits"]}, seconds, seed)

    study = tiny.made_study(tmp_path / "s.sqlite", CONFIG, falling, counts=counts)
    found = study.pareto()
    first = found.groupby("hardware.adc.bits")[["energy", "token_ns", "mm2"]].first()
    assert first["energy"].to_dict() == pytest.approx({4: 460.0, 6: 530.0, 8: 850.0})  # what chips take is no count
    assert first["token_ns"].to_dict() == pytest.approx({4: 8.996, 6: 8.994, 8: 8.992})
    assert first["mm2"].to_dict() == pytest.approx({4: 6.999996, 6: 6.999994, 8: 6.999992})
    assert found.groupby("recipe")["best"].all().to_dict() == {"none": False, "fast": True}


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=30))
def test_not_dominated_by_definition(points):
    costs = np.array(points, float)
    expected = [not any((other <= own).all() and (other < own).any() for other in costs) for own in costs]
    assert not_dominated(costs).tolist() == expected

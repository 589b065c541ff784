"""calibrate: fitted on each chip at each age, scored later, paired with the same chips uncalibrated."""

import copy
import json
import statistics
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from calibration import DriftCompensation, InputRanges, Recipe, Stage, calibrate, emulate, tasks
from crossbar import Hardware, InputError, Tile, age, analog_layers, convert, presets, program

HOUR, DAY = 3600.0, 86400.0
PLAIN = Recipe("plain", (InputRanges(), DriftCompensation()))


@dataclass(frozen=True)
class Spy:
    """A step that changes nothing and writes down when it was fitted and applied."""

    log: list
    stage: ClassVar[Stage] = Stage.IN_USE

    def fit(self, model, batches):
        layer = next(iter(analog_layers(model).values()))
        self.log.append(("fit", layer.seed, layer.seconds, len(list(batches))))
        return {}

    def apply(self, model, fitted):
        layer = next(iter(analog_layers(model).values()))
        self.log.append(("apply", layer.seed, layer.seconds))


class Watched:
    """A task that writes down the chip and the age that it scores."""

    primary = "closeness"
    name = "watched"

    def __init__(self, task, log):
        self.task, self.log, self.batches = task, log, task.batches

    def metrics(self, model):
        try:
            layer = next(iter(analog_layers(model).values()))
        except InputError:
            self.log.append(("score", None, None))
        else:
            self.log.append(("score", layer.seed, layer.seconds))
        return self.task.metrics(model)


# When steps are fitted and scored


def test_the_order_of_programming_fitting_and_scoring(net, task):
    log = []
    calibrate(net, Watched(task, log), recipe=Recipe("spy", (Spy(log),)), times=["1h", "1d"], wait="5min", chips=2)
    digital, uncalibrated = [("score", None, None), ("score", None, 0.0)], []
    fitted = []
    for chip in (0, 1):
        for time in (HOUR, DAY):
            uncalibrated.append(("score", chip, time + 300))
            fitted += [("fit", chip, time, 3), ("apply", chip, time), ("score", chip, time + 300)]
    assert log == digital + uncalibrated + fitted


def test_steps_that_train_get_the_training_data(net, task):
    """Others the calibration data, three batches here."""
    log = []

    @dataclass(frozen=True)
    class Long(Spy):
        def fit_long(self, model, batches, file, progress):
            return self.fit(model, batches)

    class Trains(type(task)):
        def training_batches(self):
            return [{"x": torch.ones(2, 6, 24)}] * 7

    recipe = Recipe("spies", (Spy(log), Long(log)))
    calibrate(net, Trains(net), recipe=recipe, times=["1h"], chips=1, staircase=False)
    assert [entry[3] for entry in log if entry[0] == "fit"] == [3, 7]


def test_every_calibrated_score_is_later_than_its_fit(net, task):
    result = calibrate(net, task, times=["0s", "1h"], wait="2h", chips=2)
    fitted = [m for m in result.measurements if m.fitted is not None]
    steps = ("DigitalLines", "InputRanges", "Rotation", "WeightRanges", "DriftCompensation", "AdcRanges")
    assert {m.arm for m in fitted} == {*(f"after {step}" for step in steps), "calibrated"}
    assert len(fitted) == 7 * 2 * 2 * 2  # arms, chips, times, metrics
    assert {m.seconds - m.fitted for m in fitted} == {2 * HOUR}
    assert {m.fitted for m in fitted} == {0.0, HOUR}
    assert all(m.fitted is None for m in result.measurements if m.arm in ("digital", "analog"))


@pytest.mark.parametrize("wait", [0, "0s", "0h"])
def test_a_wait_of_zero_is_refused(net, task, wait):
    with pytest.raises(InputError, match="a wait of 0 s would score the very noise that was fitted"):
        calibrate(net, task, wait=wait)


# What comes out


def test_each_step_and_the_whole_recipe_help(net, task):
    result = calibrate(net, task, times=["1d"], chips=8)
    uncalibrated, ranges, calibrated = (result.values(arm) for arm in ("analog", "after WeightRanges", "calibrated"))
    assert all(c > u for c, u in zip(calibrated, uncalibrated, strict=True))
    assert all(c > r for c, r in zip(calibrated, ranges, strict=True))
    lost, left = 1 - statistics.mean(uncalibrated), 1 - statistics.mean(calibrated)
    assert left < lost / 2


def test_the_uncalibrated_arm_is_what_emulate_finds(net, task):
    """At the time at which calibrated chips are scored."""
    calibrated = calibrate(net, task, times=["0s", "1d"], wait="2h", chips=2)
    emulated = emulate(net, task, times=["2h", "26h"], chips=2)
    of = [m for m in calibrated.measurements if m.arm in ("digital", "analog")]
    assert of == list(emulated.measurements)
    assert calibrated.counts["linear"] == emulated.counts["linear"]


def test_the_cost_of_calibration_by_hand(net, task):
    result = calibrate(net, task, recipe=PLAIN, times=["1h", "1d"], chips=2)
    # One fit on one chip: 256 reads of 24 x 40 and 40 x 8, one tile each.
    assert result.counts["calibration"] == {
        "row_activations": 256 * (24 + 40),
        "dac_conversions": 256 * (24 + 40),
        "adc_conversions": 256 * (40 + 8),
        "cell_macs": 256 * (24 * 40 + 40 * 8),
        "digital_macs": 256 * (40 + 8),
        "tile_reads": 256 * 2,
        "sram_bytes": 256 * ((24 + 40) + 2 * (40 + 8)),  # a byte an input, two an output
    }


def test_two_runs_are_equal(net, task):
    first, second = (calibrate(net, task, times=["0s", "1d"], chips=2).to_dict() for _ in range(2))
    assert first == second
    assert json.loads(json.dumps(first, allow_nan=False)) == first


def test_the_order_of_times_and_the_number_of_chips_do_not_matter(net, task):
    def scores(**options):
        return {(m.arm, m.metric, m.chip, m.seconds): m.value for m in calibrate(net, task, **options).measurements}

    forwards = scores(times=["0s", "1d"], chips=2)
    assert scores(times=["1d", "0s"], chips=2) == forwards
    alone = scores(times=["1d"], chips=1)
    assert alone == {key: forwards[key] for key in alone}


def test_the_staircase_does_not_change_the_result(net, task):
    with_steps = calibrate(net, task, times=["1d"], chips=2)
    without = calibrate(net, task, times=["1d"], chips=2, staircase=False)
    assert {m.arm for m in without.measurements} == {"digital", "analog", "calibrated"}
    assert without.values("calibrated") == with_steps.values("calibrated")


@pytest.mark.parametrize(("staircase", "arms"), [(True, 8), (False, 2)])
def test_progress_counts_every_score(net, task, staircase, arms):
    seen = []
    calibrate(net, task, times=["0s", "1h"], chips=2, staircase=staircase, progress=lambda *of: seen.append(of))
    scores = 1 + staircase + 2 * 2 * arms
    assert [done for done, _, _ in seen] == list(range(scores))
    assert {total for _, total, _ in seen} == {scores}


def test_the_users_model_is_unchanged(net, task):
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modules = [type(module) for module in net.modules()]
    net.train()
    calibrate(net, task, times=["1d"], chips=1)
    assert [type(module) for module in net.modules()] == modules
    assert net.training
    assert not net.first._forward_pre_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_setup_says_what_was_done(net, task):
    result = calibrate(net, task, times=["1d"], chips=1, recipe=Recipe("mine", (DriftCompensation(reads=32),)))
    assert result.setup["calibration_batches"] == 3
    assert result.setup["chips"] == 1
    fields = {"per": "column", "reference": "ideal", "reads": 32, "seed": 0}
    fields |= {"predict": False, "first_read": 3600.0, "second_read": 86400.0}
    assert result.setup["recipe"] == {"name": "mine", "steps": [{"step": "DriftCompensation", **fields}]}


def test_on_ideal_hardware_nothing_is_lost_and_nothing_is_broken(net, task):
    result = calibrate(net, task, "ideal", times=["0s", "1y"], chips=2)
    assert all(m.value > 1 - 1e-5 for m in result.measurements)


# Recipes of other shapes


def test_a_recipe_of_ranges_alone(net, task):
    result = calibrate(net, task, times=["1d"], chips=2, recipe=Recipe("ranges", (InputRanges(),)))
    assert {m.arm for m in result.measurements} == {"digital", "quantised", "analog", "calibrated"}
    assert result.values("calibrated") != result.values("analog")


def test_a_step_used_twice_has_two_stairs(net, task):
    steps = tuple(DriftCompensation(reads=reads) for reads in (8, 16, 32))
    result = calibrate(net, task, times=["1d"], chips=2, recipe=Recipe("thrice", steps))
    digital, arms = {"digital", "quantised"}, {"analog", "after DriftCompensation", "after DriftCompensation 2"}
    assert {row.arm for row in result.rows()} == digital | arms | {"calibrated"}
    assert {row.n for row in result.rows() if row.arm not in digital} == {2}


def test_a_long_recipe_can_be_drawn(net, task):
    log = []
    steps = tuple(type(f"Step{k}", (Spy,), {})(log) for k in range(5))
    result = calibrate(net, task, times=["1d"], chips=1, recipe=Recipe("long", steps))
    axes = result.plot().axes[0]
    steps = [f"+ Step{k}" for k in range(5)]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["analog", *steps]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["digital", "quantised", "1 d"]


def test_static_ranges_with_an_adc_less_chip(net, task):
    hardware = replace(presets.pcm(), adc=None, output_noise=0.0)
    steps = (InputRanges("abs_max"), DriftCompensation(per="tile"))
    result = calibrate(net, task, hardware, Recipe("static", steps), times=["1d"], chips=2)
    assert min(result.values("calibrated")) > max(result.values("analog"))


# Refusals


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipe": "slow"}, "recipe 'slow' is unknown: choose quick, fast"),
        ({"chips": 0}, "chips = 0 is not allowed"),
        ({"times": []}, r"times \[\] are not usable"),
        ({"times": ["1 week"]}, "time '1 week' is not understood"),
        ({"wait": "-1h"}, "time '-1h' is not understood"),
        ({"hardware": "neon"}, "hardware 'neon' is unknown"),
        ({"task": "code-search"}, "task 'code-search' needs a tokenizer, which a bare TinyNet has not"),
        ({"pattern": "window(4)"}, "TinyNet is not a transformers model"),
        ({"include": "third"}, "layer pattern 'third' matches none"),
    ],
)
def test_refusals(net, task, options, message):
    with pytest.raises(InputError, match=message):
        calibrate(net, **{"task": task, **options})


# The real model


def test_minilm_loses_and_regains(minilm):
    task = tasks.get("code-search", minilm.tokenizer, pairs=60, calibration_pairs=8)
    plain = task.metrics(minilm.model)["recall@1"]
    result = calibrate(minilm, task, times=["1d"], chips=1, staircase=False)
    assert result.values("digital") == [plain]
    assert result.values("analog")[0] < 0.75 * plain  # 0.64 when this was written
    assert result.values("calibrated")[0] > 0.92 * plain  # 0.98


def test_one_scale_for_a_whole_layer_collapses(minilm):
    """Issue 2, item 3: fitted at 1 d and scored an hour later; one device, one set of converters, two mappings."""
    task = tasks.get("code-search", minilm.tokenizer, pairs=60, calibration_pairs=1)

    def recall(scale):
        model, step = copy.deepcopy(minilm.model), DriftCompensation()
        convert(model, Hardware(tile=Tile(scale=scale)))
        program(model, seed=0)
        age(model, "1d")
        step.apply(model, step.fit(model, []))
        age(model, "25h")
        return task.metrics(model)["recall@1"]

    by_column, by_layer = recall("tile_column"), recall("layer")
    assert by_column > 0.4
    assert by_layer < by_column / 3


@pytest.mark.slow
def test_code_search_falls_by_a_third_and_calibration_brings_it_back(minilm):
    """Issue 2, item 3, in full: 500 pairs, 8 chips, fitted at 1 d, scored an hour later."""
    task = tasks.get("code-search", minilm.tokenizer, pairs=500)
    result = calibrate(minilm, task, pattern="window(64) | sinks(4)", times=["1d"], chips=8, staircase=False)
    (digital,) = result.values("digital")
    uncalibrated, calibrated = result.values("analog"), result.values("calibrated")
    print(f"digital {digital}, uncalibrated {uncalibrated}, calibrated {calibrated}")  # noqa: T201 - figures
    assert len(uncalibrated) == len(calibrated) == 8
    assert result.values("digital dense") == [task.metrics(minilm.model)["recall@1"]]
    assert statistics.mean(uncalibrated) < digital * 2 / 3
    assert statistics.mean(value / digital for value in calibrated) >= 0.95

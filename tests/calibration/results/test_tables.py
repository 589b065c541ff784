"""Results as tables on a terminal."""

import io
import math

import pytest
from rich.console import Console
from torch import nn

from calibration import DriftCompensation, Emulation, InputRanges, Measurement, Recipe, calibrate, emulate
from calibration.results.tables import accuracy_table, hint
from crossbar import convert, presets


def shown(primary, *values):
    return shown_scores([{primary: value} for value in values])


def shown_scores(scores):
    """The table of a digital model's scores and those of chips at 1 h."""
    arms = [("digital", None, None), *(("analog", chip, 3600.0) for chip in range(len(scores) - 1))]
    measurements = [
        Measurement(arm, name, value, chip, seconds)
        for (arm, chip, seconds), own in zip(arms, scores, strict=True)
        for name, value in own.items()
    ]
    conversion = convert(nn.Sequential(nn.Linear(3, 2)), presets.ideal())
    setup = {"model": "m", "task": "t", "chips": len(scores) - 1, "hardware": presets.ideal().to_dict()}
    terminal = Console(file=io.StringIO(), width=200)
    terminal.print(accuracy_table(Emulation(setup, next(iter(scores[0])), tuple(measurements), conversion, {})))
    return terminal.file.getvalue()


def test_an_accuracy_has_half_its_interval():
    text = shown("recall@1", 0.9, 0.4, 0.6)
    assert "0.900" in text
    assert "0.500 ± 1.271" in text  # half-width t(0.975, 1) / 10
    assert "mean ± half the 95% interval over 2 chips" in text
    assert "lower" not in text


def test_a_perplexity_has_a_geometric_mean_and_an_interval():
    text = shown("perplexity", 18.624, 30.0, 30.0 * 1.01)
    assert "18.62" in text
    assert "30.15 (28.30 to 32.12)" in text  # 30 sqrt(1.01) exp(± 12.706 ln(1.01) / 2)
    assert "perplexity: geometric mean (95% interval) over 2 chips" in " ".join(text.split())
    assert "±" not in text
    assert "lower perplexity is better" in " ".join(text.split())


@pytest.mark.parametrize(("primary", "expected"), [("recall@1", "0.500"), ("perplexity", "0.50")])
def test_a_single_chip_has_no_interval(primary, expected):
    (row,) = [line for line in shown(primary, 0.9, 0.5).splitlines() if "1 h" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")][-1] == expected


@pytest.mark.parametrize(("lost", "told"), [(8000.0, True), (60.0, False)])
def test_a_mean_that_few_windows_decide_is_said_to_be_one(lost, told):
    """Of 16 windows one may lose its attention sink: the mean is then 1.38 times the median, or 1.02 times."""
    mean = math.exp((15 * math.log(45.0) + math.log(lost)) / 16)
    chip = {"perplexity": mean, "median_perplexity": 45.0}
    text = " ".join(shown_scores([{"perplexity": 21.0, "median_perplexity": 22.0}, chip, chip]).split())
    note = "a few windows decide perplexity of analog: compare median_perplexity (docs/calibration.md)"
    assert (note in text) == told


def test_without_medians_nothing_is_said_of_few_windows():
    assert "few windows" not in shown("perplexity", 18.6, 9000.0, 30.0)


@pytest.mark.parametrize("chips", [1, 2])
def test_a_result_shows_itself_as_its_table(net, task, chips):
    emulated = emulate(net, task, times=["1h"], chips=chips)
    text = repr(emulated)
    lines = text.splitlines()
    assert lines[0] == "TinyNet: agreement"
    for word in ("closeness", "signs", "digital", "analog", "1 h"):
        assert word in text
    assert ("over 2 chips" in text) == (chips == 2)
    assert ("one chip, which gives no interval" in text) == (chips == 1)
    assert len(text) < 1500
    html = emulated._repr_html_()
    assert html.startswith("<table")
    assert html.count("<tr") == 1 + len(emulated.rows())
    recipe = Recipe("plain", (InputRanges(), DriftCompensation()))
    calibrated = repr(calibrate(net, task, recipe=recipe, times=["1h"], chips=chips))
    assert "what each step gains" in calibrated
    assert "after DriftCompensation" in calibrated
    assert ("95%" in calibrated) == (chips == 2)


@pytest.mark.parametrize(
    ("primary", "digital", "analog", "told"),
    [
        ("recall@1", 0.5, 0.39, True),
        ("recall@1", 0.5, 0.41, False),
        ("perplexity", 21.0, 12_598.0, True),
        ("perplexity", 21.0, 31.0, False),
        ("perplexity", 21.0, float("inf"), True),
    ],
)
def test_who_loses_much_is_told_of_calibration(primary, digital, analog, told):
    conversion = convert(nn.Sequential(nn.Linear(3, 2)), presets.ideal())
    setup = {"model": "m", "task": "t", "chips": 1, "hardware": presets.ideal().to_dict()}
    found = (Measurement("digital", primary, digital), Measurement("analog", primary, analog, 0, 60.0))
    text = hint(Emulation(setup, primary, found, conversion, {}))
    assert ("ohmformer calibrate" in text) == told

"""The picture of accuracy over time."""

import math

import pytest
from torch import nn

from calibration import Emulation, Measurement
from calibration.results.plots import accuracy_over_time
from crossbar import convert, presets

DAY = 86400.0


def emulation(chips=2, low=0.2):
    measurements = [Measurement("digital dense", "good", 0.95), Measurement("digital", "good", 0.9)]
    for chip in range(chips):
        for seconds, value in ((DAY, 0.5), (0.0, 0.8)):  # not in order
            measurements += [
                Measurement("analog", "good", value - low + 0.1 * chip, chip, seconds),
                Measurement("analog", "bad", 123.0, chip, seconds),
                Measurement("after InputRanges", "good", value, chip, seconds + 3600, seconds),
                Measurement("calibrated", "good", value + 0.05 * chip, chip, seconds + 3600, seconds),
            ]
    conversion = convert(nn.Sequential(nn.Linear(3, 2)), presets.ideal())
    setup = {"model": "mine", "task": "reading", "chips": chips, "hardware": presets.pcm().to_dict()}
    return Emulation(setup, "good", tuple(measurements), conversion, {})


def lines(axes):
    return {line.get_label(): line for line in axes.lines}


def test_arms_are_labelled_lines_of_the_primary_metric():
    (axes,) = emulation().plot().axes
    found = lines(axes)
    assert set(found) == {"digital dense", "digital", "analog", "after InputRanges", "calibrated"}
    assert {text.get_text() for text in axes.get_legend().get_texts()} == set(found)
    assert list(found["digital"].get_ydata()) == [0.9, 0.9]
    assert list(found["analog"].get_ydata()) == pytest.approx([0.65, 0.35])  # means over chips, by time
    assert list(found["calibrated"].get_ydata()) == pytest.approx([0.825, 0.525])
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 5


def test_times_are_on_a_logarithmic_axis_with_readable_ticks():
    (axes,) = emulation().plot().axes
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0 s", "1 d"]
    x = list(lines(axes)["analog"].get_xdata())
    assert x[0] > 0
    assert x[1] == DAY
    assert list(lines(axes)["calibrated"].get_xdata()) == [3600.0, DAY + 3600]


def test_axes_say_what_they_are():
    (axes,) = emulation().plot().axes
    assert axes.get_xlabel() == "time since programming"
    assert axes.get_ylabel() == "good"
    assert axes.get_title() == "mine on pcm: reading"


def test_bands_are_the_intervals():
    result = emulation()
    (axes,) = result.plot().axes
    heights = [path.vertices[:, 1] for band in axes.collections for path in band.get_paths()]
    for row in result.rows():
        if row.metric == "good" and row.seconds is not None:
            assert any(min(abs(y - row.low)) < 1e-9 and min(abs(y - row.high)) < 1e-9 for y in heights), row


def test_a_panel_for_each_result():
    figure = accuracy_over_time([emulation(), emulation(), emulation()])
    assert len(figure.axes) == 3


@pytest.mark.parametrize("chips", [1, 2])
def test_a_png_is_written(tmp_path, chips):
    path = tmp_path / "accuracy.png"
    emulation(chips).plot().savefig(path)
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(data) > 5000


def test_negative_scores_are_inside_the_picture():
    (axes,) = emulation(low=0.9).plot().axes
    bottom, _ = axes.get_ylim()
    lowest = min(min(line.get_ydata()) for line in axes.lines)
    assert not math.isnan(lowest)
    assert bottom <= lowest < 0


def perplexities(*values):
    measurements = [Measurement("digital", "perplexity", 18.0)]
    for chip, factor in enumerate((1.0, 1.02)):
        for seconds, value in zip((0.0, DAY), values, strict=True):
            measurements.append(Measurement("analog", "perplexity", factor * value, chip, seconds))
    result = emulation()
    return Emulation(result.setup, "perplexity", tuple(measurements), result.conversion, {})


@pytest.mark.parametrize("values", [(19.0, 22.0), (35.0, 25_000.0)])
def test_perplexity_has_a_logarithmic_axis_with_readable_ticks(tmp_path, values):
    figure = perplexities(*values).plot()
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    assert axes.get_ylabel() == "perplexity (lower is better)"
    figure.savefig(tmp_path / "picture.png")  # places the ticks
    bottom, top = axes.get_ylim()
    assert 0 < bottom < 18.0 < top
    shown = [tick.get_text() for tick, y in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True)]
    inside = [text for text, y in zip(shown, axes.get_yticks(), strict=True) if bottom <= y <= top]
    assert len(inside) >= 2
    assert all(float(text.replace(",", "")) > 0 for text in inside)


def test_a_perplexity_that_is_infinite_is_left_out(tmp_path):
    figure = perplexities(19.0, math.inf).plot()
    figure.savefig(tmp_path / "picture.png")
    bottom, top = figure.axes[0].get_ylim()
    assert math.isfinite(bottom)
    assert math.isfinite(top)

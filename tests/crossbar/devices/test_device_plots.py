"""Pictures of devices: what is drawn is what the device does."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from crossbar import plots, presets
from crossbar.devices import PCM
from crossbar.devices.reram import CmoReRam
from crossbar.random.streams import normal
from crossbar.tiles import ageing

DAY = 86400.0


@dataclass(frozen=True)
class Restless:
    """A device that draws its error anew at each time."""

    kind: ClassVar[str] = "restless"
    g_max: float = 10.0

    def write(self, target, seed):
        return {"target": target}

    def read(self, state, seconds, seed, noise=True):
        assert noise
        return (state["target"] + normal(tuple(state["target"].shape), (seed,))).clamp(min=0)


@pytest.mark.parametrize("name", ["ideal", "pcm", "hermes", "reram", "reram_cmo", "gain_cell"])
def test_draws_into_given_axes_and_makes_its_own(name):
    device = presets.get(name).device
    for draw in (plots.conductance_histograms, plots.programming_error, plots.population_drift):
        axes = Figure().add_subplot()
        assert draw(device, cells=50, axes=axes) is axes
        assert draw(device, cells=50) is not axes
        assert axes.get_title().startswith(f"{device.kind}: ")
        assert "µS" in axes.get_xlabel() + axes.get_ylabel()
    axes.figure.canvas.draw()  # ticks and labels can be laid out


def test_histograms_count_the_cells():
    device, times = PCM(), ("0s", "1d")
    axes = plots.conductance_histograms(device, times, levels=3, cells=4000, seed=5)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["1 d", "0 s"]
    targets = torch.tensor([0.0, 12.5, 25.0]).unsqueeze(1).expand(-1, 4000).contiguous()
    state = ageing.program(device, targets, (5, "plots"))
    drawn = iter(axes.patches)
    for row, seconds in enumerate((DAY, 0.0)):
        for cells in ageing.conductances(device, state, seconds, (5, "plots")):
            values, edges, baseline = next(drawn).get_data()
            assert baseline == row
            heights = values - row
            assert heights.max() == pytest.approx(0.9)
            expected, _ = np.histogram(cells.numpy(), edges)
            # Heights are counts over the largest; float32 edges may put a cell on the other side.
            np.testing.assert_allclose(heights / 0.9 * expected.max(), expected, atol=2)
            assert expected.sum() >= 3998
    assert [line.get_xdata()[0] for line in axes.lines] == [0.0, 12.5, 25.0]


def test_programming_error_shows_cells_and_deviation():
    device = PCM()
    axes = plots.programming_error(device, cells=2001, seed=3)
    targets = torch.linspace(0, 25, 2001)
    state = ageing.program(device, targets, (3, "plots"))
    points = axes.collections[0].get_offsets()
    np.testing.assert_allclose(points[:, 0], targets, rtol=1e-6)
    np.testing.assert_allclose(points[:, 1], state["programmed"] - targets, atol=1e-6)
    sigma = 0.26348 + 1.9650 * (targets / 25) - 1.1731 * (targets / 25) ** 2
    typical, above, below = (line.get_ydata() for line in axes.lines)
    np.testing.assert_allclose(typical, 0.0, atol=1e-6)
    np.testing.assert_allclose(above, sigma, atol=1e-5)
    np.testing.assert_allclose(below, torch.maximum(-sigma, -targets), atol=1e-5)
    inside = ((points[:, 1] <= above) & (points[:, 1] >= below)).mean()
    assert inside == pytest.approx(0.6827, abs=4 * (0.6827 * 0.3173 / 2001) ** 0.5 + 0.02)  # clamped ones count in full


def test_drift_shows_the_population_and_the_law():
    device = PCM()
    axes = plots.population_drift(device, longest="1d", cells=3000, seed=2)
    median, typical = axes.lines
    seconds = np.array(typical.get_xdata())
    assert seconds[0] == pytest.approx(1.0)
    assert seconds[-1] == pytest.approx(DAY)
    np.testing.assert_allclose(typical.get_ydata(), 25 * ((seconds + 20) / 20) ** -0.049, rtol=1e-5)
    state = ageing.program(device, torch.full((3000,), 25.0), (2, "plots"))
    last = ageing.conductances(device, state, float(seconds[-1]), (2, "plots"))
    assert median.get_ydata()[-1] == pytest.approx(float(last.quantile(0.5)), rel=1e-6)
    for band, (low, high) in zip(axes.collections, ((0.05, 0.95), (0.25, 0.75)), strict=True):
        drawn = band.get_paths()[0].vertices
        ends = drawn[np.isclose(drawn[:, 0], seconds[-1]), 1]
        assert ends.min() == pytest.approx(float(last.quantile(low)), rel=1e-6)
        assert ends.max() == pytest.approx(float(last.quantile(high)), rel=1e-6)
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["1 s", "1 min", "1 h", "1 d"]


def test_other_targets_and_times():
    axes = plots.population_drift(CmoReRam(), target=50.0, longest="1y", cells=100)
    typical = axes.lines[1].get_ydata()
    assert typical[0] == pytest.approx(50.0)
    assert typical[-1] == pytest.approx(50 - 0.08900206 * np.log(365 * DAY), rel=1e-5)
    short = plots.population_drift(presets.gain_cell().device, longest=0.02, cells=10)
    assert short.get_xlim() == pytest.approx((2e-5, 0.02))
    assert "(s)" in short.get_xlabel()


def test_devices_that_redraw_have_no_typical_cell():
    device = Restless()
    plots.conductance_histograms(device, cells=50)
    error = plots.programming_error(device, cells=2000)
    assert not error.lines
    assert error.collections[0].get_offsets()[1000:, 1].std() == pytest.approx(1.0, rel=4 / 2000**0.5)
    assert len(plots.population_drift(device, cells=50).lines) == 1

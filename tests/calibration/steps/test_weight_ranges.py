"""WeightRanges against an exhaustive float64 search, and what it is for: less error on aged chips."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from calibration import InputRanges, Recipe, WeightRanges
from crossbar import InputError, Tile, age, analog_layers, convert, presets, program, reset_reads
from crossbar.tiles.weight_errors import weight_errors

YEAR = 365 * 86400.0
SHARES = [step / 20 for step in range(20, 5, -1)] + [2 ** (step / 2) for step in range(1, 7)]


@pytest.fixture
def batches():
    draw = torch.Generator().manual_seed(1)
    mask = torch.ones(8, 16, dtype=torch.int64)
    mask[0, 12:] = 0
    return [{"x": torch.randn(8, 16, 24, generator=draw), "attention_mask": mask} for _ in range(3)]


class Layer(nn.Module):
    """Weights with a few that are far larger than the others."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(24, 10, bias=False)
        draw = torch.Generator().manual_seed(2)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(10, 24, generator=draw) / (torch.rand(10, 24, generator=draw) + 0.1))

    def forward(self, x, attention_mask=None):
        return self.linear(x)


def converted(hardware, scale="tile_column"):
    model = Layer().eval()
    convert(model, replace(hardware, tile=Tile(16, 8, scale=scale)))
    return model


def searched(model, batches, seconds):
    """The best share of each column's largest weight, one weight after another."""
    layer = analog_layers(model)["linear"]
    x = torch.cat([batch["x"][batch["attention_mask"].bool()] for batch in batches]).double()
    power, full = x.square().mean(0), x.abs().amax(1).square().mean()
    errors = weight_errors(layer.hardware, seconds)
    noise = (errors.gain * layer.hardware.output_noise) ** 2 * full
    limit = x.abs().amax(1) * layer.hardware.adc.full_scale
    weight = layer.digital.weight.detach().double()
    best = torch.zeros(2, 10, dtype=torch.float64)
    for tile, rows in enumerate((range(16), range(16, 24))):
        for output in range(10):
            largest = max(abs(float(weight[output, row])) for row in rows)
            sums = x[:, list(rows)] @ weight[output, list(rows)]
            costs = {}
            for share in SHARES:
                scale = largest * share
                cost = scale**2 * float(noise) + float((sums.abs() - scale * limit).clamp(min=0).square().mean())
                for row in rows:
                    size = abs(float(weight[output, row]))
                    level = round(min(size / scale, 1.0) * 64)
                    error = max(size - scale, 0.0) ** 2 + scale**2 * float(errors.squared[level])
                    cost += float(power[row]) * error
                costs[share] = cost
            best[tile, output] = min(costs, key=costs.get)
    return best


def test_the_range_is_the_best_of_an_exhaustive_search(batches):
    model = converted(presets.pcm())
    layer = analog_layers(model)["linear"]
    share = WeightRanges(YEAR).fit(model, batches)["linear.weight_range"] / layer.scales
    expected = searched(model, batches, YEAR)
    agree = (share.double() - expected).abs() < 1e-5
    assert agree.double().mean() > 0.9  # a weight between two levels may round either way
    assert (share.double() - expected).abs().max() < 0.051
    assert (share < 1).all()


def test_columns_whose_sums_the_adc_cannot_hold_get_larger_ranges(batches):
    """Against the same search, with an ADC that clips some columns, and then others not."""
    hardware = presets.pcm()
    hardware = replace(hardware, adc=replace(hardware.adc, full_scale=1.0))
    model = converted(hardware)
    layer = analog_layers(model)["linear"]
    share = (WeightRanges(YEAR).fit(model, batches)["linear.weight_range"] / layer.scales).double()
    expected = searched(model, batches, YEAR)
    near = (share - expected).abs() < 1e-5
    assert near.double().mean() > 0.9
    assert ((share / expected).log2().abs() < 0.51).all()
    assert (share > 1).any()
    assert (share < 1).any()


@pytest.mark.parametrize(("dac", "times", "full_scale"), [(presets.pcm().dac, 1, 10.0), (None, 30, 60.0)])
@torch.no_grad()
def test_a_column_that_agrees_with_its_inputs_is_not_clipped(dac, times, full_scale):
    """All weights and inputs of one sign: 60 unit outputs where the ADC ends at 10, or 280 of 60."""
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(8, 100, generator=draw) * 0.05
    weight[3] = 0.05 + 0.01 * torch.rand(100, generator=draw)
    x = times * (0.1 + 0.02 * torch.randn(64, 100, generator=draw))
    hardware = replace(presets.pcm(), dac=dac, adc=replace(presets.pcm().adc, full_scale=full_scale))
    error = {}
    for fitted in (False, True):
        model = nn.Sequential(nn.Linear(100, 8, bias=False))
        model[0].weight.copy_(weight)
        convert(model, hardware)
        if fitted:
            step = WeightRanges(0.0)
            step.apply(model, step.fit(model, [{"input": x}]))
        program(model, 0)
        reset_reads(model)
        wanted = x @ weight.t()
        error[fitted] = (model(x) - wanted).square().mean(0) / wanted.square().mean(0)
    assert error[False][3] > 0.5
    assert error[True][3] < 0.02


def test_older_cells_ask_for_smaller_ranges_and_ideal_ones_for_none(batches):
    mean = {}
    for seconds in (0.0, 86400.0, YEAR):
        model = converted(presets.pcm())
        fitted = WeightRanges(seconds).fit(model, batches)["linear.weight_range"]
        mean[seconds] = float((fitted / analog_layers(model)["linear"].scales).mean())
    assert mean[0.0] > mean[86400.0] > mean[YEAR]
    model = converted(presets.ideal())
    fitted = WeightRanges(YEAR).fit(model, batches)["linear.weight_range"]
    assert torch.equal(fitted, analog_layers(model)["linear"].scales)
    assert WeightRanges(YEAR).fit(model, batches).keys() == {"linear.weight_range"}


def test_columns_that_share_a_scale_share_a_range(batches):
    model = converted(presets.pcm(), scale="tile")
    fitted = WeightRanges(YEAR).fit(model, batches)["linear.weight_range"]
    assert (fitted[:, :8] == fitted[:, :1]).all()
    assert (fitted[:, 8:] == fitted[:, 8:9]).all()
    assert (fitted < analog_layers(model)["linear"].scales).any()


@torch.no_grad()
def test_aged_chips_err_less():
    draw = torch.Generator().manual_seed(3)
    weight, x = torch.randn(12, 240, generator=draw), torch.randn(64, 240, generator=draw)
    weight[:, 7] *= 4  # a line whose weights push all others of their columns down
    error = {}
    for clipped in (False, True):
        model = nn.Sequential(nn.Linear(240, 12, bias=False))
        model[0].weight.copy_(weight)
        convert(model, presets.pcm())
        if clipped:
            step = WeightRanges(YEAR)
            step.apply(model, step.fit(model, [{"input": x}]))
        wanted, squares = x @ weight.t(), []
        for seed in range(8):
            program(model, seed)
            age(model, YEAR)
            reset_reads(model)
            found = model(x)
            gain = (found * wanted).sum(0) / found.square().sum(0)
            squares.append((gain * found - wanted).square().mean())
        error[clipped] = float(torch.stack(squares).mean())
    assert error[True] < 0.9 * error[False]


@torch.no_grad()
def test_other_weights_make_up_for_clipped_ones():
    """Where inputs depend on each other; the digital layer stays as it was."""
    draw = torch.Generator().manual_seed(3)
    x = torch.randn(512, 6, generator=draw) @ torch.randn(6, 24, generator=draw)
    error = {}
    for compensate in (False, True):
        model = Layer().eval()
        convert(model, presets.pcm())
        layer = analog_layers(model)["linear"]
        step = WeightRanges(YEAR, compensate=compensate)
        fitted = step.fit(model, [{"x": x}])
        assert ("linear.weight_correction" in fitted) == compensate
        step.apply(model, fitted)
        lost = x @ (layer.effective_weight() - layer.digital.weight).t()
        error[compensate] = float(lost.square().mean() / layer.digital(x).square().mean())
        assert torch.equal(layer.digital.weight, Layer().linear.weight)
        assert (layer.effective_weight().abs() <= 1.0001 * fitted["linear.weight_range"].t()).all()
    assert error[True] < 0.1 * error[False]


def test_a_static_input_range_stays(batches):
    model = converted(presets.pcm())
    for step in (InputRanges("abs_max"), WeightRanges(YEAR)):
        step.apply(model, step.fit(model, batches))
    assert analog_layers(model)["linear"].input_range == max(float(batch["x"].abs().max()) for batch in batches)


def test_bad_ages_are_refused():
    with pytest.raises(InputError, match=r"WeightRanges seconds = -1\.0 is not allowed"):
        WeightRanges(-1.0)
    with pytest.raises(InputError, match="WeightRanges"):
        Recipe.from_dict({"name": "wrong", "steps": [{"step": "WeightRanges", "seconds": "a year"}]})

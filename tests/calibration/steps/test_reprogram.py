"""ReprogramWorst: the columns that read out worst are written and verified again."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from calibration.steps.reprogram import ReprogramWorst
from crossbar import InputError, Ledger, Tile, WriteVerify, age, analog_layers, convert, presets, program


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(48, 40)).eval()
    convert(model, replace(presets.pcm(), tile=Tile(16, 8)))
    program(model)
    return model


def deviations(model):
    """Of each tile column's cells from their targets, µS rms, ``[T_in, O]``."""
    layer = analog_layers(model)["0"]
    (plus, minus), (to, of) = layer.conductances(noise=False), layer.target_conductances()
    error = ((plus - minus) - (to - of)).square().nanmean(2)  # [T_out, T_in, C]
    return error.permute(1, 0, 2).reshape(3, 40).sqrt()


def test_the_chosen_columns_come_nearer_and_others_stay(model):
    step, before = ReprogramWorst(0.2), deviations(model)
    chosen = step.fit(model, [])["0"]
    assert chosen.shape == (3, 40)
    assert int(chosen.sum()) == 24
    assert before[chosen].mean() > 1.1 * before[~chosen].mean()  # they are the worst ones
    with Ledger() as ledger:
        step.apply(model, {"0": chosen})
    after = deviations(model)
    assert torch.equal(after[~chosen], before[~chosen])
    assert after[chosen].mean() < 0.6 * before[chosen].mean()
    # Each of the 24 columns has 16 pairs of cells, of which most take one pulse or more, ten at most.
    assert 24 * 16 <= ledger.totals()["write_pulses"] <= 24 * 32 * 10


def test_it_is_the_same_after_a_second_write(model):
    layer = analog_layers(model)["0"]
    columns = torch.zeros(3, 40, dtype=torch.bool)
    columns[1, 7] = True
    layer.reprogram(columns, WriteVerify())
    first = layer.effective_weight().clone()
    program(model)
    layer.reprogram(columns, WriteVerify())
    assert torch.equal(layer.effective_weight(), first)


def test_only_right_after_programming(model):
    step = ReprogramWorst()
    fitted = step.fit(model, [])
    age(model, "1h")
    with pytest.raises(InputError, match="is 3600 s old: write columns again right after programming"):
        step.apply(model, fitted)


@pytest.mark.parametrize("columns", [torch.ones(3, 40), torch.ones(40, 3, dtype=torch.bool)])
def test_bad_columns(model, columns):
    with pytest.raises(InputError, match=r"bad columns to write again: give bool \[3, 40\]"):
        analog_layers(model)["0"].reprogram(columns, WriteVerify())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"fraction": 0.0}, "fraction"),
        ({"fraction": 1.1}, "fraction"),
        ({"reads": 0}, "reads"),
        ({"rounds": 0}, "rounds"),
    ],
)
def test_refusals(options, named):
    with pytest.raises(InputError, match=f"{named} = .* is not allowed"):
        ReprogramWorst(**options)

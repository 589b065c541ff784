"""CompensatedProgramming: lines that are not yet written make up for the errors of those that are."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from calibration import CompensatedProgramming
from crossbar import Faults, InputError, Ledger, Tile, WriteVerify, age, analog_layers, convert, presets, program
from crossbar.nn.state import load_state, save_state
from tests.calibration.test_recipe import Sequence

PCM = replace(presets.pcm(), tile=Tile(24, 16))


def made(hardware=PCM, inputs=60, outputs=40):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sequence(nn.Linear(inputs, outputs)).eval()
    convert(model, hardware)
    program(model, 3)
    return model, analog_layers(model)["0"]


def batches(lines=60, rank=12, split=0):
    """Inputs that depend on each other: ``rank`` directions carry most of their power."""
    draw = torch.Generator().manual_seed(7)
    mix = torch.randn(rank, lines, generator=draw)
    draw = torch.Generator().manual_seed(split)
    return [
        {"x": torch.randn(4, 32, rank, generator=draw) @ mix + 0.1 * torch.randn(4, 32, lines, generator=draw)}
        for _ in range(4)
    ]


def left(layer, seconds=0.0):
    """Squared error of outputs, part of theirs, on inputs that were not fitted; a mean over 20 instants near an age."""
    x = torch.cat([batch["x"].flatten(0, 1) for batch in batches(split=1)])
    wanted, found = layer.target_weight(), 0.0
    for instant in range(20):
        layer.age(seconds + instant)
        found = found + layer.effective_weight() / 20
    layer.age(seconds)
    y, expected = x @ found.t(), x @ wanted.t()
    gain = (y * expected).sum() / y.square().sum()
    return float((gain * y - expected).square().sum() / expected.square().sum())


def test_later_lines_make_up_for_earlier_ones():
    model, layer = made()
    digital = layer.target_weight().clone()
    plain = left(layer), left(layer, 86400.0)
    layer.age(0.0)
    step = CompensatedProgramming(parts=15)
    step.apply(model, step.fit(model, batches()))
    found = left(layer), left(layer, 86400.0)
    assert found[0] < 0.35 * plain[0]
    assert found[1] < 0.85 * plain[1]  # drift comes later
    assert torch.equal(layer.target_weight(), digital)


def test_inputs_that_know_nothing_of_each_other_leave_it_as_it_is():
    model, layer = made()
    x = torch.diag(torch.arange(1.0, 61.0))
    fitted = CompensatedProgramming().fit(model, [{"x": x.unsqueeze(0)}])
    assert float(fitted["0.chip_correction"].abs().max()) < 1e-6
    assert layer.chip_correction is None


def test_errors_are_those_of_the_cells_when_all_is_written():
    _, layer = made()
    instants = [30.0]
    found = torch.cat(
        [layer.cells.write_errors(layer.cells.matrix(), slice(i, i + 7), instants) for i in range(0, 60, 7)], 1
    )
    layer.age(30.0)
    seen = layer.effective_weight()
    gains = seen.flatten() @ layer.target_weight().flatten() / layer.target_weight().square().sum()
    expected = seen / gains - layer.target_weight()
    assert (found - expected).norm() < 0.1 * expected.norm()  # each block has a gain of its own
    whole = layer.cells.write_errors(layer.cells.matrix(), slice(0, 60), instants)
    scale = layer.scales.repeat_interleave(24, 0)[:60].t()
    digits, wanted = seen / scale, layer.target_weight() / scale
    gain = (digits * wanted).sum() / wanted.square().sum()
    torch.testing.assert_close(whole, (digits / gain - wanted) * scale, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "tile", [Tile(24, 16, encoding="balanced"), Tile(24, 16, encoding="offset"), Tile(24, 16, slices=2, slice_bits=3)]
)
def test_every_layout_of_cells(tile):
    """What read-outs at one instant show is what columns see then."""
    _, layer = made(replace(PCM, tile=tile))
    found = layer.cells.write_errors(layer.cells.matrix(), slice(0, 60), [0.0])
    expected = layer.effective_weight() - layer.target_weight()
    assert (found - expected).norm() < 0.4 * expected.norm()  # a gain of the digits near 1 is taken back
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.95


def test_errors_are_those_of_a_chip_that_is_written_around_its_faults():
    _, layer = made(replace(PCM, faults=Faults(stuck_max=0.05, partners=True)))
    found = layer.cells.write_errors(layer.cells.matrix(), slice(0, 60), [0.0])
    expected = layer.effective_weight() - layer.target_weight()
    assert (found - expected).norm() < 0.4 * expected.norm()  # as above; 1.4 if the errors were of the plain targets


@pytest.mark.parametrize("partners", [False, True])
def test_stuck_cells_are_made_up_for(partners):
    stuck = replace(PCM, faults=Faults(stuck_min=0.01, stuck_max=0.01, partners=partners))
    model, layer = made(stuck)
    plain = left(layer)
    layer.age(0.0)
    step = CompensatedProgramming(parts=15)
    step.apply(model, step.fit(model, batches()))
    assert left(layer) < 0.5 * plain


def test_nothing_is_larger_than_the_column_can_hold_and_scales_stay():
    model, layer = made()
    scales = layer.scales.clone()
    step = CompensatedProgramming(parts=15)
    with Ledger() as ledger:
        step.apply(model, step.fit(model, batches()))
    assert torch.equal(layer.scales, scales)
    written = layer.cells.matrix().abs()
    assert (written <= scales.repeat_interleave(24, 0)[:60].t() * (1 + 1e-6)).all()
    assert "write_pulses" not in ledger.totals()  # each cell is written once, as was booked


def test_its_reads_are_booked():
    """By hand: 60 lines, 5 reads each, of a row of 3 tiles with 40 columns; 2 tiles of 24 lines and one of 12."""
    model, _ = made()
    with Ledger() as ledger:
        CompensatedProgramming(reads=5).fit(model, batches())
    found = ledger.totals()
    assert (found["row_activations"], found["dac_conversions"]) == (60 * 5 * 3, 60 * 5 * 3)
    assert (found["adc_conversions"], found["tile_reads"]) == (60 * 5 * 40, 60 * 5 * 3)


def test_it_belongs_to_one_chip():
    model, layer = made()
    program(model, 4)
    other = layer.effective_weight().clone()
    program(model, 3)
    step = CompensatedProgramming()
    fitted = step.fit(model, batches())
    step.apply(model, fitted)
    mine = layer.effective_weight().clone()
    program(model, 4)
    assert layer.chip_correction is None
    assert torch.equal(layer.effective_weight(), other)
    program(model, 3)
    step.apply(model, fitted)
    assert torch.equal(layer.effective_weight(), mine)


def test_it_is_saved_and_loaded(tmp_path):
    model, layer = made()
    step = CompensatedProgramming()
    step.apply(model, step.fit(model, batches()))
    age(model, "1d")
    save_state(model, tmp_path / "state.safetensors")
    again, other = made()
    load_state(again, tmp_path / "state.safetensors")
    assert torch.equal(other.chip_correction, layer.chip_correction)
    assert torch.equal(other.effective_weight(), layer.effective_weight())


def test_refusals():
    model, _ = made()
    fitted = CompensatedProgramming().fit(model, batches())
    age(model, "1h")
    with pytest.raises(InputError, match="is not at 0 s: correct what is written right after"):
        CompensatedProgramming().apply(model, fitted)
    with pytest.raises(InputError, match="cells whose errors are not known line by line"):
        CompensatedProgramming().fit(made(replace(PCM, verify=WriteVerify()))[0], batches())
    with pytest.raises(InputError, match="CompensatedProgramming parts = 0"):
        CompensatedProgramming(parts=0)

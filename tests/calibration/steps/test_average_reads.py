"""Averaged reads: which layers they are for, what they gain and what they cost."""

import pytest
import torch
from torch import nn

from calibration import AverageReads
from crossbar import Hardware, InputError, Ledger, age, analog_layers, convert, devices, program


class Two(nn.Module):
    """A layer whose outputs are all that comes out, and one that adds a hundredth to them."""

    def __init__(self):
        super().__init__()
        self.loud, self.quiet = nn.Linear(40, 24), nn.Linear(40, 24)

    def forward(self, x):
        return self.loud(x) + 0.01 * self.quiet(x)


def chip(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Two().eval()
    convert(model, Hardware(device=devices.PCM(), **options))
    program(model, 0)
    age(model, 86400.0)
    return model


def batches():
    return [{"x": torch.randn(4, 16, 40, generator=torch.Generator().manual_seed(1))}]


def test_the_layer_whose_noise_moves_outputs_is_chosen():
    found = AverageReads(reads=4, share=0.5).fit(chip(), batches())
    assert {name: int(count) for name, count in found.items()} == {"loud.averaged_reads": 4}
    assert len(AverageReads(share=0.01).fit(chip(), batches())) == 1  # at least one
    assert len(AverageReads(share=1.0).fit(chip(), batches())) == 2


def test_what_was_chosen_before_does_not_choose():
    model, step = chip(), AverageReads(reads=100, share=0.5)
    step.apply(model, step.fit(model, batches()))
    assert step.fit(model, batches()).keys() == {"loud.averaged_reads"}
    assert int(analog_layers(model)["loud"].averaged_reads) == 100


def test_outputs_err_less():
    model, inputs = chip(), batches()[0]["x"]
    with torch.no_grad():
        expected = model.loud.digital(inputs) + 0.01 * model.quiet.digital(inputs)
        before = float((model(inputs) - expected).square().mean())
        step = AverageReads(reads=16)
        step.apply(model, step.fit(model, batches()))
        after = float((model(inputs) - expected).square().mean())
    assert after < before


def test_conversions_grow_as_told():
    model, inputs = chip(), batches()[0]["x"]
    step = AverageReads(reads=5, share=0.5)
    fitted = step.fit(model, batches())
    totals = []
    for values in ({}, fitted):
        step.apply(model, values)
        with Ledger() as ledger, torch.no_grad():
            model(inputs)
        totals.append(ledger.totals()["adc_conversions"])
    assert totals[1] == totals[0] * (1 + 4 * 0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reads": 1}, "AverageReads reads = 1 is not allowed: give a whole number from 2 to 1000"),
        ({"share": 0.0}, "AverageReads share = 0.0 is not allowed"),
        ({"batches": 0}, "AverageReads batches = 0 is not allowed"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        AverageReads(**options)

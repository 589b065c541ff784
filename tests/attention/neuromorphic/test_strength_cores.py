"""Learned strengths on TrueNorth's cores."""

import pytest
import torch

from attention import LearnedStrengths, LocalWindow
from attention.neuromorphic.strength_cores import fitted_to_cores
from crossbar.errors import InputError

N, H = 300, 2  # two ranges of 256 tokens
WINDOW = LocalWindow(9)


def strengths(levels=None, by="pair"):
    made, generator = LearnedStrengths(H, N, WINDOW, by=by), torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.strength.normal_(generator=generator)
        if levels is not None:
            made.strength.copy_(
                torch.tensor(levels)[torch.randint(len(levels), made.strength.shape, generator=generator)]
            )
    return made


def test_one_number_besides_0_is_held_exactly():
    made = strengths([0.0, 0.7])
    found = fitted_to_cores(made)
    assert found.error < 1e-12
    torch.testing.assert_close(found.strengths.matrix(), made.matrix(), rtol=1e-6, atol=1e-6)
    assert {core[1:] for core in found.cores} == {(0, 0), (0, 1), (1, 0), (1, 1)}


@pytest.mark.parametrize("by", ["pair", "offset"])
def test_four_axons_a_token_come_nearer_than_one_and_both_say_how_near(by):
    made = strengths(by=by)
    shared, free = fitted_to_cores(made), fitted_to_cores(made, axons_a_token=4)
    assert 0 < free.error < 0.02 < shared.error < 0.6
    for found in (shared, free):
        wanted, held = made.matrix().detach().double(), found.strengths.matrix().detach().double()
        assert float((held - wanted).square().sum() / wanted.square().sum()) == pytest.approx(found.error, rel=1e-4)
        assert (held[:, ~WINDOW.to_dense(N)] == 0).all()
        for fit in found.cores.values():  # whole numbers of 9 bits, by neuron
            unit = fit.strengths.abs().amax(1, keepdim=True).clamp(min=1e-300) / 255
            assert float((fit.strengths / unit - (fit.strengths / unit).round()).abs().max()) < 1e-6
    again = fitted_to_cores(made)
    assert torch.equal(again.strengths.strength, shared.strengths.strength)


def test_what_a_core_computes_is_what_the_copy_computes():
    made = strengths()
    found = fitted_to_cores(made)
    spikes = torch.rand(N, generator=torch.Generator().manual_seed(1)) < 0.5
    for head in range(H):
        sums = torch.zeros(N, dtype=torch.float64)
        for (own, first, second), fit in found.cores.items():
            if own == head:
                driven = spikes[second * 256 : second * 256 + len(fit.types)].double()
                sums[first * 256 : first * 256 + fit.synapses.shape[1]] += driven @ fit.weights
        torch.testing.assert_close(found.strengths.matrix()[head].double() @ spikes.double(), sums, rtol=0, atol=1e-4)


def test_another_number_of_axons_is_refused():
    with pytest.raises(InputError, match="axons_a_token = 2"):
        fitted_to_cores(strengths(), axons_a_token=2)

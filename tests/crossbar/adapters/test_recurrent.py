"""LSTM and GRU on tiles, against torch's and against a cell written out."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from crossbar import Ledger, convert, presets, program
from tests.crossbar.conftest import QUIET, inputs64, seeded

OPTIONS = [
    {},
    {"batch_first": True, "num_layers": 2},
    {"bidirectional": True, "num_layers": 2, "bias": False},
    {"num_layers": 3, "dropout": 0.5},
]


class Model(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *inputs):
        return self.layer(*inputs)


def both(kind, **options):
    digital = Model(seeded(lambda: kind(5, 4, dtype=torch.float64, **options)))
    analog = copy.deepcopy(digital)
    convert(analog, QUIET)
    return digital, analog


def same(found, expected):
    for one, other in zip(flat(found), flat(expected), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def flat(value):
    return [part for inner in value for part in flat(inner)] if isinstance(value, tuple) else [value]


@pytest.mark.parametrize("options", [*OPTIONS, {"proj_size": 2, "bidirectional": True}])
def test_an_lstm_is_torchs(options):
    digital, analog = both(nn.LSTM, **options)
    x = inputs64(3, 2, 5)
    same(analog(x), digital(x))
    _, state = digital(x)
    same(analog(x, state), digital(x, state))


@pytest.mark.parametrize("options", OPTIONS)
def test_a_gru_is_torchs(options):
    digital, analog = both(nn.GRU, **options)
    x = inputs64(3, 2, 5)
    same(analog(x), digital(x))
    _, state = digital(x)
    same(analog(x, state), digital(x, state))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True, "num_layers": 2}])
def test_packed_sequences_are_torchs_and_drive_no_padding(kind, options):
    digital, analog = both(kind, **options)
    x, lengths = inputs64(4, 3, 5), torch.tensor([2, 4, 1])
    packed = pack_padded_sequence(x, lengths, enforce_sorted=False)
    (found, state), (expected, wanted) = analog(packed), digital(packed)
    same(pad_packed_sequence(found)[0], pad_packed_sequence(expected)[0])
    same(state, wanted)
    with Ledger() as ledger:
        analog(packed)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        counts = {counter.name: n for counter, n in ledger.by_layer[f"layer.tiles.{name}"].items()}
        gates = 16 if kind is nn.LSTM else 12
        assert counts["cell_macs"] == 7 * gates * (5 if "ih" in name else 4)


def test_one_sequence_without_a_batch_is_torchs():
    digital, analog = both(nn.LSTM)
    x = inputs64(3, 5)
    same(analog(x), digital(x))
    _, state = digital(x)
    same(analog(x, state), digital(x, state))


def test_an_lstm_is_its_cell_at_each_time():
    """Cell by cell, with what its two matrices give on a noisy chip."""
    _, analog = both(nn.LSTM)
    layer = analog.layer
    convert_like = copy.deepcopy(layer)
    x, h, c = inputs64(3, 2, 5), torch.zeros(2, 4, dtype=torch.float64), torch.zeros(2, 4, dtype=torch.float64)
    found, _ = analog(x)
    for time in range(3):
        gates = convert_like.tiles["weight_ih_l0"](x[time]) + convert_like.tiles["weight_hh_l0"](h)
        i, f, g, o = gates[:, :4], gates[:, 4:8], gates[:, 8:12], gates[:, 12:]
        c = 1 / (1 + torch.exp(-f)) * c + torch.tanh(g) / (1 + torch.exp(-i))
        h = torch.tanh(c) / (1 + torch.exp(-o))
        torch.testing.assert_close(found[time], h, rtol=0, atol=1e-12)


def test_each_time_has_noise_of_its_own():
    model = Model(seeded(lambda: nn.GRU(5, 4)))
    convert(model, presets.pcm())
    program(model, 0)
    with torch.no_grad():
        model(torch.zeros(6, 2, 5))
    assert model.layer.tiles["weight_hh_l0"].reads == 6
    assert model.layer.tiles["weight_ih_l0"].reads == 1

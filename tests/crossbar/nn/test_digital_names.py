"""A converted model loads weights under the names of the digital one."""

import copy

import pytest
import torch
from torch import nn

from crossbar import analog_layers, convert, presets, program, restore
from crossbar.nn.digital_names import as_inside


@pytest.fixture
def digital():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 4), nn.LayerNorm(4))


def test_weights_of_a_digital_model_are_loaded(digital):
    model = copy.deepcopy(digital)
    convert(model, presets.pcm())
    program(model, 1)
    before = next(iter(analog_layers(model).values())).cells.digits.clone()
    other = {name: tensor + 1 for name, tensor in digital.state_dict().items()}
    assert model.load_state_dict(other) == ([], [])  # strict: all of them, and nothing else
    assert torch.equal(next(iter(analog_layers(model).values())).cells.digits, before)  # of a chip that was written
    own = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    restore(model)
    assert all(torch.equal(tensor, other[name]) for name, tensor in model.state_dict().items())
    assert len(own) == len(other)


def test_its_own_names_and_what_is_missing_stay(digital):
    model = copy.deepcopy(digital)
    convert(model, presets.pcm())
    assert model.load_state_dict(model.state_dict()) == ([], [])
    with pytest.raises(RuntimeError, match=r'Missing key.*"0.digital.weight"'):
        model.load_state_dict({"0.bias": torch.zeros(3)})
    state = {"weight": 1}
    as_inside(None, state, "")
    assert state == {"weight": 1}

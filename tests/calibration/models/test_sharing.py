"""Copies that share weights: one memory, and changes that the other does not see."""

import torch
from torch import nn

from calibration.models.sharing import shared_copy
from crossbar import convert, presets


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(10, 6), nn.LayerNorm(6), nn.Linear(6, 8), nn.Linear(8, 6), nn.Linear(6, 10))
        net[4].weight = net[0].weight  # tied
        return net.eval()


def places(net):
    return {name: parameter.data_ptr() for name, parameter in net.named_parameters()}


def test_matrices_share_memory_and_vectors_do_not():
    net = model()
    twin = shared_copy(net)
    ours, theirs = places(net), places(twin)
    assert ours.keys() == theirs.keys()
    assert {name for name in ours if ours[name] == theirs[name]} == {"0.weight", "2.weight", "3.weight"}
    assert twin[4].weight is twin[0].weight
    assert twin[0].weight is not net[0].weight
    ids = torch.arange(10)
    assert torch.equal(twin(ids), net(ids))


def test_what_becomes_of_one_leaves_the_other():
    net = model()
    twin, ids = shared_copy(net), torch.arange(10)
    before = net(ids)
    convert(twin, presets.ideal())
    twin[1].weight.data.mul_(2)
    twin[0].weight.requires_grad_(False)
    twin[0].weight.data = torch.zeros_like(twin[0].weight)
    twin.to(torch.float64)
    assert torch.equal(net(ids), before)
    assert net[0].weight.requires_grad
    assert net[2].weight.dtype == torch.float32


def test_parameters_that_are_no_plain_ones_are_copied():
    lazy = shared_copy(nn.LazyLinear(3))
    lazy(torch.ones(1, 2))
    assert lazy.weight.shape == (3, 2)
    marked = nn.Linear(2, 2)
    marked.weight.kept = 7
    assert shared_copy(marked).weight.kept == 7

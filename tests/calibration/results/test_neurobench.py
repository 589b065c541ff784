"""NeuroBench's keys: our counts beside its own, where it can measure."""

import pytest
import torch
from neurobench.metrics.static import ConnectionSparsity, Footprint
from neurobench.metrics.workload import ActivationSparsity, SynapticOperations
from neurobench.models import TorchModel
from torch import nn

from attention import attach, parse
from calibration.results.neurobench import neurobench_workload
from crossbar import InputError, convert, presets
from tests.attention.hf_models import CAUSAL, HEAD_DIM, HEADS, LAYERS, llama, tokens


class Spiking(nn.Module):
    """Inputs of the second layer are spikes."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(6, 8), nn.Linear(8, 3), nn.ReLU()

    def forward(self, x):
        return self.relu(self.second((self.first(x) > 0).float()))


def net():
    torch.manual_seed(0)
    model = Spiking()
    with torch.no_grad():
        model.first.weight[:, 2] = 0
        model.second.weight[0] = 0
    return model


def batches():
    x = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))
    x[:, :, 4] = 0
    return list(x)


def test_our_counts_are_neurobench_s_own():
    model = net()
    ours = neurobench_workload(model, batches())
    theirs, operations, sparsity = TorchModel(model), SynapticOperations(), []
    theirs.register_hooks()
    for batch in batches():
        theirs.reset_hooks()
        predicted = theirs(batch)
        found = operations(theirs, predicted, (batch, torch.zeros(5)))
        sparsity.append(ActivationSparsity()(theirs, predicted, (batch, torch.zeros(5))))
    theirs.cleanup_hooks()
    assert ours["SynapticOperations"] == {key: pytest.approx(float(value)) for key, value in found.items()}
    assert ours["SynapticOperations"]["Effective_ACs"] > 0
    assert ours["SynapticOperations"]["Effective_MACs"] < 6 * 8
    assert ours["ActivationSparsity"] == pytest.approx(sum(sparsity) / 2)
    assert ours["ConnectionSparsity"] == ConnectionSparsity()(theirs)
    assert ours["Footprint"] == Footprint()(theirs)


def test_attention_that_neurobench_does_not_see_is_added():
    model, ids = llama(), tokens(n=20, batch=3)
    pattern = "window(4) | sinks(2)"
    attach(model, pattern)
    ours = neurobench_workload(model, [{"input_ids": ids}])
    theirs, operations = TorchModel(model), SynapticOperations()
    theirs.register_hooks()
    with torch.no_grad():
        found = operations(theirs, theirs(ids), (ids, ids))
    theirs.cleanup_hooks()
    assert CAUSAL["llama"]
    pairs = len(parse(pattern).causal().rows(20).indices)
    per_sequence = 2 * HEAD_DIM * LAYERS * HEADS
    assert ours["Attention"] == {"Effective_MACs": per_sequence * pairs, "Dense": per_sequence * 400}
    for key in ("Effective_MACs", "Dense"):
        missed = ours["SynapticOperations"][key] - float(found[key])
        assert missed == pytest.approx(ours["Attention"][key])
    analog = llama()
    attach(analog, pattern)
    convert(analog, presets.ideal())
    assert neurobench_workload(analog, [{"input_ids": ids}])["SynapticOperations"] == ours["SynapticOperations"]


def test_bad_input_is_named():
    with pytest.raises(InputError, match="attach it first"):
        neurobench_workload(llama(), [{"input_ids": tokens()}])
    with pytest.raises(InputError, match="no batch"):
        neurobench_workload(net(), [])

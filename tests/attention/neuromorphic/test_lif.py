"""Integrate-and-fire neurons against snnTorch's, and their export to NIR."""

import nir
import numpy as np
import pytest
import snntorch
import torch
from snntorch import surrogate

from attention import LocalWindow
from attention.neuromorphic.lif import LIF
from attention.neuromorphic.nir_export import to_nir
from crossbar import InputError

SURROGATES = {"atan": surrogate.atan(alpha=2.0), "fast_sigmoid": surrogate.fast_sigmoid(slope=25)}


@pytest.mark.parametrize("spike_grad", SURROGATES)
@pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
@pytest.mark.parametrize("beta", [0.0, 0.8, 1.0])
def test_spikes_potentials_and_gradients_are_snntorch_s(beta, reset, spike_grad):
    generator = torch.Generator().manual_seed(0)
    currents = torch.randn(20, 4, 7, generator=generator) + 0.3
    ours = LIF(beta, 0.9, reset, spike_grad=spike_grad, learn_beta=True, learn_threshold=True)
    theirs = snntorch.Leaky(
        beta, 0.9, SURROGATES[spike_grad], learn_beta=True, learn_threshold=True, reset_mechanism=reset
    )
    results = []
    for neuron in (ours, theirs):
        x, mem = currents.clone().requires_grad_(), torch.zeros(4, 7)
        total = 0
        for k, step in enumerate(x):
            spikes, mem = neuron(step, mem)
            total = total + (k + 1) * spikes.sum() + mem.square().sum()
        total.backward()
        results.append((total, x.grad, neuron.beta.grad, neuron.threshold.grad, spikes, mem))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_rates_are_the_numbers_that_were_encoded():
    x = torch.tensor([0.0, 0.1, 0.25, 0.6, 1.0])
    spikes = LIF(1.0).encode(x, 400)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(spikes.mean(0), x, rtol=0, atol=1 / 100)


def test_a_front_end_can_be_trained():
    torch.manual_seed(0)
    inputs, wanted = torch.rand(64, 5), torch.rand(64, 1)
    weight = torch.zeros(5, 1, requires_grad=True)
    neuron, optimizer = LIF(0.9, learn_threshold=True), None
    optimizer = torch.optim.Adam([weight, neuron.threshold], lr=0.02)
    losses = []
    for _ in range(60):
        loss = (neuron.encode(inputs @ weight, 25).mean(0) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


# NIR


@pytest.mark.parametrize("beta", [0.75, 1.0])
def test_a_graph_read_back_from_nir_does_what_the_neurons_do(tmp_path, beta):
    """Euler steps of the equations that NIR defines, in numpy, from the file alone."""
    csr, n, dt = LocalWindow(3).rows(6), 6, 0.5
    strengths = torch.randn(len(csr.indices), generator=torch.Generator().manual_seed(1))
    neurons = LIF(beta, 0.8, "zero")
    nir.write(str(tmp_path / "graph.nir"), to_nir(csr, strengths, neurons, n_keys=n, dt=dt))
    graph = nir.read(str(tmp_path / "graph.nir"))
    assert sorted(graph.edges) == [("queries", "output"), ("strengths", "queries"), ("tokens", "strengths")]
    weight, node = graph.nodes["strengths"].weight, graph.nodes["queries"]
    dense = torch.zeros(n, n, dtype=torch.float64)
    for i in range(n):
        low, high = csr.indptr[i], csr.indptr[i + 1]
        dense[i, csr.indices[low:high]] = strengths[low:high].double()
    assert np.array_equal(weight, dense.numpy())
    spikes_in = (torch.rand(15, n, generator=torch.Generator().manual_seed(2)) < 0.5).double()
    v, mem, fired = np.zeros(n), None, np.zeros(n, dtype=bool)
    for step in spikes_in:
        current = weight @ step.numpy()
        v = np.where(fired, 0.0, v)
        if isinstance(node, nir.LIF):
            v = v + dt / node.tau * (node.v_leak - v + node.r * current)
        else:
            v = v + dt * node.r * current
        fired = v > node.v_threshold
        spikes, mem = neurons(dense @ step, mem)
        assert np.array_equal(spikes.detach().numpy().astype(bool), fired)
        np.testing.assert_allclose(mem.detach().numpy(), v, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LIF(1.5), "beta = 1.5"),
        (lambda: LIF(0.5, 0.0), "threshold = 0"),
        (lambda: LIF(0.5, reset_mechanism="half"), "'half'"),
        (lambda: LIF(0.5, spike_grad="box"), "'box'"),
        (lambda: LIF(0.5).encode(torch.ones(1), 0), "steps = 0"),
        (lambda: export(LIF(0.5)), "'subtract' cannot be expressed in NIR"),
        (lambda: export(LIF(0.5, reset_mechanism="zero"), pairs=2), r"one for each of 4 pairs"),
        (lambda: export(LIF(0.5, reset_mechanism="zero"), n_keys=1), "n_keys is 1"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()


def export(neurons, pairs=4, n_keys=2):
    return to_nir(LocalWindow(2).rows(2), torch.ones(pairs), neurons, n_keys=n_keys)

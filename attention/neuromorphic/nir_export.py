"""Static attention strengths as a NIR graph, for neuromorphic tools (Pedersen 2024).

NIR describes neurons and fixed connections in continuous time. It can express that query neuron i integrates the spikes
of token j with a fixed strength, where the pattern has the pair: ``Input → Linear → LIF or IF → Output``. It cannot
express: where tokens are placed and how events are routed, queues, hops and barriers, patterns that queries select,
products of two activities (scores of queries and keys), the softmax, payloads of events, and a reset that subtracts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from attention.neuromorphic.lif import LIF
from attention.patterns.intervals import repeat
from attention.patterns.rows import CSR
from crossbar.errors import InputError, require_number

if TYPE_CHECKING:
    import nir


def to_nir(csr: CSR, strengths: Tensor, neurons: LIF, *, n_keys: int, dt: float = 1e-3) -> nir.NIRGraph:
    """The graph of a pattern's pairs with a strength each, and a neuron a query.

    With Euler steps of ``dt`` the graph computes what ``neurons`` do step by step: τ = dt / (1 − β), R = 1 / (1 − β),
    and for β = 1 an integrator with R = 1 / dt. The weight matrix is dense, as NIR has no other.

    Args:
        csr: rows of a pattern, query → tokens.
        strengths: float [pairs], in the CSR's order.
        neurons: with ``reset_mechanism="zero"``.
        n_keys: tokens.
        dt: seconds of a step.

    Raises:
        InputError: for what NIR cannot express, strengths that do not fit, and when the package ``nir`` is missing.
    """
    try:
        import nir
    except ImportError as error:
        raise InputError("the package nir is not installed: run `pip install nir`") from error

    require_number("dt", dt, above=0)
    if neurons.reset_mechanism != "zero":
        raise InputError(
            f"reset_mechanism {neurons.reset_mechanism!r} cannot be expressed in NIR, whose neurons reset to a "
            'potential: give LIF(..., reset_mechanism="zero")'
        )
    if strengths.shape != csr.indices.shape:
        raise InputError(f"strengths {list(strengths.shape)} do not fit: give one for each of {len(csr.indices)} pairs")
    if len(csr.indices) and int(csr.indices.max()) >= n_keys:
        raise InputError(f"token {int(csr.indices.max())} is attended but n_keys is {n_keys}: give all tokens")
    n_queries = len(csr.indptr) - 1
    query = repeat(torch.arange(n_queries, device="cpu"), csr.indptr.diff())
    weight = torch.zeros(n_queries, n_keys, dtype=torch.float64, device="cpu")
    weight[query, csr.indices] = strengths.detach().double().cpu()
    leak, threshold = 1 - float(neurons.beta), np.full(n_queries, float(neurons.threshold))
    node: nir.NIRNode
    if leak > 0:
        tau, r = np.full(n_queries, dt / leak), np.full(n_queries, 1 / leak)
        node = nir.LIF(tau=tau, r=r, v_leak=np.zeros(n_queries), v_threshold=threshold)
    else:
        node = nir.IF(r=np.full(n_queries, 1 / dt), v_threshold=threshold)
    return nir.NIRGraph(
        nodes={
            "tokens": nir.Input(input_type={"input": np.array([n_keys])}),
            "strengths": nir.Linear(weight=weight.numpy()),
            "queries": node,
            "output": nir.Output(output_type={"output": np.array([n_queries])}),
        },
        edges=[("tokens", "strengths"), ("strengths", "queries"), ("queries", "output")],
    )

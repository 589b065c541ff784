"""Learned strengths as TrueNorth's cores can hold them: four numbers a neuron (docs/energy.md, "Machines")."""

from __future__ import annotations

from typing import NamedTuple

import torch

from attention.learned.strengths import LearnedStrengths
from attention.neuromorphic.truenorth import AXONS, NEURONS, Fit, fit_strengths

_MOST = 255  # a strength of 9 bits with a sign


class CoreStrengths(NamedTuple):
    """Strengths fitted to cores.

    Attributes:
        strengths: a copy that computes with what the cores hold, one strength a pair.
        cores: fits by head, range of attending tokens (neurons) and range of attended tokens (axons).
        error: Σ (s − fitted s)² over Σ s².
    """

    strengths: LearnedStrengths
    cores: dict[tuple[int, int, int], Fit]
    error: float


def fitted_to_cores(strengths: LearnedStrengths, *, axons_a_token: int = 1, seed: int = 0) -> CoreStrengths:
    """Strengths as cores of 256 neurons, a token each, and 256 axons hold them, nearest in squared error.

    A core stands where some pair of its tokens is attended; pairs that are not have no synapse. A neuron's four numbers
    are whole numbers of 9 bits times a scale of its own, which its threshold and reset carry. Tokens of an offset do
    not share theirs any more. Fitted core by core: a step before deployment, not part of a forward pass.

    Args:
        strengths: what to fit, as they are in digital.
        axons_a_token: 1: 256 attended tokens a core, whose axons share four types; 4: 64, each strength a free choice
            among 16 sums.
        seed: of the fit.

    Raises:
        InputError: as `fit_strengths`.
    """
    wanted = strengths.of_pairs().detach().double()
    neurons, axons = NEURONS, AXONS // max(axons_a_token, 1)
    ranges = -(-strengths.n // axons)
    core = strengths.query // neurons * ranges + strengths.key // axons
    order = core.argsort(stable=True)
    touched, sizes = core[order].unique_consecutive(return_counts=True)
    fitted, cores = torch.empty_like(wanted), {}
    for number, pairs in zip(touched.tolist(), order.split(sizes.tolist()), strict=True):
        first, second = divmod(number, ranges)
        row, column = strengths.key[pairs] - second * axons, strengths.query[pairs] - first * neurons
        shape = (min(axons, strengths.n - second * axons), min(neurons, strengths.n - first * neurons))
        for head in range(strengths.heads):
            weights = wanted.new_zeros(shape)
            weights[row, column] = wanted[head, pairs]
            found = fit_strengths(weights, axons_a_token=axons_a_token, seed=seed)
            unit = found.strengths.abs().amax(1, keepdim=True).clamp(min=1e-300) / _MOST
            found = found._replace(strengths=(found.strengths / unit).round() * unit)
            stored = found.weights if axons_a_token == 1 else found.weights.view(shape[0], -1, shape[1]).sum(1)
            fitted[head, pairs] = stored[row, column]
            cores[head, first, second] = found
    copy = LearnedStrengths(
        strengths.heads, strengths.n, strengths.pattern, by="pair", content_free=strengths.content_free
    )
    copy.strength = torch.nn.Parameter(fitted.to(strengths.strength), strengths.strength.requires_grad)
    error = float((fitted - wanted).square().sum() / wanted.square().sum().clamp(min=1e-300))
    return CoreStrengths(copy.to(strengths.strength.device), cores, error)

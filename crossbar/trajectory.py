"""The seeded life of a set of cells: the same chip at the same time always reads the same conductances.

Every draw is keyed by seed, layer and purpose, and the 1/f fluctuation by the time too, so that a conductance depends
on no other call. Fluctuations at distinct times are independent, which is nearly right for well separated times (a 1/f
band gives a correlation of 0.003 between 1 h and 1 d).
"""

from __future__ import annotations

import torch
from torch import Tensor

from crossbar.devices import Device, State
from crossbar.streams import Key, normal


def program(device: Device, target: Tensor, key: Key) -> State:
    """Write ``target`` (µS) into the cells of ``key``: programming error and drift exponents are drawn once."""

    def draw(purpose: str) -> Tensor:
        return normal(tuple(target.shape), (*key, purpose), target.device).to(target.dtype)

    return device.program(target, draw)


def conductances(device: Device, state: State, seconds: float, key: Key, noise: bool = True) -> Tensor:
    """Conductances (µS) of programmed cells at a time, with or without the 1/f fluctuation; never below 0."""
    drifted = device.drifted(state, seconds)
    deviation = device.fluctuation(state, drifted, seconds) if noise else None
    if deviation is None:
        return drifted
    z = normal(tuple(drifted.shape), (*key, "1/f", seconds), drifted.device).to(drifted.dtype)
    return torch.addcmul(drifted, deviation, z).clamp_(min=0.0)

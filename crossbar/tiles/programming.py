"""Writing cells in rounds until they are near their targets."""

from __future__ import annotations

import torch
from torch import Tensor

from crossbar.devices import AnyDevice, RedrawDevice, State
from crossbar.hardware import WriteVerify
from crossbar.random.streams import Key, normal
from crossbar.tiles import ageing


def write(device: AnyDevice, target: Tensor, key: Key, verify: WriteVerify) -> tuple[State, int]:
    """Write ``target`` (µS), read every cell, and write those again that are not within ``verify.tolerance``.

    The first round is what `crossbar.tiles.ageing.program` writes with the same key.

    Returns:
        The state of the cells, and how many pulses (writes of one cell) it took.
    """
    state = ageing.program(device, target, key)
    error = _error(device, state, target, verify, (*key, "verify", 0))
    pulses = target.numel()
    for turn in range(1, verify.rounds):
        far = error > verify.tolerance * device.g_max
        count = int(far.sum())
        if count == 0:
            break
        pulses += count
        wanted = target[far]
        attempt = ageing.program(device, wanted, (*key, "round", turn))
        missed = _error(device, attempt, wanted, verify, (*key, "verify", turn))
        better = missed < error[far]
        error[far] = torch.where(better, missed, error[far])
        for name, cells in attempt.items():
            state[name] = state[name].masked_scatter(far, torch.where(better, cells, state[name][far]))
    return state, pulses


def _error(device: AnyDevice, state: State, target: Tensor, verify: WriteVerify, key: Key) -> Tensor:
    """Distance (µS) from the target as the verifying read sees it."""
    # Devices that are drawn anew at each time have no conductance apart from their noise.
    found = ageing.conductances(device, state, 0.0, key, noise=isinstance(device, RedrawDevice))
    if verify.read_std > 0:
        noise = normal(tuple(target.shape), key, target.device).to(target.dtype)
        found = found + noise * (verify.read_std * device.g_max)
    return (found - target).abs()

"""How much is worked on at once: on a CPU what stays in its caches, on other processors all there is."""

from __future__ import annotations

import sys

import torch


def at_once(on_cpu: int, device: torch.device) -> int:
    """The size of a piece: ``on_cpu`` on a CPU, no limit elsewhere, where each piece would be a launch of its own."""
    return on_cpu if device.type == "cpu" else sys.maxsize

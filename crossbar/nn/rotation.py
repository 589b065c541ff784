"""Rotations of a layer's inputs by Hadamard blocks, which spread what is large on few word lines over many."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from crossbar.random.streams import uniform

LARGEST = 4096
"""Word lines in a block."""


def rotate(x: Tensor, block: int) -> Tensor:
    """``x Q``, inputs ``[..., I]`` in the order and with the signs of a key of their own, mixed in blocks of lines.

    Within a block, ``Q`` is the Hadamard matrix over the root of its size, so that no line of a block keeps an outlier.
    ``Q`` is orthogonal: with weights ``W Q`` in the cells products stay as they are (QuaRot: Ashkboos et al., NeurIPS
    2024). Lines that fill no block stay as they are. The same for all layers of as many inputs, so that layers that
    read the same inputs share what the digital logic computes.
    """
    signs, places = _signs(x.shape[-1], x.device, x.dtype), _places(x.shape[-1], x.device)
    return _mixed((x * signs).index_select(-1, places), block)


def rotate_back(x: Tensor, block: int) -> Tensor:
    """``x Qᵀ``: what `rotate` was given."""
    signs, places = _signs(x.shape[-1], x.device, x.dtype), _places(x.shape[-1], x.device)
    return _mixed(x, block).index_select(-1, places.argsort()) * signs


def additions(lines: int, block: int) -> int:
    """Of a fast transform of ``lines`` inputs: ``log2(block)`` for each line in a block."""
    return lines // block * block * int(math.log2(block))


def _mixed(x: Tensor, block: int) -> Tensor:
    whole = x.shape[-1] // block * block
    mixed = (x[..., :whole].unflatten(-1, (-1, block)) @ _hadamard(block, x.device, x.dtype)).flatten(-2)
    return mixed if whole == x.shape[-1] else torch.cat([mixed, x[..., whole:]], -1)


@lru_cache(maxsize=32)
@torch.inference_mode(False)
def _hadamard(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Sylvester's matrix ``[size, size]`` over the root of its size; symmetric, its own inverse."""
    matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    for _ in range(int(math.log2(size))):
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    scaled: Tensor = matrix / size**0.5
    return scaled.to(device, dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _signs(lines: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    drawn = uniform((lines,), ("rotation", "signs", lines))
    return torch.where(drawn < 0.5, -1.0, 1.0).to(device, dtype)


@lru_cache(maxsize=64)
@torch.inference_mode(False)
def _places(lines: int, device: torch.device) -> Tensor:
    return uniform((lines,), ("rotation", "places", lines)).argsort().to(device)

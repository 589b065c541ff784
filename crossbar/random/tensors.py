"""The numbers of a stream by torch operations, on any device and without waiting for it (`crossbar.random`).

Slower than a kernel by the passes that it takes over its tensors, and nothing is copied from the host: a stream is two
numbers. Words are int64 between 0 and 2^32, of which products keep the lower 32 bits right.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_WORD = 2**32 - 1
_ROW = 1024  # normal numbers of a tensor that have words of their own
_LOG = (-0.23862109, 0.37361503, -0.40983519, 0.49816578, -0.66629348, 1.0000229, -2.00000193)
_SQRT_HALF_BITS = 0x3F3504F3


def words(start: int | Tensor, key: int | Tensor, at: Tensor) -> Tensor:
    """Words ``at`` (int64) of a stream, int64; of several where ``start`` and ``key`` are tensors of its shape."""
    x = (at + start).bitwise_and_(_WORD)
    x = _times(x ^ (x >> 17), 0xED5AD4BB)
    x = _times(x ^ (x >> 11) ^ key, 0xAC4C1B51)
    x = _times(x ^ (x >> 15), 0x31848BAB)
    return x ^ (x >> 14)


def pairs(u: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The two normal numbers of each two words, float32."""
    return _turned(radii(u), v)


def rows(start: int, key: int, groups: int, count: int, width: int, device: torch.device) -> Tensor:
    """Normal numbers ``[groups, rows, width]``, made row by row, of each row all groups."""
    half = (width + 1) // 2
    at = torch.arange(count * groups * half, device=device, dtype=torch.int64).mul_(2)
    first, second = pairs(words(start, key, at), words(start, key, at + 1))
    halves = first.view(count * groups, half), second.view(count * groups, half)[:, : width - half]
    return torch.cat(halves, 1).view(count, groups, width).transpose(0, 1).contiguous()


def part(start: int, key: int, first: int, last: int, count: int, device: torch.device) -> Tensor:
    """Normal numbers ``first`` to ``last`` (excluded) of a tensor of ``count``, in rows of 1,024."""
    whole, begin, end = count // _ROW, first // _ROW, -(-last // _ROW)
    full = rows(start + begin * _ROW, key, 1, max(min(end, whole) - begin, 0), _ROW, device).view(-1)
    rest = rows(start + whole * _ROW, key, 1, 1, count % _ROW if end > whole else 0, device).view(-1)
    return torch.cat((full, rest))[first - begin * _ROW : last - begin * _ROW]


def scattered(start: int, key: int, number: Tensor, row: Tensor, shift: Tensor, element: Tensor, width: int) -> Tensor:
    """Normal numbers ``[Q G, R, L]`` of places in many streams: `crossbar.random.streams.Stream.scattered`."""
    half = (width + 1) // 2
    second = element >= half
    pair = torch.where(second, element - half, element)
    own_start = words(start, key, 2 * number)[:, None, :, None]
    own_key = words(start, key, 2 * number + 1)[:, None, :, None]
    at = (row * (2 * half))[:, :, None] + (shift * (2 * half) + 2 * pair)[:, None, :]  # [G, R, L]
    one, other = pairs(words(own_start, own_key, at), words(own_start, own_key, at + 1))
    return torch.where(second[:, None, :], other, one).flatten(0, 1)


def radii(u: Tensor) -> Tensor:
    """Distances from the origin, float32, of the words ``u``."""
    code = (u >> 9).float().add_(0.5)
    bits = code.view(torch.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    y = (bits - (exponent << 23)).view(torch.float32).sub_(1.0)
    log = torch.full_like(y, _LOG[0])
    for coefficient in _LOG[1:]:
        log = _fma(log, y, coefficient)
    # float64's root, rounded again, is float32's on every device
    return _fma(23.0 - exponent.float(), 2 * math.log(2), log * y).double().sqrt_().float()


def _turned(radius: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    low = v & 0x3FFF
    angle = torch.where(low < 0x2000, low, low - 0x4000).float().mul_(_f32(math.pi / 2**15))
    square = angle * angle
    sine = angle * _fma(square, _fma(square, 8.3321609e-3, -0.16666655), 1.0)
    cosine = _fma(square, _fma(square, _fma(square, -1.3600e-3, 4.16630e-2), -0.49999994), 1.0)
    swapped, turned = (v & 0x4000) != 0, (v & 0x8000) != 0
    one = radius * torch.where(swapped, sine, cosine)
    other = radius * torch.where(swapped, cosine, sine)
    return torch.where(turned, -one, one), torch.where(turned ^ swapped, -other, other)


def _times(x: Tensor, factor: int) -> Tensor:
    return (x * factor).bitwise_and_(_WORD)


def _fma(one: Tensor, other: Tensor | float, added: Tensor | float) -> Tensor:
    """``one * other + added`` of float32 numbers, through float64, which has the product exactly.

    The sum is rounded twice. That this changes no bit of any radius or angle is tested for all of them.
    """
    wide = other.double() if isinstance(other, Tensor) else _f32(other)
    return (one.double() * wide).add_(added.double() if isinstance(added, Tensor) else _f32(added)).float()


def _f32(number: float) -> float:
    """The float32 nearest to a number."""
    return float(np.float32(number))

"""Device noise for training at the price of a table look-up, drawn anew at each step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from crossbar.devices import AnyDevice, Device, RedrawDevice, span, window
from crossbar.hardware import Hardware, WriteVerify
from crossbar.native import gpu
from crossbar.native.sizes import at_once
from crossbar.random.streams import Key, Stream, normal
from crossbar.tiles import ageing, programming

_LEVELS = 256  # steps of the target between 0 and g_max
QUANTILES = 256
_GROUPS = 2**14  # of cells written at each level
_PIECE = 16  # levels written at once
_PURPOSES = 6  # for which a device draws evenly spread numbers
_CHUNK = 2**15  # cells worked on at once, so that what a look-up needs stays in cache


def noisy_digits(weight: Tensor, per_digit: Tensor, digits: Tensor) -> Tensor:
    """``digits`` ``[S, I, O]`` with the gradient of ``weight / per_digit`` ``[I, O]``, straight through the cells."""
    noisy: Tensor = _ThroughCells.apply(weight, per_digit, digits)  # type: ignore[no-untyped-call]  # torch's own
    return noisy


@lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def error_table(device: AnyDevice, verify: WriteVerify | None, seconds: float) -> Tensor:
    """Quantiles of ``G - target`` (µS) at a time, ``[257, 256]`` float32: a row a target from g_min to g_max.

    From cells that are written, aged and read as any others are (`sampled`), so it holds for every device: the skew of
    cells clamped at 0 µS, the drift of their mean, programming error and 1/f noise together. Each row has the mean and
    the deviation of its cells.
    """
    g_min, width = span(device)
    grid = torch.linspace(0.0, width, _LEVELS + 1, device="cpu") + g_min
    rows = [
        quantiles(cells[0].double() - targets[0].double().unsqueeze(1))
        for targets, cells in sampled(device, grid.unsqueeze(0), verify, seconds, "training statistics")
    ]
    return torch.cat(rows)


def sampled(
    device: AnyDevice, targets: Tensor, verify: WriteVerify | None, seconds: float, purpose: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Conductances (µS) of many groups of ``K`` cells that are written to ``targets [K, L]``, and read at a time.

    Their draws are not random but evenly spread (a Sobol sequence, with the same cells for every target), so that
    16,384 groups have the mean of all cells to 0.0002 of their deviation. Where a device draws for itself they are
    random, which gives it to 0.008, and where cells are verified half of them are, to 0.011.

    Yields:
        Piece by piece along L: the targets ``[K, l]``, and the cells ``[K, l, groups]``.
    """
    spread = verify is None and not isinstance(device, RedrawDevice)
    groups = _GROUPS if verify is None else _GROUPS // 2  # rounds take time
    for piece, wanted in enumerate(targets.split(_PIECE, 1)):
        target = wanted.unsqueeze(2).expand(*wanted.shape, groups).contiguous()
        key = (0, purpose, piece)
        if spread:
            cells = _spread(cast(Device, device), target, seconds, key)
        else:
            state = programming.write(device, target, key, verify)[0] if verify else ageing.program(device, target, key)
            cells = ageing.conductances(device, state, seconds, key)
        ageing.require_conductances(device, cells, seconds, purpose)
        yield wanted, cells


def _spread(device: Device, target: Tensor, seconds: float, key: Key) -> Tensor:
    """Cells ``[K, l, groups]`` whose draws are evenly spread over the groups, and independent within one."""
    count, _, groups = target.shape
    numbers, purposes = _even_normals(groups, count * _PURPOSES), dict[str, int]()

    def draw(purpose: str) -> Tensor:
        first = purposes.setdefault(purpose, len(purposes)) * count
        if first < len(numbers):
            whole = numbers[first : first + count].unsqueeze(1)
        else:
            whole = normal((count, 1, groups), (*key, purpose), target.device)
        return whole.expand_as(target).reshape(-1)

    state = device.program(target.view(-1), draw)
    drifted = device.drifted(state, seconds)
    deviation = device.fluctuation(state, drifted, seconds)
    low, high = window(device)
    if deviation is not None:
        drifted = torch.addcmul(drifted, deviation, draw("1/f")).clamp_(low, high)
    elif high < math.inf:
        drifted = drifted.clamp(low, high)
    return drifted.view(target.shape)


@lru_cache(maxsize=2)
def _even_normals(count: int, dimensions: int) -> Tensor:
    """Normal numbers ``[dimensions, count]``: the middles of ``count`` (a power of 2) equal parts in each dimension."""
    with torch.device("cpu"):
        places: Tensor = SobolEngine(dimensions).draw(count, dtype=torch.float64)
    normals: Tensor = torch.special.ndtri(places + 0.5 / count)
    return normals.t().float().contiguous()


def quantiles(samples: Tensor) -> Tensor:
    """256 equally likely values for each row of samples (a multiple of 256), float32, with its mean and deviation.

    A value is the mean of as many neighbouring samples as it stands for. Where these are all alike, as those of cells
    that end at 0 µS are, the value is theirs; the others are spread a little about their mean, within what they stand
    for, to make up for the deviation that is lost.
    """
    parts = samples.float().sort(1).values.view(len(samples), QUANTILES, -1)
    alike, found = parts[..., 0] == parts[..., -1], parts.double().mean(2)
    whole = samples.double().var(1, correction=0, keepdim=True) * QUANTILES
    lost = whole - (found - found.mean(1, keepdim=True)).square().sum(1, keepdim=True)
    middle = found.masked_fill(alike, 0.0).sum(1, keepdim=True) / (~alike).sum(1, keepdim=True).clamp(min=1)
    apart = (found - middle).masked_fill(alike, 0.0)
    own = apart.square().sum(1, keepdim=True)
    stretch = (1 + lost.clamp(min=0) / own.clamp(min=1e-30)).sqrt()
    return (middle + apart * stretch).clamp(parts[..., 0], parts[..., -1]).float()


def written(targets: Tensor, hardware: Hardware, seconds: float, draws: Stream, spread: float = 1.0) -> Tensor:
    """Cells (µS) written to ``targets`` and read at a time, from 8 random bits each; overwrites ``targets``.

    Targets are rounded to 1/256 of the window where their error is looked up, not where it is added. ``spread``
    multiplies what errors deviate from their mean.
    """
    device = hardware.device
    table = error_table(device, hardware.verify, seconds)  # type: ignore[arg-type]  # devices are frozen, so hashable
    if spread != 1.0:
        table = torch.lerp(table.mean(1, keepdim=True), table, spread)
    table = table.to(targets.device, targets.dtype).view(-1)
    (g_min, width), (low, high) = span(device), window(device)
    if gpu.serves(targets.device) and targets.dtype == torch.float32:
        from crossbar.tiles import triton_kernels

        triton_kernels.written(targets, table, (low, high), (g_min, width), draws)
        return targets
    size = min(at_once(_CHUNK, targets.device), max(targets.numel(), 1))
    cells_drawn = zip(targets.view(-1).split(size), draws.bytes((targets.numel(),)).split(size), strict=True)
    for cells, drawn in cells_drawn:
        row = (cells - g_min).mul_(_LEVELS / width).round_().int()
        cells += table.index_select(0, row.mul_(QUANTILES).add_(drawn))
        cells.clamp_(low, high)
    return targets


class _ThroughCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, per_digit: Tensor, digits: Tensor) -> Tensor:
        ctx.save_for_backward(per_digit)
        return digits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad.sum(0) if len(grad) > 1 else grad[0]) / ctx.saved_tensors[0], None, None

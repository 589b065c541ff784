"""Device noise for training at the price of a table look-up, drawn anew at each step."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from crossbar import programming, trajectory
from crossbar.devices import AnyDevice, span, window
from crossbar.hardware import Hardware, WriteVerify
from crossbar.streams import ReadNoise

_LEVELS = 256  # steps of the target between 0 and g_max
QUANTILES = 256
_SAMPLES = 4096  # cells written at each level
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

    From 4,096 cells a row that are written, aged and read as any others are, so it holds for every device: the skew of
    cells clamped at 0 µS, the drift of their mean, programming error and 1/f noise together. Each row has the mean
    and the deviation of its cells; a quantile is the mean of 16 of them.
    """
    g_min, width = span(device)
    grid = (torch.linspace(0.0, width, _LEVELS + 1) + g_min).unsqueeze(1).expand(-1, _SAMPLES).contiguous()
    return quantiles(sampled(device, grid, verify, seconds, "training statistics").double() - grid)


def sampled(device: AnyDevice, target: Tensor, verify: WriteVerify | None, seconds: float, purpose: str) -> Tensor:
    """Conductances (µS) of cells that are written to ``target`` as any others, and read at a time."""
    key = (0, purpose)
    state = programming.write(device, target, key, verify)[0] if verify else trajectory.program(device, target, key)
    cells = trajectory.conductances(device, state, seconds, key)
    trajectory.require_conductances(device, cells, seconds, purpose)
    return cells


def quantiles(samples: Tensor) -> Tensor:
    """256 equally likely values for each row of samples (a multiple of 256), float32, with its mean and deviation.

    A value is the mean of as many neighbouring samples as it stands for, spread a little to make up for that.
    """
    found = samples.sort(1).values.view(len(samples), QUANTILES, -1).mean(2)
    mean, spread = found.mean(1, keepdim=True), found.std(1, correction=0, keepdim=True)
    whole = samples.std(1, correction=0, keepdim=True)
    return (mean + (found - mean) * torch.where(spread > 0, whole / spread.clamp(min=1e-30), 1.0)).float()


def written(targets: Tensor, hardware: Hardware, seconds: float, draws: ReadNoise) -> Tensor:
    """Cells (µS) written to ``targets`` and read at a time, from 8 random bits each; overwrites ``targets``.

    Targets are rounded to 1/256 of the window where their error is looked up, not where it is added.
    """
    device = hardware.device
    table = error_table(device, hardware.verify, seconds)  # type: ignore[arg-type]  # devices are frozen, so hashable
    table = table.to(targets.device, targets.dtype).view(-1)
    (g_min, width), (low, high) = span(device), window(device)
    for cells in targets.view(-1).split(_CHUNK):
        row = (cells - g_min).mul_(_LEVELS / width).round_().int()
        cells += table.index_select(0, row.mul_(QUANTILES).add_(draws.bytes((len(cells),))))
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

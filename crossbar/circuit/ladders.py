"""Closed forms of single lines, on any device, for arrays of which each read opens other rows.

A line with its cells to 0 V is a ladder. Walked along towards its grounded end, all that lies behind a node is one
admittance with one source (Norton's theorem), and a resistance R in series divides both by ``1 + R Y``. Closed rows are
nothing but resistance, so a ladder has a step for each open one. Admittances here are times the resistance of a
segment, so that all of them are ratios, and sums of positive terms alone: float32 keeps its precision.

Word lines solved with bit lines at 0 V and then bit lines with the word lines of other rows at 0 V give the first term
of a transfer matrix (`crossbar.circuit.kernels`). Where a single row is open there is no other, and it is exact. All is
torch; on a CPU the walks along bit lines are compiled for float32 (`crossbar.circuit.ladder_kernels`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_MICRO = 1e-6


def word_lines(conductance: Tensor, r_row: float, both: bool = False) -> Tensor:
    """Currents (µA) that the cells of word lines ``[..., C]`` (µS) take per volt of the driver, bit lines at 0 V.

    Args:
        conductance: of the cells of each line, the first one next to the driver.
        r_row: of a segment, ohms.
        both: the line is driven from its other end too.
    """
    if r_row == 0:
        return conductance.clone()
    load = (conductance * (r_row * _MICRO)).unbind(-1)
    volts = _along(load, both)
    if both:
        volts = [one + other for one, other in zip(volts, reversed(_along(load[::-1], True)), strict=True)]
    return torch.stack(volts, -1) * conductance


def _along(load: Sequence[Tensor], grounded: bool) -> list[Tensor]:
    """Volts of a ladder's nodes under 1 V a segment before the first; the far end is open or a segment from 0 V."""
    behind = torch.full_like(load[0], float(grounded))
    parts = []
    for own in reversed(load):
        whole = own + behind
        parts.append((whole + 1).reciprocal_())
        behind = whole * parts[-1]
    volts = [parts.pop()]
    while parts:
        volts.append(volts[-1] * parts.pop())
    return volts


def shares(load: Tensor, segments: Tensor) -> Tensor:
    """Part of a current into each node of bit lines that their amplifiers get, ``[L, ..., C]``; overwrites ``load``.

    By reciprocity it is also the volts of each node under 1 V in the place of the amplifier.

    Args:
        load: of the rows, the one furthest from the amplifiers first, ``[L, ..., C]``: siemens times ohms of a segment.
        segments: from each row to the next and from the last to the amplifier, ``[L, ...]`` that broadcasts.
    """
    behind: Tensor | None = None
    for own, step in zip(load, segments, strict=True):
        whole = own if behind is None else behind.add_(own)
        part = torch.mul(whole, step).add_(1.0).reciprocal_()
        behind = whole * part
        own.copy_(part)
    for row in reversed(range(len(load) - 1)):
        load[row].mul_(load[row + 1])
    return load


def collected(load: Tensor, source: Tensor, opened: Tensor | None, drive: Tensor, segments: Tensor) -> Tensor:
    """Currents that amplifiers get of bit lines, ``[P, R, C]``, of P arrays under R reads that open rows of their own.

    Args:
        load: of the rows as in `shares`, ``[P, L, C]``.
        source: current of each cell under a drive of 1, ``[P, L, C]``.
        opened: rows that a read opens, bool ``[P, R, L]``; None: all.
        drive: of the rows, ``[P, R, L]``, 0 where a row is closed.
        segments: as in `shares`, ``[P, L]``.
    """
    shape = (*drive.shape[:2], load.shape[2])
    if is_compiled(load):
        from crossbar.circuit import ladder_kernels  # numba takes half a second to load

        return _run(ladder_kernels.collect, load, source, opened, drive, segments, load.new_empty(shape))
    behind, current = load.new_zeros(shape), load.new_zeros(shape)
    for row in range(load.shape[1]):
        own = load[:, None, row]
        if opened is None:
            behind.add_(own)
        else:
            behind.addcmul_(opened[..., row, None].to(load.dtype), own)
        current.addcmul_(drive[..., row, None], source[:, None, row])
        part = torch.mul(behind, segments[:, row, None, None]).add_(1.0).reciprocal_()
        behind.mul_(part)
        current.mul_(part)
    return current


def reached(load: Tensor, source: Tensor, opened: Tensor | None, volts: Tensor, segments: Tensor) -> Tensor:
    """Currents of word lines, ``[P, R, L]``, while volts ``[P, R, C]`` are in the place of the amplifiers.

    What closed rows get is no number of any circuit. Arguments are those of `collected`.
    """
    if is_compiled(load):
        from crossbar.circuit import ladder_kernels

        found = load.new_empty(*volts.shape[:2], load.shape[1])
        return _run(ladder_kernels.reach, load, source, opened, volts, segments, found)
    loads = load.transpose(0, 1)[:, :, None]  # [L, P, 1, C]
    if opened is None:
        loads = loads.expand(-1, -1, volts.shape[1], -1).contiguous()
    else:
        loads = opened.permute(2, 0, 1)[..., None] * loads
    parts = shares(loads, segments.t()[..., None, None]).mul_(volts)
    return torch.einsum("lprc,plc->prl", parts, source)


def is_compiled(load: Tensor) -> bool:
    """Whether `collected` and `reached` of these numbers are compiled: float32 on a CPU."""
    return load.device.type == "cpu" and load.dtype == torch.float32


def _run(
    kernel: Any, load: Tensor, source: Tensor, opened: Tensor | None, drive: Tensor, segments: Tensor, found: Tensor
) -> Tensor:
    from crossbar.native import openmp

    given = (load, source, None if opened is None else opened.to(torch.uint8), drive, segments)
    whole = [x if x is None else x.contiguous() for x in given]
    openmp.run(kernel, found.shape[:2].numel(), *whole, found, *found.shape[:2], *load.shape[1:])
    return found


def first_order(conductance: Tensor, r_row: float, r_col: float, both: bool = False) -> Tensor:
    """The first term of transfer matrices ``[..., R, C]`` (µS), sensed at the bottom."""
    driven = word_lines(conductance, r_row, both)
    load = (conductance * (r_col * _MICRO)).movedim(-2, 0).contiguous()
    one = load.new_ones(()).expand(len(load))
    return driven * shares(load, one).movedim(0, -2)


def rows_alone(conductance: Tensor, r_row: float, r_col: float, both: bool = False, top: bool = False) -> Tensor:
    """Currents (µA per volt) of the cells of each row ``[..., R, C]`` (µS) while all other rows are closed; exact.

    Args:
        conductance: of the cells.
        r_row, r_col: of a segment, ohms.
        both: word lines are driven from both ends.
        top: bit lines are sensed at the top.
    """
    rows = torch.arange(conductance.shape[-2], dtype=conductance.dtype, device=conductance.device)
    segments = rows + 1 if top else len(rows) - rows
    in_series = conductance / (1 + conductance * (r_col * _MICRO) * segments.unsqueeze(1))
    return word_lines(in_series, r_row, both)

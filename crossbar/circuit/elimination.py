"""Exact solution of an array by block elimination, for any resistances, in torch on any device.

Each word line is eliminated (its equations are tridiagonal), which leaves a dense admittance ``Y_k [C, C]`` between the
bit lines at row k. The bit lines' equations are then block tridiagonal with couplings of -1 between neighbouring rows,
so one Cholesky factorisation a row eliminates them from the top to the bottom: ``O(R C³)`` for all inputs at once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Ends(NamedTuple):
    """Which ends of the lines are connected through a segment: word lines to a driver, bit lines to a virtual ground.

    At least one end of the word lines is, and of the bit lines.
    """

    left: bool = True
    right: bool = False
    top: bool = False
    bottom: bool = True

    @property
    def transposed(self) -> Ends:
        """Those of the network with rows and columns exchanged."""
        return Ends(self.top, self.bottom, self.left, self.right)


def transfer(conductance: Tensor, r_row: float, r_col: float, ends: Ends) -> Tensor:
    """Currents at the bottom of each bit line, which is open at the top, per volt on each word line, ``[T, R, C]`` (S).

    Args:
        conductance: of the cells, ``[T, R, C]`` (S), float64.
        r_row, r_col: of a segment, ohms.
        ends: what is connected; ``bottom`` alone of the bit lines.
    """
    assert ends.bottom
    assert not ends.top
    arrays, rows, columns = conductance.shape
    found = conductance.new_empty(arrays, columns, rows)
    inverse: Tensor | None = None
    for k in range(rows):
        across, volts = _word_line(conductance[:, k], r_row, ends)
        inverse = _inverse(_block(conductance[:, k], across, inverse, r_row, r_col, _degree(k, rows, ends)))
        found[:, :, k] = conductance[:, k] * volts
        found[:, :, : k + 1] = inverse @ found[:, :, : k + 1]
    return found.transpose(1, 2).contiguous()


def cell_volts(conductance: Tensor, voltage: Tensor, r_row: float, r_col: float, ends: Ends) -> Tensor:
    """Voltages across the cells, ``[T, B, R, C]``, under voltages on the word lines, ``[T, B, R]``.

    Conductances are in siemens, ``[T, R, C]``, float64. It keeps ``R C²`` numbers of each array.
    """
    arrays, rows, columns = conductance.shape
    inverses: list[Tensor] = []
    currents: list[Tensor] = []
    lines: list[tuple[Tensor, Tensor]] = []
    for k in range(rows):
        across, volts = _word_line(conductance[:, k], r_row, ends)
        before = inverses[-1] if inverses else None
        inverses.append(_inverse(_block(conductance[:, k], across, before, r_row, r_col, _degree(k, rows, ends))))
        source = (conductance[:, k] * volts).unsqueeze(2) * voltage[:, None, :, k]
        currents.append(inverses[k] @ (source + currents[k - 1] if k else source))
        lines.append((across, volts))
    found = voltage.new_empty(arrays, voltage.shape[1], rows, columns)
    for k in reversed(range(rows)):
        if k < rows - 1:
            currents[k] += inverses[k] @ currents[k + 1]
        across, volts = lines[k]
        bit = currents[k] * r_col
        word = volts.unsqueeze(2) * voltage[:, None, :, k] + across @ (r_row * conductance[:, k].unsqueeze(2) * bit)
        found[:, :, k] = (word - bit).transpose(1, 2)
    return found


def _word_line(cells: Tensor, r_row: float, ends: Ends) -> tuple[Tensor, Tensor]:
    """Inverse of a word line's matrix ``[T, C, C]``, and its volts ``[T, C]`` under 1 V with bit lines at 0 V."""
    columns = cells.shape[1]
    degree = cells.new_full((columns,), 2.0)
    degree[0] -= float(not ends.left)
    degree[-1] -= float(not ends.right)
    matrix = torch.diag_embed(degree + r_row * cells)
    if columns > 1:
        step = torch.arange(columns - 1, device=cells.device)
        matrix[:, step, step + 1] = matrix[:, step + 1, step] = -1.0
    inverse = _inverse(matrix)
    return inverse, inverse[:, :, 0] * float(ends.left) + inverse[:, :, -1] * float(ends.right)


def _degree(k: int, rows: int, ends: Ends) -> float:
    """Segments that a bit line's node at row k has."""
    return 2.0 - (k == 0 and not ends.top) - (k == rows - 1 and not ends.bottom)


def _block(cells: Tensor, across: Tensor, before: Tensor | None, r_row: float, r_col: float, degree: float) -> Tensor:
    """The matrix ``[T, C, C]`` of the bit lines at a row; ``before`` is what the rows above leave of theirs."""
    passed = cells.unsqueeze(2) * across * (-r_row * r_col) * cells.unsqueeze(1)
    passed.diagonal(dim1=1, dim2=2).add_(r_col * cells + degree)
    return passed if before is None else passed - before


def _inverse(matrix: Tensor) -> Tensor:
    """Of symmetric positive definite matrices, by Cholesky: batched LU of torch hangs with two threads of some MKLs."""
    found: Tensor = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return found

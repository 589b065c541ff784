"""The slow, obvious solution: Kirchhoff's current law at every node, by scipy's sparse LU, in float64.

Everything in this package is tested against it, and shares no code with it. It is the only one that knows cells that
are not ohmic: Newton's method over the same matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from crossbar.errors import InputError

Array = NDArray[np.float64]
Curve = Callable[[Array], tuple[Array, Array]]
"""What a cell of conductance 1 carries at a voltage, and the derivative of that."""

_ROUNDS = 100
_SMALL = 1e-12  # of the largest voltage: a Newton step that changes no node by more ends the iteration


def solve(
    conductance: Array,
    voltage: Array,
    r_row: float,
    r_col: float,
    drive: str = "left",
    sense: str = "bottom",
    curve: Curve | None = None,
) -> tuple[Array, Array]:
    """Currents at the ends of the bit lines and voltages across the cells of one array.

    A segment of 0 ohms makes one node of its two, which here is a resistance of 1e-9 ohms beside the others.

    Args:
        conductance: ``[R, C]``, µS.
        voltage: of the word lines' drivers, ``[B, R]``, V.
        r_row, r_col: of each segment of a word line and of a bit line, ohms.
        drive: ``left`` or ``both``: ends of the word lines that are driven.
        sense: ``bottom`` or ``top``: end of the bit lines at virtual ground.
        curve: of cells that are not ohmic, whose current is the conductance times this; None: ohmic.

    Returns:
        ``[B, C]``, µA, and ``[B, R, C]``, V.

    Raises:
        InputError: where Newton's method does not come to an end.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.linalg import splu

    rows, columns = conductance.shape
    word = np.arange(rows * columns).reshape(rows, columns)
    bit = word + rows * columns
    g_row, g_col = 1e6 / max(r_row, 1e-9), 1e6 / max(r_col, 1e-9)  # µS
    wires = [
        (word[:, :-1].ravel(), word[:, 1:].ravel(), np.full(rows * (columns - 1), g_row)),
        (bit[:-1].ravel(), bit[1:].ravel(), np.full((rows - 1) * columns, g_col)),
    ]
    driven = [word[:, 0]] + ([word[:, -1]] if drive == "both" else [])
    grounded = bit[-1] if sense == "bottom" else bit[0]
    size = 2 * rows * columns

    def matrix(cells: Array) -> object:
        a, b, g = (
            np.concatenate(parts) for parts in zip(*wires, (word.ravel(), bit.ravel(), cells.ravel()), strict=True)
        )
        ends = np.concatenate([*driven, grounded])
        to_ends = np.concatenate([*(np.full(rows, g_row) for _ in driven), np.full(columns, g_col)])
        i, j = np.concatenate([a, b, a, b, ends]), np.concatenate([a, b, b, a, ends])
        return splu(coo_array((np.concatenate([g, g, -g, -g, to_ends]), (i, j)), shape=(size, size)).tocsc())

    found, across = np.empty((len(voltage), columns)), np.empty((len(voltage), rows, columns))
    linear = matrix(conductance)
    for index, volts in enumerate(voltage):
        source = np.zeros(size)
        for nodes in driven:
            source[nodes] += g_row * volts
        nodes = linear.solve(source)  # type: ignore[attr-defined]  # scipy's
        for _ in range(0 if curve is None else _ROUNDS):
            assert curve is not None
            u = nodes[word] - nodes[bit]
            carried, slope = curve(u)
            extra = source.copy()  # what the tangent of each cell leaves over is a source across it
            excess = conductance * (carried - slope * u)
            extra[word.ravel()] -= excess.ravel()
            extra[bit.ravel()] += excess.ravel()
            after = matrix(conductance * slope).solve(extra)  # type: ignore[attr-defined]  # scipy's
            moved, nodes = np.abs(after - nodes).max(), after
            if moved <= _SMALL * max(np.abs(volts).max(), 1e-30):
                break
        else:
            if curve is not None:
                raise InputError(f"Newton's method did not converge in {_ROUNDS} rounds: give smaller voltages")
        found[index] = nodes[grounded] * g_col
        across[index] = nodes[word] - nodes[bit]
    return found, across

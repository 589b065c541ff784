"""What wire resistance, which is not modelled yet, takes from the product of one array: a nodal solve.

    python benchmarks/wires.py                 # 256 x 256 cells, 1 ohm a segment
    python benchmarks/wires.py --size 128 --ohms 2

Word lines are driven from the left and bit lines sensed at the bottom, at virtual ground. A resistance lies between any
two neighbours of a line, and between a line's end and its driver or amplifier: Kirchhoff's current law at every
crossing, by scipy's sparse LU. Normal weights, a column's largest at 25 µS, positive and negative
ones in arrays of their own; normal inputs.
"""

import argparse

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu


def currents(conductance: np.ndarray, volts: np.ndarray, ohms: float) -> np.ndarray:
    """Currents (µA) ``[B, C]`` at the ends of the bit lines, for conductances ``[R, C]`` (µS) and volts ``[B, R]``."""
    rows, columns = conductance.shape
    word = np.arange(rows * columns).reshape(rows, columns)  # nodes of the word lines, then of the bit lines
    bit = word + rows * columns
    wire = 1e6 / ohms  # µS
    pairs = [
        (word.ravel(), bit.ravel(), conductance.ravel()),
        (word[:, :-1].ravel(), word[:, 1:].ravel(), np.full(rows * (columns - 1), wire)),
        (bit[:-1].ravel(), bit[1:].ravel(), np.full((rows - 1) * columns, wire)),
    ]
    a, b, g = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    ends = np.concatenate([word[:, 0], bit[-1]])  # a segment to the driver, and one to the sensing amplifier
    to_ends = np.full(len(ends), wire)
    i, j = np.concatenate([a, b, a, b, ends]), np.concatenate([a, b, b, a, ends])
    size = 2 * rows * columns
    matrix = coo_array((np.concatenate([g, g, -g, -g, to_ends]), (i, j)), shape=(size, size)).tocsc()
    driven = np.zeros((size, len(volts)))
    driven[word[:, 0]] = wire * volts.T
    return (splu(matrix).solve(driven)[bit[-1]] * wire).T


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="word lines and bit lines")
    parser.add_argument("--ohms", type=float, default=1.0, help="resistance of a segment")
    options = parser.parse_args()
    draw = np.random.default_rng(0)
    weight = draw.standard_normal((options.size, options.size))
    weight *= 25 / np.abs(weight).max(0)
    volts = draw.standard_normal((16, options.size))
    ideal = volts @ weight
    found = currents(weight.clip(min=0), volts, options.ohms) - currents((-weight).clip(min=0), volts, options.ohms)
    error = np.linalg.norm(found - ideal) / np.linalg.norm(ideal)
    print(f"{options.size} x {options.size} cells, {options.ohms:g} ohm a segment: error {error:.1%} of the product")


if __name__ == "__main__":
    main()

"""The float64 oracle of mapping: what conductances one weight becomes, in plain Python, and what they stand for."""

from __future__ import annotations

from crossbar.hardware import Tile

Cells = tuple[list[float], list[float]]
"""Conductances (µS) of G⁺ and of G⁻, the most significant slice first; no G⁻ in the ``offset`` encoding."""


def cells(weight: float, tile: Tile, g_max: float, g_min: float = 0.0) -> Cells:
    """Conductances of one copy of a weight that is scaled into -1 … 1 (docs/physics.md, "Mapping")."""
    if tile.encoding == "differential":
        shares = (max(weight, 0.0), max(-weight, 0.0))
    elif tile.encoding == "balanced":
        shares = ((1 + weight) / 2, (1 - weight) / 2)
    else:
        return [g_min + digit * (g_max - g_min) for digit in _digits((1 + weight) / 2, tile)], []
    plus, minus = ([g_min + digit * (g_max - g_min) for digit in _digits(share, tile)] for share in shares)
    return plus, minus


def weight_of(stored: Cells, tile: Tile, g_max: float, g_min: float = 0.0) -> float:
    """The weight in -1 … 1 that conductances stand for: digits shifted and added, G⁻ or half the window taken off."""
    plus, minus = (_share([(g - g_min) / (g_max - g_min) for g in side], tile) for side in stored)
    return 2 * plus - 1 if tile.encoding == "offset" else plus - minus


def weight_step(tile: Tile) -> float:
    """Largest error of a weight in -1 … 1 that the digits of the slices make: half of the least step."""
    if tile.slices == 1:
        return 0.0
    half = 0.5 / ((1 << (tile.slices * tile.slice_bits)) - 1)
    return half if tile.encoding == "differential" else 2 * half  # the window holds weights from -1 to 1


def _digits(share: float, tile: Tile) -> list[float]:
    """A share of 0 … 1 of the window, as one analog digit, or as digits to the base ``2^slice_bits``."""
    if tile.slices == 1:
        return [share]
    base = 2**tile.slice_bits
    whole, found = round(share * (base**tile.slices - 1)), []
    for _ in range(tile.slices):
        whole, digit = divmod(whole, base)
        found.append(digit / (base - 1))
    return found[::-1]


def _share(digits: list[float], tile: Tile) -> float:
    value, full = 0.0, 0.0
    for digit in digits:
        value, full = value * 2**tile.slice_bits + digit, full * 2**tile.slice_bits + 1
    return value / full if full else 0.0

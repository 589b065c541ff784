"""How long tiles take to be read, and how many operations a second they give (docs/energy.md, "Time")."""

from __future__ import annotations

from typing import NamedTuple

from crossbar.costs.chips import Chip
from crossbar.hardware import Hardware

_IDEAL_BITS = 8  # of converters that hardware leaves ideal: nothing real takes no time


class ReadTime(NamedTuple):
    """One product of a tile with one vector, nanoseconds.

    ``drive``: pulses on word lines, and what columns need to settle; ``convert``: conversions that do not overlap with
    them; ``latch``: what each read takes once. ``ns`` is their sum; the next vector can follow after ``interval``.
    """

    drive: float
    convert: float
    latch: float
    interval: float

    @property
    def ns(self) -> float:
        """From the first pulse to the last column's code."""
        return self.drive + self.convert + self.latch


def read_time(chip: Chip, hardware: Hardware, columns: int | None = None) -> ReadTime:
    """A read of one tile.

    A ``pwm`` input of b bits is a pulse of up to ``2^(b-1) - 1`` slots, a ``rate`` input a train of as many, an
    ``amplitude`` input one slot, and a ``bit_serial`` one b - 1 groups of one slot, each converted by itself. Each
    group takes ``phases`` pulses, and after each ``settle``; its columns then take 0 (``counter``), ``2^(b-1)`` steps
    of a ramp, or the conversions of the columns that share a converter, one after another.

    Args:
        chip: parts and their times.
        hardware: converters; ideal ones count as 8 bits in one pulse.
        columns: of the tile that are converted; None: all.
    """
    dac, adc, tile = hardware.dac, hardware.adc, hardware.tile
    bits = _IDEAL_BITS if dac is None else dac.bits
    coding = "pwm" if dac is None else dac.coding
    groups = 1
    if coding == "bit_serial":
        groups = bits if chip.sign == "none" else bits - 1 + (chip.sign == "slot")
    slots = _levels(chip, bits) if coding in ("pwm", "rate") else 1
    drive = chip.phases * (slots * chip.ns("slot") + chip.ns("settle"))
    if chip.converter == "counter":
        convert = 0.0
    elif chip.converter == "ramp":
        convert = chip.ns("convert") * (1 << ((_IDEAL_BITS if adc is None else adc.bits) - 1))
    else:
        open_columns = tile.cols if columns is None else min(columns, tile.cols)
        convert = chip.ns("convert") * -(-open_columns // converters(chip, hardware))
    latch = chip.ns("latch")
    if chip.overlapped:
        step = max(drive, convert)
        return ReadTime((groups - 1) * step + drive, convert, latch, groups * step + latch)
    return ReadTime(groups * drive, groups * convert, latch, groups * (drive + convert) + latch)


def attention_time(chip: Chip, hardware: Hardware, scores: float, values: float) -> ReadTime:
    """One query of a head: a read of the tiles of its keys, and one of those of its values, which follows.

    Args:
        chip, hardware: of the tiles.
        scores: columns converted in a tile of keys, on average.
        values: columns converted in a tile of values.
    """
    first = read_time(chip, hardware, max(round(scores), 1))
    second = read_time(chip, hardware, max(round(values), 1))
    convert = second.convert if chip.chained else first.convert + second.convert
    latch = first.latch + second.latch + chip.ns("control")
    drive = first.drive + second.drive
    return ReadTime(drive, convert, latch, drive + convert + latch)


def screening_time(
    chip: Chip, hardware: Hardware, bits: int | None, drives: float, comparisons: float
) -> tuple[float, float]:
    """A query of a head whose rows are compared before any is read: nanoseconds of its pulses, and of comparisons.

    Pulses of a bit-serial drive are half as long each as the one before, so that together they have the slots of one
    pulse of all bits; each takes ``settle``.

    Args:
        chip, hardware: of the tiles.
        bits: of the query; None: ideal ones count as 8.
        drives: how often it drives the columns.
        comparisons: that it waits for, one after another.
    """
    amplitude = hardware.dac is not None and hardware.dac.coding == "amplitude" and drives <= 1
    slots = 1 if amplitude else _levels(chip, _IDEAL_BITS if bits is None else bits)
    pulses = chip.phases * (slots * chip.ns("slot") + drives * chip.ns("settle"))
    return pulses, comparisons * chip.ns("compare")


def converters(chip: Chip, hardware: Hardware) -> int:
    """Of a tile."""
    return -(-hardware.tile.cols // chip.columns)


def peak_tops(chip: Chip, hardware: Hardware, tiles: int | None = None) -> float:
    """Tera-operations a second where every tile has a vector whenever it can take one: 2 a weight and vector.

    Args:
        chip, hardware: of the tiles.
        tiles: how many; None: those of a chip.
    """
    tile = hardware.tile
    count = chip.cores * chip.tiles if tiles is None else tiles
    operations = 2 * tile.rows * tile.cols * count / (tile.slices * tile.pairs)
    return operations / read_time(chip, hardware).interval / 1000


def _levels(chip: Chip, bits: int) -> int:
    """Slots of the longest pulse of so many bits."""
    return (1 << bits) - 1 if chip.sign == "none" else max((1 << (bits - 1)) - 1, 1)

"""A backend and a feature of hardware as someone else could write them, for tests of the seams."""

import dataclasses
from collections import Counter

from crossbar import Hardware
from crossbar.backends.converters import convert, drive
from crossbar.backends.eager import Eager, of_layer


@dataclasses.dataclass(frozen=True)
class Heated(Hardware):
    """Hardware which is warmer than its surroundings, in kelvin, which nothing in this package computes."""

    heat: float = 0.0


UNKNOWN = {"dac.coding:amplitude", "dac.coding:bit_serial", "dac.coding:rate", "tile.encoding:offset"}


class Toy:
    name = "toy"
    honours = (Eager().honours | {"heat"}) - UNKNOWN

    def __init__(self):
        self.calls = Counter()

    def refuses(self, work, device, dtype, gradient):
        return "gradients" if gradient else None

    def multiply(self, read):
        return (self.read_columns(read) * read.cells.scales.unsqueeze(1)).sum(0)

    def read_columns(self, read):
        driven = drive(read.x, read.hardware.dac, read.input_range)
        columns = of_layer(driven.codes, driven.unit, read.cells, read.hardware, read.noise)
        return self.sense(columns) * columns.step * driven.full_scale

    def sense(self, columns):
        self.calls["sense"] += 1
        hardware, sums = columns.hardware, columns.products[0].codes.new_empty(columns.shape)
        for place, codes, cells in columns.products:
            sums[slice(None) if place is None else place] = codes @ cells * columns.unit
        if columns.normals is not None:
            spread = hardware.output_noise**2 + (0.0 if columns.variance is None else columns.variance)
            sums += columns.normals() * spread**0.5
        sums += 0.0 if columns.offset is None else columns.offset.unsqueeze(1)
        spans = columns.step * (1.0 if columns.spans is None else columns.spans)
        return (
            sums / columns.step if hardware.adc is None else convert(sums / spans, hardware.adc) * spans / columns.step
        )

    def age_rows(self, rows):
        self.calls["age_rows"] += 1
        return Eager().age_rows(rows)

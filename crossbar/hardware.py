"""Frozen descriptions of an analog tile: device, geometry and converters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

from crossbar.circuit.currents import MOST_OHMS, Drive, Layout, Sense
from crossbar.devices import PCM, AnyDevice, Ideal, PowerLaw, RedrawDevice
from crossbar.devices.aihwkit import AihwkitDevice
from crossbar.devices.gain_cell import GainCell
from crossbar.devices.hermes import Hermes
from crossbar.devices.measured import Measured, from_csv
from crossbar.devices.reram import CmoReRam, ReRam
from crossbar.errors import MOST_SEED, InputError, require_number, require_whole, shown
from crossbar.storage.files import write_whole
from crossbar.storage.plain_values import build, mapping, read_yaml

_MOST_LINES = 8192
_MOST_PLACES = 2**26  # a defect is drawn for each, whatever the size of the layer
_FEW_SPARES = 64  # columns that any tile can have to spare
_MOST_WEIGHT_BITS = 20  # of all slices: whole numbers up to here are exact in float32, rounding included

_SIZES = frozenset({"rows", "cols", "slice_bits", "bits", "full_scale"})
"""Fields whose value is a mere size: whoever honours the part honours them all. Every other one is a feature."""

Range = Literal["static", "per_token", "max", "active_rows"]
Coding = Literal["pwm", "bit_serial", "rate", "amplitude"]
Encoding = Literal["differential", "balanced", "offset"]
ScaleGranularity = Literal["tile_column", "tile", "layer"]

_DEVICES: dict[str, type[Ideal | PCM | PowerLaw | Hermes | ReRam | CmoReRam | GainCell | Measured]] = {
    device.kind: device for device in (Ideal, PCM, PowerLaw, Hermes, ReRam, CmoReRam, GainCell, Measured)
}


@dataclass(frozen=True)
class Converter:
    """A digital-to-analog or analog-to-digital converter: symmetric, uniform, ``2^bits - 1`` levels over ± its range.

    Attributes:
        bits: resolution, 1 to 16; 1 bit tells only the sign.
        range: how the range is found until it is calibrated. ``static``: ``full_scale``. For DACs also ``per_token``:
            the abs-max of each input vector; ``max``: the abs-max of the whole batch. For ADCs also ``active_rows``:
            ``full_scale`` times the square root of the part of a tile's word lines that is driven at all, as the
            deviation of their sum goes.
        full_scale: the static range before calibration, 1e-6 to 1e6: unit outputs for an ADC (one cell at g_max under a
            full-scale input gives 1), activation units for a DAC. 10 is aihwkit's ``out_bound``.
        coding: of a DAC. ``pwm``: one pulse whose length is the code. ``amplitude``: one whose height is the code,
            which cells that are not ohmic bend (`Cell`). ``bit_serial``: one pulse a magnitude bit, each sensed and
            converted, then shifted and added. ``rate``: a train of ``2^(bits-1) - 1`` slots, each
            with a pulse at the probability that the code stands for, summed by the column before one conversion.
        gain_std: deviation of the gain error of each word line's (DAC) or column's (ADC) own circuit, relative, at most
            10.
        offset_std: deviation of its offset, relative to a full-scale input (DAC), or in unit outputs (ADC), up to 1e4.
    """

    bits: int = 8
    range: Range = "static"
    full_scale: float = 10.0
    coding: Coding = "pwm"
    gain_std: float = 0.0
    offset_std: float = 0.0

    def __post_init__(self) -> None:
        require_whole("converter field bits", self.bits, least=1, most=16)
        _require_choice("converter field range", self.range, get_args(Range))
        _require_choice("converter field coding", self.coding, get_args(Coding))
        require_number("converter field full_scale", self.full_scale, least=1e-6, most=1e6)
        require_number("converter field gain_std", self.gain_std, most=10)
        require_number("converter field offset_std", self.offset_std, most=1e4)
        if self.bits == 1 and self.coding != "pwm":
            raise InputError(f"converter field coding = {self.coding!r} is not allowed with 1 bit: give 2 bits or more")

    @property
    def levels(self) -> int:
        """Steps on each side of zero: ``2^(bits-1) - 1``, and 1 for a single bit, which has no zero."""
        return max((1 << (self.bits - 1)) - 1, 1)


@dataclass(frozen=True)
class Tile:
    """Geometry of a tile and how weights are laid onto its cells.

    A weight ``w``, scaled into ±1, is the difference of two conductances in each of ``pairs`` x ``slices`` places.

    Attributes:
        rows: word lines (inputs) of a tile, up to 8192.
        cols: bit lines (outputs) of a tile, up to 8192.
        scale: what shares one digital scale, the abs-max of its weights: each column of a tile, a tile, or a layer.
        encoding: ``differential``: ``G± = g_max max(±w, 0)``; ``balanced``: ``G± = g_max (1 ± w) / 2``; ``offset``: a
            single ``G = g_max (1 + w) / 2``, from which digital logic takes half the sum of the inputs.
        pairs: copies of each weight, up to 64, whose currents add on the same bit line and are shared out: a weight is
            the mean. ``rows`` x ``cols`` x ``pairs`` x ``slices`` are at most 2^26.
        slices: tiles of their own for the digits of ``|w|``, most significant first, whose conversions are shifted and
            added in digital. 1: the whole weight is one analog value.
        slice_bits: bits of a digit, where there is more than one slice.
    """

    rows: int = 256
    cols: int = 256
    scale: ScaleGranularity = "tile_column"
    encoding: Encoding = "differential"
    pairs: int = 1
    slices: int = 1
    slice_bits: int = 4

    def __post_init__(self) -> None:
        require_whole("tile field rows", self.rows, least=1, most=_MOST_LINES)
        require_whole("tile field cols", self.cols, least=1, most=_MOST_LINES)
        require_whole("tile field pairs", self.pairs, least=1, most=64)
        require_whole("tile field slices", self.slices, least=1, most=16)
        require_whole("tile field slice_bits", self.slice_bits, least=1, most=16)
        _require_choice("tile field scale", self.scale, get_args(ScaleGranularity))
        _require_choice("tile field encoding", self.encoding, get_args(Encoding))
        if self.slices > 1 and self.slices * self.slice_bits > _MOST_WEIGHT_BITS:
            raise InputError(
                f"tile fields slices = {self.slices} and slice_bits = {self.slice_bits} give more than "
                f"{_MOST_WEIGHT_BITS} bits together: give fewer of either"
            )
        places = self.rows * self.cols * self.pairs * self.slices
        if places > _MOST_PLACES:
            raise InputError(
                f"tile fields rows, cols, pairs and slices give {places:,} places for pairs of cells: give at most "
                f"{_MOST_PLACES:,}"
            )

    @property
    def signs(self) -> int:
        """Conductances that make up one copy of a digit: G⁺ and G⁻, or G alone."""
        return 1 if self.encoding == "offset" else 2


@dataclass(frozen=True)
class CellNoise:
    """White noise of each cell at each read: its conductance moves by ``N(0, constant² + (relative · G)²)``.

    A column sums the squares over its driven word lines, ``Σ_i v_i² σ²(G_io)``, and noise is drawn once a column.

    Attributes:
        constant: µS, up to 1000.
        relative: part of the conductance, up to 10.
        form: ``exact``: a second product, of squared inputs and variances; ``cheap``: every cell of a column has the
            column's mean variance, so only ``Σ_i v_i²`` is needed. The same for a constant alone.
    """

    constant: float = 0.0
    relative: float = 0.0
    form: Literal["exact", "cheap"] = "exact"

    def __post_init__(self) -> None:
        require_number("read_noise field constant", self.constant, most=1e3)
        require_number("read_noise field relative", self.relative, most=10)
        _require_choice("read_noise field form", self.form, ("exact", "cheap"))


@dataclass(frozen=True)
class WriteVerify:
    """Programming in rounds: each cell is written and read until it is near its target.

    The devices' statistics already are what published write-and-verify schemes reach; this adds rounds of one's own.
    A round is booked as one ``write_pulses`` for each cell that takes part. Of devices that are drawn anew at each time
    (`crossbar.devices.RedrawDevice`) the verifying read is one such draw, so only their programming error is narrowed.

    Attributes:
        tolerance: a cell is left alone once it is this near, as a part of g_max, 1e-9 to 10.
        rounds: at most, up to 10,000; a cell that never comes near keeps the best of them.
        read_std: deviation of the verifying read, as a part of g_max, up to 10.
    """

    tolerance: float = 0.02
    rounds: int = 10
    read_std: float = 0.0

    def __post_init__(self) -> None:
        require_number("verify field tolerance", self.tolerance, least=1e-9, most=10)
        require_whole("verify field rounds", self.rounds, least=1, most=10_000)
        require_number("verify field read_std", self.read_std, most=10)


@dataclass(frozen=True)
class Faults:
    """Defects of a chip, drawn once and there for good: programming does not mend them, but may write around them.

    Attributes:
        stuck_min, stuck_max: rates of cells that stay at the least conductance (0 µS in most devices) and at g_max.
        shorts: rate of cells that join word line and bit line with ``short_conductance``.
        broken_rows, broken_cols: rates of word lines and of columns, in each tile, that carry no current.
        short_conductance: µS, 1e-6 to 1e6. The default, a kiloohm, is an assumption.
        spare_cols: columns of each tile that can stand in for its worst ones, up to 64 or as many as it has others;
            they have defects too.
        seed: of the draw, with the seed of the chip that was programmed first: `crossbar.new_chip` draws others.
        partners: whether the good cell of a pair makes up for the faulty one: it is written so that G⁺ - G⁻ comes as
            near to its target as the window of conductances allows, before drift. A test of the chip has to tell where
            its faults are.
    """

    stuck_min: float = 0.0
    stuck_max: float = 0.0
    shorts: float = 0.0
    broken_rows: float = 0.0
    broken_cols: float = 0.0
    short_conductance: float = 1000.0
    spare_cols: int = 0
    seed: int = 0
    partners: bool = False

    def __post_init__(self) -> None:
        for name in ("stuck_min", "stuck_max", "shorts", "broken_rows", "broken_cols"):
            rate = getattr(self, name)
            require_number(f"faults field {name}", rate, most=1)
        if self.stuck_min + self.stuck_max + self.shorts > 1 + 1e-9:
            raise InputError("faults fields stuck_min, stuck_max and shorts add up to more than 1: give less")
        require_number("faults field short_conductance", self.short_conductance, least=1e-6, most=1e6)
        require_whole("faults field spare_cols", self.spare_cols, least=0, most=_MOST_LINES)
        require_whole("faults field seed", self.seed, least=0, most=MOST_SEED)
        if not isinstance(self.partners, bool):
            raise InputError(f"faults field partners = {shown(self.partners)} is not allowed: give true or false")


@dataclass(frozen=True)
class Cell:
    """The current of a cell against the voltage across it: ohmic, or a curve that all cells share, odd in the voltage.

    A conductance is that at ``v_read``, the voltage of a full-scale drive, where devices are measured. Pulses of
    ``pwm``, ``bit_serial`` and ``rate`` inputs all have this height, so for them a curve changes nothing; ``amplitude``
    inputs have others, and their currents are ``G f(v)`` with ``f(v_read) = v_read``. Behind wires that have a
    resistance each cell has a voltage of its own, for which no fast solver is here: only ohmic cells can have them, and
    `crossbar.circuit.reference` solves single arrays of others.

    Attributes:
        iv: ``linear``; ``sinh``: ``f`` goes as ``v0 sinh(v / v0)``, as of tunnelling and hopping in oxides; ``table``:
            straight lines through measured points.
        v0: of ``sinh``, volts, 1e-3 to 1e3. The default is an assumption.
        v_read: volts, 1e-3 to 10. 0.2 V is a usual height of reading pulses.
        table: of ``table``: pairs of volts, rising from above 0 to ``v_read`` or more, and rising currents in any unit.
    """

    iv: Literal["linear", "sinh", "table"] = "linear"
    v0: float = 0.25
    v_read: float = 0.2
    table: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        _require_choice("cell field iv", self.iv, ("linear", "sinh", "table"))
        require_number("cell field v0", self.v0, least=1e-3, most=1e3)
        require_number("cell field v_read", self.v_read, least=1e-3, most=10)
        points = self.table
        pairs = isinstance(points, list | tuple) and all(isinstance(p, list | tuple) and len(p) == 2 for p in points)
        if not pairs:
            raise InputError(f"cell field table = {shown(points)} is not allowed: give pairs of volts and currents")
        for number in (number for point in points for number in point):
            require_number("a number of cell field table", number, above=0, most=1e30)
        if any(a[0] >= b[0] or a[1] >= b[1] for a, b in pairwise(points)):
            raise InputError("cell field table has points that do not rise: order them by volts, with rising currents")
        if self.iv == "table" and (not points or points[-1][0] < self.v_read):
            raise InputError(
                f"cell field table ends at {points[-1][0] if points else 0:g} V, below v_read = {self.v_read:g} V: "
                "measure further, or read at less"
            )
        object.__setattr__(self, "table", tuple((float(volts), float(current)) for volts, current in points))


@dataclass(frozen=True)
class Wire:
    """Resistance of word lines and bit lines: what cells far from drivers and amplifiers lose (docs/wires.md).

    One segment lies between any two neighbouring cells of a line, one before the first cell and one behind the last.
    The default resistance is that of aihwkit's model of IR drop (``ir_drop_g_ratio``: 0.35 ohm a cell, there with cells
    of 5 µS); 1 to 5 ohm are usual assumptions for dense arrays.

    Attributes:
        r_row, r_col: of a segment of a word line and of a bit line, ohms, up to 1e6.
        drive: ends of the word lines that are driven: ``left`` or ``both``.
        sense: end of the bit lines that is sensed. Inputs come in order from the top, so with ``bottom`` the last ones
            are nearest to the amplifiers.
        layout: ``separate``: G⁺, G⁻ and copies of a pair are in arrays of their own, whose currents are joined at the
            amplifiers. ``interleaved``: they stand side by side on the same word lines. Slices always are in tiles of
            their own.
        solution: ``exact``: of the whole circuit, which takes a model at an age half a minute, and keys and values a
            circuit for each query and tile. ``first_order``: word lines with bit lines at 0 V, and then bit lines with
            the word lines of other rows at 0 V, which is fast (how far off: docs/wires.md). ``auto``: layers exact,
            keys and values in first order.
    """

    r_row: float = 0.35
    r_col: float = 0.35
    drive: Drive = "left"
    sense: Sense = "bottom"
    layout: Layout = "separate"
    solution: Literal["auto", "exact", "first_order"] = "auto"

    def __post_init__(self) -> None:
        require_number("wire field r_row", self.r_row, most=MOST_OHMS)
        require_number("wire field r_col", self.r_col, most=MOST_OHMS)
        _require_choice("wire field drive", self.drive, get_args(Drive))
        _require_choice("wire field sense", self.sense, get_args(Sense))
        _require_choice("wire field layout", self.layout, get_args(Layout))
        _require_choice("wire field solution", self.solution, ("auto", "exact", "first_order"))


@dataclass(frozen=True)
class Hardware:
    """Everything that decides what a layer computes on analog tiles. A part set to None is ideal.

    Attributes:
        device: the memory device of every cell; a weight is a pair of them.
        tile: geometry and mapping.
        dac: input converter, one a word line.
        adc: output converter, one a bit-line pair of each tile.
        output_noise: deviation of amplifier and ADC noise, added to each column of each tile at every read, in unit
            outputs (aihwkit's ``out_noise``), up to 1e4.
        read_noise: white noise of the cells themselves at every read (aihwkit's ``w_noise``).
        verify: programming in rounds.
        faults: defects of the chip.
        wire: resistance of the lines; None: ideal wires.
        cell: current against voltage; None: ohmic.
    """

    device: AnyDevice = field(default_factory=PCM)
    tile: Tile = field(default_factory=Tile)
    dac: Converter | None = field(default_factory=lambda: Converter(range="per_token"))
    adc: Converter | None = field(default_factory=Converter)
    output_noise: float = 0.04
    read_noise: CellNoise | None = None
    verify: WriteVerify | None = None
    faults: Faults | None = None
    wire: Wire | None = None
    cell: Cell | None = None

    def __post_init__(self) -> None:
        if isinstance(self.device, type) or not isinstance(self.device, AnyDevice):
            given = shown(self.device)
            raise InputError(f"hardware field device = {given} is not a device: give one of crossbar.devices")
        for name, part in _PARTS.items():
            value = getattr(self, name)
            if not isinstance(value, part) and (value is not None or name == "tile"):
                raise InputError(f"hardware field {name} = {shown(value)} is not allowed: give a {part.__name__}")
        if self.adc is not None:
            _require_choice("hardware field adc.range", self.adc.range, ("static", "active_rows"))
            _require_choice("hardware field adc.coding", self.adc.coding, ("pwm",))
        if self.dac is not None:
            _require_choice("hardware field dac.range", self.dac.range, ("static", "per_token", "max"))
        require_number("hardware field output_noise", self.output_noise, most=1e4)
        if self.cell is not None and self.cell.iv != "linear":
            if self.wire is not None and (self.wire.r_row > 0 or self.wire.r_col > 0):
                raise InputError(
                    f"hardware field cell.iv = {self.cell.iv!r} is not solved together with wires: give linear cells, "
                    "or wires of 0 ohm"
                )
            if self.tile.encoding == "offset":
                raise InputError(
                    f"hardware field cell.iv = {self.cell.iv!r} is not allowed with the offset encoding, which "
                    "subtracts the sum of unbent inputs: give a pair of cells"
                )
        if self.faults is not None and self.faults.partners and self.tile.encoding == "offset":
            raise InputError(
                "hardware field faults.partners = True is not allowed with the offset encoding, which has no pairs of "
                "cells: give the differential or the balanced one, or false"
            )
        spares = max(self.tile.cols, _FEW_SPARES)
        if self.faults is not None and self.faults.spare_cols > spares:
            spare, cols = self.faults.spare_cols, self.tile.cols
            raise InputError(
                f"hardware field faults.spare_cols = {spare} is too much for tiles of {cols} columns: "
                f"give {spares} or fewer"
            )

    def features(self) -> frozenset[str]:
        """What this hardware has beyond the plainest, by the names of its fields; `crossbar.features` refuses by them.

        A choice is named with its value, such as ``"tile.encoding:offset"`` or ``"dac:ideal"``; a part that is there or
        a number that is not the plain one by its field alone, such as ``"faults"`` or ``"dac.gain_std"``. The plainest
        hardware has a single differential pair a weight, converters of one pulse and a static range, and no noise. A
        field that a subclass adds is a feature too, unless its value is None, 0 or a mere size.

        >>> sorted(Hardware(tile=Tile(slices=2), adc=None).features())
        ['adc:ideal', 'dac.range:per_token', 'output_noise', 'tile.slices']
        """
        return self._features

    @cached_property
    def _features(self) -> frozenset[str]:
        found = {"device:redrawn"} if isinstance(self.device, RedrawDevice) else set[str]()
        for own in dataclasses.fields(self):
            if own.name != "device":
                found |= _beyond(own.name, getattr(self, own.name), _PLAINEST.get(own.name))
        return frozenset(found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` takes them back if the device is one of this package and not a foreign model."""
        values: dict[str, Any] = dataclasses.asdict(self)
        device = self.device
        if isinstance(device, AihwkitDevice):
            values["device"] = device.to_dict()
        else:
            values["device"] = {"kind": device.kind, **values["device"]}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], folder: str | Path = ".") -> Hardware:
        """Hardware from nested plain values; a missing field keeps its default, ``None`` makes a part ideal.

        Args:
            values: fields of this class. A ``device`` of the kind ``measured`` has its table, or, as ``csv``, the path
                of a file for `crossbar.devices.from_csv`.
            folder: that such a path starts from.

        Raises:
            InputError: for an unknown field, with its dotted name and what is allowed, and for a value out of range.

        >>> Hardware.from_dict({"device": "pcm", "adc": {"bits": 6}, "dac": None}).adc.bits
        6
        """
        parts = dict(mapping("hardware", values))
        if "device" in parts:
            given = parts["device"]
            device = dict({"kind": given} if isinstance(given, str) else mapping("hardware.device", given))
            kind = device.pop("kind", None)
            _require_choice("hardware field device.kind", kind, tuple(_DEVICES))
            if kind == Measured.kind and "csv" in device:
                parts["device"] = _measured(device, folder)
            else:
                parts["device"] = build(_DEVICES[kind], "hardware.device", device)
        default = cls()
        for name, part in _PARTS.items():
            if name in parts and (parts[name] is not None or name == "tile"):
                given = dict(mapping(f"hardware.{name}", parts[name]))
                parts[name] = build(part, f"hardware.{name}", given, getattr(default, name))
        return build(cls, "hardware", parts)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Hardware:
        """Hardware from a YAML file with the fields of this class; a device's ``csv`` is beside it.

        Raises:
            InputError: for what `crossbar.storage.plain_values.read_yaml` or `from_dict` refuses.
        """
        return cls.from_dict(read_yaml("hardware", path), Path(path).parent)

    def to_yaml(self, path: str | Path) -> None:
        """Write a YAML file that `from_yaml` gives the same hardware from.

        Raises:
            InputError: for a path that cannot be written, and for a device that is not one of this package.
        """
        import yaml

        if type(self.device) not in _DEVICES.values():
            kinds = ", ".join(_DEVICES)
            raise InputError(f"a device of the kind {self.device.kind!r} has no YAML: choose one of {kinds}")
        text = yaml.safe_dump(self.to_dict(), sort_keys=False)
        write_whole(Path(path), lambda partial: partial.write_text(text, encoding="utf-8"), "hardware file")


_PARTS: dict[str, type[Any]] = {
    "tile": Tile,
    "dac": Converter,
    "adc": Converter,
    "read_noise": CellNoise,
    "verify": WriteVerify,
    "faults": Faults,
    "wire": Wire,
    "cell": Cell,
}


def _measured(device: dict[str, Any], folder: str | Path) -> Measured:
    """The device of a table in a file: the ``csv`` of its fields, and ``t_0`` where it is given."""
    for key in device:
        if key not in ("csv", "t_0"):
            raise InputError(f"hardware.device has csv and {shown(key)}: give csv and t_0 alone")
    path = device.pop("csv")
    if not isinstance(path, str):
        raise InputError(f"hardware.device field csv = {shown(path)} is not allowed: give the path of a CSV file")
    return from_csv(Path(folder) / path, **device)


def _require_choice(what: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{what} = {shown(value)} is not allowed: choose one of {', '.join(allowed)}")


_PLAINEST: dict[str, Any] = {"tile": Tile(), "dac": Converter(), "adc": Converter(), "output_noise": 0.0}


def _beyond(name: str, value: Any, plain: Any) -> set[str]:
    """Features of one field of hardware, or of one of its parts: what differs from the plain value."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = {name} if plain is None else set[str]()
        for own in dataclasses.fields(value):
            if own.name == "bits":
                found |= {f"{name}.bits:1"} if getattr(value, own.name) == 1 else set()
            elif isinstance(getattr(value, own.name), str) or (plain is not None and own.name not in _SIZES):
                found |= _beyond(f"{name}.{own.name}", getattr(value, own.name), getattr(plain, own.name, None))
        return found
    if value == plain or (plain is None and value == 0):
        return set()
    if value is None:
        return {f"{name}:ideal"}
    return {f"{name}:{value}" if isinstance(value, str) else name}

"""Frozen description of a memory for keys and values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from attention.activation import Activation, Saturating, Softmax
from attention.memory.address_map import Order
from attention.memory.row_tiles import Scale
from crossbar import presets
from crossbar.errors import MOST_SEED, InputError, require_number, require_whole, shown
from crossbar.hardware import Hardware
from crossbar.storage.plain_values import build, mapping

_MOST_ROWS = 2**24

Eviction = Literal["refuse", "ring"]

_ACTIVATIONS: dict[str, type[Softmax | Saturating]] = {kind.__name__: kind for kind in (Softmax, Saturating)}


@dataclass(frozen=True)
class Protected:
    """Tokens whose keys and values a second, better memory holds too, from where they are read while they are in it.

    Attributes:
        sinks: first tokens, for good, up to 2^24.
        recent: last tokens, the query's own among them, up to 2^24.
        by: ``digital``: a buffer without noise; ``pairs``: analog rows of ``copies`` times as many pairs of cells.
        copies: of each pair, for ``pairs``, 2 to 64.

    Raises:
        InputError: for numbers that are not allowed.
    """

    sinks: int = 4
    recent: int = 16
    by: Literal["digital", "pairs"] = "digital"
    copies: int = 2

    def __post_init__(self) -> None:
        require_whole("protected sinks", self.sinks, least=0, most=_MOST_ROWS)
        require_whole("protected recent", self.recent, least=1, most=_MOST_ROWS)
        require_whole("protected copies", self.copies, least=2, most=64)
        if self.by not in ("digital", "pairs"):
            raise InputError(f"protected by = {shown(self.by)} is not allowed: choose digital or pairs")


@dataclass(frozen=True)
class Memory:
    """Everything that decides how keys and values are kept: what `attention.attach` takes, and `AnalogMemory` is.

    Attributes:
        hardware: cells, tiles and converters.
        capacity: token rows of each head, up to 2^24; None: as many as the pattern's window needs, or the model has
            positions.
        sinks: first tokens whose rows are never used again.
        eviction: when the rows are full: ``refuse`` the next token, or use the oldest row again (``ring``).
        placement: ``sequential`` or ``striped``, see `attention.memory.address_map.AddressMap`.
        token_seconds: seconds from one token to the next, by which rows age, up to 1e9.
        clock: wall clock, a function that gives seconds; it takes the place of ``token_seconds``.
        key_scale: ``row``: each token's abs-max, applied after the ADC; ``channel``: each dimension's, folded into the
            query; ``head``: one of each head. The last two are those of the first tokens, and clip later ones.
        value_scale: ``row``: each token's abs-max, folded into the DAC; or ``head``.
        protected: tokens that a better memory holds.
        activation: what becomes of scores.
        seed: of all draws.

    Raises:
        InputError: for a value that is not allowed.
    """

    hardware: Hardware
    capacity: int | None = None
    sinks: int = 0
    eviction: Eviction = "ring"
    placement: Order = "sequential"
    token_seconds: float = 0.0
    clock: Callable[[], float] | None = None
    key_scale: Scale = "row"
    value_scale: Scale = "row"
    protected: Protected | None = None
    activation: Activation = field(default_factory=Softmax)
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` takes them back, but for a clock of one's own."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("hardware", "clock")}
        for name in ("protected", "activation"):
            parts[name] = None if parts[name] is None else asdict(parts[name])
        parts["activation"]["kind"] = type(self.activation).__name__
        return {"hardware": self.hardware.to_dict(), "clock": "token" if self.clock is None else "wall", **parts}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Memory:
        """A memory from nested plain values; a missing field keeps its default, and a text is hardware by its name.

        Raises:
            InputError: for an unknown field, with its dotted name and what is allowed, for a value out of range, and
                for a wall clock, which only Python can give.

        >>> Memory.from_dict({"hardware": "gain_cell", "capacity": 64, "protected": {"sinks": 2}}).protected.recent
        16
        """
        parts = dict(mapping("memory", values))
        if "hardware" not in parts:
            raise InputError("memory has no hardware: give a preset such as 'gain_cell', or a mapping of its fields")
        clock = parts.pop("clock", "token")
        if clock != "token":
            raise InputError(
                f"memory clock = {shown(clock)} is not allowed here: give token_seconds, or build a Memory in Python"
            )
        given = parts["hardware"]
        parts["hardware"] = presets.get(given)
        if parts.get("protected") is not None:
            parts["protected"] = build(Protected, "memory.protected", parts["protected"])
        if "activation" in parts:
            activation = dict(mapping("memory.activation", parts["activation"]))
            kind = activation.pop("kind", Softmax.__name__)
            if kind not in tuple(_ACTIVATIONS):  # a list, say, has no hash
                raise InputError(
                    f"memory.activation.kind = {shown(kind)} is not allowed: choose {' or '.join(_ACTIVATIONS)}"
                )
            parts["activation"] = build(_ACTIVATIONS[kind], "memory.activation", activation)
        return build(cls, "memory", parts)

    def __post_init__(self) -> None:
        if not isinstance(self.hardware, Hardware):
            raise InputError(f"memory hardware {shown(self.hardware)} is not a Hardware: give one of crossbar.presets")
        if self.capacity is not None:
            require_whole("memory capacity", self.capacity, least=1, most=_MOST_ROWS)
        require_whole("memory sinks", self.sinks, least=0, most=_MOST_ROWS)
        require_whole("memory seed", self.seed, least=0, most=MOST_SEED)
        require_number("memory token_seconds", self.token_seconds, most=1e9)
        for name, value, allowed in (
            ("eviction", self.eviction, get_args(Eviction)),
            ("placement", self.placement, get_args(Order)),
            ("key_scale", self.key_scale, get_args(Scale)),
            ("value_scale", self.value_scale, ("row", "head")),
        ):
            if value not in allowed:
                raise InputError(f"memory {name} = {shown(value)} is not allowed: choose {', '.join(allowed)}")
        if self.clock is not None and self.token_seconds:
            raise InputError("memory has a clock and token_seconds: give one of them")

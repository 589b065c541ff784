"""Price books: what each counted thing costs, with its source; and a ledger priced by one (docs/energy.md, "Prices").

A book is a YAML file. The packaged ones are in ``crossbar/costs/price_books``; a user's own has the same fields::

    name: mine
    prices:
      - counter: adc_conversions     # one of crossbar.costs.ledger.COUNTERS
        bits: 8                      # left out: any number of bits
        value: 1.56                  # pJ each; low and high may bound it
        node: 32 nm
        source: Shafiee 2016, Table I
        evidence: derived            # measured, simulated, derived or assumed
        scope: per-term              # or all-in
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

from crossbar.costs.energy import EnergyReport, Line, component_of
from crossbar.costs.ledger import COUNTERS, OUTCOMES, WHOLES, Counter, Ledger
from crossbar.errors import InputError, require_number, require_whole, shown
from crossbar.storage.plain_values import read_text
from crossbar.storage.yaml_values import load_yaml

Evidence = Literal["measured", "simulated", "derived", "assumed"]
Scope = Literal["per-term", "all-in"]

_MOST = 1e15  # pJ: a kilojoule
DEFAULT = "isaac + horowitz + nvsim_reram"
"""The book of commands: per-term analog at 32 nm, digital logic and memory at 45 nm, ReRAM writes."""


@dataclass(frozen=True)
class Price:
    """What one of a counter costs.

    Attributes:
        counter: its name.
        value: pJ each, up to 1e15.
        bits: for conversions and digital MACs of this many bits; None: of any number that has no price of its own.
        default: also the price where the number of bits was not counted.
        low, high: pJ, up to 1e15, bounds on ``value``; ``value`` itself unless given.
        node: technology, such as ``32 nm``.
        voltage: volts, where the source gives one.
        source: publication and place in it.
        evidence: ``measured`` on silicon, ``simulated``, ``derived`` by arithmetic from published numbers, ``assumed``.
        scope: ``all-in`` holds everything that its counter takes; ``per-term`` one part of it.
        covers: other counters that are paid for by this price, in every layer that counts it. An all-in price and the
            terms it covers are never added.

    Raises:
        InputError: for an impossible value.
    """

    counter: str
    value: float
    bits: int | None = None
    default: bool = False
    low: float | None = None
    high: float | None = None
    node: str | None = None
    voltage: float | None = None
    source: str = ""
    evidence: Evidence = "assumed"
    scope: Scope = "per-term"
    covers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        what = f"price of {shown(self.counter)}"
        object.__setattr__(self, "covers", _listed(f"{what}, field covers", self.covers))
        for name in (self.counter, *self.covers):
            if name not in tuple(COUNTERS):  # a list, say, has no hash
                raise InputError(f"price book has no use for counter {shown(name)}: known are {', '.join(COUNTERS)}")
        require_number(f"{what}, field value", self.value, most=_MOST)
        for name in ("low", "high", "voltage"):
            if getattr(self, name) is not None:
                require_number(f"{what}, field {name}", getattr(self, name), most=_MOST)
        if not (self.low_value <= self.value <= self.high_value):
            raise InputError(f"{what}, {self.value:g} pJ, is not from low to high: give low <= value <= high")
        if self.bits is not None:
            require_whole(f"{what}, field bits", self.bits, least=1, most=64)
        if not isinstance(self.default, bool):
            raise InputError(f"{what}, field default = {shown(self.default)} is not allowed: give true or false")
        for name in ("node", "source"):
            _require_text(f"{what}, field {name}", getattr(self, name), optional=name == "node")
        for name, allowed in (("evidence", get_args(Evidence)), ("scope", get_args(Scope))):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f"{what}, field {name} = {shown(getattr(self, name))} is not allowed: choose {', '.join(allowed)}"
                )

    @property
    def low_value(self) -> float:
        """The lower bound, pJ."""
        return self.value if self.low is None else self.low

    @property
    def high_value(self) -> float:
        """The upper bound, pJ."""
        return self.value if self.high is None else self.high


@dataclass(frozen=True)
class PriceBook:
    """Prices under one name. ``a + b`` prices what either prices; where both do, ``a``.

    Attributes:
        name: of the book.
        prices: no two for the same counter and bits.
        title: one line on what it stands for.
        static_watts: power that flows whether or not anything happens, up to a megawatt.
        notes: what a reader of its totals has to know.

    Raises:
        InputError: for two prices of the same.
    """

    name: str
    prices: tuple[Price, ...] = ()
    title: str = ""
    static_watts: float = 0.0
    notes: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        what = f"price book {shown(self.name)}"
        for name in ("name", "title"):
            _require_text(f"{what}, field {name}", getattr(self, name))
        require_number(f"{what}, field static_watts", self.static_watts, most=1e6)
        object.__setattr__(self, "notes", _listed(f"{what}, field notes", self.notes))
        seen = [(price.counter, price.bits) for price in self.prices]
        twice = next((key for key in seen if seen.count(key) > 1), None)
        if twice is not None:
            raise InputError(f"price book {self.name!r} prices {Counter(*twice)} twice: keep one of them")

    def __add__(self, other: PriceBook) -> PriceBook:
        own = {(price.counter, price.bits) for price in self.prices}
        added = tuple(p for p in other.prices if (p.counter, p.bits) not in own)
        return PriceBook(
            f"{self.name} + {other.name}",
            self.prices + added,
            title="; ".join(title for title in (self.title, other.title) if title),
            static_watts=self.static_watts + other.static_watts,
            notes=self.notes + other.notes,
        )

    def of(self, counter: Counter) -> Price | None:
        """The price of a counter: that of its bits, else that of any bits; None: it has none."""
        prices = [price for price in self.prices if price.counter == counter.name]
        exact = [p for p in prices if p.bits == counter.bits or (counter.bits is None and p.default)]
        return next(iter(exact or [p for p in prices if p.bits is None]), None)

    @classmethod
    def from_yaml(cls, path: str | Path) -> PriceBook:
        """A book from a YAML file with the fields of this class.

        Raises:
            InputError: for a missing file, text that is not YAML, unknown fields and impossible values.
        """
        return _from_text(read_text("price book", path), str(path))

    @classmethod
    def get(cls, name: str) -> PriceBook:
        """A packaged book, a YAML file, or several joined by ``+``: ``"isaac + horowitz"``; the first price counts.

        Raises:
            InputError: for an unknown name.
        """
        books = [_one(part.strip()) for part in name.split("+")]
        joined = books[0]
        for book in books[1:]:
            joined = joined + book
        return joined


def names() -> tuple[str, ...]:
    """The packaged books."""
    return tuple(
        sorted(entry.name.removesuffix(".yaml") for entry in _folder().iterdir() if entry.name.endswith(".yaml"))
    )


def price(
    ledger: Ledger, profile: str | PriceBook = DEFAULT, *, seconds: float | None = None, tokens: int | None = None
) -> EnergyReport:
    """What the counts of a ledger cost.

    A counter without a price is named in the report, never taken as free. Where an all-in price applies in a layer,
    the terms that it covers are not added there.

    Args:
        ledger: counts.
        profile: a packaged book's name, several joined by ``+``, the path of a YAML file, or a book.
        seconds: how long it took, for books with static power; None: such power is named as unpriced.
        tokens: how many tokens the counts are of, for figures of one.

    Raises:
        InputError: for an unknown book and an impossible number.
    """
    book = PriceBook.get(profile) if isinstance(profile, str) else profile
    if seconds is not None:
        require_number("seconds", seconds)
    if tokens is not None:
        require_whole("tokens", tokens, least=1)
    lines: list[Line] = []
    unpriced: dict[str, int] = {}
    covered: dict[str, int] = {}
    for layer, counts in ledger.by_layer.items():
        priced = {counter: book.of(counter) for counter, n in counts.items() if n}
        free = _covered(priced)
        for counter, found in priced.items():
            n = counts[counter]
            if counter.name in free:
                covered[str(counter)] = covered.get(str(counter), 0) + n
            elif found is None and counter.name in (*WHOLES, *OUTCOMES):
                continue  # what it stands for is counted term by term too, or takes nothing
            elif found is None:
                unpriced[str(counter)] = unpriced.get(str(counter), 0) + n
            else:
                low, high = n * found.low_value, n * found.high_value
                component, pj = component_of(counter.name), n * found.value
                lines.append(Line(layer, str(counter), component, n, pj, low, high, found.evidence, found.scope))
    if book.static_watts and seconds is None:
        unpriced["static_seconds"] = 0
    elif book.static_watts and seconds is not None:
        pj = book.static_watts * seconds * 1e12
        lines.append(Line("(chip)", "static_seconds", "static", 1, pj, pj, pj, "derived", "per-term"))
    return EnergyReport(book.name, tuple(lines), unpriced, covered, tokens, book.notes)


def _covered(priced: Mapping[Counter, Price | None]) -> set[str]:
    """Counters of one layer that other prices pay for; an all-in price wins over per-term ones."""
    present = [found for found in priced.values() if found is not None]
    whole = {name for found in present if found.scope == "all-in" for name in found.covers}
    return whole | {
        name for found in present if found.scope == "per-term" and found.counter not in whole for name in found.covers
    }


def _listed(what: str, values: object) -> tuple[str, ...]:
    """Texts in a list, as a tuple."""
    if not isinstance(values, list | tuple) or not all(isinstance(value, str) for value in values):
        raise InputError(f"{what} = {shown(values)} is not allowed: give a list of texts")
    return tuple(values)


def _require_text(what: str, value: object, optional: bool = False) -> None:
    if not isinstance(value, str) and not (optional and value is None):
        raise InputError(f"{what} = {shown(value)} is not allowed: give a text")


def _one(name: str) -> PriceBook:
    if name in names():
        return _from_text((_folder() / f"{name}.yaml").read_text(encoding="utf-8"), name)
    if Path(name).suffix in (".yaml", ".yml"):
        return PriceBook.from_yaml(name)
    raise InputError(f"price book {name!r} does not exist: give {_choices()}, or the path of a YAML file")


def _choices() -> str:
    return f"one of {', '.join(names())}, or several joined by +"


def _folder() -> Any:
    return resources.files("crossbar.costs") / "price_books"


def _from_text(text: str, where: str) -> PriceBook:
    return _of_values(load_yaml(f"price book {where!r}", text), where)


def _of_values(values: Any, where: str) -> PriceBook:
    fields = checked_fields(values, PriceBook, f"price book {where!r}")
    if not isinstance(fields.get("name"), str) or not isinstance(fields.get("prices"), list):
        raise InputError(f"price book {where!r} lacks its name or its list of prices: give both")
    prices = []
    for entry in fields["prices"]:
        given = checked_fields(entry, Price, f"price book {where!r}")
        if "counter" not in given or "value" not in given:
            raise InputError(f"price book {where!r} has a price without counter or value: give both")
        prices.append(Price(**given))
    return PriceBook(**{**fields, "prices": tuple(prices)})


def checked_fields(values: Any, kind: type[Any], where: str) -> dict[str, Any]:
    """The fields of a dataclass from a book, as plain values.

    Args:
        values: as YAML gave them.
        kind: the dataclass.
        where: the book, as a message names it, such as ``price book 'isaac'``.

    Raises:
        InputError: for no mapping, and a field that there is not.
    """
    allowed = [f.name for f in dataclasses.fields(kind)]
    if not isinstance(values, Mapping):
        raise InputError(f"{where} has {shown(values)}: give a mapping with {', '.join(allowed)}")
    for key in values:
        if key not in allowed:
            raise InputError(f"{where} has no field {shown(key)}: allowed are {', '.join(allowed)}")
    return dict(values)

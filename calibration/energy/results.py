"""What was counted and scored under each pattern, its prices, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crossbar import Baseline, EnergyReport, Hardware, Ledger, PriceBook, digital_baselines, price
from crossbar.costs.area import AreaReport, area
from crossbar.costs.chips import Chip
from crossbar.costs.floorplan import FloorPlan
from crossbar.costs.ledger import PAIRS
from crossbar.costs.schedule import ChipTime, Rate

if TYPE_CHECKING:
    from rich.table import Table

PREFILL, DECODE = "prefill", "decode"
_OF_ATTENTION = (*PAIRS, "row_writes")  # a memory may hold its rows for a digital buffer that is read instead
_ORDER = ("linear", "attention", "digital")


@dataclass(frozen=True)
class Work:
    """What was counted in one phase under one pattern.

    Attributes:
        phase: ``prefill``, whole sequences at once, or ``decode``, one token after a whole sequence.
        tokens: that the counts are of.
        ledger: counts.
        macs: multiply-adds of matrices and attended pairs, wherever they are computed; of experts those that tokens
            were routed to.
        numbers: weights, keys and values that a digital machine would read for them.
        time: of one token on the chips, an average where there are several.
        batch: sequences that decode side by side.
    """

    phase: str
    tokens: int
    ledger: Ledger
    macs: int
    numbers: int
    time: ChipTime
    batch: int = 1

    def rates(self) -> dict[str, Rate]:
        """What each schedule of the phase gives."""
        return self.time.rates(self.tokens, self.batch)

    @property
    def seconds(self) -> float:
        """Of all tokens, by the faster schedule."""
        return min(rate.ns for rate in self.rates().values()) * 1e-9 * self.tokens

    def baselines(self) -> list[Baseline]:
        """The same work on digital machines, at the same batch and context."""
        return digital_baselines(macs=self.macs, numbers=self.numbers)


@dataclass(frozen=True)
class Arm:
    """One pattern: its accuracy in digital and on one analog chip, and its work.

    ``rows``: token rows of each head in analog memory, after as many tokens each is written again; None: no such
    memory, or one that is written anew with each call. ``plan``: where its layers, keys and values stand.
    """

    pattern: str
    digital: float
    analog: float
    work: tuple[Work, ...]
    plan: FloorPlan
    rows: int | None = None


@dataclass(frozen=True, repr=False)
class EnergyStudy:
    """Energy of a model under several patterns, by a price book.

    Attributes:
        setup: model, task, hardware, chip, as plain values.
        metric: what ``digital`` and ``analog`` of an arm are.
        arms: a pattern each.
        book: prices.
        hardware: of the tiles.
        linear: names of the analog layers.
        uncounted: digital layers whose work is not counted, by name: their kind.
    """

    setup: dict[str, Any]
    metric: str
    arms: tuple[Arm, ...]
    book: PriceBook
    hardware: Hardware
    linear: frozenset[str]
    uncounted: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        from calibration.console import as_text

        return as_text(*tables(self))

    def report(self, arm: Arm, work: Work) -> EnergyReport:
        """The priced counts of one phase."""
        return price(work.ledger, self.book, seconds=work.seconds, tokens=work.tokens)

    @property
    def chip(self) -> Chip:
        """What the model stands on."""
        return self.arms[0].plan.chip

    def area(self, arm: Arm) -> AreaReport:
        """Of the chips that the model takes, whole, and of comparators where rows choose what opens."""
        layers = arm.work[0].ledger.by_layer
        chosen = {name for name, counts in layers.items() if any(c.name == "comparisons" for c in counts)}
        keys = sum(block.tiles // 2 for block in arm.plan.blocks if block.name in chosen)  # the others hold values
        return area(self.chip, self.hardware, chips=arm.plan.chips, comparators=keys * self.hardware.tile.rows)

    def part_of(self, layer: str, work: Work) -> str:
        """``linear``, ``attention`` or ``digital``: what kind of work a layer is."""
        if layer in self.linear:
            return "linear"
        return "attention" if any(c.name in _OF_ATTENTION for c in work.ledger.by_layer[layer]) else "digital"

    def by_part(self, arm: Arm, work: Work) -> dict[tuple[str, str], float]:
        """Picojoules a token by (part, component), of components that take any."""
        found: dict[tuple[str, str], float] = {}
        for line in self.report(arm, work).lines:
            key = (self.part_of(line.layer, work), line.component)
            found[key] = found.get(key, 0.0) + line.pj / work.tokens
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values; energies in pJ, times in ns, areas in mm²."""
        rows = []
        for arm in self.arms:
            for work in arm.work:
                report = self.report(arm, work)
                parts = {f"{part}: {name}": pj for (part, name), pj in self.by_part(arm, work).items()}
                values = report.to_dict()
                del values["by_layer"]
                rows.append(
                    {
                        "pattern": arm.pattern,
                        "phase": work.phase,
                        f"digital {self.metric}": arm.digital,
                        f"analog {self.metric}": arm.analog,
                        "memory_rows": arm.rows,
                        **values,
                        "pj_per_token_by_part": parts,
                        "time": work.time.to_dict(work.tokens, work.batch),
                        "area": self.area(arm).to_dict(),
                        "chips": arm.plan.chips,
                        "utilisation": arm.plan.utilisation,
                        "counts": work.ledger.totals(),
                        "macs": work.macs,
                        "baselines": [row._asdict() for row in work.baselines()],
                    }
                )
        plans = {arm.pattern: arm.plan.to_dict() for arm in self.arms}
        return {"setup": self.setup, "rows": rows, "floor_plans": plans, "uncounted": self.uncounted}


def tables(study: EnergyStudy) -> list[Table]:
    """A table for each phase: µJ a token by part and component, a column for each pattern, digital machines below."""
    from rich.table import Table

    views = []
    for k, phase in enumerate(work.phase for work in study.arms[0].work):
        tokens = study.arms[0].work[k].tokens
        title = f"{study.setup['model']}, {phase}{f' of {tokens:,} tokens' if tokens > 1 else ' step'}: "
        title += f"energy (µJ a token), time and area on chips {study.chip.name}"
        view = Table(title=title, title_justify="left", caption=_notes(study, k), caption_justify="left")
        view.add_column("part")
        view.add_column("component")
        for arm in study.arms:
            view.add_column(arm.pattern, justify="right")
        stacks = [study.by_part(arm, arm.work[k]) for arm in study.arms]
        keys = sorted({key for stack in stacks for key in stack}, key=lambda key: (_ORDER.index(key[0]), key[1]))
        for key in keys:
            view.add_row(*key, *(_uj(stack.get(key, 0.0)) for stack in stacks))
        view.add_section()
        totals = [study.report(arm, arm.work[k]).total for arm in study.arms]
        view.add_row("all", "", *(_uj(total.pj / tokens) for total in totals))
        view.add_row("all", "by bounds of prices", *(_bounds(total, tokens) for total in totals))
        view.add_section()
        baselines = [arm.work[k].baselines() for arm in study.arms]
        for rows in zip(*baselines, strict=True):
            view.add_row(rows[0].machine, f"{rows[0].bound} bound", *(_uj(row.pj / tokens) for row in rows))
        view.add_section()
        _add_time_and_area(view, study, k)
        view.add_section()
        view.add_row(f"digital {study.metric}", "", *(f"{arm.digital:.2f}" for arm in study.arms))
        chip = f"chip {study.setup['chip']}"
        view.add_row(f"analog {study.metric}", chip, *(f"{arm.analog:.2f}" for arm in study.arms))
        views.append(view)
    return views


def _add_time_and_area(view: Table, study: EnergyStudy, k: int) -> None:
    works = [arm.work[k] for arm in study.arms]
    view.add_row("time", "a token's way, µs", *(f"{work.time.latency / 1000:.4g}" for work in works))
    waits = [work.time.waited() for work in works]
    for name in (name for name in waits[0] if any(wait[name] for wait in waits)):
        view.add_row("", f"of it {name}, µs", *(f"{wait[name] / 1000:.3g}" if wait[name] else "" for wait in waits))
    for name in works[0].rates():
        rates = [work.rates()[name] for work in works]
        schedule = name.replace("_", " ") + (f", batch {works[0].batch}" if name == "decode" else "")
        view.add_row(schedule, "µs a token", *(f"{rate.ns / 1000:.4g}" for rate in rates))
        view.add_row("", "tokens a second", *(f"{rate.tokens_per_second:,.0f}" for rate in rates))
        view.add_row("", "limited by", *(rate.limit for rate in rates))
    view.add_section()
    plans = [arm.plan for arm in study.arms]
    view.add_row("area", "mm²", *(f"{study.area(arm).mm2:,.0f}" for arm in study.arms))
    view.add_row("", "chips", *(f"{plan.chips}" for plan in plans))
    view.add_row("", "tiles in use", *(f"{plan.tiles:,} ({plan.utilisation:.0%})" for plan in plans))


def _notes(study: EnergyStudy, k: int) -> str:
    report = study.report(study.arms[0], study.arms[0].work[k])
    shares = ", ".join(f"{energy.pj / report.total.pj:.0%} {kind}" for kind, energy in report.by_evidence().items())
    notes = [f"prices: {report.book}; of the first pattern's energy {shares} prices", *report.notes]
    if report.unpriced:
        missing = ", ".join(f"{name} ({n:,})" for name, n in report.unpriced.items())
        notes.append(f"without a price, in no sum: {missing}")
    notes += study.chip.notes
    untimed = dict.fromkeys(name for arm in study.arms for name in arm.work[k].time.missing)
    if untimed:
        notes.append(f"without a time, taken as 0: {', '.join(untimed)}")
    sizes = {name: n for arm in study.arms for name, n in study.area(arm).missing.items()}
    if sizes:
        missing = ", ".join(f"{name} ({n:,})" for name, n in sizes.items())
        notes.append(f"without an area, in no sum: {missing}")
    rows = ", ".join(f"{arm.rows:,} ({arm.pattern})" for arm in study.arms if arm.rows is not None)
    if rows:
        notes.append(f"endurance: a row is written again after so many tokens: {rows}; no row is refreshed between")
    for head, look_up in study.setup["tied_heads"].items():
        notes.append(f"{head} is on tiles with the weights of {look_up}: --tied-heads=false leaves it in digital")
    notes += [f"{name} is looked up in DRAM, a row a token" for name in study.setup["look_ups"]]
    if study.uncounted:
        notes.append("not counted: " + ", ".join(sorted(set(study.uncounted.values()))))
    return "\n".join(notes)


def _uj(pj: float) -> str:
    return f"{pj * 1e-6:.4g}" if pj else ""


def _bounds(total: Any, tokens: int) -> str:
    return f"{_uj(total.low / tokens)} to {_uj(total.high / tokens)}"

"""What was counted and scored under each pattern, its prices, and the table of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from crossbar import Baseline, EnergyReport, Ledger, PriceBook, digital_baselines, price
from crossbar.costs.ledger import PAIRS

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
    """

    phase: str
    tokens: int
    ledger: Ledger
    macs: int
    numbers: int

    def baselines(self) -> list[Baseline]:
        """The same work on digital machines, at the same batch and context."""
        return digital_baselines(macs=self.macs, numbers=self.numbers)


@dataclass(frozen=True)
class Arm:
    """One pattern: its accuracy in digital and on one analog chip, and its work.

    ``rows``: token rows of each head in analog memory, after as many tokens each is written again; None: no such
    memory, or one that is written anew with each call.
    """

    pattern: str
    digital: float
    analog: float
    work: tuple[Work, ...]
    rows: int | None = None


@dataclass(frozen=True, repr=False)
class EnergyStudy:
    """Energy of a model under several patterns, by a price book.

    Attributes:
        setup: model, task, hardware, chip, as plain values.
        metric: what ``digital`` and ``analog`` of an arm are.
        arms: a pattern each.
        book: prices.
        linear: names of the analog layers.
        uncounted: digital layers whose work is not counted, by name: their kind.
    """

    setup: dict[str, Any]
    metric: str
    arms: tuple[Arm, ...]
    book: PriceBook
    linear: frozenset[str]
    uncounted: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        from calibration.console import as_text

        return as_text(*tables(self))

    def report(self, arm: Arm, work: Work) -> EnergyReport:
        """The priced counts of one phase."""
        return price(work.ledger, self.book, tokens=work.tokens)

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
        """Plain values; energies in pJ."""
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
                        "counts": work.ledger.totals(),
                        "macs": work.macs,
                        "baselines": [row._asdict() for row in work.baselines()],
                    }
                )
        return {"setup": self.setup, "rows": rows, "uncounted": self.uncounted}


def tables(study: EnergyStudy) -> list[Table]:
    """A table for each phase: µJ a token by part and component, a column for each pattern, digital machines below."""
    from rich.table import Table

    views = []
    for k, phase in enumerate(work.phase for work in study.arms[0].work):
        tokens = study.arms[0].work[k].tokens
        title = f"{study.setup['model']}, {phase}{f' of {tokens:,} tokens' if tokens > 1 else ' step'}: µJ a token"
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
        view.add_row(f"digital {study.metric}", "", *(f"{arm.digital:.2f}" for arm in study.arms))
        chip = f"chip {study.setup['chip']}"
        view.add_row(f"analog {study.metric}", chip, *(f"{arm.analog:.2f}" for arm in study.arms))
        views.append(view)
    return views


def _notes(study: EnergyStudy, k: int) -> str:
    report = study.report(study.arms[0], study.arms[0].work[k])
    shares = ", ".join(f"{energy.pj / report.total.pj:.0%} {kind}" for kind, energy in report.by_evidence().items())
    notes = [f"prices: {report.book}; of the first pattern's energy {shares} prices", *report.notes]
    if report.unpriced:
        missing = ", ".join(f"{name} ({n:,})" for name, n in report.unpriced.items())
        notes.append(f"without a price, in no sum: {missing}")
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

"""A model on chips: where its layers stand, and how long they take for a token under a pattern."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from torch import Tensor, nn

from attention import Controller, Pattern, Placement, platforms
from attention.controller.platforms import Platform
from attention.hf.attach import memory_of
from calibration.models.outputs import device_of
from calibration.placement.dataflow import dataflow
from crossbar import AnalogLinear, Hardware, InputError, Ledger, analog_layers, bypassed
from crossbar.costs.area import area
from crossbar.costs.chips import DEFAULT, Chip
from crossbar.costs.digital_layers import BYTES
from crossbar.costs.floorplan import PLACERS, Block, Edge, FloorPlan, Placer, floor_plan
from crossbar.costs.ledger import PAIRS, Counter
from crossbar.costs.schedule import ChipTime, chip_time
from crossbar.errors import require_whole, shown
from crossbar.tiles.mapping import tile_grid

MACHINES = ("ideal", "truenorth", "loihi1", "loihi2")
"""Machines whose events can give the time of attention."""

MEASURES = ("token_way_ps", "token_ps", "chip_um2")
"""What `measures` gives, under names that no counter has: whole picoseconds and square micrometres."""

_FEW = 4  # tokens that show what feeds what


class Target(NamedTuple):
    """What a model is placed on.

    Attributes:
        chip: its parts.
        placer: which core each tile is in.
        batch: sequences that decode side by side.
        machine: whose events give attention's time; None: reads of the chip's tiles do.
    """

    chip: Chip
    placer: str | Placer = "row_major"
    batch: int = 1
    machine: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values of what is placed by a name."""
        return {"chip": self.chip.to_dict(), "placer": self.placer, "batch": self.batch, "machine": self.machine}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Target:
        """What `to_dict` wrote."""
        return cls.of(**{**values, "chip": Chip.from_dict(values["chip"])})

    @classmethod
    def of(
        cls,
        chip: str | Chip = DEFAULT,
        placer: str | Placer = "row_major",
        batch: int = 1,
        machine: str | None = None,
        folder: Path = Path(),
    ) -> Target:
        """Checked; a file of a chip is looked for from a folder.

        Raises:
            InputError: for unknown names and a batch below 1.
        """
        if isinstance(placer, str) and placer not in PLACERS:
            raise InputError(f"placer {placer!r} is unknown: choose one of {', '.join(PLACERS)}, or give a function")
        if machine is not None and machine not in MACHINES:
            raise InputError(f"machine {shown(machine)} is unknown: choose one of {', '.join(MACHINES)}")
        require_whole("batch", batch, least=1)
        if isinstance(chip, str):
            is_file = Path(chip).suffix in (".yaml", ".yml")
            chip = Chip.get(str(folder / chip) if is_file else chip)
        return cls(chip, placer, batch, machine)


def measures(
    model: nn.Module, ledger: Ledger, batches: Iterable[Mapping[str, Any]], pattern: Pattern | None, target: Target
) -> dict[str, int]:
    """A token's way, the time after which the next is done in a pipelined prefill, and the area of the chips.

    Args:
        model: attached, on tiles.
        ledger: of the batches.
        batches: that were counted.
        pattern: who attends to whom; None: the model's own attention, whose time is not known.
        target: what it stands on.
    """
    shapes, first = [], None
    for batch in batches:
        first = batch if first is None else first
        shapes.append(batch["input_ids"].shape)
    assert first is not None
    tokens, longest = sum(shape.numel() for shape in shapes), max(shape[1] for shape in shapes)
    plan = layout(model, ledger, flow_of(model, ledger, first), longest, target.chip, target.placer)
    events = None
    if target.machine is not None and pattern is not None:
        events = event_time(target.machine, pattern, 0, longest)
    time = time_of(model, ledger, tokens, plan, events)
    hardware = next(iter(analog_layers(model).values())).hardware
    size = area(target.chip, hardware, chips=plan.chips).mm2
    found = (time.latency * 1e3, time.pipelined(longest).ns * 1e3, size * 1e6)
    return {name: round(value) for name, value in zip(MEASURES, found, strict=True)}


def layout(
    model: nn.Module, ledger: Ledger, edges: list[Edge], context: int, chip: Chip, placer: str | Placer
) -> FloorPlan:
    """Place the layers that a ledger counted; keys and values have tiles for ``context`` tokens of each head.

    Args:
        model: attached, on tiles.
        ledger: of a call.
        edges: between layers, as `flow_of` finds them.
        context: tokens that are kept.
        chip: what a core holds.
        placer: as of `crossbar.costs.floorplan.floor_plan`.
    """
    tiles = analog_layers(model)
    blocks = []
    for name, counts in ledger.by_layer.items():
        if name in tiles:
            blocks.append(_block(name, tiles[name]))
        elif _on_rows(counts):
            blocks.append(_rows(name, model, context))
        else:
            blocks.append(Block(name, 0))
    known = {block.name for block in blocks}
    return floor_plan(blocks, [e for e in edges if {e.source, e.target} <= known], chip, placer)


def flow_of(model: nn.Module, ledger: Ledger, batch: Mapping[str, Any]) -> list[Edge]:
    """What the counted layers of an attached model make for one another, from a call with a few tokens in digital."""
    tiles = analog_layers(model)
    attention = [name for name, counts in ledger.by_layer.items() if any(c.name in PAIRS for c in counts)]
    modules = dict(model.named_modules())
    layers = {name: tiles.get(name, modules.get(name)) for name in ledger.by_layer if name not in attention}
    length = batch["input_ids"].shape[1]
    device = device_of(model)
    few = {
        name: value[:1, :_FEW].to(device)
        for name, value in batch.items()
        if isinstance(value, Tensor) and value.dim() == 2 and value.shape[1] == length
    }
    found = {name: layer for name, layer in layers.items() if layer is not None}
    with bypassed(model):
        return dataflow(model, found, attention, few)


def time_of(model: nn.Module, ledger: Ledger, tokens: int, plan: FloorPlan, events: float | None = None) -> ChipTime:
    """Time of a token by what a ledger counted; attention takes ``events`` nanoseconds, or reads of its tiles."""
    hardware = {name: layer.hardware for name, layer in analog_layers(model).items()}
    attends = [name for name, counts in ledger.by_layer.items() if _on_rows(counts)]
    hardware |= dict.fromkeys(attends, rows_hardware(model))
    return chip_time(ledger, tokens, plan, hardware, None if events is None else dict.fromkeys(attends, events))


def event_time(machine: str, pattern: Pattern, first: int, tokens: int) -> float:
    """Nanoseconds a query that the events of one head take, heads side by side.

    Args:
        machine: one of `MACHINES`.
        pattern: who attends to whom.
        first: position of the first query.
        tokens: queries from there on.
    """
    platform: Platform = getattr(platforms, machine)()
    controller, csr = Controller(platform), pattern.causal().rows(tokens, offset=first)
    placement = Placement.sequential(first + tokens, platform.rows)
    return controller.simulate(controller.parts(csr, placement)).seconds * 1e9 / tokens


def rows_hardware(model: nn.Module) -> Hardware:
    """Of the tiles of keys and values; where no memory has them, they count as 256 x 256 with converters of 8 bits."""
    memory = memory_of(model)
    return Hardware() if memory is None else memory.hardware


def _on_rows(counts: Iterable[Counter]) -> bool:
    """Whether a layer's keys are in rows of tiles, which are read or choose what is read elsewhere."""
    return any(counter.name in ("attended_pairs", "screened_pairs") for counter in counts)


def _block(name: str, layer: AnalogLinear) -> Block:
    tile = layer.hardware.tile
    across, along = tile_grid(layer.in_features, layer.out_features, tile)
    return Block(name, across * along * tile.slices, across, BYTES * layer.out_features)


def _rows(name: str, model: nn.Module, context: int) -> Block:
    config: Any = cast(Any, model).config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    memory, tile = memory_of(model), rows_hardware(model).tile
    rows = context if memory is None or memory.capacity is None else min(memory.capacity, context)
    one = -(-rows // tile.rows) * -(-size // tile.cols)
    tiles = 2 * heads * one
    return Block(name, tiles, tiles, BYTES * config.num_attention_heads * size)

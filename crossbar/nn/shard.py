"""Converted models that several processes compute together, each with some columns or rows of the layers.

What a process has of a layer are the very cells that the whole layer has there, with the same noise of reads: every
random number belongs to an element of the whole (`crossbar.random`), wherever it is made. Processes differ from one in
the order in which outputs of word lines in different processes are added.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from crossbar.backends import dispatch
from crossbar.backends.converters import found_range
from crossbar.backends.protocol import Read
from crossbar.costs.counts import book_reads
from crossbar.costs.ledger import book, counting
from crossbar.errors import InputError, shown
from crossbar.nn import rotation
from crossbar.nn.chip import analog_layers
from crossbar.nn.linear import AnalogLinear
from crossbar.random.streams import Stream
from crossbar.tiles.readout import Readout

STYLES = {
    "colwise": (True, False),
    "colwise_rep": (True, True),
    "colwise_gather_output": (True, True),
    "rowwise": (False, False),
}
"""Names that transformers' plans have for layers: whether outputs are shared out, and whether they are put together."""


def shard(model: nn.Module, plan: Mapping[str, str], group: Any = None) -> list[str]:
    """Share the layers of a converted model out among the processes of a group, in place.

    A transformers model brings its plan: ``crossbar.shard(model, model.tp_plan)``. Each process makes the whole model,
    converts, calibrates and programs it the same way; afterwards it reads, and keeps digits of, its own columns or rows
    alone. `program`, `crossbar.age` and the like go on working and are to be called in all processes; `unshard` undoes
    it.

    Args:
        model: converted. What the plan says of other layers than analog ones is left to every process whole.
        plan: styles of layers by name, ``*`` for any number: ``colwise``, each process computes and hands on a share of
            the outputs; ``colwise_gather_output``, they are put together; ``rowwise``, each process gets a share of the
            inputs, and outputs are added.
        group: of `torch.distributed`; None: the default one.

    Returns:
        The names of the layers that were shared out.

    Raises:
        InputError: where no processes were started, for a layer that cannot be shared out evenly or on tile boundaries,
            and a plan that names no analog layer. The model is then unchanged.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise InputError("no processes share the model: start them with torchrun, and call init_process_group first")
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    layers = {name: layer for name, layer in analog_layers(model).items() if name}
    chosen = {name: style for name in layers if (style := _style(name, plan)) is not None}
    if not chosen:
        raise InputError(f"the plan names none of the {len(layers)} analog layers, such as {shown(min(layers))}")
    shards = {name: AnalogShard(layers[name], style, rank, world, group) for name, style in chosen.items()}
    for name, own in shards.items():
        model.set_submodule(name, own)
    return [*shards]


def unshard(model: nn.Module) -> None:
    """Have every process compute all of a model again, in place."""
    for name, own in [*model.named_modules()]:
        if isinstance(own, AnalogShard):
            model.set_submodule(name, own.whole)


def _style(name: str, plan: Mapping[str, str]) -> str | None:
    own = (style for pattern, style in plan.items() if fnmatch.fnmatchcase(name, pattern) and style in STYLES)
    return next(own, None)


class AnalogShard(nn.Module):
    """The part of an analog layer that one process computes.

    Attributes:
        whole: the layer.
        lines: word lines of this process.
        columns: outputs of this process.
    """

    whole: AnalogLinear

    def __init__(self, whole: AnalogLinear, style: str, rank: int, world: int, group: Any) -> None:
        super().__init__()
        self.whole, self._group, self._world = whole, group, world
        self._by_columns, self._gathers = STYLES[style]
        size = whole.out_features if self._by_columns else whole.in_features
        tile, dac = whole.hardware.tile, whole.hardware.dac
        if size % world:
            raise InputError(
                f"{whole.name} has {size} {'outputs' if self._by_columns else 'inputs'}, which {world} "
                "processes cannot share evenly: take another number of them"
            )
        if not self._by_columns and (size // world) % tile.rows:
            raise InputError(
                f"{whole.name} would be cut between word lines of one tile: {size // world} inputs a process are no "
                f"multiple of {tile.rows} rows; take fewer processes or smaller tiles"
            )
        if not self._by_columns and dac is not None and dac.coding == "rate":
            raise InputError(
                f"{whole.name} has inputs coded as rates, whose pulses processes do not share: use columns"
            )
        own = slice(size // world * rank, size // world * (rank + 1))
        self.lines = slice(0, whole.in_features) if self._by_columns else own
        self.columns = own if self._by_columns else slice(0, whole.out_features)
        tiles = range(-(-self.lines.start // tile.rows), -(-self.lines.stop // tile.rows))
        row_tiles = whole.scales.shape[0]
        self._row_tiles = slice(tiles.start, tiles.stop)
        self._conversions = [s * row_tiles + t for s in range(tile.slices) for t in tiles]

    @property
    def in_features(self) -> int:
        """Of what it is given."""
        return self.lines.stop - self.lines.start

    @property
    def out_features(self) -> int:
        """Of what it gives."""
        return self.whole.out_features if self._gathers else self.columns.stop - self.columns.start

    def forward(self, x: Tensor) -> Tensor:
        """``[..., I]`` to ``[..., O]``, of this process's inputs and outputs.

        Raises:
            InputError: for inputs of another size, and a layer in train mode.
        """
        whole = self.whole
        if whole.training or (torch.is_grad_enabled() and x.requires_grad):
            raise InputError(
                f"{whole.name} is shared among processes, which find no gradients: compute under torch.no_grad(), or "
                "train after crossbar.unshard(model)"
            )
        if x.shape[-1] != self.in_features:
            raise InputError(f"{whole.name} got inputs {list(x.shape)}: give [..., {self.in_features}]")
        inputs = x.reshape(-1, self.in_features).to(whole.scales.dtype)
        with torch.autocast(x.device.type, enabled=False), torch.no_grad():
            y = self._digital(inputs) if whole.bypass else self._read(inputs)
            y = self._together(y)
            if whole.bias is not None:
                y = y + (whole.bias if self._gathers else whole.bias[self.columns])
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def _together(self, y: Tensor) -> Tensor:
        if not self._by_columns:
            dist.all_reduce(y, group=self._group)
        elif self._gathers:
            return self._gathered(y)
        return y

    def _digital(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.whole.target_weight()[self.columns, self.lines].to(x.dtype))

    def _read(self, x: Tensor) -> Tensor:
        """Outputs ``[B, O]`` of this process's tiles and of what is beside them."""
        whole, hardware = self.whole, self.whole.hardware
        driven = self._driven(x)
        self._book(len(driven))
        cells, found = self._readout(), whole.input_range
        if found is None and hardware.dac is not None:
            found = found_range(driven, hardware.dac)
            if not self._by_columns and hardware.dac.range != "static":
                dist.all_reduce(found, op=dist.ReduceOp.MAX, group=self._group)
        count = 1 if whole.averaged_reads is None else int(whole.averaged_reads)
        y = torch.zeros((), dtype=x.dtype, device=x.device)
        for read in range(count):
            part = Read(driven, cells, hardware, found, self._noise(whole.reads + read))
            y = y + dispatch.multiply(part, "eager")  # kernels draw for a whole layer
        whole.reads += count
        return self._corrected(y / count, x)

    def _driven(self, x: Tensor) -> Tensor:
        whole = self.whole
        if whole.line_scale is not None:
            book(whole.name, "digital_macs", x.numel())
        if whole.rotation is not None:  # which mixes lines of all processes
            additions = rotation.additions(whole.in_features, int(whole.rotation))
            book(whole.name, "digital_macs", len(x) * additions)
            return whole.driven(x if self._by_columns else self._gathered(x))[:, self.lines]
        if (lines := self._digital_lines()) is not None:
            x = x.index_fill(1, lines, 0)
        return x if whole.line_scale is None else x / whole.line_scale[self.lines]

    def _gathered(self, part: Tensor) -> Tensor:
        """What each process has of a tensor, side by side along its last dimension."""
        parts = [torch.empty_like(part) for _ in range(self._world)]
        dist.all_gather(parts, part.contiguous(), group=self._group)
        return torch.cat(parts, -1)

    def _digital_lines(self) -> Tensor | None:
        """Which of its inputs digital arithmetic computes."""
        lines = self.whole.digital_lines
        if lines is None:
            return None
        return lines[(lines >= self.lines.start) & (lines < self.lines.stop)] - self.lines.start

    def _corrected(self, y: Tensor, x: Tensor) -> Tensor:
        """What its tiles deliver, corrected, and its share of what is added in digital."""
        whole, columns = self.whole, self.columns
        first = self._by_columns or dist.get_rank(self._group) == 0  # of those whose outputs are added
        if whole.output_gain is not None:
            y = y * whole.output_gain[columns]
        if whole.output_offset is not None and first:
            y = y + whole.output_offset[columns]
        if whole.adapter_down is not None and whole.adapter_up is not None:
            y = y + x @ whole.adapter_down[self.lines] @ whole.adapter_up[:, columns]
        lines = self._digital_lines()
        if lines is not None and len(lines):
            weight = whole.target_weight()[columns, self.lines].index_select(1, lines)
            y = y + x.index_select(1, lines) @ weight.t().to(x.dtype)
            book(whole.name, "digital_macs", weight.numel() * len(x))
        return y

    def _readout(self) -> Readout:
        whole, columns, conversions = self.whole, self.columns, self._conversions
        cells = whole.readout()

        def own(values: Tensor | None) -> Tensor | None:
            return values if values is None or not values.dim() else values[conversions][:, columns]

        assert cells.forms is not None
        digits = cells.forms("shard", lambda digits: digits[:, self.lines, columns].clone())
        of_cells = cells.variance is not None and cells.variance.dim() > 2
        variance = (
            cells.variance[:, self.lines, columns] if of_cells and cells.variance is not None else own(cells.variance)
        )
        scales = own(cells.scales)
        assert scales is not None
        bias = cells.bias_scales
        bias = None if bias is None else bias[self._row_tiles, columns]
        return Readout(digits, scales, own(cells.offset), variance, bias, own(cells.adc_range))

    def _noise(self, read: int) -> Stream | None:
        noise = self.whole.read_noise("read", read)
        if noise is None:
            return None
        return _PartOfStream(
            noise, self._conversions, self.columns, len(self.whole.column_gain), self.whole.out_features
        )

    def _book(self, vectors: int) -> None:
        if counting():
            whole, idle = self.whole, self._digital_lines()
            columns = self.columns.stop - self.columns.start
            missing = 0 if idle is None or whole.rotation is not None else len(idle)
            book_reads(whole.name, whole.hardware, self.in_features, columns, vectors, missing)

    def extra_repr(self) -> str:
        """Its share, for ``print(model)``."""
        return f"lines {self.lines.start} to {self.lines.stop}, columns {self.columns.start} to {self.columns.stop}"


class _PartOfStream(Stream):
    """The random numbers of some columns of a whole layer."""

    def __init__(self, whole: Stream, conversions: list[int], columns: slice, count: int, outputs: int) -> None:
        super().__init__(whole.key, whole.device)
        self._conversions, self._columns, self._whole = conversions, columns, (count, outputs)

    def columns(self, tiles: int, vectors: int, outputs: int, first: int = 0) -> Tensor:
        """As `Stream.columns` of the whole, of which it gives a part."""
        count, width = self._whole
        return super().columns(count, vectors, width, first)[self._conversions][:, :, self._columns].contiguous()

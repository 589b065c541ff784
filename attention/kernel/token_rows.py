"""Keys and values written into analog memory, one token a row (docs/physics.md, "Attention")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from crossbar.devices import AnyDevice, span
from crossbar.features import NOISES, WIRES, require_honoured
from crossbar.hardware import Hardware, Tile, WriteVerify
from crossbar.random.streams import Key, Stream
from crossbar.tiles.injection import QUANTILES, quantiles, sampled
from crossbar.tiles.mapping import cell_weights, target_conductances
from crossbar.tiles.wires import resistive

HONOURED = NOISES | WIRES | {
    "tile.encoding:balanced", "tile.pairs", "tile.scale:tile", "tile.scale:layer", "verify", "device:redrawn",
    "dac:ideal", "adc:ideal", "dac.range:per_token", "adc.range:active_rows",
}  # fmt: skip
"""Features of hardware that rows of keys and values have; each row has a scale of its own, whatever weights share."""

_LEVELS = 256  # steps of a written number between −1 and 1, where its error is looked up
_TINY = 1e-30  # a token row of nothing but smaller numbers is 0 to a cell
_EXACT = 1e-6  # errors below this are rounding, not a device


@dataclass(frozen=True)
class TokenRows:
    """Rows of a K or V memory as a read finds them: all that analog attention needs to know about the cells.

    `write` makes them from tensors. A memory that keeps cells of its own, with an age for each row, hands in the same.

    Attributes:
        digits: what each pair of cells stands for now, G⁺ − G⁻ over the width of the window of conductances, with
            programming error, drift and 1/f noise: [B, H_kv, N, D], float32 or float64; about −1 to 1.
        scale: what a digit of 1 is worth in its token's row, [B, H_kv, N, 1].
        variance: of each pair's white noise at a read, in digits squared: [B, H_kv, N, D]; None: no such noise.
        cells: where wires have a resistance, the conductances that make up each digit, all G⁺ before all G⁻:
            [K, B, H_kv, N, D], µS; else None.
    """

    digits: Tensor
    scale: Tensor
    variance: Tensor | None = None
    cells: Tensor | None = None

    def heads(self, index: Tensor) -> TokenRows:
        """The rows of some key heads."""
        variance = None if self.variance is None else self.variance.index_select(1, index)
        cells = None if self.cells is None else self.cells.index_select(2, index)
        return TokenRows(self.digits.index_select(1, index), self.scale.index_select(1, index), variance, cells)

    def sequence(self, index: int) -> TokenRows:
        """The rows of one sequence of the batch."""
        here = slice(index, index + 1)
        variance = None if self.variance is None else self.variance[here]
        cells = None if self.cells is None else self.cells[:, here]
        return TokenRows(self.digits[here], self.scale[here], variance, cells)


def write(x: Tensor, hardware: Hardware, key: Key, seconds: float = 0.0) -> TokenRows:
    """Rows as they are ``seconds`` after all of them were written; gradients go straight through to ``x``.

    A row's scale is the abs-max of its token. What the device adds to a number in ±1 is drawn from 256 quantiles of
    cells that were written, aged and read at each of 257 levels (`crossbar.tiles.injection.sampled`), so it has their
    mean, deviation and skew for every device, encoding and number of pairs. Row n of a head gets the same error however
    many rows follow, and the same quantile at another age. For the circuit of wires the cells of a number share its
    error, and have the mean of what both columns of that level conduct together.

    Args:
        x: keys or values [B, H_kv, N, D].
        hardware: device, encoding and read noise.
        key: of the draws: seed, layer and role.
        seconds: age of the rows.

    Raises:
        InputError: for hardware that `require_supported` refuses.
    """
    require_supported(hardware)
    exact = x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
    scale = torch.maximum(exact.amax(-1, keepdim=True), exact.amin(-1, keepdim=True).neg_())
    scale = torch.where(scale > _TINY, scale, 1.0)
    digits = exact / scale
    device = cast(Any, hardware.device)  # a frozen description, so hashable, which its protocol does not say
    statistics = error_statistics(device, hardware.tile.encoding, hardware.tile.pairs, hardware.verify, seconds)
    errors, noisy = _errors(statistics, x.device)
    noise, variance = hardware.read_noise, None
    if noise is not None and (noise.constant or noise.relative):
        variance = torch.empty_like(digits)
        of_level = _variance(statistics, hardware, digits.dtype, x.device)
    total: Tensor | None = None
    if resistive(hardware):
        total = statistics.total.to(x.device, digits.dtype)[digits.add(1.0).mul_(_LEVELS / 2).round_().long()]
    for b in range(len(digits) if noisy or variance is not None else 0):
        for h in range(digits.shape[1]):
            rows = digits[b, h]
            level = rows.add(1.0).mul_(_LEVELS / 2).round_().int().view(-1)
            if variance is not None:
                variance[b, h] = of_level[level].view_as(rows)
            if noisy:
                draws = Stream((*key, b, h), x.device).bytes(tuple(rows.shape)).view(-1)
                rows += errors.view(-1).index_select(0, level.mul_(QUANTILES).add_(draws)).view_as(rows)
    cells = None if total is None else _cells(digits, total, hardware)
    if torch.is_grad_enabled() and x.requires_grad:
        digits = _Written.apply(x, scale, digits)  # type: ignore[no-untyped-call]  # torch's own
    return TokenRows(digits, scale, variance, cells)


def _cells(digits: Tensor, total: Tensor, hardware: Hardware) -> Tensor:
    """Conductances (µS) [K, …] of digits of which a pair of cells conducts ``total``.

    Pairs are alike, so that arrays of their own are so too and one pair of planes stands for all of them. Side by side
    on the same word lines they are K columns.
    """
    wire, tile = hardware.wire, hardware.tile
    size = digits * span(hardware.device)[1]
    total = torch.maximum(total, size.abs())  # no cell conducts less than nothing
    planes = torch.stack([total + size, total - size]).mul_(0.5)
    beside = tile.pairs if wire is not None and wire.layout == "interleaved" else 1
    return planes.repeat_interleave(beside, 0)


def require_supported(hardware: Hardware) -> None:
    """Refuse hardware with features that token rows do not have.

    Raises:
        InputError: naming the field.
    """
    require_honoured(hardware, HONOURED, "keys and values")


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a device makes of numbers −1, −1 + 1/128, … 1.

    Attributes:
        quantiles: of the error, float32 [257, 256].
        power: mean sum of the squares of a number's conductances, µS², float64 [257].
        total: mean sum of the conductances of a pair, µS, float64 [257].
        cells: conductances that make up a number.
    """

    quantiles: Tensor
    power: Tensor
    total: Tensor
    cells: int


@lru_cache(maxsize=32)
def error_statistics(
    device: AnyDevice, encoding: Any, pairs: int, verify: WriteVerify | None, seconds: float
) -> Statistics:
    """Statistics of numbers written as `Tile` with this encoding and these pairs lays them out, read at an age."""
    with torch.inference_mode(False), torch.no_grad():
        tile = Tile(rows=1, cols=_LEVELS + 1, encoding=encoding, pairs=pairs)
        level = torch.linspace(-1.0, 1.0, _LEVELS + 1, device="cpu")
        low, width = span(device)
        targets = target_conductances(level[:, None], torch.ones(1, _LEVELS + 1, device="cpu"), tile, low + width, low)
        found, power, total, first = [], [], [], 0
        for _, cells in sampled(device, targets[:, 0], verify, seconds, "token rows"):
            numbers = level[first : first + cells.shape[1]]
            found.append(quantiles(cell_weights(cells, tile, width)[0].double() - numbers.double().unsqueeze(1)))
            power.append(cells.double().square().sum(0).mean(1))
            total.append(cells.double().sum(0).mean(1) / pairs)
            first += len(numbers)
        return Statistics(torch.cat(found), torch.cat(power), torch.cat(total), len(targets))


@lru_cache(maxsize=32)
def _errors(statistics: Statistics, device: torch.device) -> tuple[Tensor, bool]:
    """`Statistics.quantiles` on a device, kept there, and whether they are more than rounding."""
    with torch.inference_mode(False):
        return statistics.quantiles.to(device), bool((statistics.quantiles.abs() > _EXACT).any())


@lru_cache(maxsize=32)
def _variance(statistics: Statistics, hardware: Hardware, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Variance of a number's white noise at each level, in digits squared, [257], kept: that of its mean cells."""
    noise = hardware.read_noise
    assert noise is not None
    with torch.inference_mode(False):
        sum_of_squares = statistics.cells * noise.constant**2 + noise.relative**2 * statistics.power
        return (sum_of_squares / (hardware.tile.pairs * span(hardware.device)[1]) ** 2).to(device, dtype)


class _Written(torch.autograd.Function):
    """Digits with the gradient of the number that was to be written."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, digits: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.dtype = x.dtype
        return digits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return (grad / ctx.saved_tensors[0]).to(ctx.dtype), None, None

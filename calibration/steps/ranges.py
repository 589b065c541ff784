"""Input ranges: what a full-scale word line stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.observe import digital, observe
from calibration.steps.protocol import Fitted, Stage
from crossbar import AnalogLinear, InputError, analog_layers

Method = Literal["balanced", "abs_max", "quantile"]
_BINS = 16384  # twice 8192, since the histogram may be twice as wide as the data
_FLOOR = 1e-3  # of the largest: a silent input or an empty row still gets a scale


@dataclass(frozen=True)
class InputRanges:
    """Fit DAC ranges to the digital model's layer inputs on calibration data.

    The methods:

    - ``balanced``: a digital scale for each word line, ``(size(x_i) / max|w_i|)^exponent``, that inputs are divided by
      and weights multiplied by before they are mapped. Outlier channels then neither set the DAC range of their token
      nor drown the others in output noise. It moves difficulty from activations to weights like SmoothQuant (Xiao et
      al., ICML 2023). An input's size is the geometric mean of its largest value, which sets the DAC range, and its
      rms, which multiplies the errors of its cells. The DAC range stays the abs-max of each token. It changes the
      cells, so it comes before programming, and it drops static ranges that were fitted before.
    - ``abs_max``, ``quantile``: one static range a layer, the largest ``|x|`` or a quantile of it.

    Padded positions are left out. Statistics are gathered batch by batch, so memory does not grow with the data.

    Attributes:
        method: as above.
        quantile: of ``|x|``, for the method of that name; inputs above it are clipped.
        exponent: of ``balanced``; 0 leaves the weights alone, 0.5 shares evenly.
    """

    stage: ClassVar[Stage] = Stage.BEFORE_PROGRAMMING
    method: Method = "balanced"
    quantile: float = 0.9999
    exponent: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"InputRanges method {self.method!r} is unknown: choose {', '.join(get_args(Method))}")
        if not 0 < self.quantile <= 1:
            raise InputError(
                f"InputRanges quantile = {self.quantile!r} is not allowed: give a number above 0, at most 1"
            )
        if not 0 <= self.exponent <= 1:
            raise InputError(f"InputRanges exponent = {self.exponent!r} is not allowed: give a number from 0 to 1")

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """Line scales ``[I]`` (balanced) or static ranges (0-d) by layer; layers that no batch reaches are left out."""
        layers = analog_layers(model)
        balanced = self.method == "balanced"
        sizes: dict[str, LineSizes] = {}
        spreads: dict[str, _Spread] = {}

        def see(name: str, x: Tensor, y: Tensor) -> None:
            if balanced:
                sizes.setdefault(name, LineSizes()).add(layers[name].on_tiles(x))
            else:
                spreads.setdefault(name, _Spread()).add(layers[name].driven(x))

        with digital(model):
            observe(model, batches, layers, see)
        if balanced:
            return {name: _balance(layers[name], size.result(), self.exponent) for name, size in sizes.items()}
        quantile = 1.0 if self.method == "abs_max" else self.quantile
        return {name: spread.quantile(quantile) for name, spread in spreads.items()}

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Scale word lines, whose cells must then be written again, or set static ranges."""
        layers = analog_layers(model)
        for name, value in fitted.items():
            if self.method == "balanced":
                layers[name].set_line_scale(value)
            else:
                layers[name].fix_ranges()
                layers[name].input_range = torch.where(value > 0, value, 1.0)  # a layer that saw only zeros


def _balance(layer: AnalogLinear, size: Tensor, exponent: float) -> Tensor:
    weight = layer.target_weight().abs().amax(0)
    scale = (_floored(size) / _floored(weight)) ** exponent
    return scale / scale.log().mean().exp()


def _floored(x: Tensor) -> Tensor:
    top = x.max()
    return x.clamp(min=float(_FLOOR * top)) if top > 0 else torch.ones_like(x)


class LineSizes:
    """``sqrt(max|x| · rms x)`` of each word line."""

    def __init__(self) -> None:
        self._tokens = 0
        self._largest: Tensor | None = None
        self._squares: Tensor | None = None

    def add(self, x: Tensor) -> None:
        """Take in inputs ``[tokens, I]``."""
        top, squares = x.abs().amax(0), x.double().square().sum(0)
        self._tokens += len(x)
        self._largest = top if self._largest is None else torch.maximum(self._largest, top)
        self._squares = squares if self._squares is None else self._squares + squares

    def result(self) -> Tensor:
        """Of all lines, ``[I]``."""
        assert self._largest is not None
        assert self._squares is not None
        return (self._largest * (self._squares / self._tokens).sqrt().to(self._largest.dtype)).sqrt()


class _Spread:
    """A histogram of ``|x|`` that widens as larger ones come, and the largest."""

    def __init__(self) -> None:
        self._top, self._width = 0.0, 0.0
        self._like: Tensor | None = None
        self._counts = torch.zeros(_BINS, dtype=torch.float64, device="cpu")

    def add(self, x: Tensor) -> None:
        """Take in inputs ``[tokens, I]``."""
        size = x.abs()
        top = float(size.amax()) if size.numel() else 0.0
        self._top = max(self._top, top)
        self._like = x.new_empty(())
        if self._width == 0.0:
            self._width = top
        while self._width < self._top:  # two bins become one
            self._counts = torch.cat([self._counts.view(-1, 2).sum(1), self._counts.new_zeros(_BINS // 2)])
            self._width *= 2
        self._counts += torch.histc(size.float().cpu(), bins=_BINS, min=0.0, max=self._width or 1.0).double()

    def quantile(self, share: float) -> Tensor:
        """0-d: what ``share`` of all ``|x|`` do not exceed, to 1/8192 of the largest."""
        assert self._like is not None
        index = int(torch.searchsorted(self._counts.cumsum(0), share * float(self._counts.sum())))
        edge = self._width * (min(index, _BINS - 1) + 1) / _BINS
        return self._like.new_tensor(self._top if share == 1.0 else min(edge, self._top))

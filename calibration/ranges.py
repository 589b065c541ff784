"""Input ranges: what a full-scale word line stands for."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from calibration.embedding import Batch, evaluating
from calibration.step import Stage
from crossbar import AnalogLinear, InputError, analog_layers, bypassed

Method = Literal["balanced", "abs_max", "quantile"]
_BINS = 8192
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
        exponent: of ``balanced``; 0 leaves the weights alone, 0.5 shares evenly. 0.4 was best of 0.4 … 0.6 on MiniLM.
    """

    stage: ClassVar[Stage] = Stage.BEFORE_PROGRAMMING
    method: Method = "balanced"
    quantile: float = 0.9999
    exponent: float = 0.4

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"InputRanges method {self.method!r} is unknown: choose {', '.join(get_args(Method))}")
        if not 0 < self.quantile <= 1:
            raise InputError(
                f"InputRanges quantile = {self.quantile!r} is not allowed: give a number above 0, at most 1"
            )
        if not 0 <= self.exponent <= 1:
            raise InputError(f"InputRanges exponent = {self.exponent!r} is not allowed: give a number from 0 to 1")

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Line scales ``[I]`` (balanced) or static ranges (0-d) by layer; layers that no batch reaches are left out."""
        layers, batches = analog_layers(model), list(batches)
        if self.method == "balanced":
            sizes = _input_sizes(model, batches)
            return {name: _balance(layers[name], size, self.exponent) for name, size in sizes.items()}
        ranges = _largest_inputs(model, batches)
        return ranges if self.method == "abs_max" else _quantiles(model, batches, ranges, self.quantile)

    def apply(self, model: nn.Module, fitted: dict[str, Tensor]) -> None:
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


def _input_sizes(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """``sqrt(max|x| · rms x)`` of each word line, ``[I]`` by layer, before line scales."""
    largest: dict[str, Tensor] = {}
    squares: dict[str, Tensor] = {}
    tokens: Counter[str] = Counter()

    def observe(name: str, x: Tensor) -> None:
        top, square = x.abs().amax(0), x.double().square().sum(0)
        largest[name] = torch.maximum(largest[name], top) if name in largest else top
        squares[name] = squares[name] + square if name in squares else square
        tokens[name] += len(x)

    _observe_inputs(model, batches, observe, scaled=False)
    return {name: (top * (squares[name] / tokens[name]).sqrt().to(top.dtype)).sqrt() for name, top in largest.items()}


def _largest_inputs(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """Largest ``|x|`` that reaches the DAC, after line scales; 0-d, by layer."""
    largest: dict[str, Tensor] = {}

    def observe(name: str, x: Tensor) -> None:
        seen = x.abs().max()
        largest[name] = torch.maximum(largest[name], seen) if name in largest else seen

    _observe_inputs(model, batches, observe, scaled=True)
    return largest


def _quantiles(model: nn.Module, batches: list[Batch], ranges: dict[str, Tensor], quantile: float) -> dict[str, Tensor]:
    """Quantiles of ``|x|`` from histograms up to ``ranges``, exact to 1 / 8192 of the range."""
    counts = {name: torch.zeros(_BINS, dtype=torch.float64) for name in ranges}

    def observe(name: str, x: Tensor) -> None:
        top = float(ranges[name])
        counts[name] += torch.histc(x.abs().float().cpu(), bins=_BINS, min=0.0, max=top or 1.0).double()

    _observe_inputs(model, batches, observe, scaled=True)
    quantiles = {}
    for name, count in counts.items():
        index = int(torch.searchsorted(count.cumsum(0), quantile * float(count.sum())))
        quantiles[name] = ranges[name] * (min(index, _BINS - 1) + 1) / _BINS
    return quantiles


def _observe_inputs(
    model: nn.Module, batches: list[Batch], observe: Callable[[str, Tensor], None], scaled: bool
) -> None:
    """Hand the digital model's inputs of each analog layer, ``[tokens, I]`` without padding, to ``observe``."""
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    layers = analog_layers(model)
    kept: Tensor | None = None

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].detach()
            if kept is not None and x.shape[:-1] == kept.shape:
                x = x[kept]
            scale = layers[name].line_scale if scaled else None
            observe(name, (x if scale is None else x / scale).reshape(-1, x.shape[-1]))

        return before

    with torch.no_grad(), evaluating(model), bypassed(model), _hooks(model, hook):
        for batch in batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            kept = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
            model(**inputs)


@contextmanager
def _hooks(model: nn.Module, hook: Callable[[str], Callable[[nn.Module, tuple[Tensor, ...]], None]]) -> Iterator[None]:
    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in analog_layers(model).items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

"""Convolutions, whose vectors are the patches of their inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossbar.adapters.linear import WEIGHT
from crossbar.adapters.protocol import Part, Product, multiplied

_KINDS: tuple[Any, ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_EDGE = 256  # rows and columns that a block-diagonal matrix of groups has at most


class Convolution:
    """``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``: one product a patch, ``[O, C K]`` with K taps a channel.

    The word lines of a patch are its taps in order, each with its channels, which lie together in memory when patches
    are cut; with groups they are its channels, each with its taps, as `torch.nn.functional.unfold` has them.
    With groups the matrix is block-diagonal. As many groups as fit in 256 word lines and 256 bit lines make up one
    matrix, the next ones another: cells beside the blocks hold 0 and are driven for nothing. A depthwise convolution,
    where each group has one input channel, uses so little of its tiles that it stays digital unless asked for.

    Args:
        depthwise: take depthwise convolutions too.
    """

    def __init__(self, depthwise: bool = False) -> None:
        self.depthwise = depthwise
        self.name = "a depthwise convolution" if depthwise else "a convolution"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is one, or of a class made from it that computes what it computes."""
        return _computes(module) and _is_depthwise(module) == self.depthwise

    def why_not(self, module: nn.Module) -> str:
        """Of a depthwise convolution: the part of its tiles that it would use."""
        if not _computes(module) or not _is_depthwise(module):
            return ""
        conv = cast(nn.Conv2d, module)
        taps = math.prod(conv.kernel_size)
        return (
            f"a depthwise convolution of {taps} taps would use {1 / _groups_of_one(conv):.1%} of the cells between its "
            "word lines and bit lines: register crossbar.adapters.Convolution(depthwise=True) to take it"
        )

    def parts(self, module: nn.Module) -> dict[str, Part]:
        """A matrix, or one for every few groups, each with its part of the bias."""
        conv = cast(nn.Conv2d, module)
        weight, bias = conv.weight.flatten(1), conv.bias
        if _taps_first(conv):
            return {WEIGHT: Part(conv.weight.flatten(2), bias, turned=True)}
        if conv.groups == 1:
            return {WEIGHT: Part(weight, bias)}
        each = _groups_of_one(conv)
        blocks = weight.view(conv.groups, -1, weight.shape[1])
        biases = None if bias is None else bias.view(conv.groups, -1)
        found = {}
        for first in range(0, conv.groups, each):
            own = slice(first, first + each)
            name = WEIGHT if each >= conv.groups else f"{WEIGHT}_{first}"
            found[name] = Part(blocks[own], None if biases is None else biases[own].flatten())
        return found

    def compute(self, module: nn.Module, products: Mapping[str, Product], x: Tensor) -> Tensor:
        """``[N, C, ...]`` to ``[N, O, ...]``, without N as well."""
        conv = cast(nn.Conv2d, module)
        dims = len(conv.kernel_size)
        if x.dim() == dims + 1:
            return self.compute(module, products, x.unsqueeze(0)).squeeze(0)
        if len(products) == 1:
            y = multiplied(next(iter(products.values())), _cut(conv, x), dims + 1)
        else:
            sizes = [part.shape[1] for part in self.parts(module).values()]
            split = patches(conv, x).split(sizes, -1)
            y = torch.cat([product(part) for product, part in zip(products.values(), split, strict=True)], -1)
        return y.movedim(-1, 1)

    def shapes(self, module: nn.Module, x: Tensor) -> list[int]:
        """See `crossbar.adapters.Shaped`; ``⌊(n + padding - d (k - 1) - 1) / stride⌋ + 1`` places, dilated by d."""
        conv = cast(nn.Conv2d, module)
        dims, padding = len(conv.kernel_size), cast(Any, conv)._reversed_padding_repeated_twice  # of the last one first
        found = [*x.shape[: x.dim() - dims - 1], conv.out_channels]
        for place in range(dims):
            size = x.shape[place - dims] + padding[2 * (dims - 1 - place)] + padding[2 * (dims - 1 - place) + 1]
            taken = conv.dilation[place] * (conv.kernel_size[place] - 1) + 1
            found.append((size - taken) // conv.stride[place] + 1)
        return found


def patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The patches ``[N, ..., C K]`` of inputs ``[N, C, ...]``, in the order of output places and of word lines."""
    return _cut(conv, x).flatten(-1 - len(conv.kernel_size))


def _cut(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """The same as views ``[N, ..., taps, C]`` of the padded inputs, or with groups ``[N, ..., C, taps]``."""
    taps = len(conv.kernel_size)
    padding = cast(Any, conv)._reversed_padding_repeated_twice
    zeros, first = conv.padding_mode == "zeros", conv.groups == 1
    if any(padding) and not zeros:
        x = F.pad(x, padding, conv.padding_mode)
    x = x.movedim(1, -1) if first else x
    if any(padding) and zeros:
        x = F.pad(x, (0, 0, *padding) if first else padding)  # into the order that is wanted, in one pass
    x = x.contiguous() if first else x
    for place in range(taps):
        size, step, stride = conv.kernel_size[place], conv.dilation[place], conv.stride[place]
        x = x.unfold((1 if first else 2) + place, step * (size - 1) + 1, stride)[..., ::step]
    return x.movedim(1 + taps, -1) if first else x.movedim(1, 1 + taps)


def _taps_first(conv: nn.Conv2d) -> bool:
    """Whether word lines are the taps, each with all channels."""
    return conv.groups == 1 and conv.in_channels > 1 and math.prod(conv.kernel_size) > 1


def _computes(module: nn.Module) -> bool:
    """Whether a module computes what torch's convolution does."""
    kind = next((kind for kind in _KINDS if isinstance(module, kind)), None)
    if kind is None or "forward" in vars(module):
        return False
    own: Any = type(module)
    return own.forward is kind.forward and own._conv_forward is kind._conv_forward


def _is_depthwise(module: nn.Module) -> bool:
    conv = cast(nn.Conv2d, module)
    return conv.groups > 1 and conv.groups == conv.in_channels


def _groups_of_one(conv: nn.Conv2d) -> int:
    """How many groups make up one matrix."""
    rows = math.prod(conv.kernel_size) * conv.in_channels // conv.groups
    most = max(1, _EDGE // max(rows, conv.out_channels // conv.groups))
    return min(most, conv.groups)

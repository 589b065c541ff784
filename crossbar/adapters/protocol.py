"""What an adapter is: how one kind of digital layer computes with its matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

Product = Callable[[Tensor], Tensor]
"""Vectors ``[..., I]`` to ``[..., O]``: a matrix times each of them, plus its bias, on tiles or in digital."""


def multiplied(product: Product, x: Tensor, taken: int) -> Tensor:
    """A product with vectors that are the last ``taken`` dimensions of ``x``, such as patches, which overlap in memory.

    Tiles get them as they are, and cut them where they are read; others, and whoever looks at inputs by hooks, get a
    copy ``[..., I]``.
    """
    hooked = getattr(product, "_forward_hooks", None) or getattr(product, "_forward_pre_hooks", None)
    if hooked or not getattr(product, "cuts_inputs", False):
        return product(x.flatten(-taken))
    y: Tensor = cast(Any, product)(x, taken)
    return y


class Part(NamedTuple):
    """One matrix of a layer.

    Attributes:
        weight: ``[O, I]``, or ``[G, O/G, I/G]``: the blocks of a block-diagonal matrix. A parameter of the layer or a
            view of one, so that gradients and what is written reach it. With ``turned``, ``[O, C, K]``.
        bias: what is added to its products, ``[O]``; None: nothing.
        turned: the matrix has the last two dimensions of ``weight`` in the other order: ``[O, K C]``.
    """

    weight: Tensor
    bias: Tensor | None = None
    turned: bool = False

    @property
    def matrix(self) -> Tensor:
        """``[O, I]``, with gradient."""
        if self.turned:
            return self.weight.transpose(1, 2).flatten(1)
        return self.weight if self.weight.dim() == 2 else torch.block_diag(*self.weight)

    @property
    def blocks(self) -> int:
        """Blocks on the diagonal, beside which the matrix holds zeros."""
        return len(self.weight) if self.weight.dim() == 3 and not self.turned else 1

    @property
    def root(self) -> Tensor:
        """The tensor that ``weight`` is a view of."""
        return self.weight if self.weight._base is None else self.weight._base

    @property
    def shape(self) -> tuple[int, int]:
        """O and I."""
        rows, columns = self.weight.shape[-2:]
        if self.turned:
            return len(self.weight), rows * columns
        return self.blocks * rows, self.blocks * columns

    def write(self, matrix: Tensor) -> None:
        """Give the layer the numbers of a matrix ``[O, I]``, in place."""
        with torch.no_grad():
            if self.turned:
                self.weight.copy_(matrix.unflatten(1, (self.weight.shape[2], -1)).transpose(1, 2))
                return
            if self.weight.dim() == 2:
                self.weight.copy_(matrix)
                return
            count, rows, columns = self.weight.shape
            each = torch.arange(count, device=matrix.device)
            self.weight.copy_(matrix.view(count, rows, count, columns)[each, :, each])


@runtime_checkable
class LayerAdapter(Protocol):
    """What `crossbar.convert` needs to know of one kind of digital layer.

    Attributes:
        name: the kind of layer, with its article, for messages: ``"an nn.Linear"``.
    """

    name: str

    def matches(self, module: nn.Module) -> bool:
        """Whether a module is of this kind."""
        ...

    def parts(self, module: nn.Module) -> dict[str, Part]:
        """Its matrices by name, which is part of the name of their tiles; the same names in each call."""
        ...

    def compute(self, module: nn.Module, products: Mapping[str, Product], *inputs: Any, **options: Any) -> Any:
        """What the layer's ``forward`` gives, with each matrix multiplied by its product and by nothing else.

        It cuts inputs into vectors and puts outputs back together. With products in digital it equals ``forward``.
        """
        ...


@runtime_checkable
class Shaped(LayerAdapter, Protocol):
    """An adapter whose layers do not break the graphs of torch's compiler."""

    def shapes(self, module: nn.Module, *inputs: Any, **options: Any) -> Any:
        """The shapes of what ``forward`` gives, all in the dtype of the first input.

        A list of sizes for each tensor, in tuples as ``forward`` gives them, with None where it gives None. None alone:
        a graph is to break here, because inputs are no tensors, or ``forward`` draws random numbers of its own.
        """
        ...

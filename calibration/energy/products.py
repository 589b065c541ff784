"""Which products a model's matrices take part in while it runs, on tiles or in digital."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crossbar import AnalogLinear
from crossbar.adapters import Part, digital_parts
from crossbar.costs.digital_layers import convertible, vectors


class Products:
    """Counts products of matrices with vectors: ``with Products(model) as products: model(x)``.

    The work is the model's own, whatever computes it: digital hardware would do ``macs`` multiply-adds for it. Of
    experts those count that tokens were routed to, of block-diagonal matrices the blocks. Products of queries, keys
    and values are no matrix's (`crossbar.Ledger.pairs`).

    Args:
        model: with analog layers or digital ones.

    Attributes:
        macs: multiply-adds.
        weights: of the matrices that met a vector, once a call of the model: what is read for it at least.
    """

    def __init__(self, model: nn.Module) -> None:
        self.macs = self.weights = 0
        self._model = model
        self._read: set[tuple[int, str]] = set()
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Products:
        self._hooks = [self._model.register_forward_pre_hook(lambda *_: self._read.clear())]
        for module in self._model.modules():
            if isinstance(module, AnalogLinear) and module.source is not None:
                self._hooks.append(module.register_forward_hook(self._see_tiles))
        for _, layer in convertible(self._model):
            self._hooks.append(layer.register_forward_hook(self._see_layer, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _see_tiles(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, AnalogLinear)
        assert module.source is not None
        self._add(module, "", output.numel() // module.out_features, module.source.part())

    def _see_layer(self, module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        parts = digital_parts(module)
        for name, count in vectors(module, inputs, options, output).items():
            self._add(module, name, count, parts[name])

    def _add(self, module: nn.Module, name: str, count: int, part: Part) -> None:
        self.macs += count * part.weight.numel()
        if count and (id(module), name) not in self._read:
            self._read.add((id(module), name))
            self.weights += part.weight.numel()

"""A layer of any kind whose matrices are on tiles."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from crossbar.adapters import LayerAdapter, Product, Shaped
from crossbar.adapters.stand_in import stand_in
from crossbar.hardware import Hardware
from crossbar.nn import operator
from crossbar.nn.digital_names import as_inside
from crossbar.nn.linear import AnalogLinear, PartOf

TILES = "tiles"
"""Attribute of an `AnalogModule` with its matrices, and so a part of their names."""


class AnalogModule(nn.Module):
    """A digital layer whose matrices are on tiles, each an `AnalogLinear` of its own, and the rest of it in digital.

    Its adapter (`crossbar.adapters.LayerAdapter`) computes the layer with what the tiles give. Attributes of the
    digital layer can be read here (``conv.stride``); its weights answer shape, dtype and device and refuse arithmetic.

    Attributes:
        digital: the layer that was converted, which `crossbar.restore` puts back.
        adapter: of its kind.
        tiles: its matrices by name; the name of one is ``<name>.tiles.<part>``.
        number, calls: by which compiled graphs know it, and how often they called it (`crossbar.nn.operator`), 0-d.
    """

    digital: nn.Module
    tiles: nn.ModuleDict
    number: Tensor
    calls: Tensor

    books_itself = True
    """Its parts count what they do in open ledgers (`crossbar.costs.digital_layers`)."""

    def __init__(self, digital: nn.Module, adapter: LayerAdapter, hardware: Mapping[str, Hardware], name: str) -> None:
        super().__init__()
        self.training = digital.training
        self.digital, self.adapter = digital, adapter
        self.tiles = nn.ModuleDict(
            {
                part: AnalogLinear.from_part(PartOf(digital, adapter, part), own, f"{name}.{TILES}.{part}")
                for part, own in hardware.items()
            }
        )
        where = self.matrices()[0].scales.device
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, device=where), persistent=False)
        self.number = operator.entered(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's own
        self.number = operator.entered(self)

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """What the digital layer's ``forward`` takes and gives.

        In graphs of `torch.compile` and `torch.export` it is one operation (`crossbar.nn.operator`), where the adapter
        knows the shapes of what it gives; elsewhere a graph breaks here.
        """
        if not torch.compiler.is_compiling():
            return self._forward(*inputs, **options)
        shapes = self.adapter.shapes(self.digital, *inputs, **options) if isinstance(self.adapter, Shaped) else None
        if shapes is None:
            return torch.compiler.disable(self._forward)(*inputs, **options)
        return operator.call(self, shapes, *inputs, **options)

    def read(self, *inputs: Any, **options: Any) -> Any:
        """`forward` of a graph that runs, which is not being made."""
        return self._forward(*inputs, **options)

    def matrices(self) -> list[AnalogLinear]:
        """What is read of the layer."""
        return [cast(AnalogLinear, part) for part in self.tiles.values()]

    def trained(self) -> list[nn.Parameter]:
        """The parameters that outputs depend on."""
        return [*self.parameters()]

    def _forward(self, *inputs: Any, **options: Any) -> Any:
        parts = self.tiles.values()
        # While someone looks at the products of a bypassed layer (calibration), they are computed one by one.
        if all(getattr(part, "bypass", False) and not part._forward_hooks for part in parts):
            return self.digital.forward(*inputs, **options)
        return self.adapter.compute(self.digital, cast(Mapping[str, Product], self.tiles), *inputs, **options)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load weights under digital names too, such as those of a folder for ``from_pretrained``."""
        as_inside(self.digital, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """Its kind, for ``print(model)``."""
        return type(self.digital).__name__

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            digital = self._modules.get("digital")
            if digital is None or name in digital._modules:
                raise
            value = getattr(digital, name)
        if not isinstance(value, Tensor):
            return value
        held = {id(part.root) for part in self.adapter.parts(digital).values()}
        if id(value if value._base is None else value._base) not in held:
            return value
        return stand_in(value, name)

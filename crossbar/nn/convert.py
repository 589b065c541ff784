"""Digital models to analog ones, in place, with a report of what changed and what did not."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from crossbar.adapters import LayerAdapter, Part, find_adapter, is_convertible, is_rows, why_digital
from crossbar.errors import InputError
from crossbar.hardware import Hardware
from crossbar.nn.linear import AnalogLinear
from crossbar.nn.module import TILES, AnalogModule
from crossbar.nn.served import Served, served
from crossbar.tiles.mapping import tile_grid

_HUGE = 65504.0  # the largest number in half precision


@dataclass(frozen=True)
class LayerReport:
    """What became of one layer, or of one matrix of a layer that has several.

    Attributes:
        name: path in the converted model.
        kind: class of the digital layer.
        parameters: how many it holds.
        in_features, out_features: of an analog layer; 0 for a digital one.
        tiles: number of tiles; 0 for a digital layer.
        utilisation: part of the tiles' cells that hold a weight; 0 for a digital layer.
        reason: why a digital layer stayed digital; empty for an analog one.
        blocks: of an analog layer's block-diagonal matrix, beside which cells hold 0; 1 of any other matrix.
        tied: the embedding that looks the analog layer's weights up in digital memory; empty: none does.
    """

    name: str
    kind: str
    parameters: int
    in_features: int = 0
    out_features: int = 0
    tiles: int = 0
    utilisation: float = 0.0
    reason: str = ""
    blocks: int = 1
    tied: str = ""

    @property
    def weights(self) -> int:
        """That cells hold."""
        return self.in_features * self.out_features // self.blocks


@dataclass(frozen=True)
class ConversionReport:
    """Every layer with parameters: what became analog, on how many tiles, and what stayed digital and why.

    Attributes:
        layers: in the model's order.
        device: of the model, such as ``cpu`` or ``cuda``.
        served: who computes what there, and why not the backends before it.
    """

    layers: tuple[LayerReport, ...]
    device: str = "cpu"
    served: tuple[Served, ...] = ()

    @property
    def analog(self) -> tuple[LayerReport, ...]:
        """Layers on tiles."""
        return tuple(layer for layer in self.layers if layer.tiles)

    @property
    def digital(self) -> tuple[LayerReport, ...]:
        """Layers with parameters that stayed digital."""
        return tuple(layer for layer in self.layers if not layer.tiles)

    @property
    def tiles(self) -> int:
        """Tiles in use."""
        return sum(layer.tiles for layer in self.layers)

    @property
    def utilisation(self) -> float:
        """Part of all tiles' cells that hold a weight."""
        return sum(layer.utilisation * layer.tiles for layer in self.layers) / self.tiles

    @property
    def analog_parameters(self) -> int:
        """Weights in cells; those that several heads share with one embedding count once."""
        own = sum(layer.weights for layer in self.analog if not layer.tied)
        return own + sum({layer.tied: layer.weights for layer in self.analog if layer.tied}.values())

    @property
    def parameters(self) -> int:
        """Parameters of the whole model; a shared tensor counts once."""
        return sum(layer.parameters for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "analog_layers": len(self.analog),
            "tiles": self.tiles,
            "utilisation": self.utilisation,
            "parameters": self.parameters,
            "analog_parameters": self.analog_parameters,
            "device": self.device,
            "backends": {work.work: {"backend": work.backend, "passed": dict(work.passed)} for work in self.served},
            "layers": [vars(layer) for layer in self.layers],
        }

    def __str__(self) -> str:
        share = self.analog_parameters / self.parameters
        lines = [
            f"{len(self.analog)} layers became analog: {self.analog_parameters:,} of {self.parameters:,} parameters "
            f"({share:.0%}) on {self.tiles} tiles, {self.utilisation:.0%} of their cells in use"
        ]
        for reason, layers in self.digital_by_reason().items():
            count = sum(layer.parameters for layer in layers)
            lines.append(f"{len(layers)} stayed digital ({count:,} parameters): {reason}")
        lines += [
            f"{layer.name} is on tiles with the {layer.weights:,} weights that {layer.tied} looks up in digital"
            for layer in self.analog
            if layer.tied
        ]
        if self.device not in ("cpu", "meta"):
            lines.append(self.computed())
        return "\n".join(lines)

    def computed(self) -> str:
        """Who computes what on the model's device, in one line."""
        return f"on {self.device}: {', '.join(map(str, self.served))}"

    def digital_by_reason(self) -> dict[str, list[LayerReport]]:
        """The digital layers, grouped by why they stayed digital."""
        groups: dict[str, list[LayerReport]] = {}
        for layer in self.digital:
            groups.setdefault(layer.reason, []).append(layer)
        return groups


def convert(
    model: nn.Module,
    hardware: Hardware,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    per_layer: Mapping[str, Hardware] | None = None,
    *,
    tied_heads: bool = False,
) -> ConversionReport:
    """Put the layers of a model that multiply with matrices on analog tiles, in place.

    Converts the kinds of layers of docs/layers.md, classes made from these that keep their ``forward``, and those that
    users registered (`crossbar.register_adapter`). A linear layer becomes an `AnalogLinear`, any other layer an
    `crossbar.nn.module.AnalogModule` of one `AnalogLinear` a matrix. Forward hooks go along. A layer whose weight
    belongs to another module too stays digital, an output head tied to embeddings unless ``tied_heads`` is set. All
    that stays digital is reported with its reason.
    Analog layers start in eval mode: call ``model.train()`` to train through them.

    Args:
        model: changed in place; `restore` undoes it.
        hardware: the tiles.
        include: shell patterns of names of layers, or of their matrices; only these layers become analog. None: all.
        exclude: shell patterns of layer names that stay digital, such as ``"pooler*"``.
        per_layer: other hardware for layers whose name matches a shell pattern; the first match counts.
        tied_heads: take layers whose weight an embedding looks up too. Their tiles are programmed from it; in digital
            it stays one parameter, which training and saving see as before.

    Raises:
        InputError: if no layer would become analog, a pattern matches nothing, or a weight is NaN or infinite. The
            model is then unchanged.

    Warns:
        UserWarning: of layers whose weights are all 0, or that have weights beyond 65504.
    """
    if is_convertible(model):
        raise InputError(
            "the model is itself a layer: use AnalogLinear.from_digital for a linear one, and nn.Sequential(layer) else"
        )
    include, exclude, per_layer = _patterns(include), _patterns(exclude), per_layer or {}
    paths = {name: _paths(name, module, adapter) for name, module, adapter in _leaves(model) if adapter is not None}
    names = [name for own in paths.values() for name in own]
    if not names and any("forward" in vars(module) for module in model.modules()):
        raise InputError(
            f"the layers of {type(model).__name__} compute what was put in the place of their forward, as accelerate's "
            "device_map and transformers' tp_plan do: load without, convert, and then call accelerate's dispatch_model "
            "or crossbar.shard"
        )
    if not names:
        raise InputError(f"{type(model).__name__} has no layer left to convert: nothing would become analog")
    for pattern in (*(include or ()), *(exclude or ()), *per_layer):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputError(f"layer pattern {pattern!r} matches none of the {len(paths)} layers, such as {names[0]!r}")

    for name, parameter in model.named_parameters():
        if not is_lazy(parameter) and not parameter.is_meta and not torch.isfinite(parameter).all():
            raise InputError(f"parameter {name!r} holds NaN or infinite numbers: repair the model first")
    owners = _owners(model)
    look_ups = {name for name, module, _ in _leaves(model) if isinstance(module, nn.Embedding)} if tied_heads else set()
    counted: set[int] = set()
    reports: list[LayerReport] = []
    analog: dict[str, AnalogLinear | AnalogModule] = {}
    for name, module, adapter in _leaves(model):
        own = [p for p in module.parameters(recurse=adapter is not None) if id(p) not in counted]
        counted.update(id(p) for p in own)
        parameters = sum(0 if is_lazy(p) else p.numel() for p in own)
        reason = _why_digital(paths.get(name, [name]), module, adapter, include, exclude, owners, look_ups)
        if reason or adapter is None:
            reports.append(LayerReport(name, type(module).__name__, parameters, reason=reason))
            continue
        parts = adapter.parts(module)
        own_paths = dict(zip(parts, paths[name][-len(parts) :], strict=True))
        chosen = {part: _hardware_of((name, path), hardware, per_layer) for part, path in own_paths.items()}
        if is_rows(adapter):
            analog[name] = AnalogLinear.from_digital(module, next(iter(chosen.values())), name)
        else:
            analog[name] = AnalogModule(module, adapter, chosen, name)
        _take_hooks(analog[name], module)
        for part, path in own_paths.items():
            held = parts[part].weight.numel() + (0 if (bias := parts[part].bias) is None else bias.numel())
            held = parameters if part == next(reversed(own_paths)) else min(held, parameters)  # the last gets the rest
            parameters -= held
            tied = next((other for other in owners[id(parts[part].root)] if other in look_ups), "")
            reports.append(_analog_report(path, module, held, parts[part], chosen[part], tied))
    if not analog:
        raise InputError("no layer would become analog: all are excluded by name, or tied to another module")
    for doubt in _doubts(analog):
        warnings.warn(doubt, stacklevel=2)
    _replace(model, {id(layer.digital): layer for layer in analog.values()})
    _call_layers(model, False)
    _refuse_methods(model)
    first = next(model.parameters(), None)
    device = "cpu" if first is None else first.device.type
    return ConversionReport(tuple(reports), device, served(hardware, device))


def _paths(name: str, module: nn.Module, adapter: LayerAdapter) -> list[str]:
    """The names that patterns may mean: the layer's own, and that of each of its matrices if it becomes several."""
    if is_rows(adapter) or any(is_lazy(parameter) for parameter in module.parameters()):
        return [name]
    return [name, *(f"{name}.{TILES}.{part}" for part in adapter.parts(module))]


def _hardware_of(names: tuple[str, ...], hardware: Hardware, per_layer: Mapping[str, Hardware]) -> Hardware:
    own = (h for pattern, h in per_layer.items() if any(fnmatchcase(name, pattern) for name in names))
    return next(own, hardware)


_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip
"""Where torch keeps the hooks of a module."""


def _take_hooks(analog: nn.Module, digital: nn.Module) -> None:
    """Call the hooks of a digital layer on what the analog one gets and gives; their handles remove them from both."""
    for hooks in _HOOKS:
        vars(analog)[hooks] = vars(digital)[hooks]


def _doubts(analog: Mapping[str, AnalogLinear | AnalogModule]) -> Iterator[str]:
    """What to warn of: layers that can be computed and can hardly be meant."""
    layers = [part for layer in analog.values() for part in layer.modules() if isinstance(part, AnalogLinear)]
    weights = {layer.name: layer.source.part().weight.detach() for layer in layers if layer.source is not None}
    known = {name: weight for name, weight in weights.items() if weight.numel() and not weight.is_meta}
    largest = {name: float(weight.abs().amax()) for name, weight in known.items()}
    zero = [name for name, most in largest.items() if most == 0]
    huge = [name for name, most in largest.items() if most > _HUGE]
    if zero:
        yield f"{_named(zero)} only weights of 0, so that tiles add nothing to the bias: is the model whole?"
    if huge:
        yield f"{_named(huge)} weights beyond {_HUGE:g}, which no trained one has: is the model whole?"


def _named(layers: list[str]) -> str:
    if len(layers) == 1:
        return f"layer {layers[0]!r} has"
    return f"{len(layers)} layers, such as {layers[0]!r}, have"


def restore(model: nn.Module) -> None:
    """Put the digital layers back, in place: the very modules that `convert` took, weights untouched.

    Raises:
        InputError: for an analog layer by itself, whose digital layer is its attribute ``digital``.
    """
    if isinstance(model, AnalogLinear | AnalogModule):
        raise InputError(
            "restore takes a model that holds analog layers: a single one has its digital layer in .digital"
        )
    layers = [m for m in model.modules() if isinstance(m, AnalogLinear | AnalogModule)]
    _replace(model, {id(layer): layer.digital for layer in layers if layer.digital is not None})
    _call_layers(model, True)
    for module in model.modules():
        for method in (_SAVE, _RESIZE):
            vars(module).pop(method, None)


def _patterns(patterns: str | Sequence[str] | None) -> tuple[str, ...] | None:
    return (patterns,) if isinstance(patterns, str) else None if patterns is None else tuple(patterns)


def _leaves(model: nn.Module) -> Iterator[tuple[str, nn.Module, LayerAdapter | None]]:
    """Layers that an adapter takes, and other modules with parameters of their own, outside analog layers."""
    seen: set[int] = set()

    def visit(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module, LayerAdapter | None]]:
        if id(module) in seen or isinstance(module, AnalogLinear | AnalogModule):
            return
        seen.add(id(module))
        adapter = find_adapter(module)
        if adapter is not None or next(module.parameters(recurse=False), None) is not None:
            yield name, module, adapter
        for child, inner in () if adapter is not None else module._modules.items():
            if inner is not None:
                yield from visit(f"{name}.{child}" if name else child, inner)

    return visit("", model)


def _owners(model: nn.Module) -> dict[int, list[str]]:
    owners: dict[int, list[str]] = {}
    for name, module, adapter in _leaves(model):
        for parameter in module.parameters(recurse=adapter is not None):
            owners.setdefault(id(parameter), []).append(name)
    return owners


def _why_digital(
    names: list[str],
    module: nn.Module,
    adapter: LayerAdapter | None,
    include: tuple[str, ...] | None,
    exclude: tuple[str, ...] | None,
    owners: dict[int, list[str]],
    look_ups: Set[str],
) -> str:
    if adapter is None:
        return why_digital(module)
    if any(fnmatchcase(name, pattern) for pattern in exclude or () for name in names):
        return "excluded by name"
    if include is not None and not any(fnmatchcase(name, pattern) for pattern in include for name in names):
        return "not included by name"
    if any(is_lazy(parameter) for parameter in module.parameters()):
        return "its size is not known before the model has run once"
    for part in adapter.parts(module).values():
        sharers = owners.get(id(part.root), [])
        if names[0] not in sharers:
            return "its weight is computed from other parameters (pruned or parametrised): make it permanent first"
        shared = [other for other in sharers if other != names[0]]
        if shared and look_ups.isdisjoint(shared):
            return f"weight shared with {shared[0]}"
    return ""


def _analog_report(
    name: str, module: nn.Module, parameters: int, part: Part, hardware: Hardware, tied: str
) -> LayerReport:
    out_features, in_features = part.shape
    t_out, t_in = tile_grid(in_features, out_features, hardware.tile)
    return LayerReport(
        name=name,
        kind=type(module).__name__,
        parameters=parameters,
        in_features=in_features,
        out_features=out_features,
        tiles=t_out * t_in * hardware.tile.slices,
        blocks=part.blocks,
        tied=tied,
        utilisation=part.weight.numel() / (t_out * t_in * hardware.tile.rows * hardware.tile.cols),
    )


def _replace(model: nn.Module, replacements: dict[int, nn.Module]) -> None:
    """Put modules in the place of others, given by identity, everywhere in the model that they are used."""
    for parent in list(model.modules()):
        for child, module in list(parent._modules.items()):
            if id(module) in replacements:
                parent._modules[child] = replacements[id(module)]


_SAVE = "save_pretrained"
"""The method by which models of transformers write themselves."""
_RESIZE = "resize_token_embeddings"
"""The method by which they get rows for other tokens, in the look-up and in the head."""


def _refuse_methods(model: nn.Module) -> None:
    """Let no converted model of transformers be written: its names are not those that ``from_pretrained`` looks for.

    Nor let it change the rows of a head that is in cells, by itself or through the look-up that it is tied to.
    """
    layers = [module for module in model.modules() if isinstance(module, AnalogLinear)]
    held = {id(layer.source.part().root) for layer in layers if layer.source is not None}
    for module in model.modules():
        kind = type(module)
        if callable(getattr(kind, _SAVE, None)) and any(isinstance(m, AnalogLinear) for m in module.modules()):
            vars(module)[_SAVE] = _refused_saving
        if callable(getattr(kind, _RESIZE, None)) and _has_head_in_cells(cast(Any, module), held):
            vars(module)[_RESIZE] = _refused_resizing


def _has_head_in_cells(model: Any, held: set[int]) -> bool:
    """Whether a model of transformers has an analog head, or a look-up whose weight is among those that tiles hold."""
    try:
        head, look_up = model.get_output_embeddings(), model.get_input_embeddings()
    except (NotImplementedError, AttributeError):  # such as a vision model
        return False
    return isinstance(head, AnalogLinear | AnalogModule) or id(getattr(look_up, "weight", None)) in held


def _refused_resizing(*_: Any, **__: Any) -> None:
    raise InputError(
        "the head of this model is in cells, where other tokens have no columns: call crossbar.restore(model), resize "
        "the digital model, then convert and program it again"
    )


def _refused_saving(*_: Any, **__: Any) -> None:
    raise InputError(
        "this model has analog layers, whose weights from_pretrained would not find and would draw anew: call "
        "crossbar.restore(model) first and save the digital model, save_state(model, path) for the chip, or "
        "calibrate(..., out=folder) for a bundle of both"
    )


_FUSED = {nn.TransformerEncoderLayer: "activation_relu_or_gelu", nn.TransformerEncoder: "use_nested_tensor"}
"""Switches of torch's fused inference paths, which read ``linear1.weight`` past the tiles; 0 and False are off."""


def _call_layers(model: nn.Module, fused: bool) -> None:
    """Make torch's encoder modules call their layers where these are analog, or (``fused``) do as they did before."""
    for module in model.modules():
        switch = next((name for kind, name in _FUSED.items() if isinstance(module, kind)), None)
        if switch is None:
            continue
        saved = f"_ohmformer_{switch}"
        if fused and saved in vars(module):
            setattr(module, switch, vars(module).pop(saved))
        elif not fused and any(isinstance(m, AnalogLinear) for m in module.modules()):
            vars(module).setdefault(saved, getattr(module, switch))
            setattr(module, switch, type(getattr(module, switch))())

"""Programmed state on disk: one safetensors file, no pickle."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from crossbar.devices import State
from crossbar.errors import InputError, require_number, require_whole, shown
from crossbar.nn.chip import analog_layers
from crossbar.nn.linear import CORRECTIONS, MOST_AVERAGED, AnalogLinear
from crossbar.nn.rotation import LARGEST
from crossbar.storage.files import write_whole
from crossbar.storage.plain_values import load_json
from crossbar.storage.tensor_files import opened, shapes, write
from crossbar.tiles import ageing
from crossbar.tiles.faults import Fault
from crossbar.tiles.wires import are_places

_T = TypeVar("_T")

_VERSION = 1
_OPTIONAL = (
    "input_range",
    "digital_lines",
    "line_scale",
    "rotation",
    "weight_range",
    "weight_correction",
    "target_correction",
    "chip_correction",
    "adc_range",
    "averaged_reads",
    "fault_map",
    "row_places",
    "column_places",
    *CORRECTIONS,
)
_OF_CELLS = ("weight_range", "fault_map", "row_places", "column_places")
_PLACES = ("row_places", "column_places")
_WHOLE = ("digital_lines", "rotation", "averaged_reads")
_ABOVE_0 = ("scales", "input_range", "line_scale", "weight_range", "adc_range")
_MOST = 1e18
_LONGEST = 300  # characters of a reason, which may quote the file


def save_state(model: nn.Module, path: str | Path, *, whole: bool = True, names: Collection[str] | None = None) -> None:
    """Write a programmed model's cells, seeds, age and calibration; the digital weights are not part of it.

    The file appears whole or not at all.

    Args:
        model: programmed.
        path: of the file.
        whole: also write cells that seed and weights make again bit for bit, which for most devices are four times as
            large as the weights. Without them the file needs the same weights beside it, and `load_state` cannot tell
            whether a model has them.
        names: of the layers to write; None: all.

    Raises:
        InputError: for a model without analog layers, one that was not programmed, a folder that does not exist, and a
            file that cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder: give the path of a file")
    if not path.parent.is_dir():
        raise InputError(f"folder {str(path.parent)!r} does not exist: make it first, or give another path")
    tensors: dict[str, Tensor] = {}
    layers: dict[str, dict[str, object]] = {}
    for name, layer in analog_layers(model).items():
        if names is not None and name not in names:
            continue
        if layer.seed is None:
            raise InputError(f"{name} was not programmed, so there is no state to save: program it first")
        state = {} if not whole and layer.cells.is_made_again else layer.state()
        layers[name] = {
            "seed": layer.seed,
            "seconds": layer.seconds,
            "hardware": repr(layer.hardware),
            "cells": sorted(state),
        }
        tensors.update({f"{name}/{key}": tensor.contiguous() for key, tensor in _tensors(layer, state).items()})
    metadata = {"format": "ohmformer state", "version": str(_VERSION), "layers": json.dumps(layers)}
    write_whole(path, lambda partial: write(tensors, partial, metadata), "state file")


@torch.inference_mode(False)
@torch.no_grad()
def load_state(model: nn.Module, path: str | Path, *more: str | Path) -> None:
    """Take over what `save_state` wrote, into a model converted in the same way; reads then repeat bit for bit.

    What is loaded is held to what the setters of `AnalogLinear` allow, and cells to conductances that are finite.

    Args:
        model: converted.
        path: of the file.
        more: of further files, where each holds some of the layers.

    Raises:
        InputError: for a missing or foreign file, for layers, shapes or hardware that differ, and for numbers that no
            calibration or programming gives. The model is then unchanged.
    """
    layers = analog_layers(model)
    saved: dict[str, dict[str, Any]] = {}
    tensors: dict[str, Tensor] = {}
    for one in (path, *more):
        where = f"state file {str(one)!r}"
        if not Path(one).is_file():
            raise InputError(f"{where} does not exist: give a file that save_state wrote")
        with opened(where, one) as file:
            own = _described(where, file.metadata() or {})
            if own.keys() - (layers.keys() - saved.keys()) or (not more and own.keys() != layers.keys()):
                different = sorted(own.keys() ^ layers.keys())
                raise InputError(f"{where} and the model differ in layer {shown(different[0])}")
            found = shapes(file)
            for name in own:
                _require_shapes(where, layers[name], name, own[name], _own(found, name))
            owned = {f"{name}/{key}" for name in own for key in _own(found, name)}
            if found.keys() - owned:
                raise InputError(f"{where} has {shown(min(found.keys() - owned))}, which no layer has: write it again")
            tensors |= {key: file.get_tensor(key) for key in found}
        saved |= own
    where = f"state file {str(path)!r}" if not more else f"state files {str(path)!r} and {len(more)} more"
    if saved.keys() != layers.keys():
        raise InputError(f"{where} and the model differ in layer {shown(min(layers.keys() - saved.keys()))}")
    for name, layer in layers.items():
        for key, tensor in _own(tensors, name).items():
            _require_numbers(where, layer, name, key, tensor)
        cells = _cells(_own(tensors, name))
        if cells and not ageing.is_readable(layer.hardware.device, cells, saved[name]["seconds"]):
            raise InputError(
                f"{where} holds cells of {name} that programming never leaves, without a possible conductance at "
                f"{saved[name]['seconds']:g} s: write it again"
            )
    for name, layer in layers.items():
        moved = {key: tensor.to(layer.scales.device) for key, tensor in _own(tensors, name).items()}
        layer.fix_ranges()
        layer.drop_corrections()
        layer.cells.scales, layer.column_gain = moved["scales"], moved["column_gain"]
        for key in _OPTIONAL:
            setattr(layer.cells if key in _OF_CELLS else layer, key, moved.get(key))
        cells = _cells(moved)
        layer.set_state(cells, saved[name]["seed"], saved[name]["seconds"])
        if cells:
            layer.cells.drop_state()


def described_layers(path: str | Path) -> dict[str, dict[str, Any]]:
    """What a state file says of each layer: its ``seed``, ``seconds``, ``hardware`` and the names of its ``cells``.

    Raises:
        InputError: for a file that is not a state.
    """
    where = f"state file {str(path)!r}"
    with opened(where, path) as file:
        return _described(where, file.metadata() or {})


def _described(where: str, metadata: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    if metadata.get("format") != "ohmformer state" or metadata.get("version") != str(_VERSION):
        raise InputError(f"{where} is not an ohmformer state of version {_VERSION}: write it again")
    layers = load_json(f"{where}: the description of its layers", metadata.get("layers", "").encode(), "write it again")
    try:
        for name, saved in layers.items():
            require_whole(f"seed of {name}", saved["seed"], least=0)
            require_number(f"seconds of {name}", saved["seconds"])
            if not isinstance(saved["hardware"], str) or not all(isinstance(cells, str) for cells in saved["cells"]):
                raise TypeError(f"hardware or cells of {name} are not text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:_LONGEST]
        raise InputError(f"{where} does not describe its layers ({reason}): write it again") from None
    described: dict[str, dict[str, Any]] = layers
    return described


def _require_shapes(
    where: str, layer: AnalogLinear, name: str, saved: dict[str, Any], found: dict[str, list[int]]
) -> None:
    """Refuse tensors that are missing, unknown or of another shape than the layer's, before they are read."""
    if saved["hardware"] != repr(layer.hardware):
        raise InputError(f"{where} needs other hardware in {name}: {saved['hardware'][:1000]}")
    one = layer.scales.new_zeros(1, 1, 1)
    cells = {f"cells.{key}" for key in ageing.program(layer.hardware.device, one, (0, name))}
    made_again = not saved["cells"] and layer.hardware.verify is None and ageing.keeps_no_state(layer.hardware.device)
    needed = {"scales", "column_gain", *(f"cells.{key}" for key in saved["cells"])}
    needed |= set() if made_again else cells
    if needed - found.keys():
        raise InputError(f"{where} lacks {shown(min(needed - found.keys()))} of {name}: write it again")
    unknown = found.keys() - cells - {"scales", "column_gain", *_OPTIONAL}
    if unknown:
        raise InputError(f"{where} has {shown(min(unknown))} of {name}, which its layer has not: write it again")
    if ("row_places" in found) != ("column_places" in found):
        raise InputError(f"{where} has half a placement of {name}: write it again")
    halves = [found.get("adapter_down"), found.get("adapter_up")]
    if (halves[0] is None) != (halves[1] is None):
        raise InputError(f"{where} has half an adapter of {name}: write it again")
    rank = halves[0][-1] if halves[0] else 0
    for key, shape in found.items():
        expected = _shape(layer, key, shape, rank)
        if shape != expected:
            raise InputError(f"{where} has {key} {shape} in {name}, the model {expected}")


def _require_numbers(where: str, layer: AnalogLinear, name: str, key: str, tensor: Tensor) -> None:
    """Refuse what the setters of `AnalogLinear` would, and numbers whose products leave float32."""
    expected = {"fault_map": torch.uint8, **dict.fromkeys((*_PLACES, *_WHOLE), torch.int64)}.get(
        key, layer.scales.dtype
    )
    if tensor.dtype != expected:
        raise InputError(f"{where} has {key} {tensor.dtype} in {name}, the model {expected}")
    if key == "fault_map":
        good, allowed = bool((tensor <= max(Fault)).all()), f"codes from 0 to {max(Fault):d}"
    elif key in _PLACES:
        tile = layer.hardware.tile
        size = tile.rows if key == "row_places" else tile.cols
        good, allowed = are_places(tensor, tensor.shape[0], tensor.shape[1], size), "each place of a tile once"
    elif key == "digital_lines":
        rising = bool((tensor.diff() > 0).all() and (tensor >= 0).all() and (tensor < layer.in_features).all())
        good, allowed = rising and len(tensor) > 0, f"lines from 0 to {layer.in_features - 1} in rising order"
    elif key == "rotation":
        most = min(LARGEST, layer.in_features)
        lines = int(tensor)
        good, allowed = 2 <= lines <= most and not lines & (lines - 1), f"powers of 2 from 2 to {most}"
    elif key == "averaged_reads":
        good, allowed = 1 <= int(tensor) <= MOST_AVERAGED, f"whole numbers from 1 to {MOST_AVERAGED}"
    elif key in _ABOVE_0:
        good, allowed = bool(((tensor > 0) & (tensor <= _MOST)).all()), f"finite numbers above 0 and up to {_MOST:g}"
    else:
        good, allowed = bool((tensor.abs() <= _MOST).all()), f"finite numbers from {-_MOST:g} to {_MOST:g}"
    if not good:
        raise InputError(f"{where} has a bad {key} in {name}, which takes {allowed}: write it again")


def _cells(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("cells."): tensor for key, tensor in own.items() if key.startswith("cells.")}


def _own(parts: Mapping[str, _T], layer: str) -> dict[str, _T]:
    return {key.rpartition("/")[2]: part for key, part in parts.items() if key.rpartition("/")[0] == layer}


def _shape(layer: AnalogLinear, key: str, found: list[int], rank: int) -> list[int]:
    """What the tensor called ``key`` must look like; an ADC range is one number or one for each column."""
    known = {
        "scales": layer.scales.shape,
        "column_gain": layer.column_gain.shape,
        "input_range": (),
        "digital_lines": tuple(found[:1]),
        "line_scale": (layer.in_features,),
        "weight_range": layer.scales.shape,
        "row_places": (-(-layer.out_features // layer.hardware.tile.cols), layer.in_features),
        "column_places": (layer.scales.shape[0], layer.out_features),
        "weight_correction": (layer.out_features, layer.in_features),
        "target_correction": (layer.out_features, layer.in_features),
        "chip_correction": (layer.out_features, layer.in_features),
        "adc_range": layer.column_gain.shape if found else (),
        "rotation": (),
        "averaged_reads": (),
        "output_gain": (layer.out_features,),
        "output_offset": (layer.out_features,),
        "adapter_down": (layer.in_features, rank),
        "adapter_up": (rank, layer.out_features),
    }
    return list(known.get(key, (layer.cells.cells_a_weight, layer.in_features, layer.out_features)))


def _tensors(layer: AnalogLinear, state: State) -> dict[str, Tensor]:
    optional = {name: getattr(layer.cells if name in _OF_CELLS else layer, name) for name in _OPTIONAL}
    return {
        "scales": layer.scales,
        "column_gain": layer.column_gain,
        **{f"cells.{name}": tensor for name, tensor in state.items()},
        **{name: tensor.detach() for name, tensor in optional.items() if tensor is not None},
    }

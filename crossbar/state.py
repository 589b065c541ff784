"""Programmed state on disk: one safetensors file, no pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from crossbar.chip import analog_layers
from crossbar.corrections import CORRECTIONS
from crossbar.errors import InputError, require_number, require_whole
from crossbar.files import write_whole
from crossbar.linear import AnalogLinear

_VERSION = 1
_OPTIONAL = (
    "input_range",
    "line_scale",
    "weight_range",
    "weight_correction",
    "adc_range",
    "fault_map",
    *CORRECTIONS,
)


def save_state(model: nn.Module, path: str | Path) -> None:
    """Write a programmed model's cells, seeds, age and calibration; the digital weights are not part of it.

    The file appears whole or not at all.

    Raises:
        InputError: for a model without analog layers, one that was not programmed, or a folder that does not exist.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{str(path)!r} is a folder: give the path of a file")
    if not path.parent.is_dir():
        raise InputError(f"folder {str(path.parent)!r} does not exist: make it first, or give another path")
    tensors: dict[str, Tensor] = {}
    layers: dict[str, dict[str, object]] = {}
    for name, layer in analog_layers(model).items():
        if layer.seed is None:
            raise InputError(f"{name} was not programmed, so there is no state to save: program it first")
        layers[name] = {
            "seed": layer.seed,
            "seconds": layer.seconds,
            "hardware": repr(layer.hardware),
            "cells": sorted(layer.state()),
        }
        tensors.update({f"{name}/{key}": tensor.contiguous() for key, tensor in _tensors(layer).items()})
    metadata = {"format": "ohmformer state", "version": str(_VERSION), "layers": json.dumps(layers)}
    write_whole(path, lambda partial: save_file(tensors, partial, metadata))


@torch.inference_mode(False)
@torch.no_grad()
def load_state(model: nn.Module, path: str | Path) -> None:
    """Take over what `save_state` wrote, into a model converted in the same way; reads then repeat bit for bit.

    Raises:
        InputError: for a missing or foreign file, and for layers, shapes or hardware that differ. The model is then
            unchanged.
    """
    if not Path(path).is_file():
        raise InputError(f"state file {str(path)!r} does not exist: give a file that save_state wrote")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise InputError(f"state file {str(path)!r} is not a safetensors file: {error}") from None
    if metadata.get("format") != "ohmformer state" or metadata.get("version") != str(_VERSION):
        raise InputError(f"state file {str(path)!r} is not an ohmformer state of version {_VERSION}: write it again")
    saved = _saved_layers(metadata, path)
    layers = analog_layers(model)
    if saved.keys() != layers.keys():
        different = sorted(saved.keys() ^ layers.keys())
        raise InputError(f"state file {str(path)!r} and the model differ in layer {different[0]!r}")
    for name, layer in layers.items():
        if saved[name]["hardware"] != repr(layer.hardware):
            raise InputError(f"state file {str(path)!r} needs other hardware in {name}: {saved[name]['hardware']}")
        own = _own(tensors, name)
        missing = {"scales", "column_gain", *(f"cells.{cells}" for cells in saved[name]["cells"])} - own.keys()
        if missing:
            raise InputError(f"state file {str(path)!r} lacks {sorted(missing)[0]!r} of {name}: write it again")
        halves = [own.get("adapter_down"), own.get("adapter_up")]
        if (halves[0] is None) != (halves[1] is None):
            raise InputError(f"state file {str(path)!r} has half an adapter of {name}: write it again")
        rank = 0 if halves[0] is None or not halves[0].dim() else halves[0].shape[-1]
        for key, tensor in own.items():
            found = f"{tensor.dtype} {list(tensor.shape)}"
            expected = f"{torch.uint8 if key == 'fault_map' else layer.scales.dtype} {_shape(layer, key, tensor, rank)}"
            if found != expected:
                raise InputError(f"state file {str(path)!r} has {key} {found} in {name}, the model {expected}")
    for name, layer in layers.items():
        own = {key: tensor.to(layer.scales.device) for key, tensor in _own(tensors, name).items()}
        layer.fix_ranges()
        layer.drop_corrections()
        layer.scales, layer.column_gain = own["scales"], own["column_gain"]
        for key in _OPTIONAL:
            setattr(layer, key, own.get(key))
        cells = {key.removeprefix("cells."): tensor for key, tensor in own.items() if key.startswith("cells.")}
        layer.set_state(cells, saved[name]["seed"], saved[name]["seconds"])


def _saved_layers(metadata: Mapping[str, str], path: str | Path) -> dict[str, dict[str, Any]]:
    """What the file says of each layer: its ``seed``, ``seconds``, ``hardware`` and the names of its ``cells``."""
    try:
        layers = json.loads(metadata["layers"])
        for name, saved in layers.items():
            require_whole(f"seed of {name}", saved["seed"], least=0)
            require_number(f"seconds of {name}", saved["seconds"])
            if not all(isinstance(cells, str) for cells in saved["cells"]):
                raise TypeError(f"cells of {name} are not names")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"state file {str(path)!r} does not describe its layers ({error}): write it again") from None
    described: dict[str, dict[str, Any]] = layers
    return described


def _own(tensors: dict[str, Tensor], layer: str) -> dict[str, Tensor]:
    return {key.rpartition("/")[2]: t for key, t in tensors.items() if key.rpartition("/")[0] == layer}


def _shape(layer: AnalogLinear, key: str, found: Tensor, rank: int) -> list[int]:
    """What the tensor called ``key`` must look like; an ADC range is one number or one for each column."""
    known = {
        "scales": layer.scales.shape,
        "column_gain": layer.column_gain.shape,
        "input_range": (),
        "line_scale": (layer.in_features,),
        "weight_range": layer.scales.shape,
        "weight_correction": (layer.out_features, layer.in_features),
        "adc_range": layer.column_gain.shape if found.dim() else (),
        "output_gain": (layer.out_features,),
        "output_offset": (layer.out_features,),
        "adapter_down": (layer.in_features, rank),
        "adapter_up": (rank, layer.out_features),
    }
    return list(known.get(key, (layer.cells_a_weight, layer.in_features, layer.out_features)))


def _tensors(layer: AnalogLinear) -> dict[str, Tensor]:
    optional = {name: getattr(layer, name) for name in _OPTIONAL}
    return {
        "scales": layer.scales,
        "column_gain": layer.column_gain,
        **{f"cells.{name}": tensor for name, tensor in layer.state().items()},
        **{name: tensor.detach() for name, tensor in optional.items() if tensor is not None},
    }

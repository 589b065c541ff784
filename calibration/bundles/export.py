"""A bundle's model for other software: a plain transformers folder."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import torch
from torch import nn

from attention import Pattern, detach
from calibration.bundles import model_folders, writer
from calibration.bundles.files import Files, digest, new_folder, write_json
from crossbar import AnalogLinear, InputError, analog_layers, restore
from crossbar.adapters import Part, digital_parts
from crossbar.nn.module import AnalogModule

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Weights = Literal["effective", "digital"]
NOTE = "ohmformer_export.json"


def export_transformers(
    path: Path,
    weights: Weights,
    *,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase | None,
    pattern: Pattern | None,
    files: Files,
    description: Mapping[str, Any],
) -> tuple[str, ...]:
    """Write a folder that ``from_pretrained`` reads, and say what it cannot hold: see `Bundle.export`."""
    if weights not in get_args(Weights):
        raise InputError(f"weights {weights!r} are not known: choose {' or '.join(get_args(Weights))}")
    if description["model"]["class"] is None:
        raise InputError("the bundle holds a model of a class of your own, which transformers does not read")
    missed = []
    if pattern is not None:
        missed.append(f"the attention pattern {pattern} (the folder has the model's own attention)")
    with new_folder(path) as folder:
        if weights == "digital":
            _copy_digital(files, folder)
        else:
            plain, lost = effective(model)
            missed += lost
            model_folders.save(plain, tokenizer, folder / writer.MODEL)
            for file in (folder / writer.MODEL).iterdir():
                file.rename(folder / file.name)
            (folder / writer.MODEL).rmdir()
        told = {
            "weights": weights,
            "chip": description["chip"],
            "seconds": next(iter(analog_layers(model).values())).seconds,
            "not exported": missed,
        }
        write_json(folder / NOTE, told)
    return tuple(missed)


def effective(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """A digital copy of a converted model with the weights that its tiles stand for now, and what it cannot hold."""
    layers = analog_layers(model)
    whole = [module for module in model.modules() if isinstance(module, AnalogModule)]
    within = {id(part) for module in whole for part in module.modules()}
    replaced: dict[int, Any] = {id(module): _digital_module(module) for module in whole}
    replaced |= {id(layer): _digital(layer) for layer in layers.values() if id(layer) not in within}
    plain: nn.Module = copy.deepcopy(model, replaced)
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    if any(id(part.root) in looked_up for layer in layers.values() if layer.digital is not None
           for part in digital_parts(layer.digital).values()):  # fmt: skip
        cast(Any, plain).config.tie_word_embeddings = False  # cells stand for other numbers than embeddings look up
    restore(plain)
    detach(plain)
    lost = [name for name, layer in layers.items() if layer.output_offset is not None and layer.bias is None]
    missed = [f"the output offsets of {len(lost)} layers without a bias, the first is {lost[0]}"] if lost else []
    return plain, ["converters, and the noise of reads", *missed]


def _digital(layer: AnalogLinear) -> nn.Module:
    if layer.digital is None:
        linear: nn.Module = nn.Linear(layer.in_features, layer.out_features, bias=False, device=layer.scales.device)
    else:
        linear = copy.deepcopy(layer.digital)
    (part,) = digital_parts(linear).values()
    _write(part, layer)
    return linear


def _digital_module(module: AnalogModule) -> nn.Module:
    plain = copy.deepcopy(module.digital)
    for name, part in module.adapter.parts(plain).items():
        layer = module.tiles[name]
        assert isinstance(layer, AnalogLinear)
        _write(part, layer)
    return plain


@torch.no_grad()
def _write(part: Part, layer: AnalogLinear) -> None:
    part.write(layer.effective_weight())
    if part.bias is not None and layer.output_offset is not None:
        part.bias.add_(layer.output_offset)


def _copy_digital(files: Files, folder: Path) -> None:
    prefix = f"{writer.MODEL}/"
    for name, entry in files.entries.items():
        if name.startswith(prefix):
            place = folder / name.removeprefix(prefix)
            shutil.copyfile(files.folder / name, place)
            if digest(place) != entry.sha256:
                raise InputError(f"bundle {str(files.folder)!r}: file {name!r} changed since it was loaded")

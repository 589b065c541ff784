"""Digital models to folders and back: transformers' own format, or the weights of a module of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from attention import attach, attached_pattern, detach
from calibration.bundles.files import LARGEST
from calibration.models.folder_files import reason
from calibration.models.loading import read_transformers
from calibration.models.quiet import quiet
from crossbar.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WEIGHTS = "weights.safetensors"


def save(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase | None, folder: Path, largest: int = LARGEST
) -> dict[str, Any]:
    """Write a digital model, without its pattern, and its tokenizer into a new folder; returns what `load` needs.

    Weights of a class of transformers are in files of ``largest`` bytes at most.
    """
    folder.mkdir()
    description = {"class": _transformers_name(model), "dtype": str(next(model.parameters()).dtype)}
    if description["class"] is None:
        save_model(model, str(folder / _WEIGHTS))
        return description
    pattern = attached_pattern(model)
    detach(model)
    try:
        with quiet():
            model.save_pretrained(folder, max_shard_size=largest)  # type: ignore[operator]  # a PreTrainedModel
    finally:
        if pattern is not None:
            attach(model, pattern)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return description


def load(
    folder: Path, description: Mapping[str, Any], own: nn.Module | None
) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    """The digital model that `save` wrote, in eval mode, and its tokenizer.

    Args:
        folder: what was written.
        description: what `save` returned.
        own: for a module of one's own, another one of its class, which takes the weights over.

    Raises:
        InputError: when the folder does not hold what it should, or a module of one's own is needed.
    """
    name = description.get("class")
    if name is None:
        return _load_own(folder, own), None
    import transformers

    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    dtype = {f"torch.{name}": getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if not known or description.get("dtype") not in dtype:
        raise InputError(
            f"model {name!r} in {description.get('dtype')!r} is not known to transformers {transformers.__version__}: "
            "use the version that wrote it"
        )
    return read_transformers(folder, kind, dtype[description["dtype"]])


def _load_own(folder: Path, own: nn.Module | None) -> nn.Module:
    if own is None:
        raise InputError(
            "the bundle holds a model of a class of your own, which no file can bring along: give a model of that "
            "class, load_bundle(path, model=...)"
        )
    try:
        load_model(own, folder / _WEIGHTS)
    except (RuntimeError, OSError, ValueError, SafetensorError) as error:
        raise InputError(
            f"the weights in {str(folder)!r} do not fit a {type(own).__name__} ({reason(error)}): give a model of the "
            "class that was saved"
        ) from error
    return own.eval()


def _transformers_name(model: nn.Module) -> str | None:
    """The name under which transformers has the model's class; None for a class of one's own."""
    import transformers

    name = type(model).__name__
    return name if getattr(transformers, name, None) is type(model) else None

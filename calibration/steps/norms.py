"""Norms whose gain and bias are fitted to a chip, with what they were in the digital model kept beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

_PARTS = ("weight", "bias")
BATCH_NORMS = ("running_mean", "running_var")
"""The statistics that a batch norm keeps."""


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """The norms over features of a model by name.

    These are modules of a class called ``…Norm``, such as ``LayerNorm`` and ``LlamaRMSNorm``, with one gain a feature
    that multiplies their output. One whose parameter acts otherwise, as Gemma's ``1 + weight`` does, is left out.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if type(module).__name__.endswith("Norm") and _multiplies(module)
    }


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch norms of a model that keep statistics, by name."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    return {name: norm for name, norm in found.items() if norm.running_mean is not None}


@torch.inference_mode(False)
@torch.no_grad()
def set_statistics(norm: _BatchNorm, values: dict[str, Tensor]) -> None:
    """Give a batch norm other statistics; those of the digital model stay beside, as buffers."""
    for part, value in values.items():
        present = getattr(norm, part)
        if f"digital_{part}" not in dict(norm.named_buffers(recurse=False)):
            norm.register_buffer(f"digital_{part}", present, persistent=False)
        setattr(norm, part, value.to(present, copy=True))


def parameters(norm: nn.Module) -> dict[str, Tensor]:
    """A norm's ``weight`` and, where it has one, ``bias``, each ``[D]``, as they are now."""
    return {part: parameter.detach() for part, parameter in _own(norm).items()}


def digital_parameters(norm: nn.Module) -> dict[str, Tensor]:
    """The same as they were in the digital model."""
    kept = dict(norm.named_buffers(recurse=False))
    return {part: kept.get(f"digital_{part}", value) for part, value in parameters(norm).items()}


@torch.inference_mode(False)
@torch.no_grad()
def recalibrate(norm: nn.Module, values: dict[str, Tensor]) -> None:
    """Give a norm another ``weight`` and ``bias``; what they were in the digital model stays beside, as a buffer."""
    for part, parameter in _own(norm).items():
        if part in values:
            if f"digital_{part}" not in dict(norm.named_buffers(recurse=False)):
                norm.register_buffer(f"digital_{part}", parameter.data, persistent=False)
            parameter.data = values[part].to(parameter.data, copy=True)


@torch.inference_mode(False)
@torch.no_grad()
def restore_norms(model: nn.Module) -> None:
    """Give the norms back what they had in the digital model."""
    for norm in norms(model).values():
        for part, parameter in _own(norm).items():
            kept = norm._buffers.pop(f"digital_{part}", None)
            if kept is not None:
                parameter.data = kept
    for batch_norm in batch_norms(model).values():
        for part in BATCH_NORMS:
            kept = batch_norm._buffers.pop(f"digital_{part}", None)
            if kept is not None:
                setattr(batch_norm, part, kept)


@contextmanager
def digital_norms(model: nn.Module) -> Iterator[None]:
    """Compute with the norms of the digital model for a while."""
    changed = [
        (parameter, parameter.data, digital_parameters(norm)[part])
        for norm in norms(model).values()
        for part, parameter in _own(norm).items()
    ]
    statistics = [
        (norm, part, getattr(norm, part), norm._buffers[f"digital_{part}"])
        for norm in batch_norms(model).values()
        for part in BATCH_NORMS
        if f"digital_{part}" in norm._buffers
    ]
    try:
        for parameter, _, kept in changed:
            parameter.data = kept
        for norm, part, _, digital in statistics:
            setattr(norm, part, digital)
        yield
    finally:
        for norm, part, present, _ in statistics:
            setattr(norm, part, present)
        for parameter, present, _ in changed:
            parameter.data = present


def _own(norm: nn.Module) -> dict[str, nn.Parameter]:
    own = dict(norm.named_parameters(recurse=False))
    return {part: own[part] for part in _PARTS if part in own}


def _multiplies(norm: nn.Module) -> bool:
    """Whether a norm's output is its gain times something, plus its bias."""
    own = _own(norm)
    if "weight" not in own or own["weight"].dim() != 1:
        return False
    weight = own["weight"]
    kept = weight.data
    probe = torch.linspace(-1.0, 2.0, len(kept), dtype=kept.dtype, device=kept.device).unsqueeze(0)
    with torch.no_grad():
        try:
            weight.data = torch.zeros_like(kept)
            silent = norm(probe)
        finally:
            weight.data = kept
    bias = own["bias"].detach() if "bias" in own else 0.0
    return bool((silent == bias).all())

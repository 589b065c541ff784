"""Norms whose gain and bias are fitted to a chip, with what they were in the digital model kept beside them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_PARTS = ("weight", "bias")


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


def parameters(norm: nn.Module) -> dict[str, Tensor]:
    """A norm's ``weight`` and, where it has one, ``bias``, each ``[D]``, as they are now."""
    own = dict(norm.named_parameters(recurse=False))
    return {part: own[part].detach() for part in _PARTS if part in own}


def digital_parameters(norm: nn.Module) -> dict[str, Tensor]:
    """The same as they were in the digital model."""
    kept = dict(norm.named_buffers(recurse=False))
    return {part: kept.get(f"digital_{part}", value) for part, value in parameters(norm).items()}


@torch.inference_mode(False)
@torch.no_grad()
def recalibrate(norm: nn.Module, values: dict[str, Tensor]) -> None:
    """Give a norm another ``weight`` and ``bias``; what they were in the digital model stays beside, as a buffer."""
    for part, value in parameters(norm).items():
        if part in values:
            if f"digital_{part}" not in dict(norm.named_buffers(recurse=False)):
                norm.register_buffer(f"digital_{part}", value.clone(), persistent=False)
            value.copy_(values[part])


@torch.inference_mode(False)
@torch.no_grad()
def restore_norms(model: nn.Module) -> None:
    """Give the norms back what they had in the digital model."""
    for norm in norms(model).values():
        for part, value in digital_parameters(norm).items():
            parameters(norm)[part].copy_(value)
            norm._buffers.pop(f"digital_{part}", None)


@contextmanager
def digital_norms(model: nn.Module) -> Iterator[None]:
    """Compute with the norms of the digital model for a while."""
    changed = [(norm, parameters(norm), digital_parameters(norm)) for norm in norms(model).values()]
    before = [{part: value.clone() for part, value in present.items()} for _, present, _ in changed]
    try:
        with torch.no_grad():
            for _, present, kept in changed:
                for part, value in present.items():
                    value.copy_(kept[part])
        yield
    finally:
        with torch.no_grad():
            for (_, present, _), values in zip(changed, before, strict=True):
                for part, value in present.items():
                    value.copy_(values[part])


def _multiplies(norm: nn.Module) -> bool:
    """Whether a norm's output is its gain times something, plus its bias."""
    own = parameters(norm)
    if "weight" not in own or own["weight"].dim() != 1:
        return False
    weight = own["weight"]
    probe = torch.linspace(-1.0, 2.0, len(weight), dtype=weight.dtype, device=weight.device).unsqueeze(0)
    kept = weight.clone()
    with torch.no_grad():
        try:
            weight.zero_()
            silent = norm(probe)
        finally:
            weight.copy_(kept)
    return bool((silent == own.get("bias", 0.0)).all())

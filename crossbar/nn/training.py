"""Training a converted model: clipped weights, learned converter ranges, gradient checkpointing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn

from crossbar.errors import InputError, require_number
from crossbar.nn.chip import analog_layers
from crossbar.nn.linear import AnalogLinear


def clip_weights(model: nn.Module, deviations: float = 2.5) -> None:
    """Clip the digital weights of every analog layer at ``deviations`` times their deviation from 0, in place.

    A few large weights set the scale of their column and push all others down to where cells are noisiest; hardware-
    aware training clips after each step (2.5 deviations: Joshi et al., Nat. Commun. 11, 2473, 2020). What counts is
    what cells hold: weights times calibrated scales of their word lines, without lines that are computed in digital.

    Raises:
        InputError: for a model without analog layers, or ``deviations`` that is not a number above 0.
    """
    require_number("clip_weights deviations", deviations, above=0)
    for layer in analog_layers(model).values():
        if layer.source is None:
            continue
        part = layer.source.part()
        with torch.no_grad():
            if layer.is_plain():
                bound = part.weight.float().square().mean().sqrt() * deviations
                part.weight.clamp_(-bound, bound)
                continue
            held, lines = layer.scaled_weight(), layer.in_features
            if layer.digital_lines is not None and layer.rotation is None:
                lines -= len(layer.digital_lines)
            bound = (held.square().sum() / max(1, lines * len(held))).sqrt() * deviations
            too_large = held - held.clamp(-bound, bound)
            part.write((part.matrix - layer.unscaled_weight(too_large)).to(part.matrix))


def learn_ranges(model: nn.Module) -> list[nn.Parameter]:
    """Make the converters' ranges trainable: the parameters to give to an optimizer, in the order of the layers.

    The DAC range starts from the calibrated or static one, the ADC range from the present one; both are 0-d.

    Raises:
        InputError: for a layer whose DAC range is found from each input and was not calibrated.
    """
    layers = analog_layers(model)
    for name, layer in layers.items():
        if layer.hardware.dac is not None and layer.static_input_range() is None:
            raise InputError(
                f"{name} has no static input range to learn: calibrate one (InputRanges with abs_max or quantile) or "
                "choose the DAC range 'static'"
            )
    learned = []
    for layer in layers.values():
        learned += layer.learn_ranges()
    return learned


def replayed_reads(model: nn.Module) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Make gradient checkpointing compute the backward pass with the noise of the forward pass.

    Give it to ``torch.utils.checkpoint.checkpoint`` with ``use_reentrant=False``, or to transformers in
    ``gradient_checkpointing_kwargs``, as ``context_fn=replayed_reads(model)``, with the model or the part of it that
    is computed again. Without it, a layer with noise refuses to be computed again.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        first: dict[AnalogLinear, int] = {}

        @contextmanager
        def recording() -> Iterator[None]:
            first.update({layer: layer.reads for layer in analog_layers(model).values()})
            yield

        @contextmanager
        def replaying() -> Iterator[None]:
            before = [(layer, layer.reads, layer.replaying) for layer in first]
            for layer, read in first.items():
                layer.reads, layer.replaying = read, True
            try:
                yield
            finally:
                for layer, reads, was_replaying in before:
                    layer.reads, layer.replaying = reads, was_replaying

        return recording(), replaying()

    return contexts

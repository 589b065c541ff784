"""transformers' `Trainer` through the tiles: what `calibration.Finetune` does to a model whose weights it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from calibration.hf.quantizer import STATE
from calibration.steps.compensation import DriftCompensation
from calibration.steps.finetune import READS, is_range, keep_above_0, stand_for_any
from crossbar import age, analog_layers, clip_weights, program, reset_reads, to_seconds
from crossbar.errors import MOST_SEED, InputError, require_number, require_whole
from crossbar.storage.tensor_files import opened


class AnalogTraining(TrainerCallback):  # type: ignore[misc]  # transformers is not typed for mypy here
    """Trains a converted model for chips of an age: give it to ``Trainer(..., callbacks=[AnalogTraining()])``.

    Each step meets the converters and cells whose errors are drawn anew from the device's statistics at the age, keyed
    by the step, so that a training that was stopped and resumed meets the same. The digital weights get the gradients,
    straight through both. Whenever the Trainer evaluates or saves, and at the end, the model is chip ``seed``, written
    with the weights as they are then: at the age its drift is compensated, and it is scored the wait later. What a
    calibration had put into the chip in use is gone, since other weights are written.

    Args:
        age: of the chips that are trained for, since programming.
        compensated: train behind a gain that takes back the mean drift of that age, and compensate the drift of the
            chip that is scored.
        ranges: also learn the ranges of the ADCs, and of DACs whose range is static or calibrated. They move by the
            Trainer's own rate; exempt them from weight decay if you give one.
        clip: after each step, clip weights beyond so many deviations from 0 (Joshi 2020 takes 2.5); None: not.
        seed: which chip is scored and left at the end.
        wait: from compensating drift to scoring.

    Raises:
        InputError: for an impossible value; when a Trainer takes it, for a model without analog layers.
    """

    def __init__(
        self,
        *,
        age: str | float = "1d",
        compensated: bool = True,
        ranges: bool = True,
        clip: float | None = None,
        seed: int = 0,
        wait: str | float = "1h",
    ) -> None:
        if clip is not None:
            require_number("AnalogTraining clip", clip, above=0)
        require_whole("AnalogTraining seed", seed, least=0, most=MOST_SEED)
        self.age, self.wait = to_seconds(age), to_seconds(wait)
        if compensated and self.wait == 0:
            raise InputError("a wait of 0 s would score the very noise that was compensated: wait longer, such as '1h'")
        self.compensated, self.ranges, self.clip, self.seed = compensated, ranges, clip, seed

    def on_init_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Make ranges parameters, before the Trainer makes its optimizer."""
        for layer in analog_layers(model).values():
            if self.ranges:
                layer.learn_ranges()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Take learned ranges from the checkpoint that the Trainer goes on from, which has weights beside them."""
        file = Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE
        if state.global_step and self.ranges and file.is_file():
            with opened(f"state file {str(file)!r}", file) as tensors:
                for name, parameter in _ranges(model).items():
                    layer, _, field = name.rpartition(".")
                    parameter.data.copy_(tensors.get_tensor(f"{layer}/{field}"))

    def on_step_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Meet errors of this step and process alone."""
        place = state.global_step * args.world_size + args.process_index
        for layer in analog_layers(model).values():
            layer.reset_gains()
            stand_for_any(layer, self.age, self.compensated)
            layer.reads = place * READS

    @torch.no_grad()
    def on_step_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Clip, and be a chip if one is wanted now."""
        if self.clip is not None:
            clip_weights(model, self.clip)
        for parameter in _ranges(model).values():
            keep_above_0(parameter)
        self.on_epoch_end(args, state, control, model)

    def on_epoch_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Be a chip if the Trainer evaluates or saves now."""
        if control.should_evaluate or control.should_save:
            self._be_chip(model)

    def on_train_end(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Be a chip, with ranges as plain values."""
        for layer in analog_layers(model).values():
            layer.fix_ranges()
        self._be_chip(model)

    def _be_chip(self, model: nn.Module) -> None:
        program(model, self.seed)
        age(model, self.age)
        if self.compensated:
            step = DriftCompensation()
            step.apply(model, step.fit(model, []))
            age(model, self.age + self.wait)
        reset_reads(model)


def _ranges(model: nn.Module) -> dict[str, nn.Parameter]:
    """Ranges that are learned, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if is_range(name)}

"""The deployment bundle: one calibrated chip as a folder, verified and read back to the same bits."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from attention import Pattern, attach, parse
from calibration import bundle_writer as writer
from calibration import model_folders
from calibration.bundle_files import Files
from calibration.compensation import DriftCompensation
from crossbar import Hardware, InputError, age, analog_layers, convert, load_state, reset_reads, to_seconds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Bundle:
    """A deployment bundle that is ready to run.

    Attributes:
        model: programmed, calibrated and aged as it was saved; scores and logits repeat bit for bit.
        tokenizer: the model's own; None where it came without one.
        hardware: the tiles.
        pattern: who attends to whom; None: the model's own attention.
        files: of the folder it was read from, verified.
        description: what ``bundle.json`` says: model, task, chip, and when it was calibrated and read.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    hardware: Hardware
    pattern: Pattern | None
    files: Files
    description: Mapping[str, Any]

    @property
    def seconds(self) -> float:
        """How old the chip is, in seconds since programming."""
        return next(iter(analog_layers(self.model).values())).seconds

    @property
    def report(self) -> dict[str, Any]:
        """What the calibration found, as `Calibration.to_dict` gave it."""
        return self.files.json(writer.REPORT)

    def refit(self, time: str | float, step: DriftCompensation | None = None) -> Bundle:
        """Compensate drift anew at a later time, from read-outs of the chip alone, without data.

        Args:
            time: age of the chip since programming, such as ``"30d"``, at which the refit bundle then is. Score it
                later: at one instant a fit knows a snapshot of the 1/f noise.
            step: how; None: the recipe's own drift compensation, or the default one.

        Returns:
            The bundle at that age, with the gains in this one's ``model``.

        Raises:
            InputError: for a time before the chip's present age.
        """
        seconds = to_seconds(time)
        if seconds < self.seconds:
            raise InputError(
                f"time {time!r} lies before the bundle's own age of {self.seconds:g} s since programming: a chip is refit "
                "at its age or later"
            )
        step = self._own_step() if step is None else step
        age(self.model, seconds)
        step.apply(self.model, step.fit(self.model, []))
        reset_reads(self.model)
        done = [*self.description["refits"], {"seconds": seconds, "step": step.to_dict()}]
        return replace(self, description={**self.description, "seconds": seconds, "refits": done})

    def save(self, path: str | Path) -> None:
        """Write the bundle with its model as it is now, to a folder that does not exist yet.

        Raises:
            InputError: for a folder that exists already or cannot be written.
        """
        writer.save_refitted(self.files, Path(path), self.model, {**self.description, "seconds": self.seconds})

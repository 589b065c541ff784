"""The deployment bundle: one calibrated chip as a folder, verified and read back to the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attention import Pattern, attach, parse
from calibration.bundles import contents, model_folders, writer
from calibration.bundles.export import Weights, export_transformers
from calibration.bundles.files import Files
from calibration.recipe import step_from_dict, step_to_dict
from calibration.runs import chips as which
from calibration.runs.climb import refit
from calibration.steps.compensation import DriftCompensation
from crossbar import Hardware, InputError, analog_layers, convert, load_state, reset_reads, to_seconds

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
                f"time {time!r} lies before the bundle's own age of {self.seconds:g} s: give that time or a later one"
            )
        step = self._own_step() if step is None else step
        refit(self.model, step, seconds)
        done = [*self.description["refits"], {"seconds": seconds, "step": step_to_dict(step)}]
        return replace(self, description={**self.description, "seconds": seconds, "refits": done})

    def save(self, path: str | Path) -> None:
        """Write the bundle with its model as it is now, to a folder that does not exist yet.

        Raises:
            InputError: for a folder that exists already or cannot be written, and a model that was programmed as
                another chip.
        """
        chip, layers = self.description["chip"], analog_layers(self.model).values()
        for layer in layers:
            if layer.seed != chip:
                raise InputError(f"the model is chip {layer.seed} and the bundle's is {chip}: calibrate that chip")
        writer.save_refitted(self.files, Path(path), self.model, {**self.description, "seconds": self.seconds})

    def export(self, path: str | Path, weights: Weights = "effective") -> tuple[str, ...]:
        """Write the model as a plain transformers folder, which knows nothing of tiles.

        Args:
            path: a folder that does not exist yet.
            weights: ``effective``: those that the tiles stand for at this age, calibrated scales, gains, adapters and
                norms folded in, so that the folder computes what the chip would with ideal converters and no noise of
                reads. ``digital``: the original ones, as they were before conversion.

        Returns:
            What the folder cannot hold, a phrase each; ``ohmformer_export.json`` in the folder says the same.

        Raises:
            InputError: for a model of a class of one's own, and a folder that exists already or cannot be written.
        """
        return export_transformers(
            Path(path),
            weights,
            model=self.model,
            tokenizer=self.tokenizer,
            pattern=self.pattern,
            files=self.files,
            description=self.description,
        )

    def to_aihwkit(self) -> tuple[nn.Module, tuple[str, ...]]:
        """The model with every analog layer computed by aihwkit, and what that does not honour, a phrase each.

        The tiles hold the cells of this age as numbers, with the same converters and output noise
        (`crossbar.nn.to_aihwkit`).
        """
        from crossbar.nn.to_aihwkit import to_aihwkit

        return to_aihwkit(self.model)

    def _own_step(self) -> DriftCompensation:
        """The last drift compensation of the recipe."""
        steps = self.files.field(writer.RECIPE, "steps", list)
        own = [step for step in steps if isinstance(step, dict) and step.get("step") == DriftCompensation.__name__]
        step = step_from_dict(own[-1]) if own else DriftCompensation()
        assert isinstance(step, DriftCompensation)
        return step


def load_bundle(
    path: str | Path,
    *,
    model: nn.Module | None = None,
    hardware: Hardware | None = None,
    pattern: Pattern | None = None,
    device: str | None = None,
) -> Bundle:
    """Verify a bundle and make it run: the same chip at the same age, with the same read noise to come.

    Every file is compared with the SHA-256 and size in the manifest before anything in it is used, and nothing is
    unpickled.

    Args:
        path: what `Calibration.save` or ``ohmformer calibrate --out`` wrote.
        model: for a bundle of a model class of your own: another one of that class, which takes the weights over.
        hardware: for a device of your own, which the bundle can only describe: what it was calibrated on.
        pattern: for a pattern made of tensors or functions, which has no text: the pattern itself.
        device: where it then computes, ``"cpu"``, ``"cuda"`` or a GPU by number; None: on the CPU.

    Raises:
        InputError: for a folder that is not a bundle or not whole, for one of another schema, where ``model``,
            ``hardware`` or ``pattern`` is needed or does not fit, and for a device that is not there.
    """
    place = which.require_device(device)
    opened = open_bundle(path, hardware, pattern)
    files, told = opened.files, opened.description
    digital, tokenizer = model_folders.load(files.folder / writer.MODEL, told["model"], model)
    opened.put_on_tiles(digital)
    if place is not None:
        digital.to(place)
    return Bundle(digital, tokenizer, opened.hardware, opened.pattern, files, told)


@dataclass(frozen=True)
class Opened:
    """A bundle that is verified, without its model.

    Attributes:
        files: of the folder.
        description: what ``bundle.json`` says.
        hardware: the tiles.
        pattern: who attends to whom; None: the model's own attention.
    """

    files: Files
    description: dict[str, Any]
    hardware: Hardware
    pattern: Pattern | None

    def put_on_tiles(self, digital: nn.Module) -> None:
        """Make the digital model that was calibrated the bundle's chip, in place, as it was saved.

        Raises:
            InputError: for a model with other layers or weights.
        """
        files, layers = self.files, self.description["layers"]
        if self.pattern is not None:
            attach(digital, self.pattern)
        # of these names
        report = convert(digital, self.hardware, include=[escape(name) for name in layers], tied_heads=True)
        if [layer.name for layer in report.analog] != layers:
            files.refuse(writer.DESCRIPTION, "its layers are not those that would become analog")
        if writer.RECALIBRATED in files.entries:
            _take_over(files, digital)
        load_state(digital, *map(files.path, writer.state_files(files.entries)))
        for layer in analog_layers(digital).values():
            contents.require_targets(files, layer)
        reset_reads(digital)


def open_bundle(path: str | Path, hardware: Hardware | None = None, pattern: Pattern | None = None) -> Opened:
    """Verify a bundle, and read all of it but its model and cells; arguments and errors are those of `load_bundle`."""
    files = Files.verified(Path(path))
    told = contents.description(files)
    if hardware is None:
        hardware = _hardware(files)
    text = told.get("pattern")
    if pattern is None and text is not None:
        pattern = _pattern(files, text)
    contents.require_routing(files, text, pattern)
    contents.require_agreement(files, told, hardware)
    return Opened(files, told, hardware, pattern)


def _hardware(files: Files) -> Hardware:
    try:
        return Hardware.from_dict(files.json(writer.HARDWARE))
    except InputError as error:
        raise InputError(
            f"bundle {str(files.folder)!r}: its hardware cannot be made from {writer.HARDWARE} ({error}); for a device "
            "of your own, give load_bundle(path, hardware=...)"
        ) from None
    except TypeError as error:
        files.refuse(writer.HARDWARE, str(error))


def _pattern(files: Files, text: str) -> Pattern:
    try:
        return parse(text)
    except InputError as error:
        raise InputError(
            f"bundle {str(files.folder)!r}: its pattern cannot be made from text ({error}), then give "
            "load_bundle(path, pattern=...)"
        ) from None


def _take_over(files: Files, model: nn.Module) -> None:
    parts, found = writer.named_parts(model), files.shapes(writer.RECALIBRATED)
    if not found:
        files.refuse(writer.RECALIBRATED, "it is empty")
    for name, shape in found.items():
        if name not in parts or list(parts[name].shape) != shape:
            files.refuse(writer.RECALIBRATED, f"the model has no {name!r} of this kind")
    for name, tensor in files.tensors(writer.RECALIBRATED).items():
        if parts[name].dtype != tensor.dtype:
            files.refuse(writer.RECALIBRATED, f"the model has no {name!r} of this kind")
        if not tensor.isfinite().all():
            files.refuse(writer.RECALIBRATED, f"{name} holds NaN or infinite numbers")
        with torch.no_grad():
            parts[name].copy_(tensor)

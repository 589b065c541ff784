"""Hardware-aware finetuning: the last step of a recipe that needs gradients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.progress import Progress
from calibration.steps.finetune_loop import Trained, train
from calibration.steps.protocol import Fitted, Stage
from crossbar import analog_layers
from crossbar.errors import MOST_SEED, InputError, require_number, require_whole
from crossbar.nn.corrections import CORRECTIONS

Train = Literal["adapters", "weights"]
Chip = Literal["own", "any"]

_WEIGHT = "weight of "


@dataclass(frozen=True)
class Finetune:
    """Training through the tiles, to give what the digital model gives on the calibration data.

    What is minimised is the distance to the digital model's own outputs: the Kullback-Leibler divergence between next-
    token distributions at temperature 1 (distillation: Hinton 2015; for analog hardware: Büchel 2025), or for models
    that return vectors the mean squared error as a part of the teacher's mean square. No labels are needed. Gradients
    go straight through converters and cells. AdamW with gradients clipped at norm 1; the rate rises over the first
    tenth of the steps and falls to 0 in a line. Every draw is keyed by the step, so the same options give the same
    curve, in one process or several (`calibration.steps.finetune_loop`), stopped and resumed or not.

    Attributes:
        train: ``adapters``: a digital low-rank adapter beside each layer and a gain and an offset of each output, at
            each age of a chip (from what is there, as `LowRankAdapter` and `AffineCorrection` leave it); ``weights``:
            all parameters, once, before chips are programmed.
        chip: whose errors are trained with. ``own``: the cells of the chip at hand, read anew at each step, at several
            instants before its age; ``any``: errors drawn anew at each step from the device's statistics, so that any
            chip is served. Weights are trained for any.
        steps: of the optimizer.
        accumulate: batches of the data whose gradients make a step.
        rate: highest learning rate. Of weights it is AdamW's; adapters, gains, offsets and ranges move by it as a part
            of the size that they have, or that the digital layer's inputs and outputs give them.
        rank: of adapters that are not there yet.
        ranges: also learn the ranges of the ADCs, and with ``weights`` those of the DACs where they are static.
        clip: weights beyond so many deviations from 0 are clipped after each step (Joshi 2020 takes 2.5); None: not.
            Outliers carry pretrained transformers: without enough training clipping does harm.
        age: with ``weights``: seconds since programming, at which errors are drawn.
        compensated: with ``weights``: the errors are those that are left when the mean drift of that age is
            compensated (`crossbar.nn.weight_errors`), for recipes that go on with `DriftCompensation`.
        instants: with ``own``: how many, spread over the steps.
        spacing: seconds between them.
        checkpoint: compute the activations of each block again in the backward pass instead of keeping them.
        seed: key of the order of batches and of new adapters.

    Raises:
        InputError: for a value that is not allowed, and for weights with ``chip="own"``.
    """

    train: Train = "adapters"
    chip: Chip = "own"
    steps: int = 100
    accumulate: int = 1
    rate: float = 5e-4
    rank: int = 16
    ranges: bool = True
    clip: float | None = None
    age: float = 86400.0
    compensated: bool = True
    instants: int = 8
    spacing: float = 60.0
    checkpoint: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (("train", self.train, get_args(Train)), ("chip", self.chip, get_args(Chip))):
            if value not in allowed:
                raise InputError(f"Finetune {name} = {value!r} is not allowed: choose {' or '.join(allowed)}")
        require_whole("Finetune steps", self.steps, least=1, most=10_000_000)
        for name in ("accumulate", "rank", "instants"):
            require_whole(f"Finetune {name}", getattr(self, name), least=1, most=10_000)
        for name in ("rate", "spacing"):
            require_number(f"Finetune {name}", getattr(self, name), above=0, most=1e9)
        if self.clip is not None:
            require_number("Finetune clip", self.clip, above=0, most=1e9)
        require_whole("Finetune seed", self.seed, least=0, most=MOST_SEED)
        require_number("Finetune age", self.age, most=1e12)
        if self.train == "weights" and self.chip == "own":
            raise InputError(
                "Finetune cannot train weights for one chip, whose cells are written with them: chip='any'"
            )

    @property
    def stage(self) -> Stage:
        """Weights before programming, adapters at each age of each chip."""
        return Stage.BEFORE_PROGRAMMING if self.train == "weights" else Stage.IN_USE

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """What training found: adapters, ranges and parameters by layer, and ``losses [steps]``."""
        return self.fit_long(model, batches, None, None)

    def fit_long(
        self, model: nn.Module, batches: Iterable[Batch], file: Path | None, progress: Progress | None
    ) -> Fitted:
        """`fit` that keeps its state in a file, goes on from there after it was stopped, and says how far it is.

        Raises:
            InputError: for a loss that is not finite, and a file of another training.
        """
        return self._fitted(train(model, list(batches), self, file, progress))

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Put the trained values into the model."""
        layers = analog_layers(model)
        weights = {name.removeprefix(_WEIGHT): value for name, value in fitted.items() if name.startswith(_WEIGHT)}
        for name, value in weights.items():
            model.get_parameter(name).data.copy_(value)
        for name, layer in layers.items():
            if weights:
                layer.map_anew()
            if f"{name}.adapter_down" in fitted:
                layer.set_adapter(fitted[f"{name}.adapter_down"], fitted[f"{name}.adapter_up"])
                layer.set_output_correction(fitted[f"{name}.output_gain"], fitted[f"{name}.output_offset"])
            for field in ("input_range", "adc_range"):
                if f"{name}.{field}" in fitted:
                    layer.fix_ranges()
                    setattr(layer, field, fitted[f"{name}.{field}"])

    def _fitted(self, trained: Trained) -> Fitted:
        fitted: Fitted = {"losses": trained.losses}
        for name, value in trained.values.items():
            learned = name.rpartition(".")[2] in ("input_range", "adc_range", *CORRECTIONS)
            fitted[name if learned else f"{_WEIGHT}{name}"] = value
        return fitted


def losses(fitted: Fitted) -> Tensor:
    """The loss of each step, ``[steps]`` float64."""
    return fitted["losses"]

"""One model in digital and on tiles, with the task that scores both."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from glob import escape
from typing import TYPE_CHECKING, Any

from torch import nn

from attention import Memory, Pattern, attach
from calibration.models.sharing import shared_copy
from calibration.progress import Progress
from calibration.runs.request import Request
from calibration.tasks import Task
from crossbar import ConversionReport, Hardware, convert

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Experiment:
    """A digital model and its analog twin, whose weights lie in the same memory, with what they are scored on.

    Attributes:
        digital: the digital model, attached to the pattern if there is one.
        analog: its twin on tiles, not programmed.
        task: what is scored.
        hardware: the tiles.
        pattern: who attends to whom; None: the model's own attention.
        memory: where the twin's keys and values are; None: they are digital.
        conversion: what became analog.
        setup: all of this as plain values.
        tokenizer: the model's own, where it came with one.
        layers: which layers to convert, options of `crossbar.convert`.
        attends: whether there is attention in the model, of which a part alone may have none.
    """

    digital: nn.Module
    analog: nn.Module
    task: Task
    hardware: Hardware
    pattern: Pattern | None
    memory: Memory | None
    conversion: ConversionReport
    setup: dict[str, Any]
    tokenizer: PreTrainedTokenizerBase | None
    layers: Mapping[str, Any]
    attends: bool = True

    @classmethod
    def prepare(cls, request: Request, progress: Progress | None = None, *, is_lent: bool = False) -> Experiment:
        """Load what was asked for and put a twin of the model on tiles; the user's model stays as it was.

        With a memory, the twin's keys and values are in it, under a dense pattern unless another is given.

        Args:
            request: what was asked for.
            progress: called while a model is converted for the first time.
            is_lent: whether nobody changes the model's parameters while the experiment lasts, which then uses them as
                they lie in memory; a user's own model is copied otherwise.

        Raises:
            InputError: as `Request.load`, and for what `crossbar.convert` and `attention.attach` refuse.
        """
        place = request.place
        subject = request.load(progress)
        network = copy.deepcopy(subject.network) if subject.is_borrowed and not is_lent else subject.network
        digital = shared_copy(network).eval()
        del network
        if place is not None:
            digital.to(place)
        return cls.of(request, digital, subject.task, subject.name, subject.fingerprint, subject.tokenizer)

    @classmethod
    def of(
        cls,
        request: Request,
        digital: nn.Module,
        task: Task,
        name: str,
        fingerprint: str | None,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> Experiment:
        """`prepare` with a digital model at hand, which is attached to the pattern in place.

        Raises:
            InputError: for what `crossbar.convert` and `attention.attach` refuse.
        """
        if request.pattern is not None:
            attach(digital, request.pattern)
        names = ("include", "exclude", "tied_heads")
        layers = {name: getattr(request, name) for name in names}
        analog = _attached(digital, request.pattern, request.memory)
        conversion = convert(analog, request.hardware, **layers)
        setup = {
            "model": name,
            "model_fingerprint": fingerprint,
            "task": task.name,
            "hardware": request.hardware.to_dict(),
            "pattern": None if request.pattern is None else str(request.pattern),
            "memory": None if request.memory is None else request.memory.to_dict(),
        }
        return cls(
            digital=digital,
            analog=analog,
            task=task,
            hardware=request.hardware,
            pattern=request.pattern,
            memory=request.memory,
            conversion=conversion,
            setup=setup,
            tokenizer=tokenizer,
            layers=layers,
        )

    def attend(self, pattern: Pattern | str) -> None:
        """Attach the digital model to another pattern, where it attends at all."""
        if self.attends:
            attach(self.digital, pattern)

    @property
    def is_gated(self) -> bool:
        """Whether attention of the analog twin opens rows of a memory, which are counted."""
        return self.pattern is not None or self.memory is not None

    def another_twin(self) -> nn.Module:
        """One more analog twin as it was converted."""
        analog = _attached(self.digital, self.pattern, self.memory)
        convert(analog, self.hardware, **self.layers)
        return analog

    def converters_alone(self) -> nn.Module:
        """A twin whose cells hold their targets and where nothing is noisy, so that converters alone make errors."""
        model = shared_copy(self.digital)
        names = [escape(layer.name) for layer in self.conversion.analog]
        quiet = replace(self.hardware, output_noise=0.0, read_noise=None)
        convert(model, quiet, include=names, tied_heads=True)  # those of these names alone
        return model


def _attached(digital: nn.Module, pattern: Pattern | None, memory: Memory | None) -> nn.Module:
    """A twin of the digital model, its keys and values in a memory if there is one."""
    twin = shared_copy(digital)
    if memory is not None:
        attach(twin, pattern or "dense", memory)
    return twin

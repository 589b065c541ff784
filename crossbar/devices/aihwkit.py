"""Noise models of aihwkit, and users' own that follow its base class, as memory devices.

aihwkit itself is imported only when a model is wrapped.
"""

from __future__ import annotations

import copy
import hashlib
import importlib.util
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from crossbar.devices.protocol import State
from crossbar.errors import InputError, require_number

if TYPE_CHECKING:
    from aihwkit.inference.noise.base import BaseNoiseModel

_LISTED = 64  # numbers of an array that a description spells out; a longer one is told apart by its digest


@dataclass(frozen=True, eq=False, repr=False)
class AihwkitDevice:
    """An aihwkit noise model, shipped or a user's own subclass of ``BaseNoiseModel``, as a `RedrawDevice`.

    The model is asked about conductances only: ``apply_programming_noise_to_conductance`` and
    ``generate_drift_coefficients`` once when cells are written, ``apply_drift_noise_to_conductance`` at each time. Its
    methods that take weights are never called: drift through the net weight loses what G⁺ and G⁻ have in common. Each
    call works on a copy of the model, on the CPU, in one thread, under global generators (torch, numpy, Python) that
    are seeded for the call and put back after it, so that no other call matters to it nor it to others.

    Of the model's conductance converter only ``g_max`` and ``g_min`` count: how weights are laid onto cells is said by
    `crossbar.Tile`. At 0 s a model that defines nothing there (``ReRamWan2022NoiseModel``) reads as programmed. What a
    model gives below 0 µS reads as 0 µS.

    Put right: the default fit of ``ReRamWan2022NoiseModel`` refers to 40 µS, not to ``g_max``.

    Attributes:
        noise_model: the model; copied, so that later changes to the original change nothing here.

    Raises:
        InputError: for what is not a noise model, for a model that lacks one of the methods or ``g_max``, and where
            aihwkit is not installed.
    """

    kind: ClassVar[str] = "aihwkit"
    noise_model: BaseNoiseModel

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_model", _repaired(self.noise_model))
        require_number(f"g_min of {self._name}", self.g_min)
        require_number(f"g_max of {self._name}", self.g_max, above=self.g_min)

    @property
    def g_max(self) -> float:
        """Conductance (µS) of the largest weight: the converter's."""
        converter = getattr(self.noise_model, "g_converter", None)
        g_max: float | None = getattr(converter, "g_max", getattr(self.noise_model, "g_max", None))
        if g_max is None:
            raise InputError(f"{self._name} has no g_max: give it a conductance converter that has one")
        return g_max

    @property
    def g_min(self) -> float:
        """Conductance (µS) of a weight of 0: the converter's, or 0."""
        g_min: float = getattr(getattr(self.noise_model, "g_converter", None), "g_min", 0.0)
        return g_min

    @property
    def _name(self) -> str:
        return type(self.noise_model).__name__

    def write(self, target: Tensor, seed: int) -> State:
        """Programmed conductances (µS) and, if the model gives any, its drift coefficients."""
        model, cells = copy.deepcopy(self.noise_model), _to_cpu(target)
        with _foreign(seed):
            programmed = model.apply_programming_noise_to_conductance(cells.clone())
            coefficients = model.generate_drift_coefficients(cells)
        state = {"programmed": self._like(programmed, target, "apply_programming_noise_to_conductance")}
        if coefficients is not None:
            state["coefficients"] = self._like(coefficients, target, "generate_drift_coefficients")
        return state

    def read(self, state: State, seconds: float, seed: int, noise: bool = True) -> Tensor:
        """Conductance (µS) at a time; without noise, the same draw as with it but for the model's 1/f noise."""
        model = copy.deepcopy(self.noise_model)
        if not noise:
            if not _has_separate_noise(model):
                raise InputError(
                    f"{self._name} draws noise and drift together, so it cannot be read without noise: read with noise"
                )
            model.read_noise_scale = 0.0
        cells, reason = {name: _to_cpu(values) for name, values in state.items()}, ""
        try:
            with _foreign(seed):
                given = model.apply_drift_noise_to_conductance(
                    cells["programmed"], cells.get("coefficients"), float(seconds)
                )
        except _undefined() as error:
            found, reason = state["programmed"], str(error) or type(error).__name__
        else:
            found = self._like(given, state["programmed"], "apply_drift_noise_to_conductance")
            if not found.isfinite().all():
                found, reason = state["programmed"], "some are NaN or infinite"
        if reason and seconds > 0:
            raise InputError(
                f"{self._name} gives no conductances at {seconds:g} s ({reason}): give times that it defines"
            )
        return found.clamp(min=0.0)

    def to_dict(self) -> dict[str, Any]:
        """Kind, class and parameters as plain values, which tell models apart but do not build one."""
        model = self.noise_model
        return {"kind": self.kind, "model": _qualified(type(model)), "parameters": _plain(vars(model))}

    def _like(self, values: Any, cells: Tensor, method: str) -> Tensor:
        """What a model returned, shaped like the cells, in memory of its own."""
        try:
            shaped = torch.as_tensor(values, device=cells.device).broadcast_to(cells.shape)
        except (TypeError, ValueError, RuntimeError):
            given = f"shape {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
            raise InputError(
                f"{method} of {self._name} returned {given}: return a tensor of the cells' shape {list(cells.shape)}"
            ) from None
        return shaped.to(cells.dtype).clone(memory_format=torch.contiguous_format)

    def __repr__(self) -> str:
        model = self.to_dict()
        parameters = ", ".join(f"{name}={value!r}" for name, value in model["parameters"].items())
        return f"AihwkitDevice({model['model']}({parameters}))"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AihwkitDevice) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


def _to_cpu(cells: Tensor) -> Tensor:
    """A copy, which the model may overwrite; some know the CPU only, and random bits differ between devices."""
    return cells.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


@contextmanager
def _foreign(seed: int) -> Iterator[None]:
    """Room for code that draws from global generators, in one thread, since the last bit of ``pow`` depends on them."""
    threads, python, numpy = torch.get_num_threads(), random.getstate(), np.random.get_state()  # noqa: NPY002 - as below
    try:
        with torch.random.fork_rng(devices=()), torch.no_grad(), np.errstate(all="ignore"):
            torch.set_num_threads(1)
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach other devices too
            random.seed(seed)
            np.random.seed(seed % 2**32)  # noqa: NPY002 - a user's model may draw from it
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 - as above


def _undefined() -> tuple[type[Exception], ...]:
    """What a model raises at a time that it does not define."""
    from aihwkit.exceptions import ArgumentError

    return ArgumentError, ArithmeticError, ValueError


def require_aihwkit() -> None:
    """Refuse what aihwkit computes where it is not installed.

    Raises:
        InputError: then.
    """
    if importlib.util.find_spec("aihwkit") is None:
        raise InputError(
            "aihwkit is not installed, which this needs: pip install 'ohmformer[aihwkit]', which also brings the torch "
            "that it was compiled for"
        )


def _repaired(model: BaseNoiseModel) -> BaseNoiseModel:
    """A copy of a usable model, with what its constructor got wrong put right."""
    require_aihwkit()
    from aihwkit.inference.noise.base import BaseNoiseModel
    from aihwkit.inference.noise.hermes import HermesNoiseModel
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
    from aihwkit.inference.noise.reram import ReRamWan2022NoiseModel

    if not isinstance(model, BaseNoiseModel):
        raise InputError(f"noise_model = {model!r} is not allowed: give an instance of an aihwkit BaseNoiseModel")
    for method in ("apply_programming_noise_to_conductance", "apply_drift_noise_to_conductance"):
        if getattr(type(model), method) is getattr(BaseNoiseModel, method):
            raise InputError(f"{type(model).__name__} does not define {method}: define it, in µS")
    model = copy.deepcopy(model)
    reference = "prog_coeff_g_max_reference"
    if isinstance(model, ReRamWan2022NoiseModel):
        # The constructor stores the default fit's 40 µS under a name that nothing reads, and falls back to g_max.
        default_fit = vars(model).get(reference)
        reference = "coeff_g_max_reference"
        if default_fit is not None and vars(model).get(reference) in (None, model.g_max):
            model.coeff_g_max_reference = default_fit
    if isinstance(model, PCMLikeNoiseModel | HermesNoiseModel | ReRamWan2022NoiseModel) and reference not in vars(
        model
    ):
        raise InputError(
            f"{type(model).__name__} lost its {reference}, as aihwkit does when coefficients are given too: set it on "
            "the model after building it"
        )
    return model


def _has_separate_noise(model: BaseNoiseModel) -> bool:
    """Whether the 1/f noise is what ``read_noise_scale`` scales: it is in aihwkit's own methods."""
    from aihwkit.inference.noise.custom import StateIndependentNoiseModel
    from aihwkit.inference.noise.hermes import HermesNoiseModel
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
    from aihwkit.inference.noise.reram import ReRamCMONoiseModel

    known = (PCMLikeNoiseModel, HermesNoiseModel, StateIndependentNoiseModel, ReRamCMONoiseModel)
    method = type(model).apply_drift_noise_to_conductance
    return any(method is kind.apply_drift_noise_to_conductance for kind in known)


def _qualified(part: Any) -> str:
    return f"{part.__module__}.{part.__qualname__}"


def _plain(value: Any) -> Any:
    """A parameter as plain values that are the same in every process."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Tensor | np.ndarray):
        return _plain_array(torch.as_tensor(value, device="cpu").detach())
    if isinstance(value, Mapping):
        return {key if isinstance(key, str | int | float) else repr(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, type | FunctionType | BuiltinFunctionType | MethodType):
        return _qualified(value)
    return {"class": _qualified(type(value)), **_plain(getattr(value, "__dict__", {}))}


def _plain_array(values: Tensor) -> Any:
    if values.numel() <= _LISTED:
        return values.tolist()
    content = values.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return {"dtype": str(values.dtype), "shape": list(values.shape), "blake2b": digest}

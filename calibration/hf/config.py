"""What transformers is told of an analog model: ``quantization_config`` in Python and in ``config.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from transformers.quantizers import register_quantization_config
from transformers.utils.quantization_config import QuantizationConfigMixin

from attention import Memory, Pattern
from calibration.bundles.bundle import Opened, open_bundle
from calibration.runs.request import MemoryLike, PatternLike, as_hardware, as_layers, as_memory, as_pattern
from crossbar import Hardware, InputError, to_seconds
from crossbar.errors import MOST_SEED, require_whole, shown
from crossbar.presets import HardwareLike

METHOD = "ohmformer"
"""``quant_method`` in a ``config.json``."""
FIELDS = ("hardware", "seed", "age", "pattern", "memory", "include", "exclude", "tied_heads")
"""What a configuration is made of, in Python and in ``config.json``."""


@register_quantization_config(METHOD)
class AnalogConfig(QuantizationConfigMixin):  # type: ignore[misc]  # transformers is not typed for mypy here
    """One chip of a transformers model: ``from_pretrained(..., quantization_config=AnalogConfig(...))``.

    Nothing is fitted: ``from_pretrained`` has no data to fit on, and a calibration has to be scored later than it was
    fitted. `calibration.calibrate` does both and writes a bundle, which ``recipe`` takes over.

    Args:
        hardware: the tiles, as in `calibration.emulate`; left out: ``"pcm"``.
        seed: which chip, a whole number; left out: 0.
        age: time since programming, such as ``"1d"``; left out: ``"0s"``, or the age of the bundle.
        pattern: who attends to whom, as in `calibration.emulate`.
        memory: where keys and values are, as in `calibration.emulate`.
        include: shell patterns of the layers to make analog; left out: all.
        exclude: shell patterns of layers that stay digital.
        tied_heads: make output heads that are tied to embeddings analog too; left out: not.
        recipe: folder of a deployment bundle that was calibrated for the same model. It says all of the above but the
            age and the memory.

    Attributes:
        hardware, seed, age, pattern, memory, include, exclude, tied_heads: as above; ``age`` in seconds.
        bundle: what ``recipe`` names, verified; None: nothing is calibrated.

    Raises:
        InputError: for an unknown name, an impossible value, a folder that is no bundle, and a ``recipe`` beside what
            it says.
    """

    hardware: Hardware
    seed: int
    age: float
    pattern: Pattern | None
    memory: Memory | None
    include: tuple[str, ...] | None
    exclude: tuple[str, ...] | None
    tied_heads: bool
    bundle: Opened | None

    def __init__(
        self,
        hardware: HardwareLike | None = None,
        *,
        seed: int | None = None,
        age: str | float | None = None,
        pattern: PatternLike | None = None,
        memory: MemoryLike | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        tied_heads: bool | None = None,
        recipe: str | Path | None = None,
    ) -> None:
        self.quant_method = METHOD
        self.memory = as_memory(memory)
        if recipe is None:
            self.bundle = None
            self.hardware = as_hardware("pcm" if hardware is None else hardware)
            self.seed = 0 if seed is None else seed
            self.age = to_seconds(0.0 if age is None else age)
            self.pattern = as_pattern(pattern)
            self.include, self.exclude = as_layers("include", include), as_layers("exclude", exclude)
            self.tied_heads = False if tied_heads is None else tied_heads
        else:
            told = {"hardware": hardware, "seed": seed, "pattern": pattern, "include": include}
            told |= {"exclude": exclude, "tied_heads": tied_heads}
            for name, value in told.items():
                if value is not None:
                    raise InputError(f"{name} = {shown(value)} is what the bundle {str(recipe)!r} says: leave it out")
            self._take_over(recipe, age)
        require_whole("seed", self.seed, least=0, most=MOST_SEED)
        if not isinstance(self.tied_heads, bool):
            raise InputError(f"tied_heads = {shown(self.tied_heads)} is not allowed: give true or false")

    def _take_over(self, recipe: str | Path, age: str | float | None) -> None:
        if not isinstance(recipe, str | Path) or not Path(recipe).is_dir():
            raise InputError(
                f"recipe = {shown(recipe)} is no folder: give a bundle that `ohmformer calibrate --out` wrote, since "
                "from_pretrained has no data to fit a recipe on"
            )
        self.bundle = open_bundle(recipe)
        told = self.bundle.description
        self.hardware, self.pattern, self.seed = self.bundle.hardware, self.bundle.pattern, told["chip"]
        self.age = to_seconds(told["seconds"] if age is None else age)
        # The names of the layers themselves, among which a tied head may be.
        self.include, self.exclude, self.tied_heads = tuple(escape(name) for name in told["layers"]), None, True

    @classmethod
    def from_dict(cls, config_dict: Mapping[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """A configuration from plain values, as ``config.json`` has them; a missing one keeps its default.

        Raises:
            InputError: for an unknown field, and a value that is not allowed.
        """
        values = {name: value for name, value in config_dict.items() if name != "quant_method"}
        for name in values:
            if name not in FIELDS:
                raise InputError(f"an AnalogConfig has no field {shown(name)}: allowed are {', '.join(FIELDS)}")
        config = cls(**values)
        return (config, kwargs) if return_unused_kwargs else config

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``config.json``; what a bundle calibrated is not among them."""
        return {
            "quant_method": METHOD,
            "hardware": self.hardware.to_dict(),
            "seed": self.seed,
            "age": self.age,
            "pattern": None if self.pattern is None else str(self.pattern),
            "memory": None if self.memory is None else self.memory.to_dict(),
            "include": None if self.include is None else list(self.include),
            "exclude": None if self.exclude is None else list(self.exclude),
            "tied_heads": self.tied_heads,
        }

    def require_plain(self) -> None:
        """Refuse what ``config.json`` cannot hold, such as a device or a clock of one's own.

        Raises:
            InputError: in that case.
        """
        try:
            again = type(self).from_dict(json.loads(json.dumps(self.to_dict()))).to_dict()
        except (InputError, TypeError) as error:
            raise InputError(
                f"config.json cannot hold this model's hardware, pattern or memory ({error}): keep the chip with "
                "crossbar.save_state, or calibrate it into a bundle"
            ) from None
        if again != json.loads(json.dumps(self.to_dict())):
            raise InputError(
                "config.json would not give this model's hardware, pattern or memory back: keep the chip with "
                "crossbar.save_state, or calibrate it into a bundle"
            )

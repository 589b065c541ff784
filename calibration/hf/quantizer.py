"""How transformers puts a model on tiles while it loads it, and writes one that is on them."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn
from transformers.quantizers import HfQuantizer, register_quantizer
from transformers.utils import cached_file

from attention import attach, detach, renew_memory
from attention.hf.attach import thresholds
from calibration.bundles.writer import named_parts
from calibration.hf.config import METHOD, AnalogConfig
from crossbar import (
    AnalogLinear,
    InputError,
    age,
    analog_layers,
    convert,
    load_state,
    program,
    reset_reads,
    restore,
    save_state,
)

STATE = "ohmformer.safetensors"
"""File beside the weights with what calibration and programming left, which seed and weights do not make again."""


@register_quantizer(METHOD)
class AnalogQuantizer(HfQuantizer):  # type: ignore[misc]  # transformers is not typed for mypy here
    """Programs a chip once transformers has read the digital weights, which stay in the file as they are.

    Args:
        quantization_config: which chip.
        pre_quantized: whether the folder says so itself, and so has the chip's state beside its weights.
    """

    quantization_config: AnalogConfig

    def __init__(self, quantization_config: AnalogConfig, **kwargs: Any) -> None:
        super().__init__(copy.copy(quantization_config), **kwargs)  # this model's own, which goes on with its age
        self._folder: Path | None = None

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: list[str] | None = None, **kwargs: Any
    ) -> nn.Module:
        self._folder = Path(checkpoint_files[0]).parent if checkpoint_files else None
        return model

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        places = set(getattr(model, "hf_device_map", {}).values())
        if len(places) > 1:
            raise InputError(
                f"device_map spreads {type(model).__name__} over {', '.join(sorted(map(str, places)))}, and tiles are "
                "on one device: give device_map='cpu' or one GPU"
            )
        config = self.quantization_config
        if config.bundle is not None:
            config.bundle.put_on_tiles(model)
            if config.memory is not None:
                attach(model, config.pattern or "dense", config.memory)
        else:
            _convert(model, config)
            if self.pre_quantized:
                _load(model, config, self._state_file(model))
            else:
                program(model, config.seed)
        if next(iter(analog_layers(model).values())).seconds != config.age:
            age(model, config.age)
        reset_reads(model)
        renew_memory(model, config.seed)
        config.bundle = None  # it is in the cells now
        vars(model)["save_pretrained"] = partial(_save, model)
        return model

    def _state_file(self, model: nn.Module) -> Path:
        if self._folder is not None and (self._folder / STATE).is_file():
            return self._folder / STATE
        own = cast(Any, model).config
        found = cached_file(  # of the Hub, where transformers has fetched the weights alone
            own.name_or_path,
            STATE,
            revision=getattr(own, "_commit_hash", None),
            _raise_exceptions_for_missing_entries=False,
        )
        if found is None:
            raise InputError(
                f"model {own.name_or_path!r} is analog and has no {STATE} beside its weights: save it again with "
                "save_pretrained, or leave quantization_config out of its config.json and give an AnalogConfig"
            )
        return Path(found)

    def get_state_dict_and_metadata(self, model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
        """The digital weights under the names that they have in a digital model."""
        if not any(isinstance(module, AnalogLinear) for module in model.modules()):
            raise InputError(
                "this model has no analog layers left, and its configuration says that it has: call "
                "model.dequantize() in the place of crossbar.restore(model)"
            )
        return digital_weights(model), {}

    def _dequantize(self, model: nn.Module, dtype: Any = None) -> nn.Module:
        restore(model)
        detach(model)
        return model

    def is_serializable(self) -> bool:
        """Whether the model can be written: it can."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters can be trained through the tiles: they can."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether the digital weights can be trained through the tiles: they can."""
        return True


def digital_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of a converted model by their digital names, without what analog layers add."""
    added = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, AnalogLinear)
        for tensor in module.parameters(recurse=False)
    }
    return {name: tensor for name, tensor in named_parts(model, keep_vars=True).items() if id(tensor) not in added}


def _convert(model: nn.Module, config: AnalogConfig) -> None:
    if config.pattern is not None or config.memory is not None:
        attach(model, config.pattern or "dense", config.memory)
    layers = {name: getattr(config, name) for name in ("include", "exclude", "tied_heads")}
    convert(model, config.hardware, **layers)


def _load(model: nn.Module, config: AnalogConfig, path: Path) -> None:
    load_state(model, path)
    seed = next(iter(analog_layers(model).values())).seed
    if seed != config.seed:
        raise InputError(f"{str(path)!r} is of chip {seed} and config.json says {config.seed}: write the model again")


def _save(model: nn.Module, save_directory: str | Path, **options: Any) -> None:
    """``save_pretrained`` of a model on tiles: digital weights, ``config.json`` with the chip, and its `STATE`.

    Raises:
        InputError: for a chip that is not programmed, for what ``config.json`` cannot hold, for rows with thresholds,
            and for ``push_to_hub``.
    """
    own = cast(Any, model)
    if options.get("push_to_hub"):
        raise InputError("save_pretrained would push without the chip's state: call model.push_to_hub(name) instead")
    if thresholds(model):
        raise InputError(
            "config.json cannot hold thresholds of rows that spike, a pattern's that chooses its own rows: calibrate "
            "into a bundle, which has them"
        )
    layers = analog_layers(model)
    for name, layer in layers.items():
        if layer.seed is None:
            raise InputError(f"{name} was not programmed, so there is no chip to save: program the model first")
    config: AnalogConfig = own.hf_quantizer.quantization_config
    first = next(iter(layers.values()))
    config.seed, config.age = cast(int, first.seed), first.seconds
    config.require_plain()
    own.config.quantization_config = config  # attaching a pattern gives a model a configuration of its own
    folder = Path(save_directory)
    writes = options.get("is_main_process", True)
    if writes:
        (folder / STATE).unlink(missing_ok=True)  # of another model
    type(own).save_pretrained(model, save_directory, **options)
    if writes:
        save_state(model, folder / STATE, whole=False)

"""The model ``ohmformer`` of lm-eval: its tasks on a chip.

lm-eval finds models in a registry of its own alone, so whoever calls it imports this module first; the command
``ohmformer-lm-eval`` is ``lm-eval`` that does so. lm-eval is an extra: ``pip install 'ohmformer[lm-eval]'``.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from calibration.hf.config import FIELDS, AnalogConfig
from calibration.models.loading import located
from crossbar import InputError

NAME = "ohmformer"


@register_model(NAME)
class AnalogLM(HFLM):  # type: ignore[misc]  # lm-eval is not typed for mypy here
    """lm-eval's own ``hf`` model, on a chip.

    Args:
        pretrained: ``smollm2``, a folder, or a name on the Hub; a folder that is a chip already, as
            ``save_pretrained`` writes it, is that chip.
        options: fields of `calibration.hf.AnalogConfig` (without any of them, in a folder that is none, PCM right after
            programming), and what ``hf`` takes. ``dtype`` is float32 unless said, as in `calibration.emulate`.

    Raises:
        InputError: for what `AnalogConfig` refuses, and for fields of a chip beside a folder that is one.
    """

    def __init__(self, pretrained: str, **options: Any) -> None:
        chip = {name: options.pop(name) for name in (*FIELDS, "recipe") if name in options}
        self._chip = AnalogConfig(**chip)
        self._is_told = bool(chip)
        usual = {"dtype": "float32", "device": "cuda" if torch.cuda.is_available() else "cpu"}
        super().__init__(str(located(pretrained).folder), **{**usual, **options})

    def _create_model(self, *args: Any, quantization_config: Any = None, **options: Any) -> None:
        if quantization_config is not None and self._is_told:
            raise InputError(
                f"{options.get('pretrained')!r} is a chip or quantised already: leave hardware and the like out of "
                "model_args, or give the digital model"
            )
        chip = self._chip if quantization_config is None else quantization_config
        with warnings.catch_warnings():  # transformers says that the folder's own configuration counts: it is this one
            warnings.filterwarnings("ignore", "You passed `quantization_config`")
            super()._create_model(*args, quantization_config=chip, **options)

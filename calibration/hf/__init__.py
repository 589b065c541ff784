"""Analog models at home in transformers: ``from_pretrained`` with an `AnalogConfig`, and folders that it reads again.

Importing this package tells transformers what ``"quant_method": "ohmformer"`` in a ``config.json`` means.
"""

from calibration.hf.config import AnalogConfig
from calibration.hf.quantizer import AnalogQuantizer
from calibration.hf.trainer import AnalogTraining

__all__ = ["AnalogConfig", "AnalogQuantizer", "AnalogTraining"]

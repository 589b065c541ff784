"""Models to emulate: where they come from, and how what they return is read."""

from calibration.models.loading import Loaded, load_model

__all__ = ["Loaded", "load_model"]

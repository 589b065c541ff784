"""Models to emulate: where they come from, and how what they return is read."""

from calibration.models.loading import NAMED, Loaded, load_model

__all__ = ["NAMED", "Loaded", "load_model"]

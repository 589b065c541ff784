"""Memory devices: published statistics of programming, drift and noise, and the protocols for one's own."""

from crossbar.devices.aihwkit import AihwkitDevice
from crossbar.devices.fitting import Fit, Parameter, Readings, fit, read_readings
from crossbar.devices.gain_cell import GainCell
from crossbar.devices.hermes import Hermes
from crossbar.devices.ideal import Ideal
from crossbar.devices.measured import Measured, from_csv
from crossbar.devices.power_law import PCM, PowerLaw, PowerLawDrift
from crossbar.devices.protocol import (
    AgesApart,
    AnyDevice,
    Decaying,
    Device,
    Draw,
    RedrawDevice,
    State,
    Windowed,
    span,
    window,
)
from crossbar.devices.reram import CmoReRam, ReRam

__all__ = [
    "PCM",
    "AgesApart",
    "AihwkitDevice",
    "AnyDevice",
    "CmoReRam",
    "Decaying",
    "Device",
    "Draw",
    "Fit",
    "GainCell",
    "Hermes",
    "Ideal",
    "Measured",
    "Parameter",
    "PowerLaw",
    "PowerLawDrift",
    "ReRam",
    "Readings",
    "RedrawDevice",
    "State",
    "Windowed",
    "fit",
    "from_csv",
    "read_readings",
    "span",
    "window",
]

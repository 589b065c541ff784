"""Hardware with every number cited, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crossbar.devices import PCM, Ideal
from crossbar.errors import InputError
from crossbar.hardware import Hardware
from crossbar.hermes import Hermes


def ideal() -> Hardware:
    """Exact devices, no converters, no noise: an analog layer computes what the digital one does."""
    return Hardware(device=Ideal(), dac=None, adc=None, output_noise=0.0)


def pcm() -> Hardware:
    """Phase-change memory with the converters and output noise of aihwkit's ``StandardHWATrainingPreset``.

    Device: `crossbar.devices.PCM`. DAC 8 bit with per-token abs-max until a range is calibrated, ADC 8 bit over ±10
    unit outputs until calibrated, output noise 0.04 unit outputs (Rasch et al., Nat. Commun. 14, 5282, 2023). Tiles of
    256 x 256, as the HERMES chip has (Le Gallo et al., Nat. Electron. 6, 680, 2023); aihwkit's preset has 512 rows.
    Wires and short-term read noise, which the preset also has, are left out.
    """
    return Hardware(device=PCM())


def hermes(devices: int = 2) -> Hardware:
    """Cells of the HERMES chip, one or two devices a conductance, with the tiles and converters of `pcm`.

    The largest conductance and the first read are those of the measurement: 10.35 µS and 200 s, or 20.7 µS and 300 s
    (`crossbar.hermes.Hermes`).

    Raises:
        InputError: for another number of devices.
    """
    measured = {1: (10.35, 200.0), 2: (20.7, 300.0)}
    g_max, t_0 = measured.get(devices, measured[2])
    return Hardware(device=Hermes(g_max=g_max, t_0=t_0, devices=devices))


_PRESETS: dict[str, Callable[[], Hardware]] = {"ideal": ideal, "pcm": pcm, "hermes": hermes}


def get(name: str) -> Hardware:
    """The preset of this name, or the hardware of a YAML file if the name ends in ``.yaml`` or ``.yml``.

    Raises:
        InputError: for an unknown name, or what `Hardware.from_yaml` refuses.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Hardware.from_yaml(name)
    if name not in _PRESETS:
        raise InputError(f"hardware {name!r} is unknown: choose one of {', '.join(_PRESETS)}, or give a .yaml file")
    return _PRESETS[name]()

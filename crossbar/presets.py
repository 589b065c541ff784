"""Hardware with every number cited, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crossbar.devices import PCM, Ideal
from crossbar.devices.gain_cell import GainCell
from crossbar.devices.hermes import Hermes
from crossbar.devices.measured import from_csv
from crossbar.devices.reram import CmoReRam, ReRam
from crossbar.errors import InputError, shown
from crossbar.hardware import Converter, Hardware
from crossbar.rpu_config import from_rpu_config as from_rpu_config

HardwareLike = str | Path | Mapping[str, Any] | Hardware
"""What `get` makes hardware of."""


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
    (`crossbar.devices.Hermes`).

    Raises:
        InputError: for another number of devices.
    """
    measured = {1: (10.35, 200.0), 2: (20.7, 300.0)}
    g_max, t_0 = measured.get(devices, measured[2])
    return Hardware(device=Hermes(g_max=g_max, t_0=t_0, devices=devices))


def reram(model: str = "wan2022") -> Hardware:
    """Filamentary ReRAM with the tiles and converters of `pcm`.

    ``wan2022``: `crossbar.devices.ReRam`, up to 40 µS (Wan et al., Nature 608, 504, 2022). ``cmo``:
    `crossbar.devices.CmoReRam`, 9 to 88.2 µS (Falcone et al., arXiv:2502.04524).

    Raises:
        InputError: for another model.
    """
    measured: dict[str, ReRam | CmoReRam] = {"wan2022": ReRam(), "cmo": CmoReRam()}
    if model not in measured:
        raise InputError(f"ReRAM model {model!r} is unknown: choose one of {', '.join(measured)}")
    return Hardware(device=measured[model])


def gain_cell() -> Hardware:
    """Gain cells as in sliding-window attention (Leroux et al., Nat. Comput. Sci. 5, 2025), for keys and values.

    Device: `crossbar.devices.GainCell`, 8 levels, τ = 5 ms. Published there: 16 levels of the query and 32 of the
    output, here the DAC's 4 and the ADC's 5 bits, which as symmetric converters have 15 and 31. No number was published
    there for output noise, which is 0, nor for an ADC range in unit outputs: it is that of `pcm`, as the tile is.
    """
    return Hardware(
        device=GainCell(), dac=Converter(bits=4, range="per_token"), adc=Converter(bits=5), output_noise=0.0
    )


_PRESETS: dict[str, Callable[[], Hardware]] = {
    "ideal": ideal,
    "pcm": pcm,
    "hermes": hermes,
    "reram": reram,
    "reram_cmo": lambda: reram("cmo"),
    "gain_cell": gain_cell,
}


def get(hardware: HardwareLike) -> Hardware:
    """The preset of a name, the hardware of a file or of a mapping of its fields, or hardware as it is.

    Args:
        hardware: a name; the path of a YAML file (`Hardware.from_yaml`), ending in ``.yaml`` or ``.yml``, or of a table
            of a device's measurements (`crossbar.devices.from_csv`), ending in ``.csv``, whose cells then stand in the
            tiles of `pcm`; or fields, as for `Hardware.from_dict`.

    Raises:
        InputError: for an unknown name, or what these refuse.

    >>> get({"device": "reram", "adc": {"bits": 6}}).adc.bits
    6
    """
    if isinstance(hardware, Hardware):
        return hardware
    if isinstance(hardware, Mapping):
        return Hardware.from_dict(hardware)
    if not isinstance(hardware, str | Path):
        raise InputError(f"hardware {shown(hardware)} is not usable: give a name, a file, a mapping or a Hardware")
    name = str(hardware)
    match Path(name).suffix:
        case ".yaml" | ".yml":
            return Hardware.from_yaml(name)
        case ".csv":
            return Hardware(device=from_csv(name))
    if name not in _PRESETS:
        raise InputError(
            f"hardware {shown(name)} is unknown: choose one of {', '.join(_PRESETS)}, or give a .yaml file, or a .csv "
            "file of a measured device"
        )
    return _PRESETS[name]()

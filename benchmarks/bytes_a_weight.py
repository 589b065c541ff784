"""Bytes that a converted layer holds a weight: as it is converted, then programmed, aged and read.

    python benchmarks/bytes_a_weight.py [features]

Counts every tensor that can be reached from the layer (attributes, slots, containers, closures), each storage once; the
digital layer's own are counted apart. A column is what is held at that moment, not the peak in between. ``process`` is
what all tensors of the process have become more since before conversion, so that a cache elsewhere shows.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from paired import print_setting
from torch import Tensor, nn

import crossbar
from crossbar import CellNoise, Hardware, Tile, WriteVerify, devices, presets

PCM = presets.pcm()
HARDWARE: dict[str, Hardware] = {
    "ideal": dataclasses.replace(PCM, device=devices.Ideal()),
    "pcm": PCM,
    "hermes": presets.hermes(),
    "reram": presets.reram(),
    "cmo": presets.reram("cmo"),
    "gain cell": presets.gain_cell(),
    "pcm, offset": dataclasses.replace(PCM, tile=Tile(encoding="offset")),
    "pcm, 2 slices": dataclasses.replace(PCM, tile=Tile(slices=2)),
    "pcm, verify": dataclasses.replace(PCM, verify=WriteVerify(rounds=3)),
    "pcm, exact read noise": dataclasses.replace(PCM, read_noise=CellNoise(0.2, 0.02)),
}


def reachable(root: Any, without: tuple[Any, ...] = ()) -> dict[int, int]:
    """Bytes of each storage that can be reached from an object, by its address."""
    found: dict[int, int] = {}
    known = {id(part) for part in without}
    waiting = [root]
    while waiting:
        here = waiting.pop()
        if id(here) in known or isinstance(here, type | str | bytes | int | float | complex | None.__class__):
            continue
        known.add(id(here))
        if isinstance(here, Tensor):
            storage = here.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
            waiting += [here.grad] if here.is_leaf else []
        elif isinstance(here, np.ndarray):
            found[here.ctypes.data] = here.nbytes
        elif isinstance(here, dict):
            waiting += [*here.keys(), *here.values()]
        elif isinstance(here, list | tuple | set | frozenset):
            waiting += list(here)
        elif isinstance(here, FunctionType):
            waiting += [cell.cell_contents for cell in here.__closure__ or ()]
        elif isinstance(here, MethodType):
            waiting.append(here.__self__)
        elif type(here).__module__.partition(".")[0] not in ("builtins", "torch") or isinstance(here, nn.Module):
            waiting += list(getattr(here, "__dict__", {}).values())
            waiting += [getattr(here, name, None) for name in getattr(type(here), "__slots__", ())]
    return found


def held(layer: nn.Module) -> tuple[float, float]:
    """Bytes a weight of the digital layer and of all else."""
    digital = layer.get_submodule("digital")
    own = reachable(digital)
    weights = digital.get_parameter("weight").numel()
    others = {address: size for address, size in reachable(layer).items() if address not in own}
    return sum(own.values()) / weights, sum(others.values()) / weights


def alive() -> int:
    """Bytes of all tensors that Python knows in this process."""
    gc.collect()
    return sum(reachable([part for part in gc.get_objects() if issubclass(type(part), Tensor)]).values())


@torch.no_grad()
def moments(hardware: Hardware, features: int, dtype: torch.dtype) -> list[float]:
    """Bytes a weight: the digital layer's; others once converted, programmed, aged, read; of the process beside it."""
    model = nn.Sequential(nn.Linear(features, features, dtype=dtype)).eval()
    before, weights = alive(), features * features
    crossbar.convert(model, hardware)
    found = list(held(model[0]))
    crossbar.program(model, 0)
    found.append(held(model[0])[1])
    crossbar.age(model, 1e-3 if isinstance(hardware.device, devices.GainCell) else 3600.0)
    found.append(held(model[0])[1])
    model(torch.randn(32, features, dtype=dtype))
    return [*found, held(model[0])[1], (alive() - before) / weights]


def main() -> None:
    features = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    print_setting()
    print(f"bytes a weight beside the digital layer's own, {features} x {features}")
    names = ("digital", "converted", "programmed", "aged", "read", "process")
    print(f"{'':24}{'':10}" + "".join(f"{name:>12}" for name in names))
    for name, hardware in HARDWARE.items():
        for dtype in (torch.float32, torch.bfloat16):
            numbers = moments(hardware, features, dtype)
            kind = str(dtype).removeprefix("torch.")
            print(f"{name:24}{kind:10}" + "".join(f"{number:12.2f}" for number in numbers))


if __name__ == "__main__":
    main()

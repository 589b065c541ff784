"""Readings of a known device as a file, and the device found again in them.

``python examples/fit_device.py [FOLDER]`` writes ``readings.csv``, ``device.yaml`` and ``device.png``.
"""

import csv
import sys
from pathlib import Path

import torch

from crossbar import Hardware, devices, plots
from crossbar.tiles import ageing

KNOWN = devices.PCM(prog_noise_scale=0.7, drift_scale=1.2, read_noise_scale=0.6)
TARGETS, DEVICES, TIMES = (2.5, 5.0, 10.0, 15.0, 20.0, 25.0), 40, (30.0, 300.0, 3600.0, 86400.0, 6e5)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    targets, key = torch.tensor(TARGETS * DEVICES), (5, "measured")
    state = ageing.program(KNOWN, targets, key)
    with open(folder / "readings.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["target_us", "seconds", "conductance_us", "device", "read"])
        for seconds in TIMES:
            reads = ageing.conductances(KNOWN, state, seconds, key).tolist()
            for device, (target, read) in enumerate(zip(targets.tolist(), reads, strict=True)):
                table.writerow([target, seconds, f"{read:.4f}", device, 0])
    found = devices.fit(folder / "readings.csv", "pcm")
    for name, value, low, high in found.parameters:
        print(f"{name}: {value:.3f} ({low:.3f} to {high:.3f}), known {getattr(KNOWN, name):g}")
    Hardware(device=found.device).to_yaml(folder / "device.yaml")
    plots.fitted(found).figure.savefig(folder / "device.png", dpi=150)


if __name__ == "__main__":
    main()

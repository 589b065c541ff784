"""The same arrays in ngspice and in badcrossbar: run by `make test-circuit`."""

import importlib.util
import logging
import shutil
import subprocess
import warnings

import numpy as np
import pytest
import torch

from crossbar import circuit_currents
from crossbar.circuit import reference

pytestmark = pytest.mark.circuit
SPICE = pytest.mark.skipif(shutil.which("ngspice") is None, reason="ngspice is not installed: apt-get install ngspice")
OPTIONS = [
    (1.0, 1.0, "left", "bottom"),
    (5.0, 0.5, "both", "top"),
    (0.1, 2.0, "both", "bottom"),
    (2.0, 3.0, "left", "top"),
]


def array(rows, columns, seed=0):
    """Conductances (µS), with shorts and closed rows, and volts of the word lines."""
    draw = np.random.default_rng(seed)
    conductance, active = draw.uniform(0, 25, (rows, columns)), draw.random(rows) < 0.8
    conductance[draw.random((rows, columns)) < 0.002] = 1e3  # shorts
    active[0] = True
    return conductance * active[:, None], draw.uniform(-0.2, 0.2, rows)


def spice(tmp_path, conductance, volts, r_row, r_col, drive, sense, v0=None):
    """Currents (µA) of the bit lines by ngspice's operating point."""
    rows, columns = conductance.shape
    lines = ["array", ".options reltol=1e-12 abstol=1e-18 vntol=1e-15 itl1=1000"]
    for i in range(rows):
        lines += [f"Vd{i} d{i} 0 {volts[i]:.17g}", f"Rl{i} d{i} w{i}_0 {r_row}"]
        if drive == "both":
            lines += [f"Rr{i} d{i} w{i}_{columns - 1} {r_row}"]
        lines += [f"Rw{i}_{j} w{i}_{j} w{i}_{j + 1} {r_row}" for j in range(columns - 1)]
    for j in range(columns):
        end = rows - 1 if sense == "bottom" else 0
        lines += [f"Rb{j} b{end}_{j} s{j} {r_col}", f"Vs{j} s{j} 0 0"]
        lines += [f"Rc{i}_{j} b{i}_{j} b{i + 1}_{j} {r_col}" for i in range(rows - 1)]
    for i, j in zip(*conductance.nonzero(), strict=True):
        siemens = conductance[i, j] * 1e-6
        if v0 is None:
            lines.append(f"Rg{i}_{j} w{i}_{j} b{i}_{j} {1 / siemens:.17g}")
        else:
            law = f"{siemens * v0:.17g}*sinh(V(w{i}_{j},b{i}_{j})/{v0})"
            lines.append(f"Bg{i}_{j} w{i}_{j} b{i}_{j} I={law}")
    prints = [f"print i(Vs{j})" for j in range(columns)]
    lines += [".control", "set numdgt=16", "op", *prints, ".endc", ".end"]
    netlist = tmp_path / "array.cir"
    netlist.write_text("\n".join(lines) + "\n")
    done = subprocess.run(["ngspice", "-b", str(netlist)], capture_output=True, text=True, timeout=300, check=False)
    found = {
        line.split("=")[0].strip(): float(line.split("=")[1])
        for line in done.stdout.splitlines()
        if line.startswith("i(vs")
    }
    assert len(found) == columns, done.stdout + done.stderr
    return np.array([found[f"i(vs{j})"] for j in range(columns)]) * 1e6


def distance(found, expected):
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@SPICE
@pytest.mark.parametrize("shape", [(4, 6), (33, 20), (64, 64)])
@pytest.mark.parametrize("options", OPTIONS)
def test_ngspice_on_separate_arrays(tmp_path, shape, options):
    conductance, volts = array(*shape)
    expected = spice(tmp_path, conductance, volts, *options)
    r_row, r_col, drive, sense = options
    for solver in ("sweeps", "elimination", "reference"):
        found = circuit_currents(
            torch.as_tensor(conductance), torch.as_tensor(volts), r_row, r_col, drive=drive, sense=sense, solver=solver
        )
        assert distance(found.numpy(), expected) < 1e-6


@SPICE
def test_ngspice_on_interleaved_pairs(tmp_path):
    pair = np.stack([array(32, 16, seed)[0] for seed in (1, 2)])
    volts = array(32, 16, 3)[1]
    beside = pair.transpose(1, 2, 0).reshape(32, 32)
    expected = spice(tmp_path, beside, volts, 2.0, 1.0, "left", "bottom").reshape(16, 2).T
    found = circuit_currents(torch.as_tensor(pair), torch.as_tensor(volts), 2.0, 1.0, layout="interleaved")
    assert distance(found[:, 0].numpy() if found.dim() == 3 else found.numpy(), expected) < 1e-6


@SPICE
@pytest.mark.parametrize("options", OPTIONS[:2])
def test_ngspice_on_cells_that_are_not_ohmic(tmp_path, options):
    conductance, volts = array(24, 16)

    def sinh(u):
        return 0.1 * np.sinh(u / 0.1), np.cosh(u / 0.1)

    expected = spice(tmp_path, conductance, volts, *options, v0=0.1)
    assert distance(reference.solve(conductance, volts[None], *options, curve=sinh)[0][0], expected) < 1e-6
    assert distance(reference.solve(conductance, volts[None], *options)[0][0], expected) > 1e-2


@pytest.mark.skipif(
    importlib.util.find_spec("badcrossbar") is None,
    reason="badcrossbar is not installed: pip install --no-deps badcrossbar==1.1.0 pathvalidate sigfig",
)
@pytest.mark.parametrize("shape", [(4, 6), (64, 64), (128, 128)])
@pytest.mark.parametrize(("r_row", "r_col"), [(1.0, 1.0), (5.0, 0.5)])
def test_badcrossbar(shape, r_row, r_col):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import badcrossbar  # says that it cannot draw without cairo

        logging.disable(logging.INFO)
        conductance, volts = array(*shape)
        volts = np.stack([volts, array(*shape, seed=5)[1]])
        with np.errstate(divide="ignore"):
            resistance = 1e6 / conductance
        expected = badcrossbar.compute(
            volts.T, resistance, r_i_word_line=r_row, r_i_bit_line=r_col, node_voltages=False, all_currents=False
        ).currents.output
        logging.disable(logging.NOTSET)
    for solver in ("sweeps", "elimination"):
        found = circuit_currents(torch.as_tensor(conductance), torch.as_tensor(volts), r_row, r_col, solver=solver)
        assert distance(found.numpy(), np.asarray(expected) * 1e6) < 1e-8

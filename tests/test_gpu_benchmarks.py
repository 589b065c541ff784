"""The benchmarks of GPUs: what they say without one, that their lines compute, what kernels take of a card."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from crossbar.native import gpu

FOLDER = Path(__file__).parents[1] / "benchmarks"
pytestmark = pytest.mark.skipif(gpu.why_not() is not None, reason=f"no kernels here: {gpu.why_not()}")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("gpu")


@pytest.mark.skipif(not gpu.interpreted(), reason="there is a GPU")
def test_without_a_gpu_it_says_what_it_needs(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    assert benchmark.main() == 2
    needs = (
        "benchmarks/gpu.py needs an NVIDIA GPU of compute capability 8.0 or more, and Triton (kernels are interpreted)"
    )
    assert capsys.readouterr().out == f"{needs}\n"


@pytest.mark.slow
@torch.no_grad()
def test_the_lines_compute_what_they_check(benchmark):
    setting = benchmark.Setting(torch.device("cpu"), 128)
    lines = [line for lines in benchmark.LINES for line in lines(setting)]
    assert [line.check() for line in lines] == [None] * len(lines)
    assert all(line.bar > line.goal > 0 for line in lines)
    measured = benchmark.measured(lines[0], setting.device, 1)
    assert float(measured[3]) > 0
    assert "the bar of at most 5" in measured[4]


def test_a_ratio_is_printed_only_where_the_check_passed(benchmark):
    line = benchmark.Line("wrong", lambda: None, lambda: None, "peer", lambda: "3 numbers differ", 5, 3)
    assert benchmark.measured(line, torch.device("cpu"), 1)[3:5] == ["", "wrong: 3 numbers differ"]


@pytest.mark.parametrize(
    ("vectors", "noisy", "expected"), [(4096, True, 0.433), (4096, False, 0.148), (1, True, 0.010)]
)
def test_rooflines_of_an_h100(benchmark, vectors, noisy, expected):
    assert benchmark.product_milliseconds(vectors, 4096, 4096, noisy) == pytest.approx(expected, abs=1e-3)


def test_a_loop_is_what_a_branch_back_encloses(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # which the script sets for itself
    found = importlib.import_module("gpu_kernels").longest_loop(CODE)
    assert found == 4


CODE = """
.text.multiply:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   IADD3 R2, R2, 0x1, RZ ;
.L_x_2:
        /*0020*/                   FFMA R3, R4, R5, R3 ;
        /*0030*/              @!P0 BRA `(.L_x_2) ;
        /*0040*/               @P1 BRA `(.L_x_3) ;
        /*0050*/              @!P2 BRA `(.L_x_2) ;
.L_x_3:
        /*0060*/                   EXIT ;
"""


@pytest.mark.slow
def test_every_kernel_compiles_for_an_h100_and_products_stay_in_registers():
    pytest.importorskip("triton", reason="Triton is not on every platform")
    script, given = FOLDER / "gpu_kernels.py", {**os.environ, "PYTHONPATH": str(FOLDER.parent)}
    said = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=given).stdout
    rows = re.findall(r"│ ([a-zA-Z0-9 ,'/]+?) +│[ 0-9]+│ +([0-9]+) B │[^│]+│[ 0-9]+│ +([0-9]+) │", said)
    assert all(int(blocks) >= 1 for *_, blocks in rows)  # they fit a multiprocessor's shared memory
    found = {name: int(spills) for name, spills, _ in rows}
    assert len(found) >= 40
    assert {
        found[f"product, {vectors}, {kind}"]
        for vectors in ("many vectors", "one vector")
        for kind in ("quiet", "noise")
    } == {0}
    assert max(found.values()) <= 100

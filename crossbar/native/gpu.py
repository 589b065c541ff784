"""Whether kernels of GPUs can run: Triton compiles them for CUDA, or interprets them on the CPU, to test them there.

Kernels are in modules called ``triton_kernels``, which are imported where they are first launched: Triton takes half a
second to load, and is not on every platform. With ``TRITON_INTERPRET=1`` in the environment before that, they are
interpreted by numpy, on tensors of the CPU, thousands of times slower.

Everything in them is float32 and rounded after each operation but where ``tl.fma``, a multiply-add that is rounded
once, stands: `OPTIONS` forbid the compiler to fuse others. Quotients are ``tl.div_rn`` and roots ``tl.sqrt_rn``, which
round to nearest. So they give the bits of the CPU's kernels.
"""

from __future__ import annotations

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

OPTIONS = {"enable_fp_fusion": False}
"""With which every kernel is launched."""


@cache
def interpreted() -> bool:
    """Whether kernels are interpreted on the CPU; the first question decides, as Triton does when it is loaded."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


@cache
def why_not() -> str | None:
    """Why no kernel can run here, in a few words; None: they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if interpreted():
        _mend_interpreter()
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    if torch.version.cuda is None:
        return "a GPU that is not NVIDIA's"
    major, minor = torch.cuda.get_device_capability()
    return None if major >= 8 else f"a GPU of compute capability {major}.{minor}, below 8.0"


@cache
def shared_memory(device: torch.device) -> int:
    """Bytes of shared memory that a program may have on a tensor's GPU."""
    from triton.runtime import driver

    return int(driver.active.utils.get_device_properties(device.index)["max_shared_mem"])


def serves(device: torch.device) -> bool:
    """Whether kernels run by themselves on tensors of a device; interpreted ones only where they are asked for."""
    return device.type == "cuda" and why_not() is None and not interpreted()


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch kernels on the device that their tensors are on, which of several GPUs need not be the present one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on another device, without waiting for what that has to do before."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return tensor.to(device)
    return tensor.contiguous().pin_memory().to(device, non_blocking=True)


def word(bits: int) -> int:
    """32 bits as the signed number that a kernel takes: Triton would compile it anew for numbers above 2^31."""
    return (bits + 2**31) % 2**32 - 2**31


def _mend_interpreter() -> None:
    """Let the interpreter round a multiply-add once, as every GPU does, count loops, and take a third of the time.

    As it comes it rounds the product of a multiply-add too, makes ends of loops of arrays with one element, which numpy
    2.4 refuses, warns of numbers that are none, looks for those that overflow, as words do on purpose, and patches
    Triton again at every call.
    """
    from triton.runtime import interpreter

    patch, launch, known = interpreter._patch_lang_tensor, interpreter.GridExecutor.__call__, set[str]()

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        exact = z.data.dtype == np.float32
        return interpreter.TensorHandle((fma if exact else _product_first)(x.data, y.data, z.data), z.dtype.scalar)

    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        if (module := self.fn.__module__).startswith("triton.") and module not in known:
            interpreter._patch_lang(self.fn)  # what a launch patches is that of the kernel's own module
            known.add(module)
        return self.rewrite()(*args, **kwargs)

    def launched(self: Any, *args: Any, **kwargs: Any) -> None:
        with np.errstate(all="ignore"):  # a processor says nothing of an infinity times 0
            launch(self, *args, **kwargs)

    interpreter._patch_lang_tensor = patched
    interpreter.GridExecutor.__call__ = launched
    interpreter.InterpreterBuilder.create_fma = create_fma
    interpreter.InterpretedFunction.__call__ = called
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


def _product_first(one: np.ndarray, other: np.ndarray, added: np.ndarray) -> np.ndarray:
    return np.asarray(one * other + added)


def fma(one: np.ndarray, other: np.ndarray, added: np.ndarray) -> np.ndarray:
    """``one * other + added`` of float32 numbers, rounded once.

    float64 has the product exactly. The sum is rounded to odd: where it is not exact, the last bit is made 1, so that
    rounding it to float32 sees on which side of a tie it is (Boldo and Melquiond, IEEE Trans. Comput. 57, 462, 2008).
    """
    with np.errstate(all="ignore"):
        product, wide = one.astype(np.float64) * other.astype(np.float64), added.astype(np.float64)
        total = np.asarray(product + wide)
        back = total - product
        error = (product - (total - back)) + (wide - back)
        bits = total.view(np.int64)
        inexact = (error != 0) & np.isfinite(error) & (bits & 1 == 0)
        away = (error > 0) == (total > 0)
        return np.asarray(np.where(inexact, bits + np.where(away, 1, -1), bits).view(np.float64).astype(np.float32))

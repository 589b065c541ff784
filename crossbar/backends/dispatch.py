"""Which backend computes: the only place that looks at device, dtype, gradients and features."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

from crossbar.backends.cpu.backend import Cpu
from crossbar.backends.eager import Eager
from crossbar.backends.naive import Naive
from crossbar.backends.protocol import AgedRows, Backend, Columns, Read, Work
from crossbar.backends.triton.backend import Triton
from crossbar.errors import InputError, shown
from crossbar.features import missing
from crossbar.native import gpu

_backends: dict[str, Backend] = {}
_NARROW = (torch.bfloat16, torch.float16)
_chosen: ContextVar[str | None] = ContextVar("chosen backend", default=None)


def register_backend(backend: Backend, first: bool = True) -> None:
    """Let a backend compute what it does not refuse, in the place of one of its name.

    Args:
        backend: an object with what `crossbar.backends.protocol.Backend` lists.
        first: it is asked before the others, or else after them: then it gets what they refuse, and, as eager takes
            all that the features of this package describe, is otherwise picked by name (`using_backend`).

    Raises:
        InputError: for what lacks a part of that protocol, and for a class in the place of an object.

    >>> from crossbar import backend_names, register_backend
    >>> from crossbar.backends.naive import Naive
    >>> register_backend(Naive(), first=False)  # it is there already, and stays the last
    >>> backend_names()
    ('cpu', 'triton', 'eager', 'naive')
    """
    if isinstance(backend, type) or not isinstance(backend, Backend):
        raise InputError(
            f"{shown(backend)} is not a backend: give an object with name, honours, refuses, multiply, read_columns, "
            "sense and age_rows"
        )
    others = {name: other for name, other in _backends.items() if name != backend.name}
    known = {backend.name: backend, **others} if first else {**others, backend.name: backend}
    _backends.clear()
    _backends.update(known)


def backend_names() -> tuple[str, ...]:
    """Names of the backends, in the order in which they are asked for each piece of work.

    The first that does not refuse it computes it. ``cpu`` has compiled kernels for products with whole codes and for
    rows of any age, and ``triton`` the same for CUDA GPUs, with the same bits; ``eager`` is torch, with gradients and
    on any device; ``naive`` is the float64 oracle, in loops of Python. Where Triton's kernels are interpreted
    (``TRITON_INTERPRET=1``) they take tensors of the CPU, and are picked by name alone.
    """
    return tuple(_backends)


@contextmanager
def using_backend(impl: str | None) -> Iterator[None]:
    """Compute with the backend of this name, in this thread, as long as the block lasts; None: as dispatched.

    What it refuses raises `InputError` with its reason then, and is not computed by another. A backward pass asks for
    backends where it runs, so it belongs into the block too.

    Raises:
        InputError: for an unknown name.

    >>> import torch
    >>> from crossbar import AnalogLinear, presets, using_backend
    >>> layer, x = AnalogLinear.from_digital(torch.nn.Linear(8, 4), presets.ideal()), torch.ones(2, 8)
    >>> with torch.no_grad(), using_backend("naive"):
    ...     slow = layer(x)
    >>> torch.allclose(layer(x), slow, atol=1e-5)
    True
    """
    _require_known(impl)
    token = _chosen.set(impl)
    try:
        yield
    finally:
        _chosen.reset(token)


def named() -> str | None:
    """The backend that `using_backend` names; None: outside of one."""
    return _chosen.get()


def choose(work: Work, impl: str | None = None) -> Backend:
    """The backend for a piece of work: the one that ``impl`` or `using_backend` names, or the first not to refuse it.

    Raises:
        InputError: for an unknown name, and for work that the named backend refuses.
    """
    device, dtype, gradient = _tensors(work)
    name = impl or _chosen.get()
    if name is not None:
        _require_known(name)
        reason = _refusal(_backends[name], work, device, dtype, gradient)
        if reason is not None:
            able = ", ".join(other for other, why in refusals(work).items() if why is None)
            todo = f"choose one of {able}" if able else "register one that can"
            raise InputError(f"backend {name!r} cannot compute this ({reason}): {todo}")
        return _backends[name]
    for backend in _asked():
        if _refusal(backend, work, device, dtype, gradient) is None:
            return backend
    reasons = "; ".join(f"{other}: {why}" for other, why in refusals(work).items())
    raise InputError(f"no backend can compute this ({reasons}): register one that can")


def refusals(work: Work) -> dict[str, str | None]:
    """Why each backend cannot have a piece of work, by name; None: it can."""
    return {name: _refusal(backend, work, *_tensors(work)) for name, backend in _backends.items()}


def outcome(work: Work, device: torch.device, dtype: torch.dtype, gradient: bool) -> tuple[str | None, dict[str, str]]:
    """Which backend would compute a piece of work if its tensors were so, and why those asked before it cannot."""
    passed: dict[str, str] = {}
    for backend in _asked():
        reason = _refusal(backend, work, device, dtype, gradient)
        if reason is None:
            return backend.name, passed
        passed[backend.name] = reason
    return None, passed


def multiply(read: Read, impl: str | None = None) -> Tensor:
    """`Backend.multiply` of the backend for it."""
    backend = choose(read, impl)
    return backend.multiply(_as_taken(read, backend))


def read_columns(read: Read, impl: str | None = None) -> Tensor:
    """`Backend.read_columns` of the backend for it."""
    backend = choose(read, impl)
    return backend.read_columns(_as_taken(read, backend))


def sense(columns: Columns, impl: str | None = None) -> Tensor:
    """`Backend.sense` of the backend for it."""
    return choose(columns, impl).sense(columns)


def age_rows(rows: AgedRows, impl: str | None = None) -> tuple[Tensor, Tensor | None]:
    """`Backend.age_rows` of the backend for it."""
    return choose(rows, impl).age_rows(rows)


def _asked() -> Iterator[Backend]:
    """The backends in their order, without kernels that are interpreted, which are thousands of times slower."""
    for backend in _backends.values():
        if not (isinstance(backend, Triton) and gpu.interpreted()):
            yield backend


def _refusal(backend: Backend, work: Work, device: torch.device, dtype: torch.dtype, gradient: bool) -> str | None:
    feature = missing(work.hardware, backend.honours)
    if feature is not None:
        return f"hardware with {feature}"
    return backend.refuses(work, device, dtype, gradient)


def _as_taken(read: Read, backend: Backend) -> Read:
    """A read with vectors ``[B, I]`` in the dtype of the cells, unless the backend cuts or widens them itself."""
    if read.taken > 1 and not getattr(backend, "cuts_inputs", False):
        read = read._replace(x=read.x.flatten(-read.taken).flatten(0, -2), taken=1)
    if read.x.dtype in _NARROW and not getattr(backend, "narrow_inputs", False):
        read = read._replace(x=read.x.to(read.cells.scales.dtype))
    return read


def _tensors(work: Work) -> tuple[torch.device, torch.dtype, bool]:
    """Device and dtype of a piece of work, and whether a gradient may be asked for.

    Inputs of 16 bits are computed with in the dtype of the cells.
    """
    found: tuple[Tensor | None, ...]
    if isinstance(work, Read):
        cells = work.cells
        digits = cells.digits if isinstance(cells.digits, Tensor) else None
        found = (work.x, digits, cells.scales, cells.adc_range, work.input_range)
    elif isinstance(work, Columns):
        driven = (tensor for product in work.products for tensor in (product.codes, product.cells))
        found = (*driven, work.spans, work.offset)
    else:
        found = tuple(work.state.values())
    like = found[0]
    assert like is not None
    gradient = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in found)
    narrow = isinstance(work, Read) and like.dtype in _NARROW
    return like.device, work.cells.scales.dtype if narrow and isinstance(work, Read) else like.dtype, gradient


def _require_known(impl: str | None) -> None:
    if impl is not None and impl not in _backends:
        raise InputError(f"backend {impl!r} is not known: choose one of {', '.join(_backends)}")


register_backend(Naive(), first=False)
register_backend(Eager())
register_backend(Triton())
register_backend(Cpu())

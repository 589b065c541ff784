"""The seeded life of a set of cells: the same chip at the same time always reads the same conductances.

Every draw is keyed by seed, layer and purpose, and the 1/f fluctuation by the time too, so that a conductance depends
on no other call. Fluctuations at distinct times are independent, which is right for well separated times (a 1/f band
forgets within a fraction of the age), or, if the device is ``correlated``, one path of each cell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from crossbar.devices import (
    PCM,
    AgesApart,
    AnyDevice,
    CmoReRam,
    Device,
    GainCell,
    Hermes,
    Ideal,
    Measured,
    PowerLaw,
    PowerLawDrift,
    RedrawDevice,
    ReRam,
    State,
    one_over_f,
    span,
    window,
)
from crossbar.errors import InputError
from crossbar.native import gpu
from crossbar.native.sizes import at_once
from crossbar.random.streams import Key, Stream, normal, seed
from crossbar.tiles import laws, mapping

_LINES = 2**18  # cells of whole word lines worked on at once
_PIECE = 2**16  # cells worked on at once, so that a device's intermediate tensors stay in the processor's cache
_MADE_AGAIN = (CmoReRam, GainCell, Hermes, Ideal, Measured, PCM, PowerLaw, ReRam)
_FURTHEST = 10  # deviations: no normal number is drawn that far out
_MOST = 1e6  # g_max


def program(device: AnyDevice, target: Tensor, key: Key) -> State:
    """Write ``target`` (µS) into the cells of ``key``: programming error and drift exponents are drawn once."""
    if isinstance(device, RedrawDevice):
        return device.write(target, seed((*key, "programming")))
    cells, whole, state = target.reshape(-1), State(), State()
    for piece in _pieces(cells):

        def draw(purpose: str, piece: slice = piece) -> Tensor:
            if purpose not in whole:
                whole[purpose] = normal(tuple(cells.shape), (*key, purpose), cells.device).to(cells.dtype)
            return whole[purpose][piece]

        for name, part in device.program(cells[piece], draw).items():
            state.setdefault(name, torch.empty_like(cells))[piece] = part
    return {name: part.view(target.shape) for name, part in state.items()}


def conductances(device: AnyDevice, state: State, seconds: float, key: Key, noise: bool = True) -> Tensor:
    """Conductances (µS) of programmed cells at a time, with or without the 1/f fluctuation; within `window`."""
    if isinstance(device, RedrawDevice):
        return device.read(state, seconds, seed((*key, "redraw", seconds)), noise)
    like = next(iter(state.values()))
    flat = {name: part.reshape(-1) for name, part in state.items()}
    found, z = torch.empty_like(like).view(-1), None
    low, high = window(device)
    for piece in _pieces(found):
        part = {name: cells[piece] for name, cells in flat.items()}
        drifted = device.drifted(part, seconds)
        deviation = device.fluctuation(part, drifted, seconds) if noise else None
        if deviation is not None:
            if z is None:
                z = _fluctuations(device, tuple(found.shape), seconds, key, found.device).to(found.dtype)
            drifted = torch.addcmul(drifted, deviation, z[piece]).clamp_(low, high)
        elif high < math.inf:
            drifted = drifted.clamp(low, high)
        found[piece] = drifted
    return found.view(like.shape)


def keeps_no_state(device: AnyDevice) -> bool:
    """Whether a device's state is the same whenever it is made again from targets and key: devices of this package."""
    return type(device) in _MADE_AGAIN


def program_lines(device: Device, target: Tensor, key: Key, shape: tuple[int, int, int], lines: slice) -> State:
    """What `program` leaves in the word lines ``lines`` of cells ``[K, I, O]``, whose targets (µS) are given.

    Args:
        device: of the cells.
        target: of these word lines, ``[K, r, O]``.
        key: of the chip and its cells.
        shape: K, I and O.
        lines: which of the I word lines.
    """

    def draw(purpose: str) -> Tensor:
        return normal_lines((*key, purpose), shape, lines, target.device).to(target.dtype).view(-1)

    state = device.program(target.reshape(-1), draw)
    return {name: part.view(target.shape) for name, part in state.items()}


def conductances_lines(
    device: Device, state: State, seconds: float, key: Key, shape: tuple[int, int, int], lines: slice, noise: bool
) -> Tensor:
    """What `conductances` gives for the word lines ``lines`` of cells ``[K, I, O]``, whose state is given."""
    part = {name: cells.reshape(-1) for name, cells in state.items()}
    like = next(iter(state.values()))
    low, high = window(device)
    drifted = device.drifted(part, seconds)
    deviation = device.fluctuation(part, drifted, seconds) if noise else None
    if deviation is not None:
        z = normal_lines((*key, "1/f", seconds), shape, lines, like.device).to(like.dtype).view(-1)
        drifted = torch.addcmul(drifted, deviation, z).clamp_(low, high)
    elif high < math.inf:
        drifted = drifted.clamp(low, high)
    return drifted.view(like.shape)


def reads_again(device: AnyDevice, like: Tensor) -> bool:
    """Whether `read_again` has these cells, float32: devices of this package whose fluctuations have no past.

    On the CPU, and phase-change memory on GPUs that Triton compiles for.
    """
    if like.dtype != torch.float32 or not laws.has_law(device):
        return False
    if gpu.serves(like.device):
        return type(device) is PCM and device.read_noise_scale > 0
    return like.device.type == "cpu"


def read_again(
    device: AnyDevice,
    targets: list[Tensor],
    seconds: float,
    key: Key,
    shape: tuple[int, int, int],
    lines: slice,
    digits: Tensor | None = None,
    scaling: tuple[Tensor, int] | None = None,
) -> Tensor:
    """Conductances (µS) of word lines that are programmed and read at a time, ``[K, r, O]``.

    `conductances_lines` of `program_lines`, by the same sums and products in the same order, in one pass.

    Args:
        device: of the cells.
        targets: of each of the K planes, ``[r, O]`` (µS), or a single one of either sign: its positive part is what the
            first of two planes aims at above the least conductance, its negative part the second.
        seconds: time since programming.
        key: of the chip and its cells.
        shape: K, I and O.
        lines: which of the I word lines.
        digits: where the digits of two planes are put, ``[r, O]``; what is returned are then not the conductances.
        scaling: what makes targets of the weights that are given in their place: conductances (µS) of a weight of 1,
            ``[T, O]``, and how many word lines a tile has.
    """
    law = laws.law(device, seconds)
    if scaling is not None and (law.statistics is not None or gpu.serves(targets[0].device)):
        targets, scaling = [weights * mapping.of_lines(*scaling, shape[1], lines) for weights in targets], None
    if gpu.serves(targets[0].device):
        from crossbar.tiles import triton_kernels

        assert isinstance(device, PCM)
        return triton_kernels.read_again(device, targets, seconds, key, shape, lines, digits)
    low, high = window(device)
    if digits is not None:
        made = None if law.statistics is None else law.statistics(targets[0].abs().clamp_(max=device.g_max))
        if law.whole:
            return _pass(law, targets[0], digits, made, device, key, shape, lines, None, scaling)
        found = digits.new_empty(2, *digits.shape)
        _pass(law, targets[0], found, made, device, key, shape, lines, None, scaling)
    else:
        found = targets[0].new_empty(len(targets), *targets[0].shape)
        for plane, (target, cells) in enumerate(zip(targets, found, strict=True)):
            made = None if law.statistics is None else law.statistics(target)
            _pass(law, target, cells, made, device, key, shape, lines, plane)
    if law.whole:
        return found
    assert not isinstance(device, RedrawDevice)
    deviations = device.fluctuation({}, found, seconds)
    if deviations is None:
        found.clamp_(low, high)
    else:
        law = laws.fluctuating(device, seconds)
        for plane, (deviation, cells) in enumerate(zip(deviations, found, strict=True)):
            _pass(law, cells, cells, (deviation,), None, key, shape, lines, plane)
    return found if digits is None else torch.sub(found[0], found[1], out=digits).div_(high - low)


def _pass(
    law: laws.Law,
    targets: Tensor,
    found: Tensor,
    known: tuple[Tensor, ...] | None,
    device: AnyDevice | None,
    key: Key,
    shape: tuple[int, int, int],
    lines: slice,
    plane: int | None,
    scaling: tuple[Tensor, int] | None = None,
) -> Tensor:
    """`crossbar.tiles.kernels.cells` of word lines of a plane of cells, or, with None, of a pair of them.

    Without a device targets may be anything.
    """
    from crossbar.native import openmp  # numba takes half a second to load
    from crossbar.tiles import kernels

    planes, rows, outputs = shape
    first, n = ((plane or 0) * rows + (lines.start or 0)) * outputs, targets.numel()
    numbers = torch.tensor(law.numbers, dtype=torch.float32, device="cpu")
    made = None if known is None else torch.stack([each.view(-1) for each in known])
    factors, tile_rows = (None, 1) if scaling is None else scaling
    most, pair = math.inf if device is None else float(device.g_max), plane is None
    foot, width = span(device) if device is not None and pair else (0.0, most)
    streams = [Stream((*key, *purpose), "cpu") for purpose in law.drawn]
    words = [word for stream in streams for word in (stream.start, stream.word_key)]
    openmp.run(
        kernels.cells, -(-n // kernels.BLOCK), targets.contiguous(), found, n, 1 + pair,
        first, first + rows * outputs, planes * rows * outputs, most,
        kernels.LAWS.index(law.name), numbers, len(numbers), made, law.rows, len(streams),
        factors, tile_rows, 1 if factors is None else len(factors), outputs,
        float(width), float(foot), int(pair and found.numel() == n), *words, *[0] * (2 * kernels.DRAWS - len(words)),
    )  # fmt: skip
    return found


def normal_lines(key: Key, shape: tuple[int, int, int], lines: slice, device: torch.device) -> Tensor:
    """The standard normal numbers of some word lines of cells ``[K, I, O]``, float32 ``[K, r, O]``."""
    planes, rows, outputs = shape
    first, last, _ = lines.indices(rows)
    stream, count = Stream(key, device), planes * rows * outputs
    parts = [
        stream.normal_part(count, (plane * rows + first) * outputs, (plane * rows + last) * outputs)
        for plane in range(planes)
    ]
    return torch.stack(parts).view(planes, last - first, outputs)


def pieces_of_lines(shape: tuple[int, int, int], device: torch.device) -> Iterator[slice]:
    """Word lines of cells ``[K, I, O]`` that are worked on at once."""
    planes, rows, outputs = shape
    step = min(max(at_once(_LINES, device) // max(planes * outputs, 1), 1), max(rows, 1))
    return (slice(first, first + step) for first in range(0, max(rows, 1), step))


def is_correlated(device: AnyDevice) -> bool:
    """Whether the 1/f noise of a cell is one path over time, which is made for all cells of an array at once."""
    return isinstance(device, PowerLawDrift) and device.correlated


def is_readable(device: AnyDevice, state: State, seconds: float) -> bool:
    """Whether programmed cells have a conductance at a time, however the 1/f fluctuation falls.

    NaN is none, and neither is a million times g_max, with which a column's sum would leave float32. Of a
    `RedrawDevice`, which says so itself when it is read, only the state is looked at.
    """
    most = _MOST * device.g_max
    if isinstance(device, RedrawDevice):
        return all(bool((part.abs() <= most).all()) for part in state.values())
    flat = {name: part.reshape(-1) for name, part in state.items()}
    for piece in _pieces(next(iter(flat.values()))):
        part = {name: cells[piece] for name, cells in flat.items()}
        drifted = device.drifted(part, seconds)
        deviation = device.fluctuation(part, drifted, seconds)
        furthest = drifted.abs() if deviation is None else drifted.abs().add(deviation.abs(), alpha=_FURTHEST)
        if not bool((furthest <= most).all()):
            return False
    return True


def are_conductances(device: AnyDevice, cells: Tensor) -> bool:
    """Whether cells (µS) are numbers below a million times g_max."""
    low, high = cells.aminmax() if cells.numel() else (cells.new_zeros(()), cells.new_zeros(()))
    most = _MOST * device.g_max
    return bool((low >= -most) & (high <= most))  # false for NaN


def are_digits(digits: Tensor) -> bool:
    """Whether differences of two cells, in units of g_max, are such that `are_conductances` holds for both."""
    low, high = digits.aminmax() if digits.numel() else (digits.new_zeros(()), digits.new_zeros(()))
    return bool((low > -_MOST / 2) & (high < _MOST / 2))  # false for NaN


def require_conductances(device: AnyDevice, cells: Tensor, seconds: float, where: str) -> None:
    """Refuse cells (µS) that a device gave and that are NaN or a million times g_max or more.

    Raises:
        InputError: naming the device, the time and ``where`` the cells are.
    """
    most = _MOST * device.g_max
    if not are_conductances(device, cells):
        bad = int((~(cells.abs() <= most)).sum())
        raise InputError(
            f"{where}: {bad} of {cells.numel()} cells of device {device.kind!r} read as NaN or as more than "
            f"{most:g} µS at {seconds:g} s: mend the device, or choose another"
        )


def aged(device: Device, state: State, seconds: Tensor, z: Callable[[], Tensor] | None) -> Tensor:
    """Conductances (µS) of cells that have ages of their own, such as rows written one by one.

    Args:
        device: of the cells.
        state: as `program` left it.
        seconds: float64 [L, 1]: ages of the rows along the last dimension but one.
        z: gives standard normal numbers shaped like the cells, for the 1/f fluctuation; None: without it.
    """
    like = next(iter(state.values()))
    low, high = window(device)

    def read(cells: State, age: Any, rows: Tensor | None = None) -> Tensor:
        drifted = device.drifted(cells, age)
        deviation = None if z is None else device.fluctuation(cells, drifted, age)
        if deviation is not None and z is not None:
            own = z() if rows is None else z().index_select(-2, rows)
            return torch.addcmul(drifted, deviation, own.to(drifted.dtype)).clamp_(low, high)
        return drifted.clamp(low, high) if high < math.inf else drifted

    if isinstance(device, AgesApart):
        return read(state, seconds.to(like.dtype))
    found = torch.empty_like(like)
    for age in seconds.unique().tolist():
        rows = (seconds[:, 0] == age).nonzero()[:, 0]
        found.index_copy_(
            -2, rows, read({name: part.index_select(-2, rows) for name, part in state.items()}, age, rows)
        )
    return found


def _pieces(cells: Tensor) -> Iterator[slice]:
    """Slices that cover the cells, one of them at least; on a GPU a single one."""
    step = min(at_once(_PIECE, cells.device), max(len(cells), 1))
    return (slice(first, first + step) for first in range(0, max(len(cells), 1), step))


def _fluctuations(device: AnyDevice, shape: tuple[int, ...], seconds: float, key: Key, place: torch.device) -> Tensor:
    if isinstance(device, PowerLawDrift) and device.correlated:
        return one_over_f.correlated(shape, seconds, device.t_0, device.t_read, key, place)
    return normal(shape, (*key, "1/f", seconds), place)

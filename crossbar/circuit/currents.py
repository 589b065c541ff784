"""Currents of arrays whose wires have a resistance: for given inputs, and for all of them at once.

A word line (row) leads from its driver through one segment to each cell in turn, a bit line (column) from each cell in
turn through one segment to a virtual ground. Kirchhoff's equations are linear, so there is a matrix ``M [R, C]`` with
``I = V @ M`` for every input: what an array with wires computes costs what it costs without, once M is known.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from crossbar.circuit import elimination, ladders, reference
from crossbar.circuit.elimination import Ends
from crossbar.errors import InputError, require_number, shown

Drive = Literal["left", "both"]
Sense = Literal["bottom", "top"]
Layout = Literal["separate", "interleaved"]
Solver = Literal["sweeps", "elimination", "first_order", "reference"]

MOST_OHMS = 1e6
"""Of a segment: a megaohm between two cells is no wire."""

_MOST_MICROSIEMENS = 1e9
_MICRO = 1e-6
_TOLERANCE = 1e-6  # of a transfer matrix in float32, as a part of its norm
_FINE = 1e-11  # in float64
_PAIRS = (1, 2, 3, 4, 6, 8)  # sweeps that are tried; where these are not enough elimination is faster
_PROBES = 16  # inputs on which they are
_AT_ONCE = 2**24  # numbers of the terms that are found at once: 128 MiB


class Solution(NamedTuple):
    """A transfer matrix, and how it was found.

    Attributes:
        matrix: ``[..., R, C]``, µS.
        error: what sweeps leave, as a part of the matrix's norm: estimated from the last terms, the most of all arrays;
            infinity: not known.
        sweeps: of the line relaxation, the most of all arrays; 0: in closed form, or by elimination.
        eliminated: arrays that were solved by elimination.
    """

    matrix: Tensor
    error: float
    sweeps: int
    eliminated: int


def circuit_currents(
    conductance: Tensor,
    voltage: Tensor,
    r_row: float,
    r_col: float | None = None,
    active: Tensor | None = None,
    *,
    drive: Drive = "left",
    sense: Sense = "bottom",
    layout: Layout = "separate",
    transposed: bool = False,
    solver: Solver | None = None,
) -> Tensor:
    """Currents of arrays under given voltages, differentiable in both.

    Args:
        conductance: of the cells, ``[..., R, C]``, µS; with interleaved columns ``[..., K, R, C]``.
        voltage: of the word lines' drivers, ``[..., B, R]`` or a single vector ``[R]``, volts; it is shared by arrays
            along dimensions that it lacks.
        r_row, r_col: resistance of a segment of a word line and of a bit line, ohms, 0 to 1e6; ``r_col`` is ``r_row``
            unless given. 0 is the ideal wire.
        active: rows that are open, bool ``[..., R]``; None: all. The access transistors of a closed row disconnect its
            cells. A row that is open and driven by 0 V is not the same: its cells load the bit lines.
        drive: ``left`` or ``both``: ends of the word lines that are driven.
        sense: ``bottom`` or ``top``: ends of the bit lines that are sensed. Row 0 is at the top, column 0 at the left.
        layout: ``separate``: each ``[R, C]`` is an array of its own. ``interleaved``: the K columns of a place stand
            side by side on the same word lines, such as G⁺ and G⁻ of a pair.
        transposed: drive the bit lines where they are sensed otherwise, ``[..., B, C]``, and sense the word lines at
            their drivers, as the scores of keys in rows are read.
        solver: ``sweeps`` (line relaxation, compiled, on the CPU), ``elimination`` (exact, any device), ``first_order``
            (the term that sweeps start with: a word line whose bit lines are at 0 V, then bit lines which those of
            other rows at 0 V load; in closed form, on the CPU 300 times as fast), ``reference`` (scipy's sparse LU);
            None: sweeps where they converge fast, else elimination.

    Returns:
        ``[..., B, C]`` (or ``[..., C]`` for a single vector), µA; with interleaved columns ``[..., K, B, C]``. If
        transposed, R in the place of C, and the voltages of interleaved columns are ``[..., K, B, C]``, whose currents
        add.

    Raises:
        InputError: for conductances or voltages that are no finite numbers of 0 or more (µS), resistances out of range,
            shapes that do not fit, and options that are not known.

    >>> import torch
    >>> g = torch.full((2, 2), 100.0)
    >>> circuit_currents(g, torch.tensor([0.2, 0.2]), 0.0)
    tensor([40., 40.])
    >>> circuit_currents(g, torch.tensor([0.2, 0.2]), 10.0)
    tensor([39.8209, 39.7812])
    """
    matrix = transfer_matrix(conductance, r_row, r_col, active, drive=drive, sense=sense, layout=layout, solver=solver)
    lines = matrix.shape[-1] if transposed else matrix.shape[-2]
    if not isinstance(voltage, Tensor) or not voltage.is_floating_point() or voltage.shape[-1:] != (lines,):
        given = f"{voltage.dtype} {list(voltage.shape)}" if isinstance(voltage, Tensor) else shown(voltage)
        raise InputError(f"circuit voltage {given} does not fit {lines} lines: give floating point [..., B, {lines}]")
    if not voltage.isfinite().all():
        raise InputError("circuit voltage has values that are NaN or infinite: give finite volts")
    matrix = matrix.transpose(-1, -2) if transposed else matrix
    planes = layout == "interleaved"
    vectors = voltage.unsqueeze(0) if voltage.dim() == 1 else voltage
    vectors = vectors.unsqueeze(-3) if planes and not transposed and vectors.dim() > 2 else vectors
    try:
        found = vectors.to(matrix.dtype) @ matrix
    except RuntimeError as error:
        raise InputError(
            f"circuit voltage {list(voltage.shape)} does not fit conductances {list(conductance.shape)}: give the same "
            "dimensions before the last two, or none"
        ) from error
    found = found.sum(-3) if planes and transposed else found
    return found.squeeze(-2) if voltage.dim() == 1 else found


def transfer_matrix(
    conductance: Tensor,
    r_row: float,
    r_col: float | None = None,
    active: Tensor | None = None,
    *,
    drive: Drive = "left",
    sense: Sense = "bottom",
    layout: Layout = "separate",
    solver: Solver | None = None,
) -> Tensor:
    """The matrix M, ``[..., R, C]`` in µS, with ``I = V @ M`` for every input; differentiable in the conductances.

    M of the transposed network is the transpose of M, as the network is made of resistances alone. Arguments are those
    of `circuit_currents`.

    Raises:
        InputError: for what `circuit_currents` refuses.
    """
    return solution(conductance, r_row, r_col, active, drive, sense, layout, solver).matrix


def solution(
    conductance: Tensor,
    r_row: float,
    r_col: float | None = None,
    active: Tensor | None = None,
    drive: Drive = "left",
    sense: Sense = "bottom",
    layout: Layout = "separate",
    solver: Solver | None = None,
) -> Solution:
    """`transfer_matrix`, with what its accuracy is."""
    r_col = r_row if r_col is None else r_col
    _require_options(r_row, r_col, drive, sense, layout, solver)
    cells = _checked(conductance, active, layout)
    if layout == "interleaved":
        cells = cells.movedim(-3, -1)
        cells = cells.reshape(*cells.shape[:-2], -1)
    shape = cells.shape
    cells = cells.reshape(-1, *shape[-2:])
    if sense == "top":
        cells = cells.flip(1)
    how = _How(float(r_row), float(r_col), drive == "both", _FINE if conductance.dtype == torch.float64 else _TOLERANCE)
    if cells.requires_grad and torch.is_grad_enabled():
        matrix, found = _Transfer.apply(cells, how, solver)  # type: ignore[no-untyped-call]  # torch's own
    else:
        matrix, found = _solved(cells.detach(), how, solver)
    if sense == "top":
        matrix = matrix.flip(1)
    matrix = matrix.view(shape)
    if layout == "interleaved":
        matrix = matrix.unflatten(-1, (-1, conductance.shape[-3])).movedim(-1, -3)
    return Solution(matrix.to(conductance.dtype), *found)


def cell_voltages(
    conductance: Tensor,
    voltage: Tensor,
    r_row: float,
    r_col: float | None = None,
    active: Tensor | None = None,
    *,
    drive: Drive = "left",
    sense: Sense = "bottom",
) -> Tensor:
    """Voltages across the cells of one array, ``[B, R, C]``, under voltages ``[B, R]``: a map of the IR drop.

    Cells of closed rows, ``active`` False, have none: 0. Arguments are those of `circuit_currents`.

    Raises:
        InputError: for what `circuit_currents` refuses.
    """
    r_col = r_row if r_col is None else r_col
    _require_options(r_row, r_col, drive, sense, "separate", None)
    cells = _checked(conductance, active, "separate").detach()
    if cells.dim() != 2 or voltage.dim() != 2 or voltage.shape[1] != cells.shape[0]:
        raise InputError(
            f"circuit got conductances {list(cells.shape)} and voltages {list(voltage.shape)}: give [R, C] and [B, R]"
        )
    ends = Ends(True, drive == "both", sense == "top", sense == "bottom")
    found = elimination.cell_volts(cells[None] * _MICRO, voltage.double()[None], float(r_row), float(r_col), ends)[0]
    return found if active is None else found * active.unsqueeze(-1)


class _How(NamedTuple):
    """What a solution depends on beside the cells: ohms, whether rows are driven from both ends, and the tolerance."""

    r_row: float
    r_col: float
    both: bool
    tolerance: float

    @property
    def ends(self) -> Ends:
        return Ends(right=self.both)


_Found = tuple[float, int, int]


def _solved(cells: Tensor, how: _How, solver: Solver | None) -> tuple[Tensor, _Found]:
    """Transfer matrices ``[T, R, C]`` (µS) of cells ``[T, R, C]`` (µS), float64, sensed at the bottom."""
    if cells.numel() == 0 or (how.r_row == 0 and how.r_col == 0):
        return cells.clone(), (0.0, 0, 0)
    if solver == "reference":
        return _referred(cells, how), (0.0, 0, 0)
    if solver == "first_order" and cells.device.type != "cpu":
        return ladders.first_order(cells, how.r_row, how.r_col, how.both), (math.inf, 0, 0)
    if solver == "first_order":
        parts = [_Factored(part, how).first / _MICRO for part in cells.split(_step(cells))]
        return torch.cat(parts), (math.inf, 0, 0)
    if solver == "elimination" or cells.device.type != "cpu":
        return _eliminated(cells, how), (0.0, 0, len(cells))
    if not how.both and cells.shape[1] > cells.shape[2]:
        # By reciprocity the array may be driven from the amplifiers: then there are fewer inputs.
        turned = cells.flip(1, 2).transpose(1, 2).contiguous()
        matrix, found = _relaxed(turned, how._replace(r_row=how.r_col, r_col=how.r_row), solver)
        return matrix.transpose(1, 2).flip(1, 2), found
    return _relaxed(cells.contiguous(), how, solver)


def _eliminated(cells: Tensor, how: _How) -> Tensor:
    """By elimination, as many arrays at once as there is room for."""
    step = max(_AT_ONCE // max(cells.shape[1] * cells.shape[2], cells.shape[2] ** 2), 1)
    parts = [elimination.transfer(part * _MICRO, how.r_row, how.r_col, how.ends) / _MICRO for part in cells.split(step)]
    return torch.cat(parts)


def _referred(cells: Tensor, how: _How) -> Tensor:
    """By scipy's sparse LU, one input at a time."""
    each = np.eye(cells.shape[1])
    drive = "both" if how.both else "left"
    arrays = [reference.solve(part.numpy(), each, how.r_row, how.r_col, drive)[0] for part in cells.cpu()]
    return torch.as_tensor(np.stack(arrays), device=cells.device)


def _relaxed(cells: Tensor, how: _How, solver: Solver | None) -> tuple[Tensor, _Found]:
    """By sweeps, and by elimination where these converge slowly."""
    rows = cells.shape[1]
    found, error, sweeps, hard = torch.empty_like(cells), 0.0, 0, list[int]()
    probes = torch.zeros(rows, min(_PROBES, rows), dtype=torch.float64, device="cpu")
    probe = torch.arange(probes.shape[1], device="cpu")
    probes[probe * rows // len(probe), probe] = 1.0
    step = _step(cells)
    for first in range(0, len(cells), step):
        here = slice(first, first + step)
        factored = _Factored(cells[here], how)
        groups: dict[int, list[int]] = {}
        weights: dict[int, Tensor] = {}
        left = list(range(len(cells[here])))
        for pairs in _PAIRS:
            terms = factored.terms(left, probes, pairs)
            open_ = []
            for place, index in enumerate(left):
                scale = float(np.linalg.norm((factored.first[index].t() @ probes).numpy()))
                weights[index], rest = _extrapolation(terms[:, place].numpy())
                if rest <= how.tolerance * scale or (solver == "sweeps" and pairs == _PAIRS[-1]):
                    groups.setdefault(pairs, []).append(index)
                    error, sweeps = max(error, rest / scale if scale else 0.0), max(sweeps, 2 * pairs)
                else:
                    open_.append(index)
            left = open_
        hard += [first + index for index in left]
        for pairs, members in groups.items():
            terms = factored.terms(members, torch.eye(rows, dtype=torch.float64, device="cpu"), pairs)
            for place, index in enumerate(members):
                total = factored.first[index].clone()
                for term, weight in zip(terms[:, place], weights[index].tolist(), strict=True):
                    total.add_(term.t(), alpha=weight)
                found[first + index] = total / _MICRO
    if hard:
        found[hard] = _eliminated(cells[hard], how)
    return found, (error, sweeps, len(hard))


def _step(cells: Tensor) -> int:
    """Arrays that are factorised at once."""
    return max(_AT_ONCE // (cells.shape[1] * cells.shape[2] * 8), 1)


class _Factored:
    """Arrays whose lines are factorised, for sweeps."""

    def __init__(self, cells: Tensor, how: _How) -> None:
        from crossbar.circuit import kernels  # numba takes half a second to load
        from crossbar.native import openmp

        self._ohms = torch.tensor([how.r_row, how.r_col], dtype=torch.float64, device="cpu")
        siemens = (cells * _MICRO).contiguous()
        parts = [torch.empty_like(siemens) for _ in range(5)]
        openmp.run(kernels.factor, len(cells), siemens, *parts, *siemens.shape, self._ohms, int(how.both))
        self._parts = (siemens, *parts[:4])
        self.first = parts[4]

    def terms(self, which: list[int], inputs: Tensor, pairs: int) -> Tensor:
        """Terms after the first, ``[2 P, n, C, B]`` (A), of some of the arrays under inputs ``[R, B]`` (V)."""
        from crossbar.circuit import kernels
        from crossbar.native import openmp

        whole = len(which) == len(self.first)
        parts = self._parts if whole else tuple(part[which] for part in self._parts)
        arrays, rows, columns = parts[0].shape
        volts = inputs.expand(arrays, -1, -1).contiguous()
        found = volts.new_empty(2 * pairs, arrays, columns, inputs.shape[1])
        work = arrays * -(-inputs.shape[1] // kernels.INPUTS)
        openmp.run(kernels.sweep, work, *parts, volts, found, arrays, rows, columns, inputs.shape[1], pairs, self._ohms)
        return found


def _extrapolation(terms: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[Tensor, float]:
    """Weights of two terms or more ``[n, ...]`` of a series, and an estimate of the norm of what is left over.

    The partial sums of a series of powers of one matrix are mixed so that the remaining term is least (reduced rank
    extrapolation: Sidi, Vector Extrapolation Methods, SIAM 2017). The sums run in a fixed order, so that no bit depends
    on the number of threads.
    """
    flat = terms.reshape(len(terms), -1)
    gram = np.einsum("ik,jk->ij", flat, flat)
    size = np.sqrt(np.diag(gram))
    used = int((size > 1e-14 * size[0]).sum()) if size[0] else 0
    if used == 0:
        return torch.zeros(len(terms), dtype=torch.float64, device="cpu"), 0.0
    # Least squares over mixtures that sum to 1. Terms shrink by orders of magnitude, so each is measured by its size.
    relative = gram[:used, :used] / size[:used, None] / size[:used] + 1e-14 * np.eye(used)
    mixed = np.linalg.solve(relative, 1.0 / size[:used]) / size[:used]
    alpha = mixed / mixed.sum()
    left = np.einsum("i,ik->k", alpha, flat[:used])
    weights = np.zeros(len(terms))
    weights[:used] = np.cumsum(alpha[::-1])[::-1]  # the sum that includes term k takes it with all weights from k on
    ratio = float(size[used - 1] / size[used - 2] if used > 1 else size[1] / size[0])
    rest = float(np.sqrt(np.einsum("k,k->", left, left)))
    return torch.as_tensor(weights, device="cpu"), rest * ratio / (1 - ratio) if ratio < 1 else math.inf


class _Transfer(torch.autograd.Function):
    """The transfer matrix with its gradient: one more solution, of the network driven from its amplifiers.

    For resistances, ``dM_ij / dG`` of a cell is its voltage under 1 V at driver i times its voltage under 1 V at
    amplifier j (Tellegen's theorem).
    """

    @staticmethod
    def forward(ctx: Any, cells: Tensor, how: _How, solver: Solver | None) -> tuple[Tensor, _Found]:
        ctx.save_for_backward(cells)
        ctx.how = how
        return _solved(cells, how, solver)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:
        (cells,), how = ctx.saved_tensors, ctx.how
        arrays, rows, columns = cells.shape
        siemens, found = cells * _MICRO, torch.zeros_like(cells)
        each = torch.eye(rows, dtype=cells.dtype, device=cells.device)
        step = max(min(_AT_ONCE // (rows * columns), rows), 1)
        for t in range(arrays):
            one, other = siemens[t : t + 1], siemens[t : t + 1].transpose(1, 2).contiguous()
            for first in range(0, rows, step):
                some = slice(first, first + step)
                driven = elimination.cell_volts(one, each[None, some], how.r_row, how.r_col, how.ends)
                back = elimination.cell_volts(
                    other, grad[None, t, some], how.r_col, how.r_row, how.ends.transposed
                ).transpose(2, 3)
                found[t] += (driven * back).sum((0, 1))
        return found, None, None


def _checked(conductance: Tensor, active: Tensor | None, layout: Layout) -> Tensor:
    """Conductances in float64, those of closed rows 0."""
    least = 3 if layout == "interleaved" else 2
    if not isinstance(conductance, Tensor) or not conductance.is_floating_point() or conductance.dim() < least:
        given = (
            f"{conductance.dtype} {list(conductance.shape)}" if isinstance(conductance, Tensor) else shown(conductance)
        )
        wanted = "[..., K, R, C]" if least == 3 else "[..., R, C]"
        raise InputError(f"circuit conductance {given} is not usable: give floating point {wanted} in µS")
    low, high = (float(x) for x in conductance.detach().aminmax()) if conductance.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= _MOST_MICROSIEMENS):
        bad = math.nan if math.isnan(low) else low if low < 0 else high
        raise InputError(
            f"circuit conductance {bad:g} µS is not allowed: give 0 to {_MOST_MICROSIEMENS:g}, negative weights as "
            "arrays of their own"
        )
    cells = conductance.double()
    if active is None:
        return cells
    planes = active.unsqueeze(-2) if least == 3 and active.dim() > 1 else active
    if active.dtype != torch.bool or active.shape[-1:] != conductance.shape[-2:-1]:
        raise InputError(
            f"circuit active rows {active.dtype} {list(active.shape)} do not fit {conductance.shape[-2]} rows: give "
            f"bool [..., {conductance.shape[-2]}]"
        )
    return cells * planes.unsqueeze(-1)


def _require_options(r_row: float, r_col: float, drive: str, sense: str, layout: str, solver: str | None) -> None:
    require_number("circuit r_row", r_row, most=MOST_OHMS)
    require_number("circuit r_col", r_col, most=MOST_OHMS)
    for name, value, allowed in (
        ("drive", drive, get_args(Drive)),
        ("sense", sense, get_args(Sense)),
        ("layout", layout, get_args(Layout)),
        ("solver", solver, (None, *get_args(Solver))),
    ):
        if value not in allowed:
            choices = ", ".join(map(str, allowed))
            raise InputError(f"circuit {name} = {shown(value)} is not allowed: choose one of {choices}")

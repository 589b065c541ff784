"""Attention on analog keys and values: both products with converters, device error and noise.

The equations are in docs/physics.md, "Attention".

Score stage: the query drives the D columns through its DAC, and each attended token's row is sensed: one conversion a
pair (in each of ⌈D / columns⌉ tiles), scaled by the token's row and the query's range in digital. Softmax is digital,
unless an analog line takes its place (`attention.activation`).
Value stage: attention weights times the tokens' scales drive the open rows through the DAC, and the D columns of each
touched tile are sensed: D conversions a tile, added in digital. A tile that a query does not touch is not converted.

Wires that have a resistance (`attention.kernel.wires`) change what both stages sense, and nothing else. Gradients are
those of ideal wires.

Noise: each conversion has a standard normal number with a place of its own (`ReadNoise`), whatever blocks, chunks and
parts of batch and heads it is computed in.

A slow transcription of the same is `attention.kernel.analog_reference`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import groupby, pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention.activation import Activation, Saturating
from attention.kernel.blocks import Options, add_pairs, bias_of, exact_dtype, fold, take_pairs, unfold
from attention.kernel.chunks import Chunk, chunks
from attention.kernel.schedule import Schedule
from attention.kernel.token_rows import TokenRows
from attention.kernel.wires import OpenTile, prepared, score_sums, value_sums
from crossbar.backends import dispatch
from crossbar.backends.converters import convert, drive
from crossbar.backends.protocol import Columns, Product
from crossbar.hardware import Hardware
from crossbar.random.streams import Key, Stream

_MOST_HEADS = 2**16
_TINY = 1e-30  # range of an all-zero row: any positive number gives zeros


def attend_analog(
    q: Tensor,
    keys: TokenRows,
    values: TokenRows,
    schedule: Schedule,
    options: Options,
    hardware: Hardware,
    noise: ReadNoise,
    backend: str | None = None,
    fused: Fused | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Output [B, H, N_queries, D_v] and, if asked for, log-sum-exp of the converted scores [B, H, N_queries].

    Soft caps and biases of the scores are digital: they come after the ADC, before the softmax. Gradients go straight
    through the converters, inside their range, and through what noise and the cells added.

    Args:
        q: queries [B, H, N_queries, D].
        keys: the K memory, D wide.
        values: the V memory, D_v wide.
        schedule: the pattern's schedule, made with ``tile`` = ``hardware.tile.rows``.
        options: as for digital attention.
        hardware: converters, geometry and noise.
        noise: the read noise; drawn where the hardware has some.
        backend: that senses the columns, by name (`crossbar.backends.dispatch`); None: as dispatched.
        fused: computes both passes in the place of chunks; None: chunks do.
    """
    problem = Problem(
        keys.scale, values.scale, keys.variance, values.variance, schedule, options._replace(bias=None), hardware,
        noise, backend, fused, prepared(keys, hardware), prepared(values, hardware),
    )  # fmt: skip
    tensors = q, keys.digits, values.digits, options.bias
    output, lse = _AnalogAttention.apply(*tensors, problem)  # type: ignore[no-untyped-call]  # torch's own
    return output, lse if options.return_lse else None


@dataclass(frozen=True, eq=False)
class Places:
    """Where keys and values are: token n in row ``line[n]`` of tile ``tile[n]`` of its head.

    Attributes:
        tile, line: int64 [N_keys].
        tiles: of a head.
    """

    tile: Tensor
    line: Tensor
    tiles: int


class ReadNoise(NamedTuple):
    """The standard normal numbers of a read, each in its place (`crossbar.random`, "Streams of a stream").

    Head h of sequence b has stream ``2^16 b + h`` of the key with ``"scores"``, and of that with ``"values"``. In both
    numbers stand as those of columns do, with queries as the vectors. Scores: a query is converted ``T ⌈D / columns⌉``
    times, T tiles each part of D after part, in rows of as many numbers as a tile has lines. Values: T times, in rows
    of D numbers.

    Attributes:
        key: seed, layer, and whatever tells this read from others.
        sequences: numbers of the sequences that the queries are of; None: 0 to B - 1.
        heads: numbers of their heads; None: 0 to H - 1.
        places: of the keys; None: they fill tiles in order.
    """

    key: Key
    sequences: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    places: Places | None = None

    def streams(self, batch: int, heads: int, device: torch.device) -> Tensor:
        """The number of each head's stream, int64 [B, H]."""
        return _streams(self.sequences or tuple(range(batch)), self.heads or tuple(range(heads)), device)

    def at(self, keys: int, rows: int, device: torch.device) -> Places:
        """Where ``keys`` tokens are, in tiles of so many rows."""
        if self.places is not None:
            return self.places
        return _in_order(keys, rows, device)


@lru_cache(maxsize=8)
def _in_order(keys: int, rows: int, device: torch.device) -> Places:
    with torch.inference_mode(False):
        token = torch.arange(keys, device=device)
        return Places(token // rows, token % rows, -(-keys // rows))


@lru_cache(maxsize=64)
def _streams(sequences: tuple[int, ...], heads: tuple[int, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        own = torch.tensor(sequences, device="cpu")[:, None] * _MOST_HEADS
        return (own + torch.tensor(heads, device="cpu")).to(device)


class Problem(NamedTuple):
    """What has no gradient: scales and variances of the rows, and the arguments of `attend_analog`.

    ``key_planes`` and ``value_planes`` are `attention.kernel.wires.prepared`, nothing where wires are ideal.
    """

    key_scale: Tensor
    value_scale: Tensor
    key_variance: Tensor | None
    value_variance: Tensor | None
    schedule: Schedule
    options: Options
    hardware: Hardware
    noise: ReadNoise
    backend: str | None
    fused: Fused | None
    key_planes: tuple[Tensor, ...] = ()
    value_planes: tuple[Tensor, ...] = ()


class Fused(Protocol):
    """Whatever computes a problem in the place of chunks."""

    def forward(
        self, q: Tensor, keys: Tensor, values: Tensor, problem: Problem, trained: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Output, log-sum-exp [B, H, N_queries] and, if ``trained``, what `backward` needs beside them.

        Args:
            q: queries.
            keys, values: digits of the rows.
            problem: all the rest.
            trained: whether a gradient may be asked for.
        """
        ...

    def backward(
        self,
        saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        problem: Problem,
        grad_output: Tensor | None,
        grad_lse: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of queries and of digits of keys and values.

        Args:
            saved: these three, the output, and what `forward` gave beside it.
            problem: all the rest.
            grad_output, grad_lse: of what `forward` gave; None: zeros.
        """
        ...


class _Noise(NamedTuple):
    """What noise is made from for all chunks of a call.

    Attributes:
        scores, values: the streams of both stages.
        streams: of each head, int64 [B, H_kv, H / H_kv].
        places: of the keys.
    """

    scores: Stream
    values: Stream
    streams: Tensor
    places: Places


class _Circuit(NamedTuple):
    """What reads: converters and geometry, the read noise (None: quiet), and the backend that senses."""

    hardware: Hardware
    noise: _Noise | None
    backend: str | None


class _AnalogTensors(NamedTuple):
    """One chunk's tensors, the first three dimensions [B, H_kv, G] as one, which is P in these shapes.

    Attributes:
        chunk: where they come from.
        rows: queries [P, R, D].
        keys, values: digits [P, L, D].
        key_scale: [P, 1, L], times the softmax's scale and log₂ e: weights are powers of 2, which cost less.
        value_scale: [P, 1, L].
        key_variance, value_variance: [P, L, D] or None.
        bias: 0 or −∞, [B or 1, H_kv or 1, G or 1, R, L]; None: all attended.
        added: what is added to the scores, [B or 1, H_kv or 1, G, R, L]; None: nothing.
        softcap: see `Options`.
        kept: dropout factors [P, R, L] or None.
        shape: B, H_kv and G.
        activation: what becomes of scores.
        key_planes, value_planes: `attention.kernel.wires.OpenTile.planes`; nothing: wires are ideal.
        lines: word line of each key's row in its tile, int64 [P, L]; None: wires are ideal.
    """

    chunk: Chunk
    rows: Tensor
    keys: Tensor
    values: Tensor
    key_scale: Tensor
    value_scale: Tensor
    key_variance: Tensor | None
    value_variance: Tensor | None
    bias: Tensor | None
    added: Tensor | None
    softcap: float | None
    kept: Tensor | None
    shape: tuple[int, int, int]
    activation: Activation
    key_planes: tuple[Tensor, ...]
    value_planes: tuple[Tensor, ...]
    lines: Tensor | None

    def opened(self, here: slice) -> Tensor | None:
        """Which of some keys each query opens, bool [B or 1, H_kv or 1, G or 1, R, l]; None: all."""
        return None if self.bias is None else self.bias[..., here] == 0

    def tile(self, planes: tuple[Tensor, ...], here: slice, hardware: Hardware, tiles: int = 1) -> OpenTile:
        """The rows of ``tiles`` neighbouring tiles of equally many keys, ``here`` among the chunk's keys."""
        assert self.lines is not None
        opened = self.opened(here)
        if opened is not None:
            opened = _by_tile(opened.expand(*self.shape, -1, -1).flatten(0, 2), 2, tiles)
        parts = tuple(_by_tile(plane[:, here], 1, tiles) for plane in planes)
        return OpenTile(parts, _by_tile(self.lines[:, here], 1, tiles), opened, hardware)


class _AnalogAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None, problem: Problem
    ) -> tuple[Tensor, Tensor]:
        ctx.problem = problem
        ctx.set_materialize_grads(False)
        if problem.fused is not None:
            trained = any(ctx.needs_input_grad)
            output, lse, state = problem.fused.forward(q, keys, values, problem, trained)
            if trained:
                ctx.save_for_backward(q, keys, values, output, state)
            return output, lse
        ctx.save_for_backward(q, keys, values, bias)
        problem = problem._replace(options=problem.options._replace(bias=bias))
        (batch, heads, n_queries, _), size = q.shape, values.shape[3]
        output = q.new_zeros(batch, n_queries, heads, size).transpose(1, 2)
        lse = q.new_full((*q.shape[:3], 1), -torch.inf, dtype=exact_dtype(q.dtype))
        circuit = _circuit(problem, q, keys)
        for part in _gathered(q, keys, values, problem):
            for total, found in zip((output, lse), _attend(part, circuit), strict=True):
                part.chunk.put_queries(total, unfold(found.unflatten(0, part.shape), heads))
        return output, lse[..., 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        problem = ctx.problem
        if problem.fused is not None:
            return *problem.fused.backward(ctx.saved_tensors, problem, grad_output, grad_lse), None, None
        q, keys, values, bias = ctx.saved_tensors
        heads, kv_heads = q.shape[1], keys.shape[1]
        problem = problem._replace(options=problem.options._replace(bias=bias))
        circuit = _circuit(problem, q, keys)  # the draws of the forward pass again
        grad_q, grad_keys, grad_values = (torch.zeros_like(x, dtype=keys.dtype) for x in (q, keys, values))
        grad_bias = None if bias is None or not ctx.needs_input_grad[3] else torch.zeros_like(bias, dtype=keys.dtype)
        for part in _gathered(q, keys, values, problem):
            inputs = [x.detach().requires_grad_() for x in (part.rows, part.keys, part.values)]
            if grad_bias is not None:
                assert part.added is not None
                whole = part.added.expand(*part.shape, *part.added.shape[3:])
                inputs.append(whole.detach().to(keys.dtype).requires_grad_())
            own = part._replace(
                rows=inputs[0], keys=inputs[1], values=inputs[2], added=inputs[3] if len(inputs) > 3 else part.added
            )
            with torch.enable_grad():
                found = _attend(own, circuit)
            outputs, grads = [], []
            for result, grad in zip(
                found, (grad_output, None if grad_lse is None else grad_lse[..., None]), strict=True
            ):
                if grad is not None:
                    taken = fold(part.chunk.take_queries(grad), kv_heads).flatten(0, 2)
                    outputs.append(result)
                    grads.append(taken.to(result.dtype))
            found_grads = torch.autograd.grad(outputs, inputs, grads, materialize_grads=True)
            rows, found_keys, found_values = (x.unflatten(0, part.shape) for x in found_grads[:3])
            if grad_bias is not None:
                add_pairs(part.chunk, grad_bias, unfold(found_grads[3], heads))
            part.chunk.add_queries(grad_q, unfold(rows, heads))
            part.chunk.add_keys(grad_keys, found_keys)
            part.chunk.add_keys(grad_values, found_values)
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_q.to(q.dtype), grad_keys, grad_values, grad_bias, None


def _circuit(problem: Problem, q: Tensor, keys: Tensor) -> _Circuit:
    hardware, given, noise = problem.hardware, problem.noise, None
    if hardware.output_noise > 0 or problem.key_variance is not None or problem.value_variance is not None:
        noise = _Noise(
            Stream((*given.key, "scores"), q.device),
            Stream((*given.key, "values"), q.device),
            given.streams(q.shape[0], q.shape[1], q.device).unflatten(1, (keys.shape[1], -1)),
            given.at(keys.shape[2], hardware.tile.rows, q.device),
        )
    return _Circuit(hardware, noise, problem.backend)


def _gathered(q: Tensor, keys: Tensor, values: Tensor, problem: Problem) -> Iterator[_AnalogTensors]:
    """The chunks' tensors, always in the same order, along which dropout is drawn."""
    options, dtype, kv_heads = problem.options, keys.dtype, keys.shape[1]
    generator = torch.Generator(q.device).manual_seed(options.seed) if options.dropout else None
    line: Tensor | None = None
    if problem.key_planes:
        line = problem.noise.at(keys.shape[2], problem.hardware.tile.rows, q.device).line
    for chunk in chunks(problem.schedule, q.shape[0] * q.shape[1]):

        def taken(x: Tensor, chunk: Chunk = chunk) -> Tensor:
            return chunk.take_keys(x).flatten(0, 2)

        def of_planes(planes: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return tuple(taken(plane.flatten(3)).unflatten(2, plane.shape[3:]) for plane in planes)

        rows = fold(chunk.take_queries(q), kv_heads).to(dtype)
        kept = None
        if generator is not None:
            shape = (rows.shape[:3].numel(), rows.shape[3], chunk.keys.shape[1])
            draws = torch.rand(shape, generator=generator, dtype=dtype, device=q.device)
            kept = (draws >= options.dropout).to(dtype).div_(1 - options.dropout)
        yield _AnalogTensors(
            chunk=chunk,
            rows=rows.flatten(0, 2),
            keys=taken(keys),
            values=taken(values),
            key_scale=taken(problem.key_scale).transpose(1, 2) * (options.scale * math.log2(math.e)),
            value_scale=taken(problem.value_scale).transpose(1, 2),
            key_variance=None if problem.key_variance is None else taken(problem.key_variance),
            value_variance=None if problem.value_variance is None else taken(problem.value_variance),
            bias=bias_of(chunk, q, keys, options.mask),
            added=None if options.bias is None else take_pairs(chunk, options.bias, q.shape[1], kv_heads),
            softcap=options.softcap,
            kept=kept,
            shape=(rows.shape[0], rows.shape[1], rows.shape[2]),
            activation=options.activation,
            key_planes=of_planes(problem.key_planes),
            value_planes=of_planes(problem.value_planes),
            lines=None if line is None else line[chunk.keys].repeat(rows.shape[:2].numel(), 1),
        )


def _attend(part: _AnalogTensors, circuit: _Circuit) -> tuple[Tensor, Tensor]:
    """A chunk's output [P, R, D] and log-sum-exp [P, R, 1]; differentiable.

    Changes its own tensors in place where autograd does not need them: passes over scores are what takes the time.
    """
    scores = _scores(part, circuit)
    if part.softcap is not None:
        cap = part.softcap * math.log2(math.e)
        scores = scores.div(cap).tanh().mul(cap)
    if part.added is not None:
        own = part.added.to(scores.dtype)
        scores.view(*part.shape, *scores.shape[1:]).add_(own, alpha=math.log2(math.e))
    if part.bias is not None:
        scores.view(*part.shape, *scores.shape[1:]).add_(part.bias)
    if isinstance(part.activation, Saturating):
        pulses = _saturated(scores, part.activation)
        pulses = pulses if part.kept is None else pulses * part.kept
        one = pulses.new_ones(*pulses.shape[:2], 1)
        return _values(part, pulses, one, circuit) * part.activation.gain, one.log()
    largest = scores.detach().amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)
    weights = scores.sub_(largest).exp2_()
    if part.activation.bits is not None:
        weights = _rounded(weights, 2**part.activation.bits - 1)
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    lse = (largest + total.log2()).mul(math.log(2.0)).masked_fill(empty, -torch.inf)
    if part.kept is not None:
        weights = weights * part.kept
    return _values(part, weights, total, circuit), lse


def _saturated(scores: Tensor, line: Saturating) -> Tensor:
    """Parts of a full pulse, 0 … 1, for scores times log₂ e."""
    share = (scores / math.log2(math.e) - line.low).div(line.high - line.low).clamp(0.0, 1.0)
    return share if line.levels is None else _rounded(share, line.levels - 1)


def _rounded(x: Tensor, steps: int) -> Tensor:
    """Nearest of ``steps`` equal steps from 0 to 1; gradients go straight through."""
    return x + (x.detach().mul(steps).round_().div_(steps) - x.detach())


def _scores(part: _AnalogTensors, circuit: _Circuit) -> Tensor:
    """Scores [P, R, L] times log₂ e, as digital logic has them after the ADC and the scales, attended or not."""
    hardware = circuit.hardware
    size, columns = part.rows.shape[2], hardware.tile.cols
    queries = part.rows.reshape(-1, size)
    flat = drive(queries, hardware.dac, _largest(queries) if _per_token(hardware) else None)
    codes = flat.codes.view_as(part.rows)
    shape = (part.rows.shape[0], part.rows.shape[1], part.keys.shape[1])
    parts = -(-size // columns)
    total: Tensor | None = None
    for number, low in enumerate(range(0, size, columns)):
        here = slice(low, low + columns)
        driven, cells = codes[..., here], part.keys[..., here].transpose(1, 2)
        variance = None
        if part.key_variance is not None:
            spread = part.key_variance[..., here].transpose(1, 2)
            if hardware.read_noise is not None and hardware.read_noise.form == "cheap":
                spread = spread.mean(1, keepdim=True).expand_as(spread)
            variance = (driven.detach() * flat.unit).square() @ spread
        share = None
        if hardware.adc is not None and hardware.adc.range == "active_rows":
            active = (driven.detach() != 0).sum(-1, keepdim=True).clamp_(min=1)
            share = active.to(driven.dtype) / driven.shape[-1]
        normals = partial(_normals_of_scores, circuit, part, number, parts)
        currents = _score_currents(part, driven, here, hardware) if part.key_planes else None
        sensed = _sense(driven, cells, flat.unit, shape, variance, share, circuit, normals, currents)
        total = sensed if total is None else total.add_(sensed)
    assert total is not None
    total = total.mul_(part.key_scale)
    if isinstance(flat.full_scale, Tensor) and flat.full_scale.dim():
        return total.mul_(flat.full_scale.view(*shape[:2], 1))
    return total.mul_(flat.full_scale)


@torch.no_grad()
def _score_currents(part: _AnalogTensors, driven: Tensor, here: slice, hardware: Hardware) -> Tensor:
    """What word lines carry through wires, [P, R, L], under codes [P, R, C] of the dimensions ``here``."""
    planes = tuple(plane[..., here] for plane in part.key_planes)
    found = []
    for run, tiles in _runs(part.chunk):
        sums = score_sums(driven.repeat_interleave(tiles, 0), part.tile(planes, run, hardware, tiles))
        found.append(sums if tiles == 1 else sums.unflatten(0, (-1, tiles)).transpose(1, 2).flatten(2))
    return found[0] if len(found) == 1 else torch.cat(found, 2)


@torch.no_grad()
def _value_currents(part: _AnalogTensors, driven: Tensor, here: slice, hardware: Hardware, tiles: int) -> Tensor:
    """What bit lines carry through wires, [P tiles, R, D], under codes [P tiles, R, L] of keys ``here``."""
    columns = hardware.tile.cols
    found = []
    for low in range(0, part.values.shape[2], columns):
        planes = tuple(plane[..., low : low + columns] for plane in part.value_planes)
        found.append(value_sums(driven, part.tile(planes, here, hardware, tiles)))
    return found[0] if len(found) == 1 else torch.cat(found, 2)


def _runs(chunk: Chunk) -> Iterator[tuple[slice, int]]:
    """The chunk's keys in runs of neighbouring tiles of equally many keys, and the number of these tiles."""
    for _, run in groupby(pairwise(chunk.group.bounds), lambda bounds: bounds[1] - bounds[0]):
        tiles = list(run)
        yield slice(tiles[0][0], tiles[-1][1]), len(tiles)


def _by_tile(x: Tensor, dim: int, tiles: int) -> Tensor:
    """[P, …] with the keys of each tile apart, tiles after P, both as one."""
    return x if tiles == 1 else x.unflatten(dim, (tiles, -1)).movedim(dim, 1).flatten(0, 1)


def _normals_of_scores(circuit: _Circuit, part: _AnalogTensors, number: int, parts: int) -> Tensor:
    """Noise [P, R, L] of the scores' part ``number`` of so many."""
    noise, chunk = circuit.noise, part.chunk
    assert noise is not None
    places = _of_scores(noise.places, chunk, noise.streams.shape[2], number, parts)
    streams = noise.streams.flatten(0, 1).repeat_interleave(chunk.high - chunk.low, 1)
    return noise.scores.scattered(streams, *places, circuit.hardware.tile.rows)


def _normals_of_values(circuit: _Circuit, part: _AnalogTensors, first: int, keys: int, tiles: int) -> Tensor:
    """Noise [P tiles, R, D] of ``tiles`` neighbouring tiles of so many keys, of which ``first`` is the first one."""
    noise, chunk, size = circuit.noise, part.chunk, part.values.shape[2]
    assert noise is not None
    places = _of_values(noise.places, chunk, noise.streams.shape[2], first, keys, tiles, size)
    streams = noise.streams.flatten(0, 1).repeat_interleave(chunk.high - chunk.low, 1)
    return noise.values.scattered(streams, *places, size)


# Layers of a model read with one schedule and the same places, and a token at a time these would take long to find.


@lru_cache(maxsize=128)
def _of_scores(places: Places, chunk: Chunk, heads: int, number: int, parts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Row, shift and element of `Stream.scattered`."""
    with torch.inference_mode(False):
        row = chunk.queries.repeat(1, heads) * (places.tiles * parts) + number
        return row, places.tile[chunk.keys] * parts, places.line[chunk.keys]


@lru_cache(maxsize=128)
def _of_values(
    places: Places, chunk: Chunk, heads: int, first: int, keys: int, tiles: int, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for ``tiles`` neighbouring tiles of so many keys, of which ``first`` is the first one."""
    with torch.inference_mode(False):
        tile = places.tile[chunk.keys[:, first : first + keys * tiles : keys]]
        row = (chunk.queries.repeat(1, heads) * places.tiles).repeat_interleave(tiles, 0)
        shift = tile.reshape(-1, 1).repeat(1, size)
        return row, shift, torch.arange(size, device=tile.device).repeat(len(shift), 1)


def _values(part: _AnalogTensors, weights: Tensor, total: Tensor, circuit: _Circuit) -> Tensor:
    """Outputs [P, R, D] of weights [P, R, L], which are those of softmax times ``total`` [P, R, 1]."""
    dac, unit = circuit.hardware.dac, 1.0
    full_scale: Tensor | float = 1.0
    drives = _times(weights, part.value_scale)
    if dac is None:
        codes = _times(drives, total.reciprocal())
    elif dac.range == "per_token":
        largest = drives.detach().amax(-1, keepdim=True).clamp_(min=_TINY)  # no weight and no scale is negative
        codes, unit, full_scale = convert(_times(drives, dac.levels / largest), dac), 1 / dac.levels, largest / total
    else:
        codes = convert(_times(drives, dac.levels / (dac.full_scale * total)), dac)
        unit, full_scale = 1 / dac.levels, dac.full_scale
    output: Tensor | None = None
    for here, tiles in _runs(part.chunk):
        sensed = _sense_tiles(part, codes[..., here], here, tiles, unit, circuit)
        output = sensed if output is None else output.add_(sensed)
    assert output is not None
    return output * full_scale


def _per_token(hardware: Hardware) -> bool:
    return hardware.dac is not None and hardware.dac.range == "per_token"


def _largest(x: Tensor) -> Tensor:
    """The abs-max along the last dimension, kept, as a range of a converter: a positive number."""
    x = x.detach()
    return torch.maximum(x.amax(-1, keepdim=True), x.amin(-1, keepdim=True).neg_()).clamp_(min=_TINY)


def _times(x: Tensor, factor: Tensor | float) -> Tensor:
    """The product, in place where autograd does not need ``x``."""
    return x * factor if torch.is_grad_enabled() else x.mul_(factor)


def _sense_tiles(
    part: _AnalogTensors,
    codes: Tensor,
    here: slice,
    tiles: int,
    unit: float,
    circuit: _Circuit,
) -> Tensor:
    """Digital sum [P, R, D] over ``tiles`` neighbouring tiles of equally many keys, ``here`` among the chunk's keys."""
    hardware = circuit.hardware
    driven, cells = _by_tile(codes, 2, tiles), _by_tile(part.values[:, here], 1, tiles)
    variance = None
    if part.value_variance is not None:
        spread = _by_tile(part.value_variance[:, here], 1, tiles)
        if hardware.read_noise is not None and hardware.read_noise.form == "cheap":
            spread = spread.mean(1, keepdim=True).expand_as(spread)
        variance = (driven.detach() * unit).square() @ spread
    shape = (driven.shape[0], driven.shape[1], cells.shape[2])
    count = share = None
    opened = part.opened(here)
    if opened is not None:
        count = opened.unflatten(-1, (tiles, -1)).sum(-1).transpose(-1, -2)  # [.., G or 1, T, R]
        count = count.expand(*part.shape, -1, shape[1]).reshape(shape[0], shape[1], 1).to(codes.dtype)
    if hardware.adc is not None and hardware.adc.range == "active_rows":
        share = codes.new_tensor(driven.shape[2]).expand(*shape[:2], 1) if count is None else count
        share = share.clamp(min=1.0) / hardware.tile.rows
    normals = partial(_normals_of_values, circuit, part, here.start, (here.stop - here.start) // tiles, tiles)
    currents = _value_currents(part, driven, here, hardware, tiles) if part.value_planes else None
    sensed = _sense(driven, cells, unit, shape, variance, share, circuit, normals, currents)
    if count is not None:
        sensed = sensed.mul_((count > 0).to(sensed.dtype))
    return sensed if tiles == 1 else sensed.unflatten(0, (-1, tiles)).sum(1)


def _sense(
    codes: Tensor,
    cells: Tensor,
    unit: float,
    shape: tuple[int, int, int],
    variance: Tensor | None,
    share: Tensor | None,
    circuit: _Circuit,
    normals: Callable[[], Tensor],
    currents: Tensor | None,
) -> Tensor:
    """What the ADCs deliver for ``codes @ cells``, in unit outputs, with ``share`` of the tile's word lines driven.

    ``currents``: what comes of the codes through wires instead, shaped like the result.
    """
    hardware, noise, backend = circuit
    adc = hardware.adc
    step = 1.0 if adc is None else adc.full_scale / adc.levels
    columns = Columns(
        products=(Product(None, codes, cells),),
        shape=shape,
        unit=unit,
        hardware=hardware,
        step=step,
        spans=None if share is None else share.sqrt(),
        normals=None if noise is None else normals,
        variance=variance,
    )
    if currents is None:
        return dispatch.sense(columns, backend).mul_(step)
    if torch.is_grad_enabled():
        ideal = codes @ cells
        currents = ideal + (currents - ideal.detach())
    return dispatch.sense(_given(columns, currents), backend).mul_(step).view(shape)


def _given(columns: Columns, currents: Tensor) -> Columns:
    """Columns whose sums are known: each is a column of its own, with one row that a code of its sum drives."""
    spans, variance, normals = columns.spans, columns.variance, columns.normals

    def alone(x: Tensor) -> Tensor:
        return x.expand(columns.shape).reshape(1, -1, 1)

    return replace(
        columns,
        products=(Product(None, alone(currents), currents.new_ones(1, 1, 1)),),
        shape=(1, currents.numel(), 1),
        spans=None if spans is None else alone(spans),
        normals=None if normals is None else lambda: alone(normals()),
        variance=None if variance is None else alone(variance),
    )
